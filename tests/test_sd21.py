"""The full-size system, small: the numbers of the plainest computation, and the published names and sizes."""

import copy as copying
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from gmodiff.model import sd21
from gmodiff.model.dareg import DaReg, DaRegShape, network_input
from gmodiff.model.released import LORA_ALPHA, low_rank, read_released
from gmodiff.model.sd21 import OneStep, assemble, skip_widths
from gmodiff.model.sd21_backbone import open_backbone
from sd21_standin import EXPOSURES, SCHEDULER, SHAPE, SKIPS, VAE, Reference, frames

COMPAT = Path(__file__).parents[2] / "shared" / "compat"
pytestmark = pytest.mark.usefixtures("small_sd21")


@pytest.fixture(scope="module")
def reference(backbone, weights) -> Reference:
    return Reference(backbone, weights, SHAPE)


@pytest.mark.parametrize("size", [(64, 96), (75, 50)])
def test_the_gain_map_is_that_of_the_plain_computation(system, reference, size):
    given = frames(*size)
    refined = system.refine(given, EXPOSURES)
    wanted = reference(given, EXPOSURES)
    assert refined.gain.shape == (1, 3, *size)
    assert (refined.gain - wanted).abs().max() < 1e-4
    assert wanted.std() > 0.05  # not all clamped
    assert (refined.gain - refined.regressed).abs().max() > 0.05  # something was refined


@pytest.mark.parametrize("mistake", Reference.MISTAKES)
def test_each_mistake_would_be_seen(system, reference, mistake):
    given = frames(75, 50)
    assert (system.refine(given, EXPOSURES).gain - reference(given, EXPOSURES, mistake)).abs().max() > 1e-3


def test_stored_statistics_are_those_of_a_network_in_use(system, reference):
    given = frames(96, 96)
    system.context.stored_statistics = True
    try:
        assert (system.refine(given, EXPOSURES).gain - reference(given, EXPOSURES, "statistics")).abs().max() < 1e-4
    finally:
        system.context.stored_statistics = False


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed (it is not needed to run)")
def test_alpha_is_what_peft_has_by_default():
    import peft

    assert peft.LoraConfig(r=16).lora_alpha == LORA_ALPHA


def test_two_runs_give_the_same_bits(system):
    given = frames(64, 64)
    assert torch.equal(system.refine(given, EXPOSURES).gain, system.refine(given, EXPOSURES).gain)


def test_the_step_is_the_schedulers(system):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    wanted = torch.cumprod(1 - betas, 0)
    assert OneStep(SCHEDULER).alpha_bar == pytest.approx(float(wanted[499]), rel=1e-9)
    assert OneStep(SCHEDULER, 3).alpha_bar == pytest.approx(float(wanted[3]), rel=1e-9)
    x0, eps = torch.randn(4), torch.randn(4)
    abar = OneStep(SCHEDULER).alpha_bar
    torch.testing.assert_close(OneStep(SCHEDULER).x0(abar**0.5 * x0 + (1 - abar) ** 0.5 * eps, eps), x0)


def test_inputs_are_light_then_code_and_the_long_frame_weighs_less():
    made = network_input(torch.full((1, 3, 1, 1), 0.5), 4.0)
    assert made[0, :3].flatten().tolist() == pytest.approx([0.5**2.2 / 4] * 3)
    assert made[0, 3:].flatten().tolist() == [0.5] * 3


@pytest.mark.parametrize("shape", [(7, 5), (6, 4, 3, 3)])
def test_a_low_rank_update_is_two_layers_in_a_row(shape):
    down, up = torch.randn(2, *shape[1:]), torch.randn(shape[0], 2, *[1] * (len(shape) - 2))
    x = torch.randn(1, shape[1], *[8] * (len(shape) - 2))
    apply = functional.conv2d if len(shape) == 4 else functional.linear
    torch.testing.assert_close(apply(x, low_rank(down, up)), apply(apply(x, down), up), rtol=1e-4, atol=1e-4)


def test_half_precision_is_near(system):
    given = frames(64, 64)
    wanted = system.refine(given, EXPOSURES).gain
    found = copying.deepcopy(system).place(torch.device("cpu"), torch.bfloat16).refine(given, EXPOSURES).gain
    assert found.dtype == torch.float32
    assert 0 < (found - wanted).abs().mean() < 0.05


# ---- published sizes ----


@pytest.mark.skipif(not COMPAT.is_dir(), reason="the list of released keys is not here (../shared/compat)")
def test_names_and_shapes_are_the_released_ones():
    keys = json.loads((COMPAT / "keys.json").read_text())
    with torch.device("meta"):
        made = {k: list(v.shape) for k, v in DaReg(DaRegShape()).state_dict().items()}
        assert made == keys["dareg"]
        assert {k: list(v.shape) for k, v in sd21.Context(1024).state_dict().items()} == keys["gmodiff"]["proj"]
    assert sum(torch.Size(s).numel() for s in keys["dareg"].values()) == pytest.approx(48.33e6, abs=5e3)
    assert skip_widths((128, 256, 512, 512)) == [(512, 512), (256, 512), (128, 512), (128, 256)]
    assert skip_widths(VAE["block_out_channels"]) == SKIPS


@pytest.mark.skipif(not COMPAT.is_dir(), reason="the maker of stand-in weights is not here (../shared/compat)")
def test_the_published_size_with_stand_in_weights(tmp_path, monkeypatch):
    monkeypatch.undo()
    subprocess.run([sys.executable, str(COMPAT / "make_weights.py"), str(tmp_path)], check=True)
    system = assemble(open_backbone(str(tmp_path / "sd")), read_released(tmp_path))
    given = frames(64, 75)
    refined = system.refine(given, EXPOSURES).gain
    del system
    assert (refined - Reference(tmp_path / "sd", tmp_path, DaRegShape())(given, EXPOSURES)).abs().max() < 1e-4
