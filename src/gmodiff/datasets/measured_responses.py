"""Camera responses measured from real brackets (../shared/data/responses/curves.json), as whole curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmodiff.errors import InputError
from gmodiff.radiometry import CameraResponse

TEST_CAMERAS = ("PENTAX K100D", "Canon EOS REBEL T2i", "Canon EOS 5D Mark II", "Canon PowerShot S45")
"""Cameras kept for testing: neither the response prior (benchmarks/make_response_prior.py) nor training may see their curves."""


def known_cameras(curves: Path) -> list[str]:
    """Cameras that a file of curves holds. Raises InputError where it cannot be read."""
    return sorted({c["camera"] for c in _read(curves)[1]})


def _read(curves: Path) -> tuple[NDArray[np.float64], list[dict[str, Any]]]:
    try:
        stored = json.loads(curves.read_text())
        encoded, found = np.asarray(stored["encoded"], np.float64), list(stored["curves"])
        assert all(isinstance(c["camera"], str) and len(c["log2_linear"]["b"]) == len(encoded) for c in found)
        return encoded, found
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise InputError(f"{curves}: no measured camera responses there ({type(error).__name__}: {error})") from None


def measured_response(curves: Path, camera: str) -> CameraResponse:
    """The response of a camera: the median over its brackets and channels, 0 at black and 1 at white.

    curves: the JSON file with "encoded" (positions 0.03 to 0.975) and "curves" (per bracket: camera, log2_linear of r, g and b).
    Beyond its ends the curve goes on with the exponent (d log linear / d log encoded) it has there. Raises InputError for a camera that
    is not in the file, and for a file that cannot be read.
    """
    encoded, all_curves = _read(curves)
    brackets = [c for c in all_curves if c["camera"] == camera]
    known = known_cameras(curves)
    if not brackets:
        raise InputError(f"{curves} has no curve of {camera!r}: it has {', '.join(known)}")
    position = np.log2(encoded)
    middle = int(np.abs(encoded - 0.5).argmin())
    # Each channel was anchored at its noisiest place, the upper end; at mid-grey the channels of a camera coincide.
    channels = [np.asarray(c["log2_linear"][k]) for c in brackets for k in "rgb"]
    curve = np.median([c - c[middle] for c in channels], axis=0)
    grid = np.linspace(0.0, 1.0, 1025)[1:]
    log2_linear = np.interp(np.log2(grid), position, curve)
    low = np.clip((curve[3] - curve[0]) / (position[3] - position[0]), 0.5, 2.0)
    high = np.clip((curve[-1] - curve[-5]) / (position[-1] - position[-5]), 1.0, 6.0)
    log2_linear += low * np.minimum(np.log2(grid) - position[0], 0) + high * np.maximum(np.log2(grid) - position[-1], 0)
    return CameraResponse.from_samples(np.concatenate([[0], grid]), np.concatenate([[0], np.exp2(log2_linear)]), camera)
