"""How gain-map metadata is written in files: the ISO 21496-1 binary form and the hdrgm XMP packet, to and from GainMapMetadata.

Both forms describe the gain from the SDR to the HDR rendition, whichever of the two is the base image of the file, so the
metadata here always has `base_*` = SDR and `alternate_*` = HDR, and says apart whether the file's base is the HDR one.
Whatever is malformed raises FileFormatError, nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from gmodiff.errors import FileFormatError, InputError
from gmodiff.gainmap import OFFSET, GainMapMetadata, Triple
from gmodiff.radiometry import ColourSpace

HDRGM = "http://ns.adobe.com/hdr-gain-map/1.0/"
CONTAINER = "http://ns.google.com/photos/1.0/container/"
ITEM = "http://ns.google.com/photos/1.0/container/item/"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
XMP = "http://ns.adobe.com/xap/1.0/"
APPLE = "http://ns.apple.com/HDRGainMap/1.0/"
GMODIFF = "urn:gmodiff:1.0"
NO_NETWORK = "none"
"""Namespace of our own facts: what the file holds, under which look, and how much of it was measured."""

_MULTICHANNEL, _USE_BASE_COLOUR, _COMMON_DENOMINATOR, _BACKWARD = 0x80, 0x40, 0x08, 0x04


@dataclass(frozen=True)
class StoredMetadata:
    """What one form says. metadata: from SDR to HDR. base_is_hdr: the file's base image is the HDR rendition."""

    metadata: GainMapMetadata
    base_is_hdr: bool = False

    def difference(self, other: StoredMetadata) -> float:
        """Largest absolute difference between the two, over every number of both; infinite if the base image differs."""
        if self.base_is_hdr != other.base_is_hdr:
            return math.inf
        return max(abs(a - b) for a, b in zip(_numbers(self.metadata), _numbers(other.metadata), strict=True))


def _numbers(m: GainMapMetadata) -> tuple[float, ...]:
    return (*m.minimum, *m.maximum, *m.gamma, *m.base_offset, *m.alternate_offset, m.base_headroom, m.alternate_headroom)


def _stored(
    minimum: Triple,
    maximum: Triple,
    gamma: Triple,
    offsets: tuple[Triple, Triple],
    headrooms: tuple[float, float],
    base_is_hdr: bool,
    use_base: bool,
    form: str,
) -> StoredMetadata:
    """Checked metadata; offsets and headrooms are (SDR, HDR)."""
    low, high = headrooms
    if high < low:
        raise FileFormatError(f"{form} metadata: headroom runs from {low:g} down to {high:g}")
    if high - low < _LEAST_SPAN:
        # A scene without highlights may end up with equal headrooms; Skia then applies all of its (tiny) gain on any HDR screen.
        high = low + _LEAST_SPAN
    try:
        return StoredMetadata(GainMapMetadata(minimum, maximum, gamma, *offsets, low, high, use_base), base_is_hdr)
    except InputError as reason:
        raise FileFormatError(f"{form} metadata: {reason}") from reason


_LEAST_SPAN = 1e-3
"""Least distance of the two headrooms, in stops."""


# ---- ISO 21496-1, annex C.2: big-endian binary --------------------------------------------------------------------------

ISO_VERSION = b"\0\0\0\0"
"""minimum_version and writer_version, both 0: what the primary image carries."""


def iso_bytes(metadata: GainMapMetadata) -> bytes:
    """The binary form: 61 bytes, or 141 where the channels differ. Every fraction has its own denominator.

    Raises InputError for an HDR base, which this package never writes.
    """
    if metadata.base_headroom > metadata.alternate_headroom:
        raise InputError("a gain map whose base is the HDR rendition cannot be written; swap base and alternate")
    count = _channels(metadata)
    flags = (_MULTICHANNEL if count == 3 else 0) | (_USE_BASE_COLOUR if metadata.use_base_colour_space else 0)
    out = ISO_VERSION + bytes([flags]) + _fraction(metadata.base_headroom) + _fraction(metadata.alternate_headroom)
    for c in range(count):
        for values in (metadata.minimum, metadata.maximum, metadata.gamma, metadata.base_offset, metadata.alternate_offset):
            out += _fraction(values[c])
    return out


def _channels(m: GainMapMetadata) -> int:
    triples = (m.minimum, m.maximum, m.gamma, m.base_offset, m.alternate_offset)
    return 1 if all(t[0] == t[1] == t[2] for t in triples) else 3


def _rational(value: float) -> Fraction:
    """The nearest fraction whose parts fit 31 bits: within 1e-9 for the values of a gain map."""
    top = 2**31 - 1
    return Fraction(value).limit_denominator(int(top / max(abs(value), 1.0)))


def _fraction(value: float) -> bytes:
    number = _rational(value)
    return struct.pack(">iI", number.numerator, number.denominator)


def read_iso(data: bytes) -> StoredMetadata:
    """Metadata of the binary form, with or without a common denominator. Later versions may append fields: they are ignored."""
    if len(data) < 5:
        raise FileFormatError(f"ISO 21496-1 metadata: {len(data)} bytes, expected 61 or more")
    minimum_version = struct.unpack_from(">H", data)[0]
    if minimum_version != 0:
        raise FileFormatError(f"ISO 21496-1 metadata: needs version {minimum_version} of the standard, this reader knows 0")
    flags = data[4]
    count = 3 if flags & _MULTICHANNEL else 1
    common = bool(flags & _COMMON_DENOMINATOR)
    needed = 5 + (12 + 20 * count if common else 16 + 40 * count)
    if len(data) < needed:
        raise FileFormatError(f"ISO 21496-1 metadata: {len(data)} bytes, expected {needed}")
    at, denominator = 5, 0
    if common:
        denominator, at = struct.unpack_from(">I", data, 5)[0], 9

    def number(signed: bool) -> float:
        nonlocal at
        numerator = int.from_bytes(data[at : at + 4], "big", signed=signed)
        below = denominator if common else int.from_bytes(data[at + 4 : at + 8], "big")
        at += 4 if common else 8
        if below == 0:
            raise FileFormatError("ISO 21496-1 metadata: a denominator is 0")
        return numerator / below

    base_headroom, alternate_headroom = number(False), number(False)
    rows = [[number(True), number(True), number(False), number(True), number(True)] for _ in range(count)] * (4 - count)
    minimum, maximum, gamma, base_offset, alternate_offset = ((a, b, c) for a, b, c in zip(*rows[:3], strict=True))
    base_is_hdr = bool(flags & _BACKWARD) or base_headroom > alternate_headroom
    return _stored(
        minimum,
        maximum,
        gamma,
        (alternate_offset, base_offset) if base_is_hdr else (base_offset, alternate_offset),
        (min(base_headroom, alternate_headroom), max(base_headroom, alternate_headroom)),
        base_is_hdr,
        bool(flags & _USE_BASE_COLOUR),
        "ISO 21496-1",
    )


# ---- hdrgm XMP (Ultra HDR image format 1.1, Adobe gain map specification 1.0) -------------------------------------------


def _packet(namespaces: Mapping[str, str], attributes: Mapping[str, str], body: str = "") -> bytes:
    declared = "".join(f'\n    xmlns:{prefix}="{uri}"' for prefix, uri in namespaces.items())
    written = "".join(f"\n    {name}={quoteattr(value)}" for name, value in attributes.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
        f' <rdf:RDF xmlns:rdf="{RDF}">\n'
        f'  <rdf:Description rdf:about=""{declared}{written}>{body}</rdf:Description>\n'
        ' </rdf:RDF>\n</x:xmpmeta>\n<?xpacket end="w"?>'
    ).encode()


def primary_xmp(map_length: int, facts: Mapping[str, str], creator: str) -> bytes:
    """The primary image's packet: the directory of both images, map_length bytes for the second, and our own facts."""
    items = "".join(
        f'\n     <rdf:li rdf:parseType="Resource"><Container:Item Item:Semantic="{semantic}" Item:Mime="image/jpeg"{length}/></rdf:li>'
        for semantic, length in (("Primary", ""), ("GainMap", f' Item:Length="{map_length}"'))
    )
    body = f"\n   <Container:Directory><rdf:Seq>{items}\n   </rdf:Seq></Container:Directory>\n  "
    attributes = {"xmp:CreatorTool": creator, "hdrgm:Version": "1.0"} | {f"gmodiff:{k}": v for k, v in facts.items()}
    return _packet({"xmp": XMP, "hdrgm": HDRGM, "gmodiff": GMODIFF, "Container": CONTAINER, "Item": ITEM}, attributes, body)


def facts_xmp(facts: Mapping[str, str], creator: str) -> bytes:
    """A packet with our own facts alone, for files without a gain map."""
    return _packet({"xmp": XMP, "gmodiff": GMODIFF}, {"xmp:CreatorTool": creator} | {f"gmodiff:{k}": v for k, v in facts.items()})


def map_xmp(metadata: GainMapMetadata) -> bytes:
    """The gain map's packet. A value that differs between channels is an rdf:Seq of three, as Adobe's specification has it."""
    attributes, body = {"hdrgm:Version": "1.0"}, ""
    for name, values in (
        ("GainMapMin", metadata.minimum),
        ("GainMapMax", metadata.maximum),
        ("Gamma", metadata.gamma),
        ("OffsetSDR", metadata.base_offset),
        ("OffsetHDR", metadata.alternate_offset),
    ):
        texts = [_decimal(v) for v in values]
        if len(set(texts)) == 1:
            attributes[f"hdrgm:{name}"] = texts[0]
        else:
            steps = "".join(f"<rdf:li>{escape(t)}</rdf:li>" for t in texts)
            body += f"\n   <hdrgm:{name}><rdf:Seq>{steps}</rdf:Seq></hdrgm:{name}>"
    attributes["hdrgm:HDRCapacityMin"] = _decimal(metadata.base_headroom)
    attributes["hdrgm:HDRCapacityMax"] = _decimal(metadata.alternate_headroom)
    attributes["hdrgm:BaseRenditionIsHDR"] = "False"
    return _packet({"hdrgm": HDRGM}, attributes, body + ("\n  " if body else ""))


def _decimal(value: float) -> str:
    # The same rational as the binary form, so that the two agree beyond any reader's precision.
    number = _rational(value)
    return f"{number.numerator / number.denominator:.10g}"


@dataclass(frozen=True)
class Packet:
    """What an XMP packet says about gain maps.

    hdrgm: field name to its values (one or three). items: GContainer items in file order, field name to value.
    facts: our own. apple_headroom: linear HDRGainMapHeadroom of Apple's maps, None where absent.
    """

    hdrgm: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    items: tuple[Mapping[str, str], ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    apple_headroom: float | None = None

    @property
    def has_metadata(self) -> bool:
        """True where the packet holds the map's own fields and not just the version."""
        return "GainMapMax" in self.hdrgm or "HDRCapacityMax" in self.hdrgm

    def metadata(self) -> StoredMetadata:
        """The gain map's metadata, defaults of the specification filled in."""
        base_is_hdr = self._one("BaseRenditionIsHDR", "False").strip().lower() in ("true", "1")
        return _stored(
            self._triple("GainMapMin", 0.0),
            self._triple("GainMapMax"),
            self._triple("Gamma", 1.0),
            (self._triple("OffsetSDR", OFFSET), self._triple("OffsetHDR", OFFSET)),
            (self._triple("HDRCapacityMin", 0.0)[0], self._triple("HDRCapacityMax")[0]),
            base_is_hdr,
            True,
            "hdrgm XMP",
        )

    def _one(self, name: str, default: str) -> str:
        return self.hdrgm[name][0] if self.hdrgm.get(name) else default

    def _triple(self, name: str, default: float | None = None) -> Triple:
        texts = self.hdrgm.get(name, ())
        if not texts and default is not None:
            return default, default, default
        if len(texts) not in (1, 3):
            raise FileFormatError(f"hdrgm XMP metadata: {name} has {len(texts)} values, expected 1 or 3")
        values = []
        for text in texts:
            try:
                values.append(float(text))
            except ValueError:
                raise FileFormatError(f"hdrgm XMP metadata: {name} is {text[:40]!r}, expected a number") from None
            if not math.isfinite(values[-1]):
                raise FileFormatError(f"hdrgm XMP metadata: {name} is {text[:40]!r}, expected a finite number")
        r, g, b = values * (4 - len(values)) if len(values) == 1 else values
        return r, g, b


def read_packet(data: bytes) -> Packet:
    """Read an XMP packet with a streaming parser that refuses document types, hence entities and their explosions."""
    reader = _PacketReader()
    try:
        reader.parser.Parse(data.strip(b"\0 \t\r\n"), True)
    except (expat.ExpatError, ValueError, LookupError) as reason:  # LookupError: an unknown encoding is declared
        raise FileFormatError(f"XMP packet is not well-formed XML: {reason}") from None
    return reader.packet()


def find_packets(data: bytes) -> list[Packet]:
    """The readable XMP packets of any file, wherever they lie; those that are not well-formed are left out."""
    packets: list[Packet] = []
    for found in itertools.islice(re.finditer(rb"<x:xmpmeta\b", data), _MAX_PACKETS):
        end = data.find(b"</x:xmpmeta>", found.start(), found.start() + _MAX_PACKET_BYTES)
        if end >= 0:
            with contextlib.suppress(FileFormatError):
                packets.append(read_packet(data[found.start() : end + len(b"</x:xmpmeta>")]))
    return packets


_MAX_PACKETS, _MAX_PACKET_BYTES = 16, 1 << 20


def network_facts(metadata: Mapping[str, Any]) -> dict[str, str]:
    """XMP facts of what networks did, from an HDRImage's metadata: nothing where it does not say; "none" where there was no network."""
    if "network" not in metadata:
        return {}
    if metadata["network"] is None:
        return {"Network": NO_NETWORK}
    # XMP part 1, section 8.2.1.1: booleans are True and False.
    return {"Network": metadata["network"], "Refine": f"{metadata['refine']:g}", "NoiseReduced": str(bool(metadata["noise_reduced"]))}


def _network_metadata(facts: Mapping[str, str]) -> dict[str, Any]:
    """The reverse of `network_facts`; nothing where a fact is missing or makes no sense."""
    if facts.get("Network") == NO_NETWORK:
        return {"network": None, "refine": 0.0, "noise_reduced": False}
    try:
        refine = float(facts["Refine"])
        if not 0 <= refine <= 1:
            return {}
        return {"network": facts["Network"], "refine": refine, "noise_reduced": {"True": True, "False": False}[facts["NoiseReduced"]]}
    except (KeyError, ValueError):
        return {}


def facts_text(facts: Mapping[str, str]) -> str:
    """Our own facts as one line, for files that hold a comment and no XMP: the content, then name=value, between semicolons."""
    told = (f"{name}={value}" for name, value in facts.items() if name != "Content")
    return "; ".join(" ".join(part.replace(";", ",").split()) for part in (facts["Content"], *told))


def facts_of_text(line: str) -> dict[str, str]:
    """The reverse of `facts_text`; what is not of that form is left out."""
    content, *others = line.split("; ")
    named = (re.fullmatch(r"([A-Z][A-Za-z]+)=(.+)", part) for part in others)
    return {"Content": content} | {m[1]: m[2] for m in named if m}


def facts_metadata(facts: Mapping[str, str]) -> dict[str, Any]:
    """What our own facts say, as metadata of an HDRImage: "look", "provenance" in per cent, and "network", "refine" and
    "noise_reduced" as `pipeline.finished` has them.
    """
    out = _network_metadata(facts)
    content = facts.get("Content", "")
    if content:
        out["content"] = content
    if content.startswith("rendition: "):
        out["look"] = content.removeprefix("rendition: ")
    try:
        shares = {f"{k}_percent": float(facts[f"{k.capitalize()}Percent"]) for k in ("measured", "aligned", "inferred")}
    except (KeyError, ValueError):
        return out
    return out | {"provenance": shares}


def alternate_colour(metadata: Mapping[str, Any]) -> ColourSpace | None:
    """The colour space in which an HDRImage's gain map works, from its metadata; None where it is the base's."""
    stated = metadata.get("alternate_colour")
    if stated is None:
        return None
    r, g, b, white = ((float(x), float(y)) for x, y in stated["chromaticities"])
    return ColourSpace(str(stated["name"]), (r, g, b, white))


class _PacketReader:
    """Collects hdrgm values, GContainer items and our facts from attributes and elements alike; RDF allows either."""

    def __init__(self) -> None:
        self.hdrgm: dict[str, list[str]] = {}
        self.items: list[dict[str, str]] = []
        self.facts: dict[str, str] = {}
        self.apple: str | None = None
        self.path: list[tuple[str, str]] = []
        self.text = ""
        self.parser = expat.ParserCreate(namespace_separator=" ")
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters

    def packet(self) -> Packet:
        try:
            apple = None if self.apple is None else float(self.apple)
        except ValueError:
            apple = None
        hdrgm = {name: tuple(values) for name, values in self.hdrgm.items()}
        return Packet(hdrgm, tuple(self.items), self.facts, apple)

    def _refuse(self, *_: object) -> None:
        raise FileFormatError("XMP packet declares a document type, which XMP does not allow")

    def _characters(self, text: str) -> None:
        self.text += text

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self.text = ""
        self.path.append(_split_name(name))
        in_directory = (CONTAINER, "Directory") in self.path
        if in_directory and self.path[-1] == (RDF, "li"):
            self.items.append({})
        for key, value in attributes.items():
            self._value(_split_name(key), value)

    def _end(self, _: str) -> None:
        text, name = self.text.strip(), self.path[-1]
        self.text = ""
        if text:
            if name == (RDF, "li"):
                owner = next((n for n in reversed(self.path) if n[0] == HDRGM), None)
                if owner is not None:
                    self.hdrgm.setdefault(owner[1], []).append(text)
            else:
                self._value(name, text)
        self.path.pop()

    def _value(self, name: tuple[str, str], value: str) -> None:
        space, local = name
        if space == HDRGM:
            self.hdrgm[local] = [value]
        elif space == ITEM and self.items:
            self.items[-1][local] = value
        elif space == GMODIFF:
            self.facts[local] = value
        elif space == APPLE and local == "HDRGainMapHeadroom":
            self.apple = value


def _split_name(name: str) -> tuple[str, str]:
    space, _, local = name.rpartition(" ")
    return space, local
