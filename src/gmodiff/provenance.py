"""What was measured stays measured: clamp an estimate into the reference's radiance interval, and count where light came from.

Labels: 0 measured in the reference frame, 1 measured in an aligned frame, 2 inferred.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gmodiff.radiometry import F32, CameraResponse, NoiseModel, clipping_nearness, deviation_of_codes, radiance_interval_codes
from gmodiff.tiling import for_each_strip

REFERENCE, ALIGNED, INFERRED = 0, 1, 2

HELD_SIGMAS = 0.5
"""How far an estimate may move from the merge what the reference measured, in deviations of the reference's noise: about half a code of
a photo. The merge is nearly as good there as can be. Letting estimates use the whole interval brought 0.1 dB PSNR-mu (of 1.3, on
32 simulated scenes of the training pictures) and tints of several codes on photos unlike those."""

SHARE_SCALE = 127
"""Share of the leeway (`constrain`) that moves a sample by all of it, HELD_SIGMAS deviations."""


def constrain(
    radiance: F32,
    reference_encoded: NDArray[Any],
    response: CameraResponse,
    noise: NoiseModel,
    *,
    merged: F32 | None = None,
    shares: NDArray[np.int8] | None = None,
    out: F32 | None = None,
) -> F32:
    """(H, W, 3) radiance clamped into the interval that the reference's own codes allow, channel by channel.

    radiance: 1.0 = the reference's white, any float32 values; what is not finite becomes the interval's middle, or its lower end where
    it has no upper. reference_encoded: (H, W, 3)
    uint8 or uint16. Whatever made the radiance, where the reference measured the result lies within its noise and
    quantisation; only clipped pixels (and black ones, where no merge is given) are free. Of a clipped pixel the brightest channel stays
    at or above clipping, the others are bound only as far as their codes prove (`radiometry.IntervalTables`). out may be `radiance` itself.

    merged: (H, W, 3) radiance of the classical merge, where `radiance` is another estimate: before all that, it is held to within
    HELD_SIGMAS of the merge, black pixels too, and the less so the nearer to clipping the pixel is.

    shares: (H, W, 3), beside `merged`, of radiance that was constrained before: moves each sample, within the same bounds, by HELD_SIGMAS
    deviations for SHARE_SCALE, and the less the nearer to clipping the pixel is.
    """
    low, high, beside = radiance_interval_codes(response, noise, reference_encoded.dtype)
    middle = np.where(np.isinf(high), low, 0.5 * (low + np.where(np.isinf(high), 0, high))).astype(np.float32)
    top = np.iinfo(reference_encoded.dtype).max
    nearness = clipping_nearness(np.arange(top + 1) / top).astype(np.float32)
    least = low.min(axis=1)
    leeway = np.float32(HELD_SIGMAS) * deviation_of_codes(response, noise, reference_encoded.dtype)
    result = np.empty(radiance.shape, np.float32) if out is None else out

    def strip(first: int, end: int) -> None:
        codes = np.ascontiguousarray(reference_encoded[first:end])
        value, part = radiance[first:end], result[first:end]
        with np.errstate(over="ignore", invalid="ignore"):
            suspect = not np.isfinite(value.sum())  # one pass; only then is it worth looking at each value
        if suspect:
            value = np.where(np.isfinite(value), value, look_up(middle, codes))
        brightest = largest(codes)
        near = look_up(nearness, brightest)
        any_near = bool(near.any())
        if merged is not None:
            bounds = look_up(leeway, codes)
            free = near if any_near else None
            if shares is None:
                value = _held(value, merged[first:end], bounds, free)
            else:
                value = _moved(value, merged[first:end], bounds, shares[first:end], free)
        bottom = look_up(low, codes)
        if any_near:
            bottom += near[..., None] * (look_up(beside, codes) - bottom)
        np.maximum(value, bottom, out=part)
        top_bound = look_up(high, codes)
        if any_near:
            # A clipped pixel bounds nothing from above: chroma subsampling and desaturation reach its other channels too.
            with np.errstate(divide="ignore"):
                top_bound = top_bound / np.sqrt(1 - near)[..., None]
        np.minimum(part, top_bound, out=part)
        if any_near:
            # One channel of a clipped pixel did clip: the brightest is at least that bright, in whatever hue the estimate has.
            short = np.nonzero((near > 0) & (largest(part) < look_up(least, brightest)))
            if len(short[0]):
                needed = least.take(brightest[short])[:, None]
                peak = part[short].max(axis=1, keepdims=True)
                part[short] = np.where(peak > 1e-6, part[short] * (needed / np.maximum(peak, 1e-6)), needed)

    for_each_strip(strip, radiance.shape[0])
    return result


def _held(value: F32, merged: F32, leeway: F32, near: F32 | None) -> F32:
    """(rows, W, 3) value within leeway of merged; near: (rows, W), 0..1, how much of it is free instead."""
    held = np.clip(value, merged - leeway, merged + leeway)
    return held if near is None else np.asarray(held + near[..., None] * (value - held), np.float32)


def _moved(value: F32, merged: F32, leeway: F32, shares: NDArray[np.int8], near: F32 | None) -> F32:
    """(rows, W, 3) value moved by its share of leeway, but not beyond leeway of merged; near: (rows, W), 0..1, how much of it stays."""
    # Near to clipping a value may lie beyond them already, and stays where it is.
    low, high = np.minimum(merged - leeway, value), np.maximum(merged + leeway, value)
    moved = np.clip(value + leeway * (shares * np.float32(1 / SHARE_SCALE)), low, high)
    return moved if near is None else np.asarray(moved + near[..., None] * (value - moved), np.float32)


def look_up(table: NDArray[Any], codes: NDArray[Any]) -> NDArray[Any]:
    """(rows, W, 3) codes through a (codes, 3) table, or (rows, W) codes through a (codes,) table."""
    if codes.dtype == np.uint8:
        return np.asarray(cv2.LUT(codes, np.ascontiguousarray(table)[None]))
    if table.ndim == 1:
        return np.asarray(table.take(codes))
    return np.stack([table[:, c].take(codes[..., c]) for c in range(3)], axis=-1)


def largest(values: NDArray[Any]) -> NDArray[Any]:
    """(rows, W): the largest of the three channels."""
    a, b, c = cv2.split(values)  # contiguous planes: OpenCV would copy strided views one by one
    return np.asarray(cv2.max(cv2.max(a, b), c))


@dataclass(frozen=True)
class Summary:
    """Where the light came from, in per cent of pixels, and what the bracket added to the reference frame, in stops.

    highlight_stops: log2 of the brightest radiance (99.99th percentile, not inferred pixels) over the reference's white.
    shadow_stops: log2 of the longest exposure over the reference's: how much farther down the noise floor lies.
    """

    measured_percent: float
    aligned_percent: float
    inferred_percent: float
    highlight_stops: float
    shadow_stops: float

    def as_dict(self) -> dict[str, float]:
        """Plain numbers for JSON, rounded to what is meaningful."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


def summarise(provenance: NDArray[np.uint8], radiance: F32, longest_exposure: float) -> Summary:
    """Count labels and stops. longest_exposure: of the bracket, relative to the reference's."""
    aligned, inferred = (100 * np.count_nonzero(provenance == label) / provenance.size for label in (ALIGNED, INFERRED))
    # About a million pixels: a percentile does not need them all.
    step = max(1, int(np.sqrt(provenance.size / 1e6)))
    red, green, blue = (radiance[::step, ::step, c] for c in range(3))
    known = np.maximum(np.maximum(red, green), blue)[provenance[::step, ::step] != INFERRED]
    peak = float(np.percentile(known, 99.99)) if known.size else 1.0
    return Summary(
        measured_percent=100 - aligned - inferred,
        aligned_percent=aligned,
        inferred_percent=inferred,
        highlight_stops=max(float(np.log2(max(peak, 1e-6))), 0.0),
        shadow_stops=max(float(np.log2(longest_exposure)), 0.0),
    )
