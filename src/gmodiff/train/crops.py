"""Batches by number: what a step trains on follows from the recipe's seed and the step alone, on any machine and any number of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.data import Dataset

from gmodiff.errors import InputError
from gmodiff.full_estimate import clipped_share
from gmodiff.moving_scene import generator
from gmodiff.train.recipes import Recipe
from gmodiff.train.scenes import SceneStore, TrainingScene

CROP_STREAM = 1002
HARD_SHARE, OTHER_PLACES = 0.5, 3
HALF_SHARE = 0.3
"""Of the crops, taken at half size from twice the side: many photos were made smaller, and large ones are estimated so. Not where noise is
to be learned, which is reduced at full size."""
CHECK_FROM, CHECK_PX = 1_000_000, 384
"""Scenes that steer: of the training pictures, never trained on, the middle of each."""

Batch = dict[str, Tensor]
"""linear (B, n, 3, H, W), stops (B, n), coverage (B, n, 1, H, W), merged, encoded and truth (B, 3, H, W): see `Regressor.forward`;
clipped (B, n): share of the whole frame's pixels that clip; truth is relative to the shortest frame's white; sigma (B, 3, H, W): deviation
of the reference's noise, linear, not less where pixels were averaged."""
PER_FRAME = ("stops", "clipped")
"""Of a batch, what has no pixels."""
CLIPPED_SAMPLES = 65536


@dataclass(frozen=True)
class Place:
    """A crop of a scene, and how it is turned and its channels swapped; shrink: how many pixels a side become one.

    others: other places of the scene, of which that is taken where most is clipped and moving, or clipped and outside of another frame:
    what is hard is rare.
    """

    scene: int
    top: int
    left: int
    flip_x: bool
    flip_y: bool
    turn: bool
    channels: tuple[int, int, int]
    others: tuple[tuple[int, int], ...] = ()
    shrink: int = 1


@dataclass
class Batches(Dataset[Batch]):
    """Batch number = step. share: (rank, of how many) processes that train together; each gets its part of every batch."""

    store: SceneStore
    recipe: Recipe
    share: tuple[int, int] = (0, 1)
    _groups: list[NDArray[np.int64]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.recipe.batch % self.share[1]:
            raise InputError(f"{self.share[1]} processes cannot share batches of {self.recipe.batch}: give a --batch that they divide")
        counts = np.array([self.store.frames(k) for k in range(self.recipe.scenes)])
        self._groups = [np.flatnonzero(counts == n) for n in np.unique(counts)]

    def __getitem__(self, step: int) -> Batch:
        """All crops of a step have as many frames as each other. Raises InputError where a scene cannot be rendered."""
        rank, world = self.share
        mine = self._places(step)[rank::world]
        return stack([cut(self.store[p.scene], p, self.recipe.crop_px) for p in mine])

    def _places(self, step: int) -> list[Place]:
        recipe = self.recipe
        rng = generator((recipe.seed, CROP_STREAM, step))
        sizes = np.array([len(g) for g in self._groups], float)
        group = self._groups[int(rng.choice(len(sizes), p=sizes / sizes.sum()))]
        scenes = rng.choice(group, -(-recipe.batch // recipe.crops_per_scene))
        places = []
        for n in range(recipe.batch):
            half = rng.random() < HALF_SHARE and 2 * recipe.crop_px <= self.store.size
            shrink = 2 if half and recipe.stage != "noise" else 1
            room = self.store.size - shrink * recipe.crop_px + 1
            top, left = (int(v) for v in rng.integers(0, room, 2))
            flip_x, flip_y, turn, swap = (bool(v) for v in rng.random(4) < (0.5, 0.5, 0.5, 0.25))
            a, b, c = rng.permutation(3) if swap else (0, 1, 2)
            tries = rng.integers(0, room, (OTHER_PLACES, 2)) if rng.random() < HARD_SHARE else ()
            others = tuple((int(y), int(x)) for y, x in tries)
            scene = int(scenes[n // recipe.crops_per_scene])
            places.append(Place(scene, top, left, flip_x, flip_y, turn, (int(a), int(b), int(c)), others, shrink))
        return places


def cut(scene: TrainingScene, place: Place, side: int) -> Batch:
    """One crop of side x side pixels as tensors, without the batch's dimension."""
    span = side * place.shrink
    top, left = _hardest(scene, ((place.top, place.left), *place.others), span)
    rows, columns = slice(top, top + span), slice(left, left + span)
    channels = list(place.channels)

    def turned(picture: NDArray[Any]) -> NDArray[Any]:
        """(..., H, W, C) cropped, flipped and transposed to (..., C, H, W)."""
        part = picture[..., rows, columns, :]
        part = part[..., ::-1, :] if place.flip_x else part
        part = part[..., ::-1, :, :] if place.flip_y else part
        return np.moveaxis(part, -1, -3).swapaxes(-1, -2) if place.turn else np.moveaxis(part, -1, -3)

    codes = turned(scene.codes)
    linear = np.stack([scene.table[:, c].take(codes[:, c]) for c in channels], axis=1)
    white = np.float32(2.0 ** float(scene.stops.min()))
    values = {
        "linear": linear,
        "stops": scene.stops,
        "clipped": np.array([clipped_share(c, CLIPPED_SAMPLES) for c in scene.codes], np.float32),
        "coverage": turned(scene.coverage[..., None]).astype(np.float32) / np.float32(255),
        "merged": turned(scene.merged)[channels].astype(np.float32),
        "encoded": codes[0, channels].astype(np.float32) / np.float32(255),
        "truth": turned(scene.truth)[channels].astype(np.float32) * white,
        "sigma": np.stack([scene.sigma[:, c].take(codes[0, c]) for c in channels]),
    }
    tensors = {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in values.items()}
    if place.shrink > 1:
        tensors |= {name: avg_pool2d(v, place.shrink) for name, v in tensors.items() if name not in PER_FRAME}
    return tensors


def _hardest(scene: TrainingScene, places: tuple[tuple[int, int], ...], side: int) -> tuple[int, int]:
    if len(places) == 1:
        return places[0]
    lost = (scene.moving | (scene.coverage < 128).any(axis=0)) & (scene.truth >= 1).any(axis=-1)
    return max(places, key=lambda p: int(lost[p[0] : p[0] + side, p[1] : p[1] + side].sum()))  # the first of equals


def stack(crops: list[Batch]) -> Batch:
    """Crops to a batch."""
    return {name: torch.stack([c[name] for c in crops]) for name in crops[0]}


def check_scene(store: SceneStore, number: int) -> Batch:
    """The middle of one of the scenes that steer, as a batch of one."""
    side = min(CHECK_PX, store.size)
    start = (store.size - side) // 2
    return stack([cut(store[CHECK_FROM + number], Place(0, start, start, False, False, False, (0, 1, 2)), side)])
