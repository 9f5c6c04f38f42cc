"""Stage 3 where it is needed: tiles in which the regressor doubts its estimate are encoded, denoised once and decoded.

What the refiner says is used with care. Only detail is taken from it, and only of brightness: low frequencies and colour stay those of
the estimate. It is blended in by the degradation mask, from the threshold on its card upwards, so that a tile without doubt is not even
looked at and nothing changes there. Where it adds anything and the reference did not measure, light counts as inferred
(`estimate.REFINED_GAIN`), and like everything it is then confined to what the reference measured.
"""

from __future__ import annotations

from collections.abc import Mapping
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

    def __call__(self, inputs: Mapping[str, NDArray[Any]], found: Mapping[str, F32], inner: tuple[slice, slice]) -> F32:
        """(rows, columns) what to add to the network gain of all three channels, of one of the regressor's tiles.

        inputs, found: what the regressor was given and what it said (`model.on_arrays`).   inner: rows and columns of the tile that are
        wanted; elsewhere the answer is 0.   Raises MemoryError where memory does not suffice.
        """
        missing = [k for k in CONTEXT if k not in found]
        if missing:
            raise InputError(f"model says nothing of {missing[0]}, which the refiner needs: export it again (gmodiff train export)")
        mask = found["degradation"][0, 0]
        height, width = inputs["merged"].shape[2:]
        added = np.zeros((height, width), np.float32)
        if self.strength == 0:
            return added
        doubt = np.ascontiguousarray(enlarged_rows(mask, 0, height, height, width))
        share = self.strength * np.clip((doubt - self.threshold) / FULL_FROM, 0, 1)
        wanted = np.zeros_like(share)
        wanted[inner] = share[inner]
        if not wanted.any():
            return added
        gain, short = _given(inputs, found, self.model.card.gain_limit)
        for core, around in _squares(wanted, self.model.card):
            raw = self.answer(_cut(gain, short, found, around), inputs, around)
            change = (raw[0] - gain[(0, slice(None), *around)]).mean(axis=0)
            change -= cv2.GaussianBlur(change, (0, 0), DETAIL_PX, borderType=cv2.BORDER_REFLECT_101)
            within = tuple(slice(c.start - a.start, c.stop - a.start) for c, a in zip(core, around, strict=True))
            added[core] = wanted[core] * change[within]
        if not np.isfinite(added.sum(dtype=np.float64)):
            raise InputError(f"refiner {self.model.card.name} returned values that are not finite: its weights are broken; use --refine 0")
        return added

    def answer(self, square: Mapping[str, F32], inputs: Mapping[str, NDArray[Any]], around: tuple[slice, slice]) -> F32:
        """The model's (1, 3, H, W) network gain for one square; `benchmarks/refiner_ablations.py` puts others in its place.

        square: what it is given (`model.on_arrays`).   inputs: of the whole tile, of which the square is `around`.
        """
        return self.model(square)["refined"]


def _given(inputs: Mapping[str, NDArray[Any]], found: Mapping[str, F32], limit: float) -> tuple[F32, F32]:
    """(1, 3, H, W) network gain of the estimate, and square root of the shortest frame's linear light."""
    white = np.float32(2.0 ** float(inputs["stops"].min()))
    gain = mu_gain(inputs["merged"] * white, inputs["encoded"]) + found["change"]
    shortest = int(inputs["stops"].argmin())
    return np.clip(gain, 0, limit).astype(np.float32), np.sqrt(inputs["linear"][shortest : shortest + 1])


def _squares(wanted: F32, card: Card) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Squares in which something is wanted, and the larger ones that the refiner has to see for them; multiples of its stride.

    All of one size, so that an engine compiles once; at edges they lie farther in.
    """
    height, width = wanted.shape
    sides = [min(CORE_PX + 2 * card.halo_px, s) for s in (height, width)]
    found = []
    for top in range(0, height, CORE_PX):
        for left in range(0, width, CORE_PX):
            core = slice(top, min(top + CORE_PX, height)), slice(left, min(left + CORE_PX, width))
            if wanted[core].any():
                rows, columns = (
                    min(max(c.start - card.halo_px, 0), s - side) for c, s, side in zip(core, (height, width), sides, strict=True)
                )
                found.append((core, (slice(rows, rows + sides[0]), slice(columns, columns + sides[1]))))
    return found


def _cut(gain: F32, short: F32, found: Mapping[str, F32], around: tuple[slice, slice]) -> dict[str, F32]:
    """The refiner's inputs for one square."""

    def part(values: F32, fold: int) -> F32:
        rows, columns = (slice(a.start // fold, a.stop // fold) for a in around)
        return np.ascontiguousarray(values[..., rows, columns])

    height = gain.shape[2]
    maps = {"degradation": found["degradation"]} | {k: found[k] for k in CONTEXT}
    return {"gain": part(gain, 1), "short": part(short, 1)} | {k: part(v, height // v.shape[2]) for k, v in maps.items()}
