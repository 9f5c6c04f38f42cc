"""Files to pixels, one function per format: what is stored, not yet upright, not yet three channels.

Every decoder checks the size in the header with `accept` before it decodes, and raises whatever its library raises; `photo`
turns that into one line. Camera RAW lives in `raw`.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import OpenImageIO as oiio
import pi_heif
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, ImageFile, JpegImagePlugin, WebPImagePlugin

from gmodiff.errors import FileFormatError
from gmodiff.radiometry import BT2020, DISPLAY_P3, SRGB, ColourSpace

Accept = Callable[[int, int], None]
"""Raises where a photo of (width, height) must not be decoded."""

_STRIP_ROWS = 64
_MAX_ICC_BYTES = 8 << 20


@dataclass
class Decoded:
    """What a file held.

    pixels: (H, W, C) uint8, uint16 or float32; C is 1 grey, 3 RGB, 4 RGBA, or 4 inks where `inks`.
    orientation: None means that the EXIF block says it. colour: where the file says it other than by an ICC profile.
    linear: pixels are proportional to light whatever the profile says (float without a profile).
    """

    pixels: NDArray[Any]
    icc: bytes | None = None
    exif: bytes | None = None
    orientation: int | None = None
    colour: ColourSpace | None = None
    lossy: bool = False
    linear: bool = False
    inks: bool = False
    notes: list[str] = field(default_factory=list)


def coded_colour(primaries: int, transfer: int) -> ColourSpace | None:
    """The colour space of code points (ITU-T H.273, tables 2 and 3); None where unspecified or unknown.

    BT.709's curve is taken for sRGB's: cameras write code 1 and mean what every screen shows. Raises FileFormatError for PQ and HLG.
    """
    if transfer in (16, 18):
        kind = "PQ" if transfer == 16 else "HLG"
        raise FileFormatError(f"is an HDR picture already ({kind}); a bracket is made of ordinary photos")
    known = {1: SRGB, 9: BT2020, 12: DISPLAY_P3}.get(primaries)
    if known is None or transfer not in (1, 2, 6, 8, 13, 14, 15):
        return None
    return ColourSpace(f"linear {known.name}", known.chromaticities, "linear") if transfer == 8 else known


def _widen(codes: NDArray[np.uint16], bits: int) -> NDArray[np.uint16]:
    """Codes in the low `bits` of 16 to the full range: 0 stays 0, the top code becomes 65535."""
    wide: NDArray[np.uint16] = codes << np.uint16(16 - bits)
    wide |= codes >> np.uint16(2 * bits - 16)
    return wide


# ---- JPEG, WebP, AVIF -----------------------------------------------------------------------------------------------------


def plain_exif(block: bytes | None) -> bytes | None:
    """The TIFF structure in an EXIF payload, which some containers prefix."""
    if not block:
        return None
    start = min((at for at in (block.find(b"II*\0", 0, 16), block.find(b"MM\0*", 0, 16)) if at >= 0), default=-1)
    return block[start:] if start >= 0 else None


@dataclass
class JpegHeader:
    """What stands before a JPEG's first scan."""

    width: int = 0
    height: int = 0
    components: int = 0
    scan_at: int = 0
    exif: bytes | None = None
    icc: bytes | None = None
    more_pictures: bool = False


def jpeg_header(data: bytes) -> JpegHeader:
    """Walk the segments up to the first scan (ITU-T T.81, annex B). Raises FileFormatError where there is none."""
    header, profile, at = JpegHeader(), dict[int, bytes](), 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (0xFF, 0x01) or 0xD0 <= marker <= 0xD7:  # fill bytes, and markers without a segment
            at += 1 if marker == 0xFF else 2
            continue
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + size]
        if marker == 0xDA:
            header.scan_at = at
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 6:
            bits, header.height, header.width, header.components = struct.unpack_from(">BHHB", body)
            if bits != 8:
                raise FileFormatError(f"is a JPEG of {bits} bits per channel, expected 8")
        elif marker == 0xE1 and body.startswith(b"Exif\0") and header.exif is None:
            header.exif = plain_exif(body[6:])
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
            profile[body[12]] = body[14:]
        elif marker == 0xE2 and body.startswith(b"MPF\0"):
            header.more_pictures = True
        at += 2 + size
    if not (header.scan_at and header.width and header.height):
        raise FileFormatError("is truncated or damaged: the JPEG has no picture")
    header.icc = b"".join(profile[i] for i in sorted(profile)) or None
    return header


def decode_jpeg(path: Path, accept: Accept) -> Decoded:
    """8-bit JPEG; of a file with several pictures (MPF, Ultra HDR) the first. Grey comes as RGB."""
    data = path.read_bytes()
    header = jpeg_header(data)
    accept(header.width, header.height)
    decoded = Decoded(np.empty(0), header.icc, header.exif, lossy=True, inks=header.components == 4)
    if header.more_pictures:
        decoded.notes.append("the file holds several pictures or a gain map; its first picture, the SDR photo, is used")
    # Inside a scan FF is always stuffed, so the end marker cannot be missing in a complete file.
    if data.find(b"\xff\xd9", header.scan_at) < 0:
        raise FileFormatError("is truncated: the JPEG has no end marker")
    if decoded.inks:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
            decoded.pixels = np.asarray(image)
        return decoded
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise FileFormatError("is truncated or damaged: its JPEG data cannot be decoded")
    decoded.pixels = pixels
    return decoded


def decode_webp(path: Path, accept: Accept) -> Decoded:
    """8-bit WebP, the first frame of an animation."""
    # The plugin's own class, not Image.open: Pillow's size limit is a process-wide setting, ours is an argument.
    with WebPImagePlugin.WebPImageFile(str(path)) as image:
        accept(*image.size)
        return _from_pillow(image, lossy=b"VP8L" not in _head(path, 64))


def decode_avif(path: Path, accept: Accept) -> Decoded:
    """AVIF of 8 bits; of 10 and 12 bits where imagecodecs is installed, else rounded to 8 with a note."""
    head = _head(path, 64 << 10)
    if not AvifImagePlugin.SUPPORTED:
        raise FileFormatError("is AVIF, which this build of Pillow cannot read")
    with AvifImagePlugin.AvifImageFile(str(path)) as image:
        accept(*image.size)
        colr = head.find(b"colrnclx")
        colour = coded_colour(*struct.unpack_from(">HH", head, colr + 8)) if 0 <= colr <= len(head) - 12 else None
        av1c = head.find(b"av1C")
        flags = head[av1c + 6] if 0 <= av1c < len(head) - 6 else 0
        bits = 12 if flags & 0x60 == 0x60 else 10 if flags & 0x40 else 8  # AV1-ISOBMFF, section 2.3.3
        decoded = _from_pillow(image, lossy=True) if bits == 8 else _deep_avif(path, image, bits)
    decoded.colour = colour
    return decoded


def _deep_avif(path: Path, image: ImageFile.ImageFile, bits: int) -> Decoded:
    try:
        import imagecodecs
    except ImportError:
        decoded = _from_pillow(image, lossy=True)
        decoded.notes.append(f"the {bits}-bit AVIF was read with 8 bits; pip install 'gmodiff[avif]' reads all of them")
        return decoded
    pixels = imagecodecs.avif_decode(path.read_bytes())
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    return Decoded(_widen(pixels, bits), image.info.get("icc_profile"), plain_exif(image.info.get("exif")), lossy=True)


def _from_pillow(image: ImageFile.ImageFile, *, lossy: bool) -> Decoded:
    decoded = Decoded(np.empty(0), image.info.get("icc_profile"), plain_exif(image.info.get("exif")), lossy=lossy)
    if getattr(image, "n_frames", 1) > 1:
        decoded.notes.append("the file holds several pictures; the first is used")
    plain: Image.Image = image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGBA")
    pixels = np.asarray(plain)
    decoded.pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    return decoded


# ---- HEIC -----------------------------------------------------------------------------------------------------------------


def decode_heif(path: Path, accept: Accept) -> Decoded:
    """HEIC / HEIF of 8 to 12 bits, the primary picture; libheif has already turned it upright."""
    data = path.read_bytes()
    check_heif_texts(data)
    with io.BytesIO(data) as file:
        image = pi_heif.open_heif(file, convert_hdr_to_8bit=False, bgr_mode=False)
        accept(*image.size)
        nclx = image.info.get("nclx_profile")
        colour = coded_colour(int(nclx["color_primaries"]), int(nclx["transfer_characteristics"])) if nclx else None
        pixels = np.array(image)  # a copy: the memory belongs to libheif and goes with `image`
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    pixels = pixels[:, : image.size[0]]  # rows may be padded
    bits = int(image.info.get("bit_depth", 8))
    if pixels.dtype == np.uint16:
        pixels = pixels | (pixels >> np.uint16(bits))  # stored in the high bits
    decoded = Decoded(pixels, image.info.get("icc_profile"), plain_exif(image.info.get("exif")), 1, colour, lossy=True)
    if any("gainmap" in str(kind).lower() for kind in image.info.get("aux", {})):
        decoded.notes.append("the file holds a gain map; its SDR photo is used")
    return decoded


def check_heif_texts(data: bytes) -> None:
    """Refuse item and auxiliary types that are not ASCII: pi-heif 1.4 crashes the process on them (ISO/IEC 14496-12, section 8.11.6)."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if data[at + 4 : at + 8] == b"meta":
            break
        at += max(size, 8) if size else len(data)
    meta = data[at : at + size] if at + 8 <= len(data) else b""
    if not meta:
        raise FileFormatError("is truncated or damaged: the HEIF has no meta box")
    for kind, skipped in ((b"infe", 12), (b"auxC", 8)):
        for found in re.finditer(kind, meta):
            start = found.start()
            length = int.from_bytes(meta[start - 4 : start], "big")
            if not meta[start + skipped : start - 4 + length].isascii():
                raise FileFormatError(f"is damaged: a {kind.decode()} box of the HEIF holds no text")


# ---- PNG ------------------------------------------------------------------------------------------------------------------


def decode_png(path: Path, accept: Accept) -> Decoded:
    """PNG of 2 to 16 bits per channel: grey, RGB, palette, with or without alpha."""
    data = path.read_bytes()
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise FileFormatError("is truncated: the PNG has no header")
    width, height, bits, kind = struct.unpack_from(">IIBB", data, 16)
    accept(width, height)
    if bits == 1:
        raise FileFormatError("is a black-and-white (1-bit) picture, which holds no exposure")
    chunks = png_chunks(data)
    decoded = Decoded(np.empty(0), exif=plain_exif(chunks.get(b"eXIf")))
    if b"cICP" in chunks and len(chunks[b"cICP"]) >= 2:
        decoded.colour = coded_colour(chunks[b"cICP"][0], chunks[b"cICP"][1])
    if b"iCCP" in chunks:
        packed = chunks[b"iCCP"].partition(b"\0")[2][1:]
        decoded.icc = zlib.decompressobj().decompress(packed, _MAX_ICC_BYTES)
    if b"acTL" in chunks:
        decoded.notes.append("the file is an animation; its first picture is used")
    alpha = kind in (4, 6) or b"tRNS" in chunks
    flags = cv2.IMREAD_UNCHANGED if alpha else cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise FileFormatError("is damaged: its PNG data cannot be decoded")
    if alpha:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA)
    decoded.pixels = pixels
    return decoded


def png_chunks(data: bytes) -> dict[bytes, bytes]:
    """First chunk of each kind; raises FileFormatError at a wrong checksum or a missing end (PNG, section 5.3)."""
    chunks: dict[bytes, bytes] = {}
    view, at = memoryview(data), 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = view[at + 8 : at + 8 + length]
        if at + 12 + length > len(data):
            break
        if zlib.crc32(view[at + 4 : at + 8 + length]) != struct.unpack_from(">I", data, at + 8 + length)[0]:
            raise FileFormatError(f"is damaged: checksum of PNG chunk {kind.decode('latin-1')!r} at byte {at} is wrong")
        if kind not in chunks:
            chunks[kind] = b"" if kind == b"IDAT" else bytes(body)
        if kind == b"IEND":
            return chunks
        at += 12 + length
    raise FileFormatError("is truncated: the PNG has no end")


# ---- TIFF -----------------------------------------------------------------------------------------------------------------

_TIFF_KINDS = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr"}


def decode_tiff(path: Path, accept: Accept) -> Decoded:
    """TIFF of 8 or 16 bits, or float (which becomes uint16 linear light, 1.0 = 65535)."""
    opened = _open_tiff(path, raw_inks=False)
    photometric = opened.spec().get_int_attribute("tiff:PhotometricInterpretation", 2)
    if photometric == 5:
        opened.close()
        opened = _open_tiff(path, raw_inks=True)
    try:
        spec = opened.spec()
        accept(spec.width, spec.height)
        if photometric not in _TIFF_KINDS:
            raise FileFormatError(f"is a TIFF of photometric kind {photometric}, expected grey, RGB, palette, YCbCr or CMYK")
        if spec.get_int_attribute("oiio:BitsPerSample", 8) == 1:
            raise FileFormatError("is a black-and-white (1-bit) picture, which holds no exposure")
        if str(spec.format) not in ("uint8", "uint16", "half", "float", "double"):
            raise FileFormatError(f"is a TIFF of {spec.format} samples, expected 8 or 16 bits unsigned, or float")
        if str(spec.format) == "double" and spec.tile_width:  # OpenImageIO 3.2 returns other numbers than were stored
            raise FileFormatError("is a tiled TIFF of 64-bit floats, expected 8 or 16 bits, or float of 16 or 32 bits")
        channels = 4 if photometric == 5 else 1 if spec.nchannels < 3 else 4 if spec.alpha_channel == 3 else 3
        if photometric == 5 and spec.nchannels < 4:
            raise FileFormatError(f"is a CMYK TIFF with {spec.nchannels} inks, expected 4")
        if spec.nchannels == 2 and spec.alpha_channel == 1 and str(spec.format).startswith("u"):
            grey_alpha = opened.read_image(0, 0, 0, 2, str(spec.format))
            if grey_alpha is not None and grey_alpha[..., 1].min() < np.iinfo(grey_alpha.dtype).max:
                raise FileFormatError("is transparent in places; a photo of a bracket has no transparency")
        icc = spec.getattribute("ICCProfile")
        decoded = Decoded(np.empty(0), None if icc is None else bytes(np.asarray(icc, np.uint8)))
        decoded.orientation = spec.get_int_attribute("Orientation", 1)
        decoded.lossy = "jpeg" in str(spec.getattribute("compression")).lower()
        decoded.inks = photometric == 5
        if str(spec.format).startswith("u"):
            decoded.pixels = opened.read_image(0, 0, 0, channels, str(spec.format))
            if decoded.pixels is None:
                raise FileFormatError(f"is truncated or damaged: {_first_line(opened.geterror())}")
        else:
            decoded.linear = True
            decoded.pixels = _float_rows(opened, channels, decoded.notes)
        if opened.seek_subimage(1, 0):
            decoded.notes.append("the file holds several pictures; the first is used")
    finally:
        opened.close()
    return decoded


def _open_tiff(path: Path, *, raw_inks: bool) -> Any:
    config = oiio.ImageSpec()
    config.attribute("oiio:UnassociatedAlpha", 1)
    config.attribute("oiio:RawColor", int(raw_inks))
    opened = oiio.ImageInput.open(str(path), config)
    if opened is None:
        raise FileFormatError(f"is truncated or damaged: {_first_line(oiio.geterror())}")
    return opened


def _float_rows(opened: Any, channels: int, notes: list[str]) -> NDArray[np.uint16]:
    """(H, W, channels) uint16 of linear float samples, 0..1 to 0..65535, read in strips where the file is made of rows."""
    spec = opened.spec()
    rows = spec.height if spec.tile_width else _STRIP_ROWS
    out = np.empty((spec.height, spec.width, channels), np.uint16)
    above = below = 0
    for first in range(0, spec.height, rows):
        end = min(first + rows, spec.height)
        if spec.tile_width:
            part = opened.read_image(0, 0, 0, channels, "float")
        else:
            part = opened.read_scanlines(spec.y + first, spec.y + end, 0, 0, channels, "float")
        if part is None:
            raise FileFormatError(f"is truncated or damaged: {_first_line(opened.geterror())}")
        part = part.reshape(end - first, spec.width, channels)
        bad = part.size - int(np.isfinite(part).sum())
        if bad:
            raise FileFormatError(f"holds values that are not numbers ({bad} NaN or infinite in rows {first} to {end - 1})")
        above += int((part > 1).sum())
        below += int((part < 0).sum())
        out[first:end] = np.rint(np.clip(part, 0, 1) * np.float32(65535))
    for count, what in ((above, "above 1 were clipped to 1"), (below, "below 0 were clipped to 0")):
        if count:
            notes.append(f"{count} float values ({100 * count / out.size:.2g} %) {what}")
    return out


def _head(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def _first_line(message: str) -> str:
    return (message.strip().splitlines() or ["no reason given"])[0].strip()[:160]


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """(H, W, C) pixels as EXIF orientation 1 to 8 says they are to be seen (Exif 3.0, section 4.6.5.2)."""
    turned = pixels
    if orientation in (5, 7):
        turned = cv2.transpose(pixels)
        turned = cv2.rotate(turned, cv2.ROTATE_180) if orientation == 7 else turned
    turn = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_CLOCKWISE, 8: cv2.ROTATE_90_COUNTERCLOCKWISE}.get(orientation)
    if turn is not None:
        turned = cv2.rotate(pixels, turn)
    elif orientation in (2, 4):
        turned = cv2.flip(pixels, {2: 1, 4: 0}[orientation])
    return np.asarray(turned if turned.ndim == 3 else turned[..., None])  # OpenCV drops a single channel
