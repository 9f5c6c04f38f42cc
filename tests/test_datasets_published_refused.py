"""Published scenes that cannot be used say why, and the others are used."""

from __future__ import annotations

import cv2
import numpy as np
import OpenImageIO as oiio
import pytest

from dataset_files import fails, write_hdr
from gmodiff.errors import FileFormatError
from published_scenes import NAMES, SHORT_WHITE, beside_a_good_one, only, write_photo, write_scene
from synthetic import scene


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["no exposure text", "exposure.txt"]),
        ("0\ntwo\n4\n", ["exposure.txt says 'two'", "log2"]),
        ("0\nnan\n4\n", ["exposure.txt says 'nan'"]),
        ("0\n2\n41\n", ["exposure.txt says '41'", "-40 to 40"]),
        ("0\n2\n", ["exposure.txt holds 2 exposures for 3 photos"]),
        ("0\n2\n4\n6\n", ["exposure.txt holds 4 exposures for 3 photos"]),
        ("\n", ["exposure.txt is empty"]),
        ("2\n2\n2\n", ["3 photos of one exposure"]),
    ],
)
def test_exposures_that_cannot_be_used(tmp_path, text, words):
    write_scene(tmp_path / "bad", text=text)
    fails(beside_a_good_one(tmp_path), *words)


def test_a_text_that_is_none(tmp_path):
    write_scene(tmp_path / "bad")
    (tmp_path / "bad" / "exposure.txt").write_bytes(b"\xff\xfe\x00\x81")
    fails(beside_a_good_one(tmp_path), "exposure.txt is no text", kind=FileFormatError)


def test_a_truth_of_another_size(tmp_path):
    write_scene(tmp_path / "bad")
    write_hdr(tmp_path / "bad" / "HDRImg.hdr", scene(32, 64))
    fails(beside_a_good_one(tmp_path), "HDRImg.hdr is 64x32 but the photos are 64x48")


def test_photos_of_different_sizes(tmp_path):
    write_scene(tmp_path / "bad")
    write_photo(tmp_path / "bad" / NAMES[1], np.zeros((32, 64, 3), np.uint16))
    fails(beside_a_good_one(tmp_path), f"{NAMES[1]} is 64x32 but {NAMES[0]} is 64x48")


def test_two_truths(tmp_path):
    write_scene(tmp_path / "bad")
    write_hdr(tmp_path / "bad" / "other.hdr", scene(48, 64))
    fails(beside_a_good_one(tmp_path), "HDRImg.hdr and other.hdr could all be the truth")


def test_a_missing_photo(tmp_path):
    write_scene(tmp_path / "bad")
    (tmp_path / "bad" / NAMES[2]).unlink()
    fails(beside_a_good_one(tmp_path), "3 exposures for 2 photos")


def test_nearly_all_photos_missing(tmp_path):
    write_scene(tmp_path / "bad")
    for name in NAMES[1:]:
        (tmp_path / "bad" / name).unlink()
    fails(beside_a_good_one(tmp_path), "1 TIFF or PNG photos, expected 2 to 16")


@pytest.mark.parametrize("name", [NAMES[0], "HDRImg.hdr"])
@pytest.mark.parametrize("content", ["half", "empty", "text"])
def test_damaged_files(tmp_path, name, content):
    write_scene(tmp_path / "bad")
    path = tmp_path / "bad" / name
    whole = path.read_bytes()
    path.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "text": b"hello" * 100}[content])
    fails(beside_a_good_one(tmp_path), name, kind=FileFormatError)


def test_a_photo_of_another_kind(tmp_path):
    write_scene(tmp_path / "bad")
    assert cv2.imwrite(str(tmp_path / "bad" / NAMES[0]), np.full((48, 64, 3), 0.5, np.float32))
    fails(beside_a_good_one(tmp_path), f"{NAMES[0]} is not RGB of 8 or 16 bits", kind=FileFormatError)


def test_a_grey_photo(tmp_path):
    write_scene(tmp_path / "bad")
    assert cv2.imwrite(str(tmp_path / "bad" / NAMES[0]), np.full((48, 64), 500, np.uint16))
    fails(beside_a_good_one(tmp_path), f"{NAMES[0]} is not RGB of 8 or 16 bits", kind=FileFormatError)


def test_a_black_truth(tmp_path):
    write_scene(tmp_path / "bad")
    write_hdr(tmp_path / "bad" / "HDRImg.hdr", np.zeros((48, 64, 3)))
    fails(beside_a_good_one(tmp_path), "HDRImg.hdr holds no light", kind=FileFormatError)


def test_what_is_no_light_in_a_truth(tmp_path):
    light = scene(48, 64) / np.float32(SHORT_WHITE)
    light[3, 4], light[5, 6, 0], light[7, 8, 1] = np.nan, np.inf, -1
    path = tmp_path / "001" / "gt.exr"
    write_scene(tmp_path / "001", truth_name=None)
    out = oiio.ImageOutput.create(str(path))
    assert out.open(str(path), oiio.ImageSpec(64, 48, 3, "float"))
    assert out.write_image(light)
    out.close()
    loaded = only(tmp_path).load()
    assert loaded.truth[3, 4].tolist() == [0, 0, 0]
    assert loaded.truth[7, 8, 1] == 0
    assert loaded.truth[5, 6, 0] == loaded.truth.max()
    assert np.isfinite(loaded.truth).all()
    assert sorted(zip(*np.nonzero(~loaded.known), strict=True)) == [(3, 4), (5, 6)]
    assert loaded.facts["known_share"] == pytest.approx(1 - 2 / (48 * 64), abs=1e-5)
