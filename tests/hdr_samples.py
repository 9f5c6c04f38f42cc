"""Small synthetic HDR pictures for the tests of the output end."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import Image

from gmodiff.gainmap import GainMap
from gmodiff.image import HDRImage
from gmodiff.radiometry import SRGB, ColourSpace, srgb_decode, srgb_encode


def rendition(height: int = 192, width: int = 256, peak: float = 6.0, darkest: float = 0.0) -> np.ndarray:
    """(H, W, 3) float32 display-linear: a grey ramp, smooth colours, and three coloured lights above SDR white."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    base = np.stack([0.02 + 0.5 * x, 0.02 + 0.4 * y, 0.03 + 0.3 * (1 - x) * (1 - y) + 0.1 * x], axis=-1) ** 1.5
    base[: height // 8] = (x[: height // 8, :, None]) ** 2.2
    for cy, cx, colour in ((0.3, 0.75, (1, 0.9, 0.7)), (0.7, 0.3, (1, 0.25, 0.1)), (0.75, 0.7, (0.3, 0.6, 1))):
        spot = np.exp(-(((y - cy) / 0.08) ** 2 + ((x - cx) / 0.08) ** 2))
        base += peak * spot[..., None] * np.array(colour)
    return np.clip(base, darkest, peak).astype(np.float32)


def sdr_base(linear: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 sRGB: a plain shoulder per channel."""
    return np.rint(srgb_encode(linear / (1 + 0.6 * linear)) * 255).clip(0, 255).astype(np.uint8)


def picture(
    height: int = 192,
    width: int = 256,
    *,
    channels: int = 3,
    colour: ColourSpace = SRGB,
    exif: bytes | None = None,
    darkest: float = 0.0,
) -> HDRImage:
    """A complete HDRImage: rendition, base, full-size map, provenance."""
    linear = rendition(height, width, darkest=darkest)
    base = sdr_base(linear)
    shown = srgb_decode(base.astype(np.float32) / 255)
    if channels == 1:
        # A one-channel map can only hold one ratio: make the rendition such that it is exact.
        linear = shown * (linear.max(axis=2, keepdims=True) + 0.02) / (shown.max(axis=2, keepdims=True) + 0.02)
        gain = GainMap.between(shown.max(axis=2, keepdims=True), linear.max(axis=2, keepdims=True))
    else:
        gain = GainMap.between(shown, linear)
    provenance = np.zeros((height, width), np.uint8)
    provenance[height // 2 :, : width // 4] = 1
    provenance[:4, :4] = 2
    return HDRImage(linear.astype(np.float32), base, gain, provenance, content="rendition", colour=colour, base_colour=colour, exif=exif)


def jpeg(pixels: np.ndarray, quality: int = 95, subsampling: int = 0) -> bytes:
    """A plain JPEG of (H, W, 3) or (H, W, 1) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()


def segment(marker: int, payload: bytes) -> bytes:
    """One JPEG segment."""
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def exif_block(orientation: int = 1, thumbnail: bytes = b"") -> bytes:
    """A little-endian EXIF block as a camera writes it: camera, time, exposure, and a thumbnail behind it."""

    def text(tag: int, value: str) -> tuple[int, int, int, bytes]:
        return tag, 2, len(value) + 1, value.encode() + b"\0"

    ifd0 = [
        text(0x010F, "Canonical"),
        text(0x0110, "Camera One"),
        (0x0112, 3, 1, struct.pack("<HH", orientation, 0)),
        text(0x0132, "2024:05:06 07:08:09"),
        (0x8769, 4, 1, b"????"),
    ]
    exif = [
        (0x829A, 5, 1, struct.pack("<II", 1, 250)),
        (0x829D, 5, 1, struct.pack("<II", 28, 10)),
        (0x8827, 3, 1, struct.pack("<HH", 200, 0)),
        text(0x9003, "2024:05:06 07:08:09"),
        (0xA002, 4, 1, struct.pack("<I", 9999)),
        (0xA003, 4, 1, struct.pack("<I", 8888)),
        text(0xA434, "Lens 50mm"),
    ]

    def size(ifd: list[tuple[int, int, int, bytes]]) -> int:
        return 2 + 12 * len(ifd) + 4 + sum(len(v) + len(v) % 2 for *_, v in ifd if len(v) > 4)

    first = 8
    second = first + size(ifd0)
    third = second + size(exif)
    ifd1 = [(0x0103, 3, 1, struct.pack("<HH", 6, 0)), (0x0201, 4, 1, b"????"), (0x0202, 4, 1, struct.pack("<I", len(thumbnail)))]
    picture_at = third + size(ifd1)
    ifd0[4] = (0x8769, 4, 1, struct.pack("<I", second))
    ifd1[1] = (0x0201, 4, 1, struct.pack("<I", picture_at))

    def write(ifd: list[tuple[int, int, int, bytes]], at: int, following: int) -> bytes:
        out, body, data_at = struct.pack("<H", len(ifd)), b"", at + 2 + 12 * len(ifd) + 4
        for tag, kind, count, value in ifd:
            if len(value) > 4:
                out += struct.pack("<HHII", tag, kind, count, data_at + len(body))
                body += value + b"\0" * (len(value) % 2)
            else:
                out += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
        return out + struct.pack("<I", following) + body

    block = b"II*\0" + struct.pack("<I", first) + write(ifd0, first, third if thumbnail else 0) + write(exif, second, 0)
    return block + write(ifd1, third, 0) + thumbnail if thumbnail else block


class Halved:
    """A look that shows half the light."""

    name = "half"
    headroom = 2.0

    def __call__(self, radiance):
        return radiance * np.float32(0.5)
