"""Noise of the merge where the reference measured: a small network on the full-size picture, tile by tile.

What it says (`model.noise_reducer`) moves a sample by no more than the leeway that every estimate has there, half a deviation of the
reference's noise: `provenance.constrain` moves the estimate by it where the reference measured; of clipped pixels it has no say. Only
detail is taken of it, as of the refiner. Photos with little noise are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from gmodiff.errors import InputError
from gmodiff.image import Bracket
from gmodiff.model_card import Model, rest
from gmodiff.provenance import SHARE_SCALE, look_up
from gmodiff.radiometry import F32, deviation_of_codes
from gmodiff.tiling import for_each_strip, tile_cores, tile_shape, tile_start

TILE_AREA_PX = 350_000
"""Most that the network gets at once: it works at full size, larger tiles are no faster, and take more memory (docs/results.md)."""
MIDDLE_GREY = 0.18
"""Linear light of the grey at which noise is judged."""
LEAST_NOISE = 2.45 / 255
"""Deviation of middle grey, as one of the square root of linear light (nearly that of a photo's codes), from which noise is reduced: a JPEG
of ISO 800 has 2.1 codes, one of ISO 1600 2.8. On 16 scenes of the training pictures below it nothing was won, on 16 above it 0.5 dB."""


MEAN_PX = 17
"""Side of the square, twice over, whose mean of the network's answer is not taken. Noise has none; a change that has one is of light: the
return of a dark ghost that the regressor had taken away, or a tint."""


@dataclass(frozen=True)
class NoiseReduction:
    """model: `noise_reducer` of a loaded model, from held, merged, seen and sigma to shares.   tile: (rows, columns) in pixels that it
    gets at once at most, where that is less than TILE_AREA_PX.
    """

    model: Model
    tile: tuple[int, int] | None = None

    def __call__(
        self, bracket: Bracket, held: F32, merged: F32, *, progress: Callable[[float], None] | None = None
    ) -> NDArray[np.int8] | None:
        """(H, W, 3) shares of the leeway, -SHARE_SCALE..SHARE_SCALE, by which samples of the estimate move; None for photos with little
        noise.

        held, merged: (H, W, 3) radiance, 1.0 = the reference's white, of the constrained estimate and of the merge. Raises InputError
        where memory does not suffice for a tile, and for broken weights.
        """
        reference, card = bracket.frames[bracket.reference], self.model.card
        table = bracket.response.codes(reference.encoded.dtype)
        deviation = deviation_of_codes(bracket.response, reference.noise, reference.encoded.dtype)
        if _of_grey(table, deviation) < LEAST_NOISE:
            return None
        height, width = merged.shape[:2]
        shares = np.zeros(merged.shape, np.int8)
        rows, columns = tile_shape(height, width, None, self._area, card.halo_px, card.stride)
        cores = [(a, b) for a in tile_cores(height, rows, card.halo_px) for b in tile_cores(width, columns, card.halo_px)]
        for n, (down, across) in enumerate(cores):
            if progress is not None:
                progress(n / len(cores))
            top, left = (
                tile_start(first, size, tile, card.halo_px, card.stride)
                for first, size, tile in ((down[0], height, rows), (across[0], width, columns))
            )
            tile = slice(top, top + rows), slice(left, left + columns)
            codes = np.ascontiguousarray(reference.encoded[tile])
            given = {"held": held[tile], "merged": merged[tile], "seen": look_up(table, codes), "sigma": look_up(deviation, codes)}
            try:
                found = self.model({k: _planes(v, rows, columns) for k, v in given.items()})["share"][0]
            except MemoryError:
                raise InputError(
                    f"not enough memory to reduce noise in tiles of {columns}x{rows} pixels: give a smaller --tile, or --keep-noise"
                ) from None
            inner = found[:, down[0] - top : down[1] - top, across[0] - left : across[1] - left].transpose(1, 2, 0)
            if not np.isfinite(inner.sum(dtype=np.float64)):
                raise InputError(
                    f"the noise reducer of model {card.name} returned values that are not finite: its weights are broken; give --keep-noise"
                )
            shares[slice(*down), slice(*across)] = np.rint(inner * np.float32(SHARE_SCALE))
        rest(self.model)
        if progress is not None:
            progress(1.0)
        return _without_means(shares)

    @property
    def _area(self) -> int:
        return TILE_AREA_PX if self.tile is None else min(TILE_AREA_PX, self.tile[0] * self.tile[1])


def _without_means(shares: NDArray[np.int8]) -> NDArray[np.int8]:
    """(H, W, 3) shares less what they are on average around each sample."""
    detail = np.empty_like(shares)
    reach, side = 2 * (MEAN_PX // 2), (MEAN_PX, MEAN_PX)

    def strip(first: int, end: int) -> None:
        top = max(first - reach, 0)
        around = shares[top : end + reach].astype(np.float32)
        mean = cv2.blur(cv2.blur(around, side, borderType=cv2.BORDER_REFLECT), side, borderType=cv2.BORDER_REFLECT)
        here = slice(first - top, end - top)
        detail[first:end] = np.clip(np.rint(around[here] - mean[here]), -SHARE_SCALE, SHARE_SCALE)

    for_each_strip(strip, shares.shape[0])
    return detail


def _of_grey(table: F32, deviation: F32) -> float:
    """Deviation of middle grey, as one of the square root of linear light. table, deviation: (codes, 3), linear, rising."""
    code = int(np.argmax(table.mean(axis=1) >= MIDDLE_GREY))
    return float((deviation[code] / (2 * np.sqrt(table[code]))).mean())


def _planes(picture: F32, rows: int, columns: int) -> F32:
    """(h, w, 3) to (1, 3, rows, columns), edges repeated."""
    height, width = picture.shape[:2]
    planes = np.empty((1, 3, rows, columns), np.float32)
    planes[0, :, :height, :width] = picture.transpose(2, 0, 1)
    planes[..., :height, width:] = planes[..., :height, width - 1 : width]
    planes[..., height:, :] = planes[..., height - 1 : height, :]
    return planes
