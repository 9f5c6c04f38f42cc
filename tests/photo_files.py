"""Photo files for tests, written by tools that are not ours or byte by byte: JPEG with EXIF, TIFF, and a small camera RAW (DNG).

The HEIC files in golden/ hold `ramp(48, 64)`, written once by pillow-heif 1.8.1 (libheif, x265, quality 90): rotated.heic has EXIF
orientation 6 and 1/100 s, f/2, ISO 200; display_p3.heic has nclx 12/13/6; ten_bit.heic has 10 bits; pq.heic has nclx 9/16/9.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import OpenImageIO as oiio
import pytest
from PIL import Image

from gmodiff.errors import GMODiffError
from gmodiff.photo import read_photo

GOLDEN = Path(__file__).parent / "golden"


def ramp(height: int, width: int) -> np.ndarray:
    """(H, W, 3) float 0..1: red rises to the right, green downwards, blue along the diagonal."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x / (width - 1), y / (height - 1), (x + y) / (height + width - 2)], axis=-1)


def tiff_bytes(directories: list[dict[int, tuple[int, Any]]], order: str = "<", pixels: bytes = b"") -> bytes:
    """A TIFF structure: directories[0] is IFD0; tag 0x8769 in it points to directories[1], 0x8825 to [2], its link to [3].

    Values: (type, text | list of numbers | list of (numerator, denominator)). Tag 0x0111 in IFD0 points to pixels.
    """
    codes = {1: "B", 3: "H", 4: "I", 5: "II", 7: "B", 9: "i", 10: "ii"}
    starts, at = [], 8
    for directory in directories:
        starts.append(at)
        at += 6 + 12 * len(directory)
    body, tables = b"", []
    for number, directory in enumerate(directories):
        table = struct.pack(order + "H", len(directory))
        for tag, (kind, value) in sorted(directory.items()):
            if number == 0 and tag in (0x8769, 0x8825):
                value = [starts[1 if tag == 0x8769 else 2]]
            if isinstance(value, str):
                data, count = value.encode() + b"\0", len(value) + 1
            else:
                flat = [n for item in value for n in (item if isinstance(item, tuple) else (item,))]
                data, count = struct.pack(f"{order}{codes[kind][0] * len(flat)}", *flat), len(value)
            if number == 0 and tag == 0x0111:
                data = b"PIXL"  # replaced below, when the length is known
            if len(data) > 4:
                offset = at + len(body)
                body += data + b"\0" * (len(data) % 2)
                data = struct.pack(order + "I", offset)
            table += struct.pack(order + "HHI", tag, kind, count) + data.ljust(4, b"\0")
        link = starts[3] if number == 0 and len(directories) > 3 else 0
        tables.append(table + struct.pack(order + "I", link))
    out = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8) + b"".join(tables) + body
    return out.replace(b"PIXL", struct.pack(order + "I", len(out))) + pixels


def exif_bytes(
    time: tuple[int, int] | None = (1, 100),
    iso: int | None = 200,
    f_number: tuple[int, int] | None = (28, 10),
    orientation: int = 1,
    order: str = "<",
    **extra: tuple[int, Any],
) -> bytes:
    """An EXIF block with a maker note and a thumbnail directory; extra: t0x<tag> for more entries of the EXIF directory."""
    ifd0 = {0x010F: (2, "Maker"), 0x0110: (2, "Model 7"), 0x0112: (3, [orientation]), 0x8769: (4, [0]), 0x8825: (4, [0])}
    exif: dict[int, tuple[int, Any]] = {
        0x9003: (2, "2026:05:01 12:00:00"),
        0x927C: (7, list(b"maker note with offsets")),
        0xA002: (4, [9999]),
        0xA003: (4, [8888]),
        0xA434: (2, "35mm f/2"),
    }
    for tag, kind, value in ((0x829A, 5, time), (0x829D, 5, f_number)):
        if value is not None:
            exif[tag] = (kind, [value])
    if iso is not None:
        exif[0x8827] = (3, [iso])
    exif |= {int(name[1:], 16): value for name, value in extra.items()}
    gps = {0x0001: (2, "N"), 0x0002: (5, [(48, 1), (51, 1), (30, 1)])}
    thumbnail = {0x0103: (3, [6]), 0x0201: (4, [0]), 0x0202: (4, [40])}
    length = len(tiff_bytes([ifd0, exif, gps, thumbnail], order))
    thumbnail[0x0201] = (4, [length])
    return tiff_bytes([ifd0, exif, gps, thumbnail], order) + b"\xff\xd8" + b"T" * 36 + b"\xff\xd9"


def jpeg_bytes(
    pixels: np.ndarray, exif: bytes | None = None, icc: bytes | None = None, quality: int = 95, mode: str | None = None
) -> bytes:
    """A 4:4:4 JPEG of (H, W, C) or (H, W) uint8."""
    out = io.BytesIO()
    options = {} if exif is None else {"exif": b"Exif\0\0" + exif}
    Image.fromarray(pixels, mode=mode).save(out, "JPEG", quality=quality, subsampling=0, icc_profile=icc, **options)
    return out.getvalue()


CAMERA_MIX = np.array([[0.7, 0.25, 0.05], [0.15, 0.75, 0.1], [0.05, 0.25, 0.7]])
"""Linear sRGB to the synthetic camera's RGB before its white balance; rows sum to 1."""

NEUTRAL = (0.5, 1.0, 0.625)
"""What the synthetic camera sees of white: its as-shot neutral."""


def dng_bytes(
    camera_rgb: np.ndarray,
    time: tuple[int, int] = (1, 100),
    neutral: tuple[float, float, float] = NEUTRAL,
    black: int = 512,
    white: int = 15000,
    orientation: int = 1,
) -> bytes:
    """A Bayer (RGGB) DNG of (H, W, 3) camera RGB before white balance, 1.0 = sensor limit."""
    height, width = camera_rgb.shape[:2]
    mosaic = np.empty((height, width))
    for row, column, channel in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        mosaic[row::2, column::2] = camera_rgb[row::2, column::2, channel]
    counts = np.clip(np.rint(black + mosaic * (white - black)), 0, white).astype("<u2").tobytes()
    srgb_to_xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
    matrix = np.diag(NEUTRAL) @ CAMERA_MIX @ np.linalg.inv(srgb_to_xyz)
    ifd0 = {
        0x00FE: (4, [0]),
        0x0100: (4, [width]),
        0x0101: (4, [height]),
        0x0102: (3, [16]),
        0x0103: (3, [1]),
        0x0106: (3, [32803]),
        0x010F: (2, "GMODiff"),
        0x0110: (2, "Synthetic"),
        0x0111: (4, [0]),
        0x0112: (3, [orientation]),
        0x0115: (3, [1]),
        0x0116: (4, [height]),
        0x0117: (4, [len(counts)]),
        0x8769: (4, [0]),
        0x828D: (3, [2, 2]),
        0x828E: (1, [0, 1, 1, 2]),
        0xC612: (1, [1, 4, 0, 0]),
        0xC613: (1, [1, 1, 0, 0]),
        0xC614: (2, "GMODiff Synthetic"),
        0xC61A: (3, [black]),
        0xC61D: (4, [white]),
        0xC621: (10, [(round(v * 100000), 100000) for v in matrix.ravel()]),
        0xC628: (5, [(round(v * 100000), 100000) for v in neutral]),
        0xC65A: (3, [21]),
    }
    exif = {0x829A: (5, [time]), 0x829D: (5, [(56, 10)]), 0x8827: (3, [100])}
    return tiff_bytes([ifd0, exif], pixels=counts)


RAMP8 = np.rint(ramp(48, 64) * 255).astype(np.uint8)
RAMP16 = np.rint(ramp(48, 64) * 65535).astype(np.uint16)


def save(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def pillow_bytes(pixels: np.ndarray, kind: str, mode: str | None = None, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels, mode=mode).save(out, kind, **options)
    return out.getvalue()


def png16(pixels: np.ndarray) -> bytes:
    order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[pixels.shape[2]]
    return cv2.imencode(".png", cv2.cvtColor(pixels, order))[1].tobytes()


def with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    return png[:33] + struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) + png[33:]


def write_tiff(path: Path, pixels: np.ndarray, kind: str, **attributes: object) -> Path:
    spec = oiio.ImageSpec(pixels.shape[1], pixels.shape[0], pixels.shape[2], kind)
    for name, value in attributes.items():
        spec.attribute(name.replace("__", ":"), value)
    out = oiio.ImageOutput.create(str(path.with_suffix(".tif")))
    assert out.open(str(path), spec), out.geterror()
    assert out.write_image(pixels), out.geterror()
    out.close()
    return path


def refusal(path: Path, **options: object) -> str:
    """The one line that reading this file gives."""
    with pytest.raises(GMODiffError) as caught:
        read_photo(path, **options)  # type: ignore[arg-type]
    line = str(caught.value)
    assert "\n" not in line
    assert path.name in line
    return line
