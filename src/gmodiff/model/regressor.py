"""The compact degradation-aware regressor: from aligned frames to the gain of the reference frame, and where that is doubtful.

Stages 1 and 2 of the paper (section 3.3) in another shape. The network does not paint the gain map: it says, per pixel, how much each
aligned frame counts beside the classical merge, and adds a bounded residual, the same to all channels: it may invent brightness, but
no hue that no photo shows. Untrained it leans on the merge.

    G  = mu_gain(merged) + sum_i w_i (mu_gain(frame_i) - mu_gain(merged)) + residual,      0 <= G <= GAIN_LIMIT

Everything it sees is radiance and the square root of linear light, both through the camera response in use, so that a new camera is
not a new domain. Radiance in the gain is relative to the white of the shortest frame, as published; but where the published network
ends in a sigmoid, which caps radiance at that white, ours goes to GAIN_LIMIT: over a clipped reference that is 3.3 stops more.

Frames share their weights and are joined by means and maxima, so that one set of weights takes 2 to MAX_FRAMES frames. There is no
pooling over the picture: what a pixel becomes depends on its surroundings alone, and tiles agree with the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from gmodiff.gainmap import MU_GAIN, OFFSET
from gmodiff.model.blocks import Block, Folded, Sizes, shuffled

GAIN_LIMIT = 1.5
"""Largest network gain: (1 + 1/64) * (101**1.5 - 1) / 100 = 10.3 times the short frame's white over a clipped reference."""
RESIDUAL_LIMIT = 0.5
"""Largest residual, in network gain: the rest must come from the frames."""
MAX_FRAMES = 9
"""Frames in one bracket that training has seen; more are thinned out before the network."""
STRIDE = 32
"""Sides of the network's input are multiples of this."""

HALO_PX = 128
"""How far around a pixel the network sees, as far as it matters (tests/test_estimate.py on the shipped weights: seams of tiles stay below
1e-3 of the gain in float32; at 96 one beside something bright that moved had 1.5e-3); a multiple of STRIDE."""

_CLIPPED_PRIOR, _MERGED_PRIOR = 8.0, 2.0
"""Logits by which a sample of a clipped or uncovered pixel starts behind (a share of e**-8, a thousandth of what training has to undo),
and the classical merge ahead (untrained, it has 71 % beside three frames). Chosen, not tuned; weights are trained with them."""
_CLIPPING_FROM, _CLIPPING_OVER = 0.92, 0.06
"""Square root of linear light from which a sample counts as clipping, and over which it comes to count wholly: near the end of every
response, in the only encoding that does not depend on the camera."""


@dataclass(frozen=True)
class Shape(Sizes):
    """Sizes of the network. widths: channels at 1/4, 1/8, 1/16 and 1/32 of the side; blocks: of encoder, middle, decoder."""

    fold: int = 4
    widths: tuple[int, int, int, int] = (32, 64, 128, 192)
    encoder: tuple[int, int, int] = (1, 2, 2)
    middle: int = 3
    decoder: tuple[int, int, int] = (1, 2, 2)
    polish: int = 12


class Exposures(nn.Module):
    """A few numbers about exposures to a bias per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, width))

    def forward(self, stops: Tensor, shortest: Tensor, longest: Tensor) -> Tensor:
        """(N,) stops of the frame, the shortest and the longest from the reference, to (N, C, 1, 1)."""
        bias: Tensor = self.layers(torch.stack([stops, shortest, longest], dim=1) / 4)
        return bias[..., None, None]


def mu_gain(radiance: Tensor, encoded: Tensor) -> Tensor:
    """`gainmap.mu_gain` on tensors."""
    return torch.log1p(MU_GAIN * radiance / (encoded + OFFSET)) / math.log1p(MU_GAIN)


def radiance_from_mu_gain(gain: Tensor, encoded: Tensor) -> Tensor:
    """`gainmap.radiance_from_mu_gain` on tensors."""
    return (encoded + OFFSET) * torch.expm1(gain * math.log1p(MU_GAIN)) / MU_GAIN


class _Beside:
    """What lies once per picture of a batch beside what lies once per frame, frames first: (frames * batch, ...).

    A batch of one needs no reshaping, and engines are spared that of large pictures.
    """

    def __init__(self, batch: int) -> None:
        self._batch = batch

    def __call__(self, x: Tensor, frames: int) -> Tensor:
        """(batch, ...) as often as there are frames, or once where broadcasting does that."""
        return x if self._batch == 1 else x.repeat(frames, *[1] * (x.ndim - 1))

    def mean(self, x: Tensor) -> Tensor:
        """(frames * batch, ...) to (batch, ...), as the others."""
        return x.mean(dim=0, keepdim=True) if self._batch == 1 else self._apart(x).mean(dim=0)

    def largest(self, x: Tensor) -> Tensor:
        """See `mean`."""
        return x.amax(dim=0, keepdim=True) if self._batch == 1 else self._apart(x).amax(dim=0)

    def sum(self, x: Tensor) -> Tensor:
        """See `mean`."""
        return x.sum(dim=0, keepdim=True) if self._batch == 1 else self._apart(x).sum(dim=0)

    def _apart(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self._batch, *x.shape[1:])


class Estimate(NamedTuple):
    """change: (B, 3, H, W), what to add to the network gain of the merge.   residual: (B, 1, H, W), the part of it that no frame accounts
    for.
    degradation: (B, 1, H / fold, W / fold) logits of the degradation mask; None where not asked for.
    context: what the encoder saw at 1/8, 1/16 and 1/32 of the side, (B, widths[k], ...): the paper's prior c_L, which guides the refiner.
    """

    change: Tensor
    residual: Tensor
    degradation: Tensor | None
    context: tuple[Tensor, Tensor, Tensor]


class Regressor(nn.Module):
    """The estimate and, once its head is trained, the degradation mask."""

    def __init__(self, shape: Shape | None = None) -> None:
        super().__init__()
        self.shape = shape = Shape() if shape is None else shape
        width, cell = shape.widths[0], shape.fold**2
        self.reference_in = Folded(9, width, 3, shape.fold)
        self.support_in = Folded(7, width, 1, shape.fold)
        self.reference_exposure, self.support_exposure = Exposures(width), Exposures(width)
        self.support_block = Block(width)
        first, second = nn.Conv2d(2 * width, width, 1), nn.Conv2d(width, width, 3, padding=1)
        self.attention = nn.Sequential(first, nn.LeakyReLU(0.1), second, nn.Sigmoid())
        self.join = nn.Conv2d(3 * width, width, 1)
        self.encoders, self.downs = nn.ModuleList(), nn.ModuleList()
        self.ups, self.decoders = nn.ModuleList(), nn.ModuleList()
        for level in range(3):
            here, below = shape.widths[level], shape.widths[level + 1]
            self.encoders.append(nn.Sequential(*(Block(here) for _ in range(shape.encoder[level]))))
            self.downs.append(nn.Conv2d(here, below, 2, stride=2))
            self.ups.insert(0, nn.Sequential(shuffled(nn.Conv2d(below, here * 4, 1, bias=False), 4), nn.PixelShuffle(2)))
            self.decoders.append(nn.Sequential(*(Block(shape.widths[2 - level]) for _ in range(shape.decoder[level]))))
        self.middle = nn.Sequential(*(Block(shape.widths[3]) for _ in range(shape.middle)))
        self.from_trunk, self.from_reference, self.from_support = (nn.Conv2d(width, width, 1) for _ in range(3))
        self.weigh_frame = shuffled(nn.Conv2d(width, cell, 1), cell, zero=True)
        self.weigh_merged, self.residual = (shuffled(nn.Conv2d(width, cell, 3, padding=1), cell, zero=True) for _ in range(2))
        # At full size and blind to where a pixel lies in its cell: it undoes what the pixel shuffle would leave of a grid.
        self.polish = nn.Sequential(nn.Conv2d(12, shape.polish, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(shape.polish, 1, 3, padding=1))
        for parameter in self.polish[2].parameters():
            nn.init.zeros_(parameter)
        self.mask_in = nn.ModuleList(nn.Conv2d(w, 8, 1) for w in shape.widths)
        self.mask_head = nn.Sequential(nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.mask_out = nn.Conv2d(16, 1, 1)

    def estimate_parameters(self) -> list[nn.Parameter]:
        """What stage 1 trains."""
        return [p for n, p in self.named_parameters() if not n.startswith("mask_")]

    def mask_parameters(self) -> list[nn.Parameter]:
        """What stage 2 trains."""
        return [p for n, p in self.named_parameters() if n.startswith("mask_")]

    def forward(
        self, linear: Tensor, stops: Tensor, coverage: Tensor, merged: Tensor, encoded: Tensor, *, with_mask: bool = False
    ) -> Estimate:
        """What to add to the gain of the merge, and where that is doubtful.

        linear: (B, n, 3, H, W), 0..1, aligned frames through the inverse response, the reference first.   stops: (B, n) log2 exposure
        relative to the reference.   coverage: (B, n, 1, H, W), 0..1.   merged: (B, 3, H, W) radiance of the classical merge, 1.0 = the
        reference's white.   encoded: (B, 3, H, W), 0..1, the reference as stored.   H and W are multiples of STRIDE.
        """
        batch, count = linear.shape[:2]
        supports, fold = count - 1, self.shape.fold
        shortest, longest = stops.min(dim=1).values, stops.max(dim=1).values
        white = torch.exp2(shortest)[:, None, None, None]
        gain = mu_gain(merged * white, encoded)

        # From here on frames lie before the batch in one dimension: the reference's batch, then that of each other frame.
        linear, coverage = (x.transpose(0, 1).flatten(0, 1) for x in (linear, coverage))
        stops = stops.T.flatten()
        beside = _Beside(batch)
        radiance = linear * torch.exp2(beside(shortest, count) - stops)[:, None, None, None]
        apart = mu_gain(radiance, beside(encoded, count)) - beside(gain, count)
        code = torch.sqrt(linear)

        reference = self.reference_in(torch.cat([code[:batch], apart[:batch], gain], dim=1))
        reference = reference + self.reference_exposure(stops[:batch], shortest, longest)
        support = self.support_in(torch.cat([code[batch:], apart[batch:], coverage[batch:]], dim=1))
        bracket = (x.repeat(supports) for x in (shortest, longest))
        support = self.support_block(support + self.support_exposure(stops[batch:], *bracket))
        attended = support * self._attention(reference, support, supports, beside)
        trunk = self.join(torch.cat([reference, beside.mean(attended), beside.largest(attended)], dim=1))

        seen = []
        for blocks, down in zip(self.encoders, self.downs, strict=True):
            trunk = blocks(trunk)
            seen.append(trunk)
            trunk = down(trunk)
        trunk = self.middle(trunk)
        seen.append(trunk)
        for level, (up, blocks) in enumerate(zip(self.ups, self.decoders, strict=True)):
            trunk = blocks(up(trunk) + seen[2 - level])

        trunk = self.from_trunk(trunk)
        hidden = torch.cat([trunk + self.from_reference(reference), beside(trunk, supports) + self.from_support(support)])
        logits = functional.pixel_shuffle(self.weigh_frame(functional.leaky_relu(hidden, 0.1)), fold)
        logits = logits - _CLIPPED_PRIOR * (_clipping(code) + 1 - coverage)
        lead = functional.pixel_shuffle(self.weigh_merged(functional.leaky_relu(trunk, 0.1)), fold) + _MERGED_PRIOR
        # A softmax over the frames and the merge, whose own difference to itself is 0.
        most = torch.maximum(beside.largest(logits), lead)
        weights = torch.exp(logits - beside(most, count))
        change = beside.sum(weights * apart) / (beside.sum(weights) + torch.exp(lead - most))
        residual = functional.pixel_shuffle(self.residual(functional.leaky_relu(trunk, 0.1)), fold)
        residual = residual + self.polish(torch.cat([change + residual, apart[:batch], gain, code[:batch]], dim=1))
        residual = RESIDUAL_LIMIT * torch.tanh(residual)
        return Estimate(change + residual, residual, self._mask(seen) if with_mask else None, (seen[1], seen[2], seen[3]))

    def _attention(self, reference: Tensor, support: Tensor, supports: int, beside: _Beside) -> Tensor:
        """`attention` of each supporting frame's features beside the reference's, without putting them side by side."""
        first = self.attention[0]
        assert isinstance(first, nn.Conv2d)
        of_reference, of_support = first.weight.chunk(2, dim=1)
        x = beside(functional.conv2d(reference, of_reference), supports)
        x = x + functional.conv2d(support, of_support, first.bias)
        attention: Tensor = self.attention[1:](x)
        return attention

    def _mask(self, seen: list[Tensor]) -> Tensor:
        parts = [functional.interpolate(conv(s), seen[0].shape[-2:], mode="bilinear") for conv, s in zip(self.mask_in, seen, strict=True)]
        logits: Tensor = self.mask_out(self.mask_head(torch.cat(parts, dim=1)))
        return logits


def _clipping(code: Tensor) -> Tensor:
    """(N, 1, H, W), 0..1: how near to clipping the brightest of three channels is. code: (N, 3, H, W) square root of linear light."""
    return ((code.amax(dim=1, keepdim=True) - _CLIPPING_FROM) / _CLIPPING_OVER).clamp(0, 1)


def full_gain(change: Tensor, merged: Tensor, stops: Tensor, encoded: Tensor) -> Tensor:
    """The network gain (B, 3, H, W), 0..GAIN_LIMIT, from what the network adds to that of the merge."""
    white = torch.exp2(stops.min(dim=1).values)[:, None, None, None]
    return (mu_gain(merged * white, encoded) + change).clamp(0, GAIN_LIMIT)
