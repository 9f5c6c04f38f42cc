"""Measured radiance: a noise-weighted mean of aligned samples, each counted only where it agrees with what is already known.

The test for ghosts is an intersection of radiance intervals. The reference frame says for each pixel and channel in which
interval its radiance lies ([low, inf) where it is clipped). The other frames are taken in order of their distance in
exposure from the reference: a sample whose own interval does not meet the known one saw something else, and is left out
together with its near surroundings; a sample that does meet it narrows the interval where the reference had none. So a
person who walks leaves one copy, the reference's, and among several shorter frames the nearest decides in the highlights.

Where no sample is left (a clipped highlight that moved, or that every frame clips) the radiance continues smoothly from its
surroundings, keeps their hue, and never falls below what the clipped sample proves. Those pixels are labelled inferred.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gmodiff.align import Alignment, warp_rows
from gmodiff.image import Bracket, Frame
from gmodiff.provenance import ALIGNED, INFERRED, largest, look_up
from gmodiff.radiometry import (
    CLIPPED_ENCODED,
    F32,
    TAPER_ENCODED,
    CameraResponse,
    clipping_nearness,
    radiance_interval_codes,
    response_slope,
)
from gmodiff.tiling import STRIP_ROWS, for_each_strip

FILL_GRID_PX = 8
"""Side of the cells in which surroundings are averaged before they continue into unmeasured areas."""
GHOST_WINDOW_PX = 5
"""Side of the window over which disagreement is averaged: a moved edge spoils its neighbours too."""
MIN_TOLERANCE, MAX_TOLERANCE = 0.06, 0.25
"""Relative radiance difference that calibration and interpolation alone explain: twice the bracket's residual, within these."""
EDGE_PX = 3
"""Disagreement narrower than this is taken for an edge, not for motion."""
GHOST_GAP_STOPS, GHOST_SPREAD_STOPS = 0.15, 0.04
"""A gap between two intervals as large as the first, or as large as the second on average over the window, ends the belief."""
DRIFT_STOPS, DRIFT_FROM, BLEED_STOPS = 2.5, 0.5, 1.0
"""Beside a clipped channel cameras let the others drift towards white, the more the higher their codes (encoded DRIFT_FROM and up), and
JPEG bleeds chroma: so much lower or higher than its code a channel's light is still plausible there. A lamp may be redder than it looks;
a red jumper is not a white cloud. (What the codes *prove* there is less: `radiometry.IntervalTables`.)"""
DOUBTFUL, SURE = 0.1, 0.5
"""Confidence (validity times agreement of the best sample) below which nothing, and from which everything, counts as measured."""
REFERENCE_LEAN = 15.0
"""Extra weight of a well-exposed reference sample over an aligned one: warping costs sharpness, noise is low there anyway."""


MOTION_CELL_PX = 8
"""Side of the cells in which what moved is counted."""

MOTION_GAP_STOPS = 0.08
"""How far apart a frame's interval and the reference's lie where one of them saw something else."""

COVERED = 0.9
"""Coverage from which a frame may contradict."""

FOLLOWED_PX = 2.0
"""Dense motion on alignment's working grid beyond which a thing moved by itself; parallax of a hand-held set is mostly less."""


@dataclass(frozen=True)
class Merged:
    """radiance: (H, W, 3) float32, 1.0 = the reference's white. provenance: (H, W) uint8 labels, see `provenance`.

    moved: one value a cell of MOTION_CELL_PX a side, (ceil(H / cell), ceil(W / cell)) float32, 0..1: the share of its pixels in which the
    reference measured one light and another frame another, or that were followed to another place; None where not asked for.
    source: (H, W) uint8, the index of the frame whose sample weighs most; None where not asked for.
    """

    radiance: F32 = field(repr=False)
    provenance: NDArray[np.uint8] = field(repr=False)
    moved: F32 | None = field(default=None, repr=False)
    source: NDArray[np.uint8] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class _Codes:
    """What each code of one frame means.

    radiance: (codes, 3) float32.   low, high: (codes, 3) uint16, the ends of its interval on the log scale of `_log_code`.
    low_beside_clipped, high_beside_clipped: replace them in pixels whose brightest channel is clipped (DRIFT_STOPS, BLEED_STOPS).
    least: (codes,) uint16, what the largest of a pixel's codes proves about the largest of its radiances.
    weight, validity: (codes,) float32 over the largest of a pixel's three codes: one weight for the whole pixel, so that frames
    whose responses disagree a little never mix in different shares per channel, which would tint edges.
    """

    radiance: F32
    low: NDArray[np.uint16]
    high: NDArray[np.uint16]
    low_beside_clipped: NDArray[np.uint16]
    high_beside_clipped: NDArray[np.uint16]
    least: NDArray[np.uint16]
    weight: F32
    validity: F32


def merge(
    bracket: Bracket,
    alignments: Sequence[Alignment | None],
    *,
    with_motion: bool = False,
    with_source: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Merged:
    """Merge a bracket whose frames have been aligned to the reference. None as an alignment leaves that frame out.
    with_motion: say also where things moved (`Merged.moved`).   with_source: and which counted most.

    The mean is weighted by inverse variance (Granados et al. 2010, equation 6; Robertson et al. 2003, section III), with a
    lean to the reference where it is well exposed.
    """
    height, width = bracket.shape
    radiance = np.empty((height, width, 3), np.float32)
    provenance = np.empty((height, width), np.uint8)
    unmeasured: dict[int, NDArray[np.uint8]] = {}
    surroundings = _Surroundings(height, width)
    cells = -(-height // MOTION_CELL_PX), -(-width // MOTION_CELL_PX)
    moved = np.zeros(cells, np.float32) if with_motion else None
    source = np.full((height, width), bracket.reference, np.uint8) if with_source else None
    tolerance = _tolerance(bracket)
    tables = [
        _code_tables(frame, bracket.response, exposure, tolerance, REFERENCE_LEAN if i == bracket.reference else 0.0)
        for i, (frame, exposure) in enumerate(zip(bracket.frames, bracket.relative_exposures, strict=True))
    ]
    others = [i for i in _by_distance(bracket) if alignments[i] is not None]
    shortest = min([*others, bracket.reference])

    def strip(first: int, end: int) -> None:
        value = radiance[first:end]
        at = slice(first // MOTION_CELL_PX, -(-end // MOTION_CELL_PX))
        labels, missing = _merge_rows(
            bracket,
            alignments,
            tables,
            others,
            shortest,
            first,
            end,
            value,
            None if moved is None else moved[at],
            None if source is None else source[first:end],
        )
        provenance[first:end] = labels
        if missing is not None:
            unmeasured[first] = missing
        surroundings.add(first, value, missing)

    for_each_strip(strip, height, progress=progress)
    if unmeasured:
        log2_surroundings = surroundings.continued()

        def fill(first: int, end: int) -> None:
            if first in unmeasured:
                _continue_into(radiance[first:end], unmeasured[first], log2_surroundings, first)

        for_each_strip(fill, height)
    if moved is not None:
        _add_followed(moved, alignments, (height, width))
    return Merged(radiance, provenance, moved, source)


def _add_followed(moved: F32, alignments: Sequence[Alignment | None], shape: tuple[int, int]) -> None:
    """Into `Merged.moved`, in place: what alignment found somewhere else moved too, though no frame contradicts the reference now."""
    for alignment in alignments:
        if alignment is None or alignment.flow is None:
            continue
        size = alignment.flow.shape[:2]
        far = np.hypot(alignment.flow[..., 0], alignment.flow[..., 1]) * (size[1] / shape[1]) > FOLLOWED_PX
        if alignment.coverage is not None:
            far &= cv2.resize(alignment.coverage, size[::-1], interpolation=cv2.INTER_LINEAR) > COVERED * 255
        # Cells reach beyond the picture where they do not divide it.
        beyond = [round(s * (c * MOTION_CELL_PX / whole - 1)) for s, c, whole in zip(size, moved.shape, shape, strict=True)]
        padded = np.pad(far.astype(np.float32), ((0, beyond[0]), (0, beyond[1])))
        np.maximum(moved, cv2.resize(padded, moved.shape[::-1], interpolation=cv2.INTER_AREA), out=moved)


def _tolerance(bracket: Bracket) -> float:
    residuals = [r for r in bracket.calibration.residual_stops if np.isfinite(r)]
    residual = float(np.median(residuals)) if residuals else 0.0
    return float(np.clip(2.0 ** (2.0 * residual) - 1.0, MIN_TOLERANCE, MAX_TOLERANCE))


def _by_distance(bracket: Bracket) -> list[int]:
    """Indices of the supporting frames, nearest exposure first; of two equally near, the shorter (it clips less)."""
    stops = np.abs(np.log2(bracket.relative_exposures))
    return sorted((i for i in range(len(bracket.frames)) if i != bracket.reference), key=lambda i: (round(float(stops[i]), 1), i))


LOG_FLOOR_STOPS, LOG_STEPS_PER_STOP = -18.0, 2048.0
"""Intervals are compared as 16-bit integers on a log scale, 32 stops long: integer arithmetic is several times faster."""


def _log_code(radiance: NDArray[Any]) -> NDArray[np.uint16]:
    """Radiance to its log code; 0 is "black or less", 65535 "unbounded"."""
    with np.errstate(divide="ignore"):
        stops = np.log2(radiance)
    return np.asarray(np.clip(np.rint((stops - LOG_FLOOR_STOPS) * LOG_STEPS_PER_STOP), 0, 65535), np.uint16)


def _code_tables(frame: Frame, response: CameraResponse, exposure: float, tolerance: float, lean: float) -> _Codes:
    dtype = frame.encoded.dtype
    top = np.iinfo(dtype).max
    encoded = np.arange(top + 1) / top
    linear = response.at(encoded)
    variance = (frame.noise.sigma_linear(linear, response_slope(linear)) ** 2).mean(axis=1)
    validity = _smoothstep((CLIPPED_ENCODED - encoded) / (CLIPPED_ENCODED - TAPER_ENCODED))
    # Squared: a longer frame's samples weigh so much more that a plain taper would still end in a step, a contour in smooth skies.
    share = validity**2
    leaning = 1.0 + lean * share * _smoothstep((encoded - 0.1) / 0.3)
    interval = radiance_interval_codes(response, frame.noise, dtype)
    drift = DRIFT_STOPS * _smoothstep((encoded - DRIFT_FROM) / (TAPER_ENCODED - DRIFT_FROM))
    low = _log_code(interval.low * ((1 - tolerance) / exposure))
    return _Codes(
        radiance=(linear / exposure).astype(np.float32),
        low=low,
        high=_log_code(interval.high * ((1 + tolerance) / exposure)),
        low_beside_clipped=_log_code(interval.low * (2.0**-drift * ((1 - tolerance) / exposure))[:, None]),
        high_beside_clipped=_log_code(interval.high * (2.0**BLEED_STOPS * (1 + tolerance) / exposure)),
        least=low.min(axis=1),
        weight=(share * leaning * exposure**2 / variance).astype(np.float32),
        validity=validity.astype(np.float32),
    )


def _merge_rows(
    bracket: Bracket,
    alignments: Sequence[Alignment | None],
    tables: Sequence[_Codes],
    others: Sequence[int],
    shortest: int,
    first: int,
    end: int,
    value: F32,
    moved: F32 | None,
    source: NDArray[np.uint8] | None,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """One strip: radiance goes into value, (rows, W, 3), and where they are there, into moved where frames contradict the reference,
    and into source, (rows, W), which frame weighs most.

    Returns (rows, W) labels, and (rows, W, 3) uint8 0..255 "not measured", or None where all was.
    """
    height = bracket.shape[0]
    halo = (GHOST_WINDOW_PX // 2 + EDGE_PX // 2) * max(len(others), 1)  # each frame is tested against what the one before left
    top, bottom = max(first - halo, 0), min(end + halo, height)
    inner = slice(first - top, end - top)

    reference = tables[bracket.reference]
    codes = np.ascontiguousarray(bracket.frames[bracket.reference].encoded[top:bottom])
    low, high = look_up(reference.low, codes), look_up(reference.high, codes)
    brightest = largest(codes)
    least = look_up(reference.least, brightest)
    beside_clipped = (look_up(reference.validity, brightest) < 0.5).astype(np.uint8)
    if beside_clipped.any():
        low = cv2.copyTo(look_up(reference.low_beside_clipped, codes), beside_clipped, low)
        high = cv2.copyTo(look_up(reference.high_beside_clipped, codes), beside_clipped, high)
    own_low, own_high, measured = low, high, 1 - beside_clipped
    contradicted = None if moved is None else np.zeros(brightest.shape, np.uint8)
    brightest = brightest[inner]
    black = largest(low[inner]) == 0
    weight = look_up(reference.weight, brightest)
    confidence = look_up(reference.validity, brightest)
    clipped = confidence <= 0
    total = _Planes(codes[inner], reference.radiance, weight)
    # The shortest frame clips last: what is missing is at least as bright as it says, as far as it is believed.
    short_codes, short_agrees = codes[inner], np.ones_like(weight)
    used, lit = np.zeros_like(weight), np.zeros_like(weight)
    heaviest = weight.copy() if source is not None else None
    for n, i in enumerate(others):
        alignment, table = alignments[i], tables[i]
        if alignment is None:
            continue
        warped, coverage = warp_rows(bracket.frames[i], alignment, top, bottom)
        warped = np.ascontiguousarray(warped)
        low_i, high_i = look_up(table.low, warped), look_up(table.high, warped)
        agrees = _agreement(low, high, least, low_i, high_i)
        if coverage is not None:
            agrees *= coverage
        if contradicted is not None:
            apart = _gap(own_low, own_high, low_i, high_i) > MOTION_GAP_STOPS * LOG_STEPS_PER_STOP
            contradicted |= apart.view(np.uint8) & measured & (1 if coverage is None else (coverage > COVERED).view(np.uint8))
        if n + 1 < len(others):
            # Where the sample is believed its interval holds too, so that farther frames are tested against it.
            believed = (agrees > 0.5) & (largest(warped) < CLIPPED_ENCODED * np.iinfo(warped.dtype).max)
            if i < bracket.reference:
                # Where the reference measured, a shorter frame knows no better: its darks are a few codes with a bias of their own.
                believed &= beside_clipped > 0
            mask = cv2.merge([believed.astype(np.uint16) * np.uint16(65535)] * 3)
            low = cv2.max(low, cv2.bitwise_and(low_i, mask))
            high = cv2.min(high, cv2.bitwise_or(high_i, cv2.bitwise_not(mask)))
        agrees, warped = np.ascontiguousarray(agrees[inner]), warped[inner]
        brightest = largest(warped)
        weight_i = look_up(table.weight, brightest) * agrees
        total.add(warped, table.radiance, weight_i)
        weight += weight_i
        if source is not None and heaviest is not None:
            source[weight_i > heaviest] = i
            np.maximum(heaviest, weight_i, out=heaviest)
        validity = look_up(table.validity, brightest) * agrees
        np.maximum(used, validity, out=used)
        np.maximum(lit, validity * (largest(low_i[inner]) > 0), out=lit)
        if i == shortest:
            short_codes, short_agrees = warped, agrees
    np.maximum(confidence, used, out=confidence)
    if moved is not None and contradicted is not None:
        moved[:] = _cell_means(contradicted[inner])

    total.divided_by(weight, value)
    labels = ((clipped & (used > 0.5)) | (black & (lit > 0.5))).astype(np.uint8) * np.uint8(ALIGNED)
    unsure = confidence < SURE
    if not unsure.any():
        return labels, None
    at = np.nonzero(unsure)
    share = _smoothstep((confidence[at] - DOUBTFUL) / (SURE - DOUBTFUL))[:, None]
    trust = short_agrees[at][:, None]
    channels = np.arange(3)
    sample = tables[shortest].radiance[short_codes[at], channels]
    proven = reference.radiance[codes[inner][at], channels]
    bound = proven + trust * (sample - proven)
    value[at] = share * value[at] + (1 - share) * bound
    # Where the shortest frame is not believed, the reference's own unclipped channels say more than the surroundings can.
    top_code = np.iinfo(codes.dtype).max
    near = trust * clipping_nearness(short_codes[at] / top_code) + (1 - trust) * clipping_nearness(codes[inner][at] / top_code)
    lost = (1 - share) * near
    missing = np.zeros(value.shape, np.uint8)
    missing[at] = np.rint(lost * 255)
    labels[at] = np.where(lost.max(axis=1) > 0.5, np.uint8(INFERRED), labels[at])
    return labels, missing


class _Planes:
    """Weighted sum of radiance, one plane per channel: contiguous planes are what NumPy is fast on."""

    def __init__(self, codes: NDArray[Any], radiance: F32, weight: F32) -> None:
        self._sums = [look_up(radiance[:, c], plane) * weight for c, plane in enumerate(cv2.split(codes))]

    def add(self, codes: NDArray[Any], radiance: F32, weight: F32) -> None:
        """Add weight * radiance of the codes."""
        for c, (total, plane) in enumerate(zip(self._sums, cv2.split(codes), strict=True)):
            cv2.accumulateProduct(look_up(radiance[:, c], plane), weight, total)

    def divided_by(self, weight: F32, out: F32) -> None:
        """Weighted mean into out, (rows, W, 3)."""
        scale = 1 / np.maximum(weight, np.float32(1e-20))
        for total in self._sums:
            total *= scale
        cv2.merge(self._sums, out)


def _agreement(low: NDArray[Any], high: NDArray[Any], least: NDArray[Any], low_i: NDArray[Any], high_i: NDArray[Any]) -> F32:
    """(rows, W) 0..1: do the intervals meet? All are (rows, W, 3) log codes; least (rows, W) bounds the brightest channel.

    The gap between the intervals counts alone and averaged over a window.
    """
    gap = _gap(low, high, low_i, high_i, cv2.subtract(least, largest(high_i)))
    spread = cv2.boxFilter(gap, cv2.CV_32F, (GHOST_WINDOW_PX, GHOST_WINDOW_PX), borderType=cv2.BORDER_REPLICATE)
    doubt = cv2.max(gap.astype(np.float32) * np.float32(1 / GHOST_GAP_STOPS), spread * np.float32(1 / GHOST_SPREAD_STOPS))
    return np.asarray(1 - _smoothstep(doubt * np.float32(1 / LOG_STEPS_PER_STOP)), np.float32)


def _gap(
    low: NDArray[Any], high: NDArray[Any], low_i: NDArray[Any], high_i: NDArray[Any], also: NDArray[Any] | None = None
) -> NDArray[np.uint16]:
    """(rows, W) log steps between intervals, of the channel where they lie farthest apart, up to a stop. also: another gap to count.

    What is thinner than three pixels is an edge that glare widened or alignment missed by a hair, not a thing that moved.
    """
    gap = largest(cv2.max(cv2.subtract(low, high_i), cv2.subtract(low_i, high)))  # uint16 subtraction stops at 0
    if also is not None:
        gap = cv2.max(gap, also)
    np.minimum(gap, np.uint16(LOG_STEPS_PER_STOP), out=gap)
    return np.asarray(cv2.erode(gap, np.ones((EDGE_PX, EDGE_PX), np.uint8), borderType=cv2.BORDER_REPLICATE), np.uint16)


def _cell_means(flags: NDArray[np.uint8]) -> F32:
    """(rows, W) of 0 and 1 to the mean of each cell of MOTION_CELL_PX a side, those at the end as if filled up with 0."""
    rows, columns = flags.shape
    padded = np.pad(flags, ((0, -rows % MOTION_CELL_PX), (0, -columns % MOTION_CELL_PX)))
    size = padded.shape[1] // MOTION_CELL_PX, padded.shape[0] // MOTION_CELL_PX
    return np.asarray(cv2.resize(padded.astype(np.float32), size, interpolation=cv2.INTER_AREA), np.float32)


def _continue_into(radiance: F32, missing: NDArray[np.uint8], surroundings: tuple[F32, F32], first: int) -> None:
    """Fill what is missing from its surroundings, in place: their hue, joined to the channels that were measured."""
    rows, cols = np.nonzero(missing.any(axis=2))
    value = np.maximum(radiance[rows, cols], 1e-6)
    lost = missing[rows, cols].astype(np.float32) / 255
    known = 1 - lost
    known_sum = known.sum(axis=1)
    # A hue is taken from whole pixels only. Where nothing at all was measured, the nearest light serves, whole or not.
    whole, nearest = (_sample_grid(grid, rows + first, cols) for grid in surroundings)
    around = np.where(known_sum[:, None] > 0.5, whole, nearest)
    excess = np.log2(value) - around
    # Where a channel was measured, it carries the level; where none was, the level is the least that every clipped channel allows.
    from_known = (excess * known).sum(axis=1) / np.maximum(known_sum, 1e-6)
    from_bounds = np.maximum(excess.max(axis=1), 0)
    part = np.clip(known_sum, 0, 1)
    level = part * from_known + (1 - part) * from_bounds
    fill = np.exp2(around + level[:, None])
    # Half a stop above what a clipped sample proves, or the surroundings' own light: beyond that would be invention.
    fill = np.minimum(fill, np.maximum(np.float32(np.sqrt(2)) * value, np.exp2(around)))
    radiance[rows, cols] = value + lost * (np.maximum(fill, value) - value)


class _Surroundings:
    """Mean log2 radiance of measured pixels in cells of FILL_GRID_PX, and its smooth continuation into cells without any."""

    def __init__(self, height: int, width: int) -> None:
        self._shape = (-(-height // FILL_GRID_PX), -(-width // FILL_GRID_PX))
        # Of whole pixels, and of all in which at least one channel was measured.
        self._sums = np.zeros((2, *self._shape, 3), np.float32)
        self._counts = np.zeros((2, *self._shape, 1), np.float32)
        self._lock = threading.Lock()

    def add(self, first: int, value: F32, missing: NDArray[np.uint8] | None) -> None:
        """Count one strip; strips start at multiples of FILL_GRID_PX."""
        step = FILL_GRID_PX // 2  # four pixels are plenty for the mean of a cell
        part = np.log2(np.maximum(value[::step, ::step], 1e-6))
        lost = np.zeros(part.shape[:2], np.intp) if missing is None else np.count_nonzero(missing[::step, ::step] > 25, axis=2)
        per = FILL_GRID_PX // step
        cells = (-(-part.shape[0] // per), self._shape[1])
        pad = ((0, cells[0] * per - part.shape[0]), (0, cells[1] * per - part.shape[1]), (0, 0))
        part = np.pad(part, pad)
        rows = slice(first // FILL_GRID_PX, first // FILL_GRID_PX + cells[0])
        for n, known in enumerate((lost == 0, lost < 3)):
            counted = np.pad(known[..., None].astype(np.float32), pad)
            with self._lock:
                self._sums[n, rows] = (part * counted).reshape(cells[0], per, cells[1], per, 3).sum(axis=(1, 3))
                self._counts[n, rows] = counted.reshape(cells[0], per, cells[1], per, 1).sum(axis=(1, 3))

    def continued(self) -> tuple[F32, F32]:
        """(h, w, 3) log2 radiance everywhere, from whole pixels and from all.

        Push-pull interpolation (Gortler et al. 1996, "The Lumigraph", section 3.4).
        """
        whole, nearest = (_push_pull(total, count) for total, count in zip(self._sums, self._counts, strict=True))
        return whole, nearest


def _push_pull(total: F32, count: F32) -> F32:
    """Fill cells with count 0 from ever coarser means; cells with a count of 1 and more keep their own mean."""
    mean = total / np.maximum(count, 1e-6)
    capped = np.minimum(count, 1.0)
    if min(count.shape[:2]) <= 1 or (count >= 1).all():
        anywhere = float(count.sum())
        overall = total.sum(axis=(0, 1)) / anywhere if anywhere > 0 else np.zeros(3, np.float32)
        return np.asarray(capped * mean + (1 - capped) * overall, np.float32)
    h, w = count.shape[:2]
    pad = ((0, h % 2), (0, w % 2), (0, 0))
    coarse_total = np.pad(mean * capped, pad).reshape((h + 1) // 2, 2, (w + 1) // 2, 2, 3).sum(axis=(1, 3))
    coarse_count = np.pad(capped, pad).reshape((h + 1) // 2, 2, (w + 1) // 2, 2, 1).sum(axis=(1, 3))
    coarse = _push_pull(coarse_total, coarse_count)
    finer = np.asarray(cv2.resize(coarse, (coarse.shape[1] * 2, coarse.shape[0] * 2), interpolation=cv2.INTER_LINEAR), np.float32)[:h, :w]
    return np.asarray(capped * mean + (1 - capped) * finer, np.float32)


def _sample_grid(grid: F32, rows: NDArray[Any], cols: NDArray[Any]) -> F32:
    """(n, 3): the cell grid, bilinear at full-size pixel positions."""
    y = np.clip((rows + 0.5) / FILL_GRID_PX - 0.5, 0, grid.shape[0] - 1)
    x = np.clip((cols + 0.5) / FILL_GRID_PX - 0.5, 0, grid.shape[1] - 1)
    y0, x0 = y.astype(np.intp), x.astype(np.intp)
    y1, x1 = np.minimum(y0 + 1, grid.shape[0] - 1), np.minimum(x0 + 1, grid.shape[1] - 1)
    v, u = (y - y0)[:, None], (x - x0)[:, None]
    return np.asarray((1 - v) * ((1 - u) * grid[y0, x0] + u * grid[y0, x1]) + v * ((1 - u) * grid[y1, x0] + u * grid[y1, x1]), np.float32)


def _smoothstep(t: NDArray[Any]) -> NDArray[Any]:
    t = np.clip(t, 0, 1)
    return np.asarray(t * t * (3 - 2 * t), t.dtype)


assert STRIP_ROWS % FILL_GRID_PX == STRIP_ROWS % MOTION_CELL_PX == 0, "strips must start on the cell grids"
