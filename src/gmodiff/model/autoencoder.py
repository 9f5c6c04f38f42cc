"""Gain maps to latents an eighth of the side and back: convolutions only, so any size works and tiles agree with the whole.

Stage 3 of the paper (section 3.4) at the size of a laptop. Pixels are folded into cells in front and unfolded behind, so nothing runs at
full size. A latent has 16 channels: with four, as in Stable Diffusion, the autoencoder itself is the limit of fidelity. It is the mean:
nothing is ever sampled, and the same picture gives the same bytes.

The decoder takes, beside the latent, what the encoder saw of the *estimate* (`Skips`), each weighted by a gate that follows from the
regressor's context and the degradation mask: the paper's degradation-aware decoder. Its gates are means over the picture; ours are
computed at each place, so that tiles cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from gmodiff.model.blocks import Block, Sizes, shuffled

LATENT_FOLD = 8
"""Pixels of a side that become one latent."""


@dataclass(frozen=True)
class AutoencoderShape(Sizes):
    """Sizes. fine, coarse: channels at 1/4 and 1/8 of the side; latent: of the latent; blocks: at 1/8, of the encoder and the decoder."""

    fine: int = 48
    coarse: int = 128
    latent: int = 16
    blocks: tuple[int, int] = (2, 2)


class Skips(NamedTuple):
    """What the encoder saw: (B, fine, H / 4, W / 4) and (B, coarse, H / 8, W / 8)."""

    fine: Tensor
    coarse: Tensor


class Gates(NamedTuple):
    """How much of `Skips` the decoder takes, 0..1, of their shapes."""

    fine: Tensor
    coarse: Tensor


class Autoencoder(nn.Module):
    """Pictures of three channels, 0..GAIN_LIMIT, to latents and back: network gains, the root of a frame's light, mu-law radiance."""

    def __init__(self, shape: AutoencoderShape | None = None) -> None:
        super().__init__()
        self.shape = shape = AutoencoderShape() if shape is None else shape
        fine, coarse = shape.fine, shape.coarse
        self.fold_in = nn.Conv2d(3 * 16, fine, 1)
        self.encode_fine = Block(fine)
        self.down = nn.Conv2d(fine, coarse, 2, stride=2)
        self.encode_coarse = nn.Sequential(*(Block(coarse) for _ in range(shape.blocks[0])))
        self.to_latent = nn.Conv2d(coarse, shape.latent, 1)
        self.from_latent = nn.Conv2d(shape.latent, coarse, 3, padding=1)
        self.decode_coarse = nn.Sequential(*(Block(coarse) for _ in range(shape.blocks[1])))
        self.up = nn.Sequential(shuffled(nn.Conv2d(coarse, fine * 4, 1), 4), nn.PixelShuffle(2))
        self.decode_fine = Block(fine)
        self.fold_out = shuffled(nn.Conv2d(fine, 3 * 16, 3, padding=1), 16)
        self.join_coarse, self.join_fine = (nn.Conv2d(2 * width, width, 1) for width in (coarse, fine))
        for join in (self.join_coarse, self.join_fine):  # the decoder begins nearly without what the encoder saw, as the paper's does
            own, seen = torch.eye(join.out_channels), 1e-5 * torch.eye(join.out_channels)
            join.weight.data = torch.cat([own, seen], dim=1)[..., None, None]
            nn.init.zeros_(join.bias)  # type: ignore[arg-type]

    def encode(self, picture: Tensor) -> tuple[Tensor, Skips]:
        """(B, 3, H, W), H and W multiples of 8, to (B, latent, H / 8, W / 8) and what was seen on the way."""
        fine = self.encode_fine(self.fold_in(functional.pixel_unshuffle(2 * picture - 1, 4)))
        coarse = self.encode_coarse(self.down(fine))
        return self.to_latent(coarse), Skips(fine, coarse)

    def decode(self, latent: Tensor, skips: Skips | None = None, gates: Gates | None = None) -> Tensor:
        """(B, latent, H / 8, W / 8) to (B, 3, H, W), not cut. skips: of the estimate's encoding; gates: of each, 1 where None."""
        x = self.from_latent(latent)
        if skips is not None:
            x = self.join_coarse(torch.cat([x, skips.coarse if gates is None else gates.coarse * skips.coarse], dim=1))
        x = self.up(self.decode_coarse(x))
        if skips is not None:
            # Joined, not added (as the paper's are): an exact feature put on top of an approximate one is right in no sum.
            x = self.join_fine(torch.cat([x, skips.fine if gates is None else gates.fine * skips.fine], dim=1))
        unfolded: Tensor = functional.pixel_shuffle(self.fold_out(self.decode_fine(x)), 4)
        return (unfolded + 1) / 2


class Gating(nn.Module):
    """The gates of the degradation-aware decoder, from the regressor's context at 1/8 and the degradation mask."""

    def __init__(self, context: int, shape: AutoencoderShape) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Conv2d(context + 1, 64, 1), nn.ReLU())
        self.coarse, self.fine = nn.Conv2d(64, shape.coarse, 1), nn.Conv2d(64, shape.fine, 1)

    def forward(self, context: Tensor, mask: Tensor) -> Gates:
        """context: (B, C, H / 8, W / 8).   mask: (B, 1, H / 8, W / 8), 0..1."""
        x = self.hidden(torch.cat([context, mask], dim=1))
        fine = functional.interpolate(self.fine(x), scale_factor=2, mode="bilinear")
        return Gates(torch.sigmoid(fine), torch.sigmoid(self.coarse(x)))
