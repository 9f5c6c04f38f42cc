"""Ultra HDR JPEG: bytes to and from a base JPEG, a gain-map JPEG and its metadata.

A file is the base JPEG with the map JPEG behind it (Ultra HDR image format 1.1; CIPA DC-007 for the MPF index; ISO 21496-1
annex C for its APP2 segments). Written files carry both forms of metadata and both indexes. The reader takes the map from
wherever it is: the MPF index, the GContainer directory, or simply the next JPEG behind the first one's end.
Pixels are not decoded here. Malformed input raises FileFormatError, nothing else.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from gmodiff.errors import FileFormatError, InputError
from gmodiff.gainmap import GainMapMetadata
from gmodiff.hdrgm import ISO_VERSION, Packet, StoredMetadata, iso_bytes, map_xmp, primary_xmp, read_iso, read_packet

EXIF_HEADER = b"Exif\0\0"
XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
ISO_HEADER = b"urn:iso:std:iso:ts:21496:-1\0"
MPF_HEADER = b"MPF\0"
ICC_HEADER = b"ICC_PROFILE\0"

MAX_SEGMENT = 65533
"""Most bytes that one JPEG segment can hold behind its length."""
MAX_EXIF = MAX_SEGMENT - len(EXIF_HEADER)
"""Largest EXIF block that fits the one segment it has (Exif 2.32, section 4.5.4)."""

_SOI, _EOI, _SOS, _APP1, _APP2 = 0xD8, 0xD9, 0xDA, 0xE1, 0xE2
_MAX_SEGMENTS, _MAX_IMAGES = 4096, 32


@dataclass(frozen=True)
class Parts:
    """What a JPEG file holds.

    base: the primary JPEG. gain_map: the map's JPEG, None where the file is a plain photo. stored: its metadata.
    exif: TIFF structure without prefix. icc / map_icc: profiles of base and map. facts: our own XMP facts.
    forms: which of "iso", "xmp", "mpf", "gcontainer" describe the map. disagreement: largest difference between the two
    metadata forms, None where there is only one. notes: sentences about what is odd.
    """

    base: bytes = field(repr=False)
    gain_map: bytes | None = field(default=None, repr=False)
    stored: StoredMetadata | None = None
    exif: bytes | None = field(default=None, repr=False)
    icc: bytes | None = field(default=None, repr=False)
    map_icc: bytes | None = field(default=None, repr=False)
    facts: Mapping[str, str] = field(default_factory=dict)
    forms: tuple[str, ...] = ()
    disagreement: float | None = None
    notes: tuple[str, ...] = ()


# ---- writing ------------------------------------------------------------------------------------------------------------


def join(
    base: bytes,
    gain_map: bytes,
    metadata: GainMapMetadata,
    *,
    exif: bytes | None = None,
    icc: bytes | None = None,
    map_icc: bytes | None = None,
    facts: Mapping[str, str] | None = None,
    creator: str = "GMODiff",
) -> bytes:
    """One Ultra HDR file from two JPEGs, whose pixels are kept to the last bit.

    APP1 and APP2 segments that base and gain_map bring are replaced by what is given here. map_icc is for a map with
    use_base_colour_space = False: the colour space of the HDR rendition. Raises InputError where a part is not a JPEG or
    does not fit its segment.
    """
    map_segments = [(_APP1, XMP_HEADER + map_xmp(metadata)), (_APP2, ISO_HEADER + iso_bytes(metadata)), *_icc_segments(map_icc)]
    second = _with_segments(gain_map, map_segments, "gain map")
    exif_segment = [(_APP1, EXIF_HEADER + exif)] if exif else []
    xmp = primary_xmp(len(second), facts or {}, creator)
    before = [*exif_segment, (_APP1, XMP_HEADER + xmp), (_APP2, ISO_HEADER + ISO_VERSION)]
    after = _icc_segments(icc)
    # The index holds lengths only, so its own size does not depend on them: measure once, then fill in.
    length = len(_with_segments(base, [*before, (_APP2, _mpf(0, 0, 0)), *after], "base image"))
    mark = 2 + sum(4 + len(payload) for _, payload in before) + 4 + len(MPF_HEADER)
    first = _with_segments(base, [*before, (_APP2, _mpf(length, len(second), length - mark)), *after], "base image")
    return first + second


def with_metadata(jpeg: bytes, *, exif: bytes | None = None, icc: bytes | None = None, xmp: bytes | None = None) -> bytes:
    """A plain JPEG with its APP1 and APP2 segments replaced by the given ones."""
    segments = [(_APP1, EXIF_HEADER + exif)] if exif else []
    segments += [(_APP1, XMP_HEADER + xmp)] if xmp else []
    return _with_segments(jpeg, [*segments, *_icc_segments(icc)], "image")


def _with_segments(jpeg: bytes, segments: list[tuple[int, bytes]], what: str) -> bytes:
    try:
        image = _walk(jpeg, 0)
    except FileFormatError as reason:
        raise InputError(f"{what} is not a JPEG: {reason}") from reason
    out = [b"\xff\xd8"]
    for marker, payload in segments:
        if len(payload) > MAX_SEGMENT:
            raise InputError(f"{what}: metadata of {len(payload)} bytes does not fit a JPEG segment of {MAX_SEGMENT}")
        out += [struct.pack(">BBH", 0xFF, marker, len(payload) + 2), payload]
    at = 2
    for _, start, end in image.metadata:
        out.append(jpeg[at : start - 4])
        at = end
    return b"".join([*out, jpeg[at:]])


def _icc_segments(icc: bytes | None) -> list[tuple[int, bytes]]:
    """A profile in as many numbered segments as it takes (ICC.1:2022, annex B.4)."""
    if not icc:
        return []
    room = MAX_SEGMENT - len(ICC_HEADER) - 2
    pieces = [icc[i : i + room] for i in range(0, len(icc), room)]
    return [(_APP2, ICC_HEADER + bytes([i, len(pieces)]) + piece) for i, piece in enumerate(pieces, start=1)]


def _mpf(first_length: int, second_length: int, second_offset: int) -> bytes:
    """The index of two images (CIPA DC-007, section 5.2): version, number of images, and one entry of 16 bytes each."""
    entries = struct.pack(">IIIHH", 0x030000, first_length, 0, 0, 0) + struct.pack(">IIIHH", 0, second_length, second_offset, 0, 0)
    ifd = struct.pack(">H", 3) + struct.pack(">HHI4s", 0xB000, 7, 4, b"0100") + struct.pack(">HHII", 0xB001, 4, 1, 2)
    ifd += struct.pack(">HHII", 0xB002, 7, len(entries), 8 + len(ifd) + 12 + 4) + struct.pack(">I", 0)
    return MPF_HEADER + b"MM\0*" + struct.pack(">I", 8) + ifd + entries


# ---- reading ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Image:
    """One JPEG inside the data: where it ends (None: it does not), and its APP1 and APP2 payloads as (marker, start, end)."""

    end: int | None
    metadata: tuple[tuple[int, int, int], ...]


_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
_NOT_FILL = re.compile(rb"[^\xff]", re.DOTALL)


def _walk(data: bytes, start: int) -> _Image:
    """Follow the markers of the JPEG at start (ITU-T T.81, annex B)."""
    if data[start : start + 2] != b"\xff\xd8":
        raise FileFormatError("no JPEG start marker")
    metadata: list[tuple[int, int, int]] = []
    at, in_scan = start + 2, False
    for _ in range(_MAX_SEGMENTS):
        if in_scan:
            found = _NEXT_MARKER.search(data, at)
            if found is None:
                return _Image(None, tuple(metadata))
            at = found.start()
        if data[at : at + 2] == b"\xff\xff":  # fill bytes
            solid = _NOT_FILL.search(data, at)
            at = len(data) if solid is None else solid.start() - 1
        if at + 4 > len(data) and data[at : at + 2] != b"\xff\xd9":
            if in_scan:
                return _Image(None, tuple(metadata))
            raise FileFormatError("the JPEG header is truncated")
        marker = data[at + 1]
        if data[at] != 0xFF or marker in (0x00, 0x01, _SOI) or 0xD0 <= marker <= 0xD7:
            if in_scan:
                return _Image(None, tuple(metadata))
            raise FileFormatError(f"no JPEG marker at byte {at}")
        if marker == _EOI:
            return _Image(at + 2, tuple(metadata))
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + length
        if length < 2 or end > len(data):
            if in_scan:
                return _Image(None, tuple(metadata))
            raise FileFormatError(f"a JPEG segment of {length} bytes at byte {at} does not fit the file")
        if marker in (_APP1, _APP2) and not in_scan:
            metadata.append((marker, at + 4, end))
        in_scan = in_scan or marker == _SOS
        at = end
    return _Image(None, tuple(metadata))


def _payload(data: bytes, image: _Image, marker: int, header: bytes) -> tuple[bytes, int] | None:
    """The first payload with that header, without it, and where it starts."""
    for kind, start, end in image.metadata:
        if kind == marker and data.startswith(header, start, end):
            return data[start + len(header) : end], start + len(header)
    return None


def _icc(data: bytes, image: _Image) -> bytes | None:
    pieces = {}
    for kind, start, end in image.metadata:
        if kind == _APP2 and data.startswith(ICC_HEADER, start, end) and end - start > len(ICC_HEADER) + 2:
            pieces[data[start + len(ICC_HEADER)]] = data[start + len(ICC_HEADER) + 2 : end]
    return b"".join(pieces[i] for i in sorted(pieces)) or None


def _packet(data: bytes, image: _Image) -> Packet:
    found = _payload(data, image, _APP1, XMP_HEADER)
    return Packet() if found is None else read_packet(found[0])


def split(data: bytes) -> Parts:
    """Take a JPEG file apart; a photo without a gain map is a base alone.

    Where both metadata forms are there ISO 21496-1 is used, and the difference is reported. Raises FileFormatError where the
    file is not a JPEG or its gain map cannot be understood.
    """
    primary = _walk(data, 0)
    notes: list[str] = []
    try:
        packet = _packet(data, primary)
    except FileFormatError as reason:
        packet = Packet()
        notes.append(f"the photo's XMP is ignored: {reason}")
    exif = _payload(data, primary, _APP1, EXIF_HEADER)
    photo = Parts(
        base=data if primary.end is None else data[: primary.end],
        exif=exif[0] if exif else None,
        icc=_icc(data, primary),
        facts=packet.facts,
    )

    places = _places(data, primary, packet)
    indexed = {start for starts in places.values() for start in starts}
    scanned = _scan(data, primary.end)
    for start in (*sorted(indexed), *scanned):
        image = _candidate(data, start)
        if image is None:
            continue
        outer = packet if start in indexed and packet.has_metadata else None
        found = _metadata(data, image, outer, notes)
        if found is None:
            continue
        stored, forms, disagreement = found
        forms += tuple(name for name, starts in places.items() if start in starts)
        notes += [f"the {name} index does not point at the gain map" for name, starts in places.items() if starts and start not in starts]
        return replace(
            photo,
            base=photo.base if len(photo.base) <= start else data[:start],
            gain_map=data[start : image.end],
            stored=stored,
            map_icc=_icc(data, image),
            forms=forms,
            disagreement=disagreement,
            notes=tuple(notes),
        )
    if "Version" in packet.hdrgm:
        notes.append("the photo says that it has a gain map, but there is none: a program that edited the file dropped it")
    return replace(photo, notes=tuple(notes))


def _places(data: bytes, primary: _Image, packet: Packet) -> dict[str, tuple[int, ...]]:
    """Where the two indexes say that further images start."""
    mpf = _payload(data, primary, _APP2, MPF_HEADER)
    return {"mpf": _mpf_places(*mpf) if mpf else (), "gcontainer": _container_places(data, primary, packet)}


def _mpf_places(payload: bytes, mark: int) -> tuple[int, ...]:
    """Starts of the images behind the first, from an MPF index of either byte order; nothing where it is damaged."""
    order = {b"MM\0*": ">", b"II*\0": "<"}.get(payload[:4])
    if order is None or len(payload) < 10:
        return ()
    ifd = struct.unpack_from(order + "I", payload, 4)[0]
    if ifd + 2 > len(payload):
        return ()
    count = struct.unpack_from(order + "H", payload, ifd)[0]
    for i in range(min(count, (len(payload) - ifd - 2) // 12)):
        tag, _, size, offset = struct.unpack_from(order + "HHII", payload, ifd + 2 + 12 * i)
        if tag == 0xB002 and offset + size <= len(payload):
            entries = [struct.unpack_from(order + "III", payload, offset + 16 * k) for k in range(min(size // 16, _MAX_IMAGES))]
            return tuple(mark + entry[2] for entry in entries if entry[2])
    return ()


def _container_places(data: bytes, primary: _Image, packet: Packet) -> tuple[int, ...]:
    """Start of the gain map by the GContainer directory: items lie one behind the other, after the primary and its padding."""
    if primary.end is None:
        return ()
    at = primary.end
    for i, item in enumerate(packet.items[:_MAX_IMAGES]):
        length, padding = (int(item.get(name, "0")) if item.get(name, "0").isdecimal() else 0 for name in ("Length", "Padding"))
        if i == 0:
            at += padding
        elif item.get("Semantic") == "GainMap":
            return (at,)
        else:
            at += length + padding
        if at >= len(data):
            break
    return ()


def _scan(data: bytes, end: int | None) -> Iterator[int]:
    """Starts of JPEGs behind the primary's end."""
    at = end
    for _ in range(_MAX_IMAGES):
        if at is None or (at := data.find(b"\xff\xd8\xff", at)) < 0:
            return
        yield at
        image = _candidate(data, at)
        at = image.end if image is not None else at + 2


def _candidate(data: bytes, start: int) -> _Image | None:
    try:
        return _walk(data, start) if start > 0 else None
    except FileFormatError:
        return None


def _metadata(
    data: bytes, image: _Image, outer: Packet | None, notes: list[str]
) -> tuple[StoredMetadata, tuple[str, ...], float | None] | None:
    """The metadata of an image, which forms hold it, and their difference; None where it is not a gain map."""
    found: dict[str, StoredMetadata] = {}
    errors: list[FileFormatError] = []
    iso = _payload(data, image, _APP2, ISO_HEADER)
    if iso is not None and len(iso[0]) > len(ISO_VERSION):
        try:
            found["iso"] = read_iso(iso[0])
        except FileFormatError as reason:
            errors.append(reason)
    try:
        inner = _packet(data, image)
        packet = inner if inner.has_metadata or outer is None else outer
        if packet.has_metadata:
            found["xmp"] = packet.metadata()
    except FileFormatError as reason:
        errors.append(reason)
    if not found:
        if errors:
            raise errors[0]
        return None
    notes += [f"ignored: {reason}" for reason in errors]
    disagreement = found["iso"].difference(found["xmp"]) if len(found) == 2 else None
    if disagreement is not None and disagreement > 1e-3:
        notes.append(f"XMP and ISO 21496-1 metadata differ by up to {disagreement:.3g}; ISO is used")
    return found.get("iso") or found["xmp"], tuple(found), disagreement
