"""EXIF blocks: the few facts a bracket needs, and a clean block for the output. NumPy-free, bounds-checked, never raises on damage.

An EXIF block is a TIFF structure (Exif 3.0, section 4.6): a byte order, then directories ("IFDs") of 12-byte entries.
Camera files store offsets into the block inside their maker notes, so a block is patched in place where that is possible.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

MAX_BLOCK_BYTES = 65_500
"""A JPEG APP1 segment holds 65533 bytes, six of which are the prefix "Exif\\0\\0"."""

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_MAX_ENTRIES = 2000
_MAX_VALUE_BYTES = 1 << 20

MAKE, MODEL, ORIENTATION, DATETIME, SUB_IFDS, EXIF_IFD, GPS_IFD = 0x010F, 0x0110, 0x0112, 0x0132, 0x014A, 0x8769, 0x8825
EXPOSURE_TIME, F_NUMBER, ISO, SENSITIVITY_TYPE, DATETIME_ORIGINAL = 0x829A, 0x829D, 0x8827, 0x8830, 0x9003
SHUTTER_SPEED_VALUE, APERTURE_VALUE, MAKER_NOTE, COLOUR_SPACE, INTEROP_IFD = 0x9201, 0x9202, 0x927C, 0xA001, 0xA005
PIXEL_X, PIXEL_Y, LENS_MODEL, PHOTOMETRIC, DNG_VERSION = 0xA002, 0xA003, 0xA434, 0x0106, 0xC612
THUMBNAIL_OFFSET, THUMBNAIL_LENGTH = 0x0201, 0x0202
WIDTH, HEIGHT, EXPOSURE_BIAS, FOCAL_LENGTH, SUBSECOND = 0x0100, 0x0101, 0x9204, 0x920A, 0x9291
EXPOSURE_MODE, BODY_SERIAL = 0xA402, 0xA431
MANUAL, AUTO_BRACKET = 1, 2
"""Of EXPOSURE_MODE (Exif 3.0, section 4.6.6.7)."""

_KEPT_IN_IFD0 = {0x010E, MAKE, MODEL, 0x011A, 0x011B, 0x0128, 0x0131, DATETIME, 0x013B, 0x8298, *range(0x9C9B, 0x9CA0)}
"""What a rebuilt block keeps of the first directory: description, camera, resolution, software, time, artist, copyright, XP texts."""


class Readable(Protocol):
    """bytes, or a memory map of a file."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> bytes: ...


class Entry(NamedTuple):
    """One value of a directory, still as bytes, and where its entry stands in the block."""

    kind: int
    length: int
    data: bytes
    position: int


Directory = dict[int, Entry]


@dataclass(frozen=True)
class ExifFacts:
    """What a bracket needs to know of a photo; None or "" where the file does not say, or says something impossible.

    orientation: 1 to 8 (Exif 3.0, section 4.6.5.2, tag 0x0112).   adobe_rgb: the file claims Adobe RGB the way cameras do (DCF 2.0).
    raw_sensor: a directory holds sensor data, or the DNG version tag is there.   notes: what was there but not usable.
    subsecond: digits after the point of datetime's seconds.   exposure_mode: 0 auto, MANUAL or AUTO_BRACKET.
    exposure_bias_stops: compensation, brighter = higher.   bracketing: the camera says, in Exif or its maker note, that it bracketed.
    bracket_stops: place in the bracket by the maker note (Canon, Nikon).   width, height: as stored, of TIFF structures; else 0.
    """

    orientation: int = 1
    exposure_time_s: float | None = None
    iso: float | None = None
    f_number: float | None = None
    camera: str = ""
    lens: str = ""
    datetime: str = ""
    adobe_rgb: bool = False
    raw_sensor: bool = False
    subsecond: str = ""
    focal_length_mm: float | None = None
    exposure_mode: int | None = None
    exposure_bias_stops: float | None = None
    bracketing: bool = False
    bracket_stops: float | None = None
    serial: str = ""
    width: int = 0
    height: int = 0
    notes: tuple[str, ...] = ()


class _Block:
    """A TIFF structure, read leniently: what lies outside it is simply not there."""

    def __init__(self, data: Readable) -> None:
        head = bytes(data[0:8])
        self.data = data
        self.order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4], "")
        self.ifd0_at = struct.unpack(self.order + "I", head[4:8])[0] if self.order and len(head) == 8 else 0
        self.ifd0, self.next_at, ifd1_at = self._directory(self.ifd0_at)
        self.ifd1 = self._directory(ifd1_at)[0]
        self.exif = self.linked(self.ifd0, EXIF_IFD)
        self.gps = self.linked(self.ifd0, GPS_IFD)

    def _directory(self, offset: int) -> tuple[Directory, int, int]:
        """(entries, position of the link to the next directory, that link); empty where there is none."""
        if not self.order or offset < 8 or offset + 6 > len(self.data):
            return {}, 0, 0
        count = struct.unpack(self.order + "H", self.data[offset : offset + 2])[0]
        table = self.data[offset + 2 : offset + 2 + 12 * count]
        if count > _MAX_ENTRIES or len(table) < 12 * count:
            return {}, 0, 0
        entries: Directory = {}
        for i in range(count):
            tag, kind, n = struct.unpack_from(self.order + "HHI", table, 12 * i)
            size = _TYPE_BYTES.get(kind, 0) * n
            if 0 < size <= 4:
                value = table[12 * i + 8 : 12 * i + 8 + size]
            else:
                at = struct.unpack_from(self.order + "I", table, 12 * i + 8)[0]
                value = self.data[at : at + size] if 0 < size <= _MAX_VALUE_BYTES else b""
            if len(value) == size > 0:
                entries.setdefault(tag, Entry(kind, n, bytes(value), offset + 2 + 12 * i))
        link_at = offset + 2 + 12 * count
        link = self.data[link_at : link_at + 4]
        return entries, link_at, struct.unpack(self.order + "I", link)[0] if len(link) == 4 else 0

    def linked(self, directory: Directory, tag: int) -> Directory:
        offsets = self.numbers(directory, tag)
        return self.directory_at(int(offsets[0])) if offsets else {}

    def directory_at(self, offset: int) -> Directory:
        return self._directory(offset)[0]

    def sub_directories(self) -> list[Directory]:
        return [self._directory(int(at))[0] for at in self.numbers(self.ifd0, SUB_IFDS)[:8]]

    def numbers(self, directory: Directory, tag: int) -> list[float]:
        """The numbers of a value; [] where it is absent, text, or divides by zero."""
        entry = directory.get(tag)
        code = {1: "B", 3: "H", 4: "I", 5: "II", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I"}.get(entry.kind if entry else 0)
        if entry is None or code is None:
            return []
        n = min(entry.length, 64)
        values = struct.unpack_from(f"{self.order}{code * n}", entry.data)
        if len(code) == 1:
            return [float(v) for v in values]
        pairs = list(zip(values[::2], values[1::2], strict=True))
        return [a / b for a, b in pairs] if all(b for _, b in pairs) else []

    def number(self, directory: Directory, tag: int) -> float | None:
        values = self.numbers(directory, tag)
        return values[0] if values else None

    def text(self, directory: Directory, tag: int) -> str:
        entry = directory.get(tag)
        raw = entry.data.split(b"\0")[0].decode("utf-8", "replace") if entry and entry.kind in (2, 7, 129) else ""
        return "".join(c for c in raw if c.isprintable()).strip()[:100]


def read_exif(data: Readable) -> ExifFacts:
    """The facts of an EXIF block, or of a whole TIFF, DNG, NEF, CR2 ... file (they are TIFF structures themselves)."""
    block = _Block(data)
    both = {**block.ifd0, **block.exif}
    notes: list[str] = []

    def plausible(value: float | None, name: str, low: float, high: float) -> float | None:
        if value is None or low <= value <= high:
            return value
        notes.append(f"{name} {value:g} in the metadata cannot be right and was ignored")
        return None

    time = block.number(both, EXPOSURE_TIME)
    if time is None and EXPOSURE_TIME in both:
        notes.append("the exposure time in the metadata is not a number and was ignored")
    tv, av = block.number(both, SHUTTER_SPEED_VALUE), block.number(both, APERTURE_VALUE)
    if time is None and tv is not None and abs(tv) < 24:
        time = 2.0**-tv  # APEX (Exif 3.0, annex C)
    f_number = block.number(both, F_NUMBER) or (2.0 ** (av / 2) if av and 0 < av < 24 else None)
    orientation = block.number(block.ifd0, ORIENTATION)
    make, model = block.text(block.ifd0, MAKE), block.text(block.ifd0, MODEL)
    interop = block.text(block.linked(block.exif, INTEROP_IFD), 1)
    pictures = (block.ifd0, *block.sub_directories())
    photometric = {block.number(d, PHOTOMETRIC) for d in pictures}
    sizes = [(int(block.number(d, WIDTH) or 0), int(block.number(d, HEIGHT) or 0)) for d in pictures]
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    mode = block.number(both, EXPOSURE_MODE)
    bias = block.number(both, EXPOSURE_BIAS)
    bracketing, place = _maker_bracket(block, make)
    return ExifFacts(
        orientation=int(orientation) if orientation is not None and orientation in range(1, 9) else 1,
        exposure_time_s=plausible(time, "exposure time", 1e-7, 1e5),
        iso=plausible(_sensitivity(block, both), "ISO", 1, 1e8),
        # 0 is what a camera writes for a lens that does not report its aperture: nothing worth a note.
        f_number=plausible(f_number or None, "f-number", 0.3, 1000),
        camera=model if model.lower().startswith(make.lower().split(" ")[0]) else f"{make} {model}".strip(),
        lens=block.text(both, LENS_MODEL),
        datetime=block.text(both, DATETIME_ORIGINAL) or block.text(block.ifd0, DATETIME),
        adobe_rgb=interop == "R03" and block.number(block.exif, COLOUR_SPACE) in (None, 2, 65535),
        raw_sensor=DNG_VERSION in block.ifd0 or bool(photometric & {32803, 34892}),
        subsecond=_digits(block.text(both, SUBSECOND)),
        focal_length_mm=plausible(block.number(both, FOCAL_LENGTH) or None, "focal length", 0.1, 1e5),
        exposure_mode=int(mode) if mode in (0, MANUAL, AUTO_BRACKET) else None,
        exposure_bias_stops=bias if bias is not None and abs(bias) <= 20 else None,
        bracketing=bracketing or mode == AUTO_BRACKET,
        bracket_stops=place,
        serial=block.text(both, BODY_SERIAL),
        width=width,
        height=height,
        notes=tuple(notes),
    )


def _digits(text: str) -> str:
    return "".join(c for c in text if c in "0123456789")[:6]


def _maker_bracket(block: _Block, make: str) -> tuple[bool, float | None]:
    """(the maker note says that the camera bracketed, this photo's place in it in stops); layouts as ExifTool documents them."""
    entry = block.exif.get(MAKER_NOTE)
    if entry is None or len(entry.data) < 18:
        return False, None
    note = entry.data
    at = struct.unpack(block.order + "I", block.data[entry.position + 8 : entry.position + 12])[0]
    if make.lower().startswith("canon"):
        shot = block.numbers(block.directory_at(at), 0x0004)  # ShotInfo; its 17th is the place, in 1/32 stops
        return False, _canon_stops(int(shot[17])) if len(shot) > 17 else None
    if note.startswith(b"Nikon\0\x02"):
        own = _Block(note[10:])  # a TIFF structure of its own
        return False, own.number(own.ifd0, 0x0019)
    if note.startswith(b"FUJIFILM"):
        own = _Block(b"II*\0" + note[8:12] + note[8:])  # offsets count from the note's start
        return own.number(own.ifd0, 0x1100) in (1, 2), None
    if note.startswith(b"Panasonic\0"):
        return (block.number(block.directory_at(at + 12), 0x0045) or 0) in range(1, 7), None
    return False, None


def _canon_stops(code: int) -> float:
    """Signed 1/32 stops in 16 bits, in which 12 and 20 stand for a third and two thirds."""
    code = code - 65536 if code >= 32768 else code
    whole, part = divmod(abs(code), 32)
    stops = whole + {12: 1 / 3, 20: 2 / 3}.get(part, part / 32)
    return -stops if code < 0 else stops


def _sensitivity(block: _Block, both: Directory) -> float | None:
    """ISO speed (Exif 3.0, section 4.6.6.6): the 16-bit tag, or its wider relatives where it is full or absent."""
    value = block.number(both, ISO)
    if value is not None and 0 < value < 65535:
        return value
    wider = {1: 0x8831, 2: 0x8832, 3: 0x8833}  # standard output sensitivity, recommended exposure index, ISO speed
    first = wider.get(int(block.number(both, SENSITIVITY_TYPE) or 0), 0x8832)
    for tag in (first, *wider.values()):
        candidate = block.number(both, tag)
        if candidate:
            return candidate
    return value or None


# ---- blocks for the output ------------------------------------------------------------------------------------------------


def clean_block(block: bytes, width: int, height: int) -> bytes | None:
    """The block, fit for an upright photo of this size: orientation 1, pixel dimensions set, no thumbnail.

    Patched in place, so that maker notes stay valid; rebuilt without them where the block is too long for a JPEG.
    None where the block is not EXIF.
    """
    tiff = _Block(block)
    if not tiff.ifd0:
        return None
    out = bytearray(block)
    for directory, tag, kind, value in (
        (tiff.ifd0, ORIENTATION, 3, 1),
        (tiff.exif, PIXEL_X, 4, width),
        (tiff.exif, PIXEL_Y, 4, height),
    ):
        if tag in directory:
            packed = struct.pack(tiff.order + ("HHIHH" if kind == 3 else "HHII"), tag, kind, 1, value, *((0,) if kind == 3 else ()))
            out[directory[tag].position : directory[tag].position + 12] = packed
    if tiff.ifd1:
        out[tiff.next_at : tiff.next_at + 4] = b"\0\0\0\0"
        start, length = (int(tiff.number(tiff.ifd1, tag) or 0) for tag in (THUMBNAIL_OFFSET, THUMBNAIL_LENGTH))
        if 8 < start < len(out):
            end = min(start + length, len(out))
            out[start:end] = b"\0" * (end - start)  # it shows the photo, perhaps from before a crop
            if len(out) - end < 16:
                del out[start:]
    if len(out) > MAX_BLOCK_BYTES:
        return rebuilt_block(block, width, height)
    return bytes(out)


def rebuilt_block(data: Readable, width: int, height: int) -> bytes | None:
    """A new block with the camera, time, exposure and GPS entries of a block or a TIFF or RAW file; no maker note; None if empty."""
    tiff = _Block(data)
    ifd0 = {tag: entry for tag, entry in tiff.ifd0.items() if tag in _KEPT_IN_IFD0}
    strays = {tag: entry for tag, entry in tiff.ifd0.items() if 0x8290 < tag < 0xA500 and tag in (EXPOSURE_TIME, F_NUMBER, ISO)}
    dropped = {MAKER_NOTE, INTEROP_IFD, PIXEL_X, PIXEL_Y}
    exif = {tag: entry for tag, entry in {**strays, **tiff.exif}.items() if tag not in dropped and len(entry.data) <= 4096}
    if not (ifd0 or exif or tiff.gps):
        return None
    exif |= {tag: Entry(4, 1, struct.pack(tiff.order + "I", size), 0) for tag, size in ((PIXEL_X, width), (PIXEL_Y, height))}
    block = _serialise(tiff.order, ifd0, exif, tiff.gps)
    return block if len(block) <= MAX_BLOCK_BYTES else _serialise(tiff.order, {}, {t: e for t, e in exif.items() if len(e.data) <= 16}, {})


def block_from_facts(facts: ExifFacts) -> bytes | None:
    """A small block with the facts themselves, for files whose metadata is not a TIFF structure; None where nothing is known."""

    def text(value: str) -> Entry:
        data = value.encode("utf-8") + b"\0"
        return Entry(2, len(data), data, 0)

    def rational(value: float) -> Entry:
        n, d = (round(value * 1000), 1000) if value >= 1 else (1_000_000, max(1, min(round(1e6 / value), 0xFFFFFFFF)))
        return Entry(5, 1, struct.pack("<II", min(n, 0xFFFFFFFF), d), 0)

    ifd0 = {tag: text(value) for tag, value in ((MODEL, facts.camera), (DATETIME, facts.datetime)) if value}
    exif = {LENS_MODEL: text(facts.lens)} if facts.lens else {}
    for tag, number in ((EXPOSURE_TIME, facts.exposure_time_s), (F_NUMBER, facts.f_number)):
        if number:
            exif[tag] = rational(number)
    if facts.iso:
        exif[ISO] = Entry(3, 1, struct.pack("<H", min(round(facts.iso), 65535)), 0)
    return _serialise("<", ifd0, exif, {}) if ifd0 or exif else None


def merge_facts(facts: ExifFacts, fallback: ExifFacts) -> ExifFacts:
    """facts, with what they lack taken from fallback."""
    names = ("exposure_time_s", "iso", "f_number", "camera", "lens", "datetime", "subsecond", "focal_length_mm", "exposure_mode",
             "exposure_bias_stops", "bracketing", "bracket_stops", "serial", "width", "height")  # fmt: skip
    return replace(facts, **{name: getattr(fallback, name) for name in names if not getattr(facts, name)})


def _serialise(order: str, ifd0: Mapping[int, Entry], exif: Mapping[int, Entry], gps: Mapping[int, Entry]) -> bytes:
    """A TIFF structure of up to three directories, entries sorted by tag (TIFF 6.0, section 2)."""
    order = order or "<"
    number = {"<": b"II*\0", ">": b"MM\0*"}[order]
    first: dict[int, Entry] = {**ifd0, ORIENTATION: Entry(3, 1, struct.pack(order + "H", 1), 0)}
    for tag, directory in ((EXIF_IFD, exif), (GPS_IFD, gps)):
        if directory:
            first[tag] = Entry(4, 1, b"\0\0\0\0", 0)
    body, at = b"", 8
    tables: list[tuple[int, Mapping[int, Entry]]] = []
    for directory in (first, exif, gps):
        if directory:
            tables.append((at, directory))
            at += 6 + 12 * len(directory)
    where = {EXIF_IFD: 0, GPS_IFD: 0}
    for offset, directory in tables[1:]:
        where[EXIF_IFD if directory is exif else GPS_IFD] = offset
    out = number + struct.pack(order + "I", 8)
    for _, directory in tables:
        out += struct.pack(order + "H", len(directory))
        for tag, entry in sorted(directory.items()):
            data = struct.pack(order + "I", where[tag]) if directory is first and tag in where else entry.data
            if len(data) <= 4:
                value = data.ljust(4, b"\0")
            else:
                value = struct.pack(order + "I", at + len(body))
                body += data + b"\0" * (len(data) % 2)
            out += struct.pack(order + "HHI", tag, entry.kind, entry.length) + value
        out += b"\0\0\0\0"
    return out + body
