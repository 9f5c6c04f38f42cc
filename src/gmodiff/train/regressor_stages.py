"""Stages 1 and 2, the estimate and where it is doubtful; and noise where the reference measured, learned beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gmodiff.model.noise_reducer import NoiseReducer, write_noise_reducer
from gmodiff.model.regressor import Regressor, full_gain, mu_gain, radiance_from_mu_gain
from gmodiff.model.weights import digest, write_weights
from gmodiff.provenance import HELD_SIGMAS
from gmodiff.train.crops import Batch
from gmodiff.train.losses import (
    average_precision,
    errs,
    estimate_loss,
    full_size,
    mask_loss,
    noise_loss,
    psnr_mu,
    unmeasured,
)
from gmodiff.train.recipes import Recipe
from gmodiff.train.stage import INPUTS, Parts, Stage

HELD_SHARE = 0.7
"""Of the regressor's loss, on the estimate held to the merge where the reference measured (`held_to_merge`)."""

STILL_SHARE = 0.4
"""Of the crops from which noise is to be learned, in which the merge stands in the estimate's place."""

SIGMA_ERROR_STOPS = 0.4
"""How wrong the noise model is in training (a deviation), in stops of the noise's own deviation."""


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
