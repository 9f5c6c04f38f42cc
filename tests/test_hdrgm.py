import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmodiff.errors import FileFormatError, InputError
from gmodiff.gainmap import GainMapMetadata, apply_log2_gain
from gmodiff.hdrgm import StoredMetadata, iso_bytes, map_xmp, primary_xmp, read_iso, read_packet

stops = st.floats(-12, 12, allow_nan=False)
offsets = st.floats(0, 1, allow_nan=False)


@st.composite
def metadata(draw: st.DrawFn) -> GainMapMetadata:
    channels = draw(st.sampled_from([1, 3]))

    def triple(values: st.SearchStrategy[float]) -> tuple[float, float, float]:
        r, g, b = [draw(values) for _ in range(channels)] * (3 // channels)
        return r, g, b

    low, span = triple(stops), triple(st.floats(0, 12))
    base = draw(st.floats(0, 3))
    return GainMapMetadata(
        low,
        tuple(a + b for a, b in zip(low, span, strict=True)),
        triple(st.floats(0.1, 10)),
        triple(offsets),
        triple(offsets),
        base,
        base + draw(st.floats(0.01, 8)),
        draw(st.booleans()),
    )


@given(metadata())
def test_both_forms_give_the_metadata_back(given_metadata: GainMapMetadata) -> None:
    expected = StoredMetadata(given_metadata)
    iso = read_iso(iso_bytes(given_metadata))
    assert iso.difference(expected) < 1e-8
    assert iso.metadata.use_base_colour_space == given_metadata.use_base_colour_space
    xmp = read_packet(map_xmp(given_metadata)).metadata()
    assert xmp.difference(expected) < 1e-8
    assert xmp.difference(iso) < 1e-8


def fraction(numerator: int, denominator: int) -> bytes:
    return struct.pack(">iI", numerator, denominator)


def test_iso_layout_of_one_channel_is_61_bytes_as_published() -> None:
    data = iso_bytes(GainMapMetadata((-0.5,) * 3, (2.0,) * 3, alternate_headroom=2.25))
    expected = b"\0\0\0\0\x40" + fraction(0, 1) + fraction(9, 4)
    expected += fraction(-1, 2) + fraction(2, 1) + fraction(1, 1) + fraction(1, 64) + fraction(1, 64)
    assert data == expected
    assert len(data) == 61


def test_iso_with_three_channels_sets_the_flag_and_is_141_bytes() -> None:
    data = iso_bytes(GainMapMetadata((0, 0, 0), (1, 2, 3), use_base_colour_space=False))
    assert data[4] == 0x80
    assert len(data) == 141


def test_iso_common_denominator_form_is_read() -> None:
    flags = 0x40 | 0x08
    data = b"\0\0\0\0" + bytes([flags]) + struct.pack(">III", 64, 0, 128) + struct.pack(">iiIii", -32, 160, 64, 1, 2)
    stored = read_iso(data)
    m = stored.metadata
    assert (m.minimum[0], m.maximum[2], m.gamma[1]) == (-0.5, 2.5, 1.0)
    assert (m.base_offset[0], m.alternate_offset[0], m.alternate_headroom) == (1 / 64, 2 / 64, 2.0)
    assert not stored.base_is_hdr


def test_iso_hdr_base_is_turned_round_so_that_base_is_always_sdr() -> None:
    data = b"\0\0\0\0\x40" + fraction(3, 1) + fraction(0, 1)
    data += fraction(0, 1) + fraction(3, 1) + fraction(1, 1) + fraction(1, 32) + fraction(1, 64)
    stored = read_iso(data)
    assert stored.base_is_hdr
    assert (stored.metadata.base_headroom, stored.metadata.alternate_headroom) == (0, 3)
    assert (stored.metadata.base_offset[0], stored.metadata.alternate_offset[0]) == (1 / 64, 1 / 32)
    with pytest.raises(InputError, match="HDR rendition"):
        iso_bytes(GainMapMetadata((0, 0, 0), (1, 1, 1), base_headroom=3, alternate_headroom=0))


def test_later_writer_version_with_appended_fields_is_read_but_a_later_minimum_version_is_not() -> None:
    data = iso_bytes(GainMapMetadata((0, 0, 0), (2, 2, 2)))
    assert read_iso(b"\0\0\0\x07" + data[4:] + b"new fields").metadata.maximum == (2, 2, 2)
    with pytest.raises(FileFormatError, match="version 1"):
        read_iso(b"\0\1\0\1" + data[4:])


@pytest.mark.parametrize("cut", [0, 4, 5, 20, 60])
def test_truncated_iso_is_refused(cut: int) -> None:
    with pytest.raises(FileFormatError, match="bytes, expected"):
        read_iso(iso_bytes(GainMapMetadata((0, 0, 0), (2, 2, 2)))[:cut])


def test_zero_denominator_is_refused() -> None:
    data = bytearray(iso_bytes(GainMapMetadata((0, 0, 0), (2, 2, 2))))
    data[9:13] = b"\0\0\0\0"
    with pytest.raises(FileFormatError, match="denominator is 0"):
        read_iso(bytes(data))


def test_check_values_of_libavif_survive_both_forms() -> None:
    plain = GainMapMetadata((0, 0, 0), (2, 2, 2), alternate_headroom=2)
    for m in (read_iso(iso_bytes(plain)).metadata, read_packet(map_xmp(plain)).metadata().metadata):
        stored = np.array([[[0.5]], [[1.0]]], np.float32)
        base = np.array([[[0.5] * 3], [[1.0] * 3]], np.float32)
        assert apply_log2_gain(base, m.log2_gain(stored), m).tolist() == [[[1.015625] * 3], [[4.046875] * 3]]
        assert m.weight(0.5) == 0.25


def xmp(body: str, attributes: str = "") -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description xmlns:h="http://ns.adobe.com/hdr-gain-map/1.0/" {attributes}>{body}</rdf:Description>'
        "</rdf:RDF></x:xmpmeta>"
    ).encode()


def test_xmp_defaults_and_elements_instead_of_attributes_under_another_prefix() -> None:
    stored = read_packet(xmp("<h:GainMapMax>2.5</h:GainMapMax>\n<h:HDRCapacityMax> 2.25 </h:HDRCapacityMax>") + b"\0\0").metadata()
    m = stored.metadata
    assert (m.minimum, m.maximum, m.gamma, m.base_headroom, m.alternate_headroom) == ((0,) * 3, (2.5,) * 3, (1,) * 3, 0, 2.25)
    assert m.base_offset == m.alternate_offset == (1 / 64,) * 3


def test_xmp_hdr_base_flag() -> None:
    assert read_packet(xmp("", 'h:GainMapMax="1" h:HDRCapacityMax="1" h:BaseRenditionIsHDR="True"')).metadata().base_is_hdr


def test_equal_headrooms_become_a_step_and_reversed_ones_are_refused() -> None:
    flat = read_packet(xmp("", 'h:GainMapMax="0" h:HDRCapacityMax="0"')).metadata().metadata
    assert 0 < flat.alternate_headroom < 0.01
    with pytest.raises(FileFormatError, match="from 3 down to 2"):
        read_packet(xmp("", 'h:GainMapMax="1" h:HDRCapacityMin="3" h:HDRCapacityMax="2"')).metadata()


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ('h:GainMapMax="abc" h:HDRCapacityMax="1"', "GainMapMax is 'abc'"),
        ('h:GainMapMax="nan" h:HDRCapacityMax="1"', "finite"),
        ('h:GainMapMax="1" h:HDRCapacityMax="inf"', "finite"),
        ('h:GainMapMax="1"', "HDRCapacityMax has 0 values"),
        ('h:GainMapMin="3" h:GainMapMax="1" h:HDRCapacityMax="1"', "above its maximum"),
        ('h:GainMapMax="1" h:Gamma="0" h:HDRCapacityMax="1"', "must be positive"),
        ('h:GainMapMax="100000" h:HDRCapacityMax="1"', "64 stops"),
    ],
)
def test_bad_values_are_named(attributes: str, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        read_packet(xmp("", attributes)).metadata()


def test_two_values_per_field_are_refused() -> None:
    body = "<h:GainMapMax><rdf:Seq><rdf:li>1</rdf:li><rdf:li>2</rdf:li></rdf:Seq></h:GainMapMax>"
    with pytest.raises(FileFormatError, match="2 values"):
        read_packet(xmp(body, 'h:HDRCapacityMax="1"')).metadata()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_types_and_so_entity_bombs_are_refused_in_any_encoding(encoding: str) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]><a>&c;</a>'
    with pytest.raises(FileFormatError, match="document type"):
        read_packet(bomb.encode(encoding))


@pytest.mark.parametrize("data", [b"", b"<a", b"<a></b>", b'<?xml version="1.0" encoding="nonsense"?><a/>', b"\xff\xfe<"])
def test_broken_xml_is_refused(data: bytes) -> None:
    with pytest.raises(FileFormatError, match="well-formed"):
        read_packet(data)


def test_primary_packet_holds_directory_and_facts_with_awkward_characters() -> None:
    packet = read_packet(primary_xmp(1234, {"Content": 'rendition: <"fancy" & ünïcode>'}, "GMODiff 1"))
    assert packet.facts == {"Content": 'rendition: <"fancy" & ünïcode>'}
    assert [item["Semantic"] for item in packet.items] == ["Primary", "GainMap"]
    assert packet.items[1]["Length"] == "1234"
    assert packet.hdrgm["Version"] == ("1.0",)
    assert not packet.has_metadata


@given(st.binary(max_size=300))
def test_random_bytes_only_raise_our_error(data: bytes) -> None:
    for read in (lambda: read_iso(data), lambda: read_packet(data).metadata()):
        with pytest.raises(FileFormatError):
            read()


@given(st.data())
def test_damaged_metadata_only_raises_our_error(data: st.DataObject) -> None:
    m = GainMapMetadata((0, -1, 0), (1, 2, 3))
    whole = data.draw(st.sampled_from([iso_bytes(m), map_xmp(m), primary_xmp(99, {"Content": "scene"}, "GMODiff")]))
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    for read in (lambda: read_iso(bytes(damaged)), lambda: read_packet(bytes(damaged)).metadata()):
        with contextlib.suppress(FileFormatError):
            read()
