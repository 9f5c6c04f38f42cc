"""Training: goes on exactly where it was killed, shares its work among processes, refuses what it cannot learn from."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from command_line import run
from gmodiff.datasets.dataset import open_dataset
from gmodiff.datasets.held_out import HELD_OUT_FOLDERS, HELD_OUT_PHOTOS, TEST_CAMERAS, training_pictures
from gmodiff.errors import FileFormatError, InputError
from gmodiff.model.noise_reducer import NoiseShape, read_noise_reducer, write_noise_reducer
from gmodiff.model.regressor import Regressor, Shape, full_gain
from gmodiff.model.weights import read_weights, write_weights
from gmodiff.provenance import constrain, look_up
from gmodiff.radiometry import CameraResponse, NoiseModel, clipping_nearness, deviation_of_codes
from gmodiff.runtime import load_model
from gmodiff.simulate import Camera
from gmodiff.train import loop
from gmodiff.train.crops import PER_FRAME, Batches, Place, cut, stack
from gmodiff.train.losses import average_precision, errs, estimate_loss, full_size, unmeasured
from gmodiff.train.recipes import MASK, NOISE, REGRESSOR
from gmodiff.train.regressor_stages import held_to_merge
from gmodiff.train.scenes import SceneStore, TrainingScene, draw, find_sources, render, simulated
from gmodiff.train.shipping import ship
from gmodiff.train.stage import INPUTS
from gmodiff.train.stages import begin
from training_pictures import write_hdr

SETS = Path(__file__).parent.parent / "benchmarks" / "sets"
SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
SMALL = Shape(widths=(16, 16, 16, 16), encoder=(1, 1, 1), middle=1, decoder=(1, 1, 1), polish=4)
RECIPE = replace(
    REGRESSOR, steps=8, scenes=4, batch=2, crop_px=32, warm_up=2, save_every=4, check_scenes=1, shape=SMALL, rate=2e-3, ema=0.9
)


pytestmark = pytest.mark.usefixtures("one_thread")


def weights_of(path: Path) -> dict:
    return read_weights(path)[0].state_dict()


def same(one: dict, other: dict, tolerance: float = 0.0) -> bool:
    return all(torch.allclose(one[k], other[k], rtol=0, atol=tolerance) for k in one)


# ---- what training may see ----


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


# ---- scenes and batches ----


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


# ---- losses ----


def test_the_right_gain_costs_nothing_and_a_wrong_one_something(store):
    batch = Batches(store, RECIPE)[0]
    from gmodiff.model.regressor import mu_gain

    right = mu_gain(batch["truth"], batch["encoded"]).clamp(max=1.5)
    assert float(estimate_loss(right, batch["truth"], batch["encoded"])[0]) < 2e-3
    assert float(estimate_loss(right + 0.05, batch["truth"], batch["encoded"])[0]) > 0.05
    assert not errs(right, batch["truth"], batch["encoded"]).any()
    assert errs(right + 0.3, batch["truth"], batch["encoded"]).float().mean() > 0.9


def test_average_precision_is_that_of_scikit_learn_by_hand():
    """Ranked right, wrong, right: precisions 1/1 and 2/3."""
    scores, wrong = torch.tensor([0.9, 0.8, 0.7, 0.1]), torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert average_precision(scores, wrong) == pytest.approx((1 + 2 / 3) / 2)
    if torch.cuda.is_available():
        assert average_precision(scores.cuda(), wrong.cuda()) == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(average_precision(scores, torch.zeros(4)))


# ---- the loop ----


def test_stopped_and_gone_on_is_the_same_as_never_stopped(store, tmp_path):
    loop.train(RECIPE, store, tmp_path / "whole", workers=0, say=lambda _: None)
    loop.train(RECIPE, store, tmp_path / "parts", workers=0, say=lambda _: None, stop_after=4)
    said = []
    loop.train(RECIPE, store, tmp_path / "parts", workers=1, say=said.append)
    assert said[0] == "going on at step 4 of 8"
    assert same(weights_of(tmp_path / "whole" / loop.WEIGHTS), weights_of(tmp_path / "parts" / loop.WEIGHTS))
    (tmp_path / "parts" / loop.WEIGHTS).unlink()
    loop.train(RECIPE, store, tmp_path / "parts", workers=0, say=lambda _: None)  # nothing left to do but to write them again
    assert same(weights_of(tmp_path / "whole" / loop.WEIGHTS), weights_of(tmp_path / "parts" / loop.WEIGHTS))
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / loop.LOG).read_text().splitlines()]
    assert steps == [4, 8]


def test_other_settings_do_not_go_on(store, tmp_path):
    loop.train(RECIPE, store, tmp_path, workers=0, say=lambda _: None, stop_after=4)
    with pytest.raises(InputError, match=r"was begun with --rate 0\.002, now it is 0\.1"):
        loop.train(replace(RECIPE, rate=0.1), store, tmp_path, workers=0)
    with pytest.raises(InputError, match="was begun with other pictures"):
        loop.train(RECIPE, replace(store, seed=2), tmp_path, workers=0)
    (tmp_path / loop.CHECKPOINT).write_bytes(b"half a file")
    with pytest.raises(InputError, match="not a checkpoint"):
        loop.train(RECIPE, store, tmp_path, workers=0)


def test_training_lowers_the_loss_and_the_mask_learns_where_it_errs(store, tmp_path):
    recipe = replace(RECIPE, steps=120, save_every=120, warm_up=10, rate=1e-3)
    loop.train(recipe, store, tmp_path / "a", workers=0, say=lambda _: None)
    batch = stack([{k: v[0] for k, v in Batches(store, recipe)[n].items()} for n in _of_one_count(store, recipe)])
    inputs = {k: batch[k] for k in INPUTS}

    def loss(network):
        with torch.no_grad():
            gain = full_gain(network(**inputs).change, batch["merged"], batch["stops"], batch["encoded"])
        return float(estimate_loss(gain, batch["truth"], batch["encoded"])[0])

    trained = read_weights(tmp_path / "a" / loop.WEIGHTS)[0]
    torch.manual_seed(1)
    assert loss(trained) < loss(Regressor(SMALL))

    same_as = ("scenes", "batch", "crop_px", "check_scenes", "shape", "ema")
    mask = replace(MASK, **{k: getattr(recipe, k) for k in same_as}, steps=600, save_every=600, rate=3e-3)
    loop.train(mask, store, tmp_path / "m", start=tmp_path / "a" / loop.WEIGHTS, workers=0, say=lambda _: None)
    finished, facts = read_weights(tmp_path / "m" / loop.WEIGHTS)
    assert facts["steps"] == {"regressor": 120, "mask": 600}
    assert all(torch.equal(v, dict(trained.named_parameters())[k]) for k, v in finished.named_parameters() if not k.startswith("mask_"))
    # On what it was trained on: with four scenes there is nothing general to learn.
    seen = [Batches(store, mask)[n] for n in range(40)]
    with torch.no_grad():
        before, found = (sum(float(begin(mask, path / loop.WEIGHTS)(b, 0)[0]) for b in seen) for path in (tmp_path / "a", tmp_path / "m"))
        scores, wrong = zip(*(doubt(finished, b) for b in seen), strict=True)
    assert found < before
    assert average_precision(torch.cat(scores), torch.cat(wrong)) > float(torch.cat(wrong).mean()) + 0.02
    with pytest.raises(InputError, match="finished regressor"):
        loop.train(mask, store, tmp_path / "n", workers=0)


def test_noise_is_learned_and_shipped_beside_its_regressor(store, tmp_path):
    loop.train(RECIPE, store, tmp_path / "r", workers=0, say=lambda _: None)
    same_as = ("scenes", "batch", "crop_px", "check_scenes", "ema")
    mask = replace(MASK, **{k: getattr(RECIPE, k) for k in same_as}, steps=2, save_every=2, shape=SMALL)
    loop.train(mask, store, tmp_path / "m", start=tmp_path / "r" / loop.WEIGHTS, workers=0, say=lambda _: None)
    regressor = tmp_path / "m" / loop.WEIGHTS
    recipe = replace(NOISE, **{k: getattr(RECIPE, k) for k in same_as}, steps=80, save_every=80, warm_up=10, rate=1e-2)
    with pytest.raises(InputError, match="beside a regressor: give its run or weights with --regressor"):
        loop.train(recipe, store, tmp_path / "whole", workers=0)
    loop.train(recipe, store, tmp_path / "whole", regressor=regressor, workers=0, say=lambda _: None)
    finished = tmp_path / "whole" / loop.WEIGHTS
    whole, facts = read_noise_reducer(finished)
    assert facts["steps"] == {"noise": 80}

    seen = [Batches(store, recipe)[n] for n in range(10)]  # with four scenes there is nothing general to learn
    stages = [begin(recipe, start, regressor) for start in (None, finished)]
    with torch.no_grad():
        untrained, trained = (sum(float(s(b, 0)[0]) for b in seen) for s in stages)
    assert trained < untrained
    with pytest.raises(InputError, match="of another shape"):
        begin(replace(recipe, noise=NoiseShape(widths=(8, 8))), finished, regressor)

    card = tmp_path / "small.json"
    made = ship(regressor, card, finished)
    assert [p.name for p in made] == ["small.json", "small.onnx", "small.safetensors", "small-noise.onnx", "small-noise.safetensors"]
    assert json.loads(card.read_text())["noise"]["steps"] == {"noise": 80}
    assert load_model(str(card)).noise_reducer is not None
    with pytest.raises(FileFormatError, match="expected weights of a noise"):
        ship(regressor, card, regressor)
    write_noise_reducer(whole, tmp_path / "other.safetensors", facts | {"guide": "0" * 16})
    with pytest.raises(InputError, match="trained beside another regressor"):
        ship(regressor, card, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"has no trained mask \(steps: {'regressor': 8}\)"):
        ship(tmp_path / "r" / loop.WEIGHTS, tmp_path / "unmasked.json")
    assert not list(tmp_path.glob("unmasked*"))


def test_a_regressor_that_goes_on_needs_its_mask_again(tmp_path):
    """Its head was trained on features that are others now."""
    write_weights(Regressor(SMALL), tmp_path / "w.safetensors", {"steps": {"regressor": 5, "mask": 5}})
    assert begin(RECIPE, tmp_path / "w.safetensors").before["steps"] == {"regressor": 5}


def test_weights_say_what_was_stopped_early_and_on_which_scenes(store, tmp_path):
    loop.train(RECIPE, store, tmp_path, workers=0, say=lambda _: None, stop_after=4)
    facts = read_weights(tmp_path / loop.WEIGHTS)[1]
    assert facts["unfinished"] == {"regressor": "step 4 of 8"}
    assert facts["scene_seed"] == store.seed
    loop.train(RECIPE, store, tmp_path, workers=0, say=lambda _: None)
    assert read_weights(tmp_path / loop.WEIGHTS)[1]["unfinished"] == {}


@pytest.mark.skipif(os.name == "nt", reason="nothing keeps two runs apart on Windows")
def test_two_runs_do_not_write_into_one_folder(store, tmp_path):
    with loop._alone(tmp_path), pytest.raises(InputError, match="another gmodiff train is writing there"):
        loop.train(RECIPE, store, tmp_path, workers=0, say=lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_the_log_loses_what_is_done_again(store, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    loop.train(RECIPE, store, tmp_path, workers=0, say=lambda _: None, stop_after=4)
    with (tmp_path / loop.LOG).open("a") as log:  # two steps more, and killed before the next checkpoint
        log.write('{"step": 5, "loss": 1}\n{"step": 6, "lo')
    loop.train(RECIPE, store, tmp_path, workers=0, say=lambda _: None)
    lines = [json.loads(line) for line in (tmp_path / loop.LOG).read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_in_training_an_estimate_is_held_as_the_pipeline_holds_it():
    """A ramp of every code, the merge in the middle of each interval, estimates far off; near clipping, as much less."""
    response, noise = CameraResponse.named("srgb"), NoiseModel()
    codes = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (2, 256, 3)).copy()
    merged = look_up(response.codes(codes.dtype), codes)
    sigma = look_up(deviation_of_codes(response, noise, codes.dtype), codes)
    far = (merged + np.array([[[0.3]], [[-0.3]]], np.float32)).astype(np.float32)

    def planes(picture):
        return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32))[None]

    encoded = planes(codes / np.float32(255))
    batch = {"merged": planes(merged), "sigma": planes(sigma), "encoded": encoded, "stops": torch.zeros(1, 2)}
    assert np.allclose(unmeasured(encoded)[0, 0].numpy(), clipping_nearness(codes[..., 0] / 255), atol=1e-6)
    wanted = constrain(far, codes, response, noise, merged=merged)
    found = held_to_merge(planes(far), batch)[0].numpy().transpose(1, 2, 0)
    measured = (clipping_nearness(codes[..., 0] / 255) == 0) & (codes[..., 0] > 8)  # in the black the interval ends at 0
    assert measured.sum() > 400
    assert np.allclose(found[measured], wanted[measured], atol=1e-6)
    assert np.allclose(found[0, 255], far[0, 255])  # clipped: as free as it comes


def doubt(network, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """What the mask says of each pixel, and where the estimate errs, flat."""
    estimate = network(**{k: batch[k] for k in INPUTS}, with_mask=True)
    gain = full_gain(estimate.change, batch["merged"], batch["stops"], batch["encoded"])
    wrong = errs(gain, batch["truth"], batch["encoded"])
    return full_size(estimate.degradation, wrong).flatten(), wrong.flatten()


def _of_one_count(store, recipe) -> list[int]:
    """Four steps whose crops have as many frames as the first's."""
    batches = Batches(store, recipe)
    count = batches[0]["stops"].shape[1]
    return [n for n in range(40) if batches[n]["stops"].shape[1] == count][:4]


def command(data: Path, out: Path, cache: Path, *more: str) -> list[str]:
    settings = "--steps 12 --batch 2 --crop 64 --scenes 2 --save-every 2 --check-scenes 1 --threads 1 --workers 0".split()  # noqa: SIM905
    return ["-m", "gmodiff", "train", "regressor", "--data", str(data), "--out", str(out), "--cache", str(cache), *settings, *more]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("rendered")


def test_killed_at_any_moment_a_run_goes_on(data, cache, tmp_path):
    """kill -9 three times, wherever it is; what is on disk is whole each time, and the end is that of a run never killed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, *command(data, whole, cache)], check=True, capture_output=True, timeout=240)
    for n in range(3):
        process = subprocess.Popen([sys.executable, *command(data, killed, cache)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = _step(killed)
        deadline = time.monotonic() + 120
        while _step(killed) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.05 * n)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert _step(killed) > before or before == 12
    subprocess.run([sys.executable, *command(data, killed, cache)], check=True, capture_output=True, timeout=240)
    assert same(weights_of(whole / loop.WEIGHTS), weights_of(killed / loop.WEIGHTS))


def test_ctrl_c_says_how_to_go_on(data, cache, tmp_path, capsys, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupted)
    code, _, err = run(command(data, tmp_path, cache)[2:], capsys)
    assert code == 130
    assert err == f"gmodiff: stopped; the same command goes on from the last checkpoint in {tmp_path}, if there is one\n"


def _step(out: Path) -> int:
    path = out / loop.CHECKPOINT
    return int(torch.load(path, weights_only=True)["step"]) if path.is_file() else 0


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_two_processes_make_the_steps_of_one(data, cache, tmp_path):
    settings = ("--steps", "4", "--save-every", "4")
    subprocess.run([sys.executable, *command(data, tmp_path / "one", cache, *settings)], check=True, capture_output=True, timeout=240)
    together = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    together += ["--master-addr", "127.0.0.1", "--master-port", str(_free_port())]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*together, *command(data, tmp_path / "two", cache, *settings)], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert same(weights_of(tmp_path / "one" / loop.WEIGHTS), weights_of(tmp_path / "two" / loop.WEIGHTS), 1e-5)


def test_a_run_that_only_overflows_ends(store, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "MOST_OVERFLOWS", 3)
    with pytest.raises(InputError, match=r"not finite for 3 steps.*give a smaller --rate \(now 1e\+30\)"):
        loop.train(replace(RECIPE, rate=1e30, warm_up=1), store, tmp_path, workers=0, say=lambda _: None)


def test_broken_weights_do_not_ship(tmp_path):
    from gmodiff.model.weights import write_weights
    from gmodiff.train.shipping import ship

    network = Regressor(SMALL)
    with torch.no_grad():
        network.join.bias[0] = float("nan")
    write_weights(network, tmp_path / "w.safetensors", {})
    with pytest.raises(InputError, match=r"1 of its tensors are not finite \(join.bias"):
        ship(tmp_path / "w.safetensors", tmp_path / "card.json")


def test_what_goes_wrong_in_a_worker_is_one_line(data, tmp_path):
    sources = find_sources(data)
    store = SceneStore(replace(sources, hdr=(), photos=(tmp_path / "gone.jpg",)), 1, None, size=64)
    with pytest.raises(InputError) as error:
        loop.train(RECIPE, store, tmp_path / "run", workers=1, say=lambda _: None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--crop", "50"), "--crop 50: expected a multiple of 32"),
        (("--rate", "nan"), "--rate"),
        (("--from", "nowhere.safetensors"), "no weights there"),
        (("--curves", "nowhere.json"), "--curves nowhere.json: there is no such file"),
        (("--cache", __file__), "a file lies there, and scenes are kept in a folder"),
    ],
)
def test_bad_settings_are_one_line(data, cache, tmp_path, more, said):
    done = subprocess.run([sys.executable, *command(data, tmp_path, cache, *more)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
