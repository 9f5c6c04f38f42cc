"""Diffusion, the arithmetic: how much of a latent is noise at each of 1000 steps, and the way back, in one step or in many.

Everything here is outside the network, which only ever says what noise it sees. Steps count from 0 (hardly any noise) to 999.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

STEPS = 1000
ONE_STEP_AT = 499
"""The step at which the estimate's latent is handed to the denoiser (paper section 3.4: t = 499)."""
FIRST_BETA, LAST_BETA = 0.00085, 0.012
"""Of the schedule of Stable Diffusion (Rombach et al. 2022): square roots of beta rise linearly."""


@lru_cache(maxsize=4)
def alphas_cumprod(first_beta: float = FIRST_BETA, last_beta: float = LAST_BETA, steps: int = STEPS) -> tuple[float, ...]:
    """`steps` values: the share abar of a latent's variance that is not noise yet (Ho et al. 2020, equation 4)."""
    first, last = math.sqrt(first_beta), math.sqrt(last_beta)
    left, found = 1.0, []
    for step in range(steps):
        left *= 1 - (first + (last - first) * step / (steps - 1)) ** 2
        found.append(left)
    return tuple(found)


def predicted_x0(latent: Tensor, noise: Tensor, abar: float) -> Tensor:
    """x0 = (z - sqrt(1 - abar) eps) / sqrt(abar) (Ho et al. 2020, equation 4 solved for x0)."""
    return (latent - math.sqrt(1 - abar) * noise) / math.sqrt(abar)


def add_noise(latent: Tensor, noise: Tensor, step: Tensor) -> Tensor:
    """sqrt(abar) x0 + sqrt(1 - abar) eps (Ho et al. 2020, equation 4). latent, noise: (B, C, h, w).   step: (B,)."""
    abar = torch.tensor(alphas_cumprod(), device=latent.device)[step][:, None, None, None]
    return abar.sqrt() * latent + (1 - abar).sqrt() * noise


def x0_at(latent: Tensor, noise: Tensor, step: int) -> Tensor:
    """`predicted_x0` at a step of our own schedule: the one step (paper section 3.4), and part of every other."""
    return predicted_x0(latent, noise, alphas_cumprod()[step])


def ddim_sample(predict: Callable[[Tensor, int], Tensor], start: Tensor, steps: int = 50) -> Tensor:
    """DDIM without randomness (Song et al. 2021, equation 12, sigma 0) from pure noise.

    predict: (latent, step) to the noise in it.   start: (B, C, h, w) of unit variance.
    """
    if not 1 <= steps <= STEPS:
        raise ValueError(f"{steps} steps: expected 1..{STEPS}")
    order = torch.linspace(STEPS - 1, 0, steps).round().long().tolist()
    latent = start
    for here, there in pairwise(order):
        noise = predict(latent, here)
        abar = alphas_cumprod()[there]
        latent = math.sqrt(abar) * x0_at(latent, noise, here) + math.sqrt(1 - abar) * noise
    return x0_at(latent, predict(latent, order[-1]), order[-1])
