"""The refiner: latents, diffusion's arithmetic, what its parts see, and that its three stages learn."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gmodiff
from gmodiff.errors import FileFormatError, InputError
from gmodiff.estimate import Estimator
from gmodiff.gainmap import mu_gain
from gmodiff.model.autoencoder import AutoencoderShape
from gmodiff.model.denoiser import DenoiserShape
from gmodiff.model.diffusion import ONE_STEP_AT, STEPS, denoised, from_noise, kept, noised
from gmodiff.model.refiner import REFINER_HALO_PX, Refiner, read_refiner, write_refiner
from gmodiff.model.regressor import Regressor, Shape
from gmodiff.model.weights import write_weights
from gmodiff.refine import CONTEXT as CONTEXT_NAMES
from gmodiff.refine import THRESHOLD, Refinement
from gmodiff.runtime import Card, load_card, load_refiner
from gmodiff.train import loop
from gmodiff.train.crops import Batches
from gmodiff.train.losses import as_used
from gmodiff.train.recipes import RECIPES
from gmodiff.train.shipping import ship, ship_refiner
from gmodiff.train.stages import begin, short_frame
from gmodiff.upsampling import enlarged_rows
from synthetic import photos

CONTEXT = (64, 128, 192)
SMALL = AutoencoderShape(16, 24, 8)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    """Random weights, none of them zero."""
    torch.manual_seed(0)
    made = Refiner(SMALL, DenoiserShape((16, 24, 32), (1, 1, 1, 1, 1), 8, CONTEXT, 32))
    for parameter in made.parameters():
        if not parameter.any() or parameter.abs().max() < 1e-3:
            torch.nn.init.normal_(parameter, std=0.1)
    return made.eval()


def inputs(side: int, seed: int = 0) -> dict:
    dice = torch.Generator().manual_seed(seed)
    picture = {k: torch.rand((1, 3, side, side), generator=dice) for k in ("gain", "short")}
    mask = torch.rand((1, 1, side // 4, side // 4), generator=dice)
    return picture | {
        "mask": mask,
        "context": [torch.randn((1, c, side // f, side // f), generator=dice) for c, f in zip(CONTEXT, (8, 16, 32), strict=True)],
    }


# ---- the arithmetic ----


def test_the_schedule_is_that_of_stable_diffusion():
    """abar by its definition, in plain Python."""
    left = 1.0
    for step in range(STEPS):
        root = math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * step / (STEPS - 1)
        left *= 1 - root**2
        if step in (0, ONE_STEP_AT, STEPS - 1):
            assert kept()[step] == pytest.approx(left, rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(step=st.integers(0, STEPS - 1))
def test_one_step_undoes_the_noise_that_was_added(step):
    dice = torch.Generator().manual_seed(step)
    latent, noise = (torch.randn((1, 4, 5, 6), generator=dice) for _ in range(2))
    back = denoised(noised(latent, noise, torch.tensor([step])), noise, step)
    torch.testing.assert_close(back, latent, atol=2e-4, rtol=2e-3)


def test_many_steps_with_the_right_noise_end_at_the_latent():
    """A predictor that knows the latent: the noise is what lies between."""
    latent, start = torch.full((1, 2, 3, 3), 0.7), torch.randn((1, 2, 3, 3), generator=torch.Generator().manual_seed(1))

    def predict(noisy, step):
        abar = kept()[step]
        return (noisy - math.sqrt(abar) * latent) / math.sqrt(1 - abar)

    for steps in (1, 5, 50):
        torch.testing.assert_close(from_noise(predict, start, steps), latent, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="0 steps"):
        from_noise(predict, start, 0)


# ---- the network ----


def test_same_input_same_output_and_any_size(refiner):
    with torch.no_grad():
        for side in (32, 96):
            one, two = (refiner(**inputs(side)) for _ in range(2))
            assert one.shape == (1, 3, side, side)
            assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["gain", "short", "mask", "context"])
def test_everything_it_is_given_matters(refiner, name):
    given, other = inputs(64), inputs(64, seed=1)
    with torch.no_grad():
        assert (refiner(**given) - refiner(**(given | {name: other[name]}))).abs().max() > 1e-3


def test_parts_can_be_taken_away(refiner):
    given = inputs(64)
    with torch.no_grad():
        whole = refiner.refine(**given)
        assert torch.equal(whole, refiner(**given))
        noise = torch.randn(1, 8, 8, 8)
        for less in ({"guided": False}, {"skipped": False}, {"noise": noise}, {"noise": noise, "steps": 3}):
            assert (refiner.refine(**given, **less) - whole).abs().max() > 1e-3, less
        blind = refiner.refine(**(given | {"context": [torch.zeros_like(c) for c in given["context"]]}), skipped=False)
        assert torch.equal(blind, refiner.refine(**given, guided=False, skipped=False))


def test_where_nothing_is_denoised_nothing_changes(refiner):
    """What the autoencoder cannot say of an estimate is not lost: the answer is put on the estimate."""
    given = inputs(64)
    latent, _ = refiner.latent(given["gain"])
    abar = kept()[ONE_STEP_AT]
    untouched = latent * (1 - math.sqrt(abar)) / math.sqrt(1 - abar)  # the noise that leaves x0 where z was

    class Idle(torch.nn.Module):
        def forward(self, noisy, *_):
            return untouched + 0 * noisy

    idle = Refiner(SMALL, refiner.denoiser.shape)
    idle.load_state_dict(refiner.state_dict())
    idle.denoiser = Idle()
    with torch.no_grad():
        assert (idle(**given) - given["gain"]).abs().max() < 1e-5
        coded = idle.decoded(latent, None, given["context"][0], torch.zeros(1, 1, 8, 8))
        assert (coded - given["gain"]).abs().mean() > 0.05  # which the autoencoder alone would not say
        with pytest.raises(ValueError, match="begin with noise"):
            idle.refine(**given, steps=50)


def test_it_sees_no_farther_than_its_halo():
    """So that tiles agree with the whole; nothing is pooled over the picture. Default size, since depth is what makes it see far."""
    torch.manual_seed(0)
    refiner = Refiner().eval()
    for parameter in refiner.parameters():
        if parameter.abs().max() < 1e-3:
            torch.nn.init.normal_(parameter, std=0.1)
    far, side = REFINER_HALO_PX + 32, 2 * REFINER_HALO_PX + 64
    given, other = inputs(side), inputs(side)
    for name, fold in (("gain", 1), ("short", 1), ("mask", 4)):
        other[name][..., far // fold :] += 0.5
    for values, fold in zip(other["context"], (8, 16, 32), strict=True):
        values[..., far // fold :] += 0.5
    with torch.no_grad():
        apart = (refiner(**given) - refiner(**other)).abs()
    assert apart[..., far:].mean() > 1e-3
    assert apart[..., : far - REFINER_HALO_PX].max() < 1e-3 * apart.max()


def test_weights_come_back_whole_and_foreign_ones_are_refused(refiner, tmp_path):
    write_refiner(refiner, tmp_path / "r.safetensors", {"steps": {"prior": 3}})
    again, facts = read_refiner(tmp_path / "r.safetensors")
    assert facts == {"steps": {"prior": 3}}
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in refiner.state_dict().items())
    write_weights(Regressor(), tmp_path / "other.safetensors", {})
    with pytest.raises(FileFormatError, match=r"weights of a regressor \(.*\), expected weights of a refiner"):
        read_refiner(tmp_path / "other.safetensors")


def test_the_default_sizes_stay_within_their_budgets():
    from torch.utils.flop_counter import FlopCounterMode

    refiner = Refiner()
    assert sum(p.numel() for p in refiner.denoiser.parameters()) < 15e6
    assert sum(p.numel() for p in refiner.parameters()) * 2 < 40e6
    given = inputs(128)
    with torch.no_grad():
        latent, skips = refiner.latent(given["gain"])
        counted = FlopCounterMode(display=False)
        with counted:
            refiner.latent(given["gain"])
            refiner.decoded(latent, skips, given["context"][0], torch.rand(1, 1, 16, 16))
    assert counted.get_total_flops() / 2 / 128**2 * 1e6 < 12e9


# ---- training ----


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
        assert all(np.isfinite(v) or "mask" in k for k, v in after.check({k: v[:1] for k, v in batch.items()}).items())
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
    added = refinement(given, found, (slice(0, side), slice(0, side)))
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
    """The stage runs the network part by part, since it computes in bfloat16 where it may."""
    stage = begin(recipe("onestep"), stages["prior"], guide).eval()
    batch = Batches(small_store, recipe("onestep"))[2]
    with torch.no_grad():
        gain, mask, refined = stage._refined(batch)
        found = stage.guide(**{k: batch[k] for k in ("linear", "stops", "coverage", "merged", "encoded")}, with_mask=True)
        wanted = stage.refiner(gain, short_frame(batch), mask, found.context)
    assert (wanted - gain).abs().max() > 1e-3
    torch.testing.assert_close(refined, wanted, atol=1e-6, rtol=1e-5)


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


@pytest.fixture(scope="module")
def small_store(tmp_path_factory):
    from PIL import Image

    from gmodiff.train.scenes import SceneStore, find_sources

    folder: Path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (14, 20, 3), np.uint8)).resize((640, 448), Image.Resampling.BICUBIC).save(folder / "a.jpg")
    return SceneStore(find_sources(folder), 1, tmp_path_factory.mktemp("cache"), size=64)


# ---- the weights that ship -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped_refiner():
    return load_refiner("compact")


def test_the_shipped_refiner_belongs_to_the_shipped_regressor(shipped_refiner):
    Refinement(shipped_refiner).check_fits(load_card("compact"))
    files = [p for p in (Path(gmodiff.__file__).parent / "weights").glob("compact-refiner.*") if p.suffix != ".json"]
    assert max(p.stat().st_size for p in files) < 20_000_000  # float16; 40 MB are allowed


def test_the_shipped_files_are_one_network(shipped_refiner):
    dice, context = np.random.default_rng(0), load_card("compact").facts
    assert context["weights"] == shipped_refiner.card.facts["guide"]
    shapes = {"gain": (3, 64, 96), "short": (3, 64, 96), "degradation": (1, 16, 24)}
    shapes |= {k: (c, 64 // f, 96 // f) for k, c, f in zip(CONTEXT_NAMES, CONTEXT, (8, 16, 32), strict=True)}
    given = {k: dice.random((1, *shape), np.float32) for k, shape in shapes.items()}
    by_torch = load_refiner("compact", runtime="torch", device="cpu")
    assert np.abs(shipped_refiner(given)["refined"] - by_torch(given)["refined"]).max() < 1e-3


def test_the_shipped_refiner_sees_no_farther_than_its_halo(shipped_refiner):
    refiner, _ = read_refiner(Path(gmodiff.__file__).parent / "weights" / "compact-refiner.safetensors")
    halo = shipped_refiner.card.halo_px
    size, middle = 2 * halo + 64, slice(halo, halo + 64)
    dice = torch.Generator().manual_seed(0)
    given = [torch.rand((1, 3, size, size), generator=dice), torch.rand((1, 3, size, size), generator=dice)]
    mask = torch.rand((1, 1, size // 4, size // 4), generator=dice)
    context = [torch.randn((1, w, size // f, size // f), generator=dice) for w, f in zip((64, 128, 192), (8, 16, 32), strict=True)]
    with torch.no_grad():
        before = refiner(*given, mask, context)[..., middle, middle]
        for values in (*given, mask, *context):  # beyond it, everything changes
            edge = max(1, 32 * values.shape[-1] // size)
            inner = values[..., edge:-edge, edge:-edge].clone()
            values.mul_(-1).add_(1)
            values[..., edge:-edge, edge:-edge] = inner
        after = refiner(*given, mask, context)[..., middle, middle]
    assert float((before - after).abs().max()) < 1e-3


def test_the_shipped_refiner_changes_only_what_is_doubted_and_nothing_that_was_measured(shipped_refiner):
    """On the example, whose walls have bricks and whose windows have bars: outside the mask not one value changes."""
    from gmodiff.align import align
    from gmodiff.bracket import read_bracket
    from gmodiff.merge import merge
    from gmodiff.pipeline import estimated
    from gmodiff.radiometry import radiance_interval_codes
    from gmodiff.runtime import load_model

    bracket = read_bracket(sorted((Path(__file__).parent.parent / "examples").glob("*.jpg")))
    alignments = tuple(align(bracket))
    merged = merge(bracket, alignments, with_motion=True)
    model, refinement = load_model("compact"), Refinement(shipped_refiner)
    # In the estimate itself, before the pipeline holds what was measured.
    plain = Estimator(model)(bracket, alignments, merged.radiance)
    refined = Estimator(model, refinement=refinement)(bracket, alignments, merged.radiance)
    changed = (refined.radiance != plain.radiance).any(axis=2)
    doubt = plain.degradation.astype(np.float32) / 255
    assert changed.any()
    assert not changed[doubt < refinement.threshold - 0.02].any()
    again = Estimator(model, refinement=refinement)(bracket, alignments, merged.radiance)
    assert np.array_equal(again.radiance, refined.radiance)
    made = estimated(bracket, alignments, merged, Estimator(model, refinement=refinement), keep=True)
    reference = bracket.frames[bracket.reference]
    low, high, _ = radiance_interval_codes(bracket.response, reference.noise, reference.encoded.dtype)
    channels = np.arange(3)
    measured = reference.encoded.max(axis=2) < 225  # nearer to the end a pixel proves less (`radiometry.IntervalTables`)
    least, most = (ends[reference.encoded, channels] for ends in (low * (1 - 1e-5), high * (1 + 1e-5)))
    inside = (made.radiance >= least) & (made.radiance <= most)
    assert inside[measured].all()


def _written_scene(moved: int) -> np.ndarray:
    """(384, 768, 3) radiance: letters, a window grid and faces left; right, light far above the reference's white, before which a dark
    disc stands, `moved` pixels on.
    """
    drawn = np.full((384, 768, 3), 118, np.uint8)
    for y, text in enumerate(("GMODiff 0123", "measured, not", "invented: 4711")):
        cv2.putText(drawn, text, (12, 40 + 34 * y), cv2.FONT_HERSHEY_SIMPLEX, 0.9, (217, 210, 200), 2, cv2.LINE_AA)
    for y in range(130, 250, 16):
        for x in range(12, 250, 12):
            cv2.rectangle(drawn, (x, y), (x + 8, y + 11), (65, 80, 98), -1)
    for x in (60, 150, 240):
        cv2.ellipse(drawn, (x, 320), (34, 46), 0, 0, 360, (188, 155, 137), -1, cv2.LINE_AA)
        for eye in (-12, 12):
            cv2.circle(drawn, (x + eye, 308), 4, (50, 50, 50), -1, cv2.LINE_AA)
        cv2.ellipse(drawn, (x, 338), (14, 6), 0, 0, 180, (148, 80, 80), 2, cv2.LINE_AA)
    picture = (drawn / np.float32(255)) ** np.float32(2.2)
    clouds = cv2.GaussianBlur(np.random.default_rng(5).random((384, 384), np.float32), (0, 0), 6)
    picture[:, 384:] = (1.5 + 40 * (clouds - clouds.mean()))[..., None].clip(0.8, 4) * np.array([1.0, 0.97, 0.9], np.float32)
    cv2.circle(picture, (500 + moved, 190), 44, (0.1, 0.07, 0.05), -1)
    return picture


def test_letters_faces_and_windows_outside_the_mask_stay_as_they_are(shipped_refiner):
    """And where the reference measured, whatever the mask says, the answer is within that."""
    from gmodiff.pipeline import reconstruct_radiance
    from gmodiff.radiometry import radiance_interval_codes
    from gmodiff.runtime import load_model

    bracket = photos([_written_scene(moved) for moved in (0, 48, 96)], noise=0.004, seed=3)
    model, refinement = load_model("compact"), Refinement(shipped_refiner)
    plain, refined = (reconstruct_radiance(bracket, Estimator(model, refinement=r)) for r in (None, refinement))
    assert plain.degradation is not None
    doubt = plain.degradation / 255 > refinement.threshold - 0.02
    changed = (plain.radiance != refined.radiance).any(axis=-1)
    assert changed.any()
    assert not changed[~doubt].any()
    assert not changed[:, :352].any()
    reference = bracket.frames[bracket.reference]
    low, high, _ = radiance_interval_codes(bracket.response, reference.noise, reference.encoded.dtype)
    measured = reference.encoded.max(axis=2) < 225
    channels = np.arange(3)
    least, most = (ends[reference.encoded, channels] for ends in (low * (1 - 1e-5), high * (1 + 1e-5)))
    assert ((refined.radiance >= least) & (refined.radiance <= most))[measured].all()
