"""Metrics that need torch: they move the right way, say what is missing, and never download."""

import sys
from pathlib import Path

import numpy as np
import pytest

from gmodiff.errors import InputError, MissingDependencyError
from gmodiff.evaluate import perceptual
from gmodiff.evaluate.metrics import Scorer
from piq_standin import put_stand_ins
from scenes import small_scene

torch = pytest.importorskip("torch", reason="ColorVideoVDP needs torch")


@pytest.fixture(scope="module")
def jod():
    return perceptual.load("jod")


def test_jod_of_identical_pictures_is_ten(jod):
    picture = np.random.default_rng(0).random((64, 96, 3)).astype(np.float32)
    assert jod(picture, picture, {}, 800.0)["jod"] == pytest.approx(10, abs=1e-4)


def test_jod_falls_with_damage_and_in_the_damaged_mask_only(jod):
    scene = small_scene()
    score = Scorer(scene, (jod,))
    ghost = scene.truth.copy()
    ghost[scene.masks["motion"]] *= 1.5
    noise = np.random.default_rng(3).standard_normal(scene.truth.shape).astype(np.float32)
    small, large = (score(scene.truth * (1 + s * noise)) for s in (0.05, 0.3))
    assert 10 > small["jod"] > large["jod"]
    found = score(ghost)
    assert found["jod/motion"] < found["jod/dark"] - 0.1
    assert "standard_hdr_linear" in score.settings["jod"]
    assert "Lpeak=10000" in score.settings["jod"]


def test_jod_sees_what_lies_far_above_the_reference(jod):
    """Four stops up, where a display of 1500 cd/m2 would cut both pictures off alike."""
    rows = np.linspace(0, 6 * np.pi, 96, dtype=np.float32)
    lamps = np.repeat(np.repeat((0.75 + 0.2 * np.sin(rows))[:, None], 96, axis=1)[..., None], 3, axis=2)
    flat = np.full_like(lamps, 0.75)
    assert jod(flat, lamps, {}, 3248.0)["jod"] < 9.5


def test_jod_in_an_empty_mask_is_none(jod):
    picture = np.full((32, 32, 3), 0.2, np.float32)
    assert jod(picture, picture, {"dark": np.zeros((32, 32), bool)}, 800.0)["jod/dark"] is None


def test_gradient_similarity_sees_texture_not_level():
    """By hand on a ramp: one direction, one magnitude, so that the formula can be written down."""
    similarity = perceptual.load("gms")
    dice = np.random.default_rng(0)
    truth = dice.uniform(0.2, 0.8, (64, 64, 3)).astype(np.float32)
    left = np.zeros((64, 64), bool)
    left[:, :24] = True
    assert similarity(truth, truth, {"left": left, "none": left & ~left}, 203.0) == {"gms": 1.0, "gms/left": 1.0, "gms/none": None}
    flat = truth.copy()
    flat[:, 32:] = 0.5
    found = similarity(flat, truth, {"left": left}, 203.0)
    assert found["gms/left"] == 1.0
    assert found["gms"] < 0.98

    def decompressed(value):  # so that compressed luminance is the ramp
        return np.repeat(((5001.0**value) - 1)[..., None] / 5000, 3, axis=2).astype(np.float32)

    ramp = np.tile(np.arange(64) / 100, (64, 1))
    steep, gentle = (
        similarity(decompressed(ramp + 0.1), decompressed(ramp), {}, 203.0),
        similarity(decompressed(ramp / 2), decompressed(ramp), {"middle": np.pad(np.ones((32, 32), bool), 16)}, 203.0),
    )
    assert steep["gms"] == pytest.approx(1.0, abs=1e-4)  # level alone is no difference
    a, b, c = 0.04, 0.02, 170 / 255**2  # of halved pictures, two steps between the columns compared
    assert gentle["gms/middle"] == pytest.approx((2 * a * b + c) / (a * a + b * b + c), abs=2e-3)


@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_piq_metrics_say_which_weights_are_missing(name, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=r"vgg16-397923af\.pth and .*_weights\.pt") as error:
        perceptual.load(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_piq_metrics_run_with_weights_that_are_there(name, monkeypatch, tmp_path):
    """Random weights in the files' place: the distance of identical pictures is still zero, and grows with damage."""
    put_stand_ins(name, monkeypatch, tmp_path)
    metric = perceptual.load(name)
    picture = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32)
    noise = np.random.default_rng(1).standard_normal(picture.shape).astype(np.float32)
    values = [metric(np.clip(picture + s * noise, 0, 1), picture, {}, 800.0)[name] for s in (0.0, 0.02, 0.2)]
    assert values[0] == pytest.approx(0, abs=1e-5)
    assert values[0] < values[1] < values[2]


@pytest.mark.parametrize(
    ("name", "module", "said"),
    [
        ("jod", "pycvvdp", r"gmodiff\[evaluate\]"),
        ("jod", "torch", r"gmodiff\[evaluate\]"),
        ("lpips", "piq", r"gmodiff\[evaluate\]"),
        ("musiq", "pyiqa", "pip install pyiqa"),
    ],
)
def test_missing_packages_are_named(name, module, said, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=said) as error:
        perceptual.load(name)
    assert "\n" not in str(error.value)


def test_unknown_metrics_are_refused():
    with pytest.raises(InputError, match=r"'vmaf': expected one of jod"):
        perceptual.load("vmaf")


def test_no_extra_pulls_the_non_commercial_package():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert "pyiqa>" not in text
    assert '"pyiqa"' not in text
