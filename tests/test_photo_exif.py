"""EXIF of photos: exposure settings, blocks that are clean enough to be kept, and damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from gmodiff.exif import clean_block, read_exif, rebuilt_block
from gmodiff.photo import read_photo
from photo_files import RAMP8, exif_bytes, jpeg_bytes, save


@pytest.mark.parametrize("order", ["<", ">"])
def test_exposure_settings_are_read(tmp_path: Path, order: str) -> None:
    photo = read_photo(save(tmp_path, "a.jpg", jpeg_bytes(RAMP8, exif_bytes(order=order))))
    assert (photo.exposure_time_s, photo.iso, photo.f_number) == (pytest.approx(0.01), 200, pytest.approx(2.8))
    assert (photo.camera, photo.lens, photo.datetime) == ("Maker Model 7", "35mm f/2", "2026:05:01 12:00:00")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"time": (0, 1)}, (None, 200, 2.8)),
        ({"time": (1, 0)}, (None, 200, 2.8)),
        ({"time": (4_000_000_000, 1)}, (None, 200, 2.8)),
        ({"iso": 0}, (0.01, None, 2.8)),
        ({"f_number": (0, 1)}, (0.01, 200, None)),
        ({"f_number": (0, 0)}, (0.01, 200, None)),
        ({"time": None, "t0x9201": (10, [(7, 1)])}, (2**-7, 200, 2.8)),
        ({"iso": 65535, "t0x8832": (4, [102400])}, (0.01, 102400, 2.8)),
        ({"iso": None, "t0x8830": (3, [1]), "t0x8831": (4, [640])}, (0.01, 640, 2.8)),
        ({"f_number": None, "t0x9202": (5, [(4, 1)])}, (0.01, 200, 4)),
    ],
)
def test_absurd_or_indirect_exposure_settings(tmp_path: Path, options: dict, expected: tuple) -> None:
    photo = read_photo(save(tmp_path, "a.jpg", jpeg_bytes(RAMP8, exif_bytes(**options))))
    found = (photo.exposure_time_s, photo.iso, photo.f_number)
    assert [None if v is None else pytest.approx(v) for v in expected] == list(found)
    assert bool(photo.notes) == (expected[0] is None)


def test_clean_exif_keeps_maker_note_and_loses_thumbnail(tmp_path: Path) -> None:
    original = exif_bytes(orientation=6)
    photo = read_photo(save(tmp_path, "a.jpg", jpeg_bytes(RAMP8, original)))
    assert photo.exif is not None
    assert b"T" * 36 in original
    assert b"T" * 36 not in photo.exif
    # Offsets inside a maker note count from the start of the block: it must not move.
    assert photo.exif.index(b"maker note") == original.index(b"maker note")
    longer = clean_block(original + bytes(range(200)), 10, 10)
    assert longer is not None
    assert b"TTT" not in longer
    assert longer.endswith(bytes(range(200)))
    exif = Image.Exif()
    exif.load(b"Exif\0\0" + photo.exif)
    assert exif[0x0112] == 1
    assert not exif.get_ifd(ExifTags.IFD.IFD1)
    assert exif.get_ifd(0x8769)[0xA002] == 48
    assert exif.get_ifd(0x8769)[0xA003] == 64
    assert exif.get_ifd(0x8825)[2] == (48.0, 51.0, 30.0)
    assert exif.get_ifd(0x8769)[0x829A] == pytest.approx(0.01)


def test_clean_exif_is_valid_for_exiftool(tmp_path: Path) -> None:
    exiftool = shutil.which("exiftool")
    if exiftool is None:
        pytest.skip("exiftool is not installed")
    import subprocess

    photo = read_photo(save(tmp_path, "a.jpg", jpeg_bytes(RAMP8, exif_bytes(orientation=6))))
    path = save(tmp_path, "b.jpg", jpeg_bytes(photo.encoded, photo.exif))
    said = subprocess.run(
        [exiftool, "-validate", "-warning", "-Orientation", "-ExposureTime", "-GPSLatitude", "-s3", str(path)],
        capture_output=True,
        text=True,
    ).stdout
    assert "Horizontal (normal)" in said
    assert "1/100" in said
    assert "48 deg 51'" in said
    assert "offset" not in said.lower()


@given(st.integers(0, 400), st.binary(min_size=1, max_size=6))
def test_damaged_exif_never_raises(position: int, junk: bytes) -> None:
    block = bytearray(exif_bytes())
    block[position : position + len(junk)] = junk
    for damaged in (bytes(block), bytes(block[:position])):
        facts = read_exif(damaged)
        assert facts.exposure_time_s is None or 1e-7 <= facts.exposure_time_s <= 1e5
        for clean in (clean_block(damaged, 10, 10), rebuilt_block(damaged, 10, 10)):
            assert clean is None or read_exif(clean).orientation == 1


def test_photo_with_damaged_exif_is_still_read(tmp_path: Path) -> None:
    photo = read_photo(save(tmp_path, "a.jpg", jpeg_bytes(RAMP8, exif_bytes()[:60])))
    assert photo.exposure_time_s is None
