"""What an HDR file holds, in facts for people and for JSON; and what a display of a given headroom would show of it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gmodiff.errors import InputError, OutputError
from gmodiff.exif import read_exif
from gmodiff.hdrgm import alternate_colour
from gmodiff.image import HDRImage
from gmodiff.radiometry import F32, SDR_WHITE_NITS, SRGB, luminance_weights, srgb_decode, srgb_encode
from gmodiff.reader import apply_gain, read
from gmodiff.tiling import for_each_strip
from gmodiff.writer import check_writable, replacing

BANDING_STOPS = 4.0
"""An 8-bit map over a wider range has steps that show in skies."""
EXCESS_STOPS = 1.0
"""A stated headroom this far above the content makes displays show the picture too dark."""
AGREEMENT = 1e-3
"""Largest difference between the two metadata forms that still counts as agreement; rounding stays far below it."""

_SAMPLES = 1_000_000
_PERCENTILES = {"p1": 1, "p50": 50, "p99": 99, "p99_9": 99.9}
_FLOOR_STOPS = -20.0
_MAX_HEADROOM = 16.0


def describe(path: str | os.PathLike[str], image: HDRImage | None = None) -> dict[str, Any]:
    """Facts of a file, all of them plain numbers, strings, lists and dicts; absent ones are None.

    image: what `read` made of it, where somebody has that already. Raises what `read` raises.
    """
    image = read(path) if image is None else image
    height, width = image.radiance.shape[:2]
    light = _light(image)
    facts: dict[str, Any] = {
        "file": Path(path).name,
        "format": image.metadata["format"],
        "width": width,
        "height": height,
        "bytes": Path(path).stat().st_size,
        "content": image.content,
        "look": image.metadata.get("look"),
        "base_headroom_stops": None,
        "headroom_stops": round(max(light["peak_stops"], 0.0), 3),
        "colour": image.colour.name,
        "light": light,
        "gain_map": None,
        "provenance": _provenance(image),
        "network": _network(image),
        "exif": _exif(image.exif),
        "notes": [str(n) for n in image.metadata["notes"]],
        "warnings": [],
    }
    if image.gain_map is not None:
        m = image.gain_map.metadata
        facts["base_headroom_stops"] = round(m.base_headroom, 6)
        facts["headroom_stops"] = round(m.alternate_headroom, 6)
        facts["gain_map"] = _gain_map(image)
        facts["warnings"] = _warnings(facts)
    else:  # what readers tell of a map that is not there, cut off or ignored: the file shows as an SDR photo
        facts["warnings"] = [n for n in facts["notes"] if "gain map" in n]
        facts["notes"] = [n for n in facts["notes"] if "gain map" not in n]
    return facts


def _light(image: HDRImage) -> dict[str, float]:
    """Peak of the brightest channel and percentiles of luminance, in stops above SDR white; share of pixels above white."""
    step = max(1, math.isqrt(image.radiance.shape[0] * image.radiance.shape[1] // _SAMPLES))
    sample = image.radiance[::step, ::step]
    luminance = sample @ luminance_weights(image.colour)
    peak = float(image.radiance.max())

    def stops(value: float) -> float:
        return round(max(math.log2(value), _FLOOR_STOPS) if value > 0 else _FLOOR_STOPS, 3)

    out = {"peak_stops": stops(peak), "peak_nits": round(max(peak, 0.0) * SDR_WHITE_NITS, 1)}
    out |= {f"{name}_stops": stops(float(np.percentile(luminance, q))) for name, q in _PERCENTILES.items()}
    return out | {"above_white_percent": round(100 * float(np.mean(sample.max(axis=2) > 1)), 3)}


def _gain_map(image: HDRImage) -> dict[str, Any]:
    assert image.gain_map is not None
    codes, m = image.gain_map.codes, image.gain_map.metadata
    forms = list(image.metadata.get("forms", []))
    disagreement = image.metadata.get("disagreement")
    return {
        "width": codes.shape[1],
        "height": codes.shape[0],
        "channels": codes.shape[2],
        "minimum_stops": [round(v, 6) for v in m.minimum],
        "maximum_stops": [round(v, 6) for v in m.maximum],
        "gamma": [round(v, 6) for v in m.gamma],
        "base_offset": [round(v, 6) for v in m.base_offset],
        "alternate_offset": [round(v, 6) for v in m.alternate_offset],
        "use_base_colour_space": m.use_base_colour_space,
        "forms": forms,
        "agree": None if disagreement is None else disagreement <= AGREEMENT,
        "largest_difference": disagreement if disagreement is None or math.isfinite(disagreement) else None,
    }


def _warnings(facts: Mapping[str, Any]) -> list[str]:
    gain, warnings = facts["gain_map"], []
    excess = facts["headroom_stops"] - max(facts["light"]["peak_stops"], 0.0)
    if excess > EXCESS_STOPS:
        warnings.append(
            f"the file states {facts['headroom_stops']:.2f} stops of headroom but its light ends at "
            f"{max(facts['light']['peak_stops'], 0.0):.2f}: displays will show it too dark"
        )
    span = max(high - low for low, high in zip(gain["minimum_stops"], gain["maximum_stops"], strict=True))
    if span > BANDING_STOPS:
        warnings.append(f"the 8-bit gain map spans {span:.1f} stops: smooth skies may show bands")
    forms = gain["forms"]
    if "JPEG" in facts["format"]:
        if "mpf" not in forms:
            warnings.append("there is no MPF index that points at the gain map: some readers will not find it")
        if "iso" not in forms:
            warnings.append("there is no ISO 21496-1 metadata: readers that know only that form show the SDR photo")
        if "xmp" not in forms:
            warnings.append("there is no hdrgm XMP metadata: older Android readers show the SDR photo")
        if gain["agree"] is False:
            warnings.append("XMP and ISO 21496-1 metadata disagree: the picture depends on the reader")
    return warnings


def _provenance(image: HDRImage) -> dict[str, float] | None:
    if image.provenance is not None:
        names = ("measured_percent", "aligned_percent", "inferred_percent")
        shares = (np.count_nonzero(image.provenance == label) for label in range(3))
        return {name: round(100 * int(count) / image.provenance.size, 3) for name, count in zip(names, shares, strict=True)}
    stated = image.metadata.get("provenance")
    return None if stated is None else {k: float(v) for k, v in stated.items()}


def _network(image: HDRImage) -> dict[str, Any] | None:
    """What networks did, where the file says; a name of None where there was none."""
    if "network" not in image.metadata:
        return None
    return {"name": image.metadata["network"], "refine": image.metadata["refine"], "noise_reduced": image.metadata["noise_reduced"]}


def _exif(block: bytes | None) -> dict[str, Any] | None:
    if block is None:
        return None
    facts = read_exif(block)
    return {
        "camera": facts.camera or None,
        "lens": facts.lens or None,
        "taken": facts.datetime or None,
        "exposure_s": facts.exposure_time_s,
        "f_number": facts.f_number,
        "iso": facts.iso,
    }


def as_text(facts: Mapping[str, Any]) -> str:
    """The facts of `describe` as lines for people."""
    light, gain, p, n, e = (facts[k] for k in ("light", "gain_map", "provenance", "network", "exif"))
    content = "scene-linear radiance" if facts["content"] == "scene" else "rendition"
    rows = [
        ("file", f"{facts['file']}, {facts['bytes'] / 1e6:.2f} MB"),
        ("format", f"{facts['format']}, {facts['width']} x {facts['height']}"),
        ("content", content + (f", look {facts['look']}" if facts["look"] else "")),
        ("colour", facts["colour"]),
    ]
    if gain is not None:
        rows.append(("headroom", f"{facts['base_headroom_stops']:g} to {facts['headroom_stops']:.3f} stops above SDR white"))
    rows += [
        ("peak", f"{light['peak_stops']:+.2f} stops ({light['peak_nits']:.0f} cd/m2)" if light["peak_nits"] > 0 else "no light at all"),
        ("above white", f"{light['above_white_percent']:.2f} % of pixels"),
        ("luminance", ", ".join(f"{q:g} % below {light[f'{name}_stops']:+.2f}" for name, q in _PERCENTILES.items()) + " stops"),
    ]
    if gain is not None:
        low, high = _values(gain["minimum_stops"]), _values(gain["maximum_stops"])
        agreement = {None: "", True: "; both metadata forms agree", False: "; metadata forms DISAGREE"}[gain["agree"]]
        rows += [
            ("gain map", f"{gain['width']} x {gain['height']}, {gain['channels']} channel{'s' if gain['channels'] > 1 else ''}"),
            ("range", f"{low} to {high} stops, gamma {_values(gain['gamma'])}"),
            ("offsets", f"base {_values(gain['base_offset'])}, alternate {_values(gain['alternate_offset'])}"),
            ("described by", ", ".join(gain["forms"]) + agreement),
        ]
    if p is not None:
        measured = f"{p['measured_percent']:.1f} % measured in the reference, {p['aligned_percent']:.1f} % in other photos"
        rows.append(("provenance", f"{measured}, {p['inferred_percent']:.2f} % inferred"))
    if n is not None:
        did = [n["name"] or "none", f"refined by {n['refine']:g}" if n["refine"] else None, "noise reduced" if n["noise_reduced"] else None]
        rows.append(("network", ", ".join(v for v in did if v)))
    if e is not None:
        exposure = f"{e['exposure_s']:.4g} s" if e["exposure_s"] else None
        aperture = f"f/{e['f_number']:g}" if e["f_number"] else None
        iso = f"ISO {e['iso']:g}" if e["iso"] else None
        known = [v for v in (e["camera"], e["lens"], e["taken"], exposure, aperture, iso) if v]
        rows.append(("photo", ", ".join(known) or "EXIF without camera or exposure"))
    rows += [("note", n) for n in facts["notes"]]
    rows += [("warning", w) for w in facts["warnings"]]
    return "\n".join(f"{name:<13} {value}" for name, value in rows)


def _values(values: list[float]) -> str:
    return f"{values[0]:.4g}" if len(set(values)) == 1 else "/".join(f"{v:.4g}" for v in values)


# ---- preview ------------------------------------------------------------------------------------------------------------


def preview(path: str | os.PathLike[str], out: str | os.PathLike[str], *, headroom: float | None = None, force: bool = False) -> None:
    """Render what a display of that headroom shows, as an 8-bit sRGB PNG that any viewer shows rightly.

    headroom: of the display in stops above SDR white, 0 to 16; None means the file's own. The picture is exposed down by so
    many stops: the display's peak becomes the PNG's white, and headroom 0 gives the SDR photo itself. A gain map is applied
    with the display's weight (ISO 21496-1, equation 4); light of other files is cut off at the display's peak. Colours outside
    sRGB are clipped.
    Raises InputError for an impossible headroom, OutputError where the PNG cannot be written, and what `read` raises.
    """
    target = Path(out)
    if target.suffix.lower() != ".png":
        raise OutputError(f"{target}: the preview is a PNG; give it a name ending in .png")
    if headroom is not None and not 0 <= headroom <= _MAX_HEADROOM:
        raise InputError(f"headroom {headroom:g} stops: expected 0 to {_MAX_HEADROOM:g}")
    check_writable([], others=[target], inputs=[path], force=force)
    image = read(path)
    picture = Image.fromarray(render_preview(image, headroom))
    with replacing(target, force) as temporary:
        picture.save(temporary, "PNG", compress_level=3)


def render_preview(image: HDRImage, headroom: float | None = None) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 sRGB of what a display shows; see `preview`."""
    if headroom is None:
        peak = float(image.radiance.max())
        own = image.gain_map.metadata.alternate_headroom if image.gain_map is not None else math.log2(max(peak, 1.0))
        headroom = min(max(own, 0.0), _MAX_HEADROOM)
    shown = _shown(image, headroom)
    matrix = image.base_colour.matrix_to(SRGB).astype(np.float32)
    scale = np.float32(2.0**-headroom)
    root = np.linspace(0, 1, 65536)
    codes = np.rint(np.asarray(srgb_encode(root * root)) * 255).astype(np.uint8)
    out: NDArray[np.uint8] = np.empty(image.radiance.shape, np.uint8)

    def strip(first: int, end: int) -> None:
        light = np.asarray(cv2.transform(np.ascontiguousarray(shown(first, end)), matrix), np.float32)
        light = np.clip(light * scale, 0, 1)
        out[first:end] = codes.take((np.sqrt(light) * np.float32(65535)).astype(np.uint16))

    for_each_strip(strip, len(out))
    return out


def _shown(image: HDRImage, headroom: float) -> Any:
    """A function of (first, end) rows that gives their display-linear light."""
    if image.base is None or image.gain_map is None:
        return lambda first, end: image.rendition(slice(first, end))
    weight = image.gain_map.metadata.weight(headroom)
    if weight == 1.0:
        return lambda first, end: image.rendition(slice(first, end))
    light = np.asarray(srgb_decode(np.arange(256) / 255.0), np.float32)
    alternate = alternate_colour(image.metadata) or image.base_colour
    whole: F32 = apply_gain(image.base, light, image.gain_map, image.base_colour, alternate, weight)
    return lambda first, end: whole[first:end]
