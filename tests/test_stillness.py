"""Where nothing moved, the merge stands."""

import numpy as np
import pytest

from gmodiff.align import Alignment
from gmodiff.estimate import Estimate
from gmodiff.merge import MOTION_CELL_PX, Merged, merge
from gmodiff.pipeline import reconstruct
from gmodiff.provenance import ALIGNED, INFERRED, REFERENCE
from gmodiff.stillness import BRIGHTER_STOPS, FEATHER_PX, hold_where_still, still
from synthetic import photos

HEIGHT, WIDTH = 200, 480


def moving_photos():
    """A grey disc at the left stands elsewhere in the short frame than in the others."""
    light = np.full((HEIGHT, WIDTH, 3), 0.3, np.float32)
    light[40:80, 300:460] = 4.0  # a window, far from the disc, that clips in the reference
    y, x = np.mgrid[:HEIGHT, :WIDTH]

    def at(column: int) -> np.ndarray:
        made = light.copy()
        made[(y - 100) ** 2 + (x - column) ** 2 < 15**2] = 0.6
        return made

    return photos([at(80), at(40), at(40)])


def test_motion_is_seen_where_it_is_and_nowhere_else():
    bracket = moving_photos()
    merged = merge(bracket, [Alignment()] * 3, with_motion=True)
    assert merged.moved.shape == (-(-HEIGHT // MOTION_CELL_PX), -(-WIDTH // MOTION_CELL_PX))
    cells = merged.moved > 0.5
    assert cells[100 // MOTION_CELL_PX, 40 // MOTION_CELL_PX]
    assert cells[100 // MOTION_CELL_PX, 80 // MOTION_CELL_PX]
    assert not merged.moved[:, 120 // MOTION_CELL_PX :].any()
    stillness = still(merged)
    assert stillness[100 // MOTION_CELL_PX, 60 // MOTION_CELL_PX] == 0
    assert (stillness[:, 300 // MOTION_CELL_PX :] == 1).all()


@pytest.mark.parametrize(("length", "coverage", "counts"), [(6.0, 255, True), (1.0, 255, False), (6.0, 0, False)])
@pytest.mark.parametrize(("height", "width"), [(200, 480), (198, 474)])
def test_what_alignment_followed_far_moved_though_nothing_contradicts_it(height, width, length, coverage, counts):
    bracket = photos([np.full((height, width, 3), 0.3, np.float32)] * 3)
    flow = np.zeros((height // 2, width // 2, 2), np.float32)  # on a grid of half the size, in pixels of the whole
    flow[80:96, 200:216, 0] = 2 * length
    alignment = Alignment(flow=flow, coverage=np.full(flow.shape[:2], coverage, np.uint8))
    moved = merge(bracket, [alignment, Alignment(), Alignment()], with_motion=True).moved
    there = (slice(160 // MOTION_CELL_PX, 192 // MOTION_CELL_PX), slice(400 // MOTION_CELL_PX, 432 // MOTION_CELL_PX))
    assert (abs(moved[there] - counts) < 0.02).all()
    moved[there] = 0
    assert (moved < 0.02).all()


def test_it_is_asked_for_and_changes_nothing_else():
    bracket = moving_photos()
    with_motion, without = (merge(bracket, [Alignment()] * 3, with_motion=w) for w in (True, False))
    assert without.moved is None
    np.testing.assert_array_equal(with_motion.radiance, without.radiance)
    np.testing.assert_array_equal(with_motion.provenance, without.provenance)


def test_an_estimate_is_followed_near_motion_and_held_far_from_it():
    """The window is clipped in the reference and measured in the short frame: nothing moved near it, so an estimate has no say there."""
    bracket = moving_photos()
    doubled = reconstruct(bracket, lambda b, a, m, progress: Estimate(2 * m), align=False).radiance
    merged = reconstruct(bracket, align=False).radiance
    np.testing.assert_array_equal(doubled[45:75, 305:455], merged[45:75, 305:455])

    light = [np.full((HEIGHT, WIDTH, 3), 3.0, np.float32) for _ in range(3)]
    light[0][:100, :100] = 6.0  # in a clipped place nothing can be contradicted ...
    light = [np.where(np.arange(WIDTH)[:, None] < 140, x, 0.3).astype(np.float32) for x in light]
    light[0][:100, 140:200] = 0.6  # ... but beside it
    bracket = photos(light)
    doubled = reconstruct(bracket, lambda b, a, m, progress: Estimate(1.5 * m), align=False).radiance
    merged = reconstruct(bracket, align=False).radiance
    assert np.median(doubled[20:60, 100:130] / merged[20:60, 100:130]) == pytest.approx(1.5, rel=0.02)


def test_no_ring_is_drawn_around_what_clips():
    """Nearly clipped pixels are let go by `constrain`; where nothing moved they are held here."""
    light = np.broadcast_to(np.linspace(0.3, 1.5, WIDTH, dtype=np.float32)[None, :, None], (HEIGHT, WIDTH, 3)).copy()
    bracket = photos(light)
    doubled = reconstruct(bracket, lambda b, a, m, progress: Estimate(2 * m), align=False).radiance
    merged = reconstruct(bracket, align=False).radiance
    assert (doubled / merged)[20:-20].max() < 1.1


def test_a_model_that_is_chosen_for_what_it_invents_is_followed():
    bracket = moving_photos()
    doubled = reconstruct(bracket, lambda b, a, m, progress: Estimate(2 * m, everywhere=True), align=False).radiance
    merged = reconstruct(bracket, align=False).radiance
    np.testing.assert_allclose(doubled[45:75, 305:455], 2 * merged[45:75, 305:455], rtol=1e-5)


def test_what_nobody_measured_stays_near_the_merge_even_where_things_move():
    labels = np.full((64, 64), INFERRED, np.uint8)
    merged = Merged(np.full((64, 64, 3), 2.0, np.float32), labels, np.ones((8, 8), np.float32))
    estimate = np.full((64, 64, 3), 20.0, np.float32)
    held = hold_where_still(estimate, merged, np.full((64, 64, 3), 255, np.uint8))
    np.testing.assert_allclose(estimate, 2.0 * 2.0**BRIGHTER_STOPS, rtol=1e-5)
    assert not held.any()


def test_labels_end_without_an_edge_and_the_references_own_pixels_are_left():
    labels = np.full((64, 64), REFERENCE, np.uint8)
    labels[:, 32:] = ALIGNED
    merged = Merged(np.ones((64, 64, 3), np.float32), labels, np.zeros((8, 8), np.float32))
    estimate = np.full((64, 64, 3), 2.0, np.float32)
    held = hold_where_still(estimate, merged, np.full((64, 64, 3), 128, np.uint8))
    row = estimate[30, :, 0]
    assert (row[: 32 - FEATHER_PX] == 2).all()
    assert (row[32 + FEATHER_PX :] == 1).all()
    assert np.abs(np.diff(row)).max() < 1.5 / FEATHER_PX
    assert held[:, 33:].all()
    assert not held[:, :31].any()


def test_a_larger_picture_looks_farther_around():
    """NEARBY_PX is of a picture of 3 megapixels: the same scene at four times the pixels moves as much of the picture."""
    small, large = (
        Merged(np.empty((0, 0, 3), np.float32), np.zeros((s * 1500, s * 2000), np.uint8), np.zeros((s * 188, s * 250), np.float32))
        for s in (1, 2)
    )
    small.moved[90:98, 120:128] = 1
    large.moved[180:196, 240:256] = 1
    shares = [float((1 - still(m)).mean()) for m in (small, large)]
    assert shares[0] == pytest.approx(shares[1], rel=0.1)
