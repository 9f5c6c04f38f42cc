"""Light and numbers: transfer functions, colour spaces, camera responses, noise, and what one encoded value says about radiance.

Words: *encoded* values are as stored in a photo, scaled to 0..1; *linear* values are proportional to the light that fell on
the sensor, 1.0 where the encoding ends; *radiance* is linear divided by the relative exposure, 1.0 = SDR diffuse white.
Imports NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gmodiff.errors import InputError

FloatArray = NDArray[np.floating[Any]]
F32 = NDArray[np.float32]

SDR_WHITE_NITS = 203.0
"""Luminance of SDR diffuse white in cd/m2 (ISO/TS 22028-5, ITU-R BT.2408 section 2.2)."""

CLIPPED_ENCODED = 0.975
"""Encoded values from here on are treated as clipped: JPEG ringing and chroma subsampling move a saturated pixel by a few codes."""


TAPER_ENCODED = 0.90
"""From here to CLIPPED_ENCODED a value is trusted less and less: shoulder, chroma subsampling and a neighbouring channel's clipping."""


# ---- transfer functions -------------------------------------------------------------------------------------------------


def srgb_decode(encoded: FloatArray) -> FloatArray:
    """sRGB encoded 0..1 to linear 0..1 (IEC 61966-2-1, section 5.2)."""
    return np.asarray(np.where(encoded <= 0.04045, encoded / 12.92, ((np.maximum(encoded, 0.0) + 0.055) / 1.055) ** 2.4))


def srgb_encode(linear: FloatArray) -> FloatArray:
    """Linear 0..1 to sRGB encoded 0..1 (IEC 61966-2-1, section 5.3)."""
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055)


def pq_encode(nits: FloatArray) -> FloatArray:
    """Absolute luminance 0..10000 cd/m2 to PQ encoded 0..1 (SMPTE ST 2084, section 5.2)."""
    y = np.clip(nits, 0.0, 10000.0) / 10000.0
    ym = y ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * ym) / (1 + 2392 / 128 * ym)) ** (2523 / 32)


def pq_decode(encoded: FloatArray) -> FloatArray:
    """PQ encoded 0..1 to absolute luminance 0..10000 cd/m2 (SMPTE ST 2084, section 5.1)."""
    em = np.clip(encoded, 0.0, 1.0) ** (32 / 2523)
    return np.asarray(10000.0 * (np.maximum(em - 3424 / 4096, 0.0) / (2413 / 128 - 2392 / 128 * em)) ** (16384 / 2610))


# ---- colour spaces ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ColourSpace:
    """RGB primaries with a D65 white and the transfer function that screens apply to encoded values.

    name: "srgb", "display-p3", "adobe-rgb", "bt2020" or the profile's own name.
    chromaticities: CIE 1931 xy of red, green, blue, white.
    transfer: "srgb", "linear", or an exponent such as "2.19921875" (Adobe RGB (1998), section 4.3.1.2).
    """

    name: str
    chromaticities: tuple[tuple[float, float], tuple[float, float], tuple[float, float], tuple[float, float]]
    transfer: str = "srgb"

    @cached_property
    def to_xyz(self) -> NDArray[np.float64]:
        """(3, 3) matrix from linear RGB to CIE XYZ with Y = 1 at white (SMPTE RP 177, section 3)."""
        columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in self.chromaticities]).T
        scale = np.linalg.solve(columns[:, :3], columns[:, 3])
        return np.asarray(columns[:, :3] * scale, np.float64)

    def matrix_to(self, other: ColourSpace) -> NDArray[np.float64]:
        """(3, 3) matrix from this space's linear RGB to the other's; both whites are D65, so no adaptation."""
        return np.asarray(np.linalg.solve(other.to_xyz, self.to_xyz), np.float64)

    def decode(self, encoded: FloatArray) -> FloatArray:
        """Encoded 0..1 to display-linear 0..1 by this space's transfer function."""
        if self.transfer == "srgb":
            return srgb_decode(encoded)
        if self.transfer == "linear":
            return encoded
        return np.asarray(np.maximum(encoded, 0.0) ** float(self.transfer))


_D65 = (0.3127, 0.3290)
SRGB = ColourSpace("srgb", ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), _D65))
DISPLAY_P3 = ColourSpace("display-p3", ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65))
ADOBE_RGB = ColourSpace("adobe-rgb", ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), _D65), "2.19921875")
BT2020 = ColourSpace("bt2020", ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65))


def luminance_weights(colour: ColourSpace) -> F32:
    """(3,) float32 weights that turn linear RGB into relative luminance Y."""
    return np.asarray(colour.to_xyz[1], np.float32)


# ---- exposure -----------------------------------------------------------------------------------------------------------


def exposure_from_settings(time_s: float, iso: float, f_number: float | None) -> float:
    """Relative exposure t*ISO/100/N^2, in seconds at ISO 100 and f/1 (ISO 2720, ISO 12232).

    f_number None or 0 means unknown (a manual lens): 1 is used, which cancels within a bracket taken at one aperture.
    Raises InputError where time or ISO cannot be meant (not finite, zero, negative, or beyond 1e-7..1e5 s).
    """
    if not (np.isfinite(time_s) and 1e-7 <= time_s <= 1e5):
        raise InputError(f"exposure time {time_s:g} s cannot be right (expected 1e-7 to 1e5 s)")
    if not (np.isfinite(iso) and 1 <= iso <= 1e8):
        raise InputError(f"ISO {iso:g} cannot be right (expected 1 to 1e8)")
    n = f_number if f_number is not None and np.isfinite(f_number) and f_number > 0 else 1.0
    return time_s * iso / 100.0 / (n * n)


# ---- camera response ----------------------------------------------------------------------------------------------------

RESPONSE_NODES = 4097
"""Nodes of a tabulated response: uniform in encoded value, ends included, so every 8-bit code k/255 lies within 1/4096."""


@dataclass(frozen=True)
class CameraResponse:
    """Inverse camera response: encoded value 0..1 to linear 0..1, one monotone curve per channel.

    table: (RESPONSE_NODES, 3) float64, linear value at encoded = i/(RESPONSE_NODES-1); table[0] = 0, table[-1] = 1.
    name: "srgb", "gamma2.2", "linear", "estimated", or where it came from.
    Raises InputError where the table has another shape, is not finite, or is not increasing.
    """

    table: NDArray[np.float64] = field(repr=False)
    name: str

    def __post_init__(self) -> None:
        table = np.asarray(self.table, np.float64)
        if table.shape != (RESPONSE_NODES, 3):
            raise InputError(f"camera response table has shape {table.shape}, expected ({RESPONSE_NODES}, 3)")
        if not np.isfinite(table).all() or (np.diff(table, axis=0) < 0).any():
            raise InputError("camera response must be finite and never decreasing")
        if np.abs(table[0]).max() > 1e-9 or np.abs(table[-1] - 1).max() > 1e-6:
            raise InputError("camera response must run from 0 at encoded 0 to 1 at encoded 1")
        object.__setattr__(self, "table", table)

    @staticmethod
    def named(name: str) -> CameraResponse:
        """One of "srgb", "linear" or "gammaX" (encoded ** X), the same for all channels. Raises InputError for other names."""
        encoded = np.linspace(0.0, 1.0, RESPONSE_NODES)
        if name == "srgb":
            curve = srgb_decode(encoded)
        elif name == "linear":
            curve = encoded
        elif name.startswith("gamma"):
            try:
                exponent = float(name.removeprefix("gamma"))
            except ValueError:
                exponent = float("nan")
            if not 0.2 <= exponent <= 5:
                raise InputError(f"response {name!r}: expected an exponent from 0.2 to 5 after 'gamma', as in gamma2.2")
            curve = encoded**exponent
        else:
            raise InputError(f"unknown response {name!r}: expected srgb, linear, gamma2.2 or another gammaX")
        return CameraResponse(np.repeat(np.asarray(curve, np.float64)[:, None], 3, axis=1), name)

    @staticmethod
    def from_samples(encoded: Sequence[float] | FloatArray, linear: FloatArray, name: str) -> CameraResponse:
        """From (K,) encoded positions and (K, 3) or (K,) linear values; resampled, made monotone, scaled to 1 at encoded 1."""
        z = np.asarray(encoded, np.float64)
        values = np.asarray(linear, np.float64)
        values = values if values.ndim == 2 else np.repeat(values[:, None], 3, axis=1)
        grid = np.linspace(0.0, 1.0, RESPONSE_NODES)
        table = np.stack([np.interp(grid, z, values[:, c]) for c in range(3)], axis=1)
        table = np.maximum.accumulate(table - table[:1], axis=0)
        return CameraResponse(table / np.maximum(table[-1:], 1e-300), name)

    @property
    def is_linear(self) -> bool:
        """True where linear = encoded for every channel."""
        return bool(np.abs(self.table - np.linspace(0, 1, RESPONSE_NODES)[:, None]).max() < 1e-9)

    def at(self, encoded: FloatArray) -> NDArray[np.float64]:
        """(..., 3) linear values of (...,) encoded positions, the same positions for each channel."""
        grid = np.linspace(0.0, 1.0, RESPONSE_NODES)
        return np.stack([np.interp(encoded, grid, self.table[:, c]) for c in range(3)], axis=-1)

    def codes(self, dtype: np.dtype[Any]) -> F32:
        """(256 or 65536, 3) float32: the linear value of every code of an integer dtype."""
        top = np.iinfo(dtype).max
        return self.at(np.arange(top + 1) / top).astype(np.float32)

    def linearise(self, encoded: NDArray[Any]) -> F32:
        """(H, W, 3) encoded image, uint8 / uint16 over its full range or float 0..1, to linear float32 0..1."""
        if encoded.dtype.kind == "u":
            table = self.codes(encoded.dtype)
            codes = encoded
        elif self.is_linear:
            return np.asarray(np.clip(encoded, 0.0, 1.0), np.float32)
        else:
            table = self.codes(np.dtype(np.uint16))
            codes = np.rint(np.clip(encoded, 0.0, 1.0) * 65535.0).astype(np.uint16)
        out = np.empty(encoded.shape, np.float32)
        for c in range(3):
            out[..., c] = table[:, c].take(codes[..., c])
        return out

    def encode(self, linear: FloatArray) -> F32:
        """(..., 3) linear to encoded 0..1, float32: the forward response. Values outside 0..1 are clipped first."""
        grid = np.linspace(0.0, 1.0, RESPONSE_NODES)
        x = np.clip(linear, 0.0, 1.0)
        return np.stack([np.interp(x[..., c], self.table[:, c], grid) for c in range(3)], axis=-1).astype(np.float32)


# ---- noise and the radiance interval ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoiseModel:
    """Standard deviation of a frame's samples.

    variance in linear units = read**2 + shot * linear; encoded is the deviation added after the response (quantisation, JPEG),
    in encoded units 0..1 (Granados et al. 2010, "Optimal HDR reconstruction with linear digital cameras", equation 1,
    with the post-response term added for developed photos).
    """

    shot: float = 1e-4
    read: float = 8e-4
    encoded: float = 1.0 / 255.0

    @staticmethod
    def of_photo(iso: float | None, bits: int, lossy: bool) -> NoiseModel:
        """A usual camera's noise at this ISO (400 where unknown) in photos of 8 or 16 bits, lossy (JPEG, HEIC) or not.

        Full scale at ISO 100 is taken as 40000 electrons, and read noise as 8 electrons there: 3 before the amplifier, which grow with
        the ISO as shot noise does, and the rest behind it, which does not. That is between a phone's and a full-frame camera's published
        figures, in which read noise in electrons falls as the ISO rises. In-camera noise reduction makes real photos a little
        cleaner. Taken for more, the darks of a noisy photo prove nothing, and what moved there is lost.
        """
        gain = (iso if iso is not None and np.isfinite(iso) and iso > 0 else 400.0) / 100.0
        after = (1.0 if lossy else 0.3) / 255.0 if bits == 8 else 0.3 / 65535.0
        return NoiseModel(shot=gain / 40000.0, read=float(np.hypot(3.0 * gain, 7.4)) / 40000.0, encoded=after)

    def sigma_linear(self, linear: FloatArray, slope: FloatArray) -> FloatArray:
        """Deviation in linear units at given linear values, with slope = d linear / d encoded there."""
        return np.sqrt(self.read**2 + self.shot * np.maximum(linear, 0.0) + (slope * self.encoded) ** 2)


INTERVAL_SIGMAS = 3.0
"""Half width of a radiance interval, in standard deviations of the noise (99.7 % of Gaussian noise)."""


def response_slope(table: FloatArray) -> NDArray[np.float64]:
    """(K, 3) d linear / d encoded of a (K, 3) table of linear values on a uniform grid over 0..1."""
    return np.gradient(np.asarray(table, np.float64), 1.0 / (len(table) - 1), axis=0)


def deviation_of_codes(response: CameraResponse, noise: NoiseModel, dtype: np.dtype[Any]) -> F32:
    """(codes, 3) float32: standard deviation of the linear value of each code of uint8 or uint16 frames, above 0."""
    table = response.at(np.arange(np.iinfo(dtype).max + 1) / np.iinfo(dtype).max)
    return np.asarray(noise.sigma_linear(table, response_slope(table)), np.float32)


class IntervalTables(NamedTuple):
    """What each code of a frame says about its linear value, (codes, 3) float32 each.

    low, high: bracket the true linear value. low_beside_clipped: replaces low where the brightest channel of the pixel is clipped:
    cameras let the other channels of a clipped pixel drift towards white, so a high code proves little there, a low one still does.
    """

    low: F32
    high: F32
    low_beside_clipped: F32


def radiance_interval_codes(response: CameraResponse, noise: NoiseModel, dtype: np.dtype[Any]) -> IntervalTables:
    """The radiance interval of every code: half a code of quantisation plus INTERVAL_SIGMAS of noise either way.

    A clipped code (CLIPPED_ENCODED and up) has high = inf, and from TAPER_ENCODED high rises towards that without a step; a code
    whose interval reaches black has low = 0.
    """
    top = np.iinfo(dtype).max
    encoded = np.arange(top + 1) / top
    half = 0.5 / top
    linear = response.at(encoded)
    sigma = INTERVAL_SIGMAS * noise.sigma_linear(linear, response_slope(linear))
    low = np.maximum(response.at(np.maximum(encoded - half, 0.0)) - sigma, 0.0)
    high = response.at(np.minimum(encoded + half, 1.0)) + sigma
    clipped = encoded >= CLIPPED_ENCODED
    # Cameras bend and blend their last codes. A bound that fell away all at once would draw a contour where it does.
    high /= np.sqrt(1 - np.minimum(clipping_nearness(encoded), 1 - 1e-6))[:, None]
    high[clipped] = np.inf
    # A clipped channel was at least at the clipping threshold; how far above, nobody measured.
    low[clipped] = np.minimum(low[clipped], response.at(np.array([CLIPPED_ENCODED]))[0])
    # More light never means a lower interval; a kink in the curve may say so by a hair, so widen to the monotone hull.
    low = np.minimum.accumulate(low[::-1], axis=0)[::-1]
    high = np.maximum.accumulate(high, axis=0)
    t = np.clip((encoded - 0.5) / 0.4, 0, 1)
    beside = low * (1 - t * t * (3 - 2 * t))[:, None]
    return IntervalTables(low.astype(np.float32), high.astype(np.float32), beside.astype(np.float32))


def clipping_nearness(encoded: FloatArray) -> FloatArray:
    """0 up to TAPER_ENCODED, 1 from CLIPPED_ENCODED, linear between."""
    return np.asarray(np.clip((encoded - TAPER_ENCODED) / (CLIPPED_ENCODED - TAPER_ENCODED), 0, 1))
