"""The denoiser: a small U-Net on latents that says what noise is in them, under the conditions a bracket gives.

Conditions enter position by position instead of by cross-attention over the picture: the latent of the shortest frame (unclipped light),
the regressor's features at the scale they were made at (the paper's context c_L), and the degradation mask. So a tile becomes what it
would be within the whole. The timestep stays an input: one shape serves many steps and one. Weights trained on for one step are no
many-step model any more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from gmodiff.model.blocks import Block, Sizes


@dataclass(frozen=True)
class DenoiserShape(Sizes):
    """Sizes. widths: channels at 1/8, 1/16 and 1/32 of the picture's side; blocks: on the way down, at the bottom, on the way up.

    latent: channels of a latent.   context: channels of the regressor's features at 1/8, 1/16 and 1/32.   time: of the timestep.
    """

    widths: tuple[int, int, int] = (96, 192, 288)
    blocks: tuple[int, int, int, int, int] = (2, 3, 4, 3, 2)
    latent: int = 16
    context: tuple[int, int, int] = (64, 128, 192)
    time: int = 128


class TimedBlock(Block):
    """`Block` whose first norm is scaled and shifted by the timestep (as in ADM, Dhariwal and Nichol 2021, section 3)."""

    def __init__(self, width: int, time: int) -> None:
        super().__init__(width)
        self.by_time = nn.Linear(time, 2 * width)
        nn.init.zeros_(self.by_time.weight)
        nn.init.zeros_(self.by_time.bias)

    def at(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C, H, W) and (B, T) to (B, C, H, W)."""
        scale, shift = self.by_time(time)[..., None, None].chunk(2, dim=1)
        return self._from(self.norm1(x) * (1 + scale) + shift, x)


class Denoiser(nn.Module):
    """Latents with noise in them to that noise."""

    def __init__(self, shape: DenoiserShape | None = None) -> None:
        super().__init__()
        self.shape = shape = DenoiserShape() if shape is None else shape
        first, second, third = shape.widths
        self.time = nn.Sequential(nn.Linear(shape.time, shape.time), nn.SiLU(), nn.Linear(shape.time, shape.time), nn.SiLU())
        self.enter = nn.Conv2d(2 * shape.latent + 1, first, 3, padding=1)
        self.contexts = nn.ModuleList(nn.Conv2d(c, w, 1) for c, w in zip(shape.context, shape.widths, strict=True))
        stages = zip(shape.blocks, (first, second, third, second, first), strict=True)
        self.stages = nn.ModuleList(nn.ModuleList(TimedBlock(w, shape.time) for _ in range(n)) for n, w in stages)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in ((first, second), (second, third)))
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, 4 * b, 1, bias=False), nn.PixelShuffle(2)) for a, b in ((third, second), (second, first))
        )
        self.leave = nn.Conv2d(first, shape.latent, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def forward(self, noisy: Tensor, condition: Tensor, mask: Tensor, context: Sequence[Tensor], step: Tensor) -> Tensor:
        """The noise in `noisy`.

        noisy, condition: (B, latent, h, w), h and w multiples of 4: the latent to denoise, and that of the shortest frame.
        mask: (B, 1, h, w), 0..1.   context: the regressor's features at h, h / 2 and h / 4.   step: (B,) 0..999.
        """
        time = self.time(_sinusoids(step, self.shape.time))
        x = self.enter(torch.cat([noisy, condition, mask], dim=1))
        seen = []
        for level, enter in enumerate(self.contexts):
            x = x + enter(context[level])
            x = _through(self.stages[level], x, time)
            if level < 2:
                seen.append(x)
                x = self.downs[level](x)
        for level, up in enumerate(self.ups):
            x = _through(self.stages[3 + level], up(x) + seen[1 - level], time)
        noise: Tensor = self.leave(functional.silu(x))
        return noise


def _through(blocks: nn.Module, x: Tensor, time: Tensor) -> Tensor:
    for block in blocks:  # type: ignore[attr-defined]
        x = block.at(x, time)
    return x


def _sinusoids(step: Tensor, width: int) -> Tensor:
    """(B,) timesteps to (B, width): cosines and sines of periods 2 pi to 2 pi 10^4 (Ho et al. 2020, appendix B)."""
    rates = torch.exp(-math.log(1e4) / (width // 2) * torch.arange(width // 2, device=step.device, dtype=torch.float32))
    angles = step.float()[:, None] * rates
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)
