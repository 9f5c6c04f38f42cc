"""Stage 3 where it is needed: squares in which the regressor doubts its estimate are encoded, denoised once and decoded.

What the refiner says is used with care. Only detail is taken from it, and only of brightness: low frequencies and colour stay those of
the estimate. It is blended in by the degradation mask, from the threshold on its card upwards, so that a square without doubt is not even
looked at and nothing changes there. The estimate is finished first, so refining changes nothing of how it is made. Where it adds anything
and the reference did not measure, light counts as inferred (`estimate.REFINED_GAIN`), and like everything it is then confined to what the
reference measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gmodiff.errors import InputError
from gmodiff.gainmap import mu_gain
from gmodiff.model_card import Card, Model
from gmodiff.radiometry import F32
from gmodiff.upsampling import enlarged_rows

CONTEXT = ("context_8", "context_16", "context_32")
"""What the regressor says beside its estimate: features at these fractions of the side."""
CORE_PX = 192
"""Side of the squares that are refined or not, of what the network is given."""
DETAIL_PX = 8.0
"""Standard deviation of the blur whose result counts as low frequency, which stays as estimated; finer structure is what is taken."""
THRESHOLD = 0.5
"""Degradation, 0..1, from which a place is refined, unless the card says otherwise; training counts with it."""
FULL_FROM = 0.15
"""How far above the threshold the mask has to be for what the refiner says to be taken whole; with thresholds above 0.85 it never is."""


@dataclass(frozen=True)
class Square:
    """What is refined at once. core: its rows and columns.   around: those the refiner has to see for it, multiples of CONTEXT's cells.
    picture: rows and columns of the whole.
    """

    core: tuple[slice, slice]
    around: tuple[slice, slice]
    picture: tuple[int, int]


@dataclass(frozen=True)
class Refinement:
    """A refiner in the estimate's place for one.

    model: from `load_model`, a card of kind "refiner".   strength: 0 (nothing changes) to 1.
    """

    model: Model = field(repr=False)
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.model.card.kind != "refiner":
            raise InputError(f"model {self.model.card.name} is no refiner but a {self.model.card.kind}: give the card of a refiner")
        if not 0 <= self.strength <= 1:
            raise InputError(f"refine {self.strength:g}: expected 0 (nothing is refined) to 1")

    @property
    def threshold(self) -> float:
        """Degradation, 0..1, from which a place is refined."""
        return float(self.model.card.facts["threshold"])

    def check_fits(self, card: Card) -> None:
        """Raises InputError where the refiner was trained beside another regressor than this card's."""
        if self.model.card.facts["guide"] != card.facts.get("weights"):
            raise InputError(
                f"refiner {self.model.card.name} was trained beside other weights than those of model {card.name}: "
                "train one for it (gmodiff train onestep), or use --refine 0"
            )

    def kept(self, inputs: Mapping[str, NDArray[Any]], said: Mapping[str, F32]) -> dict[str, NDArray[Any]]:
        """What has to be kept of a tile until all are done, from what the regressor was given and said (`model.on_arrays`): "gain", the
        network gain of the estimate, "short", the square root of the shortest frame's linear light, and CONTEXT; in half precision.

        Raises InputError for a regressor that says nothing of its context, or nonsense.
        """
        missing = [k for k in CONTEXT if k not in said]
        if missing:
            raise InputError(f"model says nothing of {missing[0]}, which the refiner needs: export it again (gmodiff train export)")
        if not all(np.abs(said[k]).max() < np.finfo(np.float16).max for k in CONTEXT):
            raise InputError(
                "the network says values of its context that are not finite, or enormous: its weights are broken; use --refine 0"
            )
        gain, short = _given(inputs, said, self.model.card.gain_limit)
        whole = {"gain": gain, "short": short} | {k: said[k] for k in CONTEXT}
        return {name: values.astype(np.float16) for name, values in whole.items()}

    def __call__(self, found: Mapping[str, NDArray[Any]], *, progress: Callable[[float], None] | None = None) -> F32 | None:
        """(rows, columns) what to add to the network gain of all three channels; None for nothing.

        found: "degradation" and what was kept, (1, C, rows, columns) of the whole picture, whose sides are multiples of the regressor's
        stride.   Raises MemoryError where memory does not suffice, InputError for weights that are broken.
        """
        height, width = found["gain"].shape[2:]
        doubt = np.ascontiguousarray(enlarged_rows(found["degradation"][0, 0], 0, height, height, width))
        wanted = np.asarray(self.strength * np.clip((doubt - self.threshold) / FULL_FROM, 0, 1), np.float32)
        squares = _squares(wanted, self.model.card)
        if not squares:
            return None
        added = np.zeros((height, width), np.float32)
        for n, square in enumerate(squares):
            if progress is not None:
                progress(n / len(squares))
            given = {name: _part(values, square) for name, values in found.items()}
            moved = (self.answer(given, square)[0] - given["gain"][0]).mean(axis=0)
            moved -= cv2.GaussianBlur(moved, (0, 0), DETAIL_PX, borderType=cv2.BORDER_REFLECT_101)
            within = tuple(slice(c.start - a.start, c.stop - a.start) for c, a in zip(square.core, square.around, strict=True))
            added[square.core] = wanted[square.core] * moved[within]
        if not np.isfinite(added.sum(dtype=np.float64)):
            raise InputError(f"refiner {self.model.card.name} returned values that are not finite: its weights are broken; use --refine 0")
        return added

    def answer(self, given: Mapping[str, F32], square: Square) -> F32:
        """The model's (1, 3, H, W) network gain for one square; `benchmarks/refiner_ablations.py` puts others in its place.

        given: what it is given (`model.on_arrays`).
        """
        return self.model(given)["refined"]


def _given(inputs: Mapping[str, NDArray[Any]], said: Mapping[str, F32], limit: float) -> tuple[F32, F32]:
    """(1, 3, H, W) network gain of the estimate, and square root of the shortest frame's linear light."""
    white = np.float32(2.0 ** float(inputs["stops"].min()))
    gain = mu_gain(inputs["merged"] * white, inputs["encoded"]) + said["change"]
    shortest = int(inputs["stops"].argmin())
    return np.clip(gain, 0, limit).astype(np.float32), np.sqrt(inputs["linear"][shortest : shortest + 1])


def _squares(wanted: F32, card: Card) -> list[Square]:
    """Squares in which something is wanted, row by row.

    All of one size, so that an engine compiles once; at edges their surroundings lie farther in.
    """
    picture = height, width = wanted.shape
    sides = [min(CORE_PX + 2 * card.halo_px, s) for s in picture]
    found = []
    for top in range(0, height, CORE_PX):
        for left in range(0, width, CORE_PX):
            core = slice(top, min(top + CORE_PX, height)), slice(left, min(left + CORE_PX, width))
            if wanted[core].any():
                rows, columns = (min(max(c.start - card.halo_px, 0), s - side) for c, s, side in zip(core, picture, sides, strict=True))
                found.append(Square(core, (slice(rows, rows + sides[0]), slice(columns, columns + sides[1])), picture))
    return found


def _part(values: NDArray[Any], square: Square) -> F32:
    """(1, C, rows, columns) of what is there in cells of one or several pixels, with a square's surroundings."""
    cell = square.picture[0] // values.shape[2]
    rows, columns = (slice(a.start // cell, a.stop // cell) for a in square.around)
    return np.ascontiguousarray(values[..., rows, columns], np.float32)
