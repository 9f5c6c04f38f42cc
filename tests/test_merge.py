from dataclasses import replace

import numpy as np
import pytest

from gmodiff.align import Alignment
from gmodiff.merge import FILL_GRID_PX, _push_pull, merge
from gmodiff.provenance import ALIGNED, INFERRED, REFERENCE
from synthetic import photos, psnr_mu, scene


def still(bracket):
    return [Alignment() for _ in bracket.frames]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("stops", [(-2.0, 0.0, 2.0), (-4.0, -2.0, 0.0), (0.0, 2.0), (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)])
def test_still_scene_is_recovered(stops, dtype):
    truth = scene()
    reference = stops.index(0.0)
    bracket = photos(truth, stops, reference=reference, dtype=dtype)
    merged = merge(bracket, still(bracket))
    reach = 0.9 * 2.0 ** -min(stops)  # what the shortest frame still measures
    known = (truth < reach).all(axis=2) & (truth > 0.01).all(axis=2)
    error = np.abs(merged.radiance[known] / truth[known] - 1)
    assert np.median(error) < 0.01
    assert np.percentile(error, 99) < 0.08


def test_noise_falls_below_the_reference_alone():
    truth = scene()
    bracket = photos(truth, noise=0.02)
    merged = merge(bracket, still(bracket)).radiance
    alone = bracket.response.linearise(bracket.frames[1].encoded)
    dark = (truth < 0.1).all(axis=2)
    assert np.std((merged / truth)[dark]) < 0.6 * np.std((alone / truth)[dark])


def test_a_shorter_frames_biased_darks_do_not_shut_out_a_longer_frame():
    """In the darks a short frame is a few codes with a bias of their own; it knows no better than the reference what is there."""
    truth = scene() * np.float32(0.02)
    bracket = photos(truth, (-2.0, 0.0, 2.0), noise=0.004)
    biased = np.maximum(bracket.frames[0].encoded, 9)
    frames = (replace(bracket.frames[0], encoded=biased), *bracket.frames[1:])
    dark = replace(bracket, frames=frames)
    merged = merge(dark, still(dark)).radiance
    without = replace(bracket, frames=bracket.frames[1:], reference=0)
    assert psnr_mu(merged, truth, 4.0) > psnr_mu(merge(without, still(without)).radiance, truth, 4.0) - 1.5


@pytest.mark.parametrize(("here", "there"), [((1.6, 0.08, 0.1), (0.7, 0.74, 0.9)), ((1.05, 0.8, 0.95), (1.8, 0.09, 0.1))])
def test_a_saturated_thing_that_clips_is_not_taken_for_something_else(here, there):
    """A red jumper in the reference is not the cloud that the short frame saw there, nor the cloud the jumper."""
    truth = np.full((64, 96, 3), 0.3, np.float32)
    frames = [truth.copy(), truth.copy()]
    frames[0][20:44, 30:60] = there
    frames[1][20:44, 30:60] = here
    bracket = photos(frames, (-2.0, 0.0), reference=1)
    inside = merge(bracket, still(bracket)).radiance[26:38, 36:54]
    ratio = np.median(inside[..., 1]) / here[1]
    assert 1 / 1.3 < ratio < 1.3


def test_labels():
    truth = scene()
    bracket = photos(truth)
    labels = merge(bracket, still(bracket)).provenance
    peak = truth.max(axis=2)
    assert (labels[(peak < 0.8) & (peak > 0.02)] == REFERENCE).mean() > 0.999
    assert (labels[(peak > 1.1) & (peak < 3.3)] == ALIGNED).mean() > 0.99
    bright = truth * 0 + 9
    assert (merge(photos(bright), still(bracket)).provenance == INFERRED).all()


@pytest.mark.parametrize("where", ["measured", "clipped"])
def test_a_moving_thing_leaves_one_copy_the_references(where):
    """A dark thing stands elsewhere in each supporting frame: the merge must show it where the reference does, and only there."""
    background = np.full((96, 160, 3), 0.3 if where == "measured" else 2.0, np.float32)
    background *= 1 + 0.05 * np.sin(np.arange(160) / 4)[None, :, None].astype(np.float32)

    def with_thing(left):
        image = background.copy()
        image[30:70, left : left + 20] = 0.03
        return image

    truth = with_thing(70)
    bracket = photos([with_thing(20), truth, with_thing(120)])
    merged = merge(bracket, still(bracket))
    for left in (20, 120):
        ghost = merged.radiance[30:70, left : left + 20]
        expected = truth[30:70, left : left + 20]
        # Where only the short frame could know (a clipped background behind the ghost), its surroundings continue.
        assert np.abs(np.log2(ghost / expected)).max() < (0.15 if where == "measured" else 0.25)
    np.testing.assert_allclose(merged.radiance[34:66, 74:86], 0.03, rtol=0.15)


def test_partly_clipped_colour_keeps_its_hue():
    """Red passes the shortest frame's clipping point by half a stop, green and blue do not: red continues with the hue around."""
    ramp = np.linspace(1, 5.6, 192, dtype=np.float32)[None, :, None] * np.ones((64, 1, 1), np.float32)
    truth = ramp * np.array([1.0, 0.6, 0.4], np.float32)
    bracket = photos(truth)
    merged = merge(bracket, still(bracket)).radiance
    assert (merged[..., 0] >= 3.5)[:, 120:].all()
    hue = merged[32, :, 0] / merged[32, :, 1]
    assert np.abs(hue / (1 / 0.6) - 1).max() < 0.08


def test_nothing_measured_makes_no_hole_and_no_step():
    """A disc far beyond every frame: bright, neutral, at least as bright as its rim, without a dark ring."""
    y, x = np.mgrid[0:128, 0:128]
    truth = (0.5 + 60 * np.exp(-((x - 64) ** 2 + (y - 64) ** 2) / 400))[..., None].astype(np.float32) * np.ones(3, np.float32)
    bracket = photos(truth)
    merged = merge(bracket, still(bracket))
    line = merged.radiance[64, :65, 1]
    assert (np.diff(line) > -0.03 * line[1:]).all()
    spread = merged.radiance.max(axis=2) / merged.radiance.min(axis=2)
    assert spread.max() < 1.05
    assert (merged.provenance[60:68, 60:68] == INFERRED).all()


def test_left_out_frame_is_left_out():
    truth = scene()
    bracket = photos(truth)
    alignments = [None, Alignment(), None]
    merged = merge(bracket, alignments)
    alone = bracket.response.linearise(bracket.frames[1].encoded)
    valid = (bracket.frames[1].encoded < 220).all(axis=2)
    np.testing.assert_allclose(merged.radiance[valid], alone[valid], rtol=1e-5)


def test_strips_leave_no_seam():
    """Rows near a strip's edge are as good as others."""
    truth = scene(200, 96)
    bracket = photos(truth, noise=0.005)
    merged = merge(bracket, still(bracket)).radiance
    error = np.abs(np.log2(merged / truth)).mean(axis=(1, 2))
    edges = [62, 63, 64, 65, 126, 127, 128, 129]
    assert error[edges].mean() < 1.5 * np.median(error)


def test_better_than_the_reference_alone():
    truth = scene()
    bracket = photos(truth, noise=0.01)
    merged = merge(bracket, still(bracket)).radiance
    alone = bracket.response.linearise(bracket.frames[1].encoded)
    assert psnr_mu(merged, truth, 4.0) > psnr_mu(alone, truth, 4.0) + 6


def test_push_pull_keeps_what_is_known_and_fills_the_rest():
    rng = np.random.default_rng(0)
    count = (rng.random((21, 34, 1)) < 0.2).astype(np.float32) * 3
    values = rng.uniform(1, 2, (21, 34, 3)).astype(np.float32)
    filled = _push_pull(values * count, count)
    known = count[..., 0] > 0
    np.testing.assert_allclose(filled[known], values[known], rtol=1e-5)
    assert filled.min() >= 0.99
    assert filled.max() <= 2.01
    assert (_push_pull(values * 0, count * 0) == 0).all()


def test_sizes_that_do_not_divide():
    truth = scene(FILL_GRID_PX * 8 + 3, FILL_GRID_PX * 5 + 1) * 4
    bracket = photos(truth)
    merged = merge(bracket, still(bracket))
    assert np.isfinite(merged.radiance).all()


def test_black_everywhere_is_not_called_measured_elsewhere():
    bracket = photos(np.zeros((64, 96, 3), np.float32))
    assert (merge(bracket, still(bracket)).provenance == REFERENCE).all()


def test_strips_change_nothing(monkeypatch):
    """Seven frames with movers, in strips and in one piece."""
    rng = np.random.default_rng(0)
    stops = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
    scenes = []
    for _ in stops:
        light = scene(200, 96) * 2
        row, column = rng.integers(0, 150), rng.integers(0, 60)
        light[row : row + 40, column : column + 25] = 0.05
        scenes.append(light)
    bracket = photos(scenes, stops, noise=0.01)
    in_strips = merge(bracket, still(bracket))
    monkeypatch.setattr("gmodiff.merge.for_each_strip", lambda work, height, **_: work(0, height))
    whole = merge(bracket, still(bracket))
    np.testing.assert_allclose(in_strips.radiance, whole.radiance, rtol=1e-5)
    assert np.array_equal(in_strips.provenance, whole.provenance)


def test_the_source_is_the_frame_whose_sample_weighs_most():
    truth = scene()
    bracket = photos(truth, (-2.0, 0.0, 2.0))
    merged = merge(bracket, still(bracket), with_source=True)
    reference = bracket.frames[1].encoded
    assert merge(bracket, still(bracket)).source is None
    assert (merged.source[(reference >= 254).any(axis=2)] == 0).all()  # clipped: the shorter frame alone measured
    exposed = (reference > 120).all(axis=2) & (reference < 200).all(axis=2)
    assert (merged.source[exposed] == 1).mean() > 0.9
    assert (merged.source[(reference < 20).all(axis=2)] == 2).mean() > 0.9  # the longest frame's darks are the cleanest


def test_from_the_classical_result_to_the_models():
    from gmodiff.errors import InputError
    from gmodiff.pipeline import Reconstruction

    here, there = (Reconstruction(np.full((4, 4, 3), v, np.float32), np.zeros((4, 4), np.uint8), ()) for v in (1.0, 3.0))
    assert here.towards(there, 0) is here
    assert here.towards(there, 1) is there
    assert np.allclose(here.towards(there, 0.25).radiance, 1.5)
    with pytest.raises(InputError, match=r"share 1\.5: expected 0"):
        here.towards(there, 1.5)
