"""Scene-linear radiance as files: OpenEXR (half), Radiance .hdr (RGBE), TIFF (float). Written by OpenImageIO, in strips.

1.0 = SDR diffuse white everywhere; EXR says so by whiteLuminance = 203 cd/m2.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import OpenImageIO as oiio
from numpy.typing import NDArray

from gmodiff.errors import OutputError
from gmodiff.icc import profile_bytes
from gmodiff.image import HDRImage
from gmodiff.radiometry import F32, SDR_WHITE_NITS, ColourSpace

PROVENANCE_CHANNEL = "provenance"
HALF_MAX = 65504.0
"""Largest finite half float."""
RGBE_MAX = 2.0**126
"""Far above any light, and within the exponent byte with room for rounding."""

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
    text = (out.geterror() if out is not None else "") or oiio.geterror() or "the encoder gave no reason"
    return " ".join(text.split())[:200]
