"""Real brackets as ground truth: everything a tripod set measured makes the truth, and methods see three of its photos.

Noise, response and JPEG are the camera's own. The truth is the noise-weighted mean (Granados et al. 2010) of every photo that was
neither clipped nor black there, on the response and exposures fitted from all of them; it is not known where photos disagree (cars,
leaves, people) or where every one was clipped, and nothing is scored there. Tripods give way a little: photos are registered to the
reference for the truth, while methods get them as they are.

Limits, to be kept in mind with the scores: the three photos also went into the truth, so noise they share with it counts as right;
the response is our own estimate, told to the methods that are told one.

`cutout` adds motion: an irregular piece of the scene moves from photo to photo. It is copied within each photo, so it too has the
camera's noise, response and JPEG; only its edge is blended, in linear light.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gmodiff.align import Alignment, align_frame, warp_rows
from gmodiff.bracket import read_bracket
from gmodiff.datasets.scene import Mask, Scene, common_facts, fingerprint, with_masks
from gmodiff.datasets.synthetic import clipped_stops
from gmodiff.errors import InputError
from gmodiff.image import Bracket, Frame
from gmodiff.moving_scene import generator, outline
from gmodiff.radiometry import F32, response_slope

REGISTERED_PX = 0.1
"""Motion of the corners below which a photo is left as it is: resampling would blur more than it mends."""

CLIPPED_FROM, BLACK_BELOW = 0.95, 0.02
"""Encoded values between which a sample counts; all three channels must be below the first, since cameras desaturate highlights."""

JUDGED_FROM = 0.12
"""Encoded value from which a sample may contradict the others: darker codes carry biases of the camera's own."""

DISAGREEMENT = 0.15
"""Relative difference from the mean, beyond DISAGREEMENT_SIGMAS of noise, from which a photo saw something else."""

DISAGREEMENT_SIGMAS = 4.0
AROUND_PX = 2
"""How far around a disagreement nothing is believed either."""
CUTOUT_STREAM = 31
"""Purpose of the random stream of a cut-out's seed."""


@dataclass(frozen=True)
class StaticRecipe:
    """Which photos. folder: below the data folder.   frames: file names that methods see, shortest first.   reference: one of them.

    left_out: files of the folder that are no part of the set.   crop: (x, y, width, height) in pixels; None for all.
    cutout: seed of a moving cut-out; None for none.   cutout_size: its height in frame heights.   travel: frame widths it moves from
    photo to photo.
    """

    folder: str
    frames: tuple[str, ...]
    reference: str
    left_out: tuple[str, ...] = ()
    crop: tuple[int, int, int, int] | None = None
    cutout: int | None = None
    cutout_size: float = 0.35
    travel: float = 0.06

    @staticmethod
    def parse(table: Mapping[str, Any], where: str) -> StaticRecipe:
        """From a set file's table. Raises InputError for unknown or missing keys and wrong values."""
        known = {f.name for f in fields(StaticRecipe)}
        unknown, missing = sorted(set(table) - known), sorted({"folder", "frames", "reference"} - set(table))
        if unknown or missing:
            what = f"unknown key {unknown[0]!r}" if unknown else f"no {missing[0]!r}"
            raise InputError(f"{where}: {what}; a real static scene has {', '.join(sorted(known))}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
        frames, crop = values["frames"], values.get("crop")
        if not isinstance(frames, tuple) or len(frames) < 2 or values["reference"] not in frames:
            raise InputError(
                f"{where}: frames are {frames!r}, expected two file names or more, reference {values['reference']!r} among them"
            )
        if crop is not None and (not isinstance(crop, tuple) or len(crop) != 4 or not all(isinstance(v, int) and v >= 0 for v in crop)):
            raise InputError(f"{where}: crop is {crop!r}, expected [x, y, width, height] in pixels")
        return StaticRecipe(**values)


@dataclass(frozen=True)
class StaticScene:
    """A recipe with a name and a data folder: a SceneSource."""

    name: str
    recipe: StaticRecipe
    data: Path = field(repr=False)

    def _files(self) -> dict[str, Path]:
        folder = self.data / self.recipe.folder
        if not folder.is_dir():
            raise InputError(f"{folder} is not there: --data names the folder that holds the photos of a set")
        suffixes = {Path(f).suffix.lower() for f in self.recipe.frames}
        found = {p.name: p for p in folder.iterdir() if p.suffix.lower() in suffixes and p.name not in self.recipe.left_out}
        missing = [f for f in self.recipe.frames if f not in found]
        if missing:
            raise InputError(f"{folder} holds no {missing[0]}")
        if len(found) < 4:
            raise InputError(f"{folder} holds {len(found)} photos: a set that serves as ground truth needs 4 or more")
        return found

    @property
    def fingerprint(self) -> str:
        """Of the recipe and every photo of the set."""
        settings = json.dumps({f.name: getattr(self.recipe, f.name) for f in fields(StaticRecipe)}, sort_keys=True)
        return fingerprint(settings, self._files())

    def load(self) -> Scene:
        """Read every photo, make the truth, and keep the photos that methods see."""
        recipe = self.recipe
        files = self._files()
        everything = read_bracket([files[n] for n in sorted(files)], reference=recipe.reference)
        registered = _registered(everything)
        if recipe.crop is not None:
            everything, registered = _cropped(everything, recipe.crop), _cropped(registered, recipe.crop)
        truth, known = static_truth(registered)
        seen, still = _only(everything, recipe.frames), _only(registered, recipe.frames)
        motion = None
        if recipe.cutout is not None:
            cut = _Cut.draw(recipe, seen.shape)
            motion = cut.area(len(recipe.frames))
            frames = tuple(replace(f, encoded=cut.moved(f.encoded, i, seen)) for i, f in enumerate(seen.frames))
            at_reference = [cut.moved(f.encoded, seen.reference, still) for f in still.frames]
            still = replace(still, frames=tuple(replace(f, encoded=e) for f, e in zip(still.frames, at_reference, strict=True)))
            truth, known = cut.moved_truth(truth, known, seen.reference)
            seen = replace(seen, frames=frames)
        masks = with_masks(truth, seen, motion)
        facts = {
            "source": "real photos",
            **common_facts(seen, masks),
            "folder": recipe.folder,
            "truth_from": [f.name for f in everything.frames],
            "known_share": round(float(known.mean()), 5),
            "motion": "still" if motion is None else "cutout",
            "clipped_stops": clipped_stops(np.where(known[..., None], truth, 0)),
        }
        return Scene(self.name, seen, truth, masks, known, lambda: still, facts)


def static_truth(bracket: Bracket) -> tuple[F32, Mask]:
    """(H, W, 3) radiance, 1.0 = the reference's white, from registered photos of a still scene, and (H, W) where to believe it.

    Weights are inverse variances of shot, read and encoding noise (Granados et al. 2010, equation 7, with the response's slope).
    """
    height, width = bracket.shape
    total, weights = np.zeros((height, width, 3), np.float32), np.zeros((height, width, 3), np.float32)
    samples = [_sample(f, bracket, ratio) for f, ratio in zip(bracket.frames, bracket.relative_exposures, strict=True)]
    for radiance, variance, valid in samples:
        weight = np.where(valid, 1 / variance, 0)
        total += weight * radiance
        weights += weight
    # Where no sample counts: of the longest frame that is not clipped there, else of the shortest, a lower bound.
    top = np.iinfo(bracket.frames[-1].encoded.dtype).max
    otherwise = samples[0][0]
    for frame, (radiance, _, _) in zip(bracket.frames[1:], samples[1:], strict=True):
        otherwise = np.where(frame.encoded.max(axis=-1, keepdims=True) < CLIPPED_FROM * top, radiance, otherwise)
    truth = np.where(weights > 0, total / np.maximum(weights, np.float32(1e-12)), otherwise)
    # Black in the longest frame is as dark as can be told.
    no_light = bracket.frames[-1].encoded < BLACK_BELOW * top
    known = ((weights > 0) | no_light).all(axis=-1)
    disagree = np.zeros((height, width), bool)
    for frame, (radiance, variance, valid) in zip(bracket.frames, samples, strict=True):
        judges = valid & (frame.encoded > JUDGED_FROM * np.iinfo(frame.encoded.dtype).max)
        allowed = DISAGREEMENT * truth + DISAGREEMENT_SIGMAS * np.sqrt(variance)
        disagree |= (judges & (np.abs(radiance - truth) > allowed)).any(axis=-1)
    # Lone pixels are noise; what moves is larger.
    moving = cv2.morphologyEx(disagree.astype(np.uint8), cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    around = cv2.dilate(moving, np.ones((2 * AROUND_PX + 1, 2 * AROUND_PX + 1), np.uint8)) > 0
    return np.asarray(truth, np.float32), known & ~around


def _sample(frame: Frame, bracket: Bracket, ratio: float) -> tuple[F32, F32, Mask]:
    """Radiance (H, W, 3), its variance, and where the frame measured it."""
    codes = frame.encoded
    top = np.iinfo(codes.dtype).max
    table = bracket.response.codes(codes.dtype)
    sigma = np.asarray(frame.noise.sigma_linear(table, response_slope(table)), np.float32)
    radiance, variance = np.empty(codes.shape, np.float32), np.empty(codes.shape, np.float32)
    for c in range(3):
        radiance[..., c] = (table[:, c] / np.float32(ratio)).take(codes[..., c])
        variance[..., c] = np.square(sigma[:, c] / np.float32(ratio)).take(codes[..., c])
    unclipped = codes.max(axis=-1, keepdims=True) < CLIPPED_FROM * top
    return radiance, variance, unclipped & (codes > BLACK_BELOW * top)


def _registered(bracket: Bracket) -> Bracket:
    """Every photo in the reference's geometry, by a homography; photos that did not move are left as they are."""
    height, width = bracket.shape
    corners = np.array([[[0, 0], [width, 0], [0, height], [width, height]]], np.float64)
    reference = bracket.frames[bracket.reference]
    frames = []
    for i, frame in enumerate(bracket.frames):
        motion = None if i == bracket.reference else align_frame(reference, frame, bracket.response, dense=False).homography
        if motion is not None and np.abs(cv2.perspectiveTransform(corners, motion) - corners).max() > REGISTERED_PX:
            warped, _ = warp_rows(frame, Alignment(motion), 0, height)
            frame = replace(frame, encoded=np.ascontiguousarray(warped))
        frames.append(frame)
    return replace(bracket, frames=tuple(frames))


def _cropped(bracket: Bracket, crop: tuple[int, int, int, int]) -> Bracket:
    x, y, width, height = crop
    if x + width > bracket.shape[1] or y + height > bracket.shape[0] or min(width, height) < 64:
        raise InputError(f"crop {list(crop)} does not fit photos of {bracket.shape[1]}x{bracket.shape[0]}, or is below 64 pixels")
    frames = [replace(f, encoded=np.ascontiguousarray(f.encoded[y : y + height, x : x + width])) for f in bracket.frames]
    return replace(bracket, frames=tuple(frames))


def _only(bracket: Bracket, names: Sequence[str]) -> Bracket:
    """The bracket with only the named photos, its reference still among them."""
    frames = tuple(f for f in bracket.frames if f.name in names)
    reference = [f.name for f in frames].index(bracket.frames[bracket.reference].name)
    return replace(bracket, frames=frames, reference=reference)


@dataclass(frozen=True)
class _Cut:
    """A piece that moves: its outline, where it is copied from, and where each photo has it; (x, y) of its corner."""

    coverage: F32
    source: tuple[int, int]
    places: tuple[tuple[int, int], ...]
    shape: tuple[int, int]

    @staticmethod
    def draw(recipe: StaticRecipe, shape: tuple[int, int]) -> _Cut:
        rng = generator((int(recipe.cutout or 0), CUTOUT_STREAM))
        height, width = shape
        h = max(16, int(recipe.cutout_size * height))
        w = max(16, int(h * rng.uniform(0.45, 0.8)))
        step = int(recipe.travel * width) * (1 if rng.random() < 0.5 else -1)
        count = len(recipe.frames)
        room = width - w - abs(step) * (count - 1)
        if room <= 0 or h >= height:
            raise InputError(f"a cut-out of {w}x{h} that travels {abs(step)} px a photo does not fit photos of {width}x{height}")
        left = int(rng.integers(0, room)) + (0 if step > 0 else -step * (count - 1))
        top = int(rng.integers(0, height - h))
        source = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
        return _Cut(outline(rng, h, w), source, tuple((left + step * i, top) for i in range(count)), shape)

    def _boxes(self, i: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        h, w = self.coverage.shape
        (sx, sy), (x, y) = self.source, self.places[i]
        return (slice(sy, sy + h), slice(sx, sx + w)), (slice(y, y + h), slice(x, x + w))

    def moved(self, codes: NDArray[Any], i: int, bracket: Bracket) -> NDArray[Any]:
        """A photo with the piece where photo i has it: whole codes inside, blended in linear light at the edge."""
        source, place = self._boxes(i)
        out = codes.copy()
        under, over = codes[place], codes[source]
        linear = bracket.response.linearise
        cover = self.coverage[..., None]
        mixed = bracket.response.encode(linear(under) * (1 - cover) + linear(over) * cover) * np.float32(np.iinfo(codes.dtype).max)
        edge = np.rint(mixed).astype(codes.dtype)
        out[place] = np.where(cover >= 1, over, np.where(cover <= 0, under, edge))
        return out

    def moved_truth(self, truth: F32, known: Mask, i: int) -> tuple[F32, Mask]:
        source, place = self._boxes(i)
        cover = self.coverage[..., None]
        truth, believed = truth.copy(), known.copy()
        truth[place] = truth[place] * (1 - cover) + truth[source].copy() * cover
        believed[place] = np.where(self.coverage > 0, known[source] & ((self.coverage >= 1) | known[place]), known[place])
        return truth, believed

    def area(self, count: int) -> Mask:
        """Where the piece is in any photo."""
        mask = np.zeros(self.shape, bool)
        for i in range(count):
            mask[self._boxes(i)[1]] |= self.coverage > 0
        return mask
