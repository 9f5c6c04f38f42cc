"""The refiner's three stages: that they learn, go on, refuse what they cannot begin with, and ship."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gmodiff.errors import FileFormatError, InputError
from gmodiff.gainmap import mu_gain
from gmodiff.model.autoencoder import AutoencoderShape
from gmodiff.model.denoiser import DenoiserShape
from gmodiff.model.on_arrays import RefinerOnArrays
from gmodiff.model.refiner import read_refiner, write_refiner
from gmodiff.model.regressor import GAIN_LIMIT, Regressor, Shape
from gmodiff.model.weights import write_weights
from gmodiff.model_card import Card
from gmodiff.refine import CONTEXT, THRESHOLD, Refinement, _given
from gmodiff.refine import CONTEXT as CONTEXT_NAMES
from gmodiff.runtime import load_card, load_refiner
from gmodiff.train import loop
from gmodiff.train.crops import Batches
from gmodiff.train.losses import as_used
from gmodiff.train.recipes import RECIPES
from gmodiff.train.shipping import ship, ship_refiner
from gmodiff.train.stages import begin
from gmodiff.upsampling import enlarged_rows
from refiner_shapes import SMALL

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = {
    "steps": 30,
    "scenes": 4,
    "batch": 2,
    "crop_px": 32,
    "warm_up": 3,
    "rate": 1e-3,
    "ema": 0.9,
    "save_every": 30,
    "check_scenes": 1,
}
SETTINGS |= {"autoencoder": SMALL, "denoiser": DenoiserShape((16, 16, 16), (1, 1, 1, 1, 1), 8, (16, 16, 16), 32)}
TINY = Shape(widths=(16, 16, 16, 16), encoder=(1, 1, 1), middle=1, decoder=(1, 1, 1), polish=4)


def recipe(stage: str, **more):
    return replace(RECIPES[stage], **(SETTINGS | more))


@pytest.fixture(scope="module")
def small_store(tmp_path_factory):
    from PIL import Image

    from gmodiff.train.scenes import SceneStore, find_sources

    folder: Path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (28, 40, 3), np.uint8)).resize((1280, 896), Image.Resampling.BICUBIC).save(folder / "a.jpg")
    return SceneStore(find_sources(folder), 1, tmp_path_factory.mktemp("cache"), size=64)


@pytest.fixture(scope="module")
def guide(tmp_path_factory) -> Path:
    """A regressor as a run leaves it, its mask trained."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("guide") / "regressor.safetensors"
    write_weights(Regressor(TINY), path, {"steps": {"regressor": 1, "mask": 1}})
    return path


@pytest.fixture(scope="module")
def stages(guide, small_store, tmp_path_factory) -> dict[str, Path]:
    """Weights of the three stages, each begun with the one before."""
    folder, start, found = tmp_path_factory.mktemp("stages"), None, {}
    for stage in ("autoencoder", "prior", "onestep"):
        regressor = None if stage == "autoencoder" else guide
        path = loop.train(recipe(stage), small_store, folder / stage, start=start, regressor=regressor, workers=0, say=lambda _: None)
        start = found[stage] = path
    return found


@pytest.mark.parametrize("stage", ["autoencoder", "prior", "onestep"])
def test_a_stage_learns_and_leaves_alone_what_is_frozen(stages, guide, small_store, stage):
    names = ["autoencoder", "prior", "onestep"]
    earlier = stages[names[names.index(stage) - 1]] if stage != "autoencoder" else None
    regressor = None if stage == "autoencoder" else guide
    before, after = begin(recipe(stage), earlier, regressor), begin(recipe(stage), earlier, regressor)
    after.refiner.load_state_dict(read_refiner(stages[stage])[0].state_dict())
    assert read_refiner(stages[stage])[1]["steps"][stage] == 30
    batch = Batches(small_store, recipe(stage))[0]
    with torch.no_grad():
        assert float(after(batch, 0)[0]) < float(before(batch, 0)[0])
        assert all(np.isfinite(v) or "used_px" in k for k, v in after.check({k: v[:1] for k, v in batch.items()}).items())
    learned = {id(p) for p in before.learned()}
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    moved = {k: not torch.equal(v, new[k]) for k, v in old.items()}
    assert not any(moved[k] for k, v in old.items() if id(v) not in learned)
    assert sum(moved[k] for k, v in old.items() if id(v) in learned) > 0.8 * len(learned)


@pytest.mark.parametrize("stage", ["prior", "onestep"])
def test_stopped_and_gone_on_is_the_same_as_never_stopped(stages, guide, small_store, tmp_path, stage):
    short = recipe(stage, steps=4, save_every=2)
    given = {"start": stages["autoencoder" if stage == "prior" else "prior"], "regressor": guide, "workers": 0, "say": lambda _: None}
    whole = loop.train(short, small_store, tmp_path / "whole", **given)
    loop.train(short, small_store, tmp_path / "parts", stop_after=2, **given)
    parts = loop.train(short, small_store, tmp_path / "parts", **given)
    one, two = (read_refiner(p)[0].state_dict() for p in (whole, parts))
    assert all(torch.equal(v, two[k]) for k, v in one.items())


def test_processes_draw_what_one_would(stages, guide, small_store):
    """The loss of a batch of two is the mean of what two processes make of it."""
    stage = begin(recipe("prior"), stages["autoencoder"], guide)
    with torch.no_grad():
        whole = float(stage(Batches(small_store, recipe("prior"))[3], 3)[0])
        parts = []
        for rank in range(2):
            stage.share = (rank, 2)
            parts.append(float(stage(Batches(small_store, recipe("prior"), (rank, 2))[3], 3)[0]))
    assert parts[0] != parts[1]
    assert sum(parts) / 2 == pytest.approx(whole, rel=1e-5)


def test_training_counts_what_is_used_of_an_answer():
    """The same arithmetic as `refine` has, where the reference says nothing; nothing where it measured."""

    class Answers:
        card = Card("stand-in-refiner", "", {}, 9, 32, 96, 1.5, "refiner", {"threshold": THRESHOLD, "guide": ""})

        def __call__(self, square):
            return {"refined": square["gain"] + square["short"]}

    dice, side = np.random.default_rng(0), 160
    inner = slice(40, -40)  # at edges, the blurs mirror differently
    found = {"change": np.zeros((1, 3, side, side), np.float32), "degradation": dice.random((1, 1, side // 4, side // 4), np.float32)}
    found |= {k: np.zeros((1, 1, side // f, side // f), np.float32) for k, f in zip(CONTEXT_NAMES, (8, 16, 32), strict=True)}
    given = {k: dice.random((1, 3, side, side), np.float32) for k in ("merged", "linear")}
    given |= {"stops": np.zeros(1, np.float32), "encoded": np.ones((1, 3, side, side), np.float32)}
    refinement = Refinement(Answers())
    added = refinement(refinement.kept(given, found) | {"degradation": found["degradation"]})
    gain = torch.from_numpy(mu_gain(given["merged"], given["encoded"]))
    doubt = torch.from_numpy(enlarged_rows(found["degradation"][0, 0], 0, side, side, side))[None, None]
    refined = gain + torch.from_numpy(np.sqrt(given["linear"]))
    used, share = as_used(gain, refined, doubt, torch.from_numpy(given["encoded"]))
    assert np.abs((used - gain)[0, 0].numpy() - added)[inner, inner].max() < 1e-3 * np.abs(added).max()
    assert 0.2 < share.mean() < 0.6
    used, share = as_used(gain, refined, doubt, torch.full((1, 3, side, side), 0.5))
    assert torch.equal(used, gain)
    assert not share.any()


def test_training_and_use_answer_the_same(stages, guide, small_store):
    """A stage works on batches in torch, `refine` on arrays, one at a time; what the refiner is given and says is the same."""
    stage = begin(recipe("onestep"), stages["prior"], guide).eval()
    batch = Batches(small_store, recipe("onestep"))[2]
    network = RefinerOnArrays(stage.refiner)
    with torch.no_grad():
        gain, _, refined = stage._refined(batch)
        inputs = {k: batch[k] for k in ("linear", "stops", "coverage", "merged", "encoded")}
        found = stage.guide(**inputs, with_mask=True)
    one = {k: v[0].numpy() for k, v in inputs.items()} | {k: batch[k][:1].numpy() for k in ("merged", "encoded")}
    given_gain, short = _given(one, {"change": found.change[:1].numpy()}, GAIN_LIMIT)
    context = dict(zip(CONTEXT, (c[:1] for c in found.context), strict=True))
    given = {"gain": torch.from_numpy(given_gain), "short": torch.from_numpy(short), "degradation": torch.sigmoid(found.degradation[:1])}
    with torch.no_grad():
        wanted = network.by_name(given | context)["refined"]
    assert (wanted - gain[:1]).abs().max() > 1e-3
    torch.testing.assert_close(refined[:1], wanted, atol=1e-4, rtol=1e-4)
    # Between tiles and squares they are kept in half precision, and nothing else happens to them.
    refinement = Refinement(SimpleNamespace(card=Card("stand-in-refiner", "", {}, 9, 32, 96, GAIN_LIMIT, "refiner")))
    kept = refinement.kept(one, {"change": found.change[:1].numpy()} | {k: v.numpy() for k, v in context.items()})
    assert sorted(kept) == sorted(["gain", "short", *CONTEXT])
    for name, values in (given | context).items():
        if name in kept:
            assert np.array_equal(kept[name], values.numpy().astype(np.float16)), name


def test_stages_refuse_what_they_cannot_begin_with(stages, guide, small_store, tmp_path):
    light = recipe("prior", latents="light", steps=2)
    of_light = loop.train(
        light, small_store, tmp_path / "light", start=stages["autoencoder"], regressor=guide, workers=0, say=lambda _: None
    )
    for stage, start, regressor, said in (
        ("prior", None, guide, "trained on an autoencoder: give"),
        ("onestep", stages["autoencoder"], guide, "trained on a prior: give"),
        ("onestep", stages["prior"], None, "guided by a regressor: give"),
        ("onestep", of_light, guide, "a prior of radiance, a baseline: give"),
        ("prior", of_light, guide, "a prior of light latents, not of gain"),
    ):
        with pytest.raises(InputError, match=said):
            begin(recipe(stage), start, regressor)
    write_weights(Regressor(TINY), tmp_path / "other.safetensors", {"steps": {"regressor": 5, "mask": 5}})
    with pytest.raises(InputError, match="a prior trained beside another regressor"):
        begin(recipe("onestep"), stages["prior"], tmp_path / "other.safetensors")
    # What rests on a part that is trained again has to be made again.
    again = loop.train(recipe("autoencoder", steps=1), small_store, tmp_path / "a", start=stages["onestep"], workers=0, say=lambda _: None)
    assert set(read_refiner(again)[1]["steps"]) == {"autoencoder"}
    with pytest.raises(InputError, match="trained on a prior: give"):
        begin(recipe("onestep"), again, guide)
    later = begin(recipe("prior"), stages["onestep"], guide)
    assert set(later.before["steps"]) == {"autoencoder", "prior"}
    write_weights(Regressor(TINY), tmp_path / "unfinished.safetensors", {"steps": {"regressor": 5}})
    with pytest.raises(InputError, match="has no trained mask"):
        begin(recipe("prior"), stages["autoencoder"], tmp_path / "unfinished.safetensors")
    write_weights(Regressor(), tmp_path / "other.safetensors", {})
    with pytest.raises(InputError, match="features of"):
        begin(recipe("prior"), stages["autoencoder"], tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="another shape"):
        begin(recipe("prior", autoencoder=AutoencoderShape()), stages["autoencoder"], guide)


# ---- shipping ----


@pytest.fixture(scope="module")
def shipped(guide, tmp_path_factory) -> Path:
    """The card of the guide."""
    card = tmp_path_factory.mktemp("shipped") / "small.json"
    ship(guide, card)
    return card


def test_every_runtime_gives_what_torch_gives(stages, shipped, tmp_path):
    for path in shipped.parent.iterdir():
        shutil.copy(path, tmp_path)
    ship_refiner(stages["onestep"], tmp_path / "small-refiner.json", Card.read(tmp_path / "small.json"), 0.4)
    made = Card.read(tmp_path / "small-refiner.json").facts["trained_by"]
    assert all(f"gmodiff train {stage} " in made for stage in ("autoencoder", "prior", "onestep"))
    refiner, _ = read_refiner(tmp_path / "small-refiner.safetensors")
    context = dict(zip(CONTEXT_NAMES, (torch.randn(1, 16, 96 // f, 64 // f) for f in (8, 16, 32)), strict=True))
    given = {"gain": torch.rand(1, 3, 96, 64), "short": torch.rand(1, 3, 96, 64), "degradation": torch.rand(1, 1, 24, 16)} | context
    with torch.no_grad():
        wanted = refiner(given["gain"], given["short"], given["degradation"], list(context.values())).numpy()
    assert np.ptp(wanted) > 0.1
    for runtime in ("openvino", "onnxruntime", "torch"):
        model = load_refiner(str(tmp_path / "small.json"), runtime=runtime, device="cpu" if runtime != "openvino" else "auto")
        assert np.abs(model({k: v.numpy() for k, v in given.items()})["refined"] - wanted).max() < 1e-4, runtime
    assert model.card.facts["threshold"] == 0.4
    Refinement(model).check_fits(Card.read(tmp_path / "small.json"))


def test_what_is_not_finished_or_not_its_own_does_not_ship(stages, shipped, tmp_path):
    card = Card.read(shipped)
    with pytest.raises(InputError, match="not trained for one step yet"):
        ship_refiner(stages["prior"], tmp_path / "r.json", card, 0.5)
    refiner, facts = read_refiner(stages["onestep"])
    write_refiner(refiner, tmp_path / "older.safetensors", {k: v for k, v in facts.items() if k != "answer"})
    with pytest.raises(InputError, match="trained by an older version, for another answer"):
        ship_refiner(tmp_path / "older.safetensors", tmp_path / "r.json", card, 0.5)
    with pytest.raises(InputError, match="not trained beside"):
        ship_refiner(stages["onestep"], tmp_path / "r.json", load_card("compact"), 0.5)
    assert not (tmp_path / "r.json").exists()
    ship_refiner(stages["onestep"], tmp_path / "r.json", card, 0.5)
    stored = json.loads((tmp_path / "r.json").read_text())
    (tmp_path / "r.json").write_text(json.dumps({k: v for k, v in stored.items() if k != "answer"}))
    with pytest.raises(FileFormatError, match="a refiner of an older version"):
        Card.read(tmp_path / "r.json")
    with pytest.raises(InputError, match=r"model compact-refiner is a refiner, .* give --model compact$"):
        load_refiner("compact-refiner")
    with pytest.raises(InputError, match=r"model small has no refiner \(small-refiner\.json"):
        load_refiner(str(shipped))
