"""Renditions: what a screen shows of a radiance. The HDR rendition (a look), the SDR base made from it, and the gain map between.

A photo's look is its camera's response applied forward. Up to SDR white the HDR rendition is exactly that; above, where the
photo had clipped, it goes on along a curve that starts with the response's own slope at white and keeps the hue.
The SDR base compresses those highlights locally, so that their detail survives and the mid-tones stay where they were.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gmodiff.errors import InputError
from gmodiff.gainmap import OFFSET, GainMap, GainMapMetadata
from gmodiff.image import Bracket
from gmodiff.radiometry import (
    ADOBE_RGB,
    BT2020,
    DISPLAY_P3,
    F32,
    SRGB,
    CameraResponse,
    ColourSpace,
    srgb_decode,
    srgb_encode,
)
from gmodiff.tiling import for_each_strip
from gmodiff.upsampling import enlarged_rows

DEFAULT_HEADROOM_STOPS = 3.0
"""What good phones and laptop screens reach in a dim room; more only costs gain-map precision."""
MIN_HEADROOM_STOPS = 0.25
"""A gain map needs some headroom to be valid; a bracket without highlights gets this much and a gain of nearly nothing."""
KNEE = 0.5
"""Display-linear light (sRGB code 188) up to which the SDR base equals the rendition: all mid-tones."""
MAX_HEADROOM_STOPS = 6.0
"""More than any screen has."""
SHOULDER_RELAX_STOPS = 1.0
"""How far above white the log slope takes to go from the response's own to 1 (proportional to light)."""
NEAR_BLACK = 2.0 / 255.0
NEAR_BLACK_GAIN_STOPS = 2.3
"""Where the encoded base is below NEAR_BLACK its JPEG error would blow a gain up: it is capped there (as libultrahdr does)."""
LOCAL_GRID_PX = 8
"""The local brightness that drives the SDR base is worked out on cells of this size."""
EDGE_STOPS_SQUARED = 0.5
"""Variance of local brightness from which it is an edge of the SDR base (epsilon of the guided filter) rather than detail. With 3,
skies had a bright rim of 40 pixels beside buildings and rocks, and a grey cloud between; with 0.25 windows and water lose contrast."""

_ROOT_LEVELS = 65535  # curves are tabulated over the square root of light: fine steps in the darks, where the eye is


@dataclass(frozen=True)
class CameraLook:
    """The photo's own look, extended above SDR white. Made by `camera_look` or `linear_look`.

    curves: (65536, 3) float32, display-linear over sqrt(radiance) for radiance 0..1, per channel, native primaries.
    slope_at_white: log-log slope of the curves at 1.   content_stops: log2 of the brightest radiance.
    headroom: stops above SDR white that the brightest radiance is shown at.
    to_output: (3, 3) matrix from native to output primaries, or None where they are the same.
    to_native: (3, 3) matrix applied first, where the radiance is not held in native primaries; None where it is.
    """

    name: str
    curves: F32 = field(repr=False)
    slope_at_white: float
    content_stops: float
    headroom: float
    to_output: F32 | None = field(default=None, repr=False)
    to_native: F32 | None = field(default=None, repr=False)

    def extend_stops(self, stops: F32) -> F32:
        """Stops above white in the scene (0 and up) to stops above white on screen, smooth and rising.

        The slope starts at `slope_at_white` and relaxes to 1 within SHOULDER_RELAX_STOPS; where that would pass `headroom`
        at the content's brightest, it saturates towards it as v / sqrt(1 + (k v)**2).
        """
        raw = self._raw(stops)
        raw_top = float(self._raw(np.float32(self.content_stops)))
        if raw_top <= self.headroom:
            return np.asarray(np.minimum(raw, np.float32(self.headroom)), np.float32)  # a stray pixel beyond the content
        k2 = np.float32(1 / self.headroom**2 - 1 / raw_top**2)
        return np.asarray(np.minimum(raw / np.sqrt(1 + k2 * raw * raw), np.float32(self.headroom)), np.float32)

    def _raw(self, stops: Any) -> Any:
        relax = np.float32(SHOULDER_RELAX_STOPS)
        return stops - np.float32(1 - self.slope_at_white) * relax * (1 - np.exp(-stops / relax))

    def __call__(self, radiance: F32) -> F32:
        """(rows, W, 3) radiance to display-linear light, 1.0 = SDR white; see `image.Look`."""
        if self.to_native is not None:
            radiance = np.asarray(cv2.transform(radiance, self.to_native), np.float32)
        planes = cv2.split(radiance)
        above = np.maximum(cv2.max(cv2.max(planes[0], planes[1]), planes[2]), np.float32(1))
        gain = np.ones_like(above)
        lit = above > 1
        highlights = bool(lit.any())
        if highlights:
            gain[lit] = np.exp2(self.extend_stops(np.log2(above[lit])))
        shown = []
        for c, plane in enumerate(planes):
            plane = np.maximum(plane, 0)
            if highlights:
                plane = plane / above
            np.sqrt(plane, out=plane)
            plane *= _ROOT_LEVELS
            plane = self.curves[:, c].take(plane.astype(np.uint16))
            if highlights:
                plane *= gain
            shown.append(plane)
        merged = cv2.merge(shown)
        if self.to_output is not None:
            merged = np.maximum(cv2.transform(merged, self.to_output), 0)
        return np.asarray(merged, np.float32)


def camera_look(
    response: CameraResponse, colour: ColourSpace, content_stops: float, max_headroom: float = DEFAULT_HEADROOM_STOPS
) -> CameraLook:
    """The look of photos with this response, shown in this colour space; content_stops is log2 of the brightest radiance."""
    root = np.linspace(0, 1, _ROOT_LEVELS + 1)
    encoded = response.encode(np.repeat((root * root)[:, None], 3, axis=1))
    curves = np.asarray(colour.decode(encoded.astype(np.float64)), np.float32)
    # The chord over the last third of a stop, mean of the channels: the very end of a fitted response is its least certain part.
    near = curves[int(_ROOT_LEVELS * np.sqrt(0.8))].mean()
    slope = float(np.clip(np.log2(1 / max(float(near), 1e-3)) / np.log2(1 / 0.8), 0.25, 1.5))
    return _finished("camera", curves, slope, colour, content_stops, max_headroom)


def linear_look(colour: ColourSpace, content_stops: float, max_headroom: float = DEFAULT_HEADROOM_STOPS) -> CameraLook:
    """Scene-linear light as it is, compressed only where it passes the headroom."""
    root = np.linspace(0, 1, _ROOT_LEVELS + 1)
    return _finished("linear", np.repeat((root * root)[:, None], 3, axis=1), 1.0, colour, content_stops, max_headroom)


def _finished(name: str, curves: Any, slope: float, colour: ColourSpace, content_stops: float, max_headroom: float) -> CameraLook:
    output = output_colour(colour)
    matrix = None if output == colour else colour.matrix_to(output).astype(np.float32)
    stops = max(content_stops, 0.0)
    look = CameraLook(name, np.asarray(curves, np.float32), slope, stops, max_headroom, matrix)
    headroom = float(np.clip(look.extend_stops(np.array(stops, np.float32)), MIN_HEADROOM_STOPS, max_headroom))
    return replace(look, headroom=headroom)


def output_colour(colour: ColourSpace) -> ColourSpace:
    """Primaries a photo is shown in: sRGB and Display P3 stay, wider or unusual ones are shown in Display P3."""
    return colour if colour in (SRGB, DISPLAY_P3) else SRGB if colour.chromaticities == SRGB.chromaticities else DISPLAY_P3


def in_published_primaries(radiance: F32, look: CameraLook, colour: ColourSpace) -> tuple[CameraLook, ColourSpace]:
    """Bring (H, W, 3) radiance, in place, to primaries that other programs know; returns the look and colour that go with it.

    sRGB, Display P3, Adobe RGB and BT.2020 stay. A camera's own RGB, whose primaries may be imaginary, becomes Display P3; values
    outside it are kept, negative ones too.
    """
    if colour.chromaticities in [space.chromaticities for space in (SRGB, DISPLAY_P3, ADOBE_RGB, BT2020)]:
        return look, colour
    matrix = colour.matrix_to(DISPLAY_P3).astype(np.float32)

    def strip(first: int, end: int) -> None:
        radiance[first:end] = cv2.transform(radiance[first:end], matrix)

    for_each_strip(strip, radiance.shape[0])
    return replace(look, to_native=np.linalg.inv(matrix).astype(np.float32)), DISPLAY_P3


@dataclass(frozen=True)
class Rendered:
    """base: (H, W, 3) uint8 SDR photo, sRGB transfer, in `colour` primaries. gain_map: full size, three channels."""

    base: NDArray[np.uint8] = field(repr=False)
    gain_map: GainMap = field(repr=False)
    look: CameraLook
    colour: ColourSpace


def render(
    radiance: F32,
    bracket: Bracket,
    *,
    look: str = "camera",
    base: str = "tonemap",
    max_headroom: float = DEFAULT_HEADROOM_STOPS,
    progress: Callable[[float], None] | None = None,
) -> Rendered:
    """Render (H, W, 3) radiance: look "camera" or "linear", base "tonemap" or "reference" (the reference frame's own pixels).

    max_headroom: stops above SDR white that the HDR rendition may use, 0.25 to 6.
    Raises InputError for other values.
    """
    if look not in ("camera", "linear"):
        raise InputError(f"look {look!r}: expected camera or linear")
    if base not in ("tonemap", "reference"):
        raise InputError(f"base {base!r}: expected tonemap or reference")
    if not MIN_HEADROOM_STOPS <= max_headroom <= MAX_HEADROOM_STOPS:
        raise InputError(f"headroom {max_headroom:g} stops: expected {MIN_HEADROOM_STOPS:g} to {MAX_HEADROOM_STOPS:g}")
    content_stops = float(np.log2(max(_robust_peak(radiance), 1.0)))
    maker = (
        camera_look(bracket.response, bracket.colour, content_stops, max_headroom)
        if look == "camera"
        else linear_look(bracket.colour, content_stops, max_headroom)
    )
    colour = output_colour(bracket.colour)
    height, width = radiance.shape[:2]
    reference = bracket.frames[bracket.reference].encoded
    own = None
    if base == "reference":
        own = _as_base(reference, bracket.colour, colour)
    local = None if own is not None else _LocalTone(radiance, maker)
    log2_base = np.log2(np.asarray(srgb_decode(np.arange(256) / 255.0), np.float32) + np.float32(OFFSET))

    def base_rows(first: int, end: int, shown: F32) -> NDArray[np.uint8]:
        if own is not None:
            return own[first:end]
        assert local is not None
        return local.base_rows(first, end, shown)

    def gain_rows(base_part: NDArray[np.uint8], shown: F32) -> F32:
        """log2 gain of a strip, by `gainmap.log2_gain` with the base's logarithm from a table."""
        gain = shown + np.float32(OFFSET)
        np.log2(gain, out=gain)
        gain -= cv2.LUT(base_part, np.repeat(log2_base[None, :, None], 3, axis=2))
        dark = base_part < NEAR_BLACK * 255
        if dark.any():
            gain[dark] = np.minimum(gain[dark], np.float32(NEAR_BLACK_GAIN_STOPS))
        return gain

    metadata = _gain_range(radiance, maker, base_rows, gain_rows)
    out = np.empty((height, width, 3), np.uint8)
    codes = np.empty((height, width, 3), np.uint8)
    dither = np.random.Generator(np.random.PCG64(0)).random((256, width, 3), np.float32) - np.float32(0.5)

    def strip(first: int, end: int) -> None:
        shown = maker(radiance[first:end])
        out[first:end] = base_rows(first, end, shown)
        gain = gain_rows(out[first:end], shown)
        codes[first:end] = metadata.quantise(gain, dither[first % 128 : first % 128 + end - first])

    for_each_strip(strip, height, progress=progress)
    return Rendered(out, GainMap(codes, metadata), maker, colour)


def _robust_peak(radiance: F32) -> float:
    """The brightest radiance that is not a stray pixel: 99.99th percentile of the largest channel."""
    step = max(1, int(np.sqrt(radiance[..., 0].size / 1e6)))  # about a million pixels will do
    red, green, blue = (radiance[::step, ::step, c] for c in range(3))
    return float(np.percentile(np.maximum(np.maximum(red, green), blue), 99.99))


def _as_base(encoded: NDArray[Any], native: ColourSpace, output: ColourSpace) -> NDArray[np.uint8]:
    """The reference's own pixels as an 8-bit base with sRGB transfer in output primaries; unchanged where they already are that."""
    if native == output and encoded.dtype == np.uint8:
        return np.asarray(encoded, np.uint8)
    out = np.empty(encoded.shape, np.uint8)
    matrix = native.matrix_to(output).astype(np.float32)
    table = np.asarray(native.decode(np.linspace(0, 1, np.iinfo(encoded.dtype).max + 1)), np.float32)

    def strip(first: int, end: int) -> None:
        linear = np.clip(cv2.transform(table.take(encoded[first:end]), matrix), 0, 1)
        out[first:end] = _ENCODE.take((np.sqrt(linear) * _ROOT_LEVELS).astype(np.uint16))

    for_each_strip(strip, encoded.shape[0])
    return out


_ENCODE = np.rint(np.asarray(srgb_encode(np.linspace(0, 1, _ROOT_LEVELS + 1) ** 2)) * 255).astype(np.uint8)


class _LocalTone:
    """The SDR base: mid-tones as they are, highlights compressed by the brightness of their neighbourhood.

    The neighbourhood's brightness is log2 of the largest channel through a self-guided filter (He et al. 2013, "Guided image filtering",
    section 3), worked out on a small grid and applied at full size through its linear coefficients ("Fast guided filter",
    He and Sun 2015), so edges keep their place and a sky has nearly no rim beside what is dark.
    """

    def __init__(self, radiance: F32, look: CameraLook) -> None:
        height, width = radiance.shape[:2]
        small = (max(-(-width // LOCAL_GRID_PX), 2), max(-(-height // LOCAL_GRID_PX), 2))
        step = LOCAL_GRID_PX // 2 if min(height, width) > 64 * LOCAL_GRID_PX else 1  # four pixels are enough for the mean of a cell
        rows = [_log2_brightest(look(np.ascontiguousarray(radiance[r : r + 1024 : step, ::step]))) for r in range(0, height, 1024)]
        log2_small = np.asarray(cv2.resize(np.concatenate(rows), small, interpolation=cv2.INTER_AREA), np.float32)
        radius = max(small) // 24 + 1
        slope, offset = _guided_coefficients(log2_small, radius, EDGE_STOPS_SQUARED)
        self._slope, self._offset, self._shape = slope, offset, (height, width)
        self._peak = max(2.0**look.headroom, 1.0 + 1e-3)
        levels = np.linspace(_LOG2_FLOOR, look.headroom + 1, 2048)
        light = 2.0**levels
        self._gain = (_roll_off(light, self._peak) / light).astype(np.float32)
        self._levels = (float(levels[0]), float(levels[1] - levels[0]))

    def base_rows(self, first: int, end: int, shown: F32) -> NDArray[np.uint8]:
        """(rows, W, 3) uint8 of rows first..end, whose rendition is `shown`."""
        height, width = self._shape
        slope, offset = (enlarged_rows(grid, first, end, height, width) for grid in (self._slope, self._offset))
        neighbourhood = slope * _log2_brightest(shown) + offset
        start, step = self._levels
        neighbourhood -= np.float32(start)
        neighbourhood *= np.float32(1 / step)
        np.clip(neighbourhood, 0, len(self._gain) - 1, out=neighbourhood)
        gain = self._gain.take(neighbourhood.astype(np.uint16))
        planes = cv2.split(shown)
        for plane in planes:
            plane *= gain
        brightest = cv2.max(cv2.max(planes[0], planes[1]), planes[2])
        over = brightest > _SOFT_CLIP
        if over.any():
            # What local detail lifts beyond white is bent back: half way all channels alike, which keeps the hue, half way each for
            # itself, which leads to white, as every camera shows a glint.
            m = np.asarray(brightest[over], np.float32)
            scale = _soft_clip(m) / m
            for plane in planes:
                light = np.asarray(plane[over], np.float32)
                plane[over] = 0.5 * (light * scale + np.where(light > _SOFT_CLIP, _soft_clip(light), light))
        for plane in planes:
            np.sqrt(plane, out=plane)
            plane *= _ROOT_LEVELS
        return np.asarray(cv2.merge([_ENCODE.take(plane.astype(np.uint16)) for plane in planes]), np.uint8)


_LOG2_FLOOR = -12.0


def _log2_brightest(shown: F32) -> F32:
    """(rows, W) log2 of the largest channel: the one that has to fit under white, so that colours need no second compression."""
    red, green, blue = cv2.split(shown)
    brightest = np.maximum(cv2.max(cv2.max(red, green), blue), np.float32(2.0**_LOG2_FLOOR))
    return np.asarray(np.log2(brightest), np.float32)


_SOFT_CLIP = 0.85


def _soft_clip(light: F32) -> F32:
    span = np.float32(1 - _SOFT_CLIP)
    over = light - np.float32(_SOFT_CLIP)
    return np.float32(_SOFT_CLIP) + over * span / (over + span)


def _roll_off(light: NDArray[Any], peak: float) -> NDArray[Any]:
    """Identity to KNEE, then a logarithm that leaves it with slope 1 and reaches 1 at peak; below peak always rising."""
    if peak <= 1:
        return light
    target = (peak - KNEE) / (1 - KNEE)
    low, high = 1e-6, 1e9  # a / log(1 + a) rises from 1 without bound: bisect for the a that gives slope 1 at the knee
    for _ in range(200):
        a = np.sqrt(low * high)
        low, high = (a, high) if a / np.log1p(a) < target else (low, a)
    t = np.maximum(light - KNEE, 0) / (peak - KNEE)
    return np.where(light <= KNEE, light, KNEE + (1 - KNEE) * np.log1p(a * t) / np.log1p(a))


def _guided_coefficients(guide: F32, radius: int, epsilon: float) -> tuple[F32, F32]:
    """Coefficients (a, b) of the self-guided filter a * guide + b; epsilon in the guide's squared units."""
    window = (2 * radius + 1, 2 * radius + 1)

    def mean(values: F32) -> F32:
        return np.asarray(cv2.blur(values, window, borderType=cv2.BORDER_REFLECT), np.float32)

    average = mean(guide)
    variance = np.maximum(mean(guide * guide) - average * average, 0)
    a = np.asarray(variance / (variance + np.float32(epsilon)), np.float32)
    return mean(a), mean(np.asarray((1 - a) * average, np.float32))


def _gain_range(
    radiance: F32,
    look: CameraLook,
    base_rows: Callable[[int, int, F32], NDArray[np.uint8]],
    gain_rows: Callable[[NDArray[np.uint8], F32], F32],
) -> GainMapMetadata:
    """Range of the gain over rows at most four apart; the headroom is the look's."""
    height = radiance.shape[0]
    lows, highs = [], []
    for first in range(0, height, int(np.clip(height // 500, 1, 4))):
        shown = look(radiance[first : first + 1])
        gain = gain_rows(base_rows(first, first + 1, shown), shown).reshape(-1, 3)
        lows.append(np.percentile(gain, 0.1, axis=0))
        highs.append(gain.max(axis=0))
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    high = np.maximum(high, low + 0.05)
    return GainMapMetadata(
        minimum=(float(low[0]), float(low[1]), float(low[2])),
        maximum=(float(high[0]), float(high[1]), float(high[2])),
        base_offset=(OFFSET,) * 3,
        alternate_offset=(OFFSET,) * 3,
        alternate_headroom=look.headroom,
    )
