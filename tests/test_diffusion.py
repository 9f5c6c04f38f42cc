"""Diffusion's arithmetic: the schedule, one step, many steps."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gmodiff.model.diffusion import ONE_STEP_AT, STEPS, add_noise, alphas_cumprod, ddim_sample, x0_at

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_schedule_is_that_of_stable_diffusion():
    """abar by its definition, in plain Python."""
    left = 1.0
    for step in range(STEPS):
        root = math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * step / (STEPS - 1)
        left *= 1 - root**2
        if step in (0, ONE_STEP_AT, STEPS - 1):
            assert alphas_cumprod()[step] == pytest.approx(left, rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(step=st.integers(0, STEPS - 1))
def test_one_step_undoes_the_noise_that_was_added(step):
    dice = torch.Generator().manual_seed(step)
    latent, noise = (torch.randn((1, 4, 5, 6), generator=dice) for _ in range(2))
    back = x0_at(add_noise(latent, noise, torch.tensor([step])), noise, step)
    torch.testing.assert_close(back, latent, atol=2e-4, rtol=2e-3)


def test_many_steps_with_the_right_noise_end_at_the_latent():
    """A predictor that knows the latent: the noise is what lies between."""
    latent, start = torch.full((1, 2, 3, 3), 0.7), torch.randn((1, 2, 3, 3), generator=torch.Generator().manual_seed(1))

    seen = []

    def predict(noisy, step):
        abar = alphas_cumprod()[step]
        seen.append((noisy, abar))
        return (noisy - math.sqrt(abar) * latent) / math.sqrt(1 - abar)

    for steps in (1, 5, 50):
        seen.clear()
        torch.testing.assert_close(ddim_sample(predict, start, steps), latent, atol=1e-3, rtol=0)
        # The last step would end there from anywhere: without randomness, one and the same noise is left on the way.
        noise = (start - math.sqrt(seen[0][1]) * latent) / math.sqrt(1 - seen[0][1])
        assert len(seen) == steps
        for noisy, abar in seen:
            torch.testing.assert_close(noisy, math.sqrt(abar) * latent + math.sqrt(1 - abar) * noise, atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="0 steps"):
        ddim_sample(predict, start, 0)
