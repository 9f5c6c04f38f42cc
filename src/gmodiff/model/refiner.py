"""Stage 3, compact: the estimate's gain map is encoded, denoised once, and decoded beside what was known before.

    z = encode(G),   c = encode(short frame)
    x0 = (z - sqrt(1 - abar) eps(z, c, mask, context)) / sqrt(abar)
    G' = G + decode(x0, skips of G) - decode(z, skips of G)

No noise is added: the estimate starts the way back where noise would be at step ONE_STEP_AT (paper section 3.4). `context` is what the
frozen regressor's encoder saw; it guides both the denoising and, through the gates, the decoding. The paper's answer is decode(x0) alone;
ours is what denoising changed of it, put on the estimate, so that what the autoencoder cannot say is not lost: where nothing is denoised,
nothing changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gmodiff.model.autoencoder import Autoencoder, AutoencoderShape, Gating, Skips
from gmodiff.model.denoiser import Denoiser, DenoiserShape
from gmodiff.model.diffusion import ONE_STEP_AT, ddim_sample, x0_at
from gmodiff.model.weights import read_network, write_tensors

FORMAT = "gmodiff-refiner-1"
LATENT_SCALE = 1.0
"""What latents are multiplied by before diffusion: training holds each channel near mean 0 and deviation 1 (`losses.latent_loss`)."""
REFINER_HALO_PX = 64
"""How far around a pixel the refiner sees as far as it matters (tests/test_refiner.py on random weights of the default size,
tests/test_refiner_weights.py on those that ship); a multiple of the regressor's stride."""


class Refiner(nn.Module):
    """Autoencoder, denoiser and gates."""

    def __init__(self, autoencoder: AutoencoderShape | None = None, denoiser: DenoiserShape | None = None) -> None:
        super().__init__()
        self.autoencoder = Autoencoder(autoencoder)
        self.denoiser = Denoiser(denoiser)
        self.gating = Gating(self.denoiser.shape.context[0], self.autoencoder.shape)

    def forward(self, gain: Tensor, short: Tensor, mask: Tensor, context: Sequence[Tensor]) -> Tensor:
        """The refined network gain (B, 3, H, W), not cut, not yet blended or constrained.

        gain: (B, 3, H, W) network gain of the estimate, H and W multiples of 32 (`regressor.STRIDE`).   short: (B, 3, H, W), 0..1,
        the square root of the shortest frame's linear light, aligned.   mask: (B, 1, H / 4, W / 4), 0..1.   context: `Estimate.context`.
        """
        return self.refine(gain, short, mask, context)

    def refine(
        self,
        gain: Tensor,
        short: Tensor,
        mask: Tensor,
        context: Sequence[Tensor],
        *,
        guided: bool = True,
        skipped: bool = True,
        noise: Tensor | None = None,
        steps: int = 1,
        half: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> Tensor:
        """`forward` with parts taken away: what each is good for.

        guided: the denoiser gets the context.   skipped: the decoder gets the estimate's features.   noise: (B, latent, H / 8, W / 8) of
        unit variance to begin with instead of the estimate.   steps: from noise, 1 (at ONE_STEP_AT) or more (DDIM; of a prior's
        weights: those of the one step have forgotten the other timesteps).   half: an autocast to encode and denoise under; decoding is
        never done in half precision, since a gain in bfloat16 is wrong by up to 1 % of radiance. Raises ValueError for more than one
        step without noise.
        """
        if steps > 1 and noise is None:
            raise ValueError(f"{steps} steps begin with noise, and there is none")
        with half():
            latent, skips = self.latent(gain)
            condition, _ = self.latent(short)
        latent, skips = latent.float(), Skips(skips.fine.float(), skips.coarse.float())
        small = functional.avg_pool2d(mask, 2)
        seen = list(context) if guided else [torch.zeros_like(c) for c in context]

        def predict(noisy: Tensor, step: int) -> Tensor:
            at = torch.full((noisy.shape[0],), step, device=noisy.device)
            with half():
                predicted: Tensor = self.denoiser(noisy, condition, small, seen, at)
            return predicted.float()

        start = latent if noise is None else noise
        clean = x0_at(start, predict(start, ONE_STEP_AT), ONE_STEP_AT) if steps == 1 else ddim_sample(predict, start, steps)
        beside, guide = skips if skipped else None, context[0].float()
        return gain + self.decoded(clean, beside, guide, small) - self.decoded(latent, beside, guide, small)

    def latent(self, picture: Tensor) -> tuple[Tensor, Skips]:
        """(B, 3, H, W) to the scaled latent, and what the encoder saw."""
        latent, skips = self.autoencoder.encode(picture)
        return latent * LATENT_SCALE, skips

    def decoded(self, latent: Tensor, skips: Skips | None, context: Tensor, mask: Tensor) -> Tensor:
        """A scaled latent to a gain, with the estimate's features as far as its gates let them in."""
        gates = None if skips is None else self.gating(context, mask)
        picture: Tensor = self.autoencoder.decode(latent / LATENT_SCALE, skips, gates)
        return picture


def write_refiner(refiner: Refiner, path: Path, facts: dict[str, Any], *, half: bool = False) -> None:
    """Write all weights; facts are plain values kept beside them. half: as float16, for shipping."""
    shapes = {"autoencoder": refiner.autoencoder.shape.as_dict(), "denoiser": refiner.denoiser.shape.as_dict()}
    write_tensors(refiner.state_dict(), path, {"format": FORMAT, "shape": json.dumps(shapes), "facts": json.dumps(facts)}, half=half)


def read_refiner(path: Path) -> tuple[Refiner, dict[str, Any]]:
    """The refiner, float32, and the facts beside it. Raises FileFormatError for a file that is not one of ours or lacks a weight."""

    def build(shapes: dict[str, Any]) -> Refiner:
        return Refiner(AutoencoderShape.from_dict(shapes["autoencoder"]), DenoiserShape.from_dict(shapes["denoiser"]))

    return read_network(path, FORMAT, build, "a refiner")
