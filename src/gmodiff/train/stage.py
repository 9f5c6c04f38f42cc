"""A stage of training, as the loop sees it.

A stage is a module whose call is a training step's loss. What it holds frozen (the regressor behind the refiner) it carries with it, so
that a checkpoint is whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from gmodiff.train.crops import Batch
from gmodiff.train.recipes import Recipe

Parts = dict[str, Tensor]
"""What the log says of a step beside its loss, by name."""
INPUTS = ("linear", "stops", "coverage", "merged", "encoded")
"""Of a batch, what the regressor is given."""


class Stage(nn.Module):
    """What the loop trains. before: facts of the weights it began with.   share: (rank, of how many) processes that train together.

    rests_on: hashes of further weights that a run goes on with only where they are the same.
    """

    share: tuple[int, int] = (0, 1)
    rests_on: Mapping[str, str] = MappingProxyType({})

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

    def facts(self) -> dict[str, Any]:
        """What a weights file says beyond what every run says."""
        return {}

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.bf16)
