"""The noun of evaluation: a Scene is a bracket with what is known to be true about it, and how to load one later."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import log2
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gmodiff.errors import InputError
from gmodiff.image import Bracket
from gmodiff.radiometry import F32, ColourSpace, luminance_weights

Mask = NDArray[np.bool_]

DARK_LUMINANCE = 2.0**-5
"""True luminance, with 1.0 = the reference's white, below which a pixel counts as dark: five stops down, 8-bit sRGB code 49."""


@dataclass(frozen=True)
class Scene:
    """A bracket with its truth, in memory.

    name: unique within its dataset; results are matched to truth by it and by nothing else.
    bracket: what methods see. Its response is the true one where it is known; methods that must not be told it ignore it.
    truth: (H, W, 3) float32 radiance in the reference's geometry, 1.0 = the reference's white; None where nobody knows it.
    masks: "motion", "clipped", "dark" to (H, W) bool, those that are known (`with_masks` derives the last two).
    known: (H, W) bool, where truth can be believed; None for everywhere. Metrics look nowhere else.
    perfect: makes the same exposures without any motion, for the oracle; None where nobody can.
    facts: plain values for the rows: how it was made, how much of it moves or is clipped.
    """

    name: str
    bracket: Bracket
    truth: F32 | None = field(default=None, repr=False)
    masks: Mapping[str, Mask] = field(default_factory=dict, repr=False)
    known: Mask | None = field(default=None, repr=False)
    perfect: Callable[[], Bracket] | None = field(default=None, repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.bracket.shape
        pictures = {"truth": self.truth, "known": self.known, **self.masks}
        for what, picture in pictures.items():
            if picture is not None and picture.shape[:2] != shape:
                raise InputError(
                    f"{self.name}: its {what} is {picture.shape[1]}x{picture.shape[0]} but its frames are {shape[1]}x{shape[0]}"
                )

    def blind(self) -> Scene:
        """What a method may see: the bracket under the scene's name."""
        return Scene(self.name, self.bracket)

    @property
    def short_white(self) -> float:
        """Radiance at which the shortest frame clips: where published sets put 1.0."""
        return 1.0 / self.bracket.relative_exposures[0]

    @property
    def hash(self) -> str:
        """16 hex digits that change with any pixel, exposure, response or truth: two rows of one hash saw the same scene."""
        digest = hashlib.sha256()
        for frame, exposure in zip(self.bracket.frames, self.bracket.relative_exposures, strict=True):
            digest.update(f"{frame.encoded.dtype}{frame.encoded.shape}{exposure:.9g}".encode())
            digest.update(np.ascontiguousarray(frame.encoded).data)
        digest.update(f"{self.bracket.reference}".encode())
        digest.update(np.ascontiguousarray(self.bracket.response.table.astype(np.float32)).data)
        for part in (self.truth, self.known, *(self.masks[k] for k in sorted(self.masks))):
            digest.update(b"none" if part is None else np.ascontiguousarray(part).data)
        return digest.hexdigest()[:16]


class SceneSource(Protocol):
    """A scene that can be loaded: small, picklable, cheap to make."""

    @property
    def name(self) -> str:
        """The scene's name."""
        ...

    @property
    def fingerprint(self) -> str:
        """16 hex digits of everything the scene is made from (settings, file contents), without loading it."""
        ...

    def load(self) -> Scene:
        """Read or render the scene. Raises GMODiffError with one line where that cannot be done."""
        ...


@dataclass(frozen=True)
class Dataset:
    """Scenes under one name, in the order of their names."""

    name: str
    about: str
    scenes: tuple[SceneSource, ...]

    def __post_init__(self) -> None:
        names = [s.name for s in self.scenes]
        twins = sorted({n for n in names if names.count(n) > 1})
        if twins:
            raise InputError(f"{self.name}: two scenes are called {twins[0]!r}: results are matched by name, so each needs its own")
        object.__setattr__(self, "scenes", tuple(sorted(self.scenes, key=lambda s: s.name)))


def with_masks(truth: F32, bracket: Bracket, motion: Mask | None) -> dict[str, Mask]:
    """The masks of a scene: motion as given, clipped where the reference cannot hold the truth, dark below DARK_LUMINANCE.

    Clipped is where any channel of truth is at or above 1.0, the reference's white; it says nothing about the other frames.
    """
    masks = {} if motion is None else {"motion": motion}
    masks["clipped"] = truth.max(axis=-1) >= 1.0
    masks["dark"] = luminance(truth, bracket.colour) < DARK_LUMINANCE
    return masks


def luminance(radiance: F32, colour: ColourSpace) -> F32:
    """(H, W, 3) to (H, W) relative luminance Y, added in a fixed order: a matrix product rounds differently from machine to machine."""
    r, g, b = (radiance[..., c] * w for c, w in enumerate(luminance_weights(colour)))
    return np.asarray(r + g + b)


def common_facts(bracket: Bracket, masks: Mapping[str, Mask]) -> dict[str, Any]:
    """What rows say of every scene: size, exposures in stops from the reference, the share of each mask."""
    height, width = bracket.shape
    return {
        "size": [width, height],
        "frames": len(bracket.frames),
        "stops": [round(log2(e), 3) for e in bracket.relative_exposures],
        "reference": bracket.frames[bracket.reference].name,
        "response": bracket.response.name,
        **{f"{name}_share": round(float(mask.mean()), 5) for name, mask in masks.items()},
    }


def fingerprint(settings: str, files: Mapping[str, Path] | None = None) -> str:
    """16 hex digits of a text and of the contents of files (with the names they are known by)."""
    digest = hashlib.sha256(settings.encode())
    for name, path in sorted((files or {}).items()):
        digest.update(name.encode())
        try:
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()[:16]
