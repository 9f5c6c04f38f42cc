"""One photo file to upright RGB pixels with their colour space, exposure settings and a clean EXIF block.

The format is told by the file's content, never by its name. Whatever is wrong with a file becomes one FileFormatError or InputError line.
"""

from __future__ import annotations

import io
import mmap
import stat
import struct
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, ImageCms, WebPImagePlugin

from gmodiff import decode
from gmodiff.errors import FileFormatError, GMODiffError, InputError
from gmodiff.exif import ExifFacts, block_from_facts, clean_block, merge_facts, read_exif, rebuilt_block
from gmodiff.icc import colour_space_from_icc
from gmodiff.radiometry import ADOBE_RGB, SRGB, ColourSpace
from gmodiff.raw import RawDevelopment, decode_raw

MAX_PIXELS = 250_000_000
"""Default limit of width x height: the largest cameras make 150 megapixels, a decompression bomb makes more."""

MIN_SIDE = 16
"""Shorter sides hold nothing to align."""

_JPEG_HEAD = 1 << 20
"""Bytes in which a photo's metadata normally stands."""

FORMATS = "JPEG, PNG, WebP, TIFF, HEIC, AVIF or camera RAW"

_DECODERS = {
    "jpeg": decode.decode_jpeg,
    "png": decode.decode_png,
    "webp": decode.decode_webp,
    "avif": decode.decode_avif,
    "heif": decode.decode_heif,
    "tiff": decode.decode_tiff,
}


@dataclass(frozen=True)
class Photo:
    """A decoded photo.

    encoded: (H, W, 3) uint8 or uint16 over the full range of the type, upright, RGB in `colour`.
    linear: encoded values are proportional to light (camera RAW, float TIFF, a linear profile).
    exposure_time_s, iso, f_number: as the file says; None where it does not, or says something impossible (see notes).
    exif: clean EXIF block for the output (orientation 1, no thumbnail), without the "Exif\\0\\0" prefix.
    lossy: JPEG, WebP, HEIC or AVIF compression moved values by about a code.
    raw: how camera RAW was developed, to develop the other frames alike; None for other formats.
    notes: sentences for the user.
    """

    path: Path
    encoded: NDArray[Any] = field(repr=False)
    colour: ColourSpace = SRGB
    linear: bool = False
    exposure_time_s: float | None = None
    iso: float | None = None
    f_number: float | None = None
    exif: bytes | None = field(default=None, repr=False)
    camera: str = ""
    lens: str = ""
    datetime: str = ""
    lossy: bool = False
    raw: RawDevelopment | None = None
    notes: tuple[str, ...] = ()


def read_photo(path: str | PathLike[str], *, max_pixels: int = MAX_PIXELS, raw_development: RawDevelopment | None = None) -> Photo:
    """Read a photo of any supported format.

    max_pixels: a larger picture is refused from its header, before it is decoded. raw_development: white balance and black level
    for camera RAW, from the first frame of the bracket. Raises InputError (missing, too small, too large), FileFormatError
    (unreadable, truncated, of another kind, transparent, NaN) or MissingDependencyError, each with one line that names the file.
    """
    path = Path(path)
    name = shown_name(path)
    kind = _identify(path)

    def accept(width: int, height: int) -> None:
        if width * height > max_pixels:
            raise InputError(f"is {width}x{height}, {width * height} pixels, above the limit of {max_pixels} (--max-pixels)")
        if min(width, height) < MIN_SIDE:
            raise InputError(f"is {width}x{height}, too small: both sides must have {MIN_SIDE} pixels or more")

    facts, development = ExifFacts(), None
    try:
        if kind == "tiff":
            facts = _with_file(path, read_exif)
        if kind == "raw" or facts.raw_sensor:
            decoded, facts, development = decode_raw(path, accept, raw_development)
            facts = merge_facts(_with_file(path, read_exif), facts)
        else:
            decoded = _DECODERS[kind](path, accept)
            if kind != "tiff":
                facts = read_exif(decoded.exif or b"")
        return _finished(path, kind, decoded, facts, development)
    except GMODiffError as error:
        raise type(error)(f"{name} {error}") from error
    except MemoryError as error:
        raise InputError(f"{name} needs more memory to decode than there is") from error
    except Exception as error:
        # Five decoders raise some twenty kinds of error on damage; for the user they are one.
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise FileFormatError(f"{name} is truncated or damaged: {reason}") from error


@dataclass(frozen=True)
class PhotoFacts:
    """What a photo file says of itself without being decoded: its format, upright size (0 where unknown), and EXIF facts."""

    kind: str
    width: int
    height: int
    exif: ExifFacts

    @property
    def raw(self) -> bool:
        """Camera RAW."""
        return self.kind == "raw" or self.exif.raw_sensor


def read_facts(path: str | PathLike[str]) -> PhotoFacts:
    """The facts of a photo from its headers; no pixel is decoded and no RAW developed. Errors as `read_photo`."""
    path = Path(path)
    kind = _identify(path)
    try:
        facts, width, height, upright = _headers(path, kind)
    except GMODiffError as error:
        raise type(error)(f"{shown_name(path)} {error}") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise FileFormatError(f"{shown_name(path)} is truncated or damaged: {reason}") from error
    if facts.orientation >= 5 and not upright:
        width, height = height, width
    return PhotoFacts(kind, width, height, facts)


def _headers(path: Path, kind: str) -> tuple[ExifFacts, int, int, bool]:
    """(EXIF, width, height, the size is that of the upright picture already)."""
    if kind == "tiff":
        facts = _with_file(path, read_exif)
        return facts, facts.width, facts.height, False
    if kind == "raw":
        facts = _with_file(path, _raw_facts)
        return facts, facts.width, facts.height, False
    if kind == "jpeg":
        with path.open("rb") as file:
            data = file.read(_JPEG_HEAD)
            try:
                header = decode.jpeg_header(data)
            except FileFormatError:  # metadata longer than this, or no picture at all
                header = decode.jpeg_header(data + file.read())
        return read_exif(header.exif or b""), header.width, header.height, False
    if kind == "png":
        exif, width, height = _with_file(path, _png_facts)
        return exif, width, height, False
    if kind == "heif":
        data = path.read_bytes()
        decode.check_heif_texts(data)
        import pi_heif

        picture = pi_heif.open_heif(io.BytesIO(data))  # decodes when somebody asks for pixels
        block = decode.plain_exif(picture.info.get("exif"))
        return read_exif(block or b""), picture.size[0], picture.size[1], True
    with (WebPImagePlugin.WebPImageFile if kind == "webp" else AvifImagePlugin.AvifImageFile)(str(path)) as image:
        return read_exif(decode.plain_exif(image.info.get("exif")) or b""), image.width, image.height, False


def _raw_facts(data: Any) -> ExifFacts:
    """EXIF of camera RAW: a TIFF structure under its own or a maker's mark, in Canon's boxes, or in Fujifilm's embedded JPEG."""
    head = bytes(data[:16])
    if head.startswith(b"FUJIFILMCCD-RAW"):
        start, length = struct.unpack(">II", data[84:92])
        header = decode.jpeg_header(bytes(data[start : start + min(length, _JPEG_HEAD)]))
        return replace(read_exif(header.exif or b""), width=header.width, height=header.height)
    if head[4:8] == b"ftyp":
        found, boxes = ExifFacts(), bytes(data[:_JPEG_HEAD])
        for box in (b"CMT1", b"CMT2"):
            at = boxes.find(box)
            if at >= 4:
                found = merge_facts(found, read_exif(boxes[at + 4 : at - 4 + int.from_bytes(boxes[at - 4 : at], "big")]))
        return found
    if head[:4] in (b"IIRO", b"IIRS", b"IIU\0"):
        return read_exif(b"II*\0" + bytes(data[4:_JPEG_HEAD]))
    return read_exif(b"MM\0*" + bytes(data[4:_JPEG_HEAD])) if head[:4] == b"MMOR" else read_exif(data)


def _png_facts(data: Any) -> tuple[ExifFacts, int, int]:
    """Size and EXIF of a PNG; its chunks are stepped over, not read."""
    width, height = struct.unpack(">II", data[16:24])
    at, exif = 8, b""
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"eXIf":
            exif = bytes(data[at + 8 : at + 8 + length])
        at += 12 + length
    return read_exif(decode.plain_exif(exif) or b""), width, height


def shown_name(path: Path) -> str:
    """The file's name for a message of one line."""
    return path.name if path.name.isprintable() else ascii(path.name)


def _finished(path: Path, kind: str, decoded: decode.Decoded, facts: ExifFacts, development: RawDevelopment | None) -> Photo:
    """Three channels, upright, with colour space and metadata."""
    notes = [*facts.notes, *decoded.notes]
    pixels = decoded.pixels
    decoded.pixels = np.empty(0)  # the only reference from here on: no second copy stays alive
    pixels, colour = _to_rgb(pixels, decoded, facts, notes)
    orientation = facts.orientation if decoded.orientation is None else decoded.orientation
    encoded = decode.upright(pixels, orientation)
    height, width = encoded.shape[:2]
    exif = clean_block(decoded.exif, width, height) if decoded.exif else None
    if exif is None and kind in ("tiff", "raw"):
        exif = _with_file(path, lambda data: rebuilt_block(data, width, height)) or block_from_facts(facts)
    return Photo(
        path=path,
        encoded=encoded,
        colour=colour,
        linear=colour.transfer == "linear",
        exposure_time_s=facts.exposure_time_s,
        iso=facts.iso,
        f_number=facts.f_number,
        exif=exif,
        camera=facts.camera,
        lens=facts.lens,
        datetime=facts.datetime,
        lossy=decoded.lossy,
        raw=development,
        notes=tuple(f"{shown_name(path)}: {note}" for note in notes),
    )


# ---- which format ---------------------------------------------------------------------------------------------------------


def _identify(path: Path) -> str:
    """The format by content. Raises InputError or FileFormatError where there is no photo to read."""
    name, whole = shown_name(path), str(path) if str(path).isprintable() else ascii(str(path))
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{whole} is a folder, expected a photo")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{whole} is not a regular file, expected a photo")
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise InputError(f"{whole} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a zero byte in the name
        raise InputError(f"{whole} is not a file name: {error}") from error
    if not head:
        raise FileFormatError(f"{name} is empty (0 bytes), expected {FORMATS}")
    kind = _kind_of(head)
    if kind is None:
        raise FileFormatError(f"{name} is not a photo this program reads, expected {FORMATS}")
    if kind == "hdr":
        raise FileFormatError(f"{name} is an HDR picture already (EXR or Radiance HDR); a bracket is made of ordinary photos")
    return kind


def _kind_of(head: bytes) -> str | None:
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        # Canon CR2 and Phase One IIQ mark themselves here; DNG, NEF, ARW ... by their directories.
        return "raw" if head[8:10] == b"CR" or head[8:12] in (b"IIII", b"MMMM") else "tiff"
    if head[4:8] == b"ftyp":
        brands = {head[8:12], *(head[i : i + 4] for i in range(16, min(int.from_bytes(head[:4], "big"), 64), 4))}
        if b"crx " in brands:
            return "raw"
        if brands & {b"avif", b"avis"}:
            return "avif"
        return "heif" if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"} else None
    if head.startswith((b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"\0MRM", b"FOVb")):
        return "raw"
    return "hdr" if head.startswith((b"v/1\x01", b"#?RADIANCE", b"#?RGBE")) else None


def is_camera_raw(path: str | PathLike[str]) -> bool:
    """True for camera RAW; False for anything else, unreadable files included."""
    path = Path(path)
    try:
        kind = _identify(path)
        return kind == "raw" or (kind == "tiff" and _with_file(path, read_exif).raw_sensor)
    except (GMODiffError, OSError, ValueError):
        return False


def _with_file(path: Path, work: Any) -> Any:
    """work(memory map of the file): directories of a TIFF may stand anywhere in hundreds of megabytes."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return work(data)


# ---- channels, colour, orientation ----------------------------------------------------------------------------------------


def _to_rgb(pixels: NDArray[Any], decoded: decode.Decoded, facts: ExifFacts, notes: list[str]) -> tuple[NDArray[Any], ColourSpace]:
    """(H, W, 3) in a matrix colour space: alpha dropped, grey repeated, inks and lookup-table profiles converted to sRGB."""
    icc = decoded.icc
    if decoded.inks:
        return _inks_to_srgb(pixels, icc), SRGB
    if pixels.shape[2] == 4:
        if pixels[..., 3].min() < np.iinfo(pixels.dtype).max:
            raise FileFormatError("is transparent in places; a photo of a bracket has no transparency")
        pixels = np.ascontiguousarray(pixels[..., :3])
    elif pixels.shape[2] == 1:
        pixels = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_GRAY2RGB)
    colour = decoded.colour
    if colour is None and icc is not None:
        try:
            colour = colour_space_from_icc(icc)
        except FileFormatError as error:
            notes.append(f"{error}; sRGB is assumed")
            icc = None
        if colour is None and icc is not None:
            if icc[16:20] != b"RGB ":
                notes.append(f"its {icc[16:20].decode('latin-1').strip()} profile says nothing about RGB; sRGB is assumed")
            elif pixels.dtype != np.uint8:
                raise FileFormatError("has a lookup-table ICC profile with 16-bit pixels: convert it to sRGB or Display P3 first")
            else:
                notes.append("its lookup-table ICC profile was converted to sRGB")
                pixels = _through_littlecms(Image.fromarray(pixels), icc)
    if colour is None:
        colour = ADOBE_RGB if facts.adobe_rgb and icc is None else SRGB
    if decoded.linear and icc is None and colour.transfer != "linear":
        colour = replace(colour, name=f"linear {colour.name}", transfer="linear")
    return pixels, colour


def _inks_to_srgb(pixels: NDArray[Any], icc: bytes | None) -> NDArray[np.uint8]:
    if icc is None or icc[16:20] != b"CMYK":
        raise FileFormatError("is CMYK without a CMYK ICC profile, so its colours are unknown: convert it to RGB first")
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    return _through_littlecms(Image.fromarray(np.ascontiguousarray(pixels), mode="CMYK"), icc)


def _through_littlecms(image: Image.Image, icc: bytes) -> NDArray[np.uint8]:
    try:
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), renderingIntent=intent, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise FileFormatError(f"has an ICC profile that cannot be used ({error}): convert it to sRGB first") from error
    if converted is None:
        raise FileFormatError("has an ICC profile that cannot be used: convert it to sRGB first")
    return np.asarray(converted)
