"""Real static brackets as truth: on photos whose light is known, and on the real ones."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from gmodiff.datasets.static import StaticRecipe, StaticScene, static_truth
from gmodiff.errors import InputError
from gmodiff.evaluate.metrics import Scorer, fitted_scale
from gmodiff.evaluate.oracle import oracle
from photo_files import exif_bytes, jpeg_bytes
from synthetic import photos, scene

SHARED = Path(__file__).parents[2] / "shared" / "data"
STOPS = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0)
RECIPE = StaticRecipe("set", ("f1.jpg", "f3.jpg", "f5.jpg"), "f3.jpg", cutout_size=0.4, travel=0.08)


@pytest.fixture(scope="module")
def light():
    return scene(160, 240)


@pytest.fixture(scope="module")
def data(tmp_path_factory, light):
    """Six JPEGs with exposure times, two stops below and above the reference among them."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "set").mkdir()
    bracket = photos(light, STOPS, reference=3, noise=0.003)
    for i, (frame, stop) in enumerate(zip(bracket.frames, STOPS, strict=True)):
        _save(folder / "set" / f"f{i}.jpg", frame.encoded, 0.01 * 2.0**stop)
    return folder


def _save(path, codes, time_s):
    path.write_bytes(jpeg_bytes(codes, exif_bytes(time=(round(time_s * 1e6), 10**6)), quality=97))


def test_the_truth_is_the_light(light):
    bracket = photos(light, STOPS, reference=3, noise=0.003)
    truth, known = static_truth(bracket)
    assert known.mean() > 0.99
    error = np.abs(truth / light - 1)[known & (light.min(axis=-1) > 0.01)]
    assert np.median(error) < 0.01
    one = bracket.response.linearise(bracket.frames[3].encoded)
    assert np.median(error) < np.median(np.abs(one / light - 1)[known & (light.min(axis=-1) > 0.01)])


def test_what_differs_between_photos_is_not_known(light):
    moved = [light.copy() for _ in STOPS]
    moved[1][40:60, 50:80] = 0.3
    _, known = static_truth(photos(moved, STOPS, reference=3, noise=0.003))
    assert known[40:60, 50:80].mean() < 0.2
    known[35:65, 45:85] = True
    assert known.mean() > 0.98


def test_what_every_photo_clips_is_not_known_and_black_is(light):
    extreme = light.copy()
    extreme[:20, :20] = 100.0
    extreme[-20:, -20:] = 0.0
    truth, known = static_truth(photos(extreme, STOPS, reference=3))
    assert not known[4:16, 4:16].any()
    assert truth[:20, :20].min() > 10
    assert known[-16:-4, -16:-4].all()
    assert truth[-20:, -20:].max() < 0.01


def test_methods_see_three_of_the_photos_as_they_are(data, light):
    loaded = StaticScene("set", RECIPE, data).load()
    assert [f.name for f in loaded.bracket.frames] == ["f1.jpg", "f3.jpg", "f5.jpg"]
    assert loaded.bracket.reference == 1
    np.testing.assert_allclose(loaded.bracket.relative_exposures, (0.25, 1, 4), rtol=0.05)
    assert loaded.facts["truth_from"] == [f"f{i}.jpg" for i in range(6)]
    assert loaded.facts["motion"] == "still"
    assert "motion" not in loaded.masks
    scale = fitted_scale(light, loaded)
    assert Scorer(loaded)(light * scale)["psnr_mu"] > 35


def test_the_oracle_is_above_the_reference(data):
    loaded = StaticScene("set", RECIPE, data).load()
    score = Scorer(loaded)
    alone = loaded.bracket.response.linearise(loaded.bracket.frames[1].encoded)
    assert score(oracle(loaded))["psnr_mu"] > score(alone)["psnr_mu"] + 3


def test_a_cutout_moves_through_photos_and_truth(data):
    still, cut = (StaticScene("set", r, data).load() for r in (RECIPE, replace(RECIPE, cutout=4)))
    changed = [(a.encoded != b.encoded).any(axis=-1) for a, b in zip(still.bracket.frames, cut.bracket.frames, strict=True)]
    columns = [float(np.nonzero(c)[1].mean()) for c in changed]
    steps = np.diff(columns)
    assert abs(steps[0]) == pytest.approx(0.08 * 240, abs=4)
    assert abs(steps[1]) == pytest.approx(0.08 * 240, abs=4)
    area = cut.masks["motion"]
    assert not (np.any(changed, axis=0) & ~area).any()
    at_reference = np.abs(cut.truth - still.truth).max(axis=-1) > 0
    assert not (at_reference & ~area).any()
    # Where the reference shows the piece, its light and the truth agree.
    seen = cut.bracket.response.linearise(cut.bracket.frames[1].encoded)
    fair = changed[1] & (cut.truth.max(axis=-1) < 0.9) & (cut.truth.min(axis=-1) > 0.03)
    assert np.median(np.abs(seen[fair] / cut.truth[fair] - 1)) < 0.1
    # For the oracle nothing moves: every photo has the piece where the reference has it.
    perfect = [(a.encoded != b.encoded).any(axis=-1) for a, b in zip(cut.perfect().frames, still.perfect().frames, strict=True)]
    middles = [float(np.nonzero(c)[1].mean()) for c in perfect]
    np.testing.assert_allclose(middles, columns[1], atol=4)


def test_photos_of_a_hand_are_registered_for_the_truth_and_not_for_methods(data, light, tmp_path):
    (tmp_path / "set").mkdir()
    bracket = photos(light, STOPS, reference=3, noise=0.003)
    for i, (frame, stop) in enumerate(zip(bracket.frames, STOPS, strict=True)):
        motion = np.float32([[1, 0, 0.0 if i == 3 else 1.4], [0, 1, 0]])
        shaken = cv2.warpAffine(frame.encoded, motion, (240, 160), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        _save(tmp_path / "set" / f"f{i}.jpg", shaken, 0.01 * 2.0**stop)
    shaken, steady = (StaticScene("set", RECIPE, folder).load() for folder in (tmp_path, data))
    inner = slice(8, -8)
    both = (shaken.known & steady.known)[inner, inner]
    assert both.mean() > 0.8
    assert np.median(np.abs(shaken.truth / steady.truth - 1)[inner, inner][both]) < 0.03
    assert (shaken.bracket.frames[0].encoded != steady.bracket.frames[0].encoded).mean() > 0.3
    apart = [
        np.abs(frame.encoded.astype(int) - steady.bracket.frames[0].encoded)[inner, inner].mean()
        for frame in (shaken.perfect().frames[0], shaken.bracket.frames[0])
    ]
    assert apart[0] < 0.5 * apart[1]


def test_a_crop_is_of_truth_and_photos_alike(data):
    whole, part = (StaticScene("set", r, data).load() for r in (RECIPE, replace(RECIPE, crop=(30, 20, 128, 96))))
    assert part.bracket.shape == part.truth.shape[:2] == (96, 128)
    np.testing.assert_array_equal(part.bracket.frames[0].encoded, whole.bracket.frames[0].encoded[20:116, 30:158])
    np.testing.assert_array_equal(part.truth, whole.truth[20:116, 30:158])


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (replace(RECIPE, folder="nothing"), "is not there: --data"),
        (replace(RECIPE, frames=("f1.jpg", "f3.jpg", "f9.jpg")), "holds no f9.jpg"),
        (replace(RECIPE, left_out=("f0.jpg", "f2.jpg", "f4.jpg")), "holds 3 photos: .* 4 or more"),
        (replace(RECIPE, crop=(200, 0, 100, 100)), "does not fit photos of 240x160"),
        (replace(RECIPE, cutout=1, travel=0.9), "does not fit photos of 240x160"),
    ],
)
def test_impossible_scenes_say_why(data, recipe, said):
    with pytest.raises(InputError, match=said) as error:
        StaticScene("set", recipe, data).load()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"folder": "a", "frames": ["x"]}, "no 'reference'"),
        ({"folder": "a", "frames": ["x", "y"], "reference": "z"}, "reference 'z' among them"),
        ({"folder": "a", "frames": ["x", "y"], "reference": "x", "crop": [1, 2]}, "crop is"),
        ({"folder": "a", "frames": ["x", "y"], "reference": "x", "speed": 2}, "unknown key 'speed'"),
    ],
)
def test_wrong_tables_are_refused(table, said):
    with pytest.raises(InputError, match=said):
        StaticRecipe.parse(table, "set.toml, scene x")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not here")
def test_a_real_set_measures_more_than_its_reference():
    recipe = StaticRecipe(
        "brackets/hdrtb_stack_room", ("stack_room_exp_3.jpg", "stack_room_exp_2.jpg", "stack_room_exp_1.jpg"), "stack_room_exp_2.jpg"
    )
    loaded = StaticScene("room", recipe, SHARED).load()
    assert loaded.known.mean() > 0.95
    assert loaded.facts["clipped_stops"] > 3
    assert Scorer(loaded)(oracle(loaded))["psnr_mu"] > 33
