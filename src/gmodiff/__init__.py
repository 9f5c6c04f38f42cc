"""GMODiff: a bracket of ordinary photos in, a true HDR photo out, without inventing what was measured.

    import gmodiff
    bracket = gmodiff.read_bracket(["a.jpg", "b.jpg", "c.jpg"])
    gmodiff.write(gmodiff.reconstruct(bracket, gmodiff.load_model()), "scene.jpg")

Importing this package imports nothing else: each name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gmodiff.bracket import read_bracket
    from gmodiff.errors import GMODiffError
    from gmodiff.gainmap import GainMap
    from gmodiff.image import Bracket, HDRImage
    from gmodiff.pipeline import reconstruct
    from gmodiff.reader import read
    from gmodiff.runtime import load_model
    from gmodiff.writer import write

__all__ = ["Bracket", "GMODiffError", "GainMap", "HDRImage", "load_model", "read", "read_bracket", "reconstruct", "write"]

_HOMES = {
    "Bracket": "image",
    "GMODiffError": "errors",
    "GainMap": "gainmap",
    "HDRImage": "image",
    "load_model": "runtime",
    "read": "reader",
    "read_bracket": "bracket",
    "reconstruct": "pipeline",
    "write": "writer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
