"""Gain maps: the ISO 21496-1 gain between an SDR base and an HDR rendition, and the paper's own network gain.

The two are never mixed: the ISO gain divides display-linear by display-linear light and is stored as log2; the network gain
(`mu_gain`) divides radiance by the *encoded* reference. Radiance is the only road between them. Everything here is log2;
linear boosts exist only in other people's interfaces.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gmodiff.errors import InputError
from gmodiff.radiometry import F32, FloatArray

OFFSET = 1.0 / 64.0
"""Default base and alternate offset (Ultra HDR 1.1, hdrgm:OffsetSDR; libavif uses the same)."""

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class GainMapMetadata:
    """ISO 21496-1 section 5.2: how a stored map turns a base into the alternate (HDR) image. All values are log2 or linear offsets.

    minimum / maximum: log2 gain of stored 0 and 1, per channel.   gamma: stored = normalised ** gamma.
    base_offset / alternate_offset: added before the division.   base_headroom / alternate_headroom: log2(peak / SDR white)
    at which the base, and the whole gain, is shown.
    Raises InputError where a value is not finite, a range is reversed, gamma is not positive, or headrooms are not ordered.
    """

    minimum: Triple
    maximum: Triple
    gamma: Triple = (1.0, 1.0, 1.0)
    base_offset: Triple = (OFFSET, OFFSET, OFFSET)
    alternate_offset: Triple = (OFFSET, OFFSET, OFFSET)
    base_headroom: float = 0.0
    alternate_headroom: float = 1.0
    use_base_colour_space: bool = True

    def __post_init__(self) -> None:
        for name in ("minimum", "maximum", "gamma", "base_offset", "alternate_offset"):
            if not np.isfinite(getattr(self, name)).all():
                raise InputError(f"gain map {name} {getattr(self, name)} is not finite")
        if not np.isfinite([self.base_headroom, self.alternate_headroom]).all():
            raise InputError(f"gain map headrooms {self.base_headroom}, {self.alternate_headroom} are not finite")
        if any(low > high for low, high in zip(self.minimum, self.maximum, strict=True)):
            raise InputError(f"gain map minimum {self.minimum} is above its maximum {self.maximum}")
        if max(map(abs, (*self.minimum, *self.maximum, self.base_headroom, self.alternate_headroom))) > 64:
            raise InputError("gain map range or headroom is beyond 64 stops")
        if min(self.gamma) <= 0:
            raise InputError(f"gain map gamma {self.gamma} must be positive")
        if self.base_headroom < 0 or self.alternate_headroom < 0 or self.base_headroom == self.alternate_headroom:
            raise InputError(
                f"gain map headrooms must be 0 or more and differ, got base {self.base_headroom}, alternate {self.alternate_headroom}"
            )

    def weight(self, display_headroom: float) -> float:
        """How much of the gain a display of this headroom (stops above SDR white) applies, 0..1 (ISO 21496-1, equation 4)."""
        span = self.alternate_headroom - self.base_headroom
        return float(np.clip((display_headroom - self.base_headroom) / span, 0.0, 1.0))

    def quantise(self, log2_gain: FloatArray, dither: FloatArray | None = None) -> NDArray[np.uint8]:
        """(..., 1 or 3) log2 gain to stored codes; dither is added in units of one code before rounding (-0.5..0.5)."""
        channels = log2_gain.shape[-1]
        low = np.asarray(self.minimum[:channels], np.float32)
        span = np.maximum(np.asarray(self.maximum[:channels], np.float32) - low, 1e-6)
        # Rows of samples, not of pixels: NumPy is slow where the innermost dimension is three.
        rows = log2_gain.reshape(*log2_gain.shape[:-2], -1)
        repeats = rows.shape[-1] // channels
        stored = rows - np.tile(low, repeats)
        stored *= np.tile(np.float32(255) / span, repeats).astype(np.float32)
        stored = stored.reshape(log2_gain.shape)
        if self.gamma != (1.0, 1.0, 1.0):
            stored = 255 * (np.clip(stored, 0, 255) / 255) ** np.asarray(self.gamma[:channels], np.float32)
        stored += np.float32(0.5) if dither is None else dither + np.float32(0.5)
        np.clip(stored, 0, 255, out=stored)
        return np.asarray(stored, np.uint8)  # truncation after adding a half rounds

    def log2_gain(self, stored: FloatArray) -> F32:
        """(..., 1 or 3) stored values 0..1 to log2 gain (the inverse of `quantise` up to rounding)."""
        channels = stored.shape[-1]
        low = np.asarray(self.minimum[:channels], np.float32)
        high = np.asarray(self.maximum[:channels], np.float32)
        value = stored if self.gamma == (1.0, 1.0, 1.0) else stored ** (1.0 / np.asarray(self.gamma[:channels], np.float32))
        return np.asarray(low + (high - low) * value, np.float32)


def log2_gain(base: FloatArray, alternate: FloatArray, base_offset: float = OFFSET, alternate_offset: float = OFFSET) -> F32:
    """log2((alternate + alternate_offset) / (base + base_offset)), both display-linear (ISO 21496-1, equation 1)."""
    ratio = (np.maximum(alternate, 0.0) + np.float32(alternate_offset)) / (base + np.float32(base_offset))
    return np.log2(ratio, dtype=np.float32) if ratio.dtype == np.float32 else np.log2(ratio).astype(np.float32)


@dataclass(frozen=True)
class GainMap:
    """A stored gain map: codes (h, w, 1 or 3) uint8, full size or smaller than its base, with its metadata."""

    codes: NDArray[np.uint8] = field(repr=False)
    metadata: GainMapMetadata

    def __post_init__(self) -> None:
        if self.codes.dtype != np.uint8 or self.codes.ndim != 3 or self.codes.shape[2] not in (1, 3):
            raise InputError(f"gain map codes must be (h, w, 1 or 3) uint8, got {self.codes.dtype} of shape {self.codes.shape}")

    @staticmethod
    def between(base: FloatArray, alternate: FloatArray, *, headroom: float | None = None) -> GainMap:
        """The full-size gain map from base to alternate, both (H, W, 3) display-linear, 1.0 = SDR white.

        The range is the gain's own (exact ends), so applying it gives the alternate back to half a code:
        2 ** ((max - min) / 510) - 1 relative. headroom: alternate headroom in stops, default log2 of the alternate's peak.
        """
        if base.shape != alternate.shape:
            raise InputError(f"base {base.shape} and alternate {alternate.shape} must have the same shape")
        gain = log2_gain(base, alternate)
        low, high = gain.min(axis=(0, 1)), gain.max(axis=(0, 1))
        peak = max(float(np.log2(max(float(alternate.max()), 1.0))), 1e-2) if headroom is None else headroom
        metadata = GainMapMetadata(_triple(low), _triple(np.maximum(high, low + 1e-3)), alternate_headroom=peak)
        return GainMap(metadata.quantise(gain), metadata)

    def apply(self, base: FloatArray, headroom: float | None = None) -> F32:
        """What a display shows: (H, W, 3) display-linear base to (H, W, 3) display-linear light, 1.0 = SDR white.

        headroom: of the display, in stops; None means all that the file holds. A smaller map is upsampled bilinearly
        (ISO 21496-1, equations 3 to 5).
        """
        stored = resize_bilinear(self.codes.astype(np.float32) / 255.0, base.shape[0], base.shape[1])
        return apply_log2_gain(base, self.metadata.log2_gain(stored), self.metadata, headroom)


def apply_log2_gain(base: FloatArray, gain: F32, metadata: GainMapMetadata, headroom: float | None = None) -> F32:
    """(H, W, 3) base and (H, W, 1 or 3) log2 gain of the same size to display-linear light (ISO 21496-1, equation 5)."""
    weight = np.float32(metadata.weight(max(metadata.alternate_headroom, metadata.base_headroom) if headroom is None else headroom))
    base_offset = np.asarray(metadata.base_offset, np.float32)
    alternate_offset = np.asarray(metadata.alternate_offset, np.float32)
    shown = (base.astype(np.float32, copy=False) + base_offset) * np.exp2(weight * gain) - alternate_offset
    return np.asarray(np.maximum(shown, 0.0, dtype=np.float32), np.float32)


def resize_bilinear(values: F32, height: int, width: int) -> F32:
    """(h, w, C) to (height, width, C), bilinear with pixel centres at half-integers and edges repeated."""
    if values.shape[:2] == (height, width):
        return values

    def taps(n_in: int, n_out: int) -> tuple[NDArray[np.intp], NDArray[np.intp], F32]:
        position = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
        first = np.minimum(position.astype(np.intp), max(n_in - 2, 0))
        return first, np.minimum(first + 1, n_in - 1), (position - first).astype(np.float32)

    a, b, t = taps(values.shape[0], height)
    rows = values[a] * (1 - t)[:, None, None] + values[b] * t[:, None, None]
    a, b, t = taps(values.shape[1], width)
    return np.asarray(rows[:, a] * (1 - t)[None, :, None] + rows[:, b] * t[None, :, None], np.float32)


def _triple(values: FloatArray) -> Triple:
    r, g, b = (float(v) for v in np.broadcast_to(values, 3))
    return r, g, b


# ---- the paper's network gain -------------------------------------------------------------------------------------------

MU_GAIN = 100.0
"""mu of the network gain (released code of the paper)."""


def mu_gain(radiance: FloatArray, reference_encoded: FloatArray) -> FloatArray:
    """log(1 + mu * H/(L + 1/64)) / log(1 + mu): radiance H over the *encoded* reference L (paper section 3.2, as released)."""
    return np.asarray(np.log1p(MU_GAIN * radiance / (reference_encoded + OFFSET)) / np.log1p(MU_GAIN))


def radiance_from_mu_gain(gain: FloatArray, reference_encoded: FloatArray) -> FloatArray:
    """The inverse of `mu_gain`: (L + 1/64) * ((1 + mu)**G - 1) / mu."""
    return np.asarray((reference_encoded + OFFSET) * np.expm1(gain * np.log1p(MU_GAIN)) / MU_GAIN)
