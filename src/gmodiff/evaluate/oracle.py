"""The ceiling: the best weighted mean of frames in which nothing moved, by someone who knows the truth."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from gmodiff.datasets.scene import Scene
from gmodiff.errors import InputError
from gmodiff.radiometry import F32

LEVELS = 48
"""Half stops of true level, from 14 stops below the reference's white to 10 above."""

AROUND_STOPS = (0.15, 0.4, 1.0, 2.0, 4.0)
"""Bounds, in stops, of how much brighter the brightest of the 5x5 pixels around is."""

GROUPS = LEVELS * (len(AROUND_STOPS) + 1)


class NotApplicable(InputError):
    """A method has nothing to work on in this scene; that is no failure of it."""


def oracle(scene: Scene) -> F32:
    """(H, W, 3) radiance: per pixel the weighted mean of perfectly aligned frames with the least squared error.

    Pixels are grouped by true level (half stops), by how much brighter the brightest of the 5x5 pixels around them is, and by how many
    frames are unclipped there; each group gets the weights, summing to one, that minimise its squared error: C^-1 1 / (1' C^-1 1) with
    C the errors' second moments (Gauss and Markov's best linear unbiased estimate). Sensor noise, quantisation, JPEG, and what
    demosaicing brings over from neighbours count as they are, not as a model has them.
    Raises NotApplicable for a scene without truth or without perfect frames.
    """
    if scene.truth is None or scene.perfect is None:
        raise NotApplicable(f"{scene.name} has no {'ground truth' if scene.truth is None else 'motionless frames'}: there is no oracle")
    still = scene.perfect()
    truth = scene.truth
    ratios = still.relative_exposures
    estimates = [still.response.linearise(f.encoded) / np.float32(r) for f, r in zip(still.frames, ratios, strict=True)]
    merged = np.empty((truth[..., 0].size, 3), np.float32)
    known = np.ones(truth[..., 0].size, bool) if scene.known is None else scene.known.ravel()
    for c in range(3):
        level_true = np.ascontiguousarray(truth[..., c])
        groups = _groups(level_true, ratios)
        samples = np.stack([e[..., c].ravel() for e in estimates])
        _merge(level_true.ravel(), samples, groups, known, out=merged[:, c])
    return merged.reshape(truth.shape)


def _groups(truth: F32, ratios: tuple[float, ...]) -> np.ndarray:
    """(H * W,) group of each pixel of a channel: GROUPS * (frames in use - 1) + level and surroundings."""
    level = np.log2(np.maximum(truth, 1e-6))
    around = np.log2(np.maximum(cv2.dilate(truth, np.ones((5, 5), np.uint8)), 1e-6)) - level
    group = np.clip(np.floor((level + 14) * 2), 0, LEVELS - 1).astype(np.int64) * (len(AROUND_STOPS) + 1)
    group += np.searchsorted(AROUND_STOPS, around)
    # Frames clip in order of exposure; the shortest always counts.
    for ratio in ratios[1:]:
        group += GROUPS * (truth * ratio <= 0.98)
    return np.asarray(group.ravel())


def _merge(truth: F32, samples: F32, groups: np.ndarray, known: np.ndarray, out: F32) -> None:
    order = np.argsort(groups, kind="stable")
    bounds = np.flatnonzero(np.diff(groups[order], prepend=-1, append=-1))
    for first, end in pairwise(bounds):
        members = order[first:end]
        used = int(groups[members[0]] // GROUPS) + 1
        mine = samples[:used, members]
        told = known[members]
        # Where nobody knows the truth there is nothing to fit, unless there is nothing else.
        wrong = (mine - truth[members]).astype(np.float64)[:, told if told.any() else slice(None)]
        count = wrong.shape[1]
        moments = wrong @ wrong.T / count
        # A little of the diagonal keeps groups of a few pixels from being fitted to the last bit.
        moments += np.diag(np.diag(moments)) * (2 / (count + 20)) + 1e-15 * np.eye(used)
        weights = np.linalg.solve(moments, np.ones(used))
        out[members] = (weights / weights.sum()) @ mine
