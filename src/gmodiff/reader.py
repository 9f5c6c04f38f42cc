"""HDR files back into memory: Ultra HDR and other gain-map photos, PQ pictures, radiance files; plain photos too.

The format is told by the file's content, never by its name. Whatever is wrong with a file becomes one line that names it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import JpegImagePlugin

from gmodiff import avif, floatfiles, heic, pq
from gmodiff.decode import upright
from gmodiff.errors import FileFormatError, GMODiffError, InputError
from gmodiff.exif import clean_block, read_exif
from gmodiff.gainmap import GainMap
from gmodiff.hdrgm import facts_metadata
from gmodiff.icc import colour_space_from_icc
from gmodiff.image import HDRImage
from gmodiff.photo import MAX_PIXELS, read_photo
from gmodiff.radiometry import F32, SRGB, ColourSpace, srgb_encode
from gmodiff.tiling import for_each_strip
from gmodiff.ultrahdr import Parts, split
from gmodiff.upsampling import enlarged_rows

_READABLE = "Ultra HDR JPEG, HEIC, AVIF, PNG, JPEG XL, OpenEXR, Radiance .hdr, TIFF, or a plain photo"

Accept = Callable[[int, int], None]
"""Raises where a picture of (width, height) must not be decoded."""


def read(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> HDRImage:
    """Read an HDR file, or a plain photo.

    Gain-map photos give base, gain map and, as radiance, the rendition that both make at full headroom (content
    "rendition"); PQ pictures the rendition alone, 203 cd/m2 = 1.0; EXR, .hdr and float TIFF their radiance (content "scene"
    unless the file says otherwise), with provenance where the file holds it; plain photos their decoded pixels.
    Upright, 1.0 = SDR white, float32. metadata: "format", "notes", and what else the file says.
    max_pixels: a larger picture is refused from its header.
    Raises InputError (missing, too large), FileFormatError (unreadable, truncated, of another kind) or MissingDependencyError.
    """
    place = Path(path)

    def accept(width: int, height: int) -> None:
        if width * height > max_pixels:
            raise InputError(f"is {width}x{height}, {width * height} pixels, above the limit of {max_pixels}")

    try:
        image = _read(place, _head(place), accept, max_pixels)
    except GMODiffError as error:
        name = place.name or str(place)  # "." has no name
        raise error if str(error).startswith(name) else type(error)(f"{name}: {error}") from error
    except MemoryError as error:
        raise InputError(f"{place.name} needs more memory to decode than there is") from error
    except Exception as error:
        # Six decoders raise some twenty kinds of error on damage; for the user they are one.
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise FileFormatError(f"{place.name} is truncated or damaged: {reason}") from error
    return replace(image, metadata={"format": "", "notes": [], **image.metadata})


def _head(place: Path) -> bytes:
    try:
        if place.is_dir():
            raise InputError("is a folder, expected an HDR photo")
        if place.exists() and not place.is_file():
            raise InputError("is not a regular file")
        with place.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise InputError(f"cannot be read: {(error.strerror or str(error)).lower()}") from error
    if not head:
        raise FileFormatError(f"is empty (0 bytes), expected {_READABLE}")
    return head


def _read(place: Path, head: bytes, accept: Accept, max_pixels: int) -> HDRImage:
    if head.startswith(b"\xff\xd8\xff"):
        return _read_jpeg(place, accept, max_pixels)
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return pq.read_jxl(place, accept)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        transfer = pq.png_transfer(head)
        if transfer == pq.HLG:
            raise FileFormatError("is coded as HLG, which is not read here; PQ is")
        return pq.read_png(place, accept) if transfer == pq.PQ else _plain(place, max_pixels)
    if head.startswith((b"v/1\x01", b"#?RADIANCE", b"#?RGBE")):
        return floatfiles.read(place, head, accept)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return floatfiles.read(place, head, accept) if floatfiles.is_float_tiff(place) else _plain(place, max_pixels)
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        data = place.read_bytes()
        codes = avif.code_points(data)
        return pq.read_avif(data, accept) if codes is not None and codes[1] in (pq.PQ, pq.HLG) else _plain(place, max_pixels)
    if head[4:8] == b"ftyp":
        return _read_heic(place, accept, max_pixels)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _plain(place, max_pixels)
    raise FileFormatError(f"is not a picture this program reads, expected {_READABLE}")


# ---- plain photos and JPEG ----------------------------------------------------------------------------------------------


def _plain(place: Path, max_pixels: int) -> HDRImage:
    """A photo without HDR: its decoded pixels are the rendition, and the base."""
    photo = read_photo(place, max_pixels=max_pixels)
    metadata = {"format": f"{place.suffix.lstrip('.').upper() or 'plain'} photo (SDR)", "notes": list(photo.notes)}
    return _sdr(photo.encoded, photo.colour, photo.exif, metadata)


def _sdr(codes: NDArray[Any], colour: ColourSpace, exif: bytes | None, metadata: dict[str, Any]) -> HDRImage:
    """An HDRImage of (H, W, 3) uint8 or uint16 codes that are their own rendition."""
    top = np.iinfo(codes.dtype).max
    light = np.asarray(colour.decode(np.arange(top + 1) / top), np.float32)
    base = np.rint(np.asarray(srgb_encode(light)) * 255).astype(np.uint8).take(codes)
    screen = replace(colour, transfer="srgb")
    return HDRImage(light.take(codes), base, content="rendition", colour=screen, base_colour=screen, exif=exif, metadata=metadata)


def _read_jpeg(place: Path, accept: Accept, max_pixels: int) -> HDRImage:
    parts = split(place.read_bytes())
    notes = list(parts.notes)
    if parts.gain_map is None and not parts.facts:
        image = _plain(place, max_pixels)
        return replace(image, metadata={**image.metadata, "notes": [*image.metadata["notes"], *notes]})
    with ThreadPoolExecutor(2) as pool:
        second = None if parts.gain_map is None else pool.submit(_jpeg_pixels, parts.gain_map, "gain map", accept)
        base_codes = _jpeg_pixels(parts.base, "photo", accept)
        map_codes = None if second is None else second.result()
    if base_codes.shape[2] == 1:
        base_codes = np.repeat(base_codes, 3, axis=2)
    orientation = read_exif(parts.exif or b"").orientation
    base_codes = upright(base_codes, orientation)
    colour = _colour(parts.icc, "photo", notes)
    exif = clean_block(parts.exif, base_codes.shape[1], base_codes.shape[0]) if parts.exif else None
    metadata = {"format": _jpeg_kind(parts), "notes": notes, **facts_metadata(parts.facts)}
    if map_codes is None or parts.stored is None:
        # Our own file whose gain map was lost; the reader of photos to merge refuses our files.
        return _sdr(base_codes, colour, exif, metadata)
    metadata |= {"forms": list(parts.forms), "disagreement": parts.disagreement}
    alternate = colour if parts.stored.metadata.use_base_colour_space else _colour(parts.map_icc, "gain map", notes, colour)
    gain_map = GainMap(upright(map_codes, orientation), parts.stored.metadata)
    return from_gain_map(base_codes, gain_map, colour, alternate, parts.stored.base_is_hdr, exif, metadata)


def _jpeg_kind(parts: Parts) -> str:
    if parts.gain_map is None:
        return "JPG photo (SDR)"
    if "xmp" in parts.forms and "iso" in parts.forms:
        return "Ultra HDR JPEG"
    return "gain-map JPEG, ISO 21496-1 only" if "iso" in parts.forms else "Ultra HDR JPEG, XMP only"


def _jpeg_pixels(data: bytes, what: str, accept: Accept) -> NDArray[np.uint8]:
    """(H, W, 1 or 3) uint8 of one JPEG. Pillow's own class: Image.open would follow the MPF index, and has a limit of its own."""
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as image:
            accept(*image.size)
            plain = image if image.mode in ("L", "RGB") else image.convert("RGB")
            pixels = np.asarray(plain, np.uint8)
    except (OSError, SyntaxError, ValueError) as reason:
        raise FileFormatError(f"the {what} is truncated or damaged: {reason}") from reason
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _colour(icc: bytes | None, what: str, notes: list[str], otherwise: ColourSpace = SRGB) -> ColourSpace:
    """The colour space a profile describes; `otherwise`, with a note, where it cannot be used."""
    if icc is None:
        return otherwise
    try:
        colour = colour_space_from_icc(icc)
    except FileFormatError as reason:
        notes.append(f"the {what}'s {reason}; {otherwise.name} is assumed")
        return otherwise
    if colour is None:
        notes.append(f"the {what}'s ICC profile is not a plain RGB one; {otherwise.name} is assumed")
    return colour or otherwise


# ---- applying a gain map ------------------------------------------------------------------------------------------------


def from_gain_map(
    base_codes: NDArray[np.uint8],
    gain_map: GainMap,
    colour: ColourSpace,
    alternate: ColourSpace,
    base_is_hdr: bool,
    exif: bytes | None,
    metadata: dict[str, Any],
) -> HDRImage:
    """An HDRImage from (H, W, 3) base codes and a gain map; the radiance is the rendition at full headroom.

    colour: of the base. alternate: the colour space in which the gain is applied (ISO 21496-1, section 6.1).
    """
    screen = replace(colour, transfer="srgb")
    light = np.asarray(colour.decode(np.arange(256) / 255.0), np.float32)
    to_screen = np.rint(np.asarray(srgb_encode(light)) * 255).astype(np.uint8)
    if alternate.chromaticities != colour.chromaticities:
        metadata["alternate_colour"] = {"name": alternate.name, "chromaticities": alternate.chromaticities}
    if base_is_hdr:
        # The file's base is the HDR rendition: take the gain away from it, and what is left is the SDR photo.
        metadata["notes"].append("the file's main picture is the HDR rendition; the SDR photo was made from it")
        sdr = apply_gain(base_codes, light, gain_map, colour, alternate, weight=-1.0)
        base = np.rint(np.clip(srgb_encode(sdr), 0, 1) * 255).astype(np.uint8)
        radiance = light.take(base_codes)
    else:
        radiance = apply_gain(base_codes, light, gain_map, colour, alternate)
        base = base_codes if (to_screen == np.arange(256)).all() else to_screen.take(base_codes)
    return HDRImage(radiance, base, gain_map, content="rendition", colour=screen, base_colour=screen, exif=exif, metadata=metadata)


def apply_gain(
    base_codes: NDArray[np.uint8],
    light: F32,
    gain_map: GainMap,
    colour: ColourSpace,
    alternate: ColourSpace,
    weight: float = 1.0,
) -> F32:
    """(H, W, 3) display-linear light in the base's primaries; `GainMap.apply` in strips, with tables over codes.

    light: (256,) linear value of each base code. weight: how much of the gain, 0..1 (`GainMapMetadata.weight`); -1 takes all
    of it away from an HDR base. Where the alternate's primaries are wider than the base's, values may be negative.
    """
    height, width = base_codes.shape[:2]
    out = np.empty(base_codes.shape, np.float32)
    there = back = None
    if alternate.chromaticities != colour.chromaticities:
        there = colour.matrix_to(alternate).astype(np.float32)
        back = alternate.matrix_to(colour).astype(np.float32)
    m = gain_map.metadata
    offsets = np.array([m.base_offset, m.alternate_offset], np.float32)
    add, subtract = offsets if weight >= 0 else offsets[::-1]
    light_table = np.repeat(light[:, None], 3, axis=1)[None]
    # log2_gain wants as many channels as the map has; a one-channel map may still have three ranges.
    levels = np.repeat((np.arange(256, dtype=np.float32) / np.float32(255))[:, None], 3, axis=1)
    factors = np.exp2(np.float32(weight) * m.log2_gain(levels))[None]
    full_size = gain_map.codes.shape[:2] == (height, width)

    def strip(first: int, end: int) -> None:
        part = np.asarray(cv2.LUT(base_codes[first:end], light_table), np.float32)
        if there is not None:
            part = np.asarray(cv2.transform(part, there), np.float32)
        part += add
        if full_size:
            codes = gain_map.codes[first:end]
            part *= np.asarray(cv2.LUT(codes if codes.shape[2] == 3 else cv2.merge([codes] * 3), factors), np.float32)
        else:
            stored = enlarged_rows(gain_map.codes, first, end, height, width)
            stored *= np.float32(1 / 255)
            part *= np.exp2(np.float32(weight) * m.log2_gain(np.repeat(stored, 3, axis=2) if stored.shape[2] == 1 else stored))
        part -= subtract
        np.maximum(part, 0, out=part)
        out[first:end] = part if back is None else cv2.transform(part, back)

    for_each_strip(strip, height)
    return out


# ---- HEIC ---------------------------------------------------------------------------------------------------------------


def _read_heic(place: Path, accept: Accept, max_pixels: int) -> HDRImage:
    """A HEIC photo: PQ, or SDR with or without a gain map of Apple's, Samsung's or Adobe's kind."""
    found = heic.open_hdr(place, accept)
    if found.pq_codes is not None:
        return pq.from_codes(found.pq_codes, found.primaries, "HEIC, PQ", found.exif)
    photo = read_photo(place, max_pixels=max_pixels)
    notes = [*(n for n in photo.notes if "gain map" not in n), *found.notes]
    if found.gain_map is None:
        image = _plain(place, max_pixels)
        return replace(image, metadata={"format": "HEIC photo (SDR)", "notes": notes})
    codes = photo.encoded if photo.encoded.dtype == np.uint8 else (photo.encoded >> 8).astype(np.uint8)
    if (codes.shape[0] > codes.shape[1]) != (found.gain_map.codes.shape[0] > found.gain_map.codes.shape[1]):
        notes.append("the gain map lies across the photo and is ignored")
        return replace(_plain(place, max_pixels), metadata={"format": "HEIC photo (SDR)", "notes": notes})
    metadata = {"format": found.kind, "notes": notes, "forms": list(found.forms), "disagreement": None}
    return from_gain_map(codes, found.gain_map, photo.colour, photo.colour, False, photo.exif, metadata)
