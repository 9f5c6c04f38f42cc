"""How far each sample of an estimate lies from the light, within the leeway that the reference's noise leaves.

Wherever the reference measured, an estimate is held to the merge (`provenance.constrain`), and the merge has the noise that single
pixels give: none of it looks at neighbours. This network does, on the full-size picture, and says for every sample

    H = H_held + leeway * share,      -1 < share < 1,      leeway = HELD_SIGMAS deviations of the reference's noise

and the sum is held to the merge again, so that whatever it says, what was measured stays measured. It sees the estimate's local
differences, and how far the merge lies from the reference (what the other frames averaged away, or a ghost that noise hides) and the
estimate from the merge, all in units of the noise that the camera's model gives; on top of that it has to find out by itself how noisy
the picture is, since cameras reduce noise too.

A U-Net of plain 3x3 convolutions at 1/2 and 1/4 of the side (as FFDNet, Zhang et al. 2018, folds pixels and is told the noise), with no
pooling over the picture: tiles agree with the whole.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gmodiff.model.blocks import Folded, Sizes, shuffled
from gmodiff.model.weights import read_network, write_tensors

FORMAT = "gmodiff-noise-1"
NOISE_HALO_PX = 32
"""How far around a pixel the network sees (tests/test_noise.py); a multiple of the stride of its input."""
DARKEST = 1e-3
"""Linear light below which a deviation is not expressed as one of its square root."""
BRIGHTEST = 4.0
"""Linear light that counts as no more; what is brighter clips in the reference, and has no say here."""
SIGMA_STOPS = 4.0
"""Deviations come as stops above 1/256, in units of this."""


@dataclass(frozen=True)
class NoiseShape(Sizes):
    """Sizes of the network. widths: channels at 1/2 and 1/4 of the side; before, after, coarse: convolutions at 1/2,
    before and after those at 1/4."""

    widths: tuple[int, int] = (16, 32)
    before: int = 1
    after: int = 1
    coarse: int = 4


class NoiseReducer(nn.Module):
    """Merge, reference and deviation to shares of the leeway. Untrained it changes nothing."""

    def __init__(self, shape: NoiseShape | None = None) -> None:
        super().__init__()
        self.shape = shape = NoiseShape() if shape is None else shape
        fine, coarse = shape.widths
        self.fold_in = Folded(14, fine, 1, 2)
        self.before = _stack(fine, shape.before)
        self.down = nn.Conv2d(fine, coarse, 2, stride=2)
        self.coarse = _stack(coarse, shape.coarse)
        self.up = nn.Sequential(shuffled(nn.Conv2d(coarse, 4 * fine, 1), 4), nn.PixelShuffle(2))
        self.after = _stack(fine, shape.after)
        self.fold_out = shuffled(nn.Conv2d(fine, 12, 3, padding=1), 4, zero=True)

    def forward(self, held: Tensor, merged: Tensor, seen: Tensor, sigma: Tensor) -> Tensor:
        """(B, 3, H, W) shares of the leeway, -1..1; H and W multiples of 4.

        held, merged, seen: (B, 3, H, W) linear light of the estimate, held to the merge, of the merge, and of the reference alone,
        1.0 = the reference's white.   sigma: (B, 3, H, W) deviation of the reference's noise, linear, above 0.
        """
        near, far = _mean(held, 3), _mean(held, 9)
        noise = [v / (v.abs() + sigma) for v in (held - near, near - far, seen - merged, held - merged)]
        spread = sigma / (2 * torch.sqrt(seen.clamp(DARKEST, BRIGHTEST)))
        stops = torch.log2(spread.mean(dim=1, keepdim=True).clamp_min(1e-6) * 256) / SIGMA_STOPS
        brightness = torch.sqrt(held.mean(dim=1, keepdim=True).clamp(0.0, BRIGHTEST))
        fine = functional.relu(self.fold_in(torch.cat([*noise, brightness, stops], dim=1)))
        fine = _through(self.before, fine)
        coarse = _through(self.coarse, functional.relu(self.down(fine)))
        fine = _through(self.after, functional.relu(fine + self.up(coarse)))
        share: Tensor = torch.tanh(functional.pixel_shuffle(self.fold_out(fine), 2))
        return share


def _mean(x: Tensor, side: int) -> Tensor:
    """Of the square around each pixel, as far as it lies inside."""
    return functional.avg_pool2d(x, side, stride=1, padding=side // 2, count_include_pad=False)


def _stack(width: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(count))


def _through(convolutions: nn.ModuleList, x: Tensor) -> Tensor:
    """Every second one is added to what came before the two, so that depth does no harm."""
    kept = x
    for n, convolution in enumerate(convolutions):
        x = convolution(x)
        if n % 2 or n == len(convolutions) - 1:
            x = kept = functional.relu(x + kept)
        else:
            x = functional.relu(x)
    return x


def write_noise_reducer(network: NoiseReducer, path: Path, facts: dict[str, Any], *, half: bool = False) -> None:
    """Write all weights; facts are plain values kept beside them. half: as float16, for shipping."""
    header = {"format": FORMAT, "shape": json.dumps(network.shape.as_dict()), "facts": json.dumps(facts)}
    write_tensors(network.state_dict(), path, header, half=half)


def read_noise_reducer(path: Path) -> tuple[NoiseReducer, dict[str, Any]]:
    """The network, float32, and the facts beside it. Raises FileFormatError for a file that is not one of ours or lacks a weight."""
    return read_network(path, FORMAT, lambda shape: NoiseReducer(NoiseShape.from_dict(shape)), "a noise reducer")
