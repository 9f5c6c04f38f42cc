"""The published degradation-aware regressor (DaReg): three exposures to a gain map, where that is doubtful, and the prior c_L.

Stages 1 and 2 of the paper (section 3.3) as released, name by name, so that its checkpoint loads into it. Unlike the compact regressor
(`model.regressor`) it takes exactly three frames, assumes a gamma of 2.2, and ends in a sigmoid: radiance above the short frame's white
cannot be said.

Large pictures are computed in strips of rows. That changes nothing: convolutions see as far beyond a strip as they reach, and the one
thing that joins the whole picture, a mean in each block, is taken between two passes. So a picture need not be where the network is:
frames in main memory visit a GPU strip by strip, and what is in between stays in main memory too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from gmodiff.model.blocks import Sizes, gated

STRIDE = 32
"""Sides of the published regressor's input are multiples of this: the product of its strides."""
GAMMA = 2.2
"""Camera response that the released weights assume: linear = encoded ** GAMMA."""
STRIP_PX, STRIP_CHANNELS = 1 << 18, 64
"""Pixels of a strip of so many channels, and of fewer: 64 MB a tensor of float32. Where there are more channels, there are fewer pixels."""

LEAST_ROWS = 16
"""Of a strip, however wide it is: halos would take more time than strips."""

FUSION_HALO = 4
"""Rows that fusing the frames sees beyond a strip."""


@dataclass(frozen=True)
class DaRegShape(Sizes):
    """Sizes; the defaults are the published ones, 48.33 million parameters.

    widths: channels at each depth, the last of the bottleneck.   encoder, decoder: NAF blocks a depth.   strides: from depth to depth.
    mask: channels that the mask head takes of each depth.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    encoder: tuple[int, ...] = (2, 4, 4, 8)
    middle: int = 1
    decoder: tuple[int, ...] = (2, 2, 2, 2)
    strides: tuple[int, ...] = (2, 2, 2, 4)
    mask: int = 16


class Regressed(NamedTuple):
    """gain: (B, 3, H, W), 0..1, the paper's G_hat.   mask: (B, 1, H, W), 0..1, how likely that is wrong.
    prior: (B, H/32 * W/32, 1024), the bottleneck row by row, the paper's c_L.
    """

    gain: Tensor
    mask: Tensor
    prior: Tensor


def network_input(encoded: Tensor, exposure: Tensor | float) -> Tensor:
    """(B, 3, H, W) encoded, 0..1, to the 6 channels of a frame: encoded ** 2.2 / exposure, then encoded. RGB.

    exposure: relative to the short frame's, which is 1 (section 3.1 of the paper).
    """
    return torch.cat([encoded.clamp(min=0) ** GAMMA / exposure, encoded], dim=1)


class DaReg(nn.Module):
    """The regressor with its mask head. Attribute names are the released checkpoint's."""

    def __init__(self, shape: DaRegShape | None = None) -> None:
        super().__init__()
        self.shape = shape = DaRegShape() if shape is None else shape
        widths, first = shape.widths, shape.widths[0]
        self.intro_0, self.intro_1, self.intro_2 = (_conv3(6, first) for _ in range(3))
        self.fusion = _Fusion(first)
        self.encoders, self.downs, self.ups, self.decoders = (nn.ModuleList() for _ in range(4))
        for depth, (blocks, stride) in enumerate(zip(shape.encoder, shape.strides, strict=True)):
            here, below = widths[depth], widths[depth + 1]
            self.encoders.append(nn.Sequential(*(NAFBlock(here) for _ in range(blocks))))
            self.downs.append(nn.Sequential(nn.Conv2d(here, below, stride, stride=stride)))
        self.middle_blks = nn.Sequential(*(NAFBlock(widths[-1]) for _ in range(shape.middle)))
        for blocks, stride, above, here in zip(shape.decoder, shape.strides[::-1], widths[:0:-1], widths[-2::-1], strict=True):
            self.ups.append(nn.Sequential(nn.Conv2d(above, here * stride**2, 1, bias=False), nn.PixelShuffle(stride)))
            self.decoders.append(nn.Sequential(*(NAFBlock(here) for _ in range(blocks))))
        self.ending, self.outconv = _conv3(first, first), _conv3(first, 3)
        self.encoder_adapt_convs = nn.ModuleList(nn.Conv2d(w, shape.mask, 1) for w in widths[:-1])
        double = 2 * shape.mask
        self.seg_conv_layers = nn.Sequential(
            _conv3(shape.mask * len(shape.encoder), double), nn.ReLU(), _conv3(double, shape.mask), nn.ReLU(), nn.Conv2d(shape.mask, 1, 1)
        )

    def mask_parameters(self) -> list[nn.Parameter]:
        """What stage 2 trains; the rest is stage 1's."""
        return [*self.encoder_adapt_convs.parameters(), *self.seg_conv_layers.parameters()]

    def forward(self, short: Tensor, middle: Tensor, long: Tensor) -> Regressed:
        """Three frames (B, 6, H, W) as `network_input` makes them; H and W are multiples of STRIDE.

        They may lie on another device than the network: then the work is done where the network is, strip by strip, and the answer and all
        that is kept on the way lies where the frames do. The numbers are the same up to rounding. Without gradients, what is kept on the
        way is overwritten as it goes; the frames are not.
        """
        device = self.ending.weight.device
        x = in_strips(self._fused, (short, middle, long), halo=FUSION_HALO, device=device)
        seen = []
        for blocks, down, stride in zip(self.encoders, self.downs, self.shape.strides, strict=True):
            x = blocks(x)
            seen.append(x)
            x = in_strips(down, (x,), stride=stride, device=device)
        x = self.middle_blks(x)
        prior = x.flatten(2).transpose(1, 2)
        mask = self._mask(seen, device)
        for up, blocks, stride in zip(self.ups, self.decoders, self.shape.strides[::-1], strict=True):
            skip = seen.pop()
            x = in_strips(lambda s, x, up=up: up(x) + s, (skip, x), stride=stride, device=device, into=skip)
            del skip
            x = blocks(x)
        return Regressed(in_strips(self._gain, (x, middle), halo=2, device=device), mask, prior)

    def _fused(self, short: Tensor, middle: Tensor, long: Tensor) -> Tensor:
        fused: Tensor = self.fusion(self.intro_0(short), self.intro_1(middle), self.intro_2(long))
        return fused

    def _gain(self, x: Tensor, middle: Tensor) -> Tensor:
        # The reference's first feature again: cheaper than to keep 64 channels at full size from the beginning.
        return torch.sigmoid(self.outconv(self.ending(x) + self.intro_1(middle)))

    def _mask(self, seen: Sequence[Tensor], device: torch.device) -> Tensor:
        """(B, 1, H, W) from the features of the encoder, finest first."""

        def head(*seen: Tensor) -> Tensor:
            size = seen[0].shape[-2:]
            parts = [
                functional.interpolate(conv(s), size, mode="bilinear", align_corners=False)
                for conv, s in zip(self.encoder_adapt_convs, seen, strict=True)
            ]
            return torch.sigmoid(self.seg_conv_layers(torch.cat(parts, dim=1)))

        coarsest = seen[0].shape[-2] // seen[-1].shape[-2]
        # Enlarged features are wrong up to half a pixel of the coarsest from where a strip is cut off; two convolutions carry that on.
        halo = -(-(coarsest // 2 + 2) // coarsest) * coarsest
        return in_strips(head, seen, halo=halo, stride=coarsest, device=device)


class NAFBlock(nn.Module):
    """A block of NAFNet (Chen et al. 2022, "Simple Baselines for Image Restoration", section 3): gates in place of activations, one
    scale per channel from the mean of the picture. (B, C, H, W) to the same.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _ChannelNorm(width), _ChannelNorm(width)
        self.conv1 = nn.Conv2d(width, 2 * width, 1)
        self.conv2 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1))
        self.conv3 = nn.Conv2d(width, width, 1)
        self.conv4, self.conv5 = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(width, width, 1)
        self.beta, self.gamma = (nn.Parameter(torch.zeros(1, width, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Large pictures in two passes: one up to the mean of the whole, one from there. Without gradients its answer takes the place of
        x, which is overwritten.
        """
        device = self.beta.device
        spread = in_strips(lambda s: gated(self.conv2(self.conv1(self.norm1(s)))), (x,), halo=1, device=device)
        scale: Tensor = self.sca(spread if spread.device == device else _mean(spread, device))

        def rest(x: Tensor, spread: Tensor) -> Tensor:
            y: Tensor = x + self.beta * self.conv3(spread * scale)
            z: Tensor = y + self.gamma * self.conv5(gated(self.conv4(self.norm2(y))))
            return z

        return in_strips(rest, (x, spread), device=device, into=x)


class _ChannelNorm(nn.Module):
    """Layer norm over channels, pixel by pixel; in float32 whatever goes in, since half precision loses small variances."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        variance, mean = torch.var_mean(wide, dim=1, correction=0, keepdim=True)
        scaled = ((wide - mean) * torch.rsqrt(variance + 1e-6)).to(x.dtype)
        return scaled * self.weight[:, None, None] + self.bias[:, None, None]


class _Fusion(nn.Module):
    """Attention on the supporting frames as in AHDRNet (Yan et al. 2019), each looked at beside the reference; then one 3x3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.att11, self.att31 = _conv3(2 * width, 2 * width), _conv3(2 * width, 2 * width)
        self.att12, self.att32 = _conv3(2 * width, width), _conv3(2 * width, width)
        self.conv2 = _conv3(3 * width, width)

    def forward(self, short: Tensor, reference: Tensor, long: Tensor) -> Tensor:
        of_short = torch.sigmoid(self.att12(functional.leaky_relu(self.att11(torch.cat([short, reference], dim=1)))))
        of_long = torch.sigmoid(self.att32(functional.leaky_relu(self.att31(torch.cat([long, reference], dim=1)))))
        fused: Tensor = self.conv2(torch.cat([short * of_short, reference, long * of_long], dim=1))
        return fused


def _conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def in_strips(
    work: Callable[..., Tensor],
    pictures: Sequence[Tensor],
    *,
    halo: int = 0,
    stride: int = 1,
    device: torch.device | None = None,
    into: Tensor | None = None,
) -> Tensor:
    """work on pictures (B, C, H, W), strip by strip of rows where they are large and nobody wants a gradient.

    work: pictures to one, seeing no farther than `halo` rows. The result is that of whole pictures, and lies where they do.   pictures: the
    first has the most rows; the others and the result may have fewer by whole factors.   stride: the largest of these factors; the halo is
    a multiple of it.   device: where the work is done; None: where the pictures are.   into: the picture whose place a result in strips
    takes, which is gone then; None: a new tensor.
    """
    batch, channels, height, width = pictures[0].shape
    home = pictures[0].device
    device = home if device is None else device
    rows = _strip_rows(batch, channels, width, stride)
    if rows >= height or torch.is_grad_enabled():
        return work(*(p.to(device) for p in pictures)).to(home)
    result = into
    for first in range(0, height, rows):
        end = min(first + rows, height)
        top, bottom = max(first - halo, 0), min(end + halo, height)

        part = work(*(_rows(p, top, bottom, height).to(device) for p in pictures))
        if result is None:
            size = part.shape[2] * height // (bottom - top)
            result = part.new_empty((*part.shape[:2], size, part.shape[3]), device=home)
        _rows(result, first, end, height).copy_(_rows(part, first - top, end - top, bottom - top))
    assert result is not None
    return result


def _strip_rows(batch: int, channels: int, width: int, stride: int = 1) -> int:
    rows = STRIP_PX * STRIP_CHANNELS // (batch * width * max(channels, STRIP_CHANNELS))
    return max(rows // stride, -(-LEAST_ROWS // stride)) * stride


def fused_px(height: int, width: int) -> int:
    """Pixels that are there at once while the frames of one picture are fused, where the regressor takes most beside what it keeps."""
    return min(height, _strip_rows(1, 1, max(width, 1)) + 2 * FUSION_HALO) * width


def _rows(picture: Tensor, first: int, end: int, of: int) -> Tensor:
    """The part of a picture (B, C, H, W) that shows rows first to end of so many; H divides that."""
    factor = of // picture.shape[2]
    return picture.narrow(2, first // factor, (end - first) // factor)


def _mean(picture: Tensor, device: torch.device) -> Tensor:
    """(B, C, 1, 1) mean of a picture (B, C, H, W) that lies elsewhere than the device, summed there in float32."""
    height, width = picture.shape[-2:]
    rows = _strip_rows(picture.shape[0], picture.shape[1], width)
    strips = ((r, min(r + rows, height)) for r in range(0, height, rows))
    total = sum(_rows(picture, *s, height).to(device).sum((2, 3), keepdim=True, dtype=torch.float32) for s in strips)
    assert isinstance(total, Tensor)
    return (total / (height * width)).to(picture.dtype)
