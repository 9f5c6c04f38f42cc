"""The refiner's network, with random weights: what its parts see, how far, and how large it is."""

import math

import pytest
import torch

from gmodiff.errors import FileFormatError
from gmodiff.model.denoiser import DenoiserShape
from gmodiff.model.diffusion import ONE_STEP_AT, alphas_cumprod
from gmodiff.model.refiner import REFINER_HALO_PX, Refiner, read_refiner, write_refiner
from gmodiff.model.regressor import Regressor
from gmodiff.model.weights import write_weights
from refiner_shapes import CONTEXT, SMALL

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
    abar = alphas_cumprod()[ONE_STEP_AT]
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
