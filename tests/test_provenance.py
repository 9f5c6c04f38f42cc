import numpy as np
import pytest

from gmodiff.provenance import ALIGNED, INFERRED, constrain, summarise
from gmodiff.radiometry import TAPER_ENCODED, NoiseModel, radiance_interval_codes
from synthetic import photos, scene


@pytest.mark.parametrize("wrong", ["zeros", "huge", "negative", "nan", "random"])
def test_a_wrong_estimate_cannot_move_what_was_measured(wrong):
    """Two estimates as different as can be end on the same side of nothing: every unclipped pixel stays in its interval."""
    bracket = photos(scene())
    frame = bracket.frames[bracket.reference]
    shape = frame.encoded.shape
    estimate = {
        "zeros": np.zeros(shape, np.float32),
        "huge": np.full(shape, 1e6, np.float32),
        "negative": np.full(shape, -3, np.float32),
        "nan": np.full(shape, np.nan, np.float32),
        "random": np.random.default_rng(0).normal(0, 5, shape).astype(np.float32),
    }[wrong]
    result = constrain(estimate, frame.encoded, bracket.response, frame.noise)
    low, high, _ = radiance_interval_codes(bracket.response, frame.noise, frame.encoded.dtype)
    measured = (frame.encoded < TAPER_ENCODED * 255).all(axis=2)
    assert measured.mean() > 0.5
    for c in range(3):
        codes = frame.encoded[measured][:, c]
        assert (result[measured][:, c] >= low[codes, c]).all()
        assert (result[measured][:, c] <= high[codes, c]).all()
    assert np.isfinite(result).all()


def test_values_inside_the_interval_move_by_exactly_nothing():
    bracket = photos(scene())
    frame = bracket.frames[bracket.reference]
    own = bracket.response.linearise(frame.encoded)
    result = constrain(own.copy(), frame.encoded, bracket.response, frame.noise)
    unclipped = frame.encoded < 0.97 * 255
    assert np.array_equal(result[unclipped], own[unclipped])


def test_clipped_pixels_are_free_upwards_only():
    encoded = np.full((8, 8, 3), 255, np.uint8)
    response = photos(scene()).response
    up = constrain(np.full((8, 8, 3), 50, np.float32), encoded, response, NoiseModel())
    down = constrain(np.zeros((8, 8, 3), np.float32), encoded, response, NoiseModel())
    assert (up == 50).all()
    assert (down > 0.85).all()
    coloured = constrain(np.full((8, 8, 3), (3, 0.5, 0.2), np.float32), encoded, response, NoiseModel())
    np.testing.assert_array_equal(coloured[0, 0], np.array([3, 0.5, 0.2], np.float32))  # cameras show strong lights white


def test_summary_counts():
    labels = np.zeros((10, 10), np.uint8)
    labels[:3] = ALIGNED
    labels[3:4] = INFERRED
    radiance = np.full((10, 10, 3), 0.5, np.float32)
    radiance[:3] = 8
    radiance[3] = 1000  # inferred light does not count as recovered
    summary = summarise(labels, radiance, 4.0)
    assert (summary.measured_percent, summary.aligned_percent, summary.inferred_percent) == (60, 30, 10)
    assert summary.highlight_stops == pytest.approx(3)
    assert summary.shadow_stops == pytest.approx(2)
