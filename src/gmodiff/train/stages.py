"""What each stage learns, from what, and how it is judged while it does; the loop knows none of it.

A stage is a module whose call is a training step's loss. What it holds frozen (the regressor behind the refiner) it carries with it, so
that a checkpoint is whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gmodiff.errors import InputError
from gmodiff.model.autoencoder import LATENT_FOLD, Skips
from gmodiff.model.diffusion import ONE_STEP_AT, STEPS, add_noise, x0_at
from gmodiff.model.noise_reducer import NoiseReducer, read_noise_reducer, write_noise_reducer
from gmodiff.model.refiner import Refiner, read_refiner, write_refiner
from gmodiff.model.regressor import GAIN_LIMIT, Estimate, Regressor, full_gain, mu_gain, radiance_from_mu_gain
from gmodiff.model.weights import digest, read_weights, write_weights
from gmodiff.provenance import HELD_SIGMAS
from gmodiff.runtime import REFINER_ANSWER
from gmodiff.train.crops import Batch
from gmodiff.train.losses import (
    LEAST_USED,
    LEAST_WEIGHT,
    as_used,
    average_precision,
    compress,
    decibels,
    errs,
    estimate_loss,
    full_size,
    latent_loss,
    mask_loss,
    noise_loss,
    picture_loss,
    psnr_mu,
    refined_loss,
    unmeasured,
)
from gmodiff.train.recipes import Recipe

Parts = dict[str, Tensor]
INPUTS = ("linear", "stops", "coverage", "merged", "encoded")
UNGUIDED_SHARE = 0.1
"""Of the prior's crops, without the regressor's context: what classifier-free guidance needs (Ho and Salimans 2022), and one ablation."""

USED_SHARE = 0.5
"""Of the one step's loss, on what `refine` takes of its answer."""

HELD_SHARE = 0.7
"""Of the regressor's loss, on the estimate as the pipeline uses it: held to the merge where the reference measured."""

STILL_SHARE = 0.4
"""Of the crops from which noise is to be learned, in which the merge stands in the estimate's place."""

SIGMA_ERROR_STOPS = 0.4
"""How wrong the noise model is in training (a deviation), in stops of the noise's own deviation."""

CHECKED_STEPS = (100, 300, ONE_STEP_AT, 700, 900)
"""Timesteps at which a prior is judged."""


class Stage(nn.Module):
    """What the loop trains. before: facts of the weights it began with.   share: (rank, of how many) processes that train together.

    rests_on: hashes of further weights that a run goes on with only where they are the same.
    """

    share: tuple[int, int] = (0, 1)
    rests_on: Mapping[str, str] = MappingProxyType({})

    def __init__(self, recipe: Recipe, before: dict[str, Any]) -> None:
        super().__init__()
        self.recipe, self.before = recipe, before

    def learned(self) -> list[nn.Parameter]:
        """What the optimiser gets; the rest stays as it is."""
        raise NotImplementedError

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Parts]:
        """The loss of a step, and what the log says of it."""
        raise NotImplementedError

    def check(self, batch: Batch) -> dict[str, float]:
        """Figures of one scene never trained on; NaN where there is nothing to judge."""
        raise NotImplementedError

    def write(self, path: Path, facts: dict[str, Any]) -> None:
        """The weights file of the run."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What a weights file says beyond what every run says."""
        return {}

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.bf16)


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
            raise InputError("the mask is trained on a finished regressor: give its run or weights with --from")
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
    needed, article = {"prior": ("autoencoder", "an"), "onestep": ("prior", "a")}[recipe.stage]
    if start is None or needed not in before.get("steps", {}):
        raise InputError(f"{recipe.stage} is trained on {article} {needed}: give its run or weights with --from (now {start or 'nothing'})")
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


def relative(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 1, 1, 1) the reference's white relative to the short frame's; relative to that, (B, 3, H, W) the merge and the leeway that the
    reference's noise leaves an estimate.
    """
    white = torch.exp2(batch["stops"].amin(dim=1))[:, None, None, None]
    return white, batch["merged"] * white, HELD_SIGMAS * batch["sigma"] * white


def held_to_merge(free: Tensor, batch: Batch) -> Tensor:
    """(B, 3, H, W) radiance relative to the short frame's white, held as `provenance.constrain` holds an estimate: within the leeway of the
    merge, the less so the nearer to clipping the reference is.

    What else the pipeline does to an estimate is not in it, and so not in losses, targets and checks: it is given up where nothing nearby
    moved, and bounded above where nothing measured (`stillness`); and clamped to the reference's interval.
    """
    _, merged, leeway = relative(batch)
    held = free.clamp(merged - leeway, merged + leeway)
    return held + unmeasured(batch["encoded"]) * (free - held)


# ---- stages 1 and 2: the regressor ----------------------------------------------------------------------------------------


class EstimateStage(Stage):
    """Stage 1: the regressor's estimate."""

    def __init__(self, recipe: Recipe, before: dict[str, Any], network: Regressor) -> None:
        super().__init__(recipe, before)
        self.network = network.train()

    def learned(self) -> list[nn.Parameter]:
        """See `Stage`."""
        return self.network.estimate_parameters()

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Parts]:
        """See `Stage`. The estimate held to the merge counts most; the rest has to be learned too, lest it drift: where it is held at the
        end of its leeway, only that says which way back.
        """
        whole, held, _ = self._estimate(batch)
        (by_whole, _), (by_held, parts) = (estimate_loss(g, batch["truth"], batch["encoded"]) for g in (whole, held))
        return (1 - HELD_SHARE) * by_whole + HELD_SHARE * by_held, parts

    def check(self, batch: Batch) -> dict[str, float]:
        """PSNR-mu of the estimate held to the merge, and of the merge."""
        _, gain, _ = self._estimate(batch)
        white = 2.0 ** float(batch["stops"].min())
        estimated = radiance_from_mu_gain(gain, batch["encoded"])
        return {"psnr_mu": psnr_mu(estimated, batch["truth"]), "merged_psnr_mu": psnr_mu(batch["merged"] * white, batch["truth"])}

    def write(self, path: Path, facts: dict[str, Any]) -> None:
        """See `Stage`."""
        write_weights(self.network, path, facts)

    def _estimate(self, batch: Batch, *, with_mask: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """The gain, the same held to the merge where the reference measured, and the logits of the mask."""
        with self._autocast(batch["linear"].device):
            estimate = self.network(**{k: batch[k] for k in INPUTS}, with_mask=with_mask)
        whole = full_gain(estimate.change.float(), batch["merged"], batch["stops"], batch["encoded"])
        held = mu_gain(held_to_merge(radiance_from_mu_gain(whole, batch["encoded"]), batch), batch["encoded"])
        return whole, held, None if estimate.degradation is None else estimate.degradation.float()


class MaskStage(EstimateStage):
    """Stage 2: where the frozen estimate is wrong."""

    def learned(self) -> list[nn.Parameter]:
        """See `Stage`."""
        return self.network.mask_parameters()

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Parts]:
        """See `Stage`."""
        _, gain, logits = self._estimate(batch, with_mask=True)
        assert logits is not None
        wrong = errs(gain.detach(), batch["truth"], batch["encoded"])
        return mask_loss(full_size(logits, wrong), wrong), {"share": wrong.mean()}

    def check(self, batch: Batch) -> dict[str, float]:
        """Average precision beside the share of doubtful pixels, which is what a blind mask gets; and the estimate's figures."""
        _, gain, logits = self._estimate(batch, with_mask=True)
        assert logits is not None
        wrong = errs(gain, batch["truth"], batch["encoded"])
        found = {"average_precision": average_precision(full_size(logits, wrong), wrong), "share": float(wrong.mean())}
        return super().check(batch) | found


# ---- noise where the reference measured -----------------------------------------------------------------------------------


class NoiseStage(Stage):
    """What is left of noise, and of the frozen regressor's mistakes, where the reference measured and estimates are held to the merge."""

    def __init__(self, recipe: Recipe, before: dict[str, Any], network: NoiseReducer, guide: Regressor) -> None:
        super().__init__(recipe, before)
        self.network, self.guide = network.train(), guide.eval()

    def train(self, mode: bool = True) -> NoiseStage:
        """The guide stays as it is."""
        super().train(mode)
        self.guide.eval()
        return self

    def learned(self) -> list[nn.Parameter]:
        """See `Stage`."""
        return list(self.network.parameters())

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Parts]:
        """See `Stage`. Of each crop the deviation is wrong by a factor, as noise models of photos are; in some nothing moved."""
        dice = torch.Generator().manual_seed((self.recipe.seed << 32) + step)
        rank, world = self.share
        stops = SIGMA_ERROR_STOPS * torch.randn(self.recipe.batch, 1, 1, 1, generator=dice)[rank::world]
        moved = (torch.rand(self.recipe.batch, 1, 1, 1, generator=dice) >= STILL_SHARE)[rank::world]
        sigma = batch["sigma"] * torch.exp2(stops).to(batch["sigma"].device)
        return noise_loss(*self._answer(batch, sigma, moved.to(sigma.device)), batch["truth"], 1 - unmeasured(batch["encoded"]))

    def check(self, batch: Batch) -> dict[str, float]:
        """PSNR-mu where the reference measured: with less noise, of the estimate as held without that, and of the merge."""
        share, held, merged, leeway = self._answer(batch, batch["sigma"], torch.ones((), dtype=torch.bool, device=batch["sigma"].device))
        where = unmeasured(batch["encoded"]) == 0
        reduced = (held + leeway * share).clamp(merged - leeway, merged + leeway)
        pictures = {"psnr_mu": reduced, "held_psnr_mu": held, "merged_psnr_mu": merged}
        return {name: psnr_mu(picture, batch["truth"], where) for name, picture in pictures.items()}

    def write(self, path: Path, facts: dict[str, Any]) -> None:
        """See `Stage`."""
        write_noise_reducer(self.network, path, facts)

    def facts(self) -> dict[str, Any]:
        """The regressor that it was trained beside."""
        return {"guide": digest(self.guide)}

    def _answer(self, batch: Batch, sigma: Tensor, moved: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, 3, H, W): shares of the leeway; estimate held to the merge, merge, and leeway, relative to the short frame's white.

        moved: bool, of each crop or all; where not, the merge stands, as `stillness` has it.
        """
        batch = batch | {"sigma": sigma}
        white, merged, leeway = relative(batch)
        with torch.no_grad(), self._autocast(sigma.device):
            change = self.guide(**{k: batch[k] for k in INPUTS}).change
        gain = full_gain(change.float(), batch["merged"], batch["stops"], batch["encoded"])
        held = torch.where(moved, held_to_merge(radiance_from_mu_gain(gain, batch["encoded"]), batch), merged)
        with self._autocast(sigma.device):
            share = self.network(held / white, batch["merged"], batch["linear"][:, 0], sigma)
        return share.float(), held, merged, leeway


# ---- stage 3: the refiner -------------------------------------------------------------------------------------------------


class _RefinerStage(Stage):
    """What the three parts of stage 3 share."""

    def __init__(self, recipe: Recipe, before: dict[str, Any], refiner: Refiner) -> None:
        super().__init__(recipe, before)
        self.refiner = refiner.train()

    def write(self, path: Path, facts: dict[str, Any]) -> None:
        """See `Stage`."""
        write_refiner(self.refiner, path, facts)

    def _encoded(self, batch: Batch, pictures: Tensor) -> tuple[Tensor, Skips]:
        """Latents and skips in single precision. Decoding is never done in half: a gain in bfloat16 is wrong by up to 1 % of radiance."""
        with self._autocast(batch["linear"].device):
            latent, skips = self.refiner.latent(pictures)
        return latent.float(), Skips(skips.fine.float(), skips.coarse.float())


def true_gain(batch: Batch) -> Tensor:
    """(B, 3, H, W) network gain of the truth."""
    return mu_gain(batch["truth"], batch["encoded"]).clamp(max=GAIN_LIMIT)


def short_frame(batch: Batch) -> Tensor:
    """(B, 3, H, W) square root of the shortest frame's linear light, aligned."""
    shortest = batch["stops"].argmin(dim=1)
    return batch["linear"][torch.arange(len(shortest)), shortest].sqrt()


def light(batch: Batch) -> Tensor:
    """(B, 3, H, W) true radiance in the mu-law domain, 1 at the short frame's white, not beyond GAIN_LIMIT."""
    return compress(batch["truth"]).clamp(max=GAIN_LIMIT)


class AutoencoderStage(_RefinerStage):
    """Gain maps, frames for the condition, and radiance for `light` latents, through the latent and back: without the decoder's skips, and
    with."""

    def learned(self) -> list[nn.Parameter]:
        """See `Stage`."""
        return list(self.refiner.autoencoder.parameters())

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Parts]:
        """See `Stage`."""
        pictures = torch.cat([true_gain(batch), short_frame(batch)[::2], light(batch)[1::2]])
        latent, skips = self._encoded(batch, pictures)
        loss, psnr = picture_loss(self._back(latent, None), pictures)
        with_skips, psnr_skips = picture_loss(self._back(latent, skips), pictures)
        spread = latent_loss(latent)
        return loss + 0.5 * with_skips + spread, {"psnr": psnr, "psnr_skips": psnr_skips, "latent": spread}

    def check(self, batch: Batch) -> dict[str, float]:
        """PSNR of the gain, without and with skips, and of the frame."""
        gain, frame = true_gain(batch), short_frame(batch)
        latent, skips = self.refiner.latent(gain)
        framed = self._back(self.refiner.latent(frame)[0], None)
        found = {"psnr": (self._back(latent, None), gain), "psnr_skips": (self._back(latent, skips), gain), "psnr_frame": (framed, frame)}
        return {k: float(decibels(a, b).mean()) for k, (a, b) in found.items()} | {"latent_deviation": float(latent.std())}

    def _back(self, latent: Tensor, skips: Skips | None) -> Tensor:
        decoded: Tensor = self.refiner.autoencoder.decode(latent, skips)
        return decoded


class _Guided(_RefinerStage):
    """A refiner beside the frozen regressor that guides it."""

    def __init__(self, recipe: Recipe, before: dict[str, Any], refiner: Refiner, guide: Regressor) -> None:
        super().__init__(recipe, before, refiner)
        self.guide = guide.eval()

    def train(self, mode: bool = True) -> _Guided:
        """The guide stays as it is."""
        super().train(mode)
        self.guide.eval()
        return self

    def _guidance(self, batch: Batch) -> tuple[Tensor, Tensor, Estimate]:
        """(B, 3, H, W) gain of the estimate, (B, 1, H / 4, W / 4) mask 0..1, and the regressor's answer."""
        with torch.no_grad(), self._autocast(batch["linear"].device):
            found: Estimate = self.guide(**{k: batch[k] for k in INPUTS}, with_mask=True)
        assert found.degradation is not None
        gain = full_gain(found.change.float(), batch["merged"], batch["stops"], batch["encoded"])
        return gain, torch.sigmoid(found.degradation.float()), found

    def facts(self) -> dict[str, Any]:
        """The regressor that it was trained beside."""
        return {"guide": digest(self.guide)}


class _Known(NamedTuple):
    """What does not depend on the timestep: the true latent, and the conditions as `Denoiser.forward` takes them."""

    latent: Tensor
    condition: Tensor
    mask: Tensor
    context: tuple[Tensor, Tensor, Tensor]


class PriorStage(_Guided):
    """Ordinary latent diffusion on gain maps under the bracket's conditions: noise prediction (Ho et al. 2020, equation 14).

    On radiance itself where the recipe's latents are "light": what earlier systems did, and the paper compares itself with.
    """

    def learned(self) -> list[nn.Parameter]:
        """See `Stage`."""
        return list(self.refiner.denoiser.parameters())

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Parts]:
        """See `Stage`."""
        # Drawn for the whole batch, on the processor: the same wherever a run goes on, and however many processes share it.
        dice, whole = torch.Generator().manual_seed((self.recipe.seed << 32) + step), self.recipe.batch
        at = torch.randint(0, STEPS, (whole,), generator=dice)
        guided = torch.rand(whole, generator=dice) >= UNGUIDED_SHARE
        latent = self.refiner.autoencoder.shape.latent, *(s // LATENT_FOLD for s in batch["encoded"].shape[-2:])
        noise = torch.randn((whole, *latent), generator=dice)
        rank, world = self.share
        loss = self._loss(self._known(batch), *(values[rank::world].to(batch["linear"].device) for values in (at, noise, guided)))
        return loss, {"noise": loss}

    @torch.no_grad()
    def check(self, batch: Batch) -> dict[str, float]:
        """The same loss with the context, over timesteps and at the one of the one step; noise is the same from check to check."""
        device, found, known = batch["linear"].device, [], self._known(batch)
        shape = 1, self.refiner.autoencoder.shape.latent, *(s // LATENT_FOLD for s in batch["encoded"].shape[-2:])
        for step in CHECKED_STEPS:
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(step)).to(device)
            guided = torch.ones(1, dtype=torch.bool, device=device)
            found.append(float(self._loss(known, torch.tensor([step], device=device), noise, guided)))
        return {"noise": sum(found) / len(found), "noise_at_one_step": found[CHECKED_STEPS.index(ONE_STEP_AT)]}

    @torch.no_grad()
    def _known(self, batch: Batch) -> _Known:
        _, mask, found = self._guidance(batch)
        wanted = light(batch) if self.recipe.latents == "light" else true_gain(batch)
        latent, condition = (self._encoded(batch, p)[0] for p in (wanted, short_frame(batch)))
        return _Known(latent, condition, nn.functional.avg_pool2d(mask, 2), found.context)

    def facts(self) -> dict[str, Any]:
        """What its latents are of, too."""
        return super().facts() | {"latents": self.recipe.latents}

    def _loss(self, known: _Known, at: Tensor, noise: Tensor, guided: Tensor) -> Tensor:
        with_context = guided.float()[:, None, None, None]
        context = [c * with_context for c in known.context]
        with self._autocast(known.latent.device):
            predicted = self.refiner.denoiser(add_noise(known.latent, noise, at), known.condition, known.mask, context, at)
        return nn.functional.mse_loss(predicted.float(), noise)


class OneStepStage(_Guided):
    """The estimate's latent, denoised once at a fixed step and decoded: denoiser, decoder and gates learn, the encoder does not.

    What `refine` takes of the answer counts (but for `stillness`, which crops are too small for), and the whole answer. The estimate
    beneath is not held to the merge, as users get it: figures of `check` compare with each other, not with those of other stages.
    """

    rests_on = MappingProxyType({"answer": REFINER_ANSWER})

    def facts(self) -> dict[str, Any]:
        """What it answers, too."""
        return super().facts() | {"answer": REFINER_ANSWER}

    def learned(self) -> list[nn.Parameter]:
        """See `Stage`."""
        frozen = ("fold_in", "encode_fine", "down", "encode_coarse", "to_latent")
        decoder = [p for n, p in self.refiner.autoencoder.named_parameters() if not n.startswith(frozen)]
        return [*self.refiner.denoiser.parameters(), *decoder, *self.refiner.gating.parameters()]

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Parts]:
        """See `Stage`."""
        gain, mask, refined = self._refined(batch)
        doubt, (truth, encoded) = full_size(mask, refined), (batch["truth"], batch["encoded"])
        whole, _ = refined_loss(refined, truth, encoded, LEAST_WEIGHT + doubt)
        used, share = as_used(gain, refined, doubt, encoded)
        by_use, parts = refined_loss(used, truth, encoded, share / share.mean().clamp_min(LEAST_USED))
        return (1 - USED_SHARE) * whole + USED_SHARE * by_use, parts | {"share": share.mean()}

    @torch.no_grad()
    def check(self, batch: Batch) -> dict[str, float]:
        """PSNR-mu of the estimate, of the answer and of what is used of it, over the picture and where something is used of it."""
        gain, mask, refined = self._refined(batch)
        used, share = as_used(gain, refined, full_size(mask, refined), batch["encoded"])
        where = share > 0
        found = {}
        for name, g in (("estimate", gain), ("refined", refined.clamp(0, GAIN_LIMIT)), ("used", used.clamp(0, GAIN_LIMIT))):
            picture = radiance_from_mu_gain(g, batch["encoded"])
            found[f"{name}_psnr_mu"] = psnr_mu(picture, batch["truth"])
            found[f"{name}_psnr_mu_used_px"] = psnr_mu(picture, batch["truth"], where)
        return found

    def _refined(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        gain, mask, found = self._guidance(batch)
        latent, skips = self._encoded(batch, gain)
        condition, _ = self._encoded(batch, short_frame(batch))
        small = nn.functional.avg_pool2d(mask, 2)
        with self._autocast(batch["linear"].device):
            noise = self.refiner.denoiser(
                latent, condition, small, found.context, torch.full((len(gain),), ONE_STEP_AT, device=gain.device)
            )
        clean, context = x0_at(latent, noise.float(), ONE_STEP_AT), found.context[0].float()
        before, after = (self.refiner.decoded(x, skips, context, small) for x in (latent, clean))
        return gain, mask, gain + after - before
