"""How a stage begins: with which weights, beside which regressor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gmodiff.errors import InputError
from gmodiff.model.noise_reducer import NoiseReducer, read_noise_reducer
from gmodiff.model.refiner import Refiner, read_refiner
from gmodiff.model.regressor import Regressor
from gmodiff.model.weights import digest, read_weights
from gmodiff.train.recipes import Recipe
from gmodiff.train.refiner_stages import AutoencoderStage, OneStepStage, PriorStage
from gmodiff.train.regressor_stages import EstimateStage, MaskStage, NoiseStage
from gmodiff.train.stage import Stage


def begin(recipe: Recipe, start: Path | None, regressor: Path | None = None, backbone: str | None = None) -> Stage:
    """The stage of a recipe before its first step.

    start: weights to go on with; the mask needs a finished regressor's, the prior an autoencoder's, one step a prior's.
    regressor: weights of the frozen regressor that noise is reduced beside, and, with its mask, that prior and one step are guided by.
    backbone: of sd21-onestep.
    Raises InputError where one that is needed is missing or unfinished, FileFormatError for a file of another kind.
    """
    if recipe.full_size:
        from gmodiff.train.full_size import begin_full_size  # needs diffusers, which the others do not

        return begin_full_size(recipe, start, regressor, backbone)
    torch.manual_seed(recipe.seed)
    if recipe.stage in ("regressor", "mask"):
        network, before = (Regressor(recipe.shape), {}) if start is None else read_weights(start)
        if recipe.stage == "mask" and start is None:
            raise InputError(needed_first(recipe.stage))
        if start is not None and network.shape != recipe.shape:
            raise InputError(f"{start} holds a network of another shape ({network.shape.as_dict()}) than the recipe trains")
        if recipe.stage == "regressor":
            before = _without(before, "mask")  # whose head was trained on features that now change
        return (MaskStage if recipe.stage == "mask" else EstimateStage)(recipe, before, network)
    if recipe.stage == "noise":
        reducer, before = (NoiseReducer(recipe.noise), {}) if start is None else read_noise_reducer(start)
        if reducer.shape != recipe.noise:
            raise InputError(f"{start} holds a network of another shape ({reducer.shape.as_dict()}) than the recipe trains")
        return NoiseStage(recipe, before, reducer, read_weights(regressor_of(recipe.stage, regressor))[0])
    refiner, before = (Refiner(recipe.autoencoder, recipe.denoiser), {}) if start is None else read_refiner(start)
    shapes = (refiner.autoencoder.shape, refiner.denoiser.shape)
    if shapes != (recipe.autoencoder, recipe.denoiser):
        raise InputError(f"{start} holds a refiner of another shape ({shapes}) than the recipe trains")
    if recipe.stage == "autoencoder":
        return AutoencoderStage(recipe, _without(before, "prior", "onestep"), refiner)
    if start is None or NEEDED[recipe.stage][1] not in before.get("steps", {}):
        raise InputError(needed_first(recipe.stage, start))
    of = before.get("latents", "gain")
    if recipe.stage == "prior":
        if "prior" in before["steps"] and of != recipe.latents:
            raise InputError(f"{start} is a prior of {of} latents, not of {recipe.latents}: begin with its autoencoder")
        before = _without(before, "onestep")
    if recipe.stage == "onestep" and of == "light":
        raise InputError(f"{start} is a prior of radiance, a baseline: give one of gain maps with --from")
    regressor = regressor_of(recipe.stage, regressor)
    guide, facts = read_weights(regressor)
    if "steps" in facts and not facts["steps"].get("mask"):
        raise InputError(f"--regressor {regressor} has no trained mask: gmodiff train mask makes it")
    if recipe.stage == "onestep" and before.get("guide") not in (None, digest(guide)) and not before["steps"].get("onestep"):
        raise InputError(f"{start} is a prior trained beside another regressor than --regressor {regressor}: give that one, or train prior")
    if guide.shape.widths[1:] != refiner.denoiser.shape.context:
        raise InputError(f"--regressor {regressor} has features of {guide.shape.widths[1:]} channels, expected {shapes[1].context}")
    return (PriorStage if recipe.stage == "prior" else OneStepStage)(recipe, before, refiner, guide)


NEEDED = {"mask": ("a finished", "regressor"), "prior": ("an", "autoencoder"), "onestep": ("a", "prior")}
"""Stages that go on from another, and which."""


def needed_first(stage: str, start: Path | None = None) -> str:
    """What a stage of NEEDED is told that has not got what it goes on from."""
    return f"{stage} is trained on {' '.join(NEEDED[stage])}: give its run or weights with --from (now {start or 'nothing'})"


BESIDE_REGRESSOR = {"noise": "is reduced beside", "prior": "is guided by", "onestep": "is guided by"}
"""Stages that need a finished regressor, and what they have to do with it."""


def regressor_of(stage: str, regressor: Path | None) -> Path:
    """The weights that --regressor names. Raises InputError where a stage of BESIDE_REGRESSOR has none."""
    if regressor is None:
        raise InputError(f"{stage} {BESIDE_REGRESSOR[stage]} a regressor: give its run or weights with --regressor")
    return regressor


def _without(before: dict[str, Any], *later: str) -> dict[str, Any]:
    """Facts of weights without the stages that rest on the one that now goes on: these have to be made again."""
    return before | {
        k: {s: v for s, v in before.get(k, {}).items() if s not in later} for k in ("steps", "spent", "data", "hardware", "recipes")
    }
