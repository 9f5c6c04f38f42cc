"""Pictures of results: every method of a scene tone-mapped alike, its errors, and the places where methods differ most, on one sheet."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gmodiff.datasets.scene import Mask, Scene
from gmodiff.evaluate.metrics import compress
from gmodiff.evaluate.rows import Row
from gmodiff.evaluate.statistics import CEILINGS
from gmodiff.radiometry import F32
from gmodiff.writer import replacing

Picture = NDArray[np.uint8]
"""(H, W, 3) uint8, RGB."""

ERROR_RANGE = 0.2
"""Difference in the mu domain (0..1) from which an error map shows its brightest colour, pale yellow."""

UNKNOWN_GREY = 90
SHEET_WIDTH, GAP, LINE = 2400, 8, 26
HIGHEST = 60_000
"""Rows of a sheet: JPEG holds 65535."""
MOST_COLUMNS, CROPS, SMALLEST_CROP = 5, 3, 96
QUALITY = 95


# ---- one picture ----------------------------------------------------------------------------------------------------------


def tone_mapped(radiance: F32, short_white: float) -> Picture:
    """(H, W, 3) radiance to the picture that shows it on sheets; the same for every method of a scene.

    The largest channel, relative to the short frame's white, goes through log(1 + 500 l) / log 501, which keeps eleven stops apart; the
    others keep their ratios to it, softened as a display's encoding does. What is not finite shows as magenta.
    """
    finite = np.asarray(np.isfinite(radiance).all(axis=-1))
    light = np.where(finite[..., None], radiance, 0).clip(0) / np.float32(short_white)
    largest = np.maximum(light.max(axis=-1), np.float32(1e-7))
    shown = np.log1p(500 * np.minimum(largest, 1)) / np.float32(np.log(501))
    encoded = shown[..., None] * (light / largest[..., None]) ** np.float32(1 / 2.2)
    picture: Picture = np.rint(encoded * 255).astype(np.uint8)
    picture[~finite] = (255, 0, 255)
    return picture


def error_map(estimate: F32, truth: F32, short_white: float, known: Mask | None = None) -> Picture:
    """Largest difference of the three channels in the mu domain (mu 5000), black for 0 to yellow from ERROR_RANGE; grey where not known.

    What is not finite is as wrong as can be.
    """
    white = np.float32(short_white)
    finite = np.isfinite(estimate)
    apart = np.abs(compress((np.where(finite, estimate, 0) / white).astype(np.float32)) - compress(truth / white))
    apart = np.where(finite, apart, 1).max(axis=-1)
    codes = np.rint(np.clip(apart / ERROR_RANGE, 0, 1) * 255).astype(np.uint8)
    picture = np.asarray(cv2.applyColorMap(codes, cv2.COLORMAP_INFERNO)[..., ::-1], np.uint8).copy()
    if known is not None:
        picture[~known] = UNKNOWN_GREY
    return picture


def save_pictures(folder: Path, scene: Scene, method: str, radiance: F32) -> None:
    """Keep what a sheet needs, in folder/<scene>/: the method's picture and errors, and once the inputs and the truth."""
    place = folder / scene.name
    place.mkdir(parents=True, exist_ok=True)
    mark = place / "scene.txt"
    if not mark.exists() or mark.read_text() != scene.hash:
        # Pictures of a scene that has changed since must not stand beside new ones.
        for old in place.glob("*.jpg"):
            old.unlink()
        mark.write_text(scene.hash)
    _save(place / f"{file_name(method)}.jpg", tone_mapped(radiance, scene.short_white))
    if scene.truth is not None:
        _save(place / f"{file_name(method)}.error.jpg", error_map(radiance, scene.truth, scene.short_white, scene.known))
        if not (place / "truth.jpg").exists():
            _save(place / "truth.jpg", tone_mapped(scene.truth, scene.short_white))
    for i, frame in enumerate(scene.bracket.frames, start=1):
        path = place / f"frame_{i}.jpg"
        if not path.exists():
            deep = frame.encoded.dtype == np.uint16
            _save(path, np.asarray(frame.encoded >> 8 if deep else frame.encoded, np.uint8))


def file_name(method: str) -> str:
    """A method's name as a file's: what file systems do not take is replaced, and a hash keeps two such names apart."""
    plain = re.sub(r"[^A-Za-z0-9._@-]+", "_", method)[-60:]
    return plain if plain == method else f"{plain}-{hashlib.sha256(method.encode()).hexdigest()[:6]}"


def _save(path: Path, picture: Picture) -> None:
    settings = [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    _, data = cv2.imencode(path.suffix, picture[..., ::-1], settings if path.suffix == ".jpg" else [])
    with replacing(path, force=True) as temporary:
        temporary.write_bytes(data.tobytes())


def _load(path: Path) -> Picture | None:
    """A picture saved earlier, None where it is missing or damaged: a sheet is then made without it."""
    try:
        found = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error):
        return None
    return None if found is None else np.ascontiguousarray(found[..., ::-1], np.uint8)


# ---- a sheet --------------------------------------------------------------------------------------------------------------


def save_sheet(pictures: Path, rows: Sequence[Row], path: Path) -> bool:
    """Write the contact sheet of one scene as JPEG; False where no pictures of it were kept."""
    sheet = contact_sheet(pictures, rows)
    if sheet is None:
        return False
    if sheet.shape[0] > HIGHEST:
        sheet = np.asarray(cv2.resize(sheet, (SHEET_WIDTH * HIGHEST // sheet.shape[0], HIGHEST), interpolation=cv2.INTER_AREA), np.uint8)
    _save(path, sheet)
    return True


def contact_sheet(pictures: Path, rows: Sequence[Row]) -> Picture | None:
    """The sheet of one scene, from its folder of pictures and its rows: inputs, truth, methods, errors, crops where methods differ most."""
    frames = [p for i in range(1, 17) if (p := _load(pictures / f"frame_{i}.jpg")) is not None]
    if not frames or not rows:
        return None
    shape = frames[0].shape
    truth = _load(pictures / "truth.jpg")
    results = _of_methods(pictures, rows, ".jpg", shape)
    errors = _of_methods(pictures, rows, ".error.jpg", shape)
    boxes = most_different({m: p for m, p in results.items() if m not in CEILINGS}, _crop_side(len(results) + 1, shape))
    facts: dict[str, Any] = next((r["facts"] for r in rows if r["facts"]), {})
    stops = facts.get("stops", [])
    inputs = [(p, f"frame {i + 1}" + (f", {stops[i]:+g} stops" if i < len(stops) else "")) for i, p in enumerate(frames)]
    if truth is not None:
        inputs.append((_boxed(truth, boxes), "truth, tone-mapped; boxes: crops below"))
    parts = [_title(rows[0], facts), _grid(inputs, min(len(inputs), 6))]
    tiles = []
    for row in rows:
        picture = results.get(row["method"], _told(shape, row))
        below = [errors.get(row["method"], np.full(shape, UNKNOWN_GREY, np.uint8))] if errors else []
        tiles.append((np.vstack([picture, *below]), _caption(row)))
    parts.append(_grid(tiles, min(MOST_COLUMNS, max(3, ceil(len(rows) / 2)))))
    if errors:
        parts.append(_line(f"Below each result its error in the mu domain: black 0, pale yellow {ERROR_RANGE:g} and more, grey not known."))
    for number, (y, x, side) in enumerate(boxes, start=1):
        cut = slice(y, y + side), slice(x, x + side)
        crops = [] if truth is None else [(truth[cut], f"{number}: truth")]
        crops += [(p[cut], f"{number}: {m}") for m, p in results.items()]
        parts.append(_grid(crops, len(crops)))
    return np.asarray(np.vstack(parts), np.uint8)


def _of_methods(pictures: Path, rows: Sequence[Row], ending: str, shape: tuple[int, ...]) -> dict[str, Picture]:
    """Methods' pictures that are there; one of another size is left from another run and no part of this scene."""
    loaded = {r["method"]: _load(pictures / f"{file_name(r['method'])}{ending}") for r in rows if r["status"] == "ok"}
    return {m: p for m, p in loaded.items() if p is not None and p.shape == shape}


def most_different(results: dict[str, Picture], side: int, count: int = CROPS) -> list[tuple[int, int, int]]:
    """(top, left, side) of up to `count` squares, none touching another, where pictures of methods vary most."""
    if len(results) < 2:
        return []
    stack = np.stack([cv2.cvtColor(p, cv2.COLOR_RGB2GRAY) for p in results.values()]).astype(np.float32)
    spread = cv2.boxFilter(stack.std(axis=0), cv2.CV_32F, (side, side), borderType=cv2.BORDER_CONSTANT)
    height, width = spread.shape
    half = side // 2
    if min(height, width) <= side:
        return []
    inner = spread[half : height - side + half, half : width - side + half].copy()
    boxes = []
    for _ in range(count):
        y, x = np.unravel_index(int(inner.argmax()), inner.shape)
        if inner[y, x] <= 0:
            break
        boxes.append((int(y), int(x), side))
        inner[max(0, y - side) : y + side, max(0, x - side) : x + side] = 0
    return boxes


def _crop_side(columns: int, shape: tuple[int, ...]) -> int:
    return int(min(max(SMALLEST_CROP, (SHEET_WIDTH - GAP) // columns - GAP), min(shape[:2]) // 2))


def _title(row: Row, facts: Any) -> Picture:
    shown = {
        "picture": "",
        "folder": "",
        "motion": "",
        "response": "response",
        "iso": "ISO",
        "jpeg": "JPEG",
        "clipped_stops": "clipped stops",
    }
    told = [f"{word} {facts[k]}".strip() for k, word in shown.items() if facts.get(k) not in (None, "")]
    told += [f"{k.removesuffix('_share')} {100 * v:.1f} %" for k, v in facts.items() if k.endswith("_share") and isinstance(v, float)]
    bar = np.full((2 * LINE + 16, SHEET_WIDTH, 3), 30, np.uint8)
    _write(bar, f"{row['dataset']}: {row['scene']}", (GAP, LINE), 0.8)
    _write(bar, "   ".join(told), (GAP, 2 * LINE + 4), 0.55)
    return bar


def _line(text: str) -> Picture:
    bar = np.full((LINE + GAP, SHEET_WIDTH, 3), 30, np.uint8)
    _write(bar, text, (GAP, LINE - 6), 0.55)
    return bar


def _caption(row: Row) -> str:
    if row["status"] != "ok":
        return f"{row['method']}: failed"
    values = row["metrics"]
    scores = [f"{values[k]:.2f} {unit}" for k, unit in (("psnr_mu", "dB"), ("jod", "JOD")) if values.get(k) is not None]
    return f"{row['method']}: {', '.join(scores)}" if scores else str(row["method"])


def _told(shape: tuple[int, ...], row: Row) -> Picture:
    """What stands where a picture is missing."""
    blank = np.full(shape, 45, np.uint8)
    text = str(row.get("error") or "no picture kept")
    scale = max(shape[1] / 900, 0.4)
    for i in range(0, min(len(text), 240), 48):
        _write(blank, text[i : i + 48], (int(10 * scale), int((i // 48 + 1.5) * 36 * scale)), scale)
    return blank


def _boxed(picture: Picture, boxes: Iterable[tuple[int, int, int]]) -> Picture:
    out = picture.copy()
    thick = max(2, picture.shape[1] // 300)
    for number, (y, x, side) in enumerate(boxes, start=1):
        cv2.rectangle(out, (x, y), (x + side, y + side), (255, 230, 0), thick)
        _write(out, str(number), (x + 2 * thick, y + 12 * thick), 0.4 * thick)
    return out


def _grid(tiles: Sequence[tuple[Picture, str]], columns: int) -> Picture:
    """Pictures of one shape with captions above, in rows of so many, all as wide as the sheet allows."""
    height, width = tiles[0][0].shape[:2]
    tile = (SHEET_WIDTH - GAP) // columns - GAP
    scale = tile / width
    high = max(1, round(height * scale))
    # What is enlarged keeps its pixels visible; the rest is averaged down.
    how = cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA
    rows = ceil(len(tiles) / columns)
    out = np.full((rows * (high + LINE + GAP), SHEET_WIDTH, 3), 30, np.uint8)
    for i, (picture, caption) in enumerate(tiles):
        top, left = i // columns * (high + LINE + GAP), GAP + i % columns * (tile + GAP)
        _write(out, _fitted(caption, tile), (left, top + LINE - 8), 0.55)
        out[top + LINE : top + LINE + high, left : left + tile] = cv2.resize(picture, (tile, high), interpolation=how)
    return out


def _fitted(caption: str, width: int, scale: float = 0.55) -> str:
    while len(caption) > 4 and cv2.getTextSize(caption, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0] > width:
        caption = caption[:-4] + "..."
    return caption


def _write(picture: Picture, text: str, place: tuple[int, int], scale: float) -> None:
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(picture, plain, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (235, 235, 235), max(1, round(scale * 1.6)), cv2.LINE_AA)
