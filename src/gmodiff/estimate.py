"""The learned estimate of one bracket: frames aligned strip by strip, the network tile by tile, radiance at the end.

The network says what to add to the gain of the classical merge (`model.regressor`); this module feeds it and applies the answer:

    H = (H_merged + o) * (1 + mu)**change - o,     o = (L + 1/64) / mu,     mu = 100,     H relative to the short frame's white

which is `gainmap.radiance_from_mu_gain(mu_gain(H_merged, L) + change, L)` without its logarithm. Tiles overlap by twice what the network
sees around a pixel, so that nobody can tell where one ended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from gmodiff.align import Alignment, warp_rows
from gmodiff.errors import InputError
from gmodiff.gainmap import MU_GAIN, OFFSET
from gmodiff.image import Bracket
from gmodiff.provenance import INFERRED, REFERENCE, look_up
from gmodiff.radiometry import F32
from gmodiff.runtime import Card, Model

TILE_PX = (768, 1536)
"""(rows, columns) of what the network gets at once, its surroundings included, unless the caller says otherwise."""

INVENTED_GAIN = 0.06
"""A pixel that the reference did not measure counts as inferred where the network's own residual, which no frame accounts for, moves
the network gain by more than this: 0.4 stops over a clipped reference."""


@dataclass(frozen=True)
class Estimate:
    """radiance: (H, W, 3) float32, 1.0 = the reference's white.   degradation: (H, W) uint8, 0..255, how doubtful that is.
    invented: (H, W) bool, where the network's residual says more than the frames. None where the model does not say.
    """

    radiance: F32 = field(repr=False)
    degradation: NDArray[np.uint8] | None = field(default=None, repr=False)
    invented: NDArray[np.bool_] | None = field(default=None, repr=False)

    def relabelled(self, provenance: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W) provenance of the merge, with what the network invented in unmeasured places marked as inferred."""
        if self.invented is None:
            return provenance
        return np.where(self.invented & (provenance != REFERENCE), np.uint8(INFERRED), provenance)


class Estimates(Protocol):
    """A model's place in the pipeline."""

    def __call__(
        self, bracket: Bracket, alignments: Sequence[Alignment], merged: F32, *, progress: Callable[[float], None] | None = None
    ) -> Estimate:
        """merged: (H, W, 3) float32 radiance of the classical merge; the estimate's has its shape."""
        ...


def estimator(model: Model | Estimates) -> Estimates:
    """What `reconstruct` is given: a model from `load_model`, or anything that estimates by itself."""
    return Estimator(model) if isinstance(getattr(model, "card", None), Card) else model  # type: ignore[arg-type, return-value]


@dataclass(frozen=True)
class Estimator:
    """A model in the pipeline's place for one. tile: (rows, columns) in pixels, rounded up to the network's stride."""

    model: Model
    tile: tuple[int, int] = TILE_PX

    def __post_init__(self) -> None:
        least = 4 * self.model.card.halo_px
        if min(self.tile) < least:
            raise InputError(f"tile {self.tile[1]}x{self.tile[0]}: expected {least} pixels a side or more for model {self.model.card.name}")

    def __call__(
        self, bracket: Bracket, alignments: Sequence[Alignment], merged: F32, *, progress: Callable[[float], None] | None = None
    ) -> Estimate:
        """merged: (H, W, 3) radiance of the classical merge. Raises InputError where memory does not suffice for a tile."""
        card = self.model.card
        height, width = bracket.shape
        order = frames_for(bracket, card.max_frames)
        rows, columns = (_tile(size, tile, card) for size, tile in ((height, self.tile[0]), (width, self.tile[1])))
        radiance, mask = np.empty((height, width, 3), np.float32), _Mask(height, width)
        invented = np.empty((height, width), bool)
        bands, stripes = _cores(height, rows, card.halo_px), _cores(width, columns, card.halo_px)
        feed = _Feed(bracket, alignments, merged, order)
        for n, (first, end) in enumerate(bands):
            top = _start(first, height, rows, card)
            band = feed.rows(top, min(top + rows, height))
            for m, (left_core, right_core) in enumerate(stripes):
                left = _start(left_core, width, columns, card)
                inputs = {k: _padded(v, left, rows, columns) for k, v in band.items()}
                try:
                    found = self.model(inputs | {"stops": feed.stops})
                except MemoryError:
                    raise InputError(f"not enough memory for tiles of {columns}x{rows} pixels: give a smaller --tile") from None
                inner = slice(first - top, end - top), slice(left_core - left, right_core - left)
                core = slice(first, end), slice(left_core, right_core)
                radiance[core] = _radiance(
                    merged[core], found["change"][0].transpose(1, 2, 0)[inner], feed.encoded(*core), feed.white, card
                )
                mask.put(found["degradation"][0, 0], inner, core, rows)
                invented[core] = found["residual"][0, 0][inner] > INVENTED_GAIN
                if progress is not None:
                    progress((n * len(stripes) + m + 1) / (len(bands) * len(stripes)))
        return Estimate(radiance, mask.enlarged(), invented)


def frames_for(bracket: Bracket, most: int) -> list[int]:
    """Indices of the frames the network gets, the reference first: all, or the shortest, the longest and those between, evenly."""
    others = [i for i in range(len(bracket.frames)) if i != bracket.reference]
    if len(others) > most - 1:
        others = [others[k] for k in np.unique(np.rint(np.linspace(0, len(others) - 1, most - 1)).astype(int))]
    return [bracket.reference, *others]


class _Mask:
    """The degradation mask, put together at the size the network gives it, enlarged once at the end."""

    def __init__(self, height: int, width: int) -> None:
        self._shape = height, width
        self._small: NDArray[np.uint8] | None = None
        self._cell = 1

    def put(self, part: F32, inner: tuple[slice, slice], core: tuple[slice, slice], tile_rows: int) -> None:
        """part: 0..1, of a tile of tile_rows; inner of it belongs to core of the picture; their starts are multiples of the cell."""
        if self._small is None:
            self._cell = tile_rows // part.shape[0]
            self._small = np.zeros([-(-s // self._cell) for s in self._shape], np.uint8)
        cells = [[slice(s.start // self._cell, -(-s.stop // self._cell)) for s in area] for area in (inner, core)]
        self._small[tuple(cells[1])] = np.rint(part[tuple(cells[0])] * np.float32(255))

    def enlarged(self) -> NDArray[np.uint8]:
        """(H, W) uint8, bilinear."""
        assert self._small is not None
        rows, columns = self._small.shape
        large = cv2.resize(self._small, (columns * self._cell, rows * self._cell), interpolation=cv2.INTER_LINEAR)
        return np.ascontiguousarray(large[: self._shape[0], : self._shape[1]])


class _Feed:
    """Bands of a bracket as the network's inputs."""

    def __init__(self, bracket: Bracket, alignments: Sequence[Alignment], merged: F32, order: list[int]) -> None:
        self._bracket, self._alignments, self._merged, self._order = bracket, alignments, merged, order
        self._table = bracket.response.codes(bracket.frames[0].encoded.dtype)
        self._top = np.float32(np.iinfo(bracket.frames[0].encoded.dtype).max)
        self.stops = np.log2(np.array([bracket.relative_exposures[i] for i in order], np.float32))
        self.white = np.float32(2.0 ** float(self.stops.min()))

    def rows(self, first: int, end: int) -> dict[str, F32]:
        """Every input but stops, for rows first..end, channels in front of rows."""
        count, width = len(self._order), self._bracket.shape[1]
        linear = np.empty((count, 3, end - first, width), np.float32)
        coverage = np.ones((count, 1, end - first, width), np.float32)
        for n, i in enumerate(self._order):
            warped, covered = warp_rows(self._bracket.frames[i], self._alignments[i], first, end)
            for c, plane in enumerate(cv2.split(np.ascontiguousarray(warped))):
                linear[n, c] = look_up(self._table[:, c], plane)
            if covered is not None:
                coverage[n, 0] = covered
        return {
            "linear": linear,
            "coverage": coverage,
            "merged": np.ascontiguousarray(self._merged[first:end].transpose(2, 0, 1))[None],
            "encoded": self.encoded(slice(first, end), slice(None)).transpose(2, 0, 1)[None],
        }

    def encoded(self, rows: slice, columns: slice) -> F32:
        """(rows, columns, 3) of the reference as stored, 0..1."""
        return np.asarray(self._bracket.frames[self._bracket.reference].encoded[rows, columns] / self._top, np.float32)


def _tile(size: int, wanted: int, card: Card) -> int:
    """Side of a tile: what is wanted, or the whole side if that is smaller; a multiple of the stride."""
    return -(-min(size, wanted) // card.stride) * card.stride


def _cores(size: int, tile: int, halo: int) -> list[tuple[int, int]]:
    """What each tile is trusted with: all but a halo at sides where another tile goes on. Bounds are multiples of the stride, so
    that every tile folds pixels into cells as the whole picture would.
    """
    bounds = [0]
    if size > tile:
        bounds.append(tile - halo)
        while size - bounds[-1] > tile - halo:
            bounds.append(bounds[-1] + tile - 2 * halo)
    return list(pairwise([*bounds, size]))


def _start(first: int, size: int, tile: int, card: Card) -> int:
    """Where the tile of a core begins. The last one ends where the whole picture would: what lies beyond its edge counts too."""
    end = -(-size // card.stride) * card.stride
    return max(min(first - card.halo_px, end - tile), 0)


def _padded(values: F32, left: int, rows: int, columns: int) -> F32:
    """Columns from `left` of a band, filled up to the tile by repeating its edge."""
    part = values[..., left : left + columns]
    below, beside = rows - part.shape[-2], columns - part.shape[-1]
    if below or beside:
        part = np.pad(part, [(0, 0)] * (part.ndim - 2) + [(0, below), (0, beside)], mode="edge")
    return np.ascontiguousarray(part)


def _radiance(merged: F32, change: F32, encoded: F32, white: np.float32, card: Card) -> F32:
    """(rows, columns, 3) radiance from the merge's and what is added to its gain; white: 1 / the short frame's white."""
    offset = (encoded + np.float32(OFFSET)) * np.float32(1 / (MU_GAIN * white))
    value = (merged + offset) * np.exp(change * np.float32(np.log1p(MU_GAIN))) - offset
    return np.asarray(np.clip(value, 0, offset * np.float32(np.expm1(card.gain_limit * np.log1p(MU_GAIN)))))
