"""Scene-linear radiance as files: OpenEXR (half), Radiance .hdr (RGBE), TIFF (float). By OpenImageIO.

1.0 = SDR diffuse white everywhere; EXR says so by whiteLuminance = 203 cd/m2.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import OpenImageIO as oiio
from numpy.typing import NDArray

from gmodiff.errors import FileFormatError, OutputError
from gmodiff.hdrgm import facts_metadata, facts_of_text
from gmodiff.icc import adaptation, colour_space_from_icc, profile_bytes
from gmodiff.image import HDRImage
from gmodiff.radiometry import ADOBE_RGB, BT2020, DISPLAY_P3, F32, SDR_WHITE_NITS, SRGB, ColourSpace

PROVENANCE_CHANNEL = "provenance"
HALF_MAX = 65504.0
"""Largest finite half float."""
RGBE_MAX = 2.0**126
"""Far above any light, and within the exponent byte with room for rounding."""

RGBE_MIN = 2.0**-100
"""Far below any light; smaller values would leave the exponent byte, or float's own precision."""

_STRIP_ROWS = 256  # a multiple of the rows that every EXR compression packs together


def write_exr(image: HDRImage, path: Path, *, description: str, software: str, taken: str) -> None:
    """Half float, ZIP compression, channels R, G, B and, where known, provenance (0, 1, 2).

    ZIP is lossless. DWAA was measured at a third of the size, but off by up to 60 % of small values beside bright ones,
    which is no way to keep measured light. Values above the largest half (65504) are clipped to it.
    """
    height, width = image.radiance.shape[:2]
    labels = image.provenance
    spec = oiio.ImageSpec(width, height, 3 if labels is None else 4, "half")
    if labels is not None:
        spec.channelnames = ("R", "G", "B", PROVENANCE_CHANNEL)
        spec.alpha_channel = -1
    spec.attribute("compression", "zip")
    spec.attribute("chromaticities", "float[8]", tuple(v for xy in image.colour.chromaticities for v in xy))
    spec.attribute("whiteLuminance", SDR_WHITE_NITS)
    _describe(spec, description, software, taken)

    def rows(first: int, end: int) -> NDArray[Any]:
        out = np.empty((end - first, width, spec.nchannels), np.float16)
        out[..., :3] = np.clip(image.radiance[first:end], -HALF_MAX, HALF_MAX)
        if labels is not None:
            out[..., 3] = labels[first:end]
        return out

    _write(path, spec, rows)


def write_hdr(image: HDRImage, path: Path, *, description: str, software: str) -> None:
    """Shared-exponent RGBE with run-length coding; light below zero does not exist there and becomes 0.

    Each value is within 1/256 of the brightest channel of its pixel, and right on average: see `rgbe_rounded`.
    """
    height, width = image.radiance.shape[:2]
    spec = oiio.ImageSpec(width, height, 3, "float")

    def rows(first: int, end: int) -> F32:
        return rgbe_rounded(image.radiance[first:end])

    _write(path, spec, rows)
    # The library has no say in comments and primaries: put the lines in behind the first one (Radiance file formats, "Picture").
    head, _, rest = path.read_bytes().partition(b"\n")
    xy = " ".join(f"{v:.4f}" for pair in image.colour.chromaticities for v in pair)
    lines = f"\n# {description}; 1.0 = SDR white, {SDR_WHITE_NITS:g} cd/m2\nSOFTWARE={software}\nPRIMARIES={xy}\n"
    path.write_bytes(head + lines.encode("ascii", "replace") + rest)


def rgbe_rounded(linear: F32) -> F32:
    """(H, W, 3) linear light, moved to where a writer that cuts off RGBE mantissas stores the nearest one.

    RGBE holds m * 2**(e - 136) with m = 0..255 and one e for the pixel (Ward 1991, "Real pixels"). Writers cut m off, so
    that a picture gets darker by 0.3 % on average; adding just under half a step first makes it rounding.
    """
    light = np.clip(np.nan_to_num(linear, posinf=RGBE_MAX), 0, np.float32(RGBE_MAX))
    light[light < RGBE_MIN] = 0
    brightest = light.max(axis=2, keepdims=True)
    _, exponent = np.frexp(brightest)
    step = np.ldexp(np.float32(1), exponent - 8)
    # A mantissa that rounds up to 256 moves the pixel to the next exponent, and its other channels to coarser steps.
    carry = np.floor(brightest / step + np.float32(0.5)) >= 256
    step = np.where(carry, 2 * step, step).astype(np.float32)
    mantissa = np.floor(light / step + np.float32(0.5))
    # A quarter step beyond: the writer's own float arithmetic must not fall below the whole number.
    return np.asarray(np.where(mantissa > 0, (mantissa + np.float32(0.25)) * step, 0), np.float32)


def write_tiff(image: HDRImage, path: Path, *, description: str, software: str, taken: str) -> None:
    """Float, uncompressed (what every reader of float TIFF knows, and 15 times as fast as ZIP), with a linear ICC profile."""
    height, width = image.radiance.shape[:2]
    spec = oiio.ImageSpec(width, height, 3, "float")
    spec.attribute("compression", "none")
    linear = ColourSpace(f"linear {image.colour.name}", image.colour.chromaticities, "linear")
    icc = np.frombuffer(profile_bytes(linear), np.uint8)
    spec.attribute("ICCProfile", f"uint8[{icc.size}]", icc)
    _describe(spec, f"{description}; 1.0 = SDR white, {SDR_WHITE_NITS:g} cd/m2", software, taken)
    _write(path, spec, lambda first, end: np.ascontiguousarray(image.radiance[first:end], np.float32))


def _describe(spec: Any, description: str, software: str, taken: str) -> None:
    spec.attribute("ImageDescription", description)
    spec.attribute("Software", software)
    if taken:
        spec.attribute("DateTime", taken)


def _write(path: Path, spec: Any, rows: Callable[[int, int], NDArray[Any]]) -> None:
    out = oiio.ImageOutput.create(str(path))
    if out is None or not out.open(str(path), spec):
        raise OutputError(f"cannot be written: {_reason(out)}")
    try:
        for first in range(0, spec.height, _STRIP_ROWS):
            end = min(first + _STRIP_ROWS, spec.height)
            if not out.write_scanlines(first, end, 0, rows(first, end)):
                raise OutputError(f"cannot be written: {_reason(out)}")
    finally:
        closed = out.close()
    if not closed:
        raise OutputError(f"cannot be written: {_reason(out)}")
    if path.stat().st_size == 0:
        raise OutputError("cannot be written: the file stayed empty")


def _reason(out: Any) -> str:
    return first_line((out.geterror() if out is not None else "") or oiio.geterror())


def first_line(message: str) -> str:
    """The first line of what OpenImageIO says, for a message of one line."""
    return (message.strip().splitlines() or ["no reason given"])[0].strip()[:160]


# ---- reading ------------------------------------------------------------------------------------------------------------


def is_float_tiff(path: Path) -> bool:
    """True where a TIFF's first picture has float samples; False for others and for what is no TIFF."""
    opened = oiio.ImageInput.open(str(path))
    if opened is None:
        oiio.geterror()  # clears it: the photo reader says what is wrong
        return False
    kind = str(opened.spec().format)
    opened.close()
    return kind in ("float", "half", "double")


def read(path: Path, head: bytes, accept: Callable[[int, int], None]) -> HDRImage:
    """An EXR, .hdr or float TIFF file; head: its first bytes, at least the text header of .hdr.

    Values that are not numbers become 0 and infinite ones the largest finite value of the picture, with a note.
    """
    opened = oiio.ImageInput.open(str(path))
    if opened is None:
        raise FileFormatError(f"is truncated or damaged: {first_line(oiio.geterror())}")
    notes: list[str] = []
    try:
        spec = opened.spec()
        accept(spec.width, spec.height)
        if spec.depth > 1 or spec.deep:
            raise FileFormatError("holds volumes or deep pixels; expected a flat picture")
        radiance = _colour_channels(opened, spec, notes)
        provenance = _provenance_channel(opened, spec)
        if opened.seek_subimage(1, 0):
            notes.append("the file holds several pictures; the first is used")
    finally:
        opened.close()
    description = str(spec.getattribute("ImageDescription") or "")
    name = {"openexr": "OpenEXR", "hdr": "Radiance RGBE", "tiff": "TIFF, float"}.get(opened.format_name(), opened.format_name())
    if head.startswith(b"#?"):
        description = description or _radiance_comment(head)
        radiance /= np.float32(_radiance_exposure(head))
    white = spec.getattribute("whiteLuminance")
    if white is not None and float(white) > 0 and not math.isclose(float(white), SDR_WHITE_NITS, rel_tol=1e-4):
        notes.append(f"1.0 in the file is {float(white):g} cd/m2; scaled so that 1.0 is {SDR_WHITE_NITS:g}")
        radiance *= np.float32(float(white) / SDR_WHITE_NITS)
    _mend(radiance, notes)
    colour, radiance = _colour_of(spec, head, radiance, notes)
    content = "rendition" if description.startswith("rendition") else "scene"
    metadata: dict[str, Any] = {"format": name, "notes": notes}
    if description:
        metadata |= facts_metadata(facts_of_text(description))
    return HDRImage(radiance, provenance=provenance, content=content, colour=colour, base_colour=colour, metadata=metadata)


def _colour_channels(opened: Any, spec: Any, notes: list[str]) -> F32:
    """(H, W, 3) float32: R, G, B by name, of a layer where there are none without; or one channel of luminance three times."""
    names = [str(n) for n in spec.channelnames]
    places = _rgb_places(names, notes)
    if places is None:
        grey = next((i for i, n in enumerate(names) if n.rsplit(".")[-1] in ("Y", "L")), 0 if len(names) == 1 else None)
        if grey is None or any(n.rsplit(".")[-1] in ("RY", "BY") for n in names):
            raise FileFormatError(f"has channels {', '.join(names[:8])}; expected R, G and B, or Y alone")
        places = (grey,) * 3
        notes.append("the picture is grey")
    if places[1] - places[0] == places[2] - places[1] == 1:
        return _pixels(opened, places[0], places[2] + 1)
    return np.stack([_pixels(opened, c, c + 1)[..., 0] for c in places], axis=-1)


def _rgb_places(names: list[str], notes: list[str]) -> tuple[int, int, int] | None:
    lower = [n.lower() for n in names]
    for prefix in ["", *dict.fromkeys(n.rpartition(".")[0] + "." for n in lower if "." in n)]:
        for r, g, b in (("r", "g", "b"), ("red", "green", "blue")):
            wanted = [prefix + c for c in (r, g, b)]
            if all(w in lower for w in wanted):
                if prefix:
                    notes.append(f"the colours of layer {prefix[:-1]!r} are used")
                return lower.index(wanted[0]), lower.index(wanted[1]), lower.index(wanted[2])
    return None


def _provenance_channel(opened: Any, spec: Any) -> NDArray[np.uint8] | None:
    names = [str(n) for n in spec.channelnames]
    if PROVENANCE_CHANNEL not in names:
        return None
    at = names.index(PROVENANCE_CHANNEL)
    labels = np.nan_to_num(_pixels(opened, at, at + 1)[..., 0])
    return np.clip(np.rint(labels), 0, 2).astype(np.uint8)


def _pixels(opened: Any, first: int, end: int) -> F32:
    pixels = opened.read_image(0, 0, first, end, "float")
    if pixels is None:
        raise FileFormatError(f"is truncated or damaged: {first_line(opened.geterror())}")
    return np.asarray(pixels.reshape(*pixels.shape[:2], -1), np.float32)


def _mend(radiance: F32, notes: list[str]) -> None:
    """Replace what is no number, in place."""
    good = np.isfinite(radiance)
    bad = radiance.size - int(np.count_nonzero(good))
    if bad:
        top = float(radiance[good].max()) if bad < radiance.size else 0.0
        np.nan_to_num(radiance, copy=False, nan=0.0, posinf=top, neginf=0.0)
        notes.append(f"{bad} values were NaN or infinite; they became 0 and {top:.4g}")


def _colour_of(spec: Any, head: bytes, radiance: F32, notes: list[str]) -> tuple[ColourSpace, F32]:
    """The primaries that the file states (sRGB's where it does not), and the pixels, under D65 if they were not."""
    xy = spec.getattribute("chromaticities")
    stated = [float(v) for v in xy] if xy is not None else _radiance_primaries(head)
    if stated is None:
        return _colour_of_profile(spec, radiance, notes)
    try:
        r, g, b, white = ((x, y) for x, y in zip(stated[::2], stated[1::2], strict=True))
        own = ColourSpace("file's own", (r, g, b, white))
        sane = all(math.isfinite(v) for v in stated) and bool(np.isfinite(own.to_xyz).all())
    except (ValueError, ZeroDivisionError, np.linalg.LinAlgError):
        sane = False
    if not sane:
        notes.append("the file's chromaticities make no sense; sRGB is assumed")
        return SRGB, radiance
    if max(abs(white[0] - SRGB.chromaticities[3][0]), abs(white[1] - SRGB.chromaticities[3][1])) < 0.002:
        return _named(own.chromaticities, own.name), radiance
    notes.append("the file's white is not D65; its colours were adapted to sRGB primaries")
    adapted = adaptation(own.to_xyz.sum(axis=1), SRGB.to_xyz.sum(axis=1)) @ own.to_xyz
    matrix = np.linalg.solve(SRGB.to_xyz, adapted).astype(np.float32)
    return SRGB, np.asarray(cv2.transform(radiance, matrix), np.float32)


def _colour_of_profile(spec: Any, radiance: F32, notes: list[str]) -> tuple[ColourSpace, F32]:
    icc = spec.getattribute("ICCProfile")
    if icc is None:
        return SRGB, radiance
    try:
        colour = colour_space_from_icc(bytes(np.asarray(icc, np.uint8)))
    except FileFormatError as reason:
        notes.append(f"{reason}; sRGB is assumed")
        return SRGB, radiance
    if colour is None:
        notes.append("the file's ICC profile is not a plain RGB one; linear sRGB is assumed")
        return SRGB, radiance
    if colour.transfer != "linear":
        notes.append("the file's values are not linear; they were decoded by its ICC profile")
        radiance = np.asarray(colour.decode(np.maximum(radiance, 0)), np.float32)
    return _named(colour.chromaticities, colour.name), radiance


def _named(chromaticities: Any, name: str) -> ColourSpace:
    for known in (SRGB, DISPLAY_P3, BT2020, ADOBE_RGB):
        if np.abs(np.array(known.chromaticities) - np.array(chromaticities)).max() < 0.002:
            return ColourSpace(known.name, known.chromaticities)
    return ColourSpace(name, chromaticities)


def _radiance_lines(head: bytes) -> list[str]:
    return head.partition(b"\n\n")[0].decode("latin-1").splitlines()


def _radiance_comment(head: bytes) -> str:
    """Our own line, which says what the file holds."""
    comments = (line[1:].strip() for line in _radiance_lines(head) if line.startswith("#") and not line.startswith("#?"))
    return next((c for c in comments if c.startswith(("scene-linear", "rendition: ", "rendition; "))), "")


def _radiance_exposure(head: bytes) -> float:
    """Product of the EXPOSURE lines, by which stored values were multiplied (Radiance file formats, "Picture")."""
    product = 1.0
    for line in _radiance_lines(head):
        if line.startswith("EXPOSURE="):
            with contextlib.suppress(ValueError):
                product *= float(line.removeprefix("EXPOSURE="))
    return product if math.isfinite(product) and 1e-12 < product < 1e12 else 1.0


def _radiance_primaries(head: bytes) -> list[float] | None:
    for line in _radiance_lines(head) if head.startswith(b"#?") else ():
        if line.startswith("PRIMARIES="):
            with contextlib.suppress(ValueError):
                return [float(v) for v in line.removeprefix("PRIMARIES=").split()]
    return None
