"""Simulated scenes: recipes, pictures, and that the same seed is the same scene."""

import hashlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from gmodiff.datasets import synthetic
from gmodiff.datasets.measured_responses import TEST_CAMERAS, measured_response
from gmodiff.datasets.synthetic import COLOURS, MOTIONS, Recipe, SyntheticScene
from gmodiff.errors import InputError
from gmodiff.evaluate.metrics import Scorer
from gmodiff.image import HDRImage
from gmodiff.response import response_prior
from gmodiff.writer import write

SHARED = Path(__file__).parents[2] / "shared" / "data"
SIZE = (96, 64)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder with a panorama, a crop-only HDR picture and a photo."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    slow = cv2.resize(rng.random((8, 16, 3)).astype(np.float32), (256, 128), interpolation=cv2.INTER_CUBIC).clip(0.01)
    write(HDRImage(slow**4 * 8), folder / "panorama.exr")
    write(HDRImage(np.ascontiguousarray(np.tile(slow, (2, 1, 1)) ** 3)), folder / "window.exr")
    photo = (np.tile(slow, (3, 2, 1)).clip(0, 1) * 255).astype(np.uint8)
    cv2.imwrite(str(folder / "photo.png"), photo)
    return folder


def source(data, picture="panorama.exr", name="scene", **given):
    recipe = Recipe.drawn(picture, **{"seed": 3, "size": SIZE, "response": "srgb", "stops": (-2.0, 0.0, 2.0), "motion": "people"} | given)
    return SyntheticScene(name, recipe, data)


def test_the_same_seed_is_the_same_scene_and_another_is_not(data):
    one, again, other = (source(data, seed=s) for s in (3, 3, 4))
    assert one.load().hash == again.load().hash != other.load().hash
    assert one.fingerprint == again.fingerprint != other.fingerprint


def test_a_scene_is_the_same_on_every_machine(tmp_path):
    """The light of a seed, to the bit: whoever changes it changes every published number, and must say so."""
    steps = np.arange(1, 65, dtype=np.float32)
    blocks = np.kron((steps[:, None] * np.arange(1, 129) % 97 / 97)[..., None] * np.float32([1, 0.7, 0.4]), np.ones((2, 2, 1)))
    write(HDRImage(blocks.astype(np.float32)), tmp_path / "p.exr")
    scene = source(tmp_path, "p.exr", motion="faces", response="gamma2.2", stops=(-3.0, 0.0, 1.667)).load()
    assert hashlib.sha256(scene.truth.tobytes() + scene.masks["motion"].tobytes()).hexdigest()[:16] == "0dce1504fa4a116a"


def test_fixing_one_field_changes_no_other():
    free = Recipe.drawn("a.hdr", 11)
    fixed = Recipe.drawn("a.hdr", 11, motion="leaves")
    assert replace(free, motion="leaves") == fixed


def test_seeds_reach_every_motion_response_and_count_of_frames():
    drawn = [Recipe.drawn("a.hdr", seed) for seed in range(200)]
    assert {r.motion for r in drawn} == set(MOTIONS)
    assert {len(r.stops) for r in drawn} == {3, 5, 7, 9}
    assert {r.response for r in drawn} == set(synthetic.PLAIN_RESPONSES + TEST_CAMERAS)
    assert all(75 <= r.jpeg <= 98 for r in drawn)
    assert all(b - a <= 4 for r in drawn for a, b in zip(r.stops, r.stops[1:], strict=False))


@pytest.mark.parametrize("picture", ["panorama.exr", "window.exr", "photo.png"])
def test_every_kind_of_picture_becomes_a_scene(data, picture):
    scene = source(data, picture).load()
    assert scene.bracket.shape == (64, 96)
    assert len(scene.bracket.frames) == 3
    assert set(scene.masks) == {"motion", "clipped", "dark"}
    assert 0 < scene.masks["motion"].mean() < 1
    assert scene.facts["motion"] == "people"
    # The truth is what the reference saw: where nothing is clipped its own light is close.
    seen = scene.bracket.response.linearise(scene.bracket.frames[1].encoded)
    fair = ~scene.masks["clipped"] & ~scene.masks["dark"]
    assert np.median(np.abs(seen[fair] / scene.truth[fair] - 1)) < 0.2


@pytest.mark.parametrize("motion", sorted(MOTIONS))
def test_every_motion_moves_what_it_says(data, motion):
    scene = source(data, motion=motion, jpeg=98, iso=100).load()
    assert ("motion" in scene.masks) == (motion != "still")
    first, reference = (scene.bracket.response.linearise(scene.bracket.frames[i].encoded) for i in (2, 1))
    apart = np.abs(first / scene.bracket.relative_exposures[2] - reference).mean(axis=-1)
    assert scene.masks.get("motion", np.zeros(1)).any() == (motion not in ("still", "handheld"))
    still = source(data, motion="still", jpeg=98, iso=100).load()
    base = [still.bracket.response.linearise(still.bracket.frames[i].encoded) for i in (2, 1)]
    rest = np.abs(base[0] / still.bracket.relative_exposures[2] - base[1]).mean(axis=-1)
    assert (motion == "still") == bool(apart.mean() <= rest.mean() * 1.01)


def test_the_share_of_clipped_pixels_is_the_recipes(data):
    for clipped in (0.05, 0.3):
        scene = source(data, motion="still", clipped=clipped, vignetting=0.0, lens_px=0.0).load()
        assert scene.facts["clipped_share"] == pytest.approx(clipped, abs=0.02)


@pytest.mark.parametrize("colour", sorted(COLOURS))
def test_coloured_things_are_saturated_and_clip(data, colour):
    scene = source(data, colour=colour, motion="people").load()
    plain = source(data, motion="people").load()
    changed = np.abs(scene.truth - plain.truth).max(axis=-1) > 0.05
    tint = np.asarray(COLOURS[colour][0])
    inside = scene.truth[changed]
    assert (inside[:, int(tint.argmax())] >= 1).mean() > 0.3
    ratio = np.median(inside[:, int(tint.argmin())] / inside[:, int(tint.argmax())])
    assert ratio < 0.5


def test_perfect_frames_have_the_truth_and_their_own_noise(data):
    scene = source(data, motion="fast-people").load()
    still = scene.perfect()
    assert still.relative_exposures == scene.bracket.relative_exposures
    assert not np.array_equal(still.frames[1].encoded, scene.bracket.frames[1].encoded)
    assert Scorer(scene)(still.response.linearise(still.frames[1].encoded))["psnr_mu/dark"] > 20


def test_boost_raises_only_highlights(data):
    plain, boosted = (source(data, "photo.png", boost_stops=b, motion="still", clipped=0.0).load().truth for b in (0.0, 2.0))
    share = boosted / boosted.max(), plain / plain.max()
    assert np.median(share[0] / share[1]) == pytest.approx(0.25, rel=0.1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"motion": "earthquake"}, "motion is 'earthquake', expected still, handheld"),
        ({"stops": (-2.0, 2.0)}, "0 \\(the reference\\) among them"),
        ({"stops": (0.0, -2.0)}, "rising"),
        ({"clipped": 0.95}, "0 to 0.9"),
        ({"size": (20, 64)}, "pixels, 64 or more"),
        ({"size": (99.5, 64)}, "whole numbers of pixels"),
        ({"iso": float("nan")}, "not finite"),
        ({"seed": -1}, "seed is -1"),
        ({"lens_px": 300.0}, "lens_px is 300.0, expected 0 to 20"),
        ({"colour": "beige"}, "expected red"),
        ({"boost_stops": 9.0}, "0 to 6"),
    ],
)
def test_impossible_recipes_are_refused(data, given, said):
    with pytest.raises(InputError, match=said) as error:
        source(data, **given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"picture": "a.hdr"}, "no 'seed'"),
        ({"picture": "a.hdr", "seed": 1, "speed": 3}, "unknown key 'speed'"),
        ({"picture": "a.hdr", "seed": "one"}, "seed is 'one', expected int"),
        ({"picture": "a.hdr", "seed": True}, "expected int"),
        ({"picture": 5, "seed": 1}, "picture is 5, expected str"),
        ({"picture": "a.hdr", "seed": 1, "size": [100, 100, 3]}, "size is"),
        ({"picture": "a.hdr", "seed": 1, "stops": [-2, "0", 2]}, "stops is"),
    ],
)
def test_wrong_tables_are_refused(table, said):
    with pytest.raises(InputError, match=said):
        Recipe.parse(table, "set.toml, scene x")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"picture": "nothing.hdr"}, "is not there: --data"),
        ({"picture": "window.exr", "size": (400, 300)}, "too small: these scenes need 448x348"),
        ({"response": "Box Brownie"}, "no measured camera responses there|no curve of 'Box Brownie'"),
    ],
)
def test_scenes_that_cannot_be_made_say_why(data, given, said):
    with pytest.raises(InputError, match=said) as error:
        source(data, **given).load()
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not here")
def test_measured_responses_are_whole_curves_and_test_cameras_are_the_priors_held_out_ones():
    curves = SHARED / synthetic.CURVES
    assert set(TEST_CAMERAS) == set(response_prior().held_out_cameras)
    for camera in TEST_CAMERAS:
        table = measured_response(curves, camera).table
        assert (np.diff(table, axis=0) >= 0).all()
        assert 0.05 < table[2048, 1] < 0.35
    with pytest.raises(InputError, match="no curve of 'Box Brownie': it has Canon"):
        measured_response(curves, "Box Brownie")
