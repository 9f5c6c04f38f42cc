"""Stage 3, the refiner, in three parts: autoencoder, prior, one step."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gmodiff.model.autoencoder import LATENT_FOLD, Skips
from gmodiff.model.diffusion import ONE_STEP_AT, STEPS, add_noise
from gmodiff.model.refiner import Refiner, write_refiner
from gmodiff.model.regressor import GAIN_LIMIT, Estimate, Regressor, full_gain, mu_gain, radiance_from_mu_gain
from gmodiff.model.weights import digest
from gmodiff.model_card import REFINER_ANSWER
from gmodiff.train.crops import Batch
from gmodiff.train.losses import (
    LEAST_USED,
    LEAST_WEIGHT,
    as_used,
    compress,
    decibels,
    full_size,
    latent_loss,
    picture_loss,
    psnr_mu,
    refined_loss,
)
from gmodiff.train.recipes import Recipe
from gmodiff.train.stage import INPUTS, Parts, Stage

UNGUIDED_SHARE = 0.1
"""Of the prior's crops, without the regressor's context: what classifier-free guidance needs (Ho and Salimans 2022), and one ablation."""

SKIPS_WEIGHT = 2.0
"""Of the autoencoder's loss with skips, beside that without. In 3000 steps at 2 from weights of 0.5, pictures came back 1.4 dB better with
skips, and none the worse without, on unseen scenes of the training pictures."""

USED_SHARE = 0.5
"""Of the one step's loss, on what `refine` takes of its answer."""

CHECKED_STEPS = (100, 300, ONE_STEP_AT, 700, 900)
"""Timesteps at which a prior is judged."""


class _RefinerStage(Stage):
    """What the three parts of stage 3 share."""

    def __init__(self, recipe: Recipe, before: dict[str, Any], refiner: Refiner) -> None:
        super().__init__(recipe, before)
        self.refiner = refiner.train()

    def write(self, path: Path, facts: dict[str, Any]) -> None:
        """See `Stage`."""
        write_refiner(self.refiner, path, facts)

    def _encoded(self, batch: Batch, pictures: Tensor) -> tuple[Tensor, Skips]:
        """Latents and skips in single precision (why: `Refiner.refine`)."""
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
        return loss + SKIPS_WEIGHT * with_skips + spread, {"psnr": psnr, "psnr_skips": psnr_skips, "latent": spread}

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
        refined = self.refiner.refine(gain, short_frame(batch), mask, found.context, half=lambda: self._autocast(gain.device))
        return gain, mask, refined
