"""A regressor small enough to train in a test, and its recipe."""

from dataclasses import replace
from pathlib import Path

import torch

from gmodiff.model.regressor import Shape
from gmodiff.model.weights import read_weights
from gmodiff.train.recipes import REGRESSOR

SMALL = Shape(widths=(16, 16, 16, 16), encoder=(1, 1, 1), middle=1, decoder=(1, 1, 1), polish=4)


RECIPE = replace(
    REGRESSOR, steps=8, scenes=4, batch=2, crop_px=32, warm_up=2, save_every=4, check_scenes=1, shape=SMALL, rate=2e-3, ema=0.9
)


def weights_of(path: Path) -> dict:
    return read_weights(path)[0].state_dict()


def same(one: dict, other: dict, tolerance: float = 0.0) -> bool:
    return all(torch.allclose(one[k], other[k], rtol=0, atol=tolerance) for k in one)
