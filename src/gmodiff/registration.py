"""Global motion between two images of one scene: a robust homography.

Images here are *matched codes*: one 8-bit channel in which a scene point has the same value in both (see `align`).
Homographies map pixel centres (integers) of the first image to pixels of the second.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from gmodiff.radiometry import F32

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

_GLOBAL_PIXELS = 1.1e6
"""The homography is found on an image of at most this many pixels: a quarter of 12 megapixels each way."""

_MIN_POINTS = 60
"""Textured points without which no motion is sought."""

_DETAIL_PX = 15
"""What is wider than this counts as shading, not as detail."""

_COARSEST = 48
"""Shorter side, in pixels, of the coarsest level of the search."""

# Generators of the motion models, as rows over the entries (a11 a12 a13 a21 a22 a23 a31 a32) of a small change of a homography.
_EUCLIDEAN = np.array([[0, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0, 0], [0, -1, 0, 1, 0, 0, 0, 0]], np.float64)
_HOMOGRAPHY = np.eye(8)


def rescale(homography: F64, x: float, y: float) -> F64:
    """The same homography for images x and y times as large, pixel centres at integers."""
    to = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
    moved = to @ homography @ np.linalg.inv(to)
    return np.asarray(moved / moved[2, 2], np.float64)


def displacement(homography: F64, height: int, width: int) -> F64:
    """(25,) lengths in pixels of a homography's displacement on a 5 x 5 grid that spans an image."""
    y, x = np.meshgrid(np.linspace(0, height - 1, 5), np.linspace(0, width - 1, 5), indexing="ij")
    points = np.stack([x.ravel(), y.ravel(), np.ones(25)])
    moved = homography @ points
    return np.asarray(np.hypot(*(moved[:2] / moved[2] - points[:2])), np.float64)


# ---- global motion -------------------------------------------------------------------------------------------------------


def find_homography(reference: U8, frame: U8) -> list[F64]:
    """Robust motions from a reference to a frame, both (h, w) uint8: shift with rotation, and all eight parameters.

    The caller decides by what they achieve; an empty list where there is too little to go by.

    Coarse to fine: a shift by phase correlation for a few trial rotations, then direct registration of well-textured pixels by
    inverse compositional Gauss-Newton steps (Baker and Matthews 2004, section 3.2) with a gain and an offset, and Tukey weights,
    which leave moving people out of the fit: shift and rotation first, then all eight parameters.
    """
    fine = [_shrink(image, _GLOBAL_PIXELS) for image in (reference, frame)]
    levels = _pyramid(*(image.astype(np.float32) for image in fine))
    motion = _initial(*levels[-1])
    size = levels[-1][0].shape
    for a, b in reversed(levels):
        motion = rescale(motion, a.shape[1] / size[1], a.shape[0] / size[0])
        size = a.shape
        points = _textured(a)
        if len(points.x) >= _MIN_POINTS:
            motion = _register(points, a, b, motion, _EUCLIDEAN)
    if len(points.x) < _MIN_POINTS or not _plausible(motion, *size):
        return []
    table = tone_table(fine[0], *warped(fine[1], motion))
    a, b = _pyramid(fine[0].astype(np.float32), table[fine[1]])[0]
    points = _textured(a)
    candidates = [_register(points, a, b, motion, _EUCLIDEAN)]
    candidates.append(_register(points, a, b, candidates[0], _HOMOGRAPHY))
    up = reference.shape[1] / size[1], reference.shape[0] / size[0]
    return [rescale(c, *up) for c in candidates if _plausible(c, *size)]


def _shrink(image: U8, pixels: float) -> U8:
    """Halved until it has at most so many pixels."""
    while image.size > pixels:
        half = (image.shape[1] + 1) // 2, (image.shape[0] + 1) // 2
        image = np.asarray(cv2.resize(image, half, interpolation=cv2.INTER_AREA), np.uint8)
    return image


def _pyramid(a: F32, b: F32) -> list[tuple[F32, F32]]:
    """Pairs of detail images, each level half the size of the one before.

    Only detail: what lens shading, flare or a wrong response change slowly across the picture must not look like motion.
    """
    levels: list[tuple[F32, F32]] = []
    while True:
        a, b = (np.asarray(cv2.GaussianBlur(p, (0, 0), 0.8), np.float32) for p in (a, b))
        levels.append((a - _around(a), b - _around(b)))
        if min(a.shape) < 2 * _COARSEST:
            return levels
        a, b = (np.asarray(cv2.pyrDown(p), np.float32) for p in (a, b))


def _around(image: F32) -> F32:
    return np.asarray(cv2.blur(image, (_DETAIL_PX, _DETAIL_PX)), np.float32)


def warped(image: U8, motion: F64) -> tuple[U8, NDArray[np.bool_]]:
    """The frame as the reference sees it (bicubic), and where that lies inside the frame."""
    size = image.shape[1], image.shape[0]
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    moved = cv2.warpPerspective(image, motion, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    inside = cv2.warpPerspective(np.full_like(image, 255), motion, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP) == 255
    return np.asarray(moved, np.uint8), np.asarray(inside)


def tone_table(reference: U8, frame: U8, valid: NDArray[np.bool_]) -> F32:
    """(256,) float32 that maps a registered frame's codes to the reference's: the monotone map that makes their histograms alike."""
    if not valid.any():
        return np.arange(256, dtype=np.float32)
    a, b = (np.bincount(image[valid], minlength=256).astype(np.float64) for image in (reference, frame))
    rank_a, rank_b = ((np.cumsum(n) - n / 2) / n.sum() for n in (a, b))
    return np.asarray(np.interp(rank_b, rank_a[a > 0], np.flatnonzero(a > 0)), np.float32)


def _initial(a: F32, b: F32) -> F64:
    """Shift and rotation to start from: of a few rotations, each with its phase correlation, the one that correlates best."""
    height, width = a.shape
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    detail = [np.asarray(p - cv2.GaussianBlur(p, (0, 0), 4), np.float32) for p in (a, b)]
    centre = ((width - 1) / 2, (height - 1) / 2)
    best, best_score = np.eye(3), -np.inf
    for degrees in (0.0, -3.0, 3.0, -6.0, 6.0):
        turn = np.vstack([cv2.getRotationMatrix2D(centre, degrees, 1.0), [0, 0, 1]])
        turned = cv2.warpPerspective(detail[1], turn, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        (x, y), _ = cv2.phaseCorrelate(detail[0], turned, window)
        for shift in ((0.0, 0.0), (x, y)):
            motion = turn @ np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]])
            score = _correlation(detail[0], detail[1], motion)
            if score > best_score + 1e-6:
                best, best_score = motion, score
    return np.asarray(best, np.float64)


def _correlation(a: F32, b: F32, motion: F64) -> float:
    """Correlation of a with the moved b over their common part, less where that part is small; -1 where nothing varies."""
    size = a.shape[1], a.shape[0]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpPerspective(b, motion, size, flags=flags)
    common = cv2.warpPerspective(np.ones_like(b), motion, size, flags=flags)
    fixed = a * common
    norm = float(np.sqrt((fixed**2).sum() * (moved**2).sum()))
    return float((fixed * moved).sum()) / norm * min(1.0, 2 * float(common.mean())) if norm > 0 else -1.0


@dataclass(frozen=True)
class _Points:
    """Well-textured pixels of a reference: position, value and gradient, each (n,)."""

    x: F64
    y: F64
    value: F32
    gx: F32
    gy: F32


def _textured(a: F32) -> _Points:
    """In each small block the pixel with the strongest gradient, where that stands out."""
    gx = np.asarray(cv2.Scharr(a, cv2.CV_32F, 1, 0, scale=1 / 32), np.float32)
    gy = np.asarray(cv2.Scharr(a, cv2.CV_32F, 0, 1, scale=1 / 32), np.float32)
    strength = gx * gx + gy * gy
    height, width = a.shape
    strength[:2] = strength[-2:] = 0
    strength[:, :2] = strength[:, -2:] = 0
    block = 4 if a.size > 40_000 else 2
    rows, columns = height // block, width // block
    blocks = strength[: rows * block, : columns * block].reshape(rows, block, columns, block).swapaxes(1, 2).reshape(rows, columns, -1)
    at = blocks.argmax(axis=2)
    peak = blocks.max(axis=2)
    chosen = peak > max(4.0, float(np.percentile(peak, 30)))
    y, x = np.nonzero(chosen)
    y = y * block + at[chosen] // block
    x = x * block + at[chosen] % block
    return _Points(x.astype(np.float64), y.astype(np.float64), a[y, x], gx[y, x], gy[y, x])


def _register(points: _Points, a: F32, b: F32, motion: F64, model: F64, steps: int = 12) -> F64:
    """Refine a motion from a to b over a set of points of a, in the directions of a motion model."""
    height, width = a.shape
    # Coordinates centred and scaled to about -1..1, so that the eight parameters weigh alike.
    scale = 2.0 / max(height, width)
    norm = np.array([[scale, 0, -scale * (width - 1) / 2], [0, scale, -scale * (height - 1) / 2], [0, 0, 1]])
    back = np.linalg.inv(norm)
    count = len(points.x)
    x, y = points.x * scale + norm[0, 2], points.y * scale + norm[1, 2]
    gx, gy = points.gx / scale, points.gy / scale
    radial = gx * x + gy * y
    change_of_value = np.stack([gx * x, gx * y, gx, gy * x, gy * y, gy, -radial * x, -radial * y])
    rows = np.vstack([model @ change_of_value, points.value[None], np.ones((1, count))]).astype(np.float32)
    # cv2.remap limits the length of a row, so the points are sampled as an image of 256 columns.
    map_x, map_y = np.zeros((2, -(-count // 256) * 256), np.float32)
    current = norm @ motion @ back
    at = np.stack([x, y, np.ones_like(x)])
    for _ in range(steps):
        moved = back @ current @ at
        map_x[:count], map_y[:count] = moved[0] / moved[2], moved[1] / moved[2]
        sampled = cv2.remap(b, map_x.reshape(-1, 256), map_y.reshape(-1, 256), cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        residual = sampled.ravel()[:count] - points.value
        inside = ((map_x >= 1) & (map_x <= width - 2) & (map_y >= 1) & (map_y <= height - 2))[:count]
        if inside.sum() < 40:
            return motion
        centred = residual - np.median(residual[inside])
        spread = max(1.4826 * float(np.median(np.abs(centred[inside]))), 0.5)
        weight = np.where(inside, np.clip(1 - (centred / (4.685 * spread)) ** 2, 0, 1) ** 2, 0).astype(np.float32)
        weighted = rows * weight
        normal = (weighted @ rows.T).astype(np.float64)
        normal[np.diag_indices_from(normal)] *= 1 + 1e-6
        try:
            change = np.linalg.solve(normal, (weighted @ residual).astype(np.float64))
        except np.linalg.LinAlgError:
            return motion
        entries = np.append(model.T @ change[: len(model)], 0.0).reshape(3, 3)
        current = current @ np.linalg.inv(np.eye(3) + entries)
        current /= current[2, 2]
        if np.abs(entries).max() / scale < 0.003:
            break
    return np.asarray(back @ current @ norm, np.float64)


def _plausible(motion: F64, height: int, width: int) -> bool:
    """True for what hands do between two photos: nothing moves by a quarter of the diagonal, nothing folds."""
    if not np.isfinite(motion).all():
        return False
    corners = np.array([[0, 0, 1], [width - 1, 0, 1], [0, height - 1, 1], [width - 1, height - 1, 1]], np.float64).T
    depth = (motion @ corners)[2]
    return bool(depth.min() > 0.7 and depth.max() < 1.4 and displacement(motion, height, width).max() < 0.25 * np.hypot(height, width))
