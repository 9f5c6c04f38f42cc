"""Pictures in files as scene radiance: a view of an HDR picture, or a photo taken for the light it shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gmodiff.errors import InputError
from gmodiff.photo import read_photo
from gmodiff.radiometry import F32, CameraResponse
from gmodiff.reader import read

HDR_SUFFIXES = (".hdr", ".exr")


def read_radiance(path: Path, height: int, width: int, rng: np.random.Generator, *, boost_stops: float = 0.0, reduction: int = 0) -> F32:
    """(height, width, 3) radiance at any scale: a random view of the picture in a file.

    boost_stops: added to a photo's highlights, which its own camera cut off.   reduction: whole factor by which a photo is made smaller
    first, 0 for as much as leaves it large enough. Raises InputError where the file is not there, cannot be read, or is too small.
    """
    if not path.is_file():
        raise InputError(f"{path} is not there: --data names the folder that holds the pictures of a set")
    if path.suffix.lower() in HDR_SUFFIXES:
        whole = np.ascontiguousarray(np.clip(np.nan_to_num(read(path).radiance, posinf=65504.0), 0.0, 65504.0), np.float32)
        return _panorama_view(whole, height, width, rng) if whole.shape[1] == 2 * whole.shape[0] else _crop(whole, height, width, rng, path)
    codes = read_photo(path).encoded
    factor = min(codes.shape[0] // height, codes.shape[1] // width)
    factor = min(factor, reduction) if reduction else factor
    linear = CameraResponse.named("srgb").linearise(codes)
    if factor > 1:
        linear = _reduced(linear, factor)
    linear = _crop(linear, height, width, rng, path)
    if boost_stops > 0:
        # A smooth rise from encoded 0.85 up: what was near white becomes a light.
        above = np.clip((linear.max(axis=-1, keepdims=True) - np.float32(0.7)) / np.float32(0.3), 0, 1)
        above *= above * (3 - 2 * above)
        linear = np.asarray(linear * (1 + above * np.float32(2.0**boost_stops - 1)), np.float32)
    return linear


def _panorama_view(whole: F32, height: int, width: int, rng: np.random.Generator) -> F32:
    """A view between the poles, where an equirectangular picture is not stretched much, mirrored below and wrapped sideways."""
    rows_there, columns_there = whole.shape[:2]
    border, usable = rows_there // 8, rows_there * 3 // 4
    top = int(rng.integers(0, max(1, usable - height + 1)))
    left = int(rng.integers(0, columns_there))
    rows = (top + np.arange(height)) % (2 * usable)
    rows = border + np.where(rows < usable, rows, 2 * usable - 1 - rows)
    return np.ascontiguousarray(whole[rows][:, (left + np.arange(width)) % columns_there])


def _crop(whole: F32, height: int, width: int, rng: np.random.Generator, path: Path) -> F32:
    if whole.shape[0] < height or whole.shape[1] < width:
        raise InputError(f"{path} is {whole.shape[1]}x{whole.shape[0]}, too small: these scenes need {width}x{height} (frame and margin)")
    top, left = int(rng.integers(0, whole.shape[0] - height + 1)), int(rng.integers(0, whole.shape[1] - width + 1))
    return np.ascontiguousarray(whole[top : top + height, left : left + width])


def _reduced(linear: F32, factor: int) -> F32:
    """Mean of factor x factor blocks, added in a fixed order so that every machine rounds alike."""
    height, width = linear.shape[0] // factor * factor, linear.shape[1] // factor * factor
    total = np.zeros((height // factor, width // factor, 3), np.float32)
    for y in range(factor):
        for x in range(factor):
            total += linear[y:height:factor, x:width:factor]
    return np.asarray(total / np.float32(factor * factor), np.float32)


def exposed(picture: F32, clipped: float) -> F32:
    """Scaled so that the share `clipped` of the pixels has a channel above 1, the reference's white."""
    white = float(np.quantile(picture.max(axis=-1), 1 - clipped, method="lower"))
    return np.ascontiguousarray(picture / np.float32(max(white, 1e-6)), np.float32)
