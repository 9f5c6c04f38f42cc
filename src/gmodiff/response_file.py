"""A camera's response kept in a JSON file, for the next bracket of the same camera.

    {"format": "gmodiff camera response", "version": 1, "name": "estimated",
     "encoded": [0, ..., 1], "linear": {"r": [0, ..., 1], "g": [...], "b": [...]}}

On reading, "linear" or "log2_linear" may be one list for all channels; log2_linear may start above encoded 0.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmodiff.errors import FileFormatError, InputError, OutputError
from gmodiff.radiometry import RESPONSE_NODES, CameraResponse

_FORMAT = "gmodiff camera response"
_MAX_BYTES = 16 << 20
_SAVED = np.unique(np.concatenate([np.arange(0, 64), np.arange(64, RESPONSE_NODES, 4)])) / (RESPONSE_NODES - 1)
"""Encoded positions that are saved: every node in the dark, where a curve bends, every fourth above."""


def save_response_file(response: CameraResponse, path: str | PathLike[str], *, force: bool = False) -> None:
    """Write a response. Raises OutputError where the file exists and force is False, or where it cannot be written."""
    path = Path(path)
    if path.exists() and not force:
        raise OutputError(f"{path} exists already; --force (in Python force=True) replaces it")
    curves = response.at(_SAVED)
    content = {
        "format": _FORMAT,
        "version": 1,
        "name": response.name,
        "encoded": [float(f"{z:.9g}") for z in _SAVED],
        "linear": {name: [float(f"{v:.9g}") for v in curves[:, c]] for c, name in enumerate("rgb")},
    }
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8") as file:
            temporary = file.name
            json.dump(content, file)
            file.write("\n")
        os.replace(temporary, path)
        temporary = ""
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        if temporary:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def load_response_file(path: str | PathLike[str]) -> CameraResponse:
    """Read a response. Raises InputError where the file cannot be read, FileFormatError where it holds no response."""
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise FileFormatError(f"{path.name} is no response file: it is larger than {_MAX_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"response file {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise FileFormatError(f"{path.name} is no response file: it is not UTF-8 text") from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path.name} is no response file: it is not JSON ({error})") from error
    try:
        return _response_of(content, path.name)
    except (InputError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise FileFormatError(f"{path.name} is no response file: {error}") from error


def _response_of(content: Any, name: str) -> CameraResponse:
    if not isinstance(content, dict) or "encoded" not in content or not ("linear" in content or "log2_linear" in content):
        raise ValueError('expected an object with "encoded" and "linear" or "log2_linear"')
    encoded = np.asarray(content["encoded"], np.float64)
    if encoded.ndim != 1 or len(encoded) < 2 or not np.isfinite(encoded).all() or (np.diff(encoded) <= 0).any():
        raise ValueError('"encoded" must be rising numbers')
    if not (0 <= encoded[0] <= 0.1 and 0.9 <= encoded[-1] <= 1):
        raise ValueError(f'"encoded" must run from 0 to 1, it runs from {encoded[0]:g} to {encoded[-1]:g}')
    with np.errstate(over="ignore"):
        linear = _curves(content["linear"]) if "linear" in content else np.exp2(_curves(content["log2_linear"]))
    if linear.shape[0] != len(encoded) or not np.isfinite(linear).all():
        raise ValueError(f"its curves must hold {len(encoded)} finite numbers, one for each encoded value")
    if (linear < 0).any() or (np.diff(linear, axis=0) < 0).any() or (linear[-1] <= 0).any():
        raise ValueError("its curves must not fall, and must end above 0")
    if encoded[0] > 0:
        encoded, linear = np.concatenate([[0.0], encoded]), np.concatenate([np.zeros((1, 3)), linear])
    if encoded[-1] < 1:  # measured curves stop where clipping begins
        slope = (linear[-1] - linear[-2]) / (encoded[-1] - encoded[-2])
        encoded, linear = np.append(encoded, 1.0), np.concatenate([linear, linear[-1:] + slope * (1 - encoded[-1])])
    return CameraResponse.from_samples(encoded, linear / linear[-1], name)


def _curves(value: Any) -> NDArray[np.float64]:
    """(K, 3) of a list of K numbers or an object of three lists r, g, b."""
    lists = [value[c] for c in "rgb"] if isinstance(value, dict) else [value] * 3
    return np.stack([np.asarray(values, np.float64).reshape(len(values)) for values in lists], axis=1)
