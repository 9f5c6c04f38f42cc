"""Camera response from a bracket's own pixels: the fit, on sampled pixel pairs. NumPy only.

One scene point seen at two exposures has g(z_long) - g(z_short) = log2(exposure_long / exposure_short), where g = log2 of the inverse
response (Debevec and Malik 1997, section 2.1; in pairs, Mann and Picard 1995). The fit has three steps, repeated as g gets better:

1. *Ridge*: the samples of a pair and channel are sorted by their radiance (the mean of both frames' estimates, weighted by noise) and the
   median disagreement is taken in each of some fifty bins. The radiance estimate is independent of the disagreement, so neither noise
   nor clipping at either end biases the ridge; the median ignores what moved.
2. *Curve*: g = mean of the measured family + principal components + c*log2 z + a 12-knot spline, least absolute deviations of the ridge
   by reweighting, with a Gaussian prior towards the family and a second-difference penalty; then made monotone.
3. *Ratios* that are known only up to doubt are unknowns of the same system.

Conventions. Ratios alone leave three things open, and this is how they are closed:

* Scale: linear is 1 at encoded 1, in every channel.
* Channels: a scale per channel cannot be seen in ratios, and cameras apply one tone curve after white balance. So all channels share one
  curve, which keeps every encoded grey a grey, unless the evidence demands a difference; that is 0 around mid-grey and at encoded 1.
* Exponent: with unknown exposures (g, log2 ratios) and (k*g, k*log2 ratios) fit alike. Then the curve's rise over `SLOPE_RANGE` is that of
  the measured family, which sets k.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from gmodiff.radiometry import RESPONSE_NODES, CameraResponse

F64 = NDArray[np.float64]

VALID_ENCODED = (0.02, 0.95)
"""Where a pair's ridge is used: above the noise floor in the shorter exposure, below clipping in the longer one."""

SLOPE_RANGE = (0.2, 0.8)
"""The encoded range whose rise in stops is fixed to the family's where no exposure is known."""

KNOTS = np.linspace(0.0, 1.0, 12) ** 1.5
"""Knots of the spline: denser in the dark, where responses bend."""

ENCODED_SIGMA = 0.008
"""Deviation of an encoded sample, two 8-bit codes: sets how much of the noise of a pair belongs to which frame."""

RATIO_SIGMA_STOPS = 0.07
"""Doubt about a known ratio: nominal 1/30 s is 1/32 s (0.09 stop), and shutters vary."""

GRID: F64 = np.linspace(0.0, 1.0, RESPONSE_NODES)
_POSITIVE_GRID = np.maximum(GRID, 0.25 / RESPONSE_NODES)  # log2 needs a value at 0


@dataclass(frozen=True)
class PairSamples:
    """Aligned samples of two neighbouring exposures.

    short, long: per channel, (N_c,) encoded values 0..1 in the shorter and in the longer exposure.
    roughness: per channel, (N_c,) local contrast around each sample, any unit; rougher samples suffer more from misalignment.
    """

    short: tuple[F64, F64, F64]
    long: tuple[F64, F64, F64]
    roughness: tuple[F64, F64, F64]

    @property
    def count(self) -> int:
        """Samples in all channels."""
        return sum(len(z) for z in self.short)


@dataclass(frozen=True)
class Ridge:
    """Denoised pairs of one channel: encoded short and long, the deviation of their disagreement in stops. All (K,)."""

    short: F64
    long: F64
    sigma: F64


@dataclass(frozen=True)
class ResponseFit:
    """log2_curves: (RESPONSE_NODES, 3) g on a uniform grid, 0 at encoded 1. log2_ratios: per pair, NaN where it had no samples.

    misfit: weighted mean |disagreement| of the ridge in stops: what noise-free neighbours would still differ by.
    """

    log2_curves: F64
    log2_ratios: tuple[float, ...]
    misfit: float

    def response(self, name: str = "estimated") -> CameraResponse:
        """The fitted curves as a camera response."""
        return response_of_log2(self.log2_curves, name)


@dataclass(frozen=True)
class ResponsePrior:
    """What cameras' responses look like, on the uniform grid of a response: log2 of linear, 0 at encoded 0.5."""

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
    """(RESPONSE_NODES, 3) log2 of a response's table; its black, log2 0, is continued in proportion to the encoded value."""
    table = response.table
    out = np.empty_like(table)
    for c in range(3):
        first = int(np.argmax(table[:, c] > 1e-9))
        out[first:, c] = np.log2(table[first:, c])
        out[:first, c] = out[first, c] + np.log2(_POSITIVE_GRID[:first] / GRID[first])
    return out


def response_of_log2(log2_curves: F64, name: str) -> CameraResponse:
    """The response whose log2 is (RESPONSE_NODES, 3); scaled to 1 at encoded 1, 0 at encoded 0, never decreasing."""
    linear = np.exp2(log2_curves - log2_curves[-1:])
    linear[0] = 0.0
    return CameraResponse(np.maximum.accumulate(linear, axis=0), name)


@cache
def _spline_basis() -> F64:
    """(RESPONSE_NODES, 12) natural cubic cardinal splines on KNOTS: 1 at one knot, 0 at the others."""
    count, step = len(KNOTS), np.diff(KNOTS)
    system, right = np.eye(count), np.zeros((count, count))
    for k in range(1, count - 1):
        system[k, k - 1 : k + 2] = step[k - 1], 2 * (step[k - 1] + step[k]), step[k]
        right[k, k - 1 : k + 2] = 6 / step[k - 1], -6 / step[k - 1] - 6 / step[k], 6 / step[k]
    second = np.linalg.solve(system, right)  # (knot, cardinal): second derivatives
    k = np.clip(np.searchsorted(KNOTS, GRID, side="right") - 1, 0, count - 2)
    h, to_next, from_last = step[k], KNOTS[k + 1] - GRID, GRID - KNOTS[k]
    eye = np.eye(count)
    return np.asarray(
        (to_next / h)[:, None] * eye[k]
        + (from_last / h)[:, None] * eye[k + 1]
        + ((to_next**3 / h - h * to_next) / 6)[:, None] * second[k]
        + ((from_last**3 / h - h * from_last) / 6)[:, None] * second[k + 1]
    )


def _at(table: F64, encoded: F64) -> F64:
    """Rows of a (RESPONSE_NODES,) or (RESPONSE_NODES, P) table at (N,) encoded values, linearly interpolated."""
    position = np.clip(encoded, 0.0, 1.0) * (RESPONSE_NODES - 1)
    low = np.minimum(position.astype(np.intp), RESPONSE_NODES - 2)
    t = position - low
    if table.ndim == 2:
        t = t[:, None]
    return np.asarray(table[low] * (1 - t) + table[low + 1] * t)


# ---- ridge --------------------------------------------------------------------------------------------------------------

BIN_STOPS = 0.125
"""Width of a bin of the ridge, in stops of radiance."""

MIN_BIN_SAMPLES = 12


def find_ridge(short: F64, long: F64, roughness: F64, log2_curve: F64, log2_ratio: float) -> Ridge:
    """Noise-free pairs of one channel: in each bin of log radiance, the median disagreement of the smoother half of the samples.

    log2_curve: (RESPONSE_NODES,) the curve so far; log2_ratio: the ratio so far. They only have to be near: where the noise is small the
    pairs found do not depend on them. The radiance of a sample is the mean of what its two frames say, weighted by the inverse of their
    variances, which makes its error independent of the error of their difference.
    """
    slope = np.gradient(log2_curve, GRID[1])
    a, b = _at(log2_curve, short) + log2_ratio, _at(log2_curve, long)
    inverse_a, inverse_b = 1.0 / _at(slope, short) ** 2, 1.0 / _at(slope, long) ** 2
    weight = inverse_a / (inverse_a + inverse_b)
    radiance, difference = weight * a + (1 - weight) * b, a - b
    low = max(float(_at(log2_curve, np.array([VALID_ENCODED[0]]))[0]) + log2_ratio, float(log2_curve[0]))
    high = float(_at(log2_curve, np.array([VALID_ENCODED[1]]))[0])
    if not high > low:
        return Ridge(*(np.empty(0) for _ in range(3)))
    bins = max(int(np.ceil((high - low) / BIN_STOPS)), 1)
    index = np.floor((radiance - low) / (high - low) * bins).astype(np.intp)
    index[(radiance < low) | (radiance >= high)] = -1
    order = np.lexsort((roughness, index))
    edges = np.searchsorted(index[order], np.arange(bins + 1))
    points: list[tuple[float, float, float]] = []
    for first, end in zip(edges[:-1], edges[1:], strict=True):
        if end - first < MIN_BIN_SAMPLES:
            continue
        smooth = order[first : first + max((end - first + 1) // 2, MIN_BIN_SAMPLES // 2)]
        d = difference[smooth]
        middle = float(np.median(d))
        spread = 1.4826 * float(np.median(np.abs(d - middle)))
        s, w = float(np.median(radiance[smooth])), float(np.median(weight[smooth]))
        # Half of the difference goes to either frame as its noise demands: the two encoded values of a noise-free sample.
        points.append((s + (1 - w) * middle, s - w * middle, 1.25 * spread / np.sqrt(len(d))))
    if not points:
        return Ridge(*(np.empty(0) for _ in range(3)))
    values = np.array(points)
    encoded_short = np.interp(values[:, 0] - log2_ratio, log2_curve, GRID)
    encoded_long = np.interp(values[:, 1], log2_curve, GRID)
    return Ridge(encoded_short, encoded_long, values[:, 2])


def pair_ratio(ridges: Sequence[Ridge], log2_curves: F64) -> float:
    """log2 exposure ratio that a pair's ridges say under a curve: the weighted median over bins and channels. NaN without a ridge."""
    values = np.concatenate([_at(log2_curves[:, c], r.long) - _at(log2_curves[:, c], r.short) for c, r in enumerate(ridges)])
    if not len(values):
        return float("nan")
    return weighted_median(values, np.concatenate([1.0 / (r.sigma + RIDGE_FLOOR_STOPS) for r in ridges]))


def weighted_median(values: F64, weights: F64) -> float:
    """The value below which half of the weight lies."""
    order = np.argsort(values)
    below = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(below, below[-1] / 2)])


def ridge_misfit(ridges: Sequence[Sequence[Ridge]], log2_curves: F64, log2_ratios: Sequence[float]) -> float:
    """Weighted mean |disagreement| in stops over all pairs, channels and bins; NaN without a ridge."""
    total, weight = 0.0, 0.0
    for pair, ratio in zip(ridges, log2_ratios, strict=True):
        for c, r in enumerate(pair):
            if len(r.short) and np.isfinite(ratio):
                w = 1.0 / (r.sigma + RIDGE_FLOOR_STOPS)
                total += float(np.sum(w * np.abs(_at(log2_curves[:, c], r.long) - _at(log2_curves[:, c], r.short) - ratio)))
                weight += float(np.sum(w))
    return total / weight if weight else float("nan")


# ---- curve --------------------------------------------------------------------------------------------------------------

RIDGE_FLOOR_STOPS = 0.02
"""What a bin of the ridge can be trusted to: cameras change saturation after the tone curve, so no curve fits better."""

COMPONENT_WIDENING = 2.0
"""Four cameras underestimate the spread of all cameras: deviations of the principal components are widened by this."""

EXPONENT_SIGMA = 0.5
"""Deviation of c in c*log2 z: gamma 2.2 to linear lies within the family's doubt where the ratios are known."""

BEND_SIGMA = 0.25
"""Deviation of the spline's second difference between neighbouring knots, in stops."""

CHANNEL_SIGMA = 0.15
"""Deviation of a channel from the common curve at a knot, in stops: what the evidence has to overcome."""

CHANNEL_NEUTRAL = (0.3, 0.7)
"""Between these encoded values a channel may leave the common curve by a tenth of that only."""

MIN_EXPONENT = 0.3
"""Smallest d log2 linear / d log2 encoded of a fitted curve: it always rises."""


def fit_response(
    pairs: Sequence[PairSamples],
    log2_ratios: Sequence[float],
    *,
    ratio_sigmas: Sequence[float],
    start: F64 | None = None,
    rounds: int = 3,
) -> tuple[ResponseFit, list[list[Ridge]]]:
    """The inverse response of a bracket, one curve for all channels.

    pairs: samples of neighbouring exposures. log2_ratios: log2(long / short) of each pair; NaN where unknown.
    ratio_sigmas: doubt about each ratio in stops: 0 trusts it, inf ignores it (it is then only a start). Where none is finite, the
    exponent follows the measured family. start: (RESPONSE_NODES, 3) log2 curve to find the ridge with; None = the family's mean.
    Returns the fit and the ridges, [pair][channel].
    """
    curves = start if start is not None else np.repeat(response_prior().mean[:, None], 3, axis=1)
    ratios = [float(r) for r in log2_ratios]
    ridges: list[list[Ridge]] = []
    for _ in range(rounds):
        ridges = find_ridges(pairs, curves, ratios)
        curve, ratios = _solve(ridges, log2_ratios, ratio_sigmas)
        curves = monotone(np.repeat(curve[:, None], 3, axis=1))
    return ResponseFit(curves, tuple(ratios), ridge_misfit(ridges, curves, ratios)), ridges


def find_ridges(pairs: Sequence[PairSamples], log2_curves: F64, log2_ratios: Sequence[float]) -> list[list[Ridge]]:
    """Ridges [pair][channel] under a curve. An unknown ratio (NaN) is first taken as the samples' median."""
    out = []
    for pair, ratio in zip(pairs, log2_ratios, strict=True):
        known = ratio if np.isfinite(ratio) else median_ratio(pair, log2_curves)
        if not np.isfinite(known):
            out.append([Ridge(*(np.empty(0) for _ in range(3))) for _ in range(3)])
            continue
        out.append([find_ridge(pair.short[c], pair.long[c], pair.roughness[c], log2_curves[:, c], known) for c in range(3)])
    return out


def median_ratio(pair: PairSamples, log2_curves: F64) -> float:
    """log2 exposure ratio as the median over samples of all channels; NaN without samples."""
    if not pair.count:
        return float("nan")
    parts = [_at(log2_curves[:, c], pair.long[c]) - _at(log2_curves[:, c], pair.short[c]) for c in range(3)]
    return float(np.median(np.concatenate(parts)))


def _common_basis() -> tuple[F64, F64]:
    """((RESPONSE_NODES, P) basis of the common curve, (P,) prior deviations; inf = free)."""
    prior = response_prior()
    basis = np.concatenate([prior.components, np.log2(_POSITIVE_GRID / 0.5)[:, None], _spline_basis()], axis=1)
    sigmas = np.concatenate([np.full(prior.components.shape[1], COMPONENT_WIDENING), [EXPONENT_SIGMA], np.full(len(KNOTS), np.inf)])
    return basis, sigmas


def _second_differences() -> F64:
    """(10, 12) divided second differences over KNOTS, in units of an even spacing."""
    rows = np.zeros((len(KNOTS) - 2, len(KNOTS)))
    even = 1.0 / (len(KNOTS) - 1)
    for k in range(1, len(KNOTS) - 1):
        left, right = KNOTS[k] - KNOTS[k - 1], KNOTS[k + 1] - KNOTS[k]
        rows[k - 1, k - 1 : k + 2] = np.array([1 / left, -1 / left - 1 / right, 1 / right]) * even
    return rows


def _solve(ridges: Sequence[Sequence[Ridge]], log2_ratios: Sequence[float], ratio_sigmas: Sequence[float]) -> tuple[F64, list[float]]:
    """Curve and ratios that fit the ridges best: least absolute deviations by reweighting, under the prior."""
    basis, prior_rows = _common_basis()
    mean = response_prior().mean
    common, pairs = basis.shape[1], len(ridges)
    size = common + pairs
    rows, targets, deviations = [], [], []
    for p, pair in enumerate(ridges):
        for r in pair:
            block = np.zeros((len(r.short), size))
            block[:, :common] = _at(basis, r.long) - _at(basis, r.short)
            block[:, common + p] = -1.0
            rows.append(block)
            targets.append(_at(mean, r.short) - _at(mean, r.long))
            deviations.append(r.sigma + RIDGE_FLOOR_STOPS)

    known = np.isfinite(log2_ratios) & np.isfinite(ratio_sigmas)
    given = np.where(known, log2_ratios, 0.0)
    fixed = np.zeros((len(prior_rows) + pairs + 1, size))
    fixed_targets = np.zeros(len(fixed))
    fixed[: len(prior_rows), :common] = prior_rows
    doubt = np.where(known, np.maximum(ratio_sigmas, 1e-4), 100.0)
    fixed[len(prior_rows) : -1, common:] = np.diag(1.0 / doubt)
    fixed_targets[len(prior_rows) : -1] = given / doubt
    if known.any():
        # Shrinking curve and ratios together would shrink their noise too: what the trusted ratios span stays as given.
        fixed[-1, common:] = 1e3 * known
        fixed_targets[-1] = 1e3 * given.sum()
    else:
        ends = _at(basis, np.array(SLOPE_RANGE))
        fixed[-1, :common] = 1e3 * (ends[1] - ends[0])

    solution = _least_absolute(
        np.concatenate(rows), np.concatenate(targets), np.concatenate(deviations), fixed.T @ fixed, fixed.T @ fixed_targets
    )
    ratios = [float(v) if any(len(r.short) for r in pair) else float("nan") for v, pair in zip(solution[common:], ridges, strict=True)]
    return mean + basis @ solution[:common], ratios


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
def _common_basis() -> tuple[F64, F64]:
    """((RESPONSE_NODES, P) basis of the curve: components, log2 z, spline; (rows, P) of the prior, each row 1 / deviation)."""
    prior, knots = response_prior(), len(KNOTS)
    basis = np.concatenate([prior.components, np.log2(_POSITIVE_GRID / 0.5)[:, None], _spline_basis()], axis=1)
    first = basis.shape[1] - knots
    single = np.eye(basis.shape[1])
    rows = [row / COMPONENT_WIDENING for row in single[: first - 1]]
    rows.append(single[first - 1] / EXPONENT_SIGMA)
    for bend in _bends():
        rows.append(np.concatenate([np.zeros(first), bend / BEND_SIGMA]))
    # The spline's level and slope are in the scale and in c*log2 z already.
    rows += [10.0 * single[first + 4], 10.0 * single[first + 7]]
    return basis, np.array(rows)


def fit_channels(ridges: Sequence[Sequence[Ridge]], fit: ResponseFit) -> ResponseFit:
    """The fit with a curve of its own for each channel: the common one plus a spline, 0 at encoded 1 and held near 0 around mid-grey."""
    spline, knots = _spline_basis(), len(KNOTS)
    neutral = (KNOTS >= CHANNEL_NEUTRAL[0]) & (KNOTS <= CHANNEL_NEUTRAL[1])
    rows = np.concatenate([np.diag(np.where(neutral, 3.0, 1.0)), _bends()])
    prior_system = rows.T @ rows / CHANNEL_SIGMA**2
    curves = fit.log2_curves.copy()
    for c in range(3):
        data, target, deviation = [np.zeros((0, knots))], [np.zeros(0)], [np.zeros(0)]
        for pair, ratio in zip(ridges, fit.log2_ratios, strict=True):
            r = pair[c]
            if len(r.short) and np.isfinite(ratio):
                data.append(_at(spline, r.long) - _at(spline, r.short))
                target.append(ratio - _at(fit.log2_curves[:, c], r.long) + _at(fit.log2_curves[:, c], r.short))
                deviation.append(r.sigma + RIDGE_FLOOR_STOPS)
        solution = _least_absolute(np.concatenate(data), np.concatenate(target), np.concatenate(deviation), prior_system, np.zeros(knots))
        curves[:, c] += spline @ solution
    curves = monotone(curves)
    return ResponseFit(curves, fit.log2_ratios, ridge_misfit(ridges, curves, fit.log2_ratios))


def _least_absolute(data: F64, target: F64, deviation: F64, prior_system: F64, prior_right: F64) -> F64:
    """Solution of least absolute deviations by reweighting (quadratic within one deviation: Huber 1964), under a Gaussian prior."""
    solution = np.zeros(data.shape[1])
    weight = 1.0 / deviation**2
    for _ in range(10 if len(data) else 1):
        weighted = data * weight[:, None]
        solution = np.linalg.solve(weighted.T @ data + prior_system, weighted.T @ target + prior_right)
        left = np.abs(data @ solution - target) / deviation
        weight = 1.0 / (deviation**2 * np.maximum(left, 1.0))
    return np.asarray(solution)


def monotone(log2_curves: F64) -> F64:
    """The curve with its local exponent kept above MIN_EXPONENT, 0 at encoded 1; a curve that rises already only shifts."""
    position = np.log2(_POSITIVE_GRID)
    rise = np.diff(log2_curves, axis=0)
    least = MIN_EXPONENT * np.diff(position)[:, None]
    rise = np.maximum(rise, least)
    out = np.concatenate([np.zeros((1, log2_curves.shape[1])), np.cumsum(rise, axis=0)])
    return np.asarray(out - out[-1:])


# ---- what is left -------------------------------------------------------------------------------------------------------


def disagreement_stops(pair: PairSamples, log2_curves: F64, log2_ratio: float) -> float:
    """Median |disagreement| of a pair's samples in stops, all channels, noise included; NaN without samples."""
    if not pair.count or not np.isfinite(log2_ratio):
        return float("nan")
    parts = [np.abs(_at(log2_curves[:, c], pair.long[c]) - _at(log2_curves[:, c], pair.short[c]) - log2_ratio) for c in range(3)]
    return float(np.median(np.concatenate(parts)))
