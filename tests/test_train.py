"""Stages 1 and 2 and the noise reducer: what they learn, what a run that goes on keeps, what does not ship."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from gmodiff.errors import FileFormatError, InputError
from gmodiff.model.noise_reducer import NoiseShape, read_noise_reducer, write_noise_reducer
from gmodiff.model.regressor import Regressor, full_gain
from gmodiff.model.weights import read_weights, write_weights
from gmodiff.provenance import constrain, look_up
from gmodiff.radiometry import CameraResponse, NoiseModel, clipping_nearness, deviation_of_codes
from gmodiff.runtime import load_model
from gmodiff.train import loop
from gmodiff.train.crops import Batches, stack
from gmodiff.train.losses import average_precision, errs, estimate_loss, full_size, unmeasured
from gmodiff.train.recipes import MASK, NOISE
from gmodiff.train.regressor_stages import held_to_merge
from gmodiff.train.shipping import ship
from gmodiff.train.stage import INPUTS
from gmodiff.train.stages import begin
from small_regressor import RECIPE, SMALL, same, weights_of

pytestmark = pytest.mark.usefixtures("one_thread")


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
    with pytest.raises(InputError, match="not a whole checkpoint"):
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
