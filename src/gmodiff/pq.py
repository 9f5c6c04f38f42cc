"""Renditions as PQ-coded pictures in BT.2020 primaries: PNG of 16 bits, AVIF of 10, JPEG XL.

Light is absolute there: SDR white (1.0) is stored as 203 cd/m2 (ITU-R BT.2408, section 2.2). The rendition is asked for strip
by strip in threads, so a picture never exists as full-size float.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import OpenImageIO as oiio
from numpy.typing import NDArray
from PIL import AvifImagePlugin

from gmodiff import floatfiles
from gmodiff.avif import boxes, code_points, rewrap, size_and_depth
from gmodiff.decode import png_chunks
from gmodiff.errors import FileFormatError, InputError, MissingDependencyError, OutputError
from gmodiff.exif import clean_block
from gmodiff.hdrgm import Packet, facts_metadata, find_packets
from gmodiff.image import HDRImage
from gmodiff.radiometry import BT2020, DISPLAY_P3, F32, SDR_WHITE_NITS, SRGB, pq_decode, pq_encode
from gmodiff.tiling import for_each_strip

CODE_POINTS = (9, 16, 0, 1)
"""BT.2020 primaries, PQ, RGB, full range (ITU-T H.273)."""

_MANTISSA_BITS = 13
_LOWEST, _HIGHEST = -40, 6  # powers of two of linear light, 1.0 = SDR white: code 0 ends near 2**-39, PQ at 10000 cd/m2 = 2**5.6
_STRIP_ROWS = 128


@lru_cache(maxsize=4)
def _pq_table(bits: int) -> NDArray[np.uint16]:
    """PQ code of every float32 with the top _MANTISSA_BITS of its mantissa, from 2**_LOWEST to 2**_HIGHEST.

    A float's leading bits are its exponent and the start of its mantissa, so they index the table directly: a hundredth of the
    cost of two powers, and at most one 16-bit code away from them.
    """
    shift = 23 - _MANTISSA_BITS
    steps = np.arange((_HIGHEST - _LOWEST) << _MANTISSA_BITS, dtype=np.uint32)
    middle = ((steps << np.uint32(shift)) + np.uint32((127 + _LOWEST) << 23) + np.uint32(1 << (shift - 1))).view(np.float32)
    codes = np.rint(pq_encode(middle.astype(np.float64) * SDR_WHITE_NITS) * (2**bits - 1))
    return np.asarray(codes, np.uint16)


def pq_codes(linear: F32, bits: int) -> NDArray[np.uint16]:
    """(...) float32 linear light, 1.0 = SDR white, to PQ codes of 10 to 16 bits. Negative values and NaN become 0."""
    index = np.fmax(linear, np.float32(2.0**_LOWEST)).view(np.uint32) >> np.uint32(23 - _MANTISSA_BITS)
    index -= np.uint32((127 + _LOWEST) << _MANTISSA_BITS)
    return np.asarray(_pq_table(bits).take(index, mode="clip"))


@dataclass(frozen=True)
class LightLevel:
    """Content light level in cd/m2 (CTA-861.3, annex P): brightest pixel, and mean, of the largest of R, G and B."""

    max_cll: float
    max_fall: float


def encode_strips(image: HDRImage, bits: int, use: Callable[[int, int, NDArray[np.uint16]], None]) -> LightLevel:
    """Call use(first, end, codes) for each strip of the rendition, in threads; codes are (rows, W, 3) uint16."""
    height, width = image.radiance.shape[:2]
    matrix = image.base_colour.matrix_to(BT2020).astype(np.float32)
    peaks: list[float] = []
    sums: list[float] = []

    def strip(first: int, end: int) -> None:
        light = np.asarray(cv2.transform(np.ascontiguousarray(image.rendition(slice(first, end))), matrix), np.float32)
        brightest = np.clip(np.nan_to_num(cv2.max(cv2.max(light[..., 0], light[..., 1]), light[..., 2])), 0, 10000 / SDR_WHITE_NITS)
        peaks.append(float(brightest.max()))
        sums.append(float(brightest.sum(dtype=np.float64)))
        use(first, end, pq_codes(light, bits))

    for_each_strip(strip, height, rows=_STRIP_ROWS)
    # fsum does not depend on the order in which threads ended: the same picture gives the same file.
    return LightLevel(max(peaks) * SDR_WHITE_NITS, math.fsum(sums) / (height * width) * SDR_WHITE_NITS)


def _all_codes(image: HDRImage, bits: int) -> tuple[NDArray[np.uint16], LightLevel]:
    codes = np.empty(image.radiance.shape, np.uint16)

    def keep(first: int, end: int, part: NDArray[np.uint16]) -> None:
        codes[first:end] = part

    return codes, encode_strips(image, bits, keep)


# ---- PNG (third edition) ------------------------------------------------------------------------------------------------

_ZLIB_LEVEL = 3
"""Photos at 16 bits hold mostly noise: level 6 takes half as long again and saves half a per cent."""


def png_bytes(image: HDRImage, *, exif: bytes | None, xmp: bytes, description: str) -> bytes:
    """A 16-bit RGB PNG with cICP (section 11.3.2.6) and cLLI (section 11.3.2.8), compressed in threads."""
    height, width = image.radiance.shape[:2]
    pieces: dict[int, tuple[bytes, int, int]] = {}

    def compress(first: int, end: int, codes: NDArray[np.uint16]) -> None:
        stored = codes.byteswap().view(np.uint8).reshape(end - first, width * 6)
        rows = np.empty((end - first, width * 6 + 1), np.uint8)
        rows[0, 0], rows[1:, 0] = 1, 2  # filters Sub for the first row of a strip, which must not look above, and Up below it
        rows[0, 1:7], rows[0, 7:] = stored[0, :6], stored[0, 6:] - stored[0, :-6]
        np.subtract(stored[1:], stored[:-1], out=rows[1:, 1:])
        packer = zlib.compressobj(_ZLIB_LEVEL, zlib.DEFLATED, -15)
        packed = packer.compress(rows.data) + packer.flush(zlib.Z_FINISH if end == height else zlib.Z_FULL_FLUSH)
        pieces[first] = packed, zlib.adler32(rows.data), rows.size

    light = encode_strips(image, 16, compress)
    checksum, data = 1, [b"\x78\x5e"]
    for first in sorted(pieces):
        packed, part, length = pieces[first]
        checksum = _joined_adler32(checksum, part, length)
        data.append(packed)
    data.append(struct.pack(">I", checksum))
    chunks = [
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        _chunk(b"cICP", bytes(CODE_POINTS)),
        _chunk(b"cLLI", struct.pack(">II", round(light.max_cll * 10000), round(light.max_fall * 10000))),
        _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        _chunk(b"iTXt", b"Description\0\0\0\0\0" + description.encode()),
    ]
    if exif:
        chunks.append(_chunk(b"eXIf", exif))
    return b"".join([b"\x89PNG\r\n\x1a\n", *chunks, *(_chunk(b"IDAT", part) for part in data if part), _chunk(b"IEND", b"")])


def _chunk(kind: bytes, payload: bytes) -> bytes:
    return b"".join([struct.pack(">I", len(payload)), kind, payload, struct.pack(">I", zlib.crc32(payload, zlib.crc32(kind)))])


def _joined_adler32(first: int, second: int, second_length: int) -> int:
    """Adler-32 (RFC 1950, section 8.2) of two pieces put together, from theirs alone."""
    base = 65521
    a1, b1, a2, b2 = first & 0xFFFF, first >> 16, second & 0xFFFF, second >> 16
    return ((b1 + b2 + second_length * (a1 - 1)) % base) << 16 | (a1 + a2 - 1) % base


# ---- AVIF and JPEG XL ---------------------------------------------------------------------------------------------------

AVIF_BITS = 10
_AVIF_SPEED = 8  # slower settings take many times as long for a few per cent
_JXL_EFFORT = 4  # 7, the library's own default, takes five times as long
_JXL_BEST = 99  # 100 would switch to lossless coding at ten times the size


def need_imagecodecs() -> None:
    """Raises MissingDependencyError where AVIF cannot be written."""
    try:
        import imagecodecs
    except ImportError:
        raise MissingDependencyError("AVIF needs the package imagecodecs: pip install 'gmodiff[avif]'") from None
    if not imagecodecs.AVIF.available:
        raise MissingDependencyError("this build of imagecodecs has no AVIF: pip install -U 'gmodiff[avif]'")


def avif_bytes(image: HDRImage, *, quality: int, exif: bytes | None, xmp: bytes) -> bytes:
    """A 10-bit 4:4:4 AVIF with nclx 9/16/9, content light level, EXIF and XMP. Raises MissingDependencyError without imagecodecs."""
    need_imagecodecs()
    import imagecodecs

    height, width = image.radiance.shape[:2]
    if max(height, width) > 65536:
        raise InputError(f"AVIF holds at most 65536 pixels per side, this picture is {width}x{height}: write .exr or .png")
    codes, light = _all_codes(image, AVIF_BITS)
    try:
        data = imagecodecs.avif_encode(
            codes,
            level=quality,
            speed=_AVIF_SPEED,
            bitspersample=AVIF_BITS,
            primaries=CODE_POINTS[0],
            transfer=CODE_POINTS[1],
            matrix=9,
            pixelformat="444",
            numthreads=0,
        )
    except (imagecodecs.AvifError, ValueError) as reason:
        raise OutputError(f"the AVIF encoder failed: {reason}") from reason
    return rewrap(bytes(data), max_cll=math.ceil(light.max_cll), max_fall=math.ceil(light.max_fall), exif=exif, xmp=xmp)


def write_jxl(image: HDRImage, path: Path, *, quality: int, exif: bytes | None, xmp: bytes) -> None:
    """A JPEG XL file with PQ and BT.2020 code points, EXIF and XMP boxes (ISO/IEC 18181-2, sections 9.7 and 9.10)."""
    height, width = image.radiance.shape[:2]
    codes, _ = _all_codes(image, 16)
    spec = oiio.ImageSpec(width, height, 3, "uint16")
    spec.attribute("CICP", "int[4]", CODE_POINTS)
    spec.attribute("compression", f"jpegxl:{min(quality, _JXL_BEST)}")
    spec.attribute("jpegxl:effort", _JXL_EFFORT)
    out = oiio.ImageOutput.create(str(path))
    if out is None or not out.open(str(path), spec) or not out.write_image(codes) or not out.close():
        raise OutputError(f"the JPEG XL encoder failed: {(out.geterror() if out else oiio.geterror()).strip()}")
    with path.open("r+b") as file:
        if file.read(12) != b"\0\0\0\x0cJXL \r\n\x87\n":
            return  # a bare codestream has no place for boxes
        file.seek(0, 2)
        for kind, payload in ((b"Exif", struct.pack(">I", 0) + exif if exif else b""), (b"xml ", xmp)):
            if payload:
                file.write(struct.pack(">I4s", len(payload) + 8, kind) + payload)


# ---- reading ------------------------------------------------------------------------------------------------------------


PQ, HLG = 16, 18
"""Transfer characteristics (ITU-T H.273, table 3)."""


def png_transfer(head: bytes) -> int | None:
    """The transfer characteristics that a PNG's cICP chunk states before its pixels; None where it states none."""
    at = 8
    while at + 12 <= len(head):
        length, kind = struct.unpack_from(">I4s", head, at)
        if kind == b"cICP" and length == 4 and at + 12 <= len(head):
            return head[at + 9]
        if kind in (b"IDAT", b"IEND"):
            return None
        at += 12 + length
    return None


def _refuse_hlg(transfer: int) -> None:
    if transfer == HLG:
        raise FileFormatError("is coded as HLG, which is not read here; PQ is")


def read_png(path: Path, accept: Callable[[int, int], None]) -> HDRImage:
    """A PQ PNG of 8 or 16 bits."""
    data = path.read_bytes()
    chunks = png_chunks(data)  # checks every checksum first: libpng would complain on stderr
    accept(*struct.unpack_from(">II", chunks[b"IHDR"]))
    codes = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION)
    if codes is None or codes.ndim != 3:
        raise FileFormatError("is damaged: its PNG data cannot be decoded")
    return from_codes(codes, chunks[b"cICP"][0], "PNG, PQ", chunks.get(b"eXIf"), packets=find_packets(data))


def read_jxl(path: Path, accept: Callable[[int, int], None]) -> HDRImage:
    """A PQ JPEG XL."""
    data = path.read_bytes()
    codes, points = _oiio_codes(path, accept)
    exif = None
    if data[:2] != b"\xff\x0a":
        for box in boxes(data):
            if box.kind == b"Exif" and box.end - box.start > 4:
                exif = data[box.start + 4 : box.end]
    return from_codes(codes, points[0], "JPEG XL, PQ", exif, packets=find_packets(data))


def _oiio_codes(path: Path, accept: Callable[[int, int], None]) -> tuple[NDArray[Any], tuple[int, ...]]:
    opened = oiio.ImageInput.open(str(path))
    if opened is None:
        raise FileFormatError(f"is truncated or damaged: {floatfiles.first_line(oiio.geterror())}")
    try:
        spec = opened.spec()
        accept(spec.width, spec.height)
        points = tuple(int(v) for v in spec.getattribute("CICP") or ())
        if len(points) < 2 or points[1] != PQ:
            _refuse_hlg(points[1] if len(points) > 1 else 0)
            raise FileFormatError("is not coded as PQ; this kind of file is read only with PQ")
        if spec.nchannels < 3:
            raise FileFormatError(f"has {spec.nchannels} channels, expected red, green and blue")
        codes = opened.read_image(0, 0, 0, 3, "uint16")
        if codes is None:
            raise FileFormatError(f"is truncated or damaged: {floatfiles.first_line(opened.geterror())}")
    finally:
        opened.close()
    return codes, points


def read_avif(data: bytes, accept: Callable[[int, int], None]) -> HDRImage:
    """A PQ AVIF of 8 to 12 bits. Raises MissingDependencyError without imagecodecs."""
    need_imagecodecs()
    import imagecodecs

    points = code_points(data)
    if points is None or points[1] != PQ:
        _refuse_hlg(points[1] if points else 0)
        raise FileFormatError("is not coded as PQ")
    width, height, depth = size_and_depth(data)
    accept(width, height)
    codes = imagecodecs.avif_decode(data)
    if codes.ndim != 3 or codes.shape[2] < 3:
        raise FileFormatError(f"has pixels of shape {codes.shape}, expected (height, width, 3)")
    with AvifImagePlugin.AvifImageFile(io.BytesIO(data)) as container:
        exif = container.info.get("exif")
    return from_codes(codes[..., :3], points[0], f"AVIF, {depth}-bit PQ", exif, 2**depth - 1, find_packets(data))


def from_codes(
    codes: NDArray[Any],
    primaries: int,
    kind: str,
    exif: bytes | None = None,
    top: int | None = None,
    packets: Sequence[Packet] = (),
) -> HDRImage:
    """A rendition from (H, W, 3) PQ codes, full range up to `top` (default: of their type); primaries by ITU-T H.273, table 2."""
    colour = {1: SRGB, 9: BT2020, 12: DISPLAY_P3}.get(primaries)
    notes = []
    if colour is None:
        colour = BT2020
        notes.append(f"colour primaries {primaries} are not known here; BT.2020 is assumed")
    size = (np.iinfo(codes.dtype).max if top is None else top) + 1
    light = np.asarray(pq_decode(np.arange(size) / (size - 1)) / SDR_WHITE_NITS, np.float32)
    radiance = np.empty(codes.shape, np.float32)

    def strip(first: int, end: int) -> None:
        light.take(codes[first:end], out=radiance[first:end], mode="clip")

    for_each_strip(strip, codes.shape[0])
    height, width = codes.shape[:2]
    metadata: dict[str, Any] = {"format": kind, "notes": notes}
    for packet in packets:
        metadata |= facts_metadata(packet.facts)
    start = exif.find(b"Exif\0\0", 0, 16) if exif else -1
    block = clean_block(exif[start + 6 :] if start >= 0 else exif, width, height) if exif else None
    return HDRImage(radiance, content="rendition", colour=colour, base_colour=colour, exif=block, metadata=metadata)
