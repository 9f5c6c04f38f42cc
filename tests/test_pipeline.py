import numpy as np
import pytest

from gmodiff.errors import InputError
from gmodiff.estimate import Estimate
from gmodiff.image import Bracket
from gmodiff.pipeline import reconstruct
from gmodiff.provenance import HELD_SIGMAS
from gmodiff.radiometry import TAPER_ENCODED, radiance_interval_codes, response_slope, srgb_decode
from synthetic import photos, psnr_mu, scene


@pytest.fixture(scope="module")
def bracket() -> Bracket:
    return photos(scene(), noise=0.005)


def test_whole_road(bracket):
    image = reconstruct(bracket)
    assert psnr_mu(image.radiance, scene(), 4.0) > 40
    assert image.base is not None
    assert image.gain_map is not None
    shown = image.gain_map.apply(srgb_decode(image.base / 255.0).astype(np.float32))
    assert np.median(np.abs(shown / np.maximum(image.rendition(), 1e-3) - 1)) < 0.01
    assert set(image.metadata) >= {"provenance", "look", "base", "reference", "alignment"}
    labels = image.metadata["provenance"]
    assert labels["measured_percent"] + labels["aligned_percent"] + labels["inferred_percent"] == pytest.approx(100, abs=0.01)


@pytest.mark.parametrize("value", [0.0, 1e9, np.nan, np.inf, -np.inf])
def test_a_wrong_model_moves_measured_pixels_by_nothing(bracket, value):
    """Constrained: whatever a model says, each unclipped pixel stays in the interval that its code allows."""

    def wrong(bracket, alignments, merged, *, progress=None):
        return Estimate(np.full(merged.shape, value, np.float32))

    image = reconstruct(bracket, wrong)
    reference = bracket.frames[bracket.reference]
    low, high, _ = radiance_interval_codes(bracket.response, reference.noise, reference.encoded.dtype)
    measured = (reference.encoded < TAPER_ENCODED * 255).all(axis=2)
    for c in range(3):
        codes = reference.encoded[measured][:, c]
        assert (image.radiance[measured][:, c] >= low[codes, c]).all()
        assert (image.radiance[measured][:, c] <= high[codes, c]).all()


def test_an_estimate_that_is_the_merge_changes_nothing(bracket):
    image = reconstruct(bracket, lambda b, a, m, progress: Estimate(m, network="merge", refine=0.5))
    assert [image.metadata[k] for k in ("network", "refine", "noise_reduced")] == ["merge", 0.5, False]
    assert np.array_equal(image.radiance, reconstruct(bracket).radiance)


def test_an_estimate_moves_measured_pixels_by_half_a_deviation_at_most(bracket):
    """A tint inside the interval would be seen: what the reference measured stays with the merge, within HELD_SIGMAS."""
    merged = reconstruct(bracket).radiance
    reference = bracket.frames[bracket.reference]
    measured = (reference.encoded < TAPER_ENCODED * 255).all(axis=2)
    linear = bracket.response.at(np.arange(256) / 255)
    leeway = HELD_SIGMAS * reference.noise.sigma_linear(linear, response_slope(linear))
    allowed = np.stack([leeway[:, c].take(reference.encoded[..., c]) for c in range(3)], axis=-1)
    for factor in (1.05, 0.95, 3.0):
        tinted = reconstruct(bracket, lambda b, a, m, progress, factor=factor: Estimate(m * np.float32((factor, 1, 1)))).radiance
        moved = np.abs(tinted - merged)[measured]
        assert (moved <= 1.001 * allowed[measured] + 1e-6).all()
        assert moved[:, 0].mean() > 0.3 * allowed[measured][:, 0].mean()  # it does move


def test_a_model_of_another_shape_is_refused(bracket):
    with pytest.raises(InputError, match="expected"):
        reconstruct(bracket, lambda b, a, m, progress: Estimate(m[:10]))


def test_no_align_leaves_every_frame_where_it_is(bracket):
    image = reconstruct(bracket, align=False)
    assert [a["motion"] for a in image.metadata["alignment"]] == ["left as it is"] * 3


def test_progress_names_each_stage_and_can_cancel(bracket):
    seen = []
    reconstruct(bracket, progress=lambda stage, fraction: seen.append((stage, fraction)))
    assert [s for i, (s, _) in enumerate(seen) if i == 0 or seen[i - 1][0] != s] == ["align", "merge", "render"]
    assert all(0 <= f <= 1 for _, f in seen)

    def cancel(stage, fraction):
        if stage == "merge":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct(bracket, progress=cancel)


def test_two_runs_agree_to_the_bit(bracket):
    first, second = reconstruct(bracket), reconstruct(bracket)
    assert np.array_equal(first.radiance, second.radiance)
    assert np.array_equal(first.base, second.base)
    assert np.array_equal(first.gain_map.codes, second.gain_map.codes)
