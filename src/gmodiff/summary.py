"""What a merge came to, in plain values: what the command prints as JSON, and the page and a batch keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from typing import Any

from gmodiff import __version__
from gmodiff.image import Bracket, HDRImage
from gmodiff.model_card import Model


def summary(
    bracket: Bracket,
    image: HDRImage,
    model: Model | None,
    *,
    outputs: Sequence[str | PathLike[str]],
    seconds: float,
) -> dict[str, Any]:
    """Facts of a finished merge as numbers, strings, lists and dicts; what is not known is None.

    model: what estimated, None for the classical merge.   seconds: it took, from reading to writing.
    """
    calibration = bracket.calibration
    stops = [round(math.log2(e), 2) for e in bracket.relative_exposures]
    assert image.gain_map is not None
    height, width = bracket.shape

    def plain(values: tuple[float, ...]) -> list[float | None]:
        return [round(v, 3) if math.isfinite(v) else None for v in values]

    return {
        "outputs": [str(o) for o in outputs],
        "width": width,
        "height": height,
        "seconds": round(seconds, 2),
        "frames": [{"name": f.name, "stops": s} for f, s in zip(bracket.frames, stops, strict=True)],
        "reference": bracket.frames[bracket.reference].name,
        "exposure_source": calibration.exposure_source,
        "response": bracket.response.name,
        "disagreement_stops": plain(calibration.residual_stops),
        "disagreement_srgb_stops": plain(calibration.srgb_residual_stops),
        "brightest_stops": round(image.metadata["brightest_stops"], 3),
        "headroom_stops": round(image.gain_map.metadata.alternate_headroom, 3),
        "look": image.metadata["look"],
        "base": image.metadata["base"],
        "provenance": image.metadata["provenance"],
        "alignment": image.metadata["alignment"],
        "notes": list(calibration.notes),
        "version": __version__,
        "model": None
        if model is None
        else {
            "name": model.card.name,
            "weights": model.card.fingerprint if model.card.sha256 else None,
            "runtime": model.runtime,
            "refine": image.metadata["refine"],
            "noise_reduced": image.metadata["noise_reduced"],
        },
    }
