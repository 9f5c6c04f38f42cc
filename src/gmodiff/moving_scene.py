"""A still picture set in motion: camera shake, objects that pass, waves; what the camera of `simulate` faces in each frame.

Exact on every machine, as `simulate` describes: warping is our own, with operations that IEEE 754 rounds correctly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, floor, sqrt

import numpy as np
from numpy.typing import NDArray

from gmodiff.errors import InputError
from gmodiff.radiometry import F32
from gmodiff.tiling import for_each_strip

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Cutout:
    """Something that moves: radiance (h, w, 3) float32 and coverage (h, w) float32, 0..1."""

    radiance: F32 = field(repr=False)
    coverage: F32 = field(repr=False)


@dataclass(frozen=True)
class Motion:
    """What moves between the frames of a bracket, and how much; all zero is a tripod and a still scene.

    shake_px: about how far an image corner moves between the reference and another frame (shift, rotation, perspective).
    objects: moving cut-outs.   object_size: their height in frame heights.   travel: frame heights moved from frame to frame.
    trail: frame heights moved while the longest exposure is open (shorter ones smear in proportion).
    waves_px: standard deviation of a non-rigid displacement, new in each frame (leaves, water, faces), over wave_share of the
    picture, smooth over wave_length_px.
    """

    shake_px: float = 0.0
    objects: int = 0
    object_size: float = 0.3
    travel: float = 0.08
    trail: float = 0.03
    waves_px: float = 0.0
    wave_length_px: float = 40.0
    wave_share: float = 0.3


@dataclass(frozen=True)
class MovingScene:
    """A scene in motion: `frame(i)` is what the camera faces in frame i, `motion_mask` where frames differ from the reference."""

    radiance: F32 = field(repr=False)
    margin: int
    homographies: tuple[F64, ...] = field(repr=False)
    wave_fields: tuple[F32 | None, ...] = field(repr=False)
    objects: tuple[_MovingObject, ...] = field(repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of every frame."""
        return self.radiance.shape[0] - 2 * self.margin, self.radiance.shape[1] - 2 * self.margin

    def frame(self, i: int) -> F32:
        """(H, W, 3) float32 scene radiance facing the camera in frame i."""
        x, y = self._reference_positions(i)
        waves = self.wave_fields[i]
        if waves is None and np.array_equal(self.homographies[i], np.eye(3)):
            m, (height, width) = self.margin, self.shape
            picture = self.radiance[m : m + height, m : m + width].copy()
        elif waves is None:
            picture = sample(self.radiance, x + self.margin, y + self.margin)
        else:
            shift = sample(waves, x, y)
            picture = sample(self.radiance, x + self.margin + shift[..., 0], y + self.margin + shift[..., 1])
        for thing in self.objects:
            thing.draw(picture, x, y, i)
        return picture

    @property
    def motion_mask(self) -> NDArray[np.bool_]:
        """(H, W) bool, in the reference's geometry: an object passes in some frame, or waves move by more than half a pixel."""
        height, width = self.shape
        mask = np.zeros((height, width), bool)
        y, x = np.mgrid[0:height, 0:width].astype(np.float64)
        for i, waves in enumerate(self.wave_fields):
            if waves is not None:
                mask |= waves[..., 0] * waves[..., 0] + waves[..., 1] * waves[..., 1] > 0.25
            for thing in self.objects:
                thing.mark(mask, x, y, i)
        return mask

    def _reference_positions(self, i: int) -> tuple[F64, F64]:
        """Where each pixel of frame i lies in the reference's geometry."""
        height, width = self.shape
        y, x = np.mgrid[0:height, 0:width].astype(np.float64)
        h = self.homographies[i]
        cx, cy = (width - 1) / 2, (height - 1) / 2
        x, y = x - cx, y - cy
        scale = h[2, 0] * x + h[2, 1] * y + h[2, 2]
        return (h[0, 0] * x + h[0, 1] * y + h[0, 2]) / scale + cx, (h[1, 0] * x + h[1, 1] * y + h[1, 2]) / scale + cy


@dataclass(frozen=True)
class _MovingObject:
    """A cut-out on its way: in frame i it goes from centres[i] to centres[i] + steps[i], both (x, y) in reference pixels."""

    cutout: Cutout
    centres: tuple[tuple[float, float], ...]
    steps: tuple[tuple[float, float], ...]

    def draw(self, picture: F32, x: F64, y: F64, i: int) -> None:
        """Composite the object over picture, whose pixels lie at (x, y) in the reference's geometry, smeared along its step."""
        coverage = self.cutout.coverage[..., None]
        layer = self._layer(np.concatenate([self.cutout.radiance * coverage, coverage], axis=-1), x, y, i)
        if layer is not None:
            box, part = layer
            picture[box] = picture[box] * (1 - part[..., 3:]) + part[..., :3]

    def mark(self, mask: NDArray[np.bool_], x: F64, y: F64, i: int) -> None:
        """Set mask where the object covers anything in frame i."""
        layer = self._layer(self.cutout.coverage[..., None], x, y, i)
        if layer is not None:
            box, part = layer
            mask[box] |= part[..., 0] > 0.02

    def _layer(self, still: F32, x: F64, y: F64, i: int) -> tuple[tuple[slice, slice], F32] | None:
        """A still (h, w, C) smeared over the time the shutter is open, and the rows and columns it may touch; None if outside."""
        step_x, step_y = self.steps[i]
        smeared, border = _smear(still, step_x, step_y)
        height, width = smeared.shape[:2]
        # Position of the smeared picture's first pixel; the object's centre starts at centres[i].
        left = self.centres[i][0] - still.shape[1] / 2 + 0.5 - border
        top = self.centres[i][1] - still.shape[0] / 2 + 0.5 - border
        near = (x > left) & (x < left + width - 1) & (y > top) & (y < top + height - 1)
        rows, columns = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        if not len(rows):
            return None
        box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
        return box, sample(smeared, x[box] - left, y[box] - top)


def _smear(still: F32, step_x: float, step_y: float) -> tuple[F32, int]:
    """A (h, w, C) picture averaged along a step, with the empty border that makes room for it."""
    border = ceil(max(abs(step_x), abs(step_y))) + 3
    wide = np.pad(still, ((border, border), (border, border), (0, 0)))
    count = max(1, min(32, ceil(max(abs(step_x), abs(step_y)))))
    if count == 1:
        return wide, border
    height, width = wide.shape[:2]
    total = np.zeros_like(wide)
    for k in range(count):
        dx, dy = step_x * (k + 0.5) / count, step_y * (k + 0.5) / count
        ix, iy = floor(dx), floor(dy)
        for ox, wx in ((ix, 1 - (dx - ix)), (ix + 1, dx - ix)):
            for oy, wy in ((iy, 1 - (dy - iy)), (iy + 1, dy - iy)):
                into = total[max(oy, 0) : height + min(oy, 0), max(ox, 0) : width + min(ox, 0)]
                into += np.float32(wx * wy / count) * wide[max(-oy, 0) : height - max(oy, 0), max(-ox, 0) : width - max(ox, 0)]
    return total, border


def moving_scene(
    radiance: F32,
    exposures: Sequence[float],
    motion: Motion,
    *,
    seed: int,
    reference: int | None = None,
    margin: int = 0,
    cutouts: Sequence[Cutout] = (),
) -> MovingScene:
    """Set a still (H, W, 3) radiance in motion for frames of the given relative exposures; the reference frame does not move.

    margin: pixels of radiance kept outside the frame on every side, so that shake brings in real content; the edge is repeated
    where it ends. cutouts: what moves; where too few are given, pieces of the scene itself, brightened or darkened, do.
    """
    index = len(exposures) // 2 if reference is None else reference
    height, width = radiance.shape[0] - 2 * margin, radiance.shape[1] - 2 * margin
    if min(height, width) < 8:
        raise InputError(f"a radiance of {radiance.shape[1]}x{radiance.shape[0]} px with margin {margin} leaves no picture")
    frames = range(len(exposures))
    homographies = tuple(np.eye(3) if i == index else _shake(generator((seed, 1, i)), motion.shake_px, height, width) for i in frames)
    waves: list[F32 | None] = [None] * len(exposures)
    if motion.waves_px > 0:
        # Where: the part of a slow random field above its own quantile. How: a quick field per frame.
        slow = _smooth_noise(generator((seed, 2)), height, width, max(height, width) / 4, 1)
        threshold = np.sort(slow, axis=None)[int((1 - motion.wave_share) * (slow.size - 1))]
        where = np.clip((slow - threshold) * np.float32(4.0), 0.0, 1.0)
        for i in frames:
            if i != index:
                quick = _smooth_noise(generator((seed, 3, i)), height, width, motion.wave_length_px, 2)
                waves[i] = quick * where * np.float32(motion.waves_px)
    objects = []
    for k in range(motion.objects):
        rng = generator((seed, 4, k))
        cutout = cutouts[k] if k < len(cutouts) else piece_of(radiance, rng, motion.object_size * height)
        start = rng.uniform(0.2, 0.8, 2) * (width, height)
        # A direction without sine and cosine: mostly sideways, as people and cars move.
        way = np.array([1.0 if rng.random() < 0.5 else -1.0, rng.uniform(-0.3, 0.3)]) * height
        pace = float(rng.uniform(0.6, 1.4))
        centres = [start + way * (motion.travel * pace * (i - index)) for i in frames]
        steps = [way * (motion.trail * pace * exposures[i] / exposures[-1]) for i in frames]
        objects.append(_MovingObject(cutout, tuple(_pair(c) for c in centres), tuple(_pair(s) for s in steps)))
    return MovingScene(radiance, margin, homographies, tuple(waves), tuple(objects))


# ---- chance -------------------------------------------------------------------------------------------------------------


def generator(seed: int | Sequence[int]) -> np.random.Generator:
    """The random stream of a seed; a sequence is a seed and what it is used for, so (1, 2) and (1, 2, 0) have nothing in common."""
    first, *purpose = (seed,) if isinstance(seed, int) else seed
    # As a spawn key: NumPy pads plain entropy with zeros, and (1, 2) would be (1, 2, 0).
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(first, spawn_key=tuple(purpose))))


def _pair(values: F64) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def _shake(rng: np.random.Generator, amplitude_px: float, height: int, width: int) -> F64:
    """(3, 3) homography about the centre: shift, rotation and a little perspective that move the corners by about amplitude_px."""
    radius = sqrt(height * height + width * width) / 2
    tx, ty, turn, px, py = rng.uniform(-1, 1, 5) * amplitude_px * (0.6, 0.6, 0.25 / radius, 0.15 / radius**2, 0.15 / radius**2)
    return np.array([[1.0, -turn, tx], [turn, 1.0, ty], [px, py, 1.0]])


def _smooth_noise(rng: np.random.Generator, height: int, width: int, length_px: float, channels: int) -> F32:
    """(H, W, channels) random field of unit variance, smooth over length_px: cubic B-spline over a grid of Gaussian values."""
    rows, columns = ceil(height / length_px) + 3, ceil(width / length_px) + 3
    grid = rng.standard_normal((rows, columns, channels), dtype=np.float32)

    def stretch(values: F32, size: int) -> F32:
        position = (np.arange(size) + 0.5) / length_px
        start = position.astype(np.intp)
        t = (position - start).astype(np.float32)[:, None, None]
        u = 1 - t
        weights = (u * u * u, (3 * t - 6) * t * t + 4, (3 * u - 6) * u * u + 4, t * t * t)
        total = weights[0] * values[start]
        for k in (1, 2, 3):
            total = total + weights[k] * values[start + k]
        return total / np.float32(6.0)

    rows_done = np.ascontiguousarray(stretch(grid, height).transpose(1, 0, 2))
    # 2.087 = 1 / 0.479: the sum of squared cubic B-spline weights, averaged over positions, per axis.
    return np.ascontiguousarray(stretch(rows_done, width).transpose(1, 0, 2)) * np.float32(2.087)


def piece_of(radiance: F32, rng: np.random.Generator, height: float) -> Cutout:
    """A random piece of the scene with a soft, irregular outline, 0.5 to 1.5 stops brighter or darker."""
    h = max(8, min(int(height), radiance.shape[0]))
    w = max(8, min(int(height * rng.uniform(0.35, 0.9)), radiance.shape[1]))
    top, left = int(rng.integers(0, radiance.shape[0] - h + 1)), int(rng.integers(0, radiance.shape[1] - w + 1))
    gain = rng.uniform(1.4, 2.8)
    coverage = outline(rng, h, w)
    piece = radiance[top : top + h, left : left + w] * np.float32(gain if rng.random() < 0.5 else 1 / gain)
    return Cutout(piece, coverage)


def outline(rng: np.random.Generator, height: int, width: int) -> F32:
    """(height, width) coverage 0..1 of something with a soft, irregular edge that fills most of its box."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    y, x = (y + 0.5) * 2 / height - 1, (x + 0.5) * 2 / width - 1
    inside = np.float32(0.8) - x * x - y * y + _smooth_noise(rng, height, width, max(height, width) / 5, 1)[..., 0] * np.float32(0.15)
    return np.asarray(np.clip(inside * np.float32(min(height, width) / 6) + np.float32(0.5), 0.0, 1.0), np.float32)


# ---- warping ------------------------------------------------------------------------------------------------------------


def sample(image: F32, x: F64, y: F64) -> F32:
    """Image (h, w, C) float32 at positions x, y (H, W), in pixels with 0 at the first pixel's centre; edges are repeated.

    Catmull-Rom cubic, held within its four nearest pixels: as sharp as a cubic, without dark rings around a sun.
    """
    height, width, channels = image.shape
    pixels = image.reshape(-1, channels)
    out = np.empty((*x.shape, channels), np.float32)

    def work(first: int, end: int) -> None:
        columns, wx = _taps(x[first:end], width)
        rows, wy = _taps(y[first:end], height)
        total = np.zeros((end - first, x.shape[1], channels), np.float32)
        low: F32 | None = None
        high: F32 | None = None
        for j in range(4):
            line = np.zeros_like(total)
            for i in range(4):
                tap = pixels.take(rows[j] * width + columns[i], axis=0)
                line += wx[i] * tap
                if 1 <= i <= 2 and 1 <= j <= 2:
                    low = tap if low is None else np.minimum(low, tap)
                    high = tap if high is None else np.maximum(high, tap)
            total += wy[j] * line
        np.clip(total, low, high, out=out[first:end])

    for_each_strip(work, x.shape[0])
    return out


def _taps(position: F64, size: int) -> tuple[list[NDArray[np.intp]], list[F32]]:
    """Indices and Catmull-Rom weights (Catmull and Rom 1974, tension 1/2) of the four pixels around each position."""
    position = np.clip(position, 0.0, size - 1.0)
    first = np.floor(position)
    t = (position - first).astype(np.float32)[..., None]
    start = first.astype(np.intp)
    t2 = t * t
    t3 = t2 * t
    half = np.float32(0.5)
    weights = [half * (2 * t2 - t3 - t), half * (3 * t3 - 5 * t2 + 2), half * (4 * t2 - 3 * t3 + t), half * (t3 - t2)]
    return [np.clip(start + k, 0, size - 1) for k in (-1, 0, 1, 2)], weights
