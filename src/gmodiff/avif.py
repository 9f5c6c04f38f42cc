"""AVIF containers: what imagecodecs leaves out. Content light level, EXIF and XMP into a file; code points out of one.

An AVIF file is a list of boxes (ISO/IEC 14496-12, 23008-12). The encoded picture is kept to the last bit; the boxes around it
are written anew. Malformed input raises FileFormatError, nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from gmodiff.errors import FileFormatError


class Box(NamedTuple):
    """One box: its type, and where its payload starts and ends."""

    kind: bytes
    start: int
    end: int


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """The boxes between start and end, one level deep."""
    stop = len(data) if end is None else end
    while start + 8 <= stop:
        size, kind = struct.unpack_from(">I4s", data, start)
        header = 8
        if size == 1 and start + 16 <= stop:
            size, header = struct.unpack_from(">Q", data, start + 8)[0], 16
        elif size == 0:
            size = stop - start
        if size < header or start + size > stop:
            raise FileFormatError(f"box {kind.decode('latin-1')!r} of {size} bytes at byte {start} does not fit the file")
        yield Box(kind, start + header, start + size)
        start += size


def _child(data: bytes, parent: Box, kind: bytes, skip: int = 0) -> Box:
    for box in boxes(data, parent.start + skip, parent.end):
        if box.kind == kind:
            return box
    raise FileFormatError(f"box {kind.decode('latin-1')!r} is missing")


def _meta(data: bytes) -> Box:
    for box in boxes(data):
        if box.kind == b"meta":
            return box
    raise FileFormatError("box 'meta' is missing")


def code_points(data: bytes) -> tuple[int, int, int] | None:
    """Colour primaries, transfer characteristics, matrix coefficients (ITU-T H.273) of the file; None where it does not say."""
    properties = _child(data, _child(data, _meta(data), b"iprp", 4), b"ipco")
    for box in boxes(data, properties.start, properties.end):
        if box.kind == b"colr" and data[box.start : box.start + 4] == b"nclx" and box.end - box.start >= 10:
            primaries, transfer, matrix = struct.unpack_from(">HHH", data, box.start + 4)
            return primaries, transfer, matrix
    return None


def size_and_depth(data: bytes) -> tuple[int, int, int]:
    """Width and height of the largest picture in the file, and its bits per channel (AV1 ISOBMFF binding, section 2.3)."""
    properties = _child(data, _child(data, _meta(data), b"iprp", 4), b"ipco")
    sizes, depth = [], 8
    for box in boxes(data, properties.start, properties.end):
        if box.kind == b"ispe" and box.end - box.start >= 12:
            sizes.append(struct.unpack_from(">II", data, box.start + 4))
        elif box.kind == b"av1C" and box.end - box.start >= 4:
            flags = data[box.start + 2]
            depth = max(depth, 12 if flags & 0x60 == 0x60 else 10 if flags & 0x40 else 8)
    if not sizes:
        raise FileFormatError("the AVIF file does not say how large its picture is")
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return width, height, depth


def rewrap(data: bytes, *, max_cll: int, max_fall: int, exif: bytes | None = None, xmp: bytes | None = None) -> bytes:
    """The picture of an AVIF file with one image item, in a new container with metadata.

    max_cll, max_fall: cd/m2 (CTA-861.3). exif: TIFF structure without prefix.
    """
    try:
        return _rewrap(data, max_cll, max_fall, exif, xmp)
    except (struct.error, IndexError) as reason:
        raise FileFormatError(f"the AVIF container is damaged: {reason}") from reason


def _rewrap(data: bytes, max_cll: int, max_fall: int, exif: bytes | None, xmp: bytes | None) -> bytes:
    meta = _meta(data)
    picture = struct.unpack_from(">H", data, _child(data, meta, b"pitm", 4).start + 4)[0]
    coded = _item_data(data, _child(data, meta, b"iloc", 4), picture)
    properties = _item_properties(data, _child(data, meta, b"iprp", 4), picture)
    properties.append((_box(b"clli", struct.pack(">HH", min(max_cll, 65535), min(max_fall, 65535))), False))

    items = [(b"av01", b"", coded)]
    if exif:
        items.append((b"Exif", b"", struct.pack(">I", 0) + exif))
    if xmp:
        items.append((b"mime", b"application/rdf+xml\0", xmp))
    entries = b"".join(
        _box(b"infe", struct.pack(">BxxxHH4s", 2, number, 0, kind) + b"\0" + content)
        for number, (kind, content, _) in enumerate(items, start=1)
    )
    references = b"".join(_box(b"cdsc", struct.pack(">HHH", number, 1, 1)) for number in range(2, len(items) + 1))
    associations = b"".join(bytes([0x80 * essential | i]) for i, (_, essential) in enumerate(properties, start=1))
    fixed = [
        _box(b"hdlr", struct.pack(">II4s12x", 0, 0, b"pict") + b"\0"),
        _box(b"pitm", struct.pack(">IH", 0, 1)),
        _box(b"iinf", struct.pack(">IH", 0, len(items)) + entries),
        _box(b"iref", b"\0\0\0\0" + references) if references else b"",
        _box(
            b"iprp",
            _box(b"ipco", b"".join(box for box, _ in properties))
            + _box(b"ipma", struct.pack(">IIHB", 0, 1, 1, len(properties)) + associations),
        ),
    ]
    file_type = next(_box(b"ftyp", data[b.start : b.end]) for b in boxes(data) if b.kind == b"ftyp")

    def locations(first: int) -> bytes:
        out, at = struct.pack(">IHH", 0, 0x4400, len(items)), first
        for number, (_, _, payload) in enumerate(items, start=1):
            out += struct.pack(">HHHII", number, 0, 1, at, len(payload))
            at += len(payload)
        return _box(b"iloc", out)

    def head(first: int) -> bytes:
        return file_type + _box(b"meta", b"\0\0\0\0" + b"".join([*fixed, locations(first)]))

    start = len(head(0)) + 8
    return head(start) + _box(b"mdat", b"".join(payload for _, _, payload in items))


def _box(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I4s", len(payload) + 8, kind) + payload


def _item_data(data: bytes, iloc: Box, item: int) -> bytes:
    """The extents of one item put together (ISO/IEC 14496-12, section 8.11.3), for items stored in the file itself."""
    at = iloc.start
    version, sizes = data[at], struct.unpack_from(">H", data, at + 4)[0]
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    wide = version == 2
    at += 6

    def number(size: int) -> int:
        nonlocal at
        value = int.from_bytes(data[at : at + size], "big")
        at += size
        return value

    for _ in range(number(4 if wide else 2)):
        identity = number(4 if wide else 2)
        method = number(2) & 15 if version else 0
        number(2)
        base, extents = number(base_size), []
        for _ in range(number(2)):
            number(index_size if version else 0)
            offset = number(offset_size)
            extents.append((base + offset, number(length_size)))
        if identity == item:
            if method or any(start + length > len(data) for start, length in extents):
                raise FileFormatError("the AVIF picture is not stored in the file itself")
            return b"".join(data[start : start + length] for start, length in extents)
        if at > iloc.end:
            break
    raise FileFormatError("the AVIF file does not say where its picture is")


def _item_properties(data: bytes, iprp: Box, item: int) -> list[tuple[bytes, bool]]:
    """The property boxes of one item, in its order, each with its flag "essential"; any content light level left out."""
    stored = list(boxes(data, *_child(data, iprp, b"ipco")[1:]))
    ipma = _child(data, iprp, b"ipma")
    version, wide = data[ipma.start], data[ipma.start + 3] & 1
    at = ipma.start + 8
    for _ in range(struct.unpack_from(">I", data, ipma.start + 4)[0]):
        identity = struct.unpack_from(">I" if version else ">H", data, at)[0]
        at += 4 if version else 2
        count, at = data[at], at + 1
        links = struct.unpack_from(f">{count}{'H' if wide else 'B'}", data, at)
        at += count * (2 if wide else 1)
        if identity == item:
            top = 0x8000 if wide else 0x80
            chosen = [(stored[(link & (top - 1)) - 1], bool(link & top)) for link in links if link & (top - 1)]
            return [(_box(b.kind, data[b.start : b.end]), essential) for b, essential in chosen if b.kind != b"clli"]
    raise FileFormatError("the AVIF picture has no properties")
