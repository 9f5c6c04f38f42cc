"""The refiner: latents, diffusion's arithmetic, what its parts see, and that its three stages learn."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gmodiff.errors import FileFormatError, InputError
from gmodiff.model.autoencoder import AutoencoderShape
from gmodiff.model.denoiser import DenoiserShape
from gmodiff.model.diffusion import ONE_STEP_AT, STEPS, denoised, from_noise, kept, noised
from gmodiff.model.refiner import REFINER_HALO_PX, Refiner, read_refiner, write_refiner
from gmodiff.model.regressor import Regressor
from gmodiff.model.weights import write_weights

CONTEXT = (64, 128, 192)
SMALL = AutoencoderShape(16, 24, 8)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
            assert float(kept()[step]) == pytest.approx(left, rel=1e-5)


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
        abar = float(kept()[step])
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


def test_it_sees_no_farther_than_its_halo(refiner):
    """So that tiles agree with the whole; nothing is pooled over the picture."""
    side = 2 * REFINER_HALO_PX + 128
    given, other = inputs(side), inputs(side)
    far = REFINER_HALO_PX + 64
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
    with pytest.raises(FileFormatError, match="expected 'gmodiff-refiner-1'"):
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


def test_three_stages_follow_each_other_and_learn(tmp_path, small_store):
    """Autoencoder, prior, one step: each begins with the one before, lowers its loss, and leaves alone what is frozen."""
    from gmodiff.train import loop
    from gmodiff.train.crops import Batches
    from gmodiff.train.recipes import RECIPES
    from gmodiff.train.stages import begin

    settings = {
        "steps": 30,
        "scenes": 4,
        "batch": 2,
        "crop_px": 32,
        "warm_up": 3,
        "save_every": 30,
        "check_scenes": 1,
        "rate": 1e-3,
        "ema": 0.9,
    }
    write_weights(Regressor(), tmp_path / "regressor.safetensors", {})
    guide = tmp_path / "regressor.safetensors"
    start = None
    for stage in ("autoencoder", "prior", "onestep"):
        recipe = replace(RECIPES[stage], **settings)
        regressor = None if stage == "autoencoder" else guide
        first = begin(recipe, start, regressor)
        batch = Batches(small_store, recipe)[0]
        before = float(first(batch, 0)[0].detach())
        path = loop.train(recipe, small_store, tmp_path / stage, start=start, regressor=regressor, workers=0, say=lambda _: None)
        trained = begin(recipe, path, regressor) if stage != "autoencoder" else begin(recipe, path)
        assert float(trained(batch, 0)[0].detach()) < before, stage
        assert read_refiner(path)[1]["steps"][stage] == 30
        if start is not None:
            old, new = read_refiner(start)[0].state_dict(), read_refiner(path)[0].state_dict()
            assert all(torch.equal(old[k], new[k]) for k in old if k.startswith(("autoencoder.encode", "autoencoder.to_latent")))
        start = path
    with pytest.raises(InputError, match="give its run or weights with --from"):
        begin(replace(RECIPES["prior"], **settings), None, guide)
    with pytest.raises(InputError, match="--regressor"):
        begin(replace(RECIPES["onestep"], **settings), start)


@pytest.fixture(scope="module")
def small_store(tmp_path_factory):
    from PIL import Image

    from gmodiff.train.scenes import SceneStore, find_sources

    folder: Path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (14, 20, 3), np.uint8)).resize((640, 448), Image.Resampling.BICUBIC).save(folder / "a.jpg")
    return SceneStore(find_sources(folder), 1, tmp_path_factory.mktemp("cache"), size=64)
