import numpy as np
import pytest

from gmodiff.upsampling import enlarged_rows


@pytest.mark.parametrize("shape", [(13, 17), (13, 17, 1), (13, 17, 3)])
def test_enlarged_rows_are_the_same_whichever_strip_asks(shape):
    grid = np.random.default_rng(0).random(shape, np.float32)
    whole = enlarged_rows(grid, 0, 100, 100, 130)
    assert whole.shape == (100, 130, *shape[2:])
    np.testing.assert_array_equal(np.concatenate([enlarged_rows(grid, r, min(r + 7, 100), 100, 130) for r in range(0, 100, 7)]), whole)


def test_enlarged_rows_lie_between_the_middles_of_cells():
    grid = np.repeat(np.arange(4, dtype=np.float32)[:, None], 3, axis=1)
    wanted = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    np.testing.assert_allclose(enlarged_rows(grid, 0, 8, 8, 6), np.repeat(np.array(wanted)[:, None], 6, axis=1), atol=1e-6)
