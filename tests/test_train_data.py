"""What training may see: pictures, scenes, crops."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gmodiff.datasets.dataset import open_dataset
from gmodiff.datasets.held_out import HELD_OUT_FOLDERS, HELD_OUT_PHOTOS, TEST_CAMERAS, training_pictures
from gmodiff.errors import InputError
from gmodiff.simulate import Camera
from gmodiff.train.crops import PER_FRAME, Batches, Place, cut, stack
from gmodiff.train.scenes import SceneStore, TrainingScene, draw, find_sources, render, simulated
from small_regressor import RECIPE
from training_pictures import write_hdr

SETS = Path(__file__).parent.parent / "benchmarks" / "sets"


SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


pytestmark = pytest.mark.usefixtures("one_thread")


def test_real_brackets_of_the_committed_set_are_never_trained_on(data, tmp_path):
    folders = {s.recipe.folder.rpartition("/")[2] for s in open_dataset(SETS / "real-static.toml", SETS).scenes}
    assert folders == set(HELD_OUT_FOLDERS)
    for name in (*folders, "own"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "photo.jpg").write_bytes((data / "photo.jpg").read_bytes())
    assert [p.parent.name for p in training_pictures(tmp_path)[1]] == ["own"]


@pytest.mark.parametrize("name", ["synthetic-val", "synthetic-hard"])
def test_no_picture_of_the_committed_sets_is_trained_on(name):
    if not SHARED.is_dir():
        pytest.skip("no shared data here")
    hdr, photos = training_pictures(SHARED)
    used = {s.recipe.picture for s in open_dataset(SETS / f"{name}.toml").scenes}
    assert used
    assert not used & {f"{p.parent.name}/{p.name}" for p in (*hdr, *photos)}
    assert len(hdr) > 50
    assert len(photos) > 100


def test_held_out_photos_are_those_of_the_sets():
    used = {
        s.recipe.picture.partition("/")[2]
        for n in ("synthetic-val", "synthetic-hard")
        for s in open_dataset(SETS / f"{n}.toml", SETS).scenes
    }
    assert {u for u in used if not u.endswith((".hdr", ".exr"))} == set(HELD_OUT_PHOTOS)


def test_cameras_kept_for_testing_are_not_trained_on():
    if not SHARED.is_dir():
        pytest.skip("no shared data here")
    names = {r.name for r in find_sources(SHARED).responses}
    assert len(names) > 5
    assert not names & set(TEST_CAMERAS)


def test_a_manifest_keeps_pictures_out(data, tmp_path):
    for path in data.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "MANIFEST.csv").write_text("file,split\nscene_0.hdr,val\nscene_1.hdr,train\n")
    (tmp_path / HELD_OUT_PHOTOS[0]).write_bytes((data / "photo.jpg").read_bytes())
    hdr, photos = training_pictures(tmp_path)
    assert [p.name for p in (*hdr, *photos)] == ["scene_1.hdr", "photo.jpg"]


@pytest.mark.parametrize(
    ("light", "said"),
    [
        (np.full((64, 128, 3), np.nan), r"not a picture of light \(24576 values were NaN or infinite\)"),
        (np.where(np.arange(64)[:, None, None] < 1, np.inf, np.full((64, 128, 3), 2.0)), r"\(384 values were NaN or infinite\)"),
        (np.zeros((64, 128, 3)), "not a picture of light"),
        (np.ones((16, 32, 3)), "expected at least"),
        (np.random.default_rng(0).uniform(0.5, 1, (64, 128, 3)), "no linear HDR picture"),
    ],
)
def test_pictures_that_cannot_teach_are_named_before_the_first_step(tmp_path, light, said):
    write_hdr(tmp_path / "bad.exr", light)
    with pytest.raises(InputError, match=said) as error:
        find_sources(tmp_path)
    assert str(tmp_path / "bad.exr") in str(error.value)


def test_a_photo_called_hdr_is_no_light(data, tmp_path):
    (tmp_path / "bad.hdr").write_bytes((data / "photo.jpg").read_bytes())
    with pytest.raises(InputError, match=r"bad\.hdr: holds a .* not linear light"):
        find_sources(tmp_path)


@pytest.mark.parametrize("head", ["File,Split", "file;split", "name,part", ""])
def test_a_manifest_that_names_no_split_is_refused(data, tmp_path, head):
    """Were it passed over, pictures that it keeps out would be trained on."""
    (tmp_path / "photo.jpg").write_bytes((data / "photo.jpg").read_bytes())
    (tmp_path / "MANIFEST.csv").write_text(f"{head}\nphoto.jpg,val\n")
    with pytest.raises(InputError, match=r"its columns are .*; expected file and, to keep some out, split"):
        training_pictures(tmp_path)


def test_a_manifest_of_a_spreadsheet_is_read(data, tmp_path):
    (tmp_path / "photo.jpg").write_bytes((data / "photo.jpg").read_bytes())
    (tmp_path / "MANIFEST.csv").write_text("file,split\nphoto.jpg,val\n", encoding="utf-8-sig")
    assert training_pictures(tmp_path) == ([], [])


def test_broken_and_small_photos_and_empty_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="holds no HDR picture"):
        find_sources(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        find_sources(tmp_path / "nowhere")
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(InputError, match=r"cut\.jpg: not a photo"):
        find_sources(tmp_path)
    Image.new("RGB", (100, 80)).save(tmp_path / "cut.jpg")
    with pytest.raises(InputError, match="100x80 pixels, expected 848"):
        find_sources(tmp_path)


def test_a_scene_depends_on_its_number_alone(store):
    first, again = (render(draw(store.sources, 1, 2), 64) for _ in range(2))
    assert all(np.array_equal(getattr(first, k), getattr(again, k)) for k in first.__dataclass_fields__)
    other = render(draw(store.sources, 1, 3), 64)
    assert not np.array_equal(first.truth, other.truth)


def test_the_reference_comes_first_and_truth_is_on_its_scale(store):
    scene = store[0]
    assert scene.stops[0] == 0
    own = scene.table[scene.codes[0], np.arange(3)]
    well = ((own > 0.05) & (own < 0.7)).all(axis=-1) & ~scene.moving
    assert abs(np.median(scene.truth[well] / own[well]) - 1) < 0.1


def test_truth_is_what_a_camera_that_renders_could_measure(store):
    """Its sharpened edges are not to be undone; a camera that only measures is judged by radiance itself."""
    plain = replace(draw(store.sources, 1, 0), told=True, camera=Camera(jpeg_quality=None))
    sharp = replace(plain, camera=Camera(jpeg_quality=None, sharpening=1.0, demosaic_px=0))
    truths = [render(d, 64).truth.astype(np.float32) for d in (plain, sharp)]
    made = simulated(plain, 64)
    assert np.array_equal(truths[0], np.minimum(made.truth, 6e4).astype(np.float16))
    edges = [np.abs(np.diff(np.log2(t + 0.01), axis=1)).mean() for t in truths]
    assert edges[1] > 1.05 * edges[0]
    assert abs(np.median(truths[1] / np.maximum(truths[0], 1e-4)) - 1) < 0.02


def test_a_cached_scene_is_the_same_and_one_cut_short_is_made_again(store):
    made = store[1]
    path = next(store.cache.glob("*/scene_000001.npz"))
    path.write_bytes(path.read_bytes()[:1000])
    again = store[1]
    assert np.array_equal(made.truth, again.truth)
    assert np.array_equal(made.codes, store[1].codes)


def test_other_pictures_or_sizes_have_other_caches(store, data):
    other = SceneStore(find_sources(data), 1, store.cache, size=96)
    assert other.digest != store.digest
    assert other[1].truth.shape == (96, 96, 3)
    fewer = replace(store.sources, photos=())
    assert SceneStore(fewer, 1, store.cache, size=64).digest != store.digest


def test_every_array_of_a_crop_is_cut_turned_and_swapped_alike():
    """A scene whose arrays all hold row, column and channel: whatever was done to one was done to all."""
    rows, columns = np.mgrid[0:64, 0:64]
    place_of = np.stack([rows * 2, columns * 2, np.full((64, 64), 77)], axis=-1).astype(np.uint8)
    codes = np.stack([place_of, place_of, place_of])
    half = place_of.astype(np.float16)
    table = np.repeat(np.arange(256, dtype=np.float32)[:, None], 3, axis=1)
    scene = TrainingScene(codes, codes[..., 0], np.array([0, -2, 2], np.float32), table, table, half, half, np.zeros((64, 64), bool))
    for flip_x, flip_y, turn in np.ndindex(2, 2, 2):
        made = cut(scene, Place(0, 5, 9, bool(flip_x), bool(flip_y), bool(turn), (2, 0, 1)), 32)
        wanted = made["truth"] * 4  # relative to the short frame's white
        for value in (made["merged"], made["encoded"] * 255, made["sigma"], *made["linear"]):
            torch.testing.assert_close(value, wanted)
        assert set(wanted[0].unique().tolist()) == {77.0}
        for covered in made["coverage"]:
            torch.testing.assert_close(covered[0] * 255, wanted[1])


def test_batches_that_processes_cannot_share_are_refused(store):
    with pytest.raises(InputError, match="3 processes cannot share batches of 2"):
        Batches(store, RECIPE, (0, 3))


def test_processes_share_a_batch_between_them(store):
    whole = Batches(store, RECIPE)[5]
    parts = [Batches(store, RECIPE, (rank, 2))[5] for rank in range(2)]
    for name, value in whole.items():
        assert torch.equal(value[0], parts[0][name][0])
        assert torch.equal(value[1], parts[1][name][0])


def test_crops_keep_their_channels_and_geometry_together(store):
    """Whatever was flipped or swapped, the reference's linear light is that of its own encoded picture, near the merge's radiance."""
    for step in range(6):
        places = Batches(store, RECIPE)._places(step)
        batch = stack([cut(store[p.scene], replace(p, shrink=1), RECIPE.crop_px) for p in places])
        order_encoded = batch["encoded"].flatten(2).argsort(dim=2)
        climbing = torch.gather(batch["linear"][:, 0].flatten(2), 2, order_encoded)
        assert (climbing.diff(dim=2) >= -1e-6).all()
        well = (batch["encoded"] > 0.3) & (batch["encoded"] < 0.8)
        ratio = (batch["merged"] / batch["linear"][:, 0])[well]
        assert abs(float(ratio.median()) - 1) < 0.1


def test_some_crops_are_means_of_twice_the_side(store):
    places = [p for step in range(8) for p in Batches(store, RECIPE)._places(step)]
    shrunk = [p for p in places if p.shrink == 2]
    assert 0 < len(shrunk) < len(places)
    assert not [p for step in range(8) for p in Batches(store, replace(RECIPE, stage="noise"))._places(step) if p.shrink == 2]
    small, large = cut(store[shrunk[0].scene], shrunk[0], 32), cut(store[shrunk[0].scene], replace(shrunk[0], shrink=1), 64)
    for name, values in small.items():
        wanted = large[name] if name in PER_FRAME else torch.nn.functional.avg_pool2d(large[name], 2)
        assert torch.equal(values, wanted)
