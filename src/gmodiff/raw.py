"""Camera RAW to linear camera RGB, through LibRaw (rawpy, an extra).

Pixels stay in the camera's own primaries: a channel that reached the sensor's limit is then at 1.0 and the others are untouched.
Converting to sRGB first would mix the clipped channel into all three, and no later stage could tell which values are measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmodiff.decode import Accept, Decoded
from gmodiff.errors import FileFormatError, MissingDependencyError
from gmodiff.exif import ExifFacts
from gmodiff.radiometry import SRGB, ColourSpace

LINEAR_SRGB = ColourSpace("linear srgb", SRGB.chromaticities, "linear")


@dataclass(frozen=True)
class RawDevelopment:
    """What all frames of a RAW bracket must share: white balance factors of R, G, B, G2, and the black level of each, in sensor counts."""

    white_balance: tuple[float, float, float, float]
    black: tuple[int, ...]


def decode_raw(path: Path, accept: Accept, development: RawDevelopment | None) -> tuple[Decoded, ExifFacts, RawDevelopment]:
    """Linear 16-bit camera RGB, upright, every channel clipping at 65535; what LibRaw knows of the exposure; the development used.

    development: of the bracket's first frame; None takes this frame's own. Raises MissingDependencyError without rawpy.
    """
    try:
        import rawpy
    except ImportError as error:
        raise MissingDependencyError("is camera RAW, which needs rawpy: pip install 'gmodiff[raw]'") from error
    try:
        with rawpy.imread(str(path)) as raw:
            accept(int(raw.sizes.width), int(raw.sizes.height))
            black = tuple(int(b) for b in raw.black_level_per_channel or ())
            used = development or RawDevelopment(_white_balance(raw), black)
            colour = _camera_colour(raw)
            options: dict[str, Any] = {}
            if development is not None and development.black and development.black != black:
                options["user_black"] = min(development.black)
            pixels = raw.postprocess(
                output_bps=16,
                gamma=(1, 1),
                no_auto_bright=True,
                # Its default scales every frame by its own brightest pixel: exposures would no longer compare.
                adjust_maximum_thr=0.0,
                user_wb=list(used.white_balance),
                highlight_mode=rawpy.HighlightMode.Clip,
                output_color=rawpy.ColorSpace.sRGB if colour is None else rawpy.ColorSpace.raw,
                **options,
            )
            facts = _facts(raw)
    except rawpy.LibRawError as error:
        reason = error.args[0].decode("ascii", "replace") if error.args and isinstance(error.args[0], bytes) else str(error)
        raise FileFormatError(f"cannot be read as camera RAW: {reason}") from error
    decoded = Decoded(pixels, orientation=1, colour=colour or LINEAR_SRGB, linear=True)
    if colour is None:
        decoded.notes.append("LibRaw knows no colour matrix of this camera; its own sRGB conversion is used")
    return decoded, facts, used


def _white_balance(raw: Any) -> tuple[float, float, float, float]:
    """The camera's factors, else daylight's, else 1; green is 1."""
    for factors in (raw.camera_whitebalance, raw.daylight_whitebalance):
        r, g, b, g2 = (float(f) for f in [*factors, 0, 0, 0, 0][:4])
        if all(math.isfinite(f) and f > 0 for f in (r, g, b)):
            return r / g, 1.0, b / g, (g2 if math.isfinite(g2) and g2 > 0 else g) / g
    return 1.0, 1.0, 1.0, 1.0


def _camera_colour(raw: Any) -> ColourSpace | None:
    """The camera's primaries as a colour space whose white is the balanced neutral; None where no matrix is known."""
    if raw.num_colors != 3:
        return None
    from_xyz = np.asarray(raw.rgb_xyz_matrix, np.float64)[:3]
    to_srgb = np.asarray(raw.color_matrix, np.float64)[:, :3]
    if np.isfinite(from_xyz).all() and abs(np.linalg.det(from_xyz)) > 1e-6:
        neutral = from_xyz @ SRGB.to_xyz.sum(axis=1)
        if (np.abs(neutral) < 1e-6).any():
            return None
        to_xyz = np.linalg.inv(from_xyz / neutral[:, None])
    elif np.isfinite(to_srgb).all() and abs(np.linalg.det(to_srgb)) > 1e-6 and np.abs(to_srgb.sum(axis=1) - 1).max() < 0.02:
        to_xyz = SRGB.to_xyz @ (to_srgb / to_srgb.sum(axis=1, keepdims=True))
    else:
        return None
    return _colour_of(to_xyz)


def _colour_of(to_xyz: NDArray[np.float64]) -> ColourSpace | None:
    """The colour space whose matrix to XYZ this is; None where a column has no chromaticity."""
    total = to_xyz.sum(axis=0)
    if (np.abs(total) < 1e-3).any() or (np.abs(to_xyz[1]) < 1e-4).any():
        return None
    r, g, b = (round_pair(x, y) for x, y in (to_xyz[:2] / total).T)
    colour = ColourSpace("camera rgb", (r, g, b, SRGB.chromaticities[3]), "linear")
    return colour if np.allclose(colour.to_xyz, to_xyz, atol=2e-3) else None


def round_pair(x: float, y: float) -> tuple[float, float]:
    """Six decimals, so that frames of one camera compare equal."""
    return round(float(x), 6), round(float(y), 6)


def _facts(raw: Any) -> ExifFacts:
    other, lens = getattr(raw, "other", None), getattr(raw, "lens", None)

    def positive(name: str) -> float | None:
        value = float(getattr(other, name, 0.0) or 0.0)
        return value if math.isfinite(value) and value > 0 else None

    taken = getattr(other, "timestamp", None)
    return ExifFacts(
        exposure_time_s=positive("shutter_speed"),
        iso=positive("iso_speed"),
        f_number=positive("aperture"),
        lens=str(getattr(lens, "model", "") or "").strip(),
        datetime=taken.strftime("%Y:%m:%d %H:%M:%S") if taken is not None and taken.year > 1980 else "",
    )
