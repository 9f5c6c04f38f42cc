"""Where a published scene moves, which nobody wrote down."""

from __future__ import annotations

import numpy as np

from dataset_files import write_hdr
from gmodiff.datasets.published import estimated_motion, find_published
from gmodiff.moving_scene import Motion
from gmodiff.simulate import Camera, simulate
from published_scenes import GAMMA, NAMES, SHORT_WHITE, only, write_photo, write_scene
from synthetic import photos, scene


def test_motion_is_found_where_it_is_and_nowhere_else():
    light = scene(96, 128)
    light[30:60, 40:70] = 0.3
    moved = [light.copy() for _ in range(3)]
    moved[0][30:60, 40:70] *= 2  # seen by the short photo alone
    moved[2][70:90, 10:40] *= 0.4  # by the long one
    bracket = photos(moved, response=GAMMA, dtype=np.uint16, noise=0.01)
    mask = estimated_motion(light, bracket)
    assert mask[33:57, 43:67].mean() > 0.99
    assert mask[73:87, 13:37].mean() > 0.9
    elsewhere = np.ones(mask.shape, bool)
    elsewhere[28:62, 38:72] = elsewhere[68:92, 8:42] = False
    assert mask[elsewhere].mean() < 0.001


def test_something_bright_that_the_long_photo_has_clipped_is_motion_and_light_it_cannot_hold_is_not():
    light = np.full((64, 64, 3), 0.1, np.float32)
    light[:16] = 2.0  # clips the long photo and the reference, as it should
    moved = [light, light, light.copy()]
    moved[2][30:50, 30:50] = 3.0
    mask = estimated_motion(light, photos(moved, response=GAMMA, dtype=np.uint16))
    assert mask[32:48, 32:48].all()
    assert mask[:28].sum() == 0


def test_a_photo_that_has_black_says_nothing():
    light = np.full((64, 64, 3), 0.05, np.float32)
    lost = light.copy()
    lost[20:40, 20:40] = 0
    bracket = photos([lost, light, light], response=GAMMA, dtype=np.uint16)
    assert not estimated_motion(light, bracket).any()


def test_what_the_shared_exponent_of_a_truth_rounds_away_is_no_motion(tmp_path):
    light = np.full((48, 64, 3), (0.9, 0.9, 0.003), np.float32)
    light[:4] = 0.1
    write_scene(tmp_path / "001", light)
    loaded = only(tmp_path).load()
    assert loaded.truth[20, 20, 2] == 0  # a third of a step of the red channel
    assert not loaded.masks["motion"].any()


def test_where_the_reference_itself_contradicts_the_truth_nothing_is_called_motion():
    light = np.full((64, 64, 3), 0.2, np.float32)
    wrong = light.copy()
    wrong[20:40, 20:40] = 0.6
    assert not estimated_motion(wrong, photos(light, response=GAMMA, dtype=np.uint16)).any()


def test_simulated_motion_is_mostly_found_and_a_still_scene_has_none(tmp_path):
    camera = Camera(GAMMA, bits=16, jpeg_quality=None)
    shares = {}
    for name, motion in (("still", Motion()), ("moving", Motion(objects=2))):
        made = simulate(scene(128, 192), [1.0, 4.0, 16.0], camera, motion, seed=3)
        for photo, frame in zip(NAMES, made.bracket.frames, strict=True):
            write_photo(tmp_path / name / photo, frame.encoded)
        (tmp_path / name / "exposure.txt").write_text("0\n2\n4\n")
        write_hdr(tmp_path / name / "HDRImg.hdr", made.truth / SHORT_WHITE)
        loaded = next(s for s in find_published(tmp_path) if s.name == name).load()
        shares[name] = loaded.facts["motion_share"]
        found = loaded.masks["motion"]
        if name == "moving":
            assert made.motion_mask[found].mean() > 0.8  # what is marked did move
            assert found[made.motion_mask].mean() > 0.3  # much of what moves looks as before
    assert shares["still"] < 0.01 < shares["moving"]
