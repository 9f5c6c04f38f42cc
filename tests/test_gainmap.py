import numpy as np
import pytest

from gmodiff.errors import InputError
from gmodiff.gainmap import GainMap, GainMapMetadata, apply_log2_gain, log2_gain, mu_gain, radiance_from_mu_gain, resize_bilinear


def libavif_metadata() -> GainMapMetadata:
    return GainMapMetadata((0.0,) * 3, (2.0,) * 3, alternate_headroom=2.0)


@pytest.mark.parametrize(("stored", "base", "expected"), [(0.5, 0.5, 1.015625), (1.0, 1.0, 4.046875)])
def test_check_values_of_libavif(stored, base, expected):
    metadata = libavif_metadata()
    gain = metadata.log2_gain(np.full((1, 1, 3), stored, np.float32))
    shown = apply_log2_gain(np.full((1, 1, 3), base, np.float32), gain, metadata)
    np.testing.assert_allclose(shown, expected, rtol=1e-6)


def test_weight_check_value():
    assert libavif_metadata().weight(0.5) == 0.25
    assert libavif_metadata().weight(-1) == 0
    assert libavif_metadata().weight(9) == 1


def test_between_then_apply_gives_the_alternate_back():
    rng = np.random.default_rng(1)
    base = rng.random((40, 50, 3)).astype(np.float32)
    alternate = base * np.exp2(rng.uniform(-0.5, 3, base.shape)).astype(np.float32)
    gain_map = GainMap.between(base, alternate)
    span = max(h - low for low, h in zip(gain_map.metadata.minimum, gain_map.metadata.maximum, strict=True))
    shown = gain_map.apply(base)
    limit = 2 ** (span / 510) - 1
    assert (np.abs((shown + 1 / 64) / (alternate + 1 / 64) - 1) <= limit * 1.01 + 1e-5).all()
    np.testing.assert_allclose(gain_map.apply(base, headroom=0), base, atol=1e-6)


def test_half_headroom_is_half_the_stops():
    base = np.full((4, 4, 3), 0.25, np.float32)
    gain_map = GainMap.between(base, base * 4 + 3 / 64, headroom=2.0)  # exactly two stops once the offsets are in
    shown = gain_map.apply(base, headroom=1.0)
    np.testing.assert_allclose(np.log2((shown + 1 / 64) / (base + 1 / 64)), 1.0, atol=5e-3)


@pytest.mark.parametrize("gamma", [1.0, 0.6, 2.0])
def test_quantise_inverts(gamma):
    metadata = GainMapMetadata((-1.0, 0.0, 0.5), (2.0, 3.0, 1.0), (gamma,) * 3, alternate_headroom=3)
    codes = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    gain = metadata.log2_gain(codes.astype(np.float32) / 255)
    assert np.array_equal(metadata.quantise(gain), codes)


@pytest.mark.parametrize(
    "change",
    [
        {"minimum": (3.0, 0.0, 0.0)},
        {"maximum": (float("nan"), 1.0, 1.0)},
        {"gamma": (0.0, 1.0, 1.0)},
        {"alternate_headroom": 0.0},
        {"alternate_headroom": float("inf")},
        {"maximum": (200.0,) * 3},
    ],
)
def test_impossible_metadata_is_refused(change):
    values = {"minimum": (0.0,) * 3, "maximum": (2.0,) * 3, "alternate_headroom": 2.0} | change
    with pytest.raises(InputError):
        GainMapMetadata(**values)


def test_bilinear_matches_opencv():
    cv2 = pytest.importorskip("cv2")
    small = np.random.default_rng(0).random((7, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(resize_bilinear(small, 28, 20), cv2.resize(small, (20, 28), interpolation=cv2.INTER_LINEAR), atol=1e-5)


def test_mu_gain_inverts_and_is_capped_as_published():
    rng = np.random.default_rng(0)
    encoded = rng.random((50, 3))
    radiance = rng.random((50, 3)) * 4
    np.testing.assert_allclose(radiance_from_mu_gain(mu_gain(radiance, encoded), encoded), radiance, rtol=1e-9)
    # Gain 1 means exactly L + 1/64: the published cap.
    np.testing.assert_allclose(radiance_from_mu_gain(np.ones(3), np.array([0.0, 0.5, 1.0])), np.array([0, 0.5, 1]) + 1 / 64)


def test_log2_gain_is_zero_for_equal_images():
    image = np.random.default_rng(0).random((5, 5, 3)).astype(np.float32)
    assert np.abs(log2_gain(image, image)).max() == 0
