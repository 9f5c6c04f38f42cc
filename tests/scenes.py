"""Small evaluation scenes, and sources that make them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gmodiff.datasets.scene import Scene, common_facts, with_masks
from gmodiff.errors import InputError
from synthetic import photos, scene


def small_scene(name: str = "hill", seed: int = 0, *, height: int = 96, width: int = 128, moving: bool = True) -> Scene:
    """A noisy bracket of -2, 0, 2 stops with its truth; a square stands elsewhere in the short and the long frame."""
    truth = scene(height, width, seed)
    frames = [truth.copy() for _ in range(3)]
    motion = None
    if moving:
        motion = np.zeros((height, width), bool)
        for i, left in enumerate((20, 32, 44)):
            frames[i][40:60, left : left + 16] = (0.4, 0.1, 0.05)
            motion[40:60, left : left + 16] = True
        truth = frames[1]
    bracket = photos(frames, noise=0.004, seed=seed)
    masks = with_masks(truth, bracket, motion)
    still = photos(truth, noise=0.004, seed=seed + 1)
    facts = {"source": "test", **common_facts(bracket, masks), "motion": "people" if moving else "still", "iso": 100}
    return Scene(name, bracket, truth, masks, perfect=lambda: still, facts=facts)


@dataclass(frozen=True)
class SmallSource:
    """A SceneSource of `small_scene`; broken ones raise."""

    name: str
    seed: int = 0
    broken: str = ""
    truthless: bool = False

    @property
    def fingerprint(self) -> str:
        """Of the settings."""
        if self.broken == "fingerprint":
            raise InputError(f"{self.name}: its photos are gone")
        return f"{self.seed:016x}"

    def load(self) -> Scene:
        """Make the scene."""
        if self.broken:
            raise InputError(f"{self.name}: cannot be read")
        made = small_scene(self.name, self.seed)
        return replace(made, truth=None, masks={}, perfect=None) if self.truthless else made
