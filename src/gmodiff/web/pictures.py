"""What the viewer shows of a picture: layers cut into tiles of a pyramid, what it needs to draw them, a histogram, one pixel's story.

A tile is raw bytes, row by row: half floats for light and gain, bytes for codes and labels. Level 0 is the picture itself; each further
level has half the size, as means over areas (labels: every second one), so that the page holds what its screen can show and no more.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from gmodiff.errors import GMODiffError, InputError
from gmodiff.gainmap import resize_bilinear
from gmodiff.hdrgm import alternate_colour
from gmodiff.image import HDRImage
from gmodiff.provenance import ALIGNED, INFERRED, REFERENCE
from gmodiff.radiometry import SRGB, luminance_weights
from gmodiff.writer import write

TILE_PX = 512
LOSSY = (".jpg", ".avif", ".jxl")
"""Formats that have a quality."""
HISTOGRAM_FROM, HISTOGRAM_TO, BINS_PER_STOP = -14, 10, 4
SAMPLES = 1_000_000
GONE = "this picture is not here any more: merge or check it again"
FILES_KEPT = 10
"""Of one picture, as it was taken in one format or another; older ones are made again when somebody asks."""
_HALF_MAX = 65504.0

WORDS = {REFERENCE: "measured in the reference", ALIGNED: "measured in another photo", INFERRED: "inferred"}


@dataclass
class Picture:
    """A finished picture, and the photos it was made from.

    image: its arrays may lie in files.   frames: (name, (H, W, 3) uint8 or uint16 encoded) of the photos, unaligned.
    source: (H, W) uint8, the index into frames whose sample counts most; None where unknown.   facts: plain values for the page.
    folder: for what is written of it; goes when the picture goes.   gone: it has; who still looks at it is told so.
    """

    id: str
    image: HDRImage = field(repr=False)
    folder: Path
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    frames: Sequence[tuple[str, NDArray[Any]]] = field(default=(), repr=False)
    source: NDArray[np.uint8] | None = field(default=None, repr=False)
    name: str = "picture"
    _levels: dict[tuple[str, int], NDArray[Any]] = field(default_factory=dict, repr=False)
    touched: float = field(default_factory=time.time)
    gone: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _making: dict[str, threading.RLock] = field(default_factory=dict, repr=False)  # one a layer: who waits for light waits for no labels
    _writing: threading.Lock = field(default_factory=threading.Lock, repr=False)  # its own: who looks does not wait for an encoder
    _files: dict[Path, None] = field(default_factory=dict, repr=False)
    _histogram: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        height, width = self.image.radiance.shape[:2]
        return height, width

    def layers(self) -> dict[str, int]:
        """Names of the layers and their channels."""
        found = {"radiance": 3}
        if self.image.base is not None:
            found["base"] = 3
        if self.image.base is not None and self.image.gain_map is not None:
            found["gain"] = 3
        if self.image.provenance is not None:
            found["labels"] = 2
        return found | {f"frame{n}": 3 for n in range(len(self.frames))}

    def levels(self) -> int:
        """How many levels the pyramid has: the last is one tile."""
        return max(0, math.ceil(math.log2(max(*self.shape, 1) / TILE_PX))) + 1

    def describe(self) -> dict[str, Any]:
        """What the page needs to draw the picture. Matrices are row by row, to linear sRGB."""
        image = self.image
        height, width = self.shape
        gain = None
        if image.gain_map is not None and image.base is not None:
            m = image.gain_map.metadata
            alternate = alternate_colour(image.metadata) or image.base_colour
            gain = {
                "base_offset": list(m.base_offset),
                "alternate_offset": list(m.alternate_offset),
                "base_headroom": m.base_headroom,
                "alternate_headroom": m.alternate_headroom,
                # The gain works in the base's primaries, or in the alternate's; on screen it is shown from there.
                "base_to_gain": _matrix(np.eye(3) if m.use_base_colour_space else image.base_colour.matrix_to(alternate)),
                "gain_to_srgb": _matrix((image.base_colour if m.use_base_colour_space else alternate).matrix_to(SRGB)),
            }
        return {
            "id": self.id,
            "name": self.name,
            "width": width,
            "height": height,
            "tile": TILE_PX,
            "sizes": [list(self._size(level)) for level in range(self.levels())],
            "layers": self.layers(),
            "content": image.content,
            "radiance_to_srgb": _matrix(image.colour.matrix_to(SRGB)),
            "base_to_srgb": _matrix(image.base_colour.matrix_to(SRGB)),
            "gain": gain,
            "has_degradation": image.degradation is not None,
            "frames": [name for name, _ in self.frames],
            "facts": dict(self.facts),
        }

    def tile(self, layer: str, level: int, column: int, row: int) -> bytes:
        """One tile's pixels. Raises InputError where there is none."""
        if layer not in self.layers() or not 0 <= level < self.levels():
            raise InputError(f"this picture has no layer {layer[:20]!r} at level {level}")
        height, width = self._size(level)
        top, left = row * TILE_PX, column * TILE_PX
        if not (0 <= top < height and 0 <= left < width):
            raise InputError(f"this picture has no tile {column}, {row} at level {level}")
        part = self._level(layer, level)[top : top + TILE_PX, left : left + TILE_PX]
        if layer in ("radiance", "gain"):
            with np.errstate(invalid="ignore"):
                part = np.nan_to_num(np.clip(part, -_HALF_MAX, _HALF_MAX)).astype("<f2")
        elif part.dtype == np.uint16:
            part = (part >> 8).astype(np.uint8)
        return np.ascontiguousarray(part).tobytes()

    def pixel(self, x: int, y: int) -> dict[str, Any]:
        """One pixel's story: light, where it came from, what the file says there. Raises InputError outside the picture."""
        height, width = self.shape
        if not (0 <= x < width and 0 <= y < height):
            raise InputError(f"pixel {x}, {y} is outside the picture of {width}x{height}")
        image = self.image
        light = np.asarray(image.radiance[y, x], np.float64)
        luminance = float(light @ luminance_weights(image.colour))
        found: dict[str, Any] = {
            "x": x,
            "y": y,
            "radiance": [float(f"{v:.5g}") for v in light],
            "stops": round(math.log2(luminance), 2) if luminance > 0 else None,
            "label": None,
            "source": None,
            "degradation": None,
            "base": None if image.base is None else [int(v) for v in image.base[y, x]],
            "gain_stops": None,
        }
        if image.provenance is not None:
            label = int(image.provenance[y, x])
            found["label"] = WORDS.get(label, str(label))
            if self.source is not None and label != INFERRED and self.source[y, x] < len(self.frames):
                found["source"] = self.frames[int(self.source[y, x])][0]
        if image.degradation is not None:
            found["degradation"] = round(100 * int(image.degradation[y, x]) / 255)
        if "gain" in self.layers():
            found["gain_stops"] = [round(float(v), 2) for v in self._level("gain", 0)[y, x]]
        return found

    def histogram(self) -> dict[str, Any]:
        """Pixels per quarter of a stop of luminance, 0 = SDR white, per provenance label; per cent of the picture."""
        with self._making_of("histogram"):
            if self._histogram is None:
                step = max(1, math.isqrt(self.image.radiance[..., 0].size // SAMPLES))
                light = np.asarray(self.image.radiance[::step, ::step], np.float32) @ luminance_weights(self.image.colour)
                floor = 2.0**HISTOGRAM_FROM
                stops = np.log2(np.clip(np.nan_to_num(light, nan=floor), floor, 2.0 ** (HISTOGRAM_TO - 1e-3)))
                provenance = self.image.provenance
                labels = np.zeros(stops.shape, np.uint8) if provenance is None else provenance[::step, ::step]
                edges = np.linspace(HISTOGRAM_FROM, HISTOGRAM_TO, (HISTOGRAM_TO - HISTOGRAM_FROM) * BINS_PER_STOP + 1)
                counts = {
                    str(label): [round(100 * int(n) / stops.size, 4) for n in np.histogram(stops[labels == label], edges)[0]]
                    for label in (REFERENCE, ALIGNED, INFERRED)
                }
                self._histogram = {"from": HISTOGRAM_FROM, "to": HISTOGRAM_TO, "per_stop": BINS_PER_STOP, "percent": counts}
            return self._histogram

    def made(self, suffix: str, *, quality: int = 95, compact: bool = False, strip: bool = False) -> BinaryIO | None:
        """The picture as a file, opened, if it was made already."""
        place = self._place(suffix, quality, compact, strip)
        try:
            found = place.open("rb")
        except OSError:
            return None
        with self._lock:
            self._files.pop(place, None)
            self._files[place] = None  # the latest comes last
        return found

    def written(self, suffix: str, *, quality: int = 95, compact: bool = False, strip: bool = False) -> BinaryIO:
        """The picture as a file, opened, made once: whoever has it open can read it to its end, whatever goes meanwhile.

        suffix: of `writer.SUFFIXES`. Raises what `write` raises, and InputError where the picture is gone.
        """
        with self._writing, self._while_here():
            found = self.made(suffix, quality=quality, compact=compact, strip=strip)
            if found is None:
                place = self._place(suffix, quality, compact, strip)
                try:
                    write(self.image, place, quality=quality, compact=compact, strip=strip)
                except GMODiffError as error:
                    raise type(error)(str(error).replace(str(place), f"{self.name}{suffix}")) from error
                found = self.made(suffix, quality=quality, compact=compact, strip=strip)
            with self._lock:
                old = list(self._files)[:-FILES_KEPT]
                for place in old:
                    del self._files[place]
            for place in old:
                with contextlib.suppress(OSError):  # being read, where that keeps a file from going
                    place.unlink()
        if found is None:
            raise InputError(GONE)
        return found

    def _place(self, suffix: str, quality: int, compact: bool, strip: bool) -> Path:
        mode = f"-q{quality}" if suffix in LOSSY else ""
        return self.folder / f"out{mode}{'-compact' if compact else ''}{'-strip' if strip else ''}{suffix}"

    @contextlib.contextmanager
    def _while_here(self) -> Iterator[None]:
        """Within, whatever fails because the picture's folder is gone says that it is gone."""
        try:
            yield
        except (OSError, GMODiffError):
            if self.gone:
                raise InputError(GONE) from None
            raise

    def _making_of(self, what: str) -> threading.RLock:
        with self._lock:
            return self._making.setdefault(what, threading.RLock())

    def _size(self, level: int) -> tuple[int, int]:
        """(height, width) of a level."""
        height, width = self.shape
        return -(-height // 2**level), -(-width // 2**level)

    def _level(self, layer: str, level: int) -> NDArray[Any]:
        """(h, w, channels) of a layer at a level, made when it is first asked for and kept in a file."""
        with self._making_of(layer), self._while_here():
            found = self._levels.get((layer, level))
            if found is None:
                found = self._levels[layer, level] = self._kept(layer, level, self._made(layer, level))
            return found

    def _made(self, layer: str, level: int) -> NDArray[Any]:
        if level > 0:
            fine = self._level(layer, level - 1)
            height, width = self._size(level)
            if layer == "labels":
                return np.ascontiguousarray(fine[::2, ::2])
            small = cv2.resize(np.ascontiguousarray(fine), (width, height), interpolation=cv2.INTER_AREA)
            return np.asarray(small).reshape(height, width, -1)
        image = self.image
        if layer == "radiance":
            return image.radiance
        if layer == "base":
            assert image.base is not None
            return image.base
        if layer == "gain":
            assert image.gain_map is not None
            height, width = self.shape
            # Enlarged as the standard says, before anything else is done with it.
            stored = resize_bilinear(image.gain_map.codes.astype(np.float32) / np.float32(255), height, width)
            gain = image.gain_map.metadata.log2_gain(stored)
            return np.broadcast_to(gain, (height, width, 3)).astype(np.float32)
        if layer == "labels":
            assert image.provenance is not None
            degradation = np.zeros_like(image.provenance) if image.degradation is None else image.degradation
            return np.stack([image.provenance, degradation], axis=2)
        return self.frames[int(layer.removeprefix("frame"))][1]

    def _kept(self, layer: str, level: int, values: NDArray[Any]) -> NDArray[Any]:
        """In a file of the folder, so that memory holds only what is looked at. What lies in a file already stays there."""
        return values if isinstance(values, np.memmap) else in_file(values, self.folder / f"{layer}-{level}.npy")


def in_file(values: NDArray[Any], path: Path) -> NDArray[Any]:
    """An array written to a file, and read from there as it is needed.

    Raises InputError where the disk is full, or refuses. A file that is there is replaced, never written into: it may be mapped.
    """
    beside = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    try:
        with beside.open("xb") as file:
            np.save(file, values)
        os.replace(beside, path)
        kept: NDArray[Any] = np.load(path, mmap_mode="r")
    except OSError as error:
        beside.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            raise InputError("the result does not fit on the disk of the temporary folder: free some space") from error
        raise InputError(f"the result cannot be kept in the temporary folder: {error.strerror or error}") from error
    return kept


def _matrix(values: NDArray[Any]) -> list[float]:
    return [round(float(v), 7) for v in np.asarray(values, np.float64).ravel()]
