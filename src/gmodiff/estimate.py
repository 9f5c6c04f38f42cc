"""The learned estimate of one bracket: frames aligned strip by strip, the network tile by tile, radiance at the end.

The network says what to add to the gain of the classical merge (`model.regressor`); this module feeds it and applies the answer:

    H = (H_merged + o) * (1 + mu)**change - o,     o = (L + 1/64) / mu,     mu = 100,     H relative to the short frame's white

which is `gainmap.radiance_from_mu_gain(mu_gain(H_merged, L) + change, L)` without its logarithm. Tiles overlap by twice what the network
sees around a pixel, so that nobody can tell where one ended. When all have answered, the refiner works on what is doubtful (`refine`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from gmodiff.align import Alignment, warp_rows
from gmodiff.errors import InputError
from gmodiff.gainmap import MU_GAIN, OFFSET
from gmodiff.image import Bracket
from gmodiff.model_card import Card, Model, rest
from gmodiff.noise_reduction import NoiseReduction
from gmodiff.provenance import INFERRED, REFERENCE, largest, look_up
from gmodiff.radiometry import F32
from gmodiff.refine import Refinement
from gmodiff.tiling import STRIP_ROWS, for_each_strip, tile_cores, tile_shape, tile_start
from gmodiff.upsampling import enlarged_rows

TILE_AREA_PX = 1_200_000
"""Most that the network gets at once, its surroundings included, unless the caller says otherwise; it decides about memory."""

ESTIMATED_PX = 3_000_000
"""About how many pixels of a picture the network is given unless the caller says otherwise: larger ones are made smaller by a whole
number, 12 megapixels by 2 a side, 24 by 3. The merge, and with it detail, stays at full size; time and memory stop growing."""

DEEPEST_STOPS = 6.5
"""How much shorter than the reference's an exposure may be for the network. Its gain is relative to the shortest frame's white; seen from
a white that lies higher still, all that the reference shows is nearly 0, and a thousandth of gain is a tint. Shorter frames have their
say in the merge, and what only they saw stays as merged."""

BESIDE_BRIGHT_PX = 16
"""How far around what only those shorter frames saw the merge stands too."""

ESTIMATING = 0.7
"""About how much of the time the estimate takes where some of it is refined, for whoever watches."""

INVENTED_GAIN = 0.06
"""A pixel that the reference did not measure counts as inferred where the network's own residual, which no frame accounts for, moves
the network gain by more than this: 0.4 stops over a clipped reference."""

REFINED_GAIN = 1e4 * INVENTED_GAIN
"""What counts as the residual wherever the refiner added anything, however little: what it says is invention. So much that it stays above
INVENTED_GAIN where a smaller picture's residual is enlarged, at the far end of what was added too."""


@dataclass(frozen=True)
class Estimate:
    """radiance: (H, W, 3) float32, 1.0 = the reference's white.   degradation: (H, W) uint8, 0..255, how doubtful that is.
    invented: (H, W) bool, where the network's residual says more than the frames, or its refiner said anything. None where the model does
    not say.
    everywhere: follow it where nothing moved too (`stillness`): of a model that is chosen for what it invents.
    noise_reducer: what reduces noise of the estimate once it is constrained (`noise_reduction`); None for nothing.
    network: name of the model and hash of its weights (`Card.label`), for what a file says of itself; None for what has none.
    refine: strength, 0..1, of its refiner.   fresh: radiance is nobody else's, and what follows may work in place.
    """

    radiance: F32 = field(repr=False)
    degradation: NDArray[np.uint8] | None = field(default=None, repr=False)
    invented: NDArray[np.bool_] | None = field(default=None, repr=False)
    everywhere: bool = False
    noise_reducer: NoiseReduction | None = field(default=None, repr=False)
    network: str | None = None
    refine: float = 0.0
    fresh: bool = False

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
    own = getattr(model, "estimator", None)  # the full-size model is fed in another way
    if own is not None:
        return own()  # type: ignore[no-any-return]
    return Estimator(model) if isinstance(getattr(model, "card", None), Card) else model  # type: ignore[arg-type, return-value]


def check_tile(tile: tuple[int, int], card: Card) -> None:
    """Raise InputError for (rows, columns) of which a network's surroundings would leave less than half."""
    refuse_small_tile(tile, 4 * card.halo_px, card.name)


def refuse_small_tile(tile: tuple[int, int], least: int, model: str) -> None:
    """Raise InputError for (rows, columns) below what a model needs, in pixels."""
    if min(tile) < least:
        size = str(tile[0]) if tile[0] == tile[1] else f"{tile[1]}x{tile[0]}"
        raise InputError(f"tile {size}: expected {least} pixels a side or more for model {model}")


@dataclass(frozen=True)
class Estimator:
    """A model in the pipeline's place for one.

    tile: (rows, columns) in pixels that the network gets at once at most; None: what covers the picture with least work.
    shrink: 1, 2 ...: how many pixels a side become one for the network; None: so many that
    about ESTIMATED_PX remain.   refinement: what works on the estimate where it is doubtful; None for nothing.
    keep_noise: leave out the network that reduces noise where the reference measured (`noise_reduction`), if the model has one.
    """

    model: Model
    tile: tuple[int, int] | None = None
    shrink: int | None = None
    refinement: Refinement | None = None
    keep_noise: bool = False

    def __post_init__(self) -> None:
        if self.model.card.kind != "regressor":
            raise InputError(
                f"model {self.model.card.name} is a {self.model.card.kind}, which works beside a regressor: give --model compact"
            )
        if self.refinement is not None:
            self.refinement.check_fits(self.model.card)
        _ = self._reducer  # what is wrong with it is said before there is work to lose
        if self.tile is not None:
            check_tile(self.tile, self.model.card)
        if self.shrink is not None and self.shrink < 1:
            raise InputError(f"shrink {self.shrink}: expected 1 (full size) or more")

    @property
    def _reducer(self) -> Model | None:
        # Anything that answers as a model does will do; only those from `load_model` may have one.
        return None if self.keep_noise else getattr(self.model, "noise_reducer", None)

    def __call__(
        self, bracket: Bracket, alignments: Sequence[Alignment], merged: F32, *, progress: Callable[[float], None] | None = None
    ) -> Estimate:
        """merged: (H, W, 3) radiance of the classical merge. Raises InputError where memory does not suffice for a tile or for the refiner,
        and for broken weights.
        """
        try:
            return self._estimated(bracket, alignments, merged, progress)
        finally:
            rest(self.model)

    def _estimated(
        self, bracket: Bracket, alignments: Sequence[Alignment], merged: F32, progress: Callable[[float], None] | None
    ) -> Estimate:
        card, reducer = self.model.card, self._reducer
        order = frames_for(bracket, card.max_frames)
        left_out = bool(bracket.relative_exposures[0] < min(bracket.relative_exposures[i] for i in order))
        shrink = self.shrink or max(1, round((merged[..., 0].size / ESTIMATED_PX) ** 0.5))
        feed = _Feed(bracket, alignments, merged, order, shrink, card.stride)
        height, width = feed.shape
        rows, columns = tile_shape(height, width, self.tile, TILE_AREA_PX, card.halo_px, card.stride)
        band = feed.band(rows)
        change, residual = np.empty((height, width, 3), np.float32), np.empty((height, width), np.float32)
        whole = _Whole(feed.whole)
        refinement = self.refinement if self.refinement is not None and self.refinement.strength > 0 else None
        bands, stripes = tile_cores(height, rows, card.halo_px), tile_cores(width, columns, card.halo_px)
        share = 1.0 if refinement is None else ESTIMATING
        for n, (first, end) in enumerate(bands):
            top = tile_start(first, height, rows, card.halo_px, card.stride)
            for m, (left_core, right_core) in enumerate(stripes):
                if progress is not None:
                    progress(share * (n * len(stripes) + m) / (len(bands) * len(stripes)))
                if m == 0:
                    feed.fill(band, top)
                left = tile_start(left_core, width, columns, card.halo_px, card.stride)
                inputs = {k: np.ascontiguousarray(v[..., left : left + columns]) for k, v in band.items()} | {"stops": feed.stops}
                core = slice(first, end), slice(left_core, right_core)
                inner = slice(first - top, end - top), slice(left_core - left, right_core - left)
                try:
                    said = self.model(inputs)
                    _refuse_broken(said, card)
                    kept = {"degradation": said["degradation"]} | ({} if refinement is None else refinement.kept(inputs, said))
                    whole.put(kept, (top, left), core, (rows, columns))
                except MemoryError:
                    less = "" if refinement is None else ", or --refine 0"
                    raise InputError(f"not enough memory for tiles of {columns}x{rows} pixels: give a smaller --tile{less}") from None
                change[core] = said["change"][0].transpose(1, 2, 0)[inner]
                residual[core] = said["residual"][0, 0][inner]
                del inputs, said, kept  # before there are others
        del band  # as large as what follows
        rest(self.model)
        if refinement is not None:
            _refine(refinement, whole.made, change, residual, progress)
        if progress is not None:
            progress(1.0)
        mask = np.rint(whole.made["degradation"][0, 0] * np.float32(255)).astype(np.uint8)
        del whole
        return replace(
            _applied(feed, change, residual, mask, card, left_out=left_out),
            noise_reducer=None if reducer is None else NoiseReduction(reducer, self.tile),
            network=card.label,
            refine=0.0 if self.refinement is None else self.refinement.strength,
        )


def _refine(
    refinement: Refinement,
    found: Mapping[str, NDArray[Any]],
    change: F32,
    residual: F32,
    progress: Callable[[float], None] | None,
) -> None:
    """Put what the refiner adds on change, and mark in residual what it touched, in place."""
    told = None if progress is None else lambda done: progress(ESTIMATING + (1 - ESTIMATING) * done)
    try:
        added = refinement(found, progress=told)
    except MemoryError:
        raise InputError("not enough memory for the refiner: give --refine 0") from None
    finally:
        rest(refinement.model)
    if added is not None:
        added = added[: change.shape[0], : change.shape[1]]
        change += added[..., None]
        residual[added != 0] = REFINED_GAIN


def _refuse_broken(said: Mapping[str, F32], card: Card) -> None:
    """Raise InputError unless what a network said of a tile is finite."""
    if not all(np.isfinite(said[name].sum(dtype=np.float64)) for name in ("change", "residual", "degradation")):
        raise InputError(f"model {card.name} returned values that are not finite: its weights are broken; take another --model")


def _applied(feed: _Feed, change: F32, residual: F32, mask: NDArray[np.uint8], card: Card, *, left_out: bool) -> Estimate:
    """The network's answer at the size of the picture. mask: 0..255, of `feed.whole` in larger cells.   left_out: shorter frames than the
    network got have a say in the merge.
    """
    full = height, width = feed.merged.shape[:2]
    over = tuple(s * feed.shrink for s in feed.shape)  # what the shrunken pixels cover: the picture, and up to shrink - 1 pixels more
    radiance = change if feed.shrink == 1 else np.empty((*full, 3), np.float32)
    degradation, invented = np.empty(full, np.uint8), np.empty(full, bool)
    cell = feed.whole[0] // mask.shape[0]
    mask = mask[: -(-feed.shape[0] // cell), : -(-feed.shape[1] // cell)]
    covered = mask.shape[0] * cell * feed.shrink, mask.shape[1] * cell * feed.shrink

    def strip(first: int, end: int) -> None:
        rows = slice(first, end)
        moved = change[rows] if feed.shrink == 1 else enlarged_rows(change, first, end, *over)[:, :width]
        made_up = residual[rows] if feed.shrink == 1 else enlarged_rows(residual, first, end, *over)[:, :width]
        radiance[rows] = _radiance(feed.merged[rows], moved, feed.encoded(rows), feed.white, card)
        invented[rows] = made_up > INVENTED_GAIN
        if left_out:
            share = _below_white(feed, first, end)
            radiance[rows] = feed.merged[rows] + share[..., None] * (radiance[rows] - feed.merged[rows])
            invented[rows] &= share > 0.5
        degradation[rows] = np.rint(enlarged_rows(mask, first, end, *covered)[:, :width])

    for_each_strip(strip, height)
    return Estimate(radiance, degradation, invented, fresh=True)


def frames_for(bracket: Bracket, most: int) -> list[int]:
    """Indices of the frames the network gets, the reference first: all that are not too short for it (DEEPEST_STOPS), at least one,
    or the shortest of those, the longest and those between, evenly.
    """
    others = [i for i in range(len(bracket.frames)) if i != bracket.reference]
    deep = [i for i in others if bracket.relative_exposures[i] < 2.0**-DEEPEST_STOPS]
    others = others[min(len(deep), len(others) - 1) :]
    if len(others) > most - 1:
        others = [others[k] for k in np.unique(np.rint(np.linspace(0, len(others) - 1, most - 1)).astype(int))]
    return [bracket.reference, *others]


class _Whole:
    """Pictures in cells of one or several pixels, put together from tiles. made: by name, (1, C, rows, columns), of its parts' type."""

    def __init__(self, picture: tuple[int, int]) -> None:
        """picture: rows and columns that the network gets in all, multiples of its stride."""
        self._picture = picture
        self.made: dict[str, NDArray[Any]] = {}

    def put(self, parts: Mapping[str, NDArray[Any]], start: tuple[int, int], core: tuple[slice, slice], tile: tuple[int, int]) -> None:
        """parts: of the tile that begins at start; core of the picture, whose bounds are multiples of every cell, is taken from it, and
        of the last tile of a row or column all up to the end.
        """
        for name, part in parts.items():
            cell = tile[0] // part.shape[2]
            if name not in self.made:
                self.made[name] = np.empty((1, part.shape[1], *(p // cell for p in self._picture)), part.dtype)
            ends = [p if s + t >= p else c.stop for c, s, t, p in zip(core, start, tile, self._picture, strict=True)]
            here = [slice(c.start // cell, end // cell) for c, end in zip(core, ends, strict=True)]
            inner = [slice(h.start - s // cell, h.stop - s // cell) for h, s in zip(here, start, strict=True)]
            self.made[name][..., here[0], here[1]] = part[..., inner[0], inner[1]]


class _Feed:
    """Bands of a bracket as the network's inputs, `shrink` pixels a side become one. shape: (rows, columns) of those; whole: with what is
    repeated of their edges so that both are multiples of the stride.
    """

    def __init__(self, bracket: Bracket, alignments: Sequence[Alignment], merged: F32, order: list[int], shrink: int, stride: int) -> None:
        self._bracket, self._alignments, self._order = bracket, alignments, order
        self._table = bracket.response.codes(bracket.frames[0].encoded.dtype)
        self._top = np.float32(np.iinfo(bracket.frames[0].encoded.dtype).max)
        self.merged, self.shrink = merged, shrink
        self.shape = -(-merged.shape[0] // shrink), -(-merged.shape[1] // shrink)
        self.whole = -(-self.shape[0] // stride) * stride, -(-self.shape[1] // stride) * stride
        self.stops = np.log2(np.array([bracket.relative_exposures[i] for i in order], np.float32))
        self.white = np.float32(2.0 ** float(self.stops.min()))

    def band(self, rows: int) -> dict[str, F32]:
        """Room for every input but stops, channels in front of rows: memory is dear the first time, so bands share it."""
        frames, columns = len(self._order), self.whole[1]
        channels = {"linear": (frames, 3), "coverage": (frames, 1), "merged": (1, 3), "encoded": (1, 3)}
        return {name: np.ones((*c, rows, columns), np.float32) for name, c in channels.items()}

    def fill(self, band: dict[str, F32], top: int) -> None:
        """Put in what lies from row `top` on; beyond the picture its edge is repeated."""
        rows, columns = min(band["merged"].shape[2], self.shape[0] - top), self.shape[1]

        def put(out: F32, picture: F32) -> None:
            for plane, channel in zip(out, cv2.split(self._shrunk(picture)), strict=True):
                plane[:, :columns] = channel

        def strip(begin: int, stop: int) -> None:
            here = slice(begin, stop)
            full = slice((top + begin) * self.shrink, min((top + stop) * self.shrink, self.merged.shape[0]))
            for n, i in enumerate(self._order):
                warped, covered = warp_rows(self._bracket.frames[i], self._alignments[i], full.start, full.stop)
                put(band["linear"][n, :, here], look_up(self._table, np.ascontiguousarray(warped)))
                if covered is None:
                    band["coverage"][n, :, here] = 1
                else:
                    put(band["coverage"][n, :, here], covered)
            put(band["merged"][0, :, here], self.merged[full])
            put(band["encoded"][0, :, here], self.encoded(full))

        for_each_strip(strip, rows, rows=max(1, STRIP_ROWS // self.shrink))
        for values in band.values():
            values[..., :rows, columns:] = values[..., :rows, columns - 1 : columns]
            values[..., rows:, :] = values[..., rows - 1 : rows, :]

    def encoded(self, rows: slice) -> F32:
        """(rows, W, 3) of the reference as stored, 0..1."""
        return np.asarray(self._bracket.frames[self._bracket.reference].encoded[rows] / self._top, np.float32)

    def _shrunk(self, picture: F32) -> F32:
        """(h, w) or (h, w, 3) to means of cells, the last of them filled up by repeating the edge."""
        if self.shrink == 1:
            return picture
        height, width = picture.shape[:2]
        below, beside = -height % self.shrink, -width % self.shrink
        if below or beside:
            picture = np.asarray(cv2.copyMakeBorder(picture, 0, below, 0, beside, cv2.BORDER_REPLICATE), np.float32)
        size = picture.shape[1] // self.shrink, picture.shape[0] // self.shrink
        return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.float32)


def _below_white(feed: _Feed, first: int, end: int) -> F32:
    """(rows, W), 0..1: how far the merge, there and up to BESIDE_BRIGHT_PX away, is below the white of the shortest frame that the network
    got. Beyond it the network sees nothing, and what is dark beside it (the holes of a lamp's shade) it takes for clipped.
    """
    around = slice(max(first - BESIDE_BRIGHT_PX, 0), min(end + BESIDE_BRIGHT_PX, feed.merged.shape[0]))
    side = 2 * BESIDE_BRIGHT_PX + 1
    brightest = cv2.dilate(largest(feed.merged[around]), np.ones((side, side), np.uint8), borderType=cv2.BORDER_REPLICATE)
    share = (np.float32(1) - brightest[first - around.start : end - around.start] * feed.white) * np.float32(2)
    return np.asarray(np.clip(share, 0, 1), np.float32)


def _radiance(merged: F32, change: F32, encoded: F32, white: np.float32, card: Card) -> F32:
    """(rows, columns, 3) radiance from the merge's and what is added to its gain; white: 1 / the short frame's white."""
    offset = (encoded + np.float32(OFFSET)) * np.float32(1 / (MU_GAIN * white))
    value = (merged + offset) * np.exp(change * np.float32(np.log1p(MU_GAIN))) - offset
    return np.asarray(np.clip(value, 0, offset * np.float32(np.expm1(card.gain_limit * np.log1p(MU_GAIN)))))
