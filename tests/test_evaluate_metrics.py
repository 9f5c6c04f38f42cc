"""Metrics against independent implementations, and against damage whose direction is known."""

import numpy as np
import pytest

from gmodiff.errors import InputError
from gmodiff.evaluate import metrics
from gmodiff.evaluate.metrics import SSIM, Scorer, compress, fitted_scale, grid_excess, psnr, pu21
from gmodiff.gainmap import mu_gain
from scenes import small_scene

RNG = np.random.default_rng(5)
A = RNG.random((60, 80, 3)).astype(np.float32)
B = np.clip(A + 0.05 * RNG.standard_normal(A.shape), 0, 1).astype(np.float32)


def test_compress_is_the_published_formula():
    h = np.array([0.0, 0.001, 0.3, 1.0, 2.0], np.float32)
    np.testing.assert_allclose(compress(h), [np.log(1 + 5000 * min(v, 1)) / np.log(5001) for v in h], atol=1e-6)


def test_psnr_agrees_with_scikit_image():
    from skimage.metrics import peak_signal_noise_ratio

    assert psnr(A, B) == pytest.approx(peak_signal_noise_ratio(A, B, data_range=1.0), abs=1e-4)
    assert psnr(A * 200, B * 200, peak=256.0) == pytest.approx(peak_signal_noise_ratio(A * 200, B * 200, data_range=256.0), abs=1e-4)


def test_psnr_inside_a_mask_counts_its_pixels_only():
    where = np.zeros(A.shape[:2], bool)
    where[:20] = True
    spoilt = A.copy()
    spoilt[20:] = 0
    assert psnr(A, spoilt, where) == metrics.PSNR_CEILING
    assert psnr(A, spoilt, ~where) == pytest.approx(-10 * np.log10(np.mean(A[20:].astype(float) ** 2)), abs=1e-4)
    assert psnr(A, B, np.zeros_like(where)) is None


@pytest.mark.parametrize("shape", [(60, 80, 3), (60, 80), (11, 40)])
def test_ssim_agrees_with_scikit_image(shape):
    from skimage.metrics import structural_similarity

    a, b = A[: shape[0], : shape[1]], B[: shape[0], : shape[1]]
    if len(shape) == 2:
        a, b = a[..., 0].copy(), b[..., 0].copy()
    axis = -1 if a.ndim == 3 else None
    expected = structural_similarity(a, b, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=axis)
    assert SSIM.mean(SSIM(a, 1.0).map(b)) == pytest.approx(expected, abs=1e-5)


def test_ssim_refuses_pictures_smaller_than_its_window():
    with pytest.raises(InputError, match="11 pixels"):
        SSIM(A[:10], 1.0)


def test_pu21_agrees_with_its_authors_implementation():
    torch = pytest.importorskip("torch")
    from gmodiff.evaluate.perceptual import load

    load("jod")  # also mends a torchvision that does not load, which pycvvdp imports
    from pycvvdp.utils import PU

    nits = np.geomspace(0.001, 20000, 500, dtype=np.float32)
    np.testing.assert_allclose(pu21(nits), PU().encode(torch.from_numpy(nits)).numpy(), atol=1e-2)
    assert float(pu21(np.float32([100.0]))[0]) == pytest.approx(256, abs=2)


def test_pu21_metrics_see_absolute_light_and_luminance():
    """1.0 = the reference's white = 203 cd/m2 (BT.2408), Rec. 709 luminance, with the authors' encoding and scikit-image's SSIM."""
    torch = pytest.importorskip("torch")
    from skimage.metrics import structural_similarity

    from gmodiff.evaluate.perceptual import load

    load("jod")
    from pycvvdp.utils import PU

    scene = small_scene()
    spoilt = scene.truth * np.float32(1.1) + np.float32(0.01)
    shown = [np.clip(x, 0, scene.short_white) * np.float32(203) for x in (spoilt, scene.truth)]

    def encode(nits):
        return PU().encode(torch.from_numpy(np.ascontiguousarray(nits, np.float32))).numpy()

    found = Scorer(scene)(spoilt)
    error = np.mean((encode(shown[0]) - encode(shown[1])) ** 2, dtype=float)
    assert found["pu21_psnr"] == pytest.approx(10 * np.log10(256**2 / error), abs=0.02)
    grey = [encode(x @ np.float32([0.2126, 0.7152, 0.0722])) for x in shown]
    settings = {"data_range": 256.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    assert found["pu21_ssim"] == pytest.approx(structural_similarity(*grey, **settings), abs=2e-4)


def test_identical_is_perfect_in_every_metric_and_mask():
    scene = small_scene()
    found = Scorer(scene)(scene.truth)
    assert {m for m in found if "/" not in m} == {"psnr_mu", "psnr_l", "ssim_mu", "pu21_psnr", "pu21_ssim", "gain_psnr", "grid_db"}
    assert {m.split("/")[1] for m in found if "/" in m} == {"motion", "clipped", "dark"}
    assert found.pop("grid_db") in (0.0, None)
    for name, value in found.items():
        assert value == pytest.approx(120.0 if "psnr" in name else 1.0, abs=1e-6), name


@pytest.mark.parametrize("metric", ["psnr_mu", "psnr_l", "ssim_mu", "pu21_psnr", "pu21_ssim", "gain_psnr"])
def test_more_damage_scores_lower(metric):
    scene = small_scene()
    score = Scorer(scene)
    noise = np.random.default_rng(1).standard_normal(scene.truth.shape).astype(np.float32)
    noisy = [score(scene.truth * (1 + s * noise))[metric] for s in (0.01, 0.03, 0.1, 0.3)]
    assert noisy == sorted(noisy, reverse=True)
    cut = [score(np.minimum(scene.truth, white))[metric] for white in (2.0, 1.0, 0.5)]
    assert cut == sorted(cut, reverse=True)


def test_damage_in_the_dark_is_seen_by_mu_and_hardly_by_linear():
    scene = small_scene()
    lifted = scene.truth + np.where(scene.masks["dark"], np.float32(0.01), np.float32(0))[..., None]
    found = Scorer(scene)(lifted)
    assert found["psnr_mu/dark"] < found["psnr_mu"] < 45
    assert found["psnr_l"] > found["psnr_mu"] + 10
    assert found["psnr_mu/clipped"] == 120.0


def test_masks_see_only_their_own_pixels():
    scene = small_scene()
    ghost = scene.truth.copy()
    ghost[scene.masks["motion"]] *= 2
    found = Scorer(scene)(ghost)
    untouched = ~scene.masks["motion"] & scene.masks["clipped"]
    assert untouched.any()
    assert found["psnr_mu/motion"] < found["psnr_mu"] < 120


def test_red_and_blue_exchanged_is_seen():
    scene = small_scene()
    assert Scorer(scene)(scene.truth[..., ::-1])["psnr_mu"] < 35


def test_light_above_the_short_frames_white_is_not_scored():
    scene = small_scene()
    above = np.where(scene.truth >= scene.short_white, scene.truth * 7, scene.truth)
    assert Scorer(scene)(above)["psnr_l"] == 120.0


def test_unknown_truth_is_not_scored():
    scene = small_scene()
    known = np.ones(scene.bracket.shape, bool)
    known[:30] = False
    partly = type(scene)(scene.name, scene.bracket, scene.truth, scene.masks, known, scene.perfect, scene.facts)
    wrong = scene.truth.copy()
    wrong[:30] = 0
    assert Scorer(scene)(wrong)["psnr_mu"] < 30
    found = Scorer(partly)(wrong)
    assert {round(v, 3) for k, v in found.items() if k != "grid_db"} == {120.0, 1.0}


def test_gain_psnr_is_of_the_papers_gain():
    scene = small_scene()
    estimate = scene.truth * 1.1
    white = scene.short_white
    encoded = scene.bracket.frames[1].encoded / 255.0
    gains = [mu_gain(np.clip(h / white, 0, 1), encoded) for h in (estimate, scene.truth)]
    assert Scorer(scene)(estimate)["gain_psnr"] == pytest.approx(-10 * np.log10(np.mean((gains[0] - gains[1]) ** 2)), abs=1e-3)


@pytest.mark.parametrize(
    ("estimate", "said"),
    [
        (np.zeros((10, 10, 3), np.float32), "10x10"),
        (np.zeros((96, 128), np.float32), "96|128"),
        (np.full((96, 128, 3), np.nan, np.float32), "not finite"),
    ],
)
def test_unfit_estimates_are_refused(estimate, said):
    with pytest.raises(InputError, match=said):
        Scorer(small_scene())(estimate)


def test_a_scene_without_truth_cannot_be_scored():
    scene = small_scene()
    with pytest.raises(InputError, match="no ground truth"):
        Scorer(type(scene)(scene.name, scene.bracket))


def test_one_factor_is_found_and_only_one():
    scene = small_scene()
    assert fitted_scale(scene.truth / 3, scene) == pytest.approx(3, rel=1e-5)
    bent = scene.truth**1.2
    assert Scorer(scene)(bent * fitted_scale(bent, scene))["psnr_mu"] < 40
    assert fitted_scale(np.zeros_like(scene.truth), scene) == 1.0


def test_settings_name_what_numbers_depend_on():
    settings = Scorer(small_scene()).settings
    assert "mu 5000" in settings["psnr_mu"]
    assert "203 cd/m2" in settings["pu21_psnr"]
    assert "1.5 px" in settings["ssim_mu"]


def test_the_grid_of_a_pixel_shuffle_is_seen_and_the_blocks_of_jpeg_are_not():
    rng = np.random.default_rng(4)
    wall = np.full((256, 256, 3), 0.5, np.float32)
    known = np.ones((256, 256), bool)
    noise = rng.normal(0, 0.002, (256, 256, 1)).astype(np.float32)
    assert abs(grid_excess(wall + noise, wall, known)) < 0.5
    cells = np.kron(rng.normal(0, 0.004, (64, 64, 1)), np.ones((4, 4, 1))).astype(np.float32)
    assert grid_excess(wall + noise + cells, wall, known) > 3
    for stripes in (cells[:, :1], cells[:1]):  # a grid in one direction counts as one
        assert grid_excess(wall + noise + stripes, wall, known) > 3
    blocks = np.kron(rng.normal(0, 0.004, (32, 32, 1)), np.ones((8, 8, 1))).astype(np.float32)
    assert abs(grid_excess(wall + noise + blocks, wall, known)) < 0.5
    assert grid_excess(wall, wall, ~known) is None
