"""Published sets on disk: written here by OpenCV, which is not what reads them, and loaded back."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import OpenImageIO as oiio
import pytest

from dataset_files import fails, write_hdr
from gmodiff.datasets.published import find_published, natural_key, read_float_picture
from gmodiff.errors import InputError
from gmodiff.image import Bracket, HDRImage
from gmodiff.writer import write
from published_scenes import NAMES, SHORT_WHITE, bracket16, only, write_photo, write_scene
from synthetic import scene

# ---- meaning of the numbers ------------------------------------------------------------------------------------------------


def test_the_truth_is_what_merging_by_hand_gives(tmp_path):
    write_scene(tmp_path / "001")
    loaded = only(tmp_path).load()
    codes = np.stack([f.encoded / 65535 for f in loaded.bracket.frames])
    merged = [c**2.2 / e for c, e in zip(codes, loaded.bracket.relative_exposures, strict=True)]
    step = loaded.truth.max(axis=-1, keepdims=True) / 128  # of RGBE, cut off
    for frame, light in zip(codes, merged, strict=True):
        good = (frame > 0.01) & (frame < 1)
        assert good.mean() > 0.5
        assert (np.abs(light - loaded.truth) <= step + 1e-4)[good].all()
    assert loaded.bracket.relative_exposures == (0.25, 1.0, 4.0)
    assert [f.exposure for f in loaded.bracket.frames] == [1.0, 4.0, 16.0]
    assert loaded.short_white == SHORT_WHITE
    assert loaded.truth.dtype == np.float32
    assert loaded.truth.max() > 3  # above the reference's white, below the shortest photo's


def test_colours_keep_their_places(tmp_path):
    red = np.broadcast_to(np.array([0.8, 0.3, 0.1], np.float32), (32, 32, 3)).copy()
    red[::2] *= 0.5
    write_scene(tmp_path / "001", red)
    loaded = only(tmp_path).load()
    np.testing.assert_allclose(loaded.truth[1, 0], [0.8, 0.3, 0.1], atol=0.01)
    np.testing.assert_allclose((loaded.bracket.frames[1].encoded[1, 0] / 65535) ** 2.2, [0.8, 0.3, 0.1], atol=1e-4)


def test_the_largest_code_is_one_and_the_response_is_gamma_2_2(tmp_path):
    write_scene(tmp_path / "001")
    bracket = only(tmp_path).load().bracket
    assert bracket.response.name == "gamma2.2"
    table = bracket.response.codes(np.dtype(np.uint16))
    assert table[65535].tolist() == [1, 1, 1]
    np.testing.assert_allclose(table[30000], (30000 / 65535) ** 2.2, rtol=1e-5)
    assert {f.encoded.dtype for f in bracket.frames} == {np.dtype(np.uint16)}
    assert bracket.frames[2].encoded.max() == 65535


def test_exposures_count_from_the_shortest(tmp_path):
    write_scene(tmp_path / "a", text="3\n5\n7\n")
    write_scene(tmp_path / "b", text="0\n2\n4\n")
    offset, plain = (s.load() for s in find_published(tmp_path))
    assert [f.exposure for f in offset.bracket.frames] == [1.0, 4.0, 16.0]
    np.testing.assert_array_equal(offset.truth, plain.truth)
    assert offset.facts["exposures"] == "2**(e - min e)"


def test_lines_of_the_text_follow_the_names_of_the_photos_in_natural_order(tmp_path):
    bracket = bracket16(scene(48, 64))
    short, middle, long = (f.encoded for f in bracket.frames)
    for name, codes in (("img_2.tif", long), ("img_10.tif", short), ("img_9.tif", middle)):
        write_photo(tmp_path / "x" / name, codes)
    (tmp_path / "x" / "exposure.txt").write_text("\ufeff4, 2,\r\n0\r\n", encoding="utf-8")
    write_hdr(tmp_path / "x" / "HDRImg.hdr", scene(48, 64) / SHORT_WHITE)
    loaded = only(tmp_path).load()
    assert [f.name for f in loaded.bracket.frames] == ["img_10.tif", "img_9.tif", "img_2.tif"]
    for frame, codes in zip(loaded.bracket.frames, (short, middle, long), strict=True):
        np.testing.assert_array_equal(frame.encoded, codes)
    assert loaded.bracket.reference == 1
    np.testing.assert_allclose(loaded.truth, scene(48, 64), atol=4 / 128)


def test_the_order_of_the_folder_listing_does_not_matter(tmp_path, monkeypatch):
    for name in ("Test/001", "Test/002", "Test/010"):
        write_scene(tmp_path / name)
    straight = find_published(tmp_path)
    listing = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(listing(self), reverse=True)))
    assert find_published(tmp_path) == straight
    assert [s.name for s in straight] == ["Test-001", "Test-002", "Test-010"]


def test_headers_that_the_sets_own_loaders_ignore_are_ignored(tmp_path):
    write_scene(tmp_path / "001")
    path = tmp_path / "001" / "HDRImg.hdr"
    plain, _ = read_float_picture(path, (48, 64))
    first, _, rest = path.read_bytes().partition(b"\n")
    lines = b"\nEXPOSURE=2.0\nPRIMARIES=0.64 0.33 0.29 0.6 0.15 0.06 0.333 0.333\n"
    path.write_bytes(first + lines + rest)
    np.testing.assert_array_equal(read_float_picture(path, (48, 64))[0], plain)


def test_photos_are_taken_as_stored_even_where_they_say_they_lie_on_their_side(tmp_path):
    bracket = write_scene(tmp_path / "001")
    for name, frame in zip(NAMES, bracket.frames, strict=True):
        spec = oiio.ImageSpec(64, 48, 3, "uint16")
        spec.attribute("Orientation", 3)
        out = oiio.ImageOutput.create(str(tmp_path / "001" / name))
        assert out.open(str(tmp_path / "001" / name), spec)
        assert out.write_image(frame.encoded)
        out.close()
    loaded = only(tmp_path).load()
    np.testing.assert_array_equal(loaded.bracket.frames[0].encoded, bracket.frames[0].encoded)


# ---- layouts ---------------------------------------------------------------------------------------------------------------


def test_scenes_are_found_wherever_they_are_and_named_by_their_place(tmp_path):
    for place in ("Training/001", "Test/PAPER/BarbequeDay", "Test/EXTRA/001"):
        write_scene(tmp_path / place)
    (tmp_path / "Test" / "readme.txt").write_text("hello")
    assert [s.name for s in find_published(tmp_path)] == ["Test-EXTRA-001", "Test-PAPER-BarbequeDay", "Training-001"]
    assert [s.name for s in find_published(tmp_path / "Test")] == ["EXTRA-001", "PAPER-BarbequeDay"]
    assert [s.name for s in find_published(tmp_path / "Training" / "001")] == ["001"]


@pytest.mark.parametrize(
    ("names", "text_name", "truth_name"),
    [
        (("input_1.tif", "input_2.tif", "input_3.tif"), "exposure.txt", "HDRImg.hdr"),
        (("a.TIF", "b.TIF", "c.TIF"), "Exposures.txt", "gt.HDR"),
        (("1.png", "2.png", "3.png"), "input_exp.txt", "gt.hdr"),
        (("1.tiff", "2.tiff", "3.tiff"), "stops.txt", "truth.hdr"),
    ],
)
def test_other_names_of_the_same_layout(tmp_path, names, text_name, truth_name):
    write_scene(tmp_path / "s", names=names, text_name=text_name, truth_name=truth_name)
    loaded = only(tmp_path).load()
    assert [f.name for f in loaded.bracket.frames] == list(names)
    np.testing.assert_allclose(loaded.truth, scene(48, 64), atol=4 / 128)


def test_an_exr_truth_is_exact(tmp_path):
    write_scene(tmp_path / "s", truth_name=None)
    path = tmp_path / "s" / "gt.exr"
    out = oiio.ImageOutput.create(str(path))
    assert out.open(str(path), oiio.ImageSpec(64, 48, 3, "float"))
    assert out.write_image(scene(48, 64) / np.float32(SHORT_WHITE))
    out.close()
    np.testing.assert_array_equal(only(tmp_path).load().truth, scene(48, 64))


def write_challenge(root: Path, number: str = "007") -> list[Bracket]:
    """Three states of motion; everything in each is its own: pixels, exposures and truth."""
    brackets = []
    for state in (1, 2, 3):
        light = scene(48, 64, seed=state) * np.float32(1 - 0.1 * state)
        names = ("ldr_img_1.tif", "ldr_img_2.tif", "ldr_img_3.tif")
        text = "0\n2\n4\n" if state == 2 else "9\n9\n9\n"
        brackets.append(write_scene(root / f"{number}_{state}", light, names=names, text=text, truth_name="hdr_img.hdr"))
    return brackets


def test_challenge_scenes_take_one_photo_of_each_state(tmp_path):
    states = write_challenge(tmp_path)
    source = only(tmp_path)
    assert source.name == "007"
    loaded = source.load()
    assert loaded.bracket.reference == 1
    assert [f.name for f in loaded.bracket.frames] == ["007_1/ldr_img_1.tif", "007_2/ldr_img_2.tif", "007_3/ldr_img_3.tif"]
    for i, frame in enumerate(loaded.bracket.frames):
        np.testing.assert_array_equal(frame.encoded, states[i].frames[i].encoded)
    np.testing.assert_allclose(loaded.truth, scene(48, 64, seed=2) * 0.8, atol=4 / 128)


def test_a_challenge_scene_without_one_of_its_states_says_so(tmp_path):
    write_challenge(tmp_path, "007")
    write_challenge(tmp_path, "008")
    for path in (tmp_path / "008_3").iterdir():
        path.unlink()
    (tmp_path / "007_1" / "ldr_img_1.tif").unlink()
    first, second = find_published(tmp_path)
    fails(first, "007_1 holds no ldr_img_1")
    fails(second, "008_3 is missing")


def test_a_lone_state_of_motion_is_a_scene_of_its_own(tmp_path):
    states = write_challenge(tmp_path / "all")
    (tmp_path / "lone").mkdir()
    (tmp_path / "all" / "007_2").rename(tmp_path / "lone" / "007_2")
    source = only(tmp_path / "lone")
    assert source.name == "007_2"
    np.testing.assert_array_equal(source.load().bracket.frames[0].encoded, states[1].frames[0].encoded)


def test_numbered_folders_of_other_sets_are_not_states_of_motion(tmp_path):
    for n in (1, 2, 3):
        write_scene(tmp_path / f"scene_{n}", names=("input_1.tif", "input_2.tif", "input_3.tif"))
    assert [s.name for s in find_published(tmp_path)] == ["scene_1", "scene_2", "scene_3"]


def test_names_are_unique_and_can_be_files(tmp_path):
    for place in ("a/b", "a-b", "c[1]", "x.y"):
        write_scene(tmp_path / place)
    assert sorted(s.name for s in find_published(tmp_path)) == ["a-b", "a-b-2", "c_1_", "x.y"]


def test_links_are_followed_once_and_never_in_circles(tmp_path):
    write_scene(tmp_path / "set" / "001")
    try:
        (tmp_path / "set" / "000").symlink_to(tmp_path / "set" / "001", target_is_directory=True)
        (tmp_path / "set" / "001" / "loop").symlink_to(tmp_path / "set", target_is_directory=True)
        (tmp_path / "set" / "self").symlink_to(tmp_path / "set" / "self", target_is_directory=True)
        (tmp_path / "linked").symlink_to(tmp_path / "set", target_is_directory=True)
    except OSError as error:
        pytest.skip(f"this file system makes no links: {error}")
    assert [s.name for s in find_published(tmp_path / "set")] == ["001"]
    assert [s.name for s in find_published(tmp_path / "linked")] == ["001"]


def test_folders_too_deep_and_hidden_ones_are_not_looked_into(tmp_path):
    write_scene(tmp_path / "1/2/3/4/5/6")
    write_scene(tmp_path / "1/2/3/4/5/too/deep")
    write_scene(tmp_path / ".trash/001")
    assert [s.name for s in find_published(tmp_path)] == ["1-2-3-4-5-6"]


def test_copies_that_macos_leaves_beside_files_are_not_photos(tmp_path):
    write_scene(tmp_path / "001")
    (tmp_path / "001" / "._262A0898.tif").write_bytes(b"resource fork")
    assert len(only(tmp_path).load().bracket.frames) == 3


def test_a_scene_without_truth_loads_without_one(tmp_path):
    write_scene(tmp_path / "001", truth_name=None)
    loaded = only(tmp_path).load()
    assert loaded.truth is None
    assert not loaded.masks
    assert loaded.facts["size"] == [64, 48]


def test_results_of_this_program_are_no_truth(tmp_path):
    write_scene(tmp_path / "001")
    write(HDRImage(scene(48, 64)), tmp_path / "001" / "mine.exr")
    write(HDRImage(scene(48, 64)), tmp_path / "001" / "mine.hdr")
    source = only(tmp_path)
    assert source.truth == tmp_path / "001" / "HDRImg.hdr"
    (tmp_path / "001" / "HDRImg.hdr").unlink()
    assert only(tmp_path).load().truth is None


def test_brackets_of_users_are_not_taken_for_published_sets(tmp_path):
    write_scene(tmp_path / "mine", text=None, truth_name=None)
    (tmp_path / "mine" / "notes.txt").write_text("a sunny day")
    write_scene(tmp_path / "merged", text=None)
    assert find_published(tmp_path) == []


def test_an_empty_folder_holds_nothing(tmp_path):
    assert find_published(tmp_path) == []


@pytest.mark.parametrize("make_file", [False, True])
def test_a_root_that_is_no_folder(tmp_path, make_file):
    root = tmp_path / "nowhere"
    if make_file:
        root.write_text("x")
    with pytest.raises(InputError, match=f"nowhere is {'not a folder' if make_file else 'not there'}: expected a folder of scenes"):
        find_published(root)


# ---- facts, identity -------------------------------------------------------------------------------------------------------


def test_facts_and_masks(tmp_path):
    write_scene(tmp_path / "001")
    loaded = only(tmp_path).load()
    assert {"motion", "clipped", "dark"} == set(loaded.masks)
    assert loaded.facts["source"] == "published"
    assert loaded.facts["motion_mask"] == "estimated from the frames"
    assert loaded.facts["stops"] == [-2.0, 0.0, 2.0]
    assert loaded.facts["reference"] == NAMES[1]
    assert 0 < loaded.facts["clipped_share"] < 0.5
    assert loaded.perfect is None
    assert loaded.known is None


def test_the_fingerprint_changes_with_every_file_and_with_nothing_else(tmp_path):
    write_scene(tmp_path / "001")
    source = only(tmp_path)
    seen = [source.fingerprint]
    assert pickle.loads(pickle.dumps(source)).fingerprint == seen[0]
    (tmp_path / "001").rename(tmp_path / "renamed")
    assert only(tmp_path).fingerprint == seen[0]
    (tmp_path / "renamed").rename(tmp_path / "001")
    for name in (*NAMES, "exposure.txt", "HDRImg.hdr"):
        path = tmp_path / "001" / name
        path.write_bytes(path.read_bytes() + b"\n")
        seen.append(source.fingerprint)
    assert len(set(seen)) == len(seen)
    (tmp_path / "001" / NAMES[0]).unlink()
    with pytest.raises(InputError, match="cannot be read"):
        _ = source.fingerprint


def test_natural_order():
    names = ["b1", "a10", "a9", "A2", "²", "a"]
    assert sorted(names, key=natural_key) == ["a", "A2", "a9", "a10", "b1", "²"]


def test_the_reference_of_a_challenge_scene_is_the_photo_of_the_truth_whatever_its_exposure(tmp_path):
    write_challenge(tmp_path)
    (tmp_path / "007_2" / "exposure.txt").write_text("0\n4\n2\n")
    loaded = only(tmp_path).load()
    assert loaded.bracket.frames[loaded.bracket.reference].name == "007_2/ldr_img_2.tif"
    assert replace(only(tmp_path), reference=None).load().bracket.reference == 1
