"""Gain maps in HEIC. The files are put together here from a golden picture, which serves as photo and as gain map at once."""

import struct
from pathlib import Path

import numpy as np
import pytest

from gmodiff import avif
from gmodiff.gainmap import GainMapMetadata
from gmodiff.hdrgm import map_xmp
from gmodiff.heic import APPLE_KIND, apple_gain_map, apple_headroom_stops, rec709_decode
from gmodiff.reader import read

GOLDEN = (Path(__file__).parent / "golden" / "display_p3.heic").read_bytes()
SAMSUNG_KIND = "urn:com:samsung:photo:2024:aux:hdrgainmap"


def box(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I4s", len(payload) + 8, kind) + payload


def heic(kind: str | None, *, xmp: bytes | None = None, exif: bytes | None = None) -> bytes:
    """The golden picture, with itself as an auxiliary picture of that kind."""
    meta = avif._meta(GOLDEN)
    identity = struct.unpack_from(">H", GOLDEN, avif._child(GOLDEN, meta, b"pitm", 4).start + 4)[0]
    coded = avif._item_data(GOLDEN, avif._child(GOLDEN, meta, b"iloc", 4), identity)
    properties = [b for b, _ in avif._item_properties(GOLDEN, avif._child(GOLDEN, meta, b"iprp", 4), identity)]
    items = [(b"hvc1", b"", coded)]
    references = b""
    if kind is not None:
        items.append((b"hvc1", b"", coded))
        references += box(b"auxl", struct.pack(">HHH", 2, 1, 1))
        properties.append(box(b"auxC", b"\0\0\0\0" + kind.encode() + b"\0"))
    for payload, item_type, content in ((exif, b"Exif", b""), (xmp, b"mime", b"application/rdf+xml\0")):
        if payload is not None:
            items.append((item_type, content, struct.pack(">I", 0) + payload if item_type == b"Exif" else payload))
            references += box(b"cdsc", struct.pack(">HHH", len(items), 1, 1))
    count = len(properties)
    links = bytes(range(1, count + (kind is None)))
    associations = struct.pack(">HB", 1, len(links)) + links
    if kind is not None:
        associations += struct.pack(">HB", 2, count) + bytes(range(1, count + 1))
    entries = b"".join(
        box(b"infe", struct.pack(">BxxxHH4s", 2, n, 0, item_type) + b"\0" + content) for n, (item_type, content, _) in enumerate(items, 1)
    )
    fixed = [
        box(b"hdlr", struct.pack(">II4s12x", 0, 0, b"pict") + b"\0"),
        box(b"pitm", struct.pack(">IH", 0, 1)),
        box(b"iinf", struct.pack(">IH", 0, len(items)) + entries),
        box(b"iref", b"\0\0\0\0" + references) if references else b"",
        box(b"iprp", box(b"ipco", b"".join(properties)) + box(b"ipma", struct.pack(">II", 0, 1 + (kind is not None)) + associations)),
    ]

    def head(at: int) -> bytes:
        places = struct.pack(">IHH", 0, 0x4400, len(items))
        for n, (_, _, payload) in enumerate(items, 1):
            places += struct.pack(">HHHII", n, 0, 1, at, len(payload))
            at += len(payload)
        file_type = box(b"ftyp", b"heic\0\0\0\0mif1heic")
        return file_type + box(b"meta", b"\0\0\0\0" + b"".join([*fixed, box(b"iloc", places)]))

    return head(len(head(0)) + 8) + box(b"mdat", b"".join(payload for *_, payload in items))


def maker_note(tag33: float, tag48: float) -> bytes:
    """An EXIF block whose maker note is Apple's, with those two tags."""
    values = b"".join(struct.pack(">ii", round(v * 100000), 100000) for v in (tag33, tag48))
    start = 14 + 2 + 24 + 4
    note = b"Apple iOS\0\0\1MM" + struct.pack(">H", 2)
    note += struct.pack(">HHII", 33, 10, 1, start) + struct.pack(">HHII", 48, 10, 1, start + 8) + b"\0\0\0\0" + values
    exif_at, note_at = 26, 26 + 18
    block = b"MM\0*" + struct.pack(">I", 8) + struct.pack(">HHHII", 1, 0x8769, 4, 1, exif_at) + b"\0\0\0\0"
    return block + struct.pack(">HHHII", 1, 0x927C, 7, len(note), note_at) + b"\0\0\0\0" + note


def test_headroom_from_apples_maker_note():
    table = [(0.5, 0.0, 1.8), (0.5, 0.01, 1.6), (0.5, 0.02, 1.601 - 0.101 * 0.02), (1.0, 0.0, 3.0), (1.0, 0.01, 2.3), (1.0, 0.5, 2.1515)]
    for maker33, maker48, stops in table:
        assert apple_headroom_stops(maker33, maker48) == pytest.approx(stops)


def test_rec709_ends_and_knee():
    assert rec709_decode(np.array([0.0, 0.0405, 1.0])).tolist() == pytest.approx([0, 0.009, 1])
    light = np.array([0.018, 0.18, 0.5])
    assert rec709_decode(1.099 * light**0.45 - 0.099) == pytest.approx(light)  # BT.709-6, item 1.2, forwards
    assert np.diff(rec709_decode(np.linspace(0, 1, 1001))).min() > 0


def test_apples_map_is_its_formula_to_half_a_step():
    codes = np.arange(256, dtype=np.uint8)[:, None, None]
    gain = apple_gain_map(codes, 2.3)
    shown = gain.apply(np.full((256, 1, 3), 0.5, np.float32))
    expected = 0.5 * (1 + (2**2.3 - 1) * rec709_decode(np.arange(256) / 255))
    assert np.abs(shown[:, 0, 1] / expected - 1).max() < 2 ** (2.3 / 510) - 1 + 1e-6
    assert gain.metadata.alternate_headroom == 2.3


@pytest.mark.parametrize("colour", [False, True], ids=["maker note", "XMP"])
def test_apple_photo(tmp_path, colour):
    headroom = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    headroom += 'xmlns:g="http://ns.apple.com/HDRGainMap/1.0/" g:HDRGainMapHeadroom="4.0"/></rdf:RDF></x:xmpmeta>'
    data = heic(APPLE_KIND, xmp=headroom.encode()) if colour else heic(APPLE_KIND, exif=maker_note(1.0, 0.01))
    (tmp_path / "a.heic").write_bytes(data)
    stops = 2.0 if colour else 2.3
    image = read(tmp_path / "a.heic")
    assert image.metadata["format"] == "HEIC with Apple's gain map"
    assert image.gain_map.metadata.alternate_headroom == pytest.approx(stops)
    assert image.base_colour.name == "display-p3"
    encoded = image.base / 255.0
    expected = image.base_colour.decode(encoded) * (1 + (2**stops - 1) * rec709_decode(encoded))  # the map is the photo itself
    assert np.abs(image.radiance / np.maximum(expected, 1e-6) - 1)[expected > 0.001].max() < 0.006


def test_samsung_photo_with_hdrgm_metadata(tmp_path):
    metadata = GainMapMetadata((0.0,) * 3, (1.5,) * 3, alternate_headroom=1.5)
    (tmp_path / "a.heic").write_bytes(heic(SAMSUNG_KIND, xmp=map_xmp(metadata)))
    image = read(tmp_path / "a.heic")
    assert image.metadata["format"] == "HEIC with gain map"
    assert image.metadata["forms"] == ["xmp"]
    assert image.gain_map.codes.shape == (48, 64, 3)
    base = image.base_colour.decode(image.base / 255.0)
    expected = (base + 1 / 64) * 2 ** (1.5 * image.gain_map.codes / 255) - 1 / 64
    assert np.abs(image.radiance - expected).max() < 1e-5


def test_map_without_metadata_is_noted_and_the_photo_is_read(tmp_path):
    for kind, said in ((APPLE_KIND, "does not say its headroom"), (SAMSUNG_KIND, "no metadata for it")):
        (tmp_path / "a.heic").write_bytes(heic(kind))
        image = read(tmp_path / "a.heic")
        assert image.gain_map is None
        assert image.radiance.max() <= 1
        assert said in " ".join(image.metadata["notes"])


def test_plain_and_pq_heic(tmp_path):
    (tmp_path / "a.heic").write_bytes(heic(None))
    plain = read(tmp_path / "a.heic")
    assert plain.metadata["format"] == "HEIC photo (SDR)"
    assert plain.colour.name == "display-p3"
    pq = read(Path(__file__).parent / "golden" / "pq.heic")
    assert pq.metadata["format"] == "HEIC, PQ"
    assert pq.colour.name == "bt2020"
    assert pq.radiance.max() == pytest.approx(10000 / 203, rel=1e-3)
