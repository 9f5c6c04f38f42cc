"""Noise-free pairs of encoded values from noisy samples of two exposures, and what a response leaves unexplained. NumPy only.

The samples of two neighbouring frames form a ridge: for each radiance, one pair of encoded values, blurred by noise and surrounded by
whatever moved. Binning by one frame's encoded value would bias it, since noise that lifts a sample over a bin's edge also moves its
difference, and cutting at black or at clipping would bias it more. Here samples are binned by their radiance, the mean of what both
frames say weighted by the inverse of their variances: its error is independent of that of the difference, so a median is fair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gmodiff.radiometry import RESPONSE_NODES

F64 = NDArray[np.float64]
Three = tuple[F64, F64, F64]

GRID: F64 = np.linspace(0.0, 1.0, RESPONSE_NODES)
"""Encoded values at the nodes of a response."""

VALID_ENCODED = (0.02, 0.95)
"""Where a ridge is used: above the noise floor in the darker frame, below clipping in the brighter one."""

BLACK_ENCODED = 2.0 / 255.0
"""Encoded values up to here say that it was dark, not how dark."""

ENCODED_SIGMA = 0.008
"""Deviation of an encoded sample, two 8-bit codes: what motion is told from."""

BIN_STOPS = 0.2
"""Width of a bin, in stops of radiance."""

MOST_BINS = 1000
"""A curve over more, 200 stops, is a fit that ran away; nothing lies on it."""

LARGEST_SPREAD_STOPS = 0.5
"""Scatter (standard deviation, estimated robustly) of a bin from which noise has the upper hand and the bin is left out."""

BIN_SAMPLES = (12, 256)
"""Samples in a bin: with fewer it is left out, and the smoothest of more are enough."""

FLOOR_STOPS = 0.02
"""What a bin can be trusted to: cameras change saturation after the tone curve, so no curve fits all colours better."""


@dataclass(frozen=True)
class PairSamples:
    """Aligned samples of two neighbouring exposures.

    short, long: per channel, (N_c,) encoded values 0..1 in the shorter and in the longer exposure, smoothest surroundings first:
    a sample in a textured place suffers more from misalignment, so a ridge uses the first half of each bin. Samples that are black
    in the darker frame belong to the set: without them noise would lift what is left, while a median bears them.
    """

    short: Three
    long: Three

    @property
    def count(self) -> int:
        """Samples in all channels that neither frame saw black."""
        return sum(int(np.count_nonzero(m)) for m in self.measured)

    @property
    def measured(self) -> tuple[NDArray[np.bool_], ...]:
        """Per channel, (N_c,) whether both frames saw more than black."""
        return tuple(np.minimum(a, b) > BLACK_ENCODED for a, b in zip(self.short, self.long, strict=True))


@dataclass(frozen=True)
class Ridge:
    """Noise-free pairs of one channel: encoded in the shorter and in the longer exposure, deviation of a pair in stops. All (K,)."""

    short: F64
    long: F64
    sigma: F64

    @property
    def weight(self) -> F64:
        """(K,) how much each pair counts, in 1 / stops."""
        return np.asarray(1.0 / (self.sigma + FLOOR_STOPS))


NO_SAMPLES = PairSamples((np.empty(0), np.empty(0), np.empty(0)), (np.empty(0), np.empty(0), np.empty(0)))
NO_RIDGE = Ridge(np.empty(0), np.empty(0), np.empty(0))


def look_up(table: F64, encoded: F64) -> F64:
    """Rows of a (RESPONSE_NODES,) or (RESPONSE_NODES, P) table at (N,) encoded values 0..1, linearly interpolated."""
    position = np.clip(encoded, 0.0, 1.0) * (RESPONSE_NODES - 1)
    low = np.minimum(position.astype(np.intp), RESPONSE_NODES - 2)
    t = position - low
    if table.ndim == 2:
        t = t[:, None]
    return np.asarray(table[low] * (1 - t) + table[low + 1] * t)


def find_ridge(short: F64, long: F64, log2_curve: F64, log2_ratio: float, gate_stops: float = np.inf) -> Ridge:
    """Noise-free pairs of one channel: in each bin of log radiance, the median disagreement of the smoother half of the samples.

    short, long: as in `PairSamples`. log2_curve: (RESPONSE_NODES,) log2 of an inverse response; log2_ratio: log2(long / short).
    Both only have to be near: where the noise is small the pairs found do not depend on them. Samples that disagree by more than
    gate_stops beyond the noise have moved and are left out.
    """
    slope = np.gradient(log2_curve, GRID[1])
    a, b = look_up(log2_curve, short) + log2_ratio, look_up(log2_curve, long)
    inverse_a, inverse_b = 1.0 / look_up(slope, short) ** 2, 1.0 / look_up(slope, long) ** 2
    weight = inverse_a / (inverse_a + inverse_b)
    radiance, difference = weight * a + (1 - weight) * b, a - b
    darkest, brightest = look_up(log2_curve, np.array(VALID_ENCODED))
    low, high = max(darkest + log2_ratio, darkest), min(brightest + log2_ratio, brightest)
    bins = int((high - low) / BIN_STOPS)
    if not 1 <= bins <= MOST_BINS:
        return NO_RIDGE
    index = np.floor((radiance - low) / (high - low) * bins)
    index[(radiance < low) | (radiance >= high)] = bins
    index = index.astype(np.int16)
    if gate_stops < np.inf:
        # What is in a bin scatters by the noise of its encoded values; moved is what lies beyond.
        centre = low + (high - low) / bins * (np.arange(bins + 1) + 0.5)
        noise = [look_up(slope, np.interp(centre - shift, log2_curve, GRID)) for shift in (log2_ratio, 0.0)]
        gate = gate_stops + 3 * ENCODED_SIGMA * np.hypot(*noise)
        index[np.abs(difference) > gate[index]] = bins
    order = np.argsort(index, kind="stable")  # smoothest first within each bin, as the samples came
    first = np.searchsorted(index[order], np.arange(bins + 1))
    count = np.diff(first)
    used = np.flatnonzero(count >= BIN_SAMPLES[0])
    if not len(used):
        return NO_RIDGE
    taken = np.clip((count[used] + 1) // 2, BIN_SAMPLES[0] // 2, BIN_SAMPLES[1])
    column = np.arange(int(taken.max()))
    chosen = order[np.minimum(first[used][:, None] + column, len(order) - 1)]
    outside = column >= taken[:, None]

    def medians(values: F64) -> F64:
        ordered = np.sort(np.where(outside, np.inf, values), axis=1)
        row = np.arange(len(taken))
        return np.asarray((ordered[row, (taken - 1) // 2] + ordered[row, taken // 2]) / 2)

    middle = medians(difference[chosen])
    spread = 1.4826 * medians(np.abs(difference[chosen] - middle[:, None]))
    at, w = medians(radiance[chosen]), medians(weight[chosen])
    clear = spread < LARGEST_SPREAD_STOPS
    at, w, middle, spread, taken = at[clear], w[clear], middle[clear], spread[clear], taken[clear]
    # Each frame takes its share of the difference as its noise demands: the two encoded values of a noise-free sample.
    encoded_short = np.interp(at + (1 - w) * middle - log2_ratio, log2_curve, GRID)
    encoded_long = np.interp(at - w * middle, log2_curve, GRID)
    return Ridge(encoded_short, encoded_long, 1.25 * spread / np.sqrt(taken))


def find_ridges(
    pairs: Sequence[PairSamples], log2_curves: F64, log2_ratios: Sequence[float], gate_stops: float = np.inf
) -> list[list[Ridge]]:
    """Ridges [pair][channel] under (RESPONSE_NODES, 3) curves. An unknown ratio (NaN) is first taken as the samples' median."""
    out = []
    for pair, ratio in zip(pairs, log2_ratios, strict=True):
        near = ratio if np.isfinite(ratio) else median_ratio(pair, log2_curves)
        if not np.isfinite(near):
            out.append([NO_RIDGE] * 3)
            continue
        out.append([find_ridge(pair.short[c], pair.long[c], log2_curves[:, c], near, gate_stops) for c in range(3)])
    return out


def median_ratio(pair: PairSamples, log2_curves: F64) -> float:
    """log2 exposure ratio as the median over the measured samples of all channels; NaN without samples."""
    rises = _measured_rises(pair, log2_curves)
    return float(np.median(rises)) if len(rises) else float("nan")


def ridge_ratio(ridges: Sequence[Ridge], log2_curves: F64) -> float:
    """log2 exposure ratio that a pair's ridges say under a curve: the weighted median over bins and channels. NaN without a ridge."""
    values = np.concatenate([_rise(r.short, r.long, log2_curves[:, c]) for c, r in enumerate(ridges)])
    if not len(values):
        return float("nan")
    return weighted_median(values, np.concatenate([r.weight for r in ridges]))


def ridge_misfit(ridges: Sequence[Sequence[Ridge]], log2_curves: F64, log2_ratios: Sequence[float]) -> float:
    """Weighted mean |disagreement| in stops over all pairs, channels and bins; NaN without a ridge.

    Noise has no part in it: it is what a curve fails to explain.
    """
    total, weight = 0.0, 0.0
    for pair, ratio in zip(ridges, log2_ratios, strict=True):
        for c, r in enumerate(pair):
            if len(r.short) and np.isfinite(ratio):
                total += float(np.sum(r.weight * np.abs(_rise(r.short, r.long, log2_curves[:, c]) - ratio)))
                weight += float(np.sum(r.weight))
    return total / weight if weight else float("nan")


def disagreement_stops(pair: PairSamples, log2_curves: F64, log2_ratio: float) -> float:
    """Median |disagreement| of a pair's measured samples in stops, all channels, noise and motion included; NaN without samples."""
    rises = _measured_rises(pair, log2_curves)
    return float(np.median(np.abs(rises - log2_ratio))) if len(rises) and np.isfinite(log2_ratio) else float("nan")


def weighted_median(values: F64, weights: F64) -> float:
    """The value below which half of the weight lies."""
    order = np.argsort(values)
    below = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(below, below[-1] / 2)])


def _measured_rises(pair: PairSamples, log2_curves: F64) -> F64:
    return np.concatenate([_rise(pair.short[c][m], pair.long[c][m], log2_curves[:, c]) for c, m in enumerate(pair.measured)])


def _rise(short: F64, long: F64, log2_curve: F64) -> F64:
    return look_up(log2_curve, long) - look_up(log2_curve, short)
