"""Camera response from a bracket's own pixels: the curve that brings neighbouring exposures together. NumPy only.

One scene point seen at two exposures has g(z_long) - g(z_short) = log2(exposure_long / exposure_short), where g = log2 of the inverse
response and z the encoded values (Debevec and Malik 1997, section 2.1; in pairs, Mann and Picard 1995). Two steps take turns: `ridge`
turns the samples into noise-free pairs under the g so far, and `fit_response` finds

    g = mean of the measured family + principal components + c*log2 z + a 12-knot spline

by least absolute deviations, reweighting, under a Gaussian prior: components as wide as the family, a stiff spline. Stiffness matters:
any error that repeats every log2 ratio stops is invisible in one pair, so a loose curve fits two frames perfectly and wrongly. Then g is
made monotone. Ratios known only up to doubt are unknowns of the same system.

Conventions. Ratios alone leave three things open, and this is how they are closed:

* Scale: linear is 1 at encoded 1, in every channel.
* Channels: a scale per channel cannot be seen in ratios, and cameras apply one tone curve after white balance. So all channels share one
  curve, which keeps every encoded grey a grey, and the white balance that of the photo. `fit_channels` lets them differ where the
  evidence demands it, holding the difference near 0 around mid-grey.
* Exponent: with unknown exposures (g, log2 ratios) and (k*g, k*log2 ratios) fit alike. Then the rise of g over `SLOPE_RANGE` is that of
  the measured family, which sets k: real cameras differ by some 5 % in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from gmodiff.radiometry import RESPONSE_NODES, CameraResponse
from gmodiff.ridge import F64, GRID, PairSamples, Ridge, find_ridges, look_up, ridge_misfit

SLOPE_RANGE = (0.2, 0.8)
"""The encoded range whose rise in stops is fixed to the family's where no exposure is known."""

KNOTS: F64 = np.linspace(0.0, 1.0, 12) ** 1.5
"""Knots of the spline: denser in the dark, where responses bend."""

COMPONENT_WIDENING = 2.0
"""Four cameras underestimate the spread of all cameras: deviations of the principal components are widened by this."""

EXPONENT_SIGMA = 0.5
"""Deviation of c in c*log2 z: where ratios are known, gamma 2.2 and linear lie within the doubt."""

BEND_SIGMA = 0.04
"""Deviation of the spline's second difference between neighbouring knots, in stops."""

CHANNEL_SIGMA = 0.15
"""Deviation of a channel from the common curve at a knot, in stops; a third of it within CHANNEL_NEUTRAL."""

CHANNEL_NEUTRAL = (0.3, 0.7)
"""Encoded values around mid-grey, where a channel is held to the common curve most."""

LEAST_EXPONENTS = ((0.0, 0.3), (0.1, 0.4), (0.5, 0.9))
"""Smallest d log2 linear / d log2 encoded of a fitted curve, by encoded value: it always rises, and no camera stores its middle and its
highlights with less contrast than linear ones would have, whatever a few clipped colours suggest."""

GATES_STOPS = (np.inf, 1.0, 0.5)
"""Samples that disagree with the curve so far by more than this have moved: the limit in each round of the fit."""

_POSITIVE_GRID: F64 = np.maximum(GRID, 0.25 / RESPONSE_NODES)  # log2 needs a value at 0


@dataclass(frozen=True)
class ResponseFit:
    """log2_curves: (RESPONSE_NODES, 3) g on `GRID`, 0 at encoded 1. log2_ratios: per pair, NaN where it had no samples.

    misfit: `ridge_misfit` in stops: what noise-free neighbours would still differ by.
    """

    log2_curves: F64
    log2_ratios: tuple[float, ...]
    misfit: float


@dataclass(frozen=True)
class ResponsePrior:
    """What cameras' responses look like: mean (RESPONSE_NODES,) and components (RESPONSE_NODES, K) of log2 linear, 0 at encoded 0.5.

    A component is scaled to one standard deviation. cameras went into it; held_out_cameras are kept for tests.
    """

    mean: F64
    components: F64
    cameras: tuple[str, ...]
    held_out_cameras: tuple[str, ...]


@cache
def response_prior() -> ResponsePrior:
    """The measured family (response_prior.json, made by benchmarks/make_response_prior.py from half of the measured cameras)."""
    stored = json.loads(resources.files("gmodiff").joinpath("response_prior.json").read_text(encoding="utf-8"))
    position, grid = np.log2(np.asarray(stored["encoded"])), np.log2(_POSITIVE_GRID)

    def on_grid(values: Sequence[float]) -> F64:
        curve = np.asarray(values, np.float64)
        slope = (curve[1] - curve[0]) / (position[1] - position[0])
        below = np.minimum(grid - position[0], 0.0)
        return np.asarray(np.interp(grid, position, curve) + slope * below)

    return ResponsePrior(
        on_grid(stored["mean"]),
        np.stack([on_grid(c) for c in stored["components"]], axis=1),
        tuple(stored["cameras"]),
        tuple(stored["held_out_cameras"]),
    )


def log2_of_response(response: CameraResponse) -> F64:
    """(RESPONSE_NODES, 3) log2 of a response's table; where the table is 0, continued in proportion to the encoded value."""
    table = response.table
    out = np.empty_like(table)
    for c in range(3):
        first = int(np.argmax(table[:, c] > 1e-9))
        out[first:, c] = np.log2(table[first:, c])
        out[:first, c] = out[first, c] + np.log2(_POSITIVE_GRID[:first] / GRID[first])
    return out


def response_of_log2(log2_curves: F64, name: str) -> CameraResponse:
    """The response whose log2 is (RESPONSE_NODES, 3) or (RESPONSE_NODES,); scaled to 1 at encoded 1, 0 at encoded 0, never decreasing."""
    curves = log2_curves if log2_curves.ndim == 2 else np.repeat(log2_curves[:, None], 3, axis=1)
    linear = np.exp2(curves - curves[-1:])
    linear[0] = 0.0
    return CameraResponse(np.maximum.accumulate(linear, axis=0), name)


# ---- the fit ------------------------------------------------------------------------------------------------------------


def fit_response(
    pairs: Sequence[PairSamples], log2_ratios: Sequence[float], *, ratio_sigmas: Sequence[float], start: F64 | None = None
) -> tuple[ResponseFit, list[list[Ridge]]]:
    """The inverse response of a bracket, one curve for all channels.

    pairs: samples of neighbouring exposures. log2_ratios: log2(long / short) of each pair; NaN where unknown.
    ratio_sigmas: doubt about each ratio in stops: 0 trusts it, inf ignores it (it is then only a start). The trusted and doubted
    ratios keep their sum; where there are none, the exponent follows the measured family.
    start: (RESPONSE_NODES, 3) a log2 curve that is near already, which saves a round; None = the family's mean.
    Returns the fit and the ridges, [pair][channel].
    """
    curves = np.repeat(response_prior().mean[:, None], 3, axis=1) if start is None else start
    ratios = [float(r) for r in log2_ratios]
    ridges: list[list[Ridge]] = []
    for gate in GATES_STOPS if start is None else GATES_STOPS[1:]:
        ridges = find_ridges(pairs, curves, ratios, gate)
        curve, ratios = _solve(ridges, log2_ratios, ratio_sigmas)
        curves = monotone(np.repeat(curve[:, None], 3, axis=1))
    return ResponseFit(curves, tuple(ratios), ridge_misfit(ridges, curves, ratios)), ridges


def fit_channels(ridges: Sequence[Sequence[Ridge]], fit: ResponseFit) -> ResponseFit:
    """The fit with a curve of its own for each channel: the common one plus a spline that is held near 0 around mid-grey."""
    spline, knots = _spline_basis(), len(KNOTS)
    low, high = CHANNEL_NEUTRAL
    neutral = (low < KNOTS) & (high > KNOTS)
    rows = np.concatenate([np.diag(np.where(neutral, 3.0, 1.0)), _bends()]) / CHANNEL_SIGMA
    prior_system, prior_right = rows.T @ rows, np.zeros(knots)
    curves = fit.log2_curves.copy()
    for c in range(3):
        data, target, weight = [np.zeros((0, knots))], [np.zeros(0)], [np.zeros(0)]
        for pair, ratio in zip(ridges, fit.log2_ratios, strict=True):
            r = pair[c]
            if len(r.short) and np.isfinite(ratio):
                data.append(look_up(spline, r.long) - look_up(spline, r.short))
                target.append(ratio - look_up(curves[:, c], r.long) + look_up(curves[:, c], r.short))
                weight.append(r.weight)
        curves[:, c] += spline @ _least_absolute(
            np.concatenate(data), np.concatenate(target), np.concatenate(weight), prior_system, prior_right
        )
    curves = monotone(curves)
    return ResponseFit(curves, fit.log2_ratios, ridge_misfit(ridges, curves, fit.log2_ratios))


def monotone(log2_curves: F64) -> F64:
    """The curves with their local exponents kept above LEAST_EXPONENTS, 0 at encoded 1; one that is above already only shifts."""
    encoded, exponents = np.array(LEAST_EXPONENTS).T
    least = np.interp((GRID[1:] + GRID[:-1]) / 2, encoded, exponents) * np.diff(np.log2(_POSITIVE_GRID))
    rise = np.maximum(np.diff(log2_curves, axis=0), least[:, None])
    out = np.concatenate([np.zeros((1, log2_curves.shape[1])), np.cumsum(rise, axis=0)])
    return np.asarray(out - out[-1:])


def _solve(ridges: Sequence[Sequence[Ridge]], log2_ratios: Sequence[float], ratio_sigmas: Sequence[float]) -> tuple[F64, list[float]]:
    """((RESPONSE_NODES,) curve, ratios) that fit the ridges best under the prior. Unknowns: the basis, then one ratio per pair."""
    basis, prior_rows = _common_basis()
    mean = response_prior().mean
    common, pairs = basis.shape[1], len(ridges)
    size = common + pairs
    rows, targets, weights = [], [], []
    for p, pair in enumerate(ridges):
        for r in pair:
            block = np.zeros((len(r.short), size))
            block[:, :common] = look_up(basis, r.long) - look_up(basis, r.short)
            block[:, common + p] = -1.0
            rows.append(block)
            targets.append(look_up(mean, r.short) - look_up(mean, r.long))
            weights.append(r.weight)

    known = np.isfinite(log2_ratios) & np.isfinite(ratio_sigmas)
    given = np.where(known, log2_ratios, 0.0)
    doubt = np.where(known, np.maximum(ratio_sigmas, 1e-4), 100.0)
    fixed = np.zeros((len(prior_rows) + pairs + 1, size))
    fixed_targets = np.zeros(len(fixed))
    fixed[: len(prior_rows), :common] = prior_rows
    fixed[len(prior_rows) : -1, common:] = np.diag(1.0 / doubt)
    fixed_targets[len(prior_rows) : -1] = given / doubt
    if known.any():
        # Shrinking curve and ratios together would shrink their noise too: what the known ratios span stays as it is.
        fixed[-1, common:] = 1e3 * known
        fixed_targets[-1] = 1e3 * given.sum()
    else:
        low, high = look_up(basis, np.array(SLOPE_RANGE))
        fixed[-1, :common] = 1e3 * (high - low)

    solution = _least_absolute(
        np.concatenate(rows), np.concatenate(targets), np.concatenate(weights), fixed.T @ fixed, fixed.T @ fixed_targets
    )
    ratios = [float(v) if any(len(r.short) for r in pair) else float("nan") for v, pair in zip(solution[common:], ridges, strict=True)]
    return mean + basis @ solution[:common], ratios


def _least_absolute(data: F64, target: F64, weight: F64, prior_system: F64, prior_right: F64) -> F64:
    """Solution of least absolute deviations by reweighting (quadratic within 1 / weight: Huber 1964), under a Gaussian prior."""
    solution = np.linalg.solve(prior_system + 1e-9 * np.eye(len(prior_system)), prior_right)
    square = weight**2
    for _ in range(10 if len(data) else 0):
        weighted = data * square[:, None]
        solution = np.linalg.solve(weighted.T @ data + prior_system, weighted.T @ target + prior_right)
        square = weight**2 / np.maximum(np.abs(data @ solution - target) * weight, 1.0)
    return np.asarray(solution)


# ---- basis --------------------------------------------------------------------------------------------------------------


@cache
def _common_basis() -> tuple[F64, F64]:
    """((RESPONSE_NODES, P) basis of the curve: components, log2 z, spline; (rows, P) of the prior, each row 1 / deviation)."""
    prior, knots = response_prior(), len(KNOTS)
    basis = np.concatenate([prior.components, np.log2(_POSITIVE_GRID / 0.5)[:, None], _spline_basis()], axis=1)
    first = basis.shape[1] - knots
    single = np.eye(basis.shape[1])
    rows = [row / COMPONENT_WIDENING for row in single[: first - 1]]
    rows.append(single[first - 1] / EXPONENT_SIGMA)
    rows += [np.concatenate([np.zeros(first), bend / BEND_SIGMA]) for bend in _bends()]
    # The spline's level and slope are in the scale and in c*log2 z already.
    rows += [10.0 * single[first + 4], 10.0 * single[first + 7]]
    return basis, np.array(rows)


@cache
def _bends() -> F64:
    """(10, 12) second differences between neighbouring knots, as if these were evenly spaced."""
    count = len(KNOTS)
    rows = np.zeros((count - 2, count))
    for k in range(1, count - 1):
        left, right = KNOTS[k] - KNOTS[k - 1], KNOTS[k + 1] - KNOTS[k]
        rows[k - 1, k - 1 : k + 2] = np.array([1 / left, -1 / left - 1 / right, 1 / right]) / (count - 1)
    return rows


@cache
def _spline_basis() -> F64:
    """(RESPONSE_NODES, 12) natural cubic cardinal splines on KNOTS: 1 at one knot, 0 at the others."""
    count, step = len(KNOTS), np.diff(KNOTS)
    system, right = np.eye(count), np.zeros((count, count))
    for k in range(1, count - 1):
        system[k, k - 1 : k + 2] = step[k - 1], 2 * (step[k - 1] + step[k]), step[k]
        right[k, k - 1 : k + 2] = 6 / step[k - 1], -6 / step[k - 1] - 6 / step[k], 6 / step[k]
    second = np.linalg.solve(system, right)  # (knot, cardinal): second derivatives
    at = np.clip(np.searchsorted(KNOTS, GRID, side="right") - 1, 0, count - 2)
    h, to_next, from_last = step[at], KNOTS[at + 1] - GRID, GRID - KNOTS[at]
    eye = np.eye(count)
    return np.asarray(
        (to_next / h)[:, None] * eye[at]
        + (from_last / h)[:, None] * eye[at + 1]
        + ((to_next**3 / h - h * to_next) / 6)[:, None] * second[at]
        + ((from_last**3 / h - h * from_last) / 6)[:, None] * second[at + 1]
    )
