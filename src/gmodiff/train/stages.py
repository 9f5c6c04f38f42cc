"""What each stage learns, from what, and how it is judged while it does; the loop knows none of it.

A stage is a module whose call is a training step's loss. What it holds frozen (the regressor behind the refiner) it carries with it, so
that a checkpoint is whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gmodiff.errors import InputError
from gmodiff.model.autoencoder import Skips
from gmodiff.model.diffusion import STEPS, noised
from gmodiff.model.refiner import Refiner, read_refiner, write_refiner
from gmodiff.model.regressor import GAIN_LIMIT, Estimate, Regressor, full_gain, mu_gain, radiance_from_mu_gain
from gmodiff.model.weights import read_weights, write_weights
from gmodiff.train.crops import Batch
from gmodiff.train.losses import (
    average_precision,
    decibels,
    errs,
    estimate_loss,
    full_size,
    latent_loss,
    mask_loss,
    picture_loss,
    psnr_mu,
    refined_loss,
)
from gmodiff.train.recipes import Recipe

Parts = dict[str, Tensor]
INPUTS = ("linear", "stops", "coverage", "merged", "encoded")
UNGUIDED_SHARE = 0.1
"""Of the prior's steps, without the regressor's context: what classifier-free guidance needs (Ho and Salimans 2022), and one ablation."""


class Stage(nn.Module):
    """What the loop trains. before: facts of the weights it began with."""

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

    def _autocast(self, batch: Batch) -> torch.autocast:
        return torch.autocast(batch["linear"].device.type, torch.bfloat16, enabled=self.recipe.bf16)


def begin(recipe: Recipe, start: Path | None, regressor: Path | None = None) -> Stage:
    """The stage of a recipe before its first step.

    start: weights to go on with; the mask needs a finished regressor's, the prior an autoencoder's, one step a prior's.
    regressor: weights of the frozen regressor, with its mask, that prior and one step are guided by.
    Raises InputError where one that is needed is missing, FileFormatError for a file of another kind.
    """
    torch.manual_seed(recipe.seed)
    if recipe.stage in ("regressor", "mask"):
        network, before = (Regressor(recipe.shape), {}) if start is None else read_weights(start)
        if recipe.stage == "mask" and start is None:
            raise InputError("the mask is trained on a finished regressor: give its run or weights with --from")
        if start is not None and network.shape != recipe.shape:
            raise InputError(f"{start} holds a network of another shape ({network.shape.as_dict()}) than the recipe trains")
        return (MaskStage if recipe.stage == "mask" else EstimateStage)(recipe, before, network)
    refiner, before = (Refiner(recipe.autoencoder, recipe.denoiser), {}) if start is None else read_refiner(start)
    if recipe.stage == "autoencoder":
        return AutoencoderStage(recipe, before, refiner)
    if start is None:
        needed = {"prior": "an autoencoder", "onestep": "a prior"}[recipe.stage]
        raise InputError(f"{recipe.stage} is trained on {needed}: give its run or weights with --from")
    if regressor is None:
        raise InputError(f"{recipe.stage} is guided by a regressor: give its run or weights with --regressor")
    guide, facts = read_weights(regressor)
    if not facts.get("steps", {}).get("mask", 1):
        raise InputError(f"{regressor} has no trained mask: gmodiff train mask makes it")
    return (PriorStage if recipe.stage == "prior" else OneStepStage)(recipe, before, refiner, guide)


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
        """See `Stage`."""
        gain, _ = self._estimate(batch)
        return estimate_loss(gain, batch["truth"], batch["encoded"])

    def check(self, batch: Batch) -> dict[str, float]:
        """PSNR-mu of the estimate and of the classical merge."""
        gain, _ = self._estimate(batch)
        white = 2.0 ** float(batch["stops"].min())
        estimated = radiance_from_mu_gain(gain, batch["encoded"])
        return {"psnr_mu": psnr_mu(estimated, batch["truth"]), "merged_psnr_mu": psnr_mu(batch["merged"] * white, batch["truth"])}

    def write(self, path: Path, facts: dict[str, Any]) -> None:
        """See `Stage`."""
        write_weights(self.network, path, facts)

    def _estimate(self, batch: Batch, *, with_mask: bool = False) -> tuple[Tensor, Tensor | None]:
        """The gain, and the logits of the mask."""
        with self._autocast(batch):
            estimate = self.network(**{k: batch[k] for k in INPUTS}, with_mask=with_mask)
        gain = full_gain(estimate.change.float(), batch["merged"], batch["stops"], batch["encoded"])
        return gain, None if estimate.degradation is None else estimate.degradation.float()


class MaskStage(EstimateStage):
    """Stage 2: where the frozen estimate is wrong."""

    def learned(self) -> list[nn.Parameter]:
        """See `Stage`."""
        return self.network.mask_parameters()

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Parts]:
        """See `Stage`."""
        gain, logits = self._estimate(batch, with_mask=True)
        assert logits is not None
        wrong = errs(gain.detach(), batch["truth"], batch["encoded"])
        return mask_loss(full_size(logits, wrong), wrong), {"share": wrong.mean()}

    def check(self, batch: Batch) -> dict[str, float]:
        """Average precision beside the share of doubtful pixels, which is what a blind mask gets; and the estimate's figures."""
        gain, logits = self._estimate(batch, with_mask=True)
        assert logits is not None
        wrong = errs(gain, batch["truth"], batch["encoded"])
        found = {"average_precision": average_precision(full_size(logits, wrong), wrong), "share": float(wrong.mean())}
        return super().check(batch) | found


# ---- stage 3: the refiner -------------------------------------------------------------------------------------------------


class _RefinerStage(Stage):
    """What the three parts of stage 3 share."""

    def __init__(self, recipe: Recipe, before: dict[str, Any], refiner: Refiner) -> None:
        super().__init__(recipe, before)
        self.refiner = refiner.train()

    def write(self, path: Path, facts: dict[str, Any]) -> None:
        """See `Stage`."""
        write_refiner(self.refiner, path, facts)


def true_gain(batch: Batch) -> Tensor:
    """(B, 3, H, W) network gain of the truth."""
    return mu_gain(batch["truth"], batch["encoded"]).clamp(max=GAIN_LIMIT)


def short_frame(batch: Batch) -> Tensor:
    """(B, 3, H, W) square root of the shortest frame's linear light, aligned."""
    shortest = batch["stops"].argmin(dim=1)
    return batch["linear"][torch.arange(len(shortest)), shortest].sqrt()


class AutoencoderStage(_RefinerStage):
    """Gain maps, and frames for the condition, through the latent and back: without the decoder's skips, and with."""

    def learned(self) -> list[nn.Parameter]:
        """See `Stage`."""
        return list(self.refiner.autoencoder.parameters())

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Parts]:
        """See `Stage`."""
        pictures = torch.cat([true_gain(batch), short_frame(batch)])
        with self._autocast(batch):
            latent, skips = self.refiner.latent(pictures)
            plain = self._back(latent, None)
            helped = self._back(latent, skips)
        loss, psnr = picture_loss(plain, pictures)
        with_skips, psnr_skips = picture_loss(helped, pictures)
        spread = latent_loss(latent.float())
        return loss + 0.3 * with_skips + spread, {"psnr": psnr, "psnr_skips": psnr_skips, "latent": spread}

    def check(self, batch: Batch) -> dict[str, float]:
        """PSNR of the gain, without and with skips, and of the frame."""
        gain, frame = true_gain(batch), short_frame(batch)
        latent, skips = self.refiner.latent(gain)
        framed = self._back(self.refiner.latent(frame)[0], None)
        found = {"psnr": (self._back(latent, None), gain), "psnr_skips": (self._back(latent, skips), gain), "psnr_frame": (framed, frame)}
        return {k: float(decibels(a, b).mean()) for k, (a, b) in found.items()} | {"latent_deviation": float(latent.std())}

    def _back(self, latent: Tensor, skips: Skips | None) -> Tensor:
        decoded: Tensor = self.refiner.autoencoder.decode(latent, skips)
        return decoded.float()


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
        with torch.no_grad(), self._autocast(batch):
            found: Estimate = self.guide(**{k: batch[k] for k in INPUTS}, with_mask=True)
        assert found.degradation is not None
        gain = full_gain(found.change.float(), batch["merged"], batch["stops"], batch["encoded"])
        return gain, torch.sigmoid(found.degradation.float()), found

    def _dice(self, step: int, device: torch.device) -> torch.Generator:
        """Random numbers of a step, the same wherever a run goes on."""
        return torch.Generator(device).manual_seed((self.recipe.seed << 32) + step)


class PriorStage(_Guided):
    """Ordinary latent diffusion on gain maps under the bracket's conditions: noise prediction (Ho et al. 2020, equation 14)."""

    def learned(self) -> list[nn.Parameter]:
        """See `Stage`."""
        return list(self.refiner.denoiser.parameters())

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Parts]:
        """See `Stage`."""
        loss = self._loss(batch, self._dice(step, batch["linear"].device))
        return loss, {"noise": loss}

    @torch.no_grad()
    def check(self, batch: Batch) -> dict[str, float]:
        """The same loss, at timesteps and with noise that stay the same from check to check."""
        return {"noise": float(self._loss(batch, torch.Generator(batch["linear"].device).manual_seed(0)))}

    def _loss(self, batch: Batch, dice: torch.Generator) -> Tensor:
        _, mask, found = self._guidance(batch)
        with torch.no_grad(), self._autocast(batch):
            latent, condition = (self.refiner.latent(p)[0].float() for p in (true_gain(batch), short_frame(batch)))
        size, device = latent.shape[0], latent.device
        at = torch.randint(0, STEPS, (size,), generator=dice, device=device)
        noise = torch.randn(latent.shape, generator=dice, device=device)
        guided = (torch.rand(size, generator=dice, device=device) >= UNGUIDED_SHARE).float()[:, None, None, None]
        with self._autocast(batch):
            predicted = self.refiner.denoiser(
                noised(latent, noise, at),
                condition,
                nn.functional.avg_pool2d(mask, 2),
                [c * guided for c in found.context],
                at,
            )
        return nn.functional.mse_loss(predicted.float(), noise)


class OneStepStage(_Guided):
    """The estimate's latent, denoised once at a fixed step and decoded: denoiser, decoder and gates learn, the encoder does not."""

    def learned(self) -> list[nn.Parameter]:
        """See `Stage`."""
        frozen = ("fold_in", "encode_fine", "down", "encode_coarse", "to_latent")
        decoder = [p for n, p in self.refiner.autoencoder.named_parameters() if not n.startswith(frozen)]
        return [*self.refiner.denoiser.parameters(), *decoder, *self.refiner.gating.parameters()]

    def forward(self, batch: Batch, step: int) -> tuple[Tensor, Parts]:
        """See `Stage`."""
        _, mask, refined = self._refined(batch)
        return refined_loss(refined, batch["truth"], batch["encoded"], full_size(mask, refined))

    @torch.no_grad()
    def check(self, batch: Batch) -> dict[str, float]:
        """PSNR-mu of the estimate and of what became of it, over the picture and where the mask is above one half."""
        gain, mask, refined = self._refined(batch)
        where = full_size(mask, refined) > 0.5
        found = {}
        for name, g in (("estimate", gain), ("refined", refined.clamp(0, GAIN_LIMIT))):
            picture = radiance_from_mu_gain(g, batch["encoded"])
            found[f"{name}_psnr_mu"] = psnr_mu(picture, batch["truth"])
            found[f"{name}_psnr_mu_mask"] = psnr_mu(picture, batch["truth"], where)
        return found

    def _refined(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        gain, mask, found = self._guidance(batch)
        with self._autocast(batch):
            refined = self.refiner(gain, short_frame(batch), mask, found.context)
        return gain, mask, refined.float()
