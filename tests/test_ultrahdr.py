import io
import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gmodiff.errors import FileFormatError, InputError
from gmodiff.gainmap import GainMapMetadata
from gmodiff.hdrgm import iso_bytes, map_xmp, primary_xmp
from gmodiff.icc import profile_bytes
from gmodiff.radiometry import DISPLAY_P3, SRGB
from gmodiff.ultrahdr import ISO_HEADER, MAX_EXIF, XMP_HEADER, join, split, with_metadata
from hdr_samples import exif_block, jpeg, picture, segment

EXIFTOOL = shutil.which("exiftool")
needs_exiftool = pytest.mark.skipif(EXIFTOOL is None, reason="exiftool is not installed (Debian: libimage-exiftool-perl)")

PICTURE = picture(48, 64)
BASE, MAP = jpeg(PICTURE.base), jpeg(PICTURE.gain_map.codes)
METADATA = PICTURE.gain_map.metadata
WHOLE = join(BASE, MAP, METADATA, exif=exif_block(), icc=profile_bytes(SRGB), facts={"Content": "rendition: camera"})


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def bare(data: bytes, *segments: bytes) -> bytes:
    """A JPEG with segments put in right behind its start."""
    return data[:2] + b"".join(segments) + data[2:]


def xmp_segment(packet: bytes) -> bytes:
    return segment(0xE1, XMP_HEADER + packet)


def test_parts_come_back_with_pixels_to_the_last_bit() -> None:
    parts = split(WHOLE)
    assert (pixels(parts.base) == pixels(BASE)).all()
    assert (pixels(parts.gain_map) == pixels(MAP)).all()
    assert parts.base + parts.gain_map == WHOLE
    assert parts.exif == exif_block()
    assert parts.icc == profile_bytes(SRGB)
    assert parts.facts == {"Content": "rendition: camera"}
    assert parts.forms == ("iso", "xmp", "mpf", "gcontainer")
    assert parts.disagreement < 1e-8
    assert parts.notes == ()
    assert parts.stored.difference(type(parts.stored)(METADATA)) < 1e-8


def test_joining_the_parts_again_gives_the_same_file() -> None:
    parts = split(WHOLE)
    again = join(parts.base, parts.gain_map, parts.stored.metadata, exif=parts.exif, icc=parts.icc, facts=parts.facts)
    assert again == WHOLE


def test_order_of_segments_is_exif_xmp_iso_mpf() -> None:
    places = [WHOLE.index(mark) for mark in (b"Exif\0\0", XMP_HEADER, ISO_HEADER, b"MPF\0", b"ICC_PROFILE\0")]
    assert places == sorted(places)
    assert WHOLE[2:4] == b"\xff\xe1"
    at = WHOLE.index(ISO_HEADER)
    assert WHOLE[at - 2 : at] == struct.pack(">H", 2 + len(ISO_HEADER) + 4)  # the primary's carries the version only


def test_mpf_offset_is_relative_to_its_byte_order_mark() -> None:
    mark = WHOLE.index(b"MPF\0") + 4
    entries = WHOLE[mark + 50 : mark + 82]
    first, second = struct.unpack(">IIIHH", entries[:16]), struct.unpack(">IIIHH", entries[16:])
    assert first[:3] == (0x030000, len(split(WHOLE).base), 0)
    assert WHOLE[mark + second[2] :] == split(WHOLE).gain_map
    assert second[1] == len(WHOLE) - mark - second[2]


def test_pillow_sees_an_ordinary_photo() -> None:
    with Image.open(io.BytesIO(WHOLE)) as image:
        assert (image.format, image.size, getattr(image, "n_frames", 1)) == ("JPEG", (64, 48), 1)
        assert image.getexif()[0x0110] == "Camera One"
        assert (np.asarray(image) == pixels(BASE)).all()


@needs_exiftool
def test_exiftool_validates_and_finds_the_map(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(WHOLE)
    run = subprocess.run([EXIFTOOL, "-j", "-G1", "-a", "-validate", "-warning", path], capture_output=True, check=True)
    warnings = {v for k, v in json.loads(run.stdout)[0].items() if k.endswith(("Warning", "Error"))}
    # exiftool 12 does not know the ISO segment; the sample's EXIF lacks tags that have nothing to do with gain maps.
    assert {w for w in warnings if "Unknown APP2" not in w and "Missing required JPEG" not in w} == set()
    tags = json.loads(subprocess.run([EXIFTOOL, "-j", "-G1", "-struct", path], capture_output=True, check=True).stdout)[0]
    assert tags["MPF0:NumberOfImages"] == 2
    assert tags["XMP-hdrgm:Version"] == 1.0
    items = [entry["Item"] for entry in tags["XMP-Container:Directory"]]
    assert [item["Semantic"] for item in items] == ["Primary", "GainMap"]
    assert items[1]["Length"] == len(split(WHOLE).gain_map)
    second = subprocess.run([EXIFTOOL, "-b", "-MPImage2", path], capture_output=True, check=True).stdout
    assert second == split(WHOLE).gain_map
    (tmp_path / "map.jpg").write_bytes(second)
    run = subprocess.run([EXIFTOOL, "-j", "-n", "-XMP-hdrgm:all", tmp_path / "map.jpg"], capture_output=True, check=True)
    fields = json.loads(run.stdout)[0]
    assert fields["HDRCapacityMax"] == pytest.approx(METADATA.alternate_headroom)
    assert fields["GainMapMax"] == pytest.approx(list(METADATA.maximum))


@needs_exiftool
def test_map_survives_a_metadata_edit_by_exiftool(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(WHOLE)
    subprocess.run([EXIFTOOL, "-q", "-overwrite_original", "-Artist=Somebody with a rather long name", path], check=True)
    assert split(path.read_bytes()).stored.metadata == split(WHOLE).stored.metadata


def test_large_icc_profile_is_split_and_put_together() -> None:
    icc = bytes(range(256)) * 600
    parts = split(join(BASE, MAP, METADATA, icc=icc, map_icc=icc[:70000]))
    assert parts.icc == icc
    assert parts.map_icc == icc[:70000]


def test_exif_that_does_not_fit_and_parts_that_are_no_jpeg_are_refused() -> None:
    assert split(join(BASE, MAP, METADATA, exif=b"x" * MAX_EXIF)).exif == b"x" * MAX_EXIF
    with pytest.raises(InputError, match="does not fit"):
        join(BASE, MAP, METADATA, exif=b"x" * (MAX_EXIF + 1))
    with pytest.raises(InputError, match="gain map is not a JPEG"):
        join(BASE, b"\x89PNG", METADATA)


# ---- files by others ----------------------------------------------------------------------------------------------------


def test_plain_photo_has_no_map_and_that_is_no_error() -> None:
    parts = split(with_metadata(BASE, exif=exif_block(), icc=profile_bytes(DISPLAY_P3)))
    assert parts.gain_map is None
    assert parts.stored is None
    assert parts.notes == ()
    assert parts.icc == profile_bytes(DISPLAY_P3)
    assert parts.exif == exif_block()


def android(second: bytes, *, length: int | None = None) -> bytes:
    """XMP only, no MPF, no ISO: a GContainer directory alone says where the map is."""
    return bare(BASE, xmp_segment(primary_xmp(len(second) if length is None else length, {}, "phone"))) + second


def test_android_file_with_xmp_and_directory_only() -> None:
    second = bare(MAP, xmp_segment(map_xmp(METADATA)))
    parts = split(android(second))
    assert parts.forms == ("xmp", "gcontainer")
    assert parts.disagreement is None
    assert parts.gain_map == second
    assert parts.stored.difference(split(WHOLE).stored) < 1e-8


def test_other_directory_items_before_the_map_are_stepped_over() -> None:
    second = bare(MAP, xmp_segment(map_xmp(METADATA)))
    depth = b"not a picture" * 7
    packet = primary_xmp(len(second), {}, "phone").replace(
        b'<rdf:li rdf:parseType="Resource"><Container:Item Item:Semantic="GainMap"',
        b'<rdf:li rdf:parseType="Resource"><Container:Item Item:Semantic="Depth" Item:Length="%d" Item:Padding="3"/></rdf:li>'
        b'<rdf:li rdf:parseType="Resource"><Container:Item Item:Semantic="GainMap"' % len(depth),
    )
    parts = split(bare(BASE, xmp_segment(packet)) + depth + b"\0\0\0" + second + b"motion photo video")
    assert parts.gain_map == second
    assert parts.forms == ("xmp", "gcontainer")


def test_adobe_file_with_iso_only_and_little_endian_mpf() -> None:
    second = bare(MAP, segment(0xE2, ISO_HEADER + iso_bytes(METADATA)))

    def mpf(offset: int) -> bytes:
        ifd = struct.pack("<H", 3) + struct.pack("<HHI4s", 0xB000, 7, 4, b"0100") + struct.pack("<HHII", 0xB001, 4, 1, 2)
        ifd += struct.pack("<HHIII", 0xB002, 7, 32, 50, 0)
        entries = struct.pack("<IIIHH", 0x030000, 0, 0, 0, 0) + struct.pack("<IIIHH", 0, len(second), offset, 0, 0)
        return segment(0xE2, b"MPF\0II*\0" + struct.pack("<I", 8) + ifd + entries)

    version = segment(0xE2, ISO_HEADER + b"\0\0\0\0")
    mark = 2 + len(version) + 8
    length = len(bare(BASE, version, mpf(0)))
    data = bare(BASE, version, mpf(length - mark)) + second
    parts = split(data)
    assert parts.forms == ("iso", "mpf")
    assert parts.gain_map == second
    assert parts.stored.metadata == split(WHOLE).stored.metadata


def test_map_is_found_by_looking_behind_the_photo_where_both_indexes_are_missing_or_wrong() -> None:
    second = bare(MAP, xmp_segment(map_xmp(METADATA)))
    bare_parts = split(BASE + b"\0\0" + jpeg(PICTURE.base[:8, :8]) + second)
    assert bare_parts.gain_map == second
    assert bare_parts.forms == ("xmp",)
    wrong = split(android(b"padding" + second))
    assert wrong.gain_map == second
    assert wrong.notes == ("the gcontainer index does not point at the gain map",)


def test_further_images_that_are_no_gain_maps_leave_a_plain_photo() -> None:
    assert split(BASE + jpeg(PICTURE.base)).gain_map is None


def test_stripped_map_is_noted() -> None:
    parts = split(split(WHOLE).base)
    assert parts.gain_map is None
    assert "dropped it" in parts.notes[0]


def test_iso_wins_over_xmp_and_the_difference_is_reported() -> None:
    other = GainMapMetadata(METADATA.minimum, METADATA.maximum, alternate_headroom=METADATA.alternate_headroom + 0.5)
    second = bare(MAP, xmp_segment(map_xmp(other)), segment(0xE2, ISO_HEADER + iso_bytes(METADATA)))
    parts = split(BASE + second)
    assert parts.stored.metadata.alternate_headroom == pytest.approx(METADATA.alternate_headroom)
    assert parts.disagreement == pytest.approx(0.5)
    assert "ISO is used" in parts.notes[0]


def test_one_broken_form_is_ignored_with_a_note_and_two_broken_forms_are_an_error() -> None:
    iso, broken_iso = iso_bytes(METADATA), iso_bytes(METADATA)[:30]
    packet, broken_packet = map_xmp(METADATA), map_xmp(METADATA).replace(b"HDRCapacityMax=", b"HDRCapacityMax =x")

    def file(xmp: bytes, binary: bytes) -> bytes:
        return BASE + bare(MAP, xmp_segment(xmp), segment(0xE2, ISO_HEADER + binary))

    for data, form in ((file(packet, broken_iso), "xmp"), (file(broken_packet, iso), "iso")):
        parts = split(data)
        assert parts.forms == (form,)
        assert parts.notes[0].startswith("ignored: ")
    with pytest.raises(FileFormatError, match="30 bytes, expected 141"):
        split(file(broken_packet, broken_iso))


def test_metadata_in_the_photo_instead_of_the_map_is_used() -> None:
    fields = re.search(rb"hdrgm:GainMapMin.*?(?=</rdf:Description>)", map_xmp(GainMapMetadata((0,) * 3, (2,) * 3)), re.DOTALL)[0]
    packet = primary_xmp(len(MAP), {}, "early writer").replace(b'hdrgm:Version="1.0"', b'hdrgm:Version="1.0" ' + fields.split(b">")[0])
    parts = split(bare(BASE, xmp_segment(packet)) + MAP)
    assert parts.stored.metadata.maximum == (2, 2, 2)
    assert parts.gain_map == MAP


# ---- damage -------------------------------------------------------------------------------------------------------------


def only_our_error(data: bytes) -> None:
    message = "none"
    try:
        parts = split(data)
    except FileFormatError as error:
        message = str(error)
    else:
        assert len(parts.base) + len(parts.gain_map or b"") <= 2 * len(data)
    assert message
    assert "\n" not in message


@given(st.binary(max_size=400))
def test_random_bytes(data: bytes) -> None:
    only_our_error(data)
    only_our_error(b"\xff\xd8\xff\xe1" + data)
    only_our_error(b"\xff\xd8\xff\xe2" + struct.pack(">H", min(len(data) + 6, 65535)) + b"MPF\0" + data)


@settings(max_examples=200)
@given(st.integers(0, len(WHOLE)))
def test_truncation(length: int) -> None:
    only_our_error(WHOLE[:length])


HEADER_BYTES = list(range(2200)) + list(range(len(split(WHOLE).base), len(split(WHOLE).base) + 1600))


@settings(max_examples=400)
@given(st.lists(st.tuples(st.sampled_from(HEADER_BYTES), st.integers(0, 255)), min_size=1, max_size=6))
def test_flipped_bytes(flips: list[tuple[int, int]]) -> None:
    damaged = bytearray(WHOLE)
    for place, value in flips:
        damaged[place] = value
    only_our_error(bytes(damaged))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"\xff\xd8",
        b"\xff\xd8" + b"\xff" * 1_000_000,
        b"\xff\xd8" + b"\xff\xe1\0\x02" * 500_000,
        b"\xff\xd8\xff\xda\0\x02" + b"\xff\xc4\0\x02" * 500_000,
        BASE + b"\xff\xd8\xff" * 300_000,
    ],
    ids=["empty", "one byte", "start only", "fill", "segments", "scans", "starts"],
)
def test_hostile_repetition_ends_soon(data: bytes) -> None:
    only_our_error(data)
