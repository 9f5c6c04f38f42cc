"""What the networks are built of: NAFNet's block without pooling, folding of pixels into cells, sizes that a file's header holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Sizes:
    """Sizes of a network."""

    def as_dict(self) -> dict[str, Any]:
        """For a weights file's header."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `as_dict`."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


class ChannelNorm(nn.Module):
    """Layer norm over channels at each pixel, written as mean and variance: inference engines fuse that, and it needs no transposing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if not torch.onnx.is_in_onnx_export():
            # The same numbers from one kernel: several times faster where pixels lie channels last.
            shape = (x.shape[1],)
            last = functional.layer_norm(x.permute(0, 2, 3, 1), shape, self.weight.flatten(), self.bias.flatten(), 1e-6)
            return last.permute(0, 3, 1, 2)
        centred = x - x.mean(1, keepdim=True)
        variance = (centred * centred).mean(1, keepdim=True)
        return centred * torch.rsqrt(variance + 1e-6) * self.weight + self.bias


class Block(nn.Module):
    """A block of NAFNet (Chen et al. 2022, "Simple Baselines for Image Restoration", figure 2c) without its channel attention.

    That attention averages over the picture, and tiles would disagree with the whole.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(width), ChannelNorm(width)
        self.spread = nn.Conv2d(width, 2 * width, 1)
        self.around = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.gather = nn.Conv2d(width, width, 1)
        self.mix = nn.Conv2d(width, 2 * width, 1)
        self.unmix = nn.Conv2d(width, width, 1)
        self.scale1 = nn.Parameter(torch.full((1, width, 1, 1), 0.1))
        self.scale2 = nn.Parameter(torch.full((1, width, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return self._from(self.norm1(x), x)

    def _from(self, normed: Tensor, x: Tensor) -> Tensor:
        """The block once its first norm is known."""
        x = x + self.scale1 * self.gather(gated(normed, self.spread, self.around))
        mixed: Tensor = self.unmix(gated(self.norm2(x), self.mix))
        return x + self.scale2 * mixed


def gated(x: Tensor, *convolutions: nn.Conv2d) -> Tensor:
    """One half of the channels that convolutions make of x, times the other."""
    if not torch.onnx.is_in_onnx_export():
        for convolution in convolutions:
            x = convolution(x)
        a, b = x.chunk(2, dim=1)
        return a * b
    # The same by halves: engines cut a tensor in two slowly.
    halves = [x, x]
    for c in convolutions:
        width = c.out_channels // 2
        for n, part in enumerate(halves):
            own = slice(n * width, (n + 1) * width)
            bias = None if c.bias is None else c.bias[own]
            halves[n] = functional.conv2d(part, c.weight[own], bias, padding=c.padding, groups=1 if c.groups == 1 else width)
    return halves[0] * halves[1]


class Folded(nn.Conv2d):
    """A convolution on a picture folded into cells (pixel unshuffle), that is, one of fold times the kernel and stride on the picture.

    As the first it trains fast; as the second it is exported, and engines need not move every pixel to begin with.
    """

    def __init__(self, channels: int, width: int, kernel: int, fold: int) -> None:
        super().__init__(channels * fold**2, width, kernel, padding=kernel // 2)
        self.fold = fold

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, width, H / fold, W / fold)."""
        if not torch.onnx.is_in_onnx_export():
            return super().forward(functional.pixel_unshuffle(x, self.fold))
        fold, (width, _, kernel, _) = self.fold, self.weight.shape
        cells = self.weight.reshape(width, -1, fold, fold, kernel, kernel)
        spread = cells.permute(0, 1, 4, 2, 5, 3).reshape(width, -1, kernel * fold, kernel * fold)
        return functional.conv2d(x, spread, self.bias, stride=fold, padding=kernel // 2 * fold)


def shuffled(conv: nn.Conv2d, cell: int, *, zero: bool = False) -> nn.Conv2d:
    """Start a convolution in front of a pixel shuffle with the same weights for the pixels of a cell: no grid to begin with."""
    with torch.no_grad():
        if zero:
            conv.weight.zero_()
        else:
            conv.weight.copy_(conv.weight[::cell].repeat_interleave(cell, dim=0))
        if conv.bias is not None:
            conv.bias.zero_()
    return conv
