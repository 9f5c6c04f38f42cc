"""Dense motion between two registered images: what parallax and moving things add to the global motion, as far as pixels prove it.

Images here are *matched codes*: one 8-bit channel in which a scene point has the same value in both (see `align`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gmodiff.radiometry import F32

U8 = NDArray[np.uint8]

LEAST_AREA = 0.001
"""Share of the picture that must move for dense motion to be worth its cost in sharpness."""
STILL_PX = 0.5
"""In a frame that did not move as a whole, dense motion below this many pixels is taken for noise."""
_LEAST_SIDE = 32
_WINDOW_PX = 9

_UNSURE_PX, _UNSURE_SHARE = 0.1, 0.05
_LOOP_PX, _LOOP_SHARE = 0.6, 0.1
_FAR_PX = 8
"""How uncertain a proven flow may be, and how far from its beginning the way back may end: in pixels, and as a share of its length. What
moves far is blurred, turned and half hidden, and found a pixel or two beside its place it is far better than left where it was (a bound
that grows with length after Sundaram et al. 2010, "Dense point trajectories by GPU-accelerated large displacement optical flow"; theirs is
hard and of both lengths). It grows no more from _FAR_PX on: along the gradient of a sky, whose tones two exposures never show quite alike,
a flow glides as far as it may."""

_MOST_PER_PROVEN = 10
"""Pixels that may follow one whose flow is proven; what is more is noise that a few chance matches lead."""

_STILL_WEIGHT, _CLIPPED_WEIGHT = 0.3, 0.005
"""What a pixel that is explained by standing still counts for beside one whose flow is proven, and what one counts for that clips in both
frames: it says nothing, but a whole white sky does not go with what passes before it."""
_EXPLAINED, _NOISE_CODES = 1.1, 0.3
"""Standing still explains a pixel where it leaves at most so many times the difference that the flow leaves, and so many codes more."""
_BELIEVED_FROM, _BELIEVED_WHOLE = 0.1, 0.4
"""Share of proven flow among the evidence around from which a flow is followed a little, and wholly."""


@dataclass(frozen=True)
class Flow:
    """Dense motion left between two registered images.

    displacement: (h, w, 2) float32, pixels: from a reference pixel to where it is found in the frame.
    coverage: (h, w) uint8, 0..255: 0 where texture shows that the way back leads elsewhere (hidden, or wrong).
    """

    displacement: F32 = field(repr=False)
    coverage: U8 = field(repr=False)


def find_flow(reference: U8, frame: U8, inside: NDArray[np.bool_], still: bool) -> Flow | None:
    """Dense motion between two registered images, (h, w) uint8; None where nothing moved, or no evidence says so.

    inside: (h, w), where the frame has pixels. still: the frame did not move as a whole, so what moves too little stays exactly
    where it is.

    Dense inverse search (Kroeger et al. 2016, "Fast optical flow using dense inverse search") gives flow everywhere, whether or not
    there is anything to see. It is proven where texture outweighs the noise, where the way back leads to where it came from, and where
    it lowers the difference. Elsewhere (clipped, black, smooth, hidden) it is followed as far as it is proven around: of a lamp that
    clips its outline alone tells where it went, and what is inside goes with it.
    """
    height, width = reference.shape
    if min(height, width) < _LEAST_SIDE:
        return None
    half = max((width + 1) // 2, _LEAST_SIDE), max((height + 1) // 2, _LEAST_SIDE)
    glance = [np.asarray(cv2.resize(p, half, interpolation=cv2.INTER_AREA), np.uint8) for p in (reference, frame, inside.astype(np.uint8))]
    if _moving_share(*_both_ways(glance[0], glance[1])[:2], glance[2], STILL_PX / 2) < LEAST_AREA:
        return None  # the usual case: a quarter of the work tells
    forward, evidence, coverage, before, after = _both_ways(reference, frame)
    proven = _moving_share(forward, evidence, inside, STILL_PX)
    if proven < LEAST_AREA:
        return None
    evidence *= inside
    share = _followed(evidence, before, after, (reference < 254) & inside)
    flow = share[..., None] * forward
    coverage = 1 - share * (1 - coverage)  # what is not followed stays where it is, and is not hidden there
    followed = np.hypot(flow[..., 0], flow[..., 1]) > 2 * STILL_PX  # less is noise in any case
    if np.count_nonzero(followed & inside) > _MOST_PER_PROVEN * proven * reference.size:
        return None
    if still:
        # Below the threshold the frame is sampled at whole pixels, which leaves them as they are to the last bit.
        length = np.hypot(flow[..., 0], flow[..., 1])
        flow *= np.clip((length - STILL_PX) / STILL_PX, 0, 1)[..., None]
    return Flow(np.asarray(flow, np.float32), np.asarray(np.rint(255 * coverage), np.uint8))


def _followed(evidence: F32, before: F32, after: F32, unclipped: NDArray[np.bool_]) -> F32:
    """(h, w) 0..1: how far to follow a flow: as its evidence says, against that of pixels that standing still explains as well.

    before, after: (h, w) what differs around a pixel without and with the flow.   unclipped: (h, w), what no white outline takes along;
    black ground is no lamp's.
    """
    told = cv2.blur(unclipped.astype(np.float32), (_WINDOW_PX, _WINDOW_PX))
    weight = _CLIPPED_WEIGHT + (_STILL_WEIGHT - _CLIPPED_WEIGHT) * told
    left = (before - _EXPLAINED * after - _NOISE_CODES) / ((_EXPLAINED - 1) * after + _NOISE_CODES)
    stays = weight * np.clip(1 - left, 0, 1) * (1 - evidence)
    either = evidence + stays
    share = _continue(np.asarray(evidence / np.maximum(either, 1e-3), np.float32), np.asarray(np.minimum(either, 1), np.float32))
    return np.asarray(np.clip((share - _BELIEVED_FROM) / (_BELIEVED_WHOLE - _BELIEVED_FROM), 0, 1), np.float32)


def _both_ways(a: U8, b: U8) -> tuple[F32, F32, F32, F32, F32]:
    """Flow from a to b, and what `_evidence` says of it."""
    search: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    forward, back = (np.asarray(search.calc(*pair, None), np.float32) for pair in ((a, b), (b, a)))
    return forward, *_evidence(a, b, forward, back)


def _moving_share(flow: F32, evidence: F32, inside: NDArray[Any], least_px: float) -> float:
    moving = (evidence > 0.5) & (np.hypot(flow[..., 0], flow[..., 1]) > least_px) & (inside > 0)
    return float(moving.mean())


def _evidence(a: U8, b: U8, flow: F32, back: F32) -> tuple[F32, F32, F32, F32]:
    """How far a flow from a to b deserves belief, and how far it is not disproved, (h, w) float32, 0..1; and the mean difference around
    each pixel without and with it, in codes.
    """
    near = (_WINDOW_PX, _WINDOW_PX)
    after = cv2.absdiff(a, np.asarray(moved_by(b, flow), np.uint8)).astype(np.float32)
    before = cv2.absdiff(a, b).astype(np.float32)
    gx = np.asarray(cv2.Scharr(a, cv2.CV_32F, 1, 0, scale=1 / 32), np.float32)
    gy = np.asarray(cv2.Scharr(a, cv2.CV_32F, 0, 1, scale=1 / 32), np.float32)
    length = np.hypot(flow[..., 0], flow[..., 1])
    far = np.minimum(length, _FAR_PX)
    # Cramer-Rao bound: the variance of a shift measured over n pixels is noise variance / (n * mean squared gradient).
    variance = (cv2.blur(after * after, near) + 1) / (20 * cv2.blur(gx * gx + gy * gy, near) + 1e-3)
    certain = 1 / (1 + variance / (_UNSURE_PX + _UNSURE_SHARE * far) ** 2)
    loop = flow + moved_by(back, flow)
    returns = np.exp(-(loop[..., 0] ** 2 + loop[..., 1] ** 2) / (_LOOP_PX**2 + (_LOOP_SHARE * far) ** 2))
    # The farther a flow leads, the clearer it must pay: by a fifth from one pixel on.
    left_before, left_after = (np.asarray(cv2.blur(apart, near), np.float32) for apart in (before, after))
    helps = left_after < left_before * (1.02 - 0.22 * np.minimum(length, 1)) + 0.2
    evidence = np.clip((certain * returns * helps - 0.25) / 0.5, 0, 1)
    coverage = 1 - np.clip((certain - 0.3) / 0.4, 0, 1) * (1 - returns)
    return np.asarray(evidence, np.float32), np.asarray(coverage, np.float32), left_before, left_after


def moved_by(image: NDArray[Any], flow: F32) -> NDArray[Any]:
    """An image (h, w, ...) sampled bilinearly where each pixel's flow (h, w, 2) leads; edges repeated."""
    height, width = flow.shape[:2]
    x = flow[..., 0] + np.arange(width, dtype=np.float32)
    y = flow[..., 1] + np.arange(height, dtype=np.float32)[:, None]
    return np.asarray(cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def _continue(values: F32, weight: F32) -> F32:
    """A smooth picture that follows another, (h, w), where weight is, and continues it elsewhere (pyramid of means)."""
    height, width = weight.shape
    if min(height, width) < 4:
        mean = float((values * weight).sum()) / (float(weight.sum()) + 0.02 * weight.size)
        return np.full(weight.shape, mean, np.float32)
    half = (width + 1) // 2, (height + 1) // 2
    share = np.asarray(cv2.resize(weight, half, interpolation=cv2.INTER_AREA), np.float32)
    total = np.asarray(cv2.resize(values * weight, half, interpolation=cv2.INTER_AREA), np.float32)
    below = _continue(total / (share + np.float32(1e-4)), np.minimum(share * 3, 1))
    up = cv2.GaussianBlur(cv2.resize(below, (width, height), interpolation=cv2.INTER_LINEAR), (0, 0), 1)
    return np.asarray(weight * values + (1 - weight) * up, np.float32)
