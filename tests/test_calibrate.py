"""Calibration of whole frames: sampling, alignment, messages, and the real brackets."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from gmodiff.calibrate import LARGE_DISAGREEMENT_STOPS, calibrate
from gmodiff.errors import InputError
from gmodiff.image import Frame
from gmodiff.radiometry import RESPONSE_NODES, CameraResponse, exposure_from_settings
from gmodiff.response import log2_of_response
from gmodiff.ridge import GRID

SHARED = Path(__file__).parents[2] / "shared" / "data" / "brackets"

SRGB = CameraResponse.named("srgb")


def camera() -> CameraResponse:
    """A camera-like curve: exponent 1 in the dark, 5 in the shoulder."""
    z = np.linspace(0, 1, RESPONSE_NODES)
    return CameraResponse.from_samples(z, z * np.exp2(2.0 * (z - 1) + z**4 - 1), "camera")


def scene(height: int = 240, width: int = 320, seed: int = 3, lowest: float = -8.0) -> np.ndarray:
    """(H, W, 3) radiance from 2**lowest to 2: smooth patches of many colours and brightnesses."""
    rng = np.random.default_rng(seed)
    coarse = np.exp2(rng.uniform(lowest, 1, (height // 20, width // 20, 3)).astype(np.float32))
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(2.0**lowest)


def shoot(
    radiance: np.ndarray,
    stops: list[float],
    response: CameraResponse = SRGB,
    *,
    known: bool = True,
    told: list[float] | None = None,
    dtype: type = np.uint8,
    shifts: list[tuple[int, int]] | None = None,
) -> tuple[Frame, ...]:
    """A bracket of a scene, shortest first. told: what the metadata says instead of the truth."""
    rng = np.random.default_rng(1)
    top = np.iinfo(dtype).max
    frames = []
    for i, stop in enumerate(stops):
        light = radiance if shifts is None else np.roll(radiance, shifts[i], axis=(0, 1))
        linear = light * 2.0**stop
        linear = linear + 0.003 * np.sqrt(linear) * rng.standard_normal(linear.shape)
        encoded = np.rint(response.encode(linear).astype(np.float64) * top).astype(dtype)
        frames.append(Frame(encoded, 2.0 ** (told or stops)[i] if known else math.nan, f"IMG_{i}.jpg"))
    return tuple(frames)


def run(frames, source="exif", **options):
    known = math.isfinite(frames[0].exposure)
    options = {"reference": len(frames) // 2, "response": None, **options}
    return calibrate(frames, exposures_known=known, exposure_source=source if known else "estimated", **options)


def stops_of(exposures) -> list[float]:
    return [math.log2(b / a) for a, b in pairwise(exposures)]


def median_error(response: CameraResponse, truth: CameraResponse) -> float:
    z = np.linspace(0.03, 0.95, 200)
    apart = np.interp(z, GRID, (log2_of_response(response) - log2_of_response(truth))[:, 1])
    return float(np.median(np.abs(np.exp2(apart - np.median(apart)) - 1)))


def test_a_camera_is_recovered_and_the_reference_keeps_its_exposure():
    frames = shoot(scene(), [-2.0, 0.0, 2.0], camera())
    exposures, response, calibration = run(frames, reference=0)
    assert response.name == "estimated"
    assert median_error(response, camera()) < 0.02
    assert exposures[0] == frames[0].exposure
    assert stops_of(exposures) == pytest.approx([2, 2], abs=0.03)
    assert calibration.exposure_source == "exif"
    assert max(calibration.residual_stops) < 0.06 < 0.3 < min(calibration.srgb_residual_stops)
    assert calibration.notes == ()


def test_an_srgb_photo_is_told_to_be_one():
    _, response, calibration = run(shoot(scene(), [-2.0, 0.0, 2.0]))
    assert response.name == "srgb"
    assert calibration.residual_stops == calibration.srgb_residual_stops


def test_sixteen_bits_and_large_frames_are_averaged_down():
    frames = shoot(scene(700, 1400), [-1.0, 0.0], camera(), dtype=np.uint16)
    _, response, calibration = run(frames)
    assert median_error(response, camera()) < 0.02
    assert calibration.residual_stops[0] < 0.03


def test_hand_held_frames_are_aligned_first():
    radiance = scene(360, 480) * (1 + 0.3 * np.random.default_rng(0).random((360, 480, 1)).astype(np.float32))
    frames = shoot(radiance, [-2.0, 0.0, 2.0], camera(), shifts=[(0, 0), (7, -5), (3, 9)])
    _, response, calibration = run(frames)
    assert median_error(response, camera()) < 0.03
    assert max(calibration.residual_stops) < 0.15


def test_people_who_move_do_not_matter():
    frames = list(shoot(scene(), [-2.0, 0.0, 2.0], camera()))
    elsewhere = shoot(scene(seed=8), [-2.0, 0.0, 2.0], camera())
    for i, (frame, other) in enumerate(zip(frames, elsewhere, strict=True)):
        encoded = frame.encoded.copy()
        part = np.s_[40:200, 30 + 60 * i : 110 + 60 * i]
        encoded[part] = other.encoded[part]
        frames[i] = replace(frame, encoded=encoded)
    _, response, _ = run(tuple(frames))
    assert median_error(response, camera()) < 0.03


def test_unknown_exposures_are_estimated():
    exposures, _, calibration = run(shoot(scene(), [-2.0, 0.0, 1.0], camera(), known=False), reference=1)
    assert exposures[1] == 1
    up, down = stops_of(exposures)
    assert up / down == pytest.approx(2, rel=0.05)
    assert up == pytest.approx(2, rel=0.2)
    assert calibration.exposure_source == "estimated"
    assert max(calibration.residual_stops) < 0.06


def test_pixels_win_over_wrong_metadata_and_say_so():
    frames = shoot(scene(), [-2.0, 0.0, 1.2, 3.2], camera(), told=[-2.0, 0.0, 2.0, 4.0])
    exposures, _, calibration = run(frames)
    assert stops_of(exposures) == pytest.approx([2.0, 1.2, 2.0], abs=0.1)
    (note,) = calibration.notes
    assert note.startswith("IMG_2.jpg: EXIF says +2.0 stops from IMG_1.jpg, pixels say +1.2; using +1.2")


def test_what_the_user_says_stays_with_a_note():
    frames = shoot(scene(), [-2.0, 0.0, 2.0], camera(), told=[-2.0, 0.0, 3.0])
    exposures, _, calibration = run(frames, source="given")
    assert stops_of(exposures) == pytest.approx([2, 3])
    assert any("used as given" in note for note in calibration.notes)


def test_a_given_response_is_used_and_measured():
    _, response, calibration = run(shoot(scene(), [-2.0, 0.0, 2.0], camera()), response=SRGB)
    assert response is SRGB
    assert min(calibration.residual_stops) > LARGE_DISAGREEMENT_STOPS
    (note,) = calibration.notes
    assert note.startswith("IMG_1.jpg disagrees with its neighbours")
    assert "response given" in note
    assert "different scenes" not in note


def test_a_fit_can_be_forced_even_on_linear_frames():
    linear = CameraResponse.named("linear")
    frames = shoot(scene(lowest=-6.0), [-2.0, 0.0], linear, dtype=np.uint16)
    assert run(frames, linear=True)[1].is_linear
    _, response, _ = run(frames, linear=True, force_estimate=True)
    assert response.name == "estimated"
    assert median_error(response, linear) < 0.05


def test_the_frame_that_differs_is_named():
    frames = list(shoot(scene(), [-4.0, -2.0, 0.0, 2.0], camera()))
    frames[2] = replace(frames[2], encoded=shoot(scene(seed=9), [0.0], camera())[0].encoded)
    _, _, calibration = run(tuple(frames))
    (note,) = (n for n in calibration.notes if n.startswith("IMG_2.jpg disagrees with its neighbours"))
    assert note.endswith("or these are photos of different scenes (gmodiff batch sorts a folder of them)")


def test_frames_without_common_pixels_are_refused_by_name():
    frames = shoot(scene(lowest=-2.0), [-9.0, 4.0])
    with pytest.raises(InputError, match=r"IMG_0\.jpg and IMG_1\.jpg share no valid pixels"):
        run(frames)


def test_a_black_frame_is_named():
    frames = shoot(scene(), [-30.0, 0.0, 2.0])
    with pytest.raises(InputError, match=r"IMG_0\.jpg is black throughout"):
        run(frames)


def test_a_clipped_frame_is_named():
    frames = shoot(scene(), [-2.0, 0.0, 20.0])
    with pytest.raises(InputError, match=r"IMG_2\.jpg is clipped throughout"):
        run(frames)


def test_a_hundredth_of_the_pixels_is_enough():
    radiance = np.full((240, 320, 3), 30.0, np.float32)
    radiance[100:124, 100:132] = scene(24, 32, lowest=-6.0)[:24, :32]
    exposures, _, calibration = run(shoot(radiance, [-2.0, 0.0], camera()))
    assert stops_of(exposures) == pytest.approx([2], abs=0.15)
    assert math.isfinite(calibration.residual_stops[0])


def test_too_few_pixels_leave_known_exposures_with_a_note():
    radiance = np.full((240, 320, 3), 30.0, np.float32)
    radiance[100:108, 100:106] = 0.2
    frames = shoot(radiance, [-2.0, 0.0])
    exposures, _, calibration = run(frames)
    assert stops_of(exposures) == [2]
    assert math.isnan(calibration.residual_stops[0])
    assert "share too few valid pixels" in calibration.notes[0]
    with pytest.raises(InputError, match="--exposures"):
        run(tuple(replace(f, exposure=math.nan) for f in frames))


@pytest.mark.parametrize("size", [(1, 1), (2, 400), (16, 16)])
def test_small_frames_either_work_or_are_refused(size):
    radiance = scene()[: size[0]] if size[0] > 1 else scene()[:1, :1]
    radiance = np.resize(radiance, (*size, 3))
    try:
        exposures, _, _ = run(shoot(radiance, [-2.0, 0.0, 2.0]))
    except InputError:
        return
    assert stops_of(exposures) == pytest.approx([2, 2], abs=0.3)


def test_the_same_frames_give_the_same_calibration():
    frames = shoot(scene(), [-2.0, 0.0, 2.0], camera())
    one, two = run(frames), run(frames)
    assert one[0] == two[0]
    assert (one[1].table == two[1].table).all()
    assert one[2] == two[2]


def test_progress_rises_and_may_cancel():
    seen = []
    run(shoot(scene(), [-2.0, 0.0]), progress=lambda stage, fraction: seen.append((stage, fraction)))
    assert seen[0] == ("calibrate", 0.0)
    assert seen[-1] == ("calibrate", 1.0)
    assert seen == sorted(seen)

    def cancel(stage, fraction):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(shoot(scene(), [-2.0, 0.0]), progress=cancel)


# ---- real brackets --------------------------------------------------------------------------------------------------------


def real_bracket(name: str) -> tuple[Frame, ...]:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"bracket not there: ../shared/data/brackets/{name}")
    frames = []
    for entry in json.loads((folder / "meta.json").read_text())["images"]:
        image = cv2.imread(str(folder / entry["file"]), cv2.IMREAD_REDUCED_COLOR_2)[..., ::-1]
        time = entry["exif_time_s"]
        exposure = exposure_from_settings(time, entry["iso"], entry["fnumber"]) if time else math.nan
        frames.append(Frame(np.ascontiguousarray(image), exposure, entry["file"]))
    return tuple(sorted(frames, key=lambda f: f.exposure if math.isfinite(f.exposure) else float(f.encoded.mean())))


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("hdrtb_ghost_hall", 0.12),
        ("hdrtb_handheld", 0.2),
        ("luishsu_pentax_shade", 0.12),
        ("luishsu_pentax_tower_night", 0.16),
        ("merianos_flowers", 0.26),
        ("merianos_secretbeach", 0.22),
    ],
)
def test_real_brackets_agree_after_calibration(name, left):
    frames = real_bracket(name)
    exposures, response, calibration = run(frames)
    assert response.name == "estimated"
    assert max(calibration.residual_stops) < left
    assert np.mean(calibration.residual_stops) < 0.4 * np.mean(calibration.srgb_residual_stops)
    assert all(0.3 < s < 2.5 for s in stops_of(exposures))
    # White balance stays the photo's: one curve for all channels.
    assert (response.table == response.table[:, :1]).all()


def test_nominal_shutter_times_of_a_real_camera_are_refined():
    # Whole stops apart, and written in the file as 1/10, 1/6, 0.3, 0.7, 1.5, 3 and 6 s.
    exposures, _, _ = run(real_bracket("luishsu_pentax_tower_night"))
    assert stops_of(exposures) == pytest.approx([1] * 6, abs=0.08)


@pytest.mark.parametrize("name", ["hdrtb_ghost_hall", "luishsu_pentax_shade"])
def test_exposures_of_real_brackets_are_found_without_metadata(name):
    frames = real_bracket(name)
    exposures, _, _ = run(tuple(replace(f, exposure=math.nan) for f in frames))
    assert stops_of(exposures) == pytest.approx(stops_of([f.exposure for f in frames]), rel=0.12)
