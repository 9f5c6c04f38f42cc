"""Brackets in folders: what is found, where exposures come from, and what the truth means."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataset_files import fails, write_hdr
from gmodiff.datasets.folders import FolderScene, find_brackets
from gmodiff.errors import FileFormatError, InputError
from gmodiff.image import HDRImage
from gmodiff.radiometry import CameraResponse
from gmodiff.simulate import s_curve
from gmodiff.writer import write
from photo_files import exif_bytes
from synthetic import scene

BRACKETS = Path(__file__).resolve().parents[2] / "shared" / "data" / "brackets"
STOPS = (-2.0, 0.0, 2.0)
NAMES = ("short.png", "middle.png", "long.png")


def light() -> np.ndarray:
    return scene(96, 128)


def write_bracket(
    folder: Path,
    *,
    names: tuple[str, ...] = NAMES,
    stops: tuple[float, ...] = STOPS,
    response: CameraResponse | None = None,
    exif: bool = False,
) -> None:
    """Photos of `light`, radiance 1.0 = white at 0 stops; the exposure goes into EXIF where wanted."""
    folder.mkdir(parents=True, exist_ok=True)
    camera = response or CameraResponse.named("srgb")
    for name, stop in zip(names, stops, strict=True):
        codes = np.rint(camera.encode(light() * np.float32(2.0**stop)) * 255).astype(np.uint8)
        extra = {"exif": b"Exif\0\0" + exif_bytes(time=(1, round(64 / 2**stop)), iso=100)} if exif else {}
        options = {"quality": 95} if name.endswith("jpg") else {}
        Image.fromarray(codes).save(folder / name, **extra, **options)


def write_meta(folder: Path, **content: Any) -> None:
    (folder / "meta.json").write_text(json.dumps(content))


def images(*names: str) -> list[dict[str, str]]:
    return [{"file": name} for name in names]


def only(root: Path) -> FolderScene:
    (found,) = find_brackets(root)
    return found


# ---- what is found ------------------------------------------------------------------------------------------------------


def test_every_folder_with_2_to_16_photos_is_found(tmp_path):
    write_bracket(tmp_path / "a" / "one")
    write_bracket(tmp_path / "a" / "two" / "deeper")
    write_bracket(tmp_path / "alone", names=("x.png",), stops=(0.0,))
    write_bracket(tmp_path / "many", names=tuple(f"{i}.png" for i in range(17)), stops=(0.0,) * 17)
    (tmp_path / "empty").mkdir()
    assert [s.name for s in find_brackets(tmp_path)] == ["a-one", "a-two-deeper"]
    assert [s.name for s in find_brackets(tmp_path / "a" / "one")] == ["one"]


def test_a_root_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="nowhere is not there"):
        find_brackets(tmp_path / "nowhere")


def test_results_of_this_program_are_not_photos(tmp_path):
    write_bracket(tmp_path)
    picture = HDRImage(light(), base=np.full((96, 128, 3), 128, np.uint8))
    for name in ("result.png", "result.tif", "result.exr"):
        write(picture, tmp_path / name)
    loaded = only(tmp_path).load()
    assert sorted(f.name for f in loaded.bracket.frames) == sorted(NAMES)


def test_photos_of_one_kind_make_the_bracket(tmp_path):
    write_bracket(tmp_path, names=("a.png", "b.png", "c.png"))
    write_bracket(tmp_path, names=("preview.jpg",), stops=(0.0,))
    loaded = only(tmp_path).load()
    assert {f.name for f in loaded.bracket.frames} == {"a.png", "b.png", "c.png"}


# ---- where exposures come from ------------------------------------------------------------------------------------------


def test_ev_of_meta_json_is_used_in_the_order_of_its_images(tmp_path):
    write_bracket(tmp_path)
    # Not what the photos were taken at: only the file can say so. The order is not that of the names, nor of the exposures.
    write_meta(tmp_path, images=images("long.png", "short.png", "middle.png"), ev=[2.25, -2.125, 0.0])
    loaded = only(tmp_path).load()
    assert [f.name for f in loaded.bracket.frames] == list(NAMES)
    np.testing.assert_allclose(np.log2([f.exposure for f in loaded.bracket.frames]), [-2.125, 0, 2.25], atol=1e-9)
    assert loaded.facts["exposure_source"] == "given"


@pytest.mark.parametrize("ev", [[], [1.0, 2.0], None])
def test_without_an_ev_for_each_image_exif_decides(tmp_path, ev):
    names = ("s.jpg", "m.jpg", "l.jpg")
    write_bracket(tmp_path, names=names, exif=True)
    write_meta(tmp_path, images=images(*names), ev=ev)
    loaded = only(tmp_path).load()
    assert loaded.facts["exposure_source"] == "exif"
    np.testing.assert_allclose(loaded.bracket.relative_exposures, [0.25, 1, 4], rtol=0.01)  # refined from the pixels


def test_without_metadata_exposure_txt_or_the_pixels_decide(tmp_path):
    write_bracket(tmp_path / "pixels")
    write_bracket(tmp_path / "text", names=("1.png", "2.png", "3.png"))
    (tmp_path / "text" / "exposure.txt").write_text("0\n2\n4\n")
    found = {s.name: s.load().facts for s in find_brackets(tmp_path)}
    assert found["pixels"]["exposure_source"] == "estimated"
    assert found["text"]["exposure_source"] == "exposure.txt"


def test_only_the_photos_that_meta_json_lists_are_read(tmp_path):
    write_bracket(tmp_path, names=tuple(f"{i}.png" for i in range(20)), stops=tuple((i - 10) / 5 for i in range(20)))
    write_meta(tmp_path, images=images("0.png", "10.png", "19.png"), ev=[-2.0, 0.0, 1.8], motion="static")
    loaded = only(tmp_path).load()
    assert [f.name for f in loaded.bracket.frames] == ["0.png", "10.png", "19.png"]
    assert loaded.facts["motion"] == "static"


def test_photos_can_be_picked_by_name_and_keep_their_ev(tmp_path):
    write_bracket(tmp_path, names=("1.png", "2.png", "3.png", "4.png"), stops=(-2.0, 0.0, 2.0, 3.0))
    write_meta(tmp_path, images=images("1.png", "2.png", "3.png", "4.png"), ev=[-2.0, 0.0, 2.0, 3.0])
    picked = FolderScene("picked", tmp_path, ("3.png", "1.png"), reference="3.png").load()
    assert [f.name for f in picked.bracket.frames] == ["1.png", "3.png"]
    assert picked.bracket.relative_exposures == (1 / 16, 1.0)
    assert picked.facts["reference"] == "3.png"
    fails(FolderScene("picked", tmp_path, ("3.png", "5.png")), "holds no 5.png")


def test_the_response_is_the_estimated_one(tmp_path):
    camera = s_curve((0.6, 0.6, 0.6))
    write_bracket(tmp_path, response=camera)
    write_meta(tmp_path, images=images(*NAMES), ev=list(STOPS))
    loaded = only(tmp_path).load()
    assert loaded.facts["response"] == "estimated"
    encoded = np.array([0.3, 0.5, 0.7])
    np.testing.assert_allclose(loaded.bracket.response.at(encoded), camera.at(encoded), rtol=0.12)


def test_facts_of_a_bracket_without_truth(tmp_path):
    write_bracket(tmp_path)
    write_meta(tmp_path, images=images(*NAMES), ev=list(STOPS))
    loaded = only(tmp_path).load()
    assert loaded.truth is None
    assert not loaded.masks
    assert loaded.facts["source"] == "photos"
    assert loaded.facts["stops"] == list(STOPS)
    assert isinstance(loaded.facts["notes"], list)
    assert "motion" not in loaded.facts
    assert "motion_mask" not in loaded.facts


# ---- truth --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "white"), [("truth.exr", 1.0), ("truth.hdr", 1.0), ("HDRImg.hdr", 4.0)])
def test_what_one_means_in_each_truth(tmp_path, name, white):
    write_bracket(tmp_path)
    write_meta(tmp_path, images=images(*NAMES), ev=list(STOPS))
    stored = light() / np.float32(white)
    if name.endswith("exr"):
        write(HDRImage(stored), tmp_path / name)
    else:
        write_hdr(tmp_path / name, stored)
    loaded = only(tmp_path).load()
    assert loaded.facts["reference"] == "middle.png"
    np.testing.assert_allclose(loaded.truth, light(), atol=4 / 128)
    np.testing.assert_allclose(np.median(loaded.truth / light()), 1, atol=0.01)
    assert set(loaded.masks) == {"motion", "clipped", "dark"}
    assert loaded.facts["motion_share"] < 0.02
    np.testing.assert_array_equal(loaded.masks["clipped"], loaded.truth.max(axis=-1) >= 1)


def test_with_a_truth_the_reference_is_the_middle_photo_or_the_one_named(tmp_path):
    # By pixels alone a darker photo would be chosen here: most of the others is clipped.
    names, stops = ("0.png", "1.png", "2.png"), (0.0, 4.0, 6.0)
    write_bracket(tmp_path, names=names, stops=stops)
    write_meta(tmp_path, images=images(*names), ev=list(stops))
    assert only(tmp_path).load().facts["reference"] == "0.png"
    write_hdr(tmp_path / "HDRImg.hdr", light())
    middle = only(tmp_path).load()
    assert middle.facts["reference"] == "1.png"
    np.testing.assert_allclose(middle.truth, light() * 16, atol=64 / 128)
    write_meta(tmp_path, images=images(*names), ev=list(stops), reference="2.png")
    named = only(tmp_path).load()
    assert named.facts["reference"] == "2.png"
    np.testing.assert_allclose(named.truth, middle.truth * 4)


def test_a_truth_of_another_size(tmp_path):
    write_bracket(tmp_path)
    write_hdr(tmp_path / "truth.hdr", light()[:90])
    fails(only(tmp_path), "truth.hdr is 128x90 but the photos are 128x96")


def test_two_truths(tmp_path):
    write_bracket(tmp_path)
    for name in ("truth.hdr", "HDRImg.hdr"):
        write_hdr(tmp_path / name, light())
    fails(only(tmp_path), "truth.hdr and HDRImg.hdr could both be the truth")


# ---- what is wrong with a folder ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words", "kind"),
    [
        ("{", ["meta.json is not JSON"], FileFormatError),
        ("[1, 2]", ["meta.json holds a list"], FileFormatError),
        ('{"images": 3}', ['"images" must be a list of objects'], FileFormatError),
        ('{"images": [{"name": "short.png"}]}', ['each with "file"'], FileFormatError),
        ('{"images": [{"file": "../short.png"}]}', ['each with "file"'], FileFormatError),
        ('{"images": [{"file": "short.png"}, {"file": "gone.png"}]}', ["holds no gone.png, which its meta.json lists"], InputError),
        ('{"images": [{"file": "short.png"}, {"file": "long.png"}], "ev": [0, "x"]}', ['"ev" must be numbers'], FileFormatError),
        ('{"images": [{"file": "short.png"}, {"file": "long.png"}], "ev": [0, NaN]}', ['"ev" must be numbers'], FileFormatError),
        ('{"images": [{"file": "short.png"}, {"file": "long.png"}], "ev": [1, 1]}', ["all the same"], InputError),
        ('{"images": [{"file": "short.png"}], "reference": "long.png"}', ["reference is 'long.png'"], FileFormatError),
        ('{"images": [{"file": "short.png"}]}', ["2 to 16 photos, got 1"], InputError),
    ],
)
def test_a_meta_json_that_cannot_be_used_stops_its_own_scene_only(tmp_path, content, words, kind):
    write_bracket(tmp_path / "bad")
    (tmp_path / "bad" / "meta.json").write_text(content)
    write_bracket(tmp_path / "good")
    bad, good = find_brackets(tmp_path)
    fails(bad, *words, kind=kind)
    assert good.load().name == "good"


def test_photos_that_are_no_bracket(tmp_path):
    write_bracket(tmp_path, names=("a.png", "b.png"), stops=(0.0, 0.0))
    fails(only(tmp_path), "a.png and b.png")


def test_a_folder_that_went_away(tmp_path):
    fails(FolderScene("gone", tmp_path / "gone"), "gone is not there")


def test_the_fingerprint_changes_with_every_file_that_matters(tmp_path):
    write_bracket(tmp_path)
    source = only(tmp_path)
    seen = [source.fingerprint]
    assert pickle.loads(pickle.dumps(source)).fingerprint == seen[0]
    (tmp_path / "diary.txt").write_text("dear diary")
    assert source.fingerprint == seen[0]
    write_meta(tmp_path, images=images(*NAMES), ev=list(STOPS))
    seen.append(source.fingerprint)
    (tmp_path / "exposure.txt").write_text("0\n2\n4\n")
    seen.append(source.fingerprint)
    write_hdr(tmp_path / "truth.hdr", light())
    seen.append(source.fingerprint)
    (tmp_path / "long.png").write_bytes((tmp_path / "long.png").read_bytes() + b"\n")
    seen.append(source.fingerprint)
    assert len(set(seen)) == len(seen)


# ---- real photos --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not BRACKETS.is_dir(), reason="the shared brackets are not here")
def test_real_brackets_are_found_and_load():
    found = {s.name: s for s in find_brackets(BRACKETS)}
    folders = {p.parent.name for p in BRACKETS.glob("*/meta.json")}
    assert set(found) == folders
    assert len(found) == 14
    hall = found["hdrtb_ghost_hall"].load()
    assert [f.name for f in hall.bracket.frames] == ["IMG_0960.JPG", "IMG_0959.JPG", "IMG_0961.JPG"]
    assert hall.facts["size"] == [900, 600]
    assert hall.facts["stops"] == [-2.0, 0.0, 2.06]
    assert hall.facts["motion"] == "dynamic"
    assert found["merianos_flowers"].load().facts["exposure_source"] == "estimated"
