"""The networks as the rest of the program calls them, whatever runs them: one picture, named arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from gmodiff.model.noise_reducer import NoiseReducer, read_noise_reducer
from gmodiff.model.refiner import Refiner, read_refiner
from gmodiff.model.regressor import STRIDE, Regressor
from gmodiff.model.weights import read_weights


class OnArrays(nn.Module):
    """A network for one picture. inputs, outputs: names in order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @staticmethod
    def read(kind: str, weights: Path) -> OnArrays:
        """By the kind on a card. Raises FileFormatError where the file holds another."""
        if kind == "noise":
            return NoiseReducerOnArrays(read_noise_reducer(weights)[0])
        return RefinerOnArrays(read_refiner(weights)[0]) if kind == "refiner" else RegressorOnArrays(read_weights(weights)[0])

    def by_name(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`forward` by names."""
        return dict(zip(self.outputs, self(*(given[k] for k in self.inputs)), strict=True))

    def example(self) -> tuple[Tensor, ...]:
        """Inputs of a small picture."""
        raise NotImplementedError


class RegressorOnArrays(OnArrays):
    """linear (n, 3, H, W), stops (n,), coverage (n, 1, H, W), merged and encoded (1, 3, H, W), as `Regressor.forward`, n >= 2, H and W
    multiples of STRIDE, to change (1, 3, H, W); residual (1, 1, H, W), absolute; degradation
    (1, 1, H / 4, W / 4), 0..1; and what guides a refiner: context_8 (1, C, H / 8, W / 8), context_16, context_32.
    """

    inputs = ("linear", "stops", "coverage", "merged", "encoded")
    outputs = ("change", "residual", "degradation", "context_8", "context_16", "context_32")

    def __init__(self, network: Regressor) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, linear: Tensor, stops: Tensor, coverage: Tensor, merged: Tensor, encoded: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        estimate = self.network(linear[None], stops[None], coverage[None], merged, encoded, with_mask=True)
        residual = estimate.residual.abs()
        return estimate.change, residual, torch.sigmoid(estimate.degradation), *estimate.context

    def example(self) -> tuple[Tensor, ...]:
        """See `OnArrays`."""
        side = 4 * STRIDE
        frames = torch.rand(3, 3, side, side), torch.tensor([0.0, -2.0, 2.0]), torch.ones(3, 1, side, side)
        return *frames, torch.rand(1, 3, side, side), torch.rand(1, 3, side, side)


class RefinerOnArrays(OnArrays):
    """gain and short (1, 3, H, W), degradation (1, 1, H / 4, W / 4), context_8, context_16 and context_32, as `Refiner.forward`, to refined
    (1, 3, H, W).
    """

    inputs = ("gain", "short", "degradation", "context_8", "context_16", "context_32")
    outputs = ("refined",)

    def __init__(self, network: Refiner) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(
        self, gain: Tensor, short: Tensor, degradation: Tensor, context_8: Tensor, context_16: Tensor, context_32: Tensor
    ) -> tuple[Tensor, ...]:
        """See the class."""
        return (self.network(gain, short, degradation, (context_8, context_16, context_32)),)

    def example(self) -> tuple[Tensor, ...]:
        """See `OnArrays`."""
        side = 4 * STRIDE
        widths = self.network.denoiser.shape.context
        context = [torch.rand(1, c, side // f, side // f) for c, f in zip(widths, (8, 16, 32), strict=True)]
        return torch.rand(1, 3, side, side), torch.rand(1, 3, side, side), torch.rand(1, 1, side // 4, side // 4), *context


class NoiseReducerOnArrays(OnArrays):
    """held, merged, seen and sigma (1, 3, H, W), as `NoiseReducer.forward`, H and W multiples of STRIDE, to share (1, 3, H, W)."""

    inputs = ("held", "merged", "seen", "sigma")
    outputs = ("share",)

    def __init__(self, network: NoiseReducer) -> None:
        super().__init__()
        self.network = network.eval()

    def forward(self, held: Tensor, merged: Tensor, seen: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return (self.network(held, merged, seen, sigma),)

    def example(self) -> tuple[Tensor, ...]:
        """See `OnArrays`."""
        side = 4 * STRIDE
        return *(torch.rand(1, 3, side, side) for _ in range(3)), 0.01 * torch.rand(1, 3, side, side)
