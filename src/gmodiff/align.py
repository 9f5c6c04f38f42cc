"""Every frame as seen from the reference: global motion first, then dense flow, and nothing at all where nothing moved.

Both frames of a pair are brought to *matched codes*: radiance of each channel, clamped to the range that both frames measured,
compressed by a power (which evens out shot noise) and stretched to 8 bits. Clipped and black pixels land on the ends of that
range in both frames, so they match instead of pulling the motion. Motion is found on copies of at most 1.5 megapixels;
`warp_rows` then reads the full-size frame strip by strip.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gmodiff.errors import InputError
from gmodiff.flow import STILL_PX, Flow, find_flow, moved_by
from gmodiff.image import Bracket, Frame
from gmodiff.radiometry import CLIPPED_ENCODED, F32, CameraResponse
from gmodiff.registration import displacement, find_homography, rescale, tone_table, warped
from gmodiff.tiling import threads
from gmodiff.upsampling import enlarged_rows

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

_SIDE_LIMIT = 32766
"""cv2.remap addresses source and destination with 16-bit signed integers."""

_WORKING_PIXELS = 1.5e6
"""Motion is sought on copies shrunk to about this many pixels: a third of 12 megapixels each way."""

_BLACK_ENCODED, _BLACK_LINEAR, _WHITE_ENCODED = 0.015, 0.0025, 0.93
"""Outside these, averages over a few pixels of an 8-bit JPEG are mostly noise or partly clipped."""

_COMPRESSION = 1 / 2.4

_LEAST_GLOBAL_PX, _LEAST_PIXELS = 0.4, 200
"""A global motion below the first (at working size) is none; nothing is judged by fewer pixels than the second."""

_APART_STOPS, _APART_SHARE = 0.3, 0.001
"""Local motion is sought where more than the second of the pixels disagree by more than the first: a small thing that moved far is
nothing in a mean over the picture."""

_CLEARLY, _LOCALLY, _LOCALLY_STOPS = 0.97, 0.8, 0.06
"""A motion that leaves more than this share of the error is dropped: that of the whole frame, and of what moves in it. The latter is
dropped as well where it takes away less than so many stops: what differs so little is not worth what bending costs in sharpness."""


@dataclass(frozen=True)
class Alignment:
    """Where each reference pixel is found in a frame.

    homography: (3, 3) float64, reference pixel (x, y, 1) to frame pixel at full size, pixel centres at integers; None = identity.
    flow: (h, w, 2) float32, displacement (x, y) in full-size pixels added after the homography, on a grid of any size whose
        pixel centres cover the frame evenly (grid x = (full x + 0.5) * w / W - 0.5); None = none.
    coverage: (h, w) uint8, 0..255: how far the flow is consistent there; None = everywhere. What the alignment takes from
        outside the frame is uncovered in any case.
    error_before, error_after: mean disagreement with the reference in stops, each pixel's limited to one stop, over pixels valid in
        both, without and with this alignment; NaN where too few pixels are valid in both.
    """

    homography: F64 | None = None
    flow: F32 | None = field(default=None, repr=False)
    coverage: U8 | None = field(default=None, repr=False)
    error_before: float = float("nan")
    error_after: float = float("nan")

    @property
    def is_identity(self) -> bool:
        """True where the frame is used as it is."""
        return self.homography is None and self.flow is None


# ---- warping: the frame, strip by strip, as the reference sees it ----------------------------------------------------------


def warp_rows(frame: Frame, alignment: Alignment, first: int, end: int) -> tuple[NDArray[Any], F32 | None]:
    """Rows first..end of a frame as seen from the reference.

    Returns encoded values (end - first, W, 3) in the frame's own dtype, and coverage (end - first, W) float32 0..1, None where it
    is 1 everywhere. Identity returns a view of the frame's rows. A value that mixes a clipped sample with others is clipped:
    how bright the clipped part was, nobody knows. Bicubic (Keys 1981); any split into strips gives the same values.
    Raises InputError where the rows are not inside the frame.
    """
    height, width = frame.height, frame.width
    if not 0 <= first < end <= height:
        raise InputError(f"{frame.name}: rows {first}..{end} are not inside an image of {height} rows")
    if alignment.is_identity:
        return frame.encoded[first:end], None
    map_x, map_y = _source_positions(alignment, height, width, first, end)
    inside = (map_x >= 0) & (map_x <= width - 1) & (map_y >= 0) & (map_y <= height - 1)
    coverage: F32 | None = None
    if alignment.coverage is not None:
        coverage = enlarged_rows(alignment.coverage, first, end, height, width)
        coverage *= inside * np.float32(1 / 255)
    elif not inside.all():
        coverage = inside.astype(np.float32)
    return _sample(frame.encoded, map_x, map_y), coverage


def _source_positions(alignment: Alignment, height: int, width: int, first: int, end: int) -> tuple[F32, F32]:
    """(rows, W) float32 x and y in the frame of each reference pixel of rows first..end."""
    x = np.arange(width, dtype=np.float64)
    y = np.arange(first, end, dtype=np.float64)[:, None]
    if alignment.homography is None:
        map_x = np.repeat(x.astype(np.float32)[None], end - first, axis=0)
        map_y = np.repeat(y.astype(np.float32), width, axis=1)
    else:
        h = alignment.homography
        scale = 1.0 / ((h[2, 0] * x + h[2, 2]) + h[2, 1] * y)
        map_x = (((h[0, 0] * x + h[0, 2]) + h[0, 1] * y) * scale).astype(np.float32)
        map_y = (((h[1, 0] * x + h[1, 2]) + h[1, 1] * y) * scale).astype(np.float32)
    if alignment.flow is not None:
        flow = enlarged_rows(alignment.flow, first, end, height, width)
        map_x += flow[..., 0]
        map_y += flow[..., 1]
    return map_x, map_y


def _sample(encoded: NDArray[Any], map_x: F32, map_y: F32) -> NDArray[Any]:
    """(rows, W, 3) bicubic samples of an image at the given positions, clipped where a clipped sample takes part."""
    top = int(np.iinfo(encoded.dtype).max)
    height, width = encoded.shape[:2]
    out = np.empty((*map_x.shape, 3), encoded.dtype)
    step = _SIDE_LIMIT // 2
    for left in range(0, map_x.shape[1], step):
        columns = slice(left, left + step)
        x, y = np.ascontiguousarray(map_x[:, columns]), np.ascontiguousarray(map_y[:, columns])
        # Only the source rows and columns needed, with two more for the bicubic's reach; offsets are whole, so positions stay exact.
        x_low, x_high, _, _ = cv2.minMaxLoc(x)
        y_low, y_high, _, _ = cv2.minMaxLoc(y)
        x0, y0 = int(np.clip(x_low - 3, 0, width - 1)), int(np.clip(y_low - 3, 0, height - 1))
        x1, y1 = int(np.clip(x_high + 5, x0 + 1, width)), int(np.clip(y_high + 5, y0 + 1, height))
        source = encoded[y0 : min(y1, y0 + _SIDE_LIMIT), x0 : min(x1, x0 + _SIDE_LIMIT)]
        x -= x0
        y -= y0
        part = cv2.remap(source, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        _, clipped = cv2.threshold(source, int(np.ceil(CLIPPED_ENCODED * top)) - 1, top, cv2.THRESH_BINARY)
        if clipped.any():
            touched = cv2.remap(clipped, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            _, touched = cv2.threshold(touched, 0, top, cv2.THRESH_BINARY)
            part = cv2.max(part, touched)
        out[:, columns] = part
    return out


# ---- finding the motion --------------------------------------------------------------------------------------------------


def align(bracket: Bracket, *, progress: Callable[[float], None] | None = None) -> tuple[Alignment, ...]:
    """One Alignment per frame of the bracket, in its order; the reference's is the identity.

    progress gets the fraction of frames done.
    """
    reference = bracket.frames[bracket.reference]
    small = _shrink(reference)

    def find(frame: Frame) -> Alignment:
        if frame is reference:
            return Alignment()
        return _align_pair(small, _shrink(frame), bracket.response, bracket.shape, dense=True)

    found: list[Alignment] = []
    with ThreadPoolExecutor(threads()) as pool:
        futures = [pool.submit(find, frame) for frame in bracket.frames]
        try:
            for future in futures:
                found.append(future.result())
                if progress is not None:
                    progress(len(found) / len(futures))
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    return tuple(found)


def align_frame(reference: Frame, frame: Frame, response: CameraResponse, *, dense: bool = True) -> Alignment:
    """Find a frame in the reference's view.

    Exposures and response may be rough: the frames are matched by their pixels. dense=False stops after the global motion.
    Raises InputError where the two sizes or pixel types differ.
    """
    if frame.encoded.shape != reference.encoded.shape or frame.encoded.dtype != reference.encoded.dtype:
        raise InputError(
            f"{frame.name} is {frame.encoded.dtype} {frame.encoded.shape} but {reference.name} is {reference.encoded.dtype} "
            f"{reference.encoded.shape}: frames can be aligned only where size and pixel type agree"
        )
    return _align_pair(_shrink(reference), _shrink(frame), response, reference.encoded.shape[:2], dense)


@dataclass(frozen=True)
class _Small:
    """A frame on the working grid: (h, w, 3) encoded, and its exposure."""

    encoded: NDArray[Any]
    exposure: float


def _shrink(frame: Frame) -> _Small:
    size = frame.width * frame.height
    factor = max(1, int(np.ceil(np.sqrt(size / _WORKING_PIXELS))), int(np.ceil(max(frame.width, frame.height) / _SIDE_LIMIT)))
    shape = max(1, round(frame.width / factor)), max(1, round(frame.height / factor))
    small = frame.encoded if factor == 1 else cv2.resize(frame.encoded, shape, interpolation=cv2.INTER_AREA)
    return _Small(small, frame.exposure)


def _matched(a: _Small, b: _Small, response: CameraResponse) -> tuple[U8, U8, float]:
    """Matched codes of two frames, (h, w) uint8 each, and the stops their range spans.

    Every channel's radiance is clamped to what both frames measured, so a clipped or black sample is at the same end in both.
    """
    dtype = a.encoded.dtype
    ratio = _exposure_ratio(a, b, response)
    ends = response.at(np.array([_BLACK_ENCODED, _WHITE_ENCODED]))
    low = np.maximum(ends[0], _BLACK_LINEAR) * max(1.0, 1.0 / ratio)
    high = ends[1] * min(1.0, 1.0 / ratio)
    codes = response.codes(dtype)
    out = []
    for small, exposure in ((a, 1.0), (b, ratio)):
        with np.errstate(invalid="ignore"):
            bottom = (low / high) ** _COMPRESSION
            level = (np.clip(codes / exposure, low, high) / high) ** _COMPRESSION
            table = np.rint(255 * np.clip((level - bottom) / (1 - bottom), 0, 1)).astype(np.uint8)
        out.append(np.asarray(cv2.cvtColor(_look_up(small.encoded, table), cv2.COLOR_RGB2GRAY), np.uint8))
    return out[0], out[1], float(np.log2(high / low).min())


def _look_up(encoded: NDArray[Any], table: U8) -> U8:
    """(h, w, 3) uint8 entries of a (codes, 3) table."""
    if encoded.dtype == np.uint8:
        return np.asarray(cv2.LUT(encoded, table[None]), np.uint8)
    return np.stack([table[:, c].take(encoded[..., c]) for c in range(3)], axis=-1)


def _exposure_ratio(a: _Small, b: _Small, response: CameraResponse) -> float:
    """Exposure of b over that of a: as told, unless the pixels clearly say otherwise."""
    told = b.exposure / a.exposure
    height, width = a.encoded.shape[:2]
    shrink = max(1.0, max(height, width) / 160)
    size = max(1, round(width / shrink)), max(1, round(height / shrink))
    pair = [cv2.resize(s.encoded, size, interpolation=cv2.INTER_AREA) for s in (a, b)]
    top = np.iinfo(a.encoded.dtype).max
    valid = np.logical_and(*[(p > 2 * _BLACK_ENCODED * top) & (p < _WHITE_ENCODED * top) for p in pair])
    if valid.sum() < 100:
        return told if np.isfinite(told) and told > 0 else 1.0
    linear = [response.linearise(p)[valid] for p in pair]
    seen = float(np.median(linear[1] / linear[0]))
    trusted = np.isfinite(told) and told > 0 and abs(np.log2(seen / told)) < 0.2
    return told if trusted else seen


def _align_pair(a: _Small, b: _Small, response: CameraResponse, shape: tuple[int, int], dense: bool) -> Alignment:
    """Each step in turn, kept only where it lowers the disagreement: the first of the pixels that both frames measured."""
    reference, frame, stops = _matched(a, b, response)
    height, width = reference.shape
    everywhere = np.ones(reference.shape, np.bool_)
    before = after = _error(reference, frame, everywhere, stops)
    best, seen, inside = None, frame, everywhere
    if np.isfinite(before) and min(height, width) > 1:  # a line has no phase to correlate
        for motion in find_homography(reference, frame):
            moved, common = warped(frame, motion)
            if displacement(motion, height, width).max() < _LEAST_GLOBAL_PX or common.mean() < 0.3:
                continue
            error, as_it_was = _error(reference, moved, common, stops), _error(reference, frame, common, stops)
            if error < _CLEARLY * as_it_was and error < (after if best is None else 0.99 * after):
                best, seen, inside, after = motion, moved, common, error
    flow = None
    if dense and np.isfinite(after):
        flow = _local_motion(reference, seen, inside, best is None, stops)
    if flow is not None:
        after = _error(reference, np.asarray(moved_by(seen, flow.displacement), np.uint8), inside, stops)
    if best is None and flow is None:
        return Alignment(error_before=before, error_after=before)
    scale = shape[1] / width, shape[0] / height
    if flow is None:
        assert best is not None
        return Alignment(rescale(best, *scale), error_before=before, error_after=after)
    return Alignment(
        None if best is None else rescale(best, *scale),
        _after_homography(flow.displacement, best, height, width) * np.array(scale, np.float32),
        flow.coverage,
        before,
        after,
    )


def _local_motion(reference: U8, frame: U8, inside: NDArray[np.bool_], still: bool, stops: float) -> Flow | None:
    """Dense motion of a registered frame, if something is apart and the flow clearly lowers that where it moves something."""
    alike = np.asarray(np.rint(tone_table(reference, frame, inside)), np.uint8)[frame]
    apart = _apart(reference, alike, stops)
    if np.count_nonzero(apart[inside] > _APART_STOPS) <= _APART_SHARE * reference.size:
        return None
    found = find_flow(reference, alike, inside, still)
    if found is None:
        return None
    moving = inside & (np.hypot(found.displacement[..., 0], found.displacement[..., 1]) > STILL_PX)
    if np.count_nonzero(moving) < _LEAST_PIXELS:
        return None
    bent = np.asarray(moved_by(alike, found.displacement), np.uint8)
    before, after = (float(a[moving].mean()) for a in (apart, _apart(reference, bent, stops)))
    return found if after < min(_LOCALLY * before, before - _LOCALLY_STOPS) else None


def _after_homography(displacement_px: F32, motion: F64 | None, height: int, width: int) -> F32:
    """Flow found in the registered frame, turned into what is added after the homography, in pixels of the unregistered frame."""
    if motion is None:
        return displacement_px
    rows, columns = displacement_px.shape[:2]
    y, x = np.meshgrid((np.arange(rows) + 0.5) * height / rows - 0.5, (np.arange(columns) + 0.5) * width / columns - 0.5, indexing="ij")

    def through(px: NDArray[Any], py: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        depth = motion[2, 0] * px + motion[2, 1] * py + motion[2, 2]
        return (
            (motion[0, 0] * px + motion[0, 1] * py + motion[0, 2]) / depth,
            (motion[1, 0] * px + motion[1, 1] * py + motion[1, 2]) / depth,
        )

    start, end = through(x, y), through(x + displacement_px[..., 0], y + displacement_px[..., 1])
    return np.stack([end[0] - start[0], end[1] - start[1]], axis=-1).astype(np.float32)


def _apart(reference: U8, frame: U8, stops: float) -> F32:
    """(h, w) disagreement in stops of two frames of like tones, each pixel's limited to one; 0 where both clip or both are black.

    Where one clips and the other does not, that counts: often it is all that is seen of a bright thing that moved.
    """
    a, b = (np.asarray(cv2.GaussianBlur(p, (0, 0), 1.2), np.uint8) for p in (reference, frame))
    alike = ((reference <= 1) & (frame <= 1)) | ((reference >= 254) & (frame >= 254))
    return np.asarray(np.minimum(cv2.absdiff(a, b) * np.float32(stops / 255), 1) * ~alike, np.float32)


def _error(reference: U8, frame: U8, where: NDArray[np.bool_], stops: float) -> float:
    """Mean disagreement in stops, each pixel's limited to one stop, over pixels that both measured; NaN where those are too few.

    Both are smoothed a little first: interpolation smooths noise, and that alone must not look like a better fit.
    """
    a, b = (np.asarray(cv2.GaussianBlur(p, (0, 0), 1.2), np.uint8) for p in (reference, frame))
    valid = where & (reference > 1) & (reference < 254) & (frame > 1) & (frame < 254)
    count = int(valid.sum())
    if count < _LEAST_PIXELS:
        return float("nan")
    table = tone_table(a, b, valid)
    difference = np.abs(a[valid] - table[b[valid]]) * np.float32(stops / 255)
    return float(np.minimum(difference, 1).mean())
