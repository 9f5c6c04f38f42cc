"""Ridges, the fit and the choice, on samples of cameras whose response is known."""

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmodiff.radiometry import RESPONSE_NODES, CameraResponse
from gmodiff.response import (
    KNOTS,
    LEAST_EXPONENTS,
    SLOPE_RANGE,
    _spline_basis,
    fit_channels,
    fit_response,
    log2_of_response,
    monotone,
    response_of_log2,
    response_prior,
)
from gmodiff.response_choice import CONTRADICTION_STOPS, choose_response
from gmodiff.ridge import (
    GRID,
    NO_SAMPLES,
    PairSamples,
    disagreement_stops,
    find_ridge,
    median_ratio,
    ridge_misfit,
    ridge_ratio,
    weighted_median,
)

ROOT = Path(__file__).parents[1]
CURVES = ROOT.parent / "shared" / "data" / "responses" / "curves.json"

NAN, INF = math.nan, math.inf
PLAIN = ["srgb", "gamma1.8", "gamma2.0", "gamma2.2", "gamma2.4"]


def s_curve() -> CameraResponse:
    """A camera-like curve that is not in the family: exponent 1 in the dark, 5 in the shoulder."""
    z = np.linspace(0, 1, RESPONSE_NODES)
    return CameraResponse.from_samples(z, z * np.exp2(2.0 * (z - 1) + z**4 - 1), "camera")


def held_out() -> dict[str, CameraResponse]:
    """Measured curves of cameras the prior has not seen; channels joined at mid-grey, their median in each place."""
    if not CURVES.exists():
        return {}
    stored = json.loads(CURVES.read_text())
    encoded = np.asarray(stored["encoded"])
    out = {}
    for entry in stored["curves"]:
        if entry["camera"] in response_prior().held_out_cameras:
            curves = np.array([entry["log2_linear"][c] for c in "rgb"])
            curve = np.median(curves - curves[:, [21]], axis=0)
            z = np.linspace(0, 1, RESPONSE_NODES)[1:]
            g = np.interp(np.log2(z), np.log2(encoded), curve)
            g += 0.8 * np.minimum(np.log2(z / encoded[0]), 0) + 5 * np.maximum(np.log2(z / encoded[-1]), 0)
            table = np.concatenate([[0], np.exp2(np.maximum.accumulate(g) - g.max())])
            out[entry["bracket"]] = CameraResponse(np.repeat(table[:, None], 3, axis=1), entry["bracket"])
    return out


def shoot(
    response: CameraResponse,
    stops: list[float],
    *,
    count: int = 20000,
    noise: float = 0.004,
    moved: float = 0.15,
    spread=(-7.5, 1.0),
    seed: int = 0,
) -> list[PairSamples]:
    """Samples of neighbouring frames: radiance from 2**spread, shot noise, clipping, 8-bit codes, a share of the pixels moved."""
    rng = np.random.default_rng(seed)
    radiance = np.exp2(rng.uniform(*spread, (count, 3)))
    frames = []
    for stop in stops:
        here = radiance.copy()
        gone = rng.random(count) < moved / 2
        here[gone] = np.exp2(rng.uniform(*spread, (int(gone.sum()), 3)))
        linear = here * 2.0**stop
        linear += noise * np.sqrt(linear + 1e-3) * rng.standard_normal(linear.shape)
        frames.append(np.rint(255 * response.encode(np.clip(linear, 0, 1))) / 255)
    pairs = []
    for a, b in pairwise(frames):
        valid = (np.maximum(a, b) > 2 / 255) & (np.maximum(a, b) < 0.975)
        pairs.append(PairSamples(*(tuple(z[valid[:, c], c] for c in range(3)) for z in (a, b))))
    return pairs


def median_error(log2_curves: np.ndarray, truth: CameraResponse) -> float:
    """Median relative error of linear light over encoded 0.03..0.95, one free scale."""
    z = np.linspace(0.03, 0.95, 200)
    apart = np.concatenate([np.interp(z, GRID, log2_curves[:, c] - log2_of_response(truth)[:, c]) for c in range(3)])
    return float(np.median(np.abs(np.exp2(apart - np.median(apart)) - 1)))


# ---- prior and tables -----------------------------------------------------------------------------------------------------


def test_prior_keeps_half_of_the_cameras_out():
    prior = response_prior()
    assert len(prior.cameras) == len(prior.held_out_cameras) == 4
    assert not set(prior.cameras) & set(prior.held_out_cameras)
    assert (np.diff(prior.mean) >= 0).all()
    assert abs(np.interp(0.5, GRID, prior.mean)) < 1e-3


def test_prior_is_what_its_script_makes():
    if not CURVES.exists():
        pytest.skip("measured curves not there: ../shared/data/responses/curves.json")
    script = ROOT / "benchmarks" / "make_response_prior.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", [*PLAIN, "linear"])
def test_log2_and_response_are_inverse(name):
    response = CameraResponse.named(name)
    again = response_of_log2(log2_of_response(response), name)
    # The very first nodes of steep curves underflow 1e-9 and are continued in proportion.
    np.testing.assert_allclose(again.table, response.table, rtol=1e-9, atol=1e-9)


def test_log2_of_a_response_with_a_black_toe_is_finite():
    z = np.linspace(0, 1, RESPONSE_NODES)
    assert np.isfinite(log2_of_response(CameraResponse.from_samples(z, np.maximum(z - 0.05, 0) / 0.95, "toe"))).all()


def test_spline_basis_is_cardinal_and_reproduces_straight_lines():
    basis = _spline_basis()
    at_knots = np.stack([np.interp(KNOTS, GRID, basis[:, k]) for k in range(len(KNOTS))], axis=1)
    np.testing.assert_allclose(at_knots, np.eye(len(KNOTS)), atol=2e-3)
    np.testing.assert_allclose(basis.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(basis @ KNOTS, GRID, atol=1e-12)


def test_monotone_changes_nothing_but_the_level_of_a_rising_curve():
    curves = np.repeat(response_prior().mean[:, None], 3, axis=1)
    np.testing.assert_allclose(monotone(curves), curves - curves[-1], atol=1e-12)


def test_monotone_makes_a_falling_curve_rise():
    curves = np.repeat((response_prior().mean + 4 * np.exp(-(((GRID - 0.4) / 0.05) ** 2)))[:, None], 3, axis=1)
    assert (np.diff(curves, axis=0) < 0).any()
    rising = monotone(curves)
    position = np.log2(np.maximum(GRID, 0.25 / RESPONSE_NODES))
    exponent = np.diff(rising[:, 0]) / np.diff(position)
    assert exponent.min() >= LEAST_EXPONENTS[0][1] - 1e-9 > 0
    assert (exponent[RESPONSE_NODES // 2 :] >= LEAST_EXPONENTS[-1][1] - 1e-9).all()


def test_weighted_median():
    assert weighted_median(np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 1.0])) == 2
    assert weighted_median(np.array([3.0, 1.0, 2.0]), np.array([5.0, 1.0, 1.0])) == 3


# ---- ridge ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["srgb", "gamma2.4", "camera"])
def test_ridge_of_noisy_clipped_samples_is_unbiased(name):
    truth = s_curve() if name == "camera" else CameraResponse.named(name)
    (pair,) = shoot(truth, [-2.0, 0.0], noise=0.01, moved=0.1, count=100000, spread=(-13.0, 1.0))
    curve = log2_of_response(truth)[:, 0]
    ridge = find_ridge(pair.short[0], pair.long[0], curve, 2.0)
    assert len(ridge.short) > 12
    bright = ridge.short > 0.04  # below, quantisation to a few codes remains
    apart = (np.interp(ridge.long, GRID, curve) - np.interp(ridge.short, GRID, curve) - 2)[bright]
    assert np.abs(apart).mean() < 0.02
    assert abs(apart.mean()) < 0.01
    # The samples themselves scatter far more.
    assert disagreement_stops(pair, log2_of_response(truth), 2.0) > 0.05


def test_binning_by_one_frame_would_be_biased():
    truth = CameraResponse.named("srgb")
    (pair,) = shoot(truth, [-2.0, 0.0], noise=0.05, moved=0, count=200000)
    curve = log2_of_response(truth)[:, 0]
    difference = np.interp(pair.long[0], GRID, curve) - np.interp(pair.short[0], GRID, curve) - 2
    ends = (pair.short[0] > 0.05) & (pair.short[0] < 0.06)
    naive = abs(float(np.median(difference[ends])))
    ridge = find_ridge(pair.short[0], pair.long[0], curve, 2.0)
    near = np.argmin(np.abs(ridge.short - 0.055))
    fair = abs(float(np.interp(ridge.long, GRID, curve)[near] - np.interp(ridge.short, GRID, curve)[near] - 2))
    assert fair < 0.5 * naive


def test_ridge_hardly_depends_on_the_curve_it_is_found_with():
    truth = s_curve()
    (pair,) = shoot(truth, [-2.0, 0.0], noise=0.004, moved=0.1)
    wrong = log2_of_response(CameraResponse.named("srgb"))
    ridge = find_ridge(pair.short[1], pair.long[1], wrong[:, 1], median_ratio(pair, wrong))
    curves = log2_of_response(truth)
    assert ridge_misfit([[ridge] * 3], curves, [2.0]) < 0.05
    assert abs(ridge_ratio([ridge] * 3, curves) - 2) < 0.02


def test_ridge_of_nothing_is_empty():
    curve = response_prior().mean
    steep = np.linspace(-9000.0, 0.0, len(curve))  # a fit that ran away: nothing lies on it
    assert len(find_ridge(np.full(50, 0.3), np.full(50, 0.6), steep, 1.0, 0.2).short) == 0
    assert len(find_ridge(np.empty(0), np.empty(0), curve, 1.0).short) == 0
    assert len(find_ridge(np.full(50, 0.3), np.full(50, 0.6), curve, 30.0).short) == 0
    assert math.isnan(ridge_ratio([find_ridge(np.empty(0), np.empty(0), curve, 1.0)] * 3, np.repeat(curve[:, None], 3, 1)))
    assert math.isnan(median_ratio(NO_SAMPLES, np.repeat(curve[:, None], 3, 1)))


# ---- fit ------------------------------------------------------------------------------------------------------------------

TRUTHS = {**{n: CameraResponse.named(n) for n in PLAIN}, "camera": s_curve(), **held_out()}


@pytest.mark.parametrize("stops", [[-2.0, 0.0, 2.0], [0.0, 1.0]], ids=["three 2 EV apart", "two 1 EV apart"])
@pytest.mark.parametrize("name", TRUTHS)
def test_known_curves_are_recovered(name, stops):
    pairs = shoot(TRUTHS[name], stops)
    ratios = list(np.diff(stops))
    fit, _ = fit_response(pairs, ratios, ratio_sigmas=[0.07] * len(pairs))
    assert median_error(fit.log2_curves, TRUTHS[name]) < 0.03
    # A curve of the wrong kind does not pass.
    assert median_error(log2_of_response(CameraResponse.named("linear")), TRUTHS[name]) > 0.1


def test_held_out_curves_are_there():
    if not CURVES.exists():
        pytest.skip("measured curves not there: ../shared/data/responses/curves.json")
    assert len(held_out()) == 8


def test_all_channels_share_one_curve():
    fit, _ = fit_response(shoot(s_curve(), [-2.0, 0.0]), [2.0], ratio_sigmas=[0.07])
    assert (fit.log2_curves == fit.log2_curves[:, :1]).all()
    assert (fit.log2_curves[-1] == 0).all()


def test_a_dark_low_contrast_pair_still_gives_a_curve_of_the_family():
    pairs = shoot(s_curve(), [0.0, 1.0], count=3000, spread=(-6.0, -4.5))
    fit, _ = fit_response(pairs, [1.0], ratio_sigmas=[0.07])
    assert np.isfinite(fit.log2_curves).all()
    z = np.linspace(0.03, 0.95, 100)
    exponent = np.diff(np.interp(z, GRID, fit.log2_curves[:, 0])) / np.diff(np.log2(z))
    assert 0.3 <= exponent.min() <= exponent.max() < 12


def test_without_exposures_the_exponent_is_the_familys():
    truth = s_curve()
    fit, _ = fit_response(shoot(truth, [-2.0, 0.0, 1.0]), [NAN, NAN], ratio_sigmas=[INF, INF])
    low, high = np.interp(SLOPE_RANGE, GRID, fit.log2_curves[:, 0])
    family = np.diff(np.interp(SLOPE_RANGE, GRID, response_prior().mean))[0]
    assert high - low == pytest.approx(family, abs=1e-3)
    assert fit.log2_ratios[0] / fit.log2_ratios[1] == pytest.approx(2, abs=0.05)


def test_doubted_ratios_are_refined_and_keep_their_sum():
    stops = [-3.0, -2.0, -1.0, 0.0, 1.0]
    nominal = [0.91, 1.09, 0.91, 1.09]  # shutter times as cameras round them
    fit, _ = fit_response(shoot(s_curve(), stops), nominal, ratio_sigmas=[0.07] * 4)
    np.testing.assert_allclose(fit.log2_ratios, np.diff(stops), atol=0.02)
    assert sum(fit.log2_ratios) == pytest.approx(sum(nominal), abs=1e-3)


def test_trusted_ratios_stay():
    fit, _ = fit_response(shoot(s_curve(), [-2.0, 0.0, 2.0]), [1.9, 2.1], ratio_sigmas=[0.0, 0.0])
    np.testing.assert_allclose(fit.log2_ratios, [1.9, 2.1], atol=1e-3)


def test_channels_of_their_own_explain_a_camera_that_has_them():
    base = log2_of_response(s_curve())
    base[:, 0] -= 0.8 * GRID**6
    base[:, 2] += 0.8 * GRID**6
    truth = response_of_log2(base, "apart")
    fit, ridges = fit_response(shoot(truth, [-2.0, 0.0, 2.0]), [2.0, 2.0], ratio_sigmas=[0.07, 0.07])
    own = fit_channels(ridges, fit)
    assert own.misfit < 0.5 * fit.misfit
    z = np.linspace(0.1, 0.9, 50)
    difference = np.interp(z, GRID, own.log2_curves[:, 2] - own.log2_curves[:, 0] - 1.6 * GRID**6)
    assert np.ptp(difference) < 0.25 < np.ptp(1.6 * z**6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, -2.0, NAN]), st.integers(0, 400))
def test_any_samples_give_a_rising_curve(seed, ratio, count):
    rng = np.random.default_rng(seed)
    values = [tuple(np.rint(255 * rng.random(count) ** rng.uniform(0.3, 3)) / 255 for _ in range(3)) for _ in range(2)]
    pair = PairSamples(*values)
    fit, ridges = fit_response([pair], [ratio], ratio_sigmas=[0.07])
    for one in (fit, fit_channels(ridges, fit)):
        response = response_of_log2(one.log2_curves, "any")
        assert (np.diff(response.table, axis=0) > 0).all()


# ---- choice ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["srgb", "gamma2.2", "linear"])
def test_a_plain_camera_gets_its_plain_curve(name):
    choice = choose_response(shoot(CameraResponse.named(name), [-2.0, 0.0, 2.0]), [2.0, 2.0])
    assert choice.response.name == name
    assert choice.ratios == pytest.approx((2.0, 2.0), abs=0.02)


@pytest.mark.parametrize("name", ["gamma1.8", "gamma2.0", "gamma2.4", "camera", *sorted(held_out())])
def test_another_camera_gets_a_fitted_curve(name):
    choice = choose_response(shoot(TRUTHS[name], [-2.0, 0.0, 2.0]), [2.0, 2.0])
    assert choice.response.name == "estimated"
    assert not choice.own_channels
    assert median_error(log2_of_response(choice.response), TRUTHS[name]) < 0.02


def test_a_fit_can_be_forced():
    choice = choose_response(shoot(CameraResponse.named("srgb"), [-2.0, 0.0]), [2.0], force_estimate=True)
    assert choice.response.name == "estimated"


def test_the_colour_profiles_curve_is_a_candidate():
    pairs = shoot(CameraResponse.named("gamma1.8"), [-2.0, 0.0])
    assert choose_response(pairs, [2.0], transfer="1.8").response.name == "gamma1.8"


@pytest.mark.parametrize("name", ["srgb", "gamma2.2"])
def test_unknown_exposures_of_a_plain_camera(name):
    choice = choose_response(shoot(CameraResponse.named(name), [-1.0, 0.0, 2.0]), [NAN, NAN])
    assert choice.response.name == name
    assert choice.ratios == pytest.approx((1.0, 2.0), abs=0.03)


@pytest.mark.parametrize("name", sorted(held_out()) or [pytest.param("", marks=pytest.mark.skip(reason="measured curves not there"))])
def test_unknown_exposures_of_a_held_out_camera_are_found(name):
    choice = choose_response(shoot(held_out()[name], [-2.0, 0.0, 2.0]), [NAN, NAN])
    assert choice.response.name == "estimated"
    assert choice.ratios == pytest.approx((2.0, 2.0), rel=0.12)


@pytest.mark.parametrize("name", ["srgb", "gamma2.4", "camera"])
def test_one_wrong_exposure_is_found_out(name):
    choice = choose_response(shoot(TRUTHS[name], [-2.0, 0.0, 2.0, 4.0]), [2.0, 3.2, 2.0])
    assert choice.contradicted == (False, True, False)
    assert choice.ratios == pytest.approx((2.0, 2.0, 2.0), abs=0.05)
    assert median_error(log2_of_response(choice.response), TRUTHS[name]) < 0.02


def test_wrong_exposures_throughout_leave_the_pixels():
    choice = choose_response(shoot(s_curve(), [-2.0, 0.0, 2.0]), [0.0, 0.1])
    assert choice.contradicted == (True, True)
    assert choice.ratios[0] > 1.4
    assert choice.ratios[0] == pytest.approx(choice.ratios[1], abs=0.1)


def test_the_users_exposures_are_never_changed():
    choice = choose_response(shoot(s_curve(), [-2.0, 0.0, 2.0]), [2.0, 3.0], exact=True)
    assert choice.ratios == (2.0, 3.0)
    assert any(choice.contradicted)


def test_a_small_deviation_is_no_contradiction():
    choice = choose_response(shoot(s_curve(), [-2.0, 0.0, 2.0]), [2.0, 2.0 + 0.6 * CONTRADICTION_STOPS])
    assert choice.contradicted == (False, False)


def test_a_given_response_is_kept_and_does_not_overrule_good_exposures():
    srgb = CameraResponse.named("srgb")
    choice = choose_response(shoot(TRUTHS["camera"], [-2.0, 0.0, 2.0]), [2.0, 2.0], given=srgb)
    assert choice.response is srgb
    assert choice.ratios == pytest.approx((2.0, 2.0), abs=0.15)
    assert choice.contradicted == (False, False)


def test_linear_frames_measure_their_ratios():
    linear = CameraResponse.named("linear")
    choice = choose_response(shoot(linear, [-2.1, 0.0]), [2.0], given=linear, certain=True)
    assert choice.ratios == pytest.approx((2.1,), abs=0.01)
    assert choose_response(shoot(linear, [-2.1, 0.0]), [NAN], given=linear).ratios == pytest.approx((2.1,), abs=0.01)


def test_unrelated_pictures_have_no_say():
    pairs = shoot(s_curve(), [-2.0, 0.0, 2.0], moved=2.0)
    choice = choose_response(pairs, [2.0, 2.0])
    assert choice.ratios == (2.0, 2.0)
    assert choice.contradicted == (False, False)


def test_pairs_without_samples_keep_their_ratio():
    first, _ = shoot(s_curve(), [-2.0, 0.0, 2.0])
    choice = choose_response([first, NO_SAMPLES], [2.0, 3.0])
    assert choice.ratios == pytest.approx((2.0, 3.0), abs=0.1)
    assert math.isnan(choice.pixel_ratios[1])
    assert choose_response([NO_SAMPLES], [2.0]).ratios == (2.0,)
