"""Feeds the full-size model a bracket and applies its gain map: the published network's place in the pipeline.

The published network takes three frames and assumes a gamma of 2.2. A bracket gives its best short and long frame beside the reference,
each seen as the reference sees it, its light by the bracket's own response and encoded again with that gamma. So the network's light is
the camera's; where the response is gamma 2.2 it gets the stored values. What it answers is the paper's network gain,

    H = (L + 1/64) * (101**G - 1) / 100,     L: the reference, encoded;     H = 1: the short frame's white;     0 <= G <= 1

which ends at H = L + 1/64. Where the merge has more light than that the network cannot speak, and the merge stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gmodiff.align import Alignment, warp_rows
from gmodiff.errors import InputError
from gmodiff.estimate import INVENTED_GAIN, Estimate, refuse_small_tile
from gmodiff.gainmap import OFFSET, mu_gain, radiance_from_mu_gain
from gmodiff.image import Bracket
from gmodiff.model_card import Arrays, Card
from gmodiff.provenance import largest, look_up
from gmodiff.radiometry import CLIPPED_ENCODED, F32
from gmodiff.tiling import for_each_strip

NETWORK_GAMMA = 2.2
"""Camera response that the published weights assume."""
SHORT_CLIPS = 1e-3
"""The short frame is the longest one before the reference in which no more than this part of the pixels clips."""
MIN_TILE_PX = 512
"""Least side of the VAE's tiles, twice the width over which they are blended."""


class GainModel(Protocol):
    """A `model_card.Model` that gives gain maps of three frames; see `full_model.FullModel`."""

    @property
    def card(self) -> Card:
        """What it is."""
        ...

    @property
    def runtime(self) -> str:
        """What runs it, in words."""
        ...

    def __call__(self, inputs: Arrays, *, tile_px: int | None = None, progress: Callable[[float], None] | None = None) -> dict[str, F32]:
        """Encoded frames and stops to gain and degradation."""
        ...


# ---- which frames ---------------------------------------------------------------------------------------------------------


def short_middle_long(bracket: Bracket) -> tuple[int, int, int]:
    """Indices of the three frames that the network gets.

    The middle is the reference, which decides where things are. The short one is the longest before it that hardly clips (SHORT_CLIPS),
    else the shortest; the long one the one after it that lies about as far away as the short one. Where there is none on a side, the
    reference takes its place.
    """
    return three_of(np.log2(bracket.relative_exposures).tolist(), bracket.reference, lambda i: _clipped(bracket, i))


def three_of(stops: Sequence[float], middle: int, clipped: Callable[[int], float]) -> tuple[int, int, int]:
    """The rule of `short_middle_long`. stops: of each frame, in any order.   clipped: share of a frame's pixels with a clipped channel."""
    darker = sorted((i for i in range(len(stops)) if stops[i] < stops[middle]), key=lambda i: -stops[i])
    brighter = (i for i in range(len(stops)) if stops[i] > stops[middle])
    short = next((i for i in darker if clipped(i) <= SHORT_CLIPS), darker[-1] if darker else middle)
    distance = stops[middle] - stops[short] if short != middle else 2.0
    long = min(brighter, key=lambda i: abs(stops[i] - stops[middle] - distance), default=middle)
    return short, middle, long


def _clipped(bracket: Bracket, index: int) -> float:
    """Part of the pixels with a clipped channel; of every few, in large pictures."""
    return clipped_share(bracket.frames[index].encoded)


def clipped_share(codes: NDArray[Any], samples: float = 1e6) -> float:
    """Part of the pixels of (H, W, 3) uint8 or uint16 codes with a clipped channel; of about so many samples, in large pictures."""
    step = max(1, int((codes[..., 0].size / samples) ** 0.5))
    return float((largest(np.ascontiguousarray(codes[::step, ::step])) >= CLIPPED_ENCODED * np.iinfo(codes.dtype).max).mean())


def check_tile(tile_px: int, model: str) -> None:
    """Raise InputError for tiles that are too small to be blended."""
    refuse_small_tile((tile_px, tile_px), MIN_TILE_PX, model)


# ---- in the pipeline ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FullEstimator:
    """The full-size model as what `reconstruct` takes. tile_px: side of the VAE's tiles; None: what `model.sd21` says."""

    model: GainModel
    tile_px: int | None = None

    def __post_init__(self) -> None:
        if self.tile_px is not None:
            check_tile(self.tile_px, self.model.card.name)

    def __call__(
        self, bracket: Bracket, alignments: Sequence[Alignment], merged: F32, *, progress: Callable[[float], None] | None = None
    ) -> Estimate:
        """See `estimate.Estimates`. Raises InputError where memory does not suffice, saying what would."""
        order = short_middle_long(bracket)
        stops = np.log2(np.array([bracket.relative_exposures[i] for i in order], np.float32))
        encoded = _encoded(bracket, alignments, order)
        found = self.model({"encoded": encoded, "stops": stops - stops[0]}, tile_px=self.tile_px, progress=progress)
        gain, mask = found["gain"][0], found["degradation"][0, 0]
        if not np.isfinite(gain.sum(dtype=np.float64)):
            raise InputError(
                f"model {self.model.card.name} returned values that are not finite in {self.model.runtime}: try --exact, or other weights"
            )
        white = np.float32(2.0 ** float(stops[0]))
        height, width = merged.shape[:2]
        radiance, invented = np.empty(merged.shape, np.float32), np.empty((height, width), bool)

        def strip(first: int, end: int) -> None:
            rows = slice(first, end)
            light, reference = merged[rows] * white, encoded[1, :, rows].transpose(1, 2, 0)
            said = gain[:, rows].transpose(1, 2, 0)
            beyond = light > reference + np.float32(OFFSET)  # more than the network can say
            radiance[rows] = np.where(beyond, light, radiance_from_mu_gain(said, reference)) / white
            departs = np.where(beyond, 0, np.abs(said - mu_gain(light, reference)))
            invented[rows] = departs.max(axis=2) > INVENTED_GAIN

        for_each_strip(strip, height)
        return Estimate(
            radiance, np.rint(mask * np.float32(255)).astype(np.uint8), invented, everywhere=True, network=self.model.card.label
        )


def _encoded(bracket: Bracket, alignments: Sequence[Alignment], order: Sequence[int]) -> F32:
    """(3, 3, H, W): frames as seen from the reference, encoded with the network's gamma. What a frame does not cover shows the
    reference's light at that frame's exposure: nothing new.
    """
    height, width = bracket.shape
    linear = np.clip(bracket.response.codes(bracket.frames[0].encoded.dtype), 0, 1)
    table = (linear ** (1 / NETWORK_GAMMA)).astype(np.float32)
    made = np.empty((len(order), 3, height, width), np.float32)
    exposures = bracket.relative_exposures

    def strip(first: int, end: int) -> None:
        rows = slice(first, end)
        reference: NDArray[Any] = look_up(linear, np.ascontiguousarray(bracket.frames[bracket.reference].encoded[rows]))
        for n, i in enumerate(order):
            warped, covered = warp_rows(bracket.frames[i], alignments[i], first, end)
            codes = np.ascontiguousarray(warped)
            if covered is None:
                values = look_up(table, codes)
            else:
                part = covered[..., None]
                light = part * look_up(linear, codes) + (1 - part) * np.minimum(reference * np.float32(exposures[i]), 1)
                values = light ** np.float32(1 / NETWORK_GAMMA)
            made[n, :, rows] = values.transpose(2, 0, 1)

    for_each_strip(strip, height)
    return made
