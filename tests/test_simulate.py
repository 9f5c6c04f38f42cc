import hashlib
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gmodiff
from gmodiff.errors import InputError
from gmodiff.moving_scene import Cutout, Motion, generator, moving_scene, sample
from gmodiff.radiometry import CameraResponse
from gmodiff.simulate import Camera, blur, encode_codes, render_bracket, s_curve, simulate

QUIET = Camera(CameraResponse.named("linear"), full_well=1e12, read_electrons=0, demosaic_px=0, bits=16, jpeg_quality=None)
RESPONSES = [CameraResponse.named("linear"), CameraResponse.named("srgb"), CameraResponse.named("gamma2.4"), s_curve((0.9, 0.5, 0.2))]


def scene(height: int = 60, width: int = 90) -> np.ndarray:
    """Smooth light from 0.02 to 4, with a texture."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    light = 0.02 * 2.0 ** (7.6 * x / width) * (1 + 0.3 * np.sin(x / 2) * np.cos(y / 3))
    return np.asarray(light[..., None] * np.array([1, 0.8, 0.6]), np.float32)


# ---- camera ----


def test_a_quiet_linear_camera_gives_the_radiance_back_and_clips_each_channel_at_white():
    light = scene()
    bracket = render_bracket([light] * 3, (0.5, 2.0, 8.0), QUIET, seed=0)
    assert bracket.relative_exposures == (0.25, 1.0, 4.0)
    for frame, ratio in zip(bracket.frames, bracket.relative_exposures, strict=True):
        expected = np.clip(light * ratio, 0, 1)
        assert np.abs(bracket.response.linearise(frame.encoded) - expected).max() < 1e-4
    assert (bracket.frames[2].encoded == 65535).mean() > 0.2


@pytest.mark.parametrize("iso", [100, 1600])
@pytest.mark.parametrize("level", [0.0, 0.01, 0.5])
def test_noise_has_the_variance_the_noise_model_says(iso, level):
    camera = Camera(CameraResponse.named("linear"), iso=iso, full_well=8000, read_electrons=6, demosaic_px=0, bits=16, jpeg_quality=None)
    codes = camera.expose(np.full((300, 300, 3), level, np.float32), 1.0, 7)
    expected = float(np.sqrt(camera.noise.read**2 + camera.noise.shot * level))
    measured = codes / 65535 - level
    if level > 4 * expected:
        assert measured.std() == pytest.approx(expected, rel=0.02)
        assert abs(measured.mean()) < 0.02 * expected
    else:  # Half of the noise about black is clipped away.
        assert np.sort(measured, axis=None)[int(0.8413 * measured.size)] == pytest.approx(expected, rel=0.05)


def test_iso_scales_shot_variance_linearly_and_read_noise_with_it():
    base, fast = Camera(iso=100).noise, Camera(iso=800).noise
    assert fast.shot == pytest.approx(8 * base.shot)
    assert fast.read == pytest.approx(8 * base.read)


@pytest.mark.parametrize("response", RESPONSES, ids=lambda r: r.name)
@pytest.mark.parametrize("bits", [8, 16])
def test_table_response_is_the_exact_one_to_rounding(response, bits):
    linear = np.random.default_rng(1).random((50, 60, 3), dtype=np.float32) ** 4
    linear[0, :2] = [[0, 0, 0], [1, 1, 1]]
    exact = response.encode(linear).astype(np.float64) * (2**bits - 1)
    codes = encode_codes(linear, response, bits)
    assert codes.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert np.abs(codes - exact).max() < (0.51 if bits == 8 else 4)  # Nearest black a 16-bit code is finer than the table.
    assert codes[0, 0].max() == 0
    assert codes[0, 1].min() == 2**bits - 1


@given(st.tuples(*[st.floats(0, 1)] * 3), st.floats(1.5, 2.6))
@settings(max_examples=20, deadline=None)
def test_s_curve_rises_everywhere_and_is_plain_gamma_without_contrast(contrast, gamma):
    assert (np.diff(s_curve(contrast, gamma).table, axis=0) > 0).all()
    assert np.abs(s_curve((0, 0, 0), gamma).table - CameraResponse.named(f"gamma{gamma!r}").table).max() < 1e-9


def test_s_curve_darkens_shadows_and_lifts_highlights():
    plain, bent = s_curve((0, 0, 0)), s_curve((0.8, 0.8, 0.8))
    shadows, highlights = np.full((1, 1, 3), 0.02), np.full((1, 1, 3), 0.6)
    assert bent.encode(shadows).max() < plain.encode(shadows).min()
    assert bent.encode(highlights).min() > plain.encode(highlights).max()


def test_vignetting_takes_its_share_in_the_corners_and_nothing_in_the_centre():
    seen = Camera(vignetting=0.4).through_lens(np.ones((81, 121, 3), np.float32))
    assert seen[0, 0] == pytest.approx(0.6, abs=1e-6)
    assert seen[40, 60] == pytest.approx(1, abs=1e-6)
    assert (np.diff(seen[40, 60:, 0]) < 0).all()


@pytest.mark.parametrize("sigma", [0.3, 0.8, 2.0])
def test_blur_has_its_standard_deviation_and_loses_no_light(sigma):
    dot = np.zeros((41, 41), np.float32)
    dot[20, 20] = 1
    spread = blur(dot, sigma)
    place = np.arange(41) - 20
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    for axis in (0, 1):
        assert (spread.sum(axis=axis) @ place**2) == pytest.approx(sigma**2, rel=1e-4)
    assert (blur(np.ones((5, 5, 3), np.float32), sigma) == 1).all()


def test_demosaicing_blurs_after_clipping_so_the_truth_keeps_its_edges():
    light = np.full((21, 21, 3), 0.25, np.float32)
    light[:, 10] = 100.0
    camera = Camera(CameraResponse.named("linear"), full_well=1e12, read_electrons=0, demosaic_px=0.6, bits=16, jpeg_quality=None)
    made = simulate(light, (1.0, 2.0, 4.0), camera, Motion(), seed=0, reference=0)
    assert np.array_equal(made.truth, light)
    green = made.bracket.frames[0].encoded[10, :, 1] / 65535
    assert 0.25 < green[9] < 0.6  # Clipped first: the neighbour gets a share of 1, not of 100.
    assert made.bracket.frames[0].encoded[10, 9, 0] > made.bracket.frames[0].encoded[10, 9, 1]


def test_a_colour_matrix_changes_nothing_but_what_clips():
    """Whatever the sensor could hold comes back; a red it could not loses its hue: green and blue rise."""
    quiet = {"read_electrons": 0.0, "full_well": 1e12, "demosaic_px": 0.0, "bits": 16, "jpeg_quality": None}
    radiance = np.full((4, 4, 3), (0.5, 0.3, 0.2), np.float32)
    radiance[2:] = (3.0, 0.6, 0.3)
    plain, spread = (Camera(CameraResponse.named("linear"), saturation=s, **quiet).expose(radiance, 1.0, 0) / 65535 for s in (1.0, 1.6))
    np.testing.assert_allclose(spread[:2], radiance[:2], atol=1e-4)
    np.testing.assert_allclose(plain[2], np.minimum(radiance[2], 1), atol=1e-4)
    # The sensor saw 1.125 + (3.0, 0.6, 0.3 less 1.125) / 1.6 = 2.30, 0.797, 0.609, and held 1.0 of the red.
    grey = 0.25 * 1 + 0.5 * 0.796875 + 0.25 * 0.609375
    np.testing.assert_allclose(spread[2, 0], [1, grey + 1.6 * (0.796875 - grey), grey + 1.6 * (0.609375 - grey)], atol=1e-4)


def test_whitening_takes_colour_from_bright_pixels_only():
    quiet = {"read_electrons": 0.0, "full_well": 1e12, "demosaic_px": 0.0, "bits": 16, "jpeg_quality": None}
    radiance = np.array([[(0.3, 0.1, 0.02), (0.65, 0.3, 0.1), (1.0, 0.5, 0.2)]], np.float32)
    found = Camera(CameraResponse.named("linear"), whitening=0.5, **quiet).expose(radiance, 1.0, 0) / 65535
    np.testing.assert_allclose(found[0, 0], radiance[0, 0], atol=1e-4)
    np.testing.assert_allclose(found[0, 1], [0.65, 0.3 + 0.125 * 0.35, 0.1 + 0.125 * 0.55], atol=1e-4)
    np.testing.assert_allclose(found[0, 2], [1.0, 0.75, 0.6], atol=1e-4)


def test_noise_reduction_smooths_what_is_near_the_noise_and_keeps_edges():
    light = np.full((40, 80, 3), 0.1, np.float32)
    light[:, 40:] = 0.5
    settings = {"read_electrons": 0.0, "full_well": 2000.0, "demosaic_px": 0.0, "bits": 16, "jpeg_quality": None}
    linear = CameraResponse.named("linear")
    plain, smooth = (Camera(linear, denoising=d, **settings).expose(light, 1.0, 0) / 65535 for d in (0.0, 3.0))
    assert smooth[:, :30].std() < 0.5 * plain[:, :30].std()
    assert smooth[:, :30].mean() == pytest.approx(0.1, abs=1e-3)
    steps = [found[:, 40].mean() - found[:, 39].mean() for found in (plain, smooth)]
    assert steps[1] > 0.95 * steps[0]


def test_a_black_point_takes_from_the_dark_and_leaves_white():
    quiet = {"read_electrons": 0.0, "full_well": 1e12, "demosaic_px": 0.0, "bits": 16, "jpeg_quality": None}
    radiance = np.array([[(0.005, 0.02, 1.0)]], np.float32)
    for black, wanted in ((0.01, (0.0, 0.01 / 0.99, 1.0)), (-0.01, (0.015 / 1.01, 0.03 / 1.01, 1.0))):
        found = Camera(CameraResponse.named("linear"), black=black, **quiet).expose(radiance, 1.0, 0) / 65535
        np.testing.assert_allclose(found[0, 0], wanted, atol=1e-4)


def test_sharpening_overshoots_beside_an_edge_and_nowhere_else():
    light = np.full((20, 40, 3), 0.2, np.float32)
    light[:, 20:] = 0.6
    quiet = {"read_electrons": 0.0, "full_well": 1e12, "demosaic_px": 0.0, "bits": 16, "jpeg_quality": None}
    found = Camera(CameraResponse.named("linear"), sharpening=1.0, **quiet).expose(light, 1.0, 0)[10, :, 1] / 65535
    assert found[19] < 0.15
    assert found[20] > 0.65
    np.testing.assert_allclose(found[[5, 35]], (0.2, 0.6), atol=1e-4)


def test_jpeg_keeps_channels_in_place_and_hurts_more_at_lower_quality():
    light = np.clip(scene(64, 96), 0, 1) * np.array([1, 0.3, 0.05], np.float32)
    plain = Camera(jpeg_quality=None).expose(light, 1.0, 0).astype(int)
    errors = [np.abs(Camera(jpeg_quality=q).expose(light, 1.0, 0).astype(int) - plain).mean() for q in (98, 75, 30)]
    assert errors == sorted(errors)
    assert 0 < errors[0] < 3


# ---- motion ----


def test_a_still_scene_is_itself_in_every_frame():
    light = scene()
    still = moving_scene(light, (1, 2, 4), Motion(), seed=5, margin=6)
    for i in range(3):
        assert np.array_equal(still.frame(i), light[6:-6, 6:-6])
    assert not still.motion_mask.any()


def test_the_reference_frame_is_the_picture_itself_whatever_shakes_and_waves():
    light = scene()
    moving = moving_scene(light, (1, 2, 4), Motion(shake_px=4, waves_px=2), seed=5, margin=6)
    assert np.array_equal(moving.frame(1), light[6:-6, 6:-6])
    assert not np.array_equal(moving.frame(0), moving.frame(1))


@given(st.integers(0, 10_000), st.floats(0.5, 30))
@settings(max_examples=25, deadline=None)
def test_shake_moves_corners_by_about_its_amplitude(seed, amplitude):
    moving = moving_scene(np.ones((200, 300, 3), np.float32), (1, 2, 4, 8), Motion(shake_px=amplitude), seed=seed)
    corners = np.array([[-149.5, -99.5, 1], [149.5, -99.5, 1], [149.5, 99.5, 1], [-149.5, 99.5, 1]]).T
    for homography in moving.homographies:
        moved = homography @ corners
        assert np.hypot(*(moved[:2] / moved[2] - corners[:2])).max() < 1.4 * amplitude


def test_shake_is_undone_by_its_homography():
    light = blur(scene(160, 200), 1.5)
    moving = moving_scene(light, (1, 2), Motion(shake_px=8), seed=2, margin=10)
    height, width = moving.shape
    centre = np.array([[1, 0, -(width - 1) / 2], [0, 1, -(height - 1) / 2], [0, 0, 1]])
    to_reference = np.linalg.inv(centre) @ moving.homographies[0] @ centre
    undone = cv2.warpPerspective(moving.frame(0), to_reference, (width, height), flags=cv2.INTER_CUBIC)
    inner = (slice(16, -16), slice(16, -16))
    error = np.abs(undone - moving.frame(1))[inner] / moving.frame(1)[inner]
    unaligned = np.abs(moving.frame(0) - moving.frame(1))[inner] / moving.frame(1)[inner]
    assert np.median(error) < 0.01 < np.median(unaligned) / 5


@pytest.mark.parametrize("motion", [Motion(objects=3), Motion(waves_px=3, wave_length_px=15), Motion(objects=1, waves_px=1)])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_mask_holds_everything_that_moves(motion, seed):
    moving = moving_scene(scene(80, 120), (1, 4, 16), motion, seed=seed)
    mask = moving.motion_mask
    assert 0.01 < mask.mean() < 0.9
    still = moving.frame(1)
    for i in (0, 2):
        change = np.abs(moving.frame(i) - still).max(axis=-1) / still.max(axis=-1)
        # Waves below half a pixel are not motion, and an object's last two per cent of coverage are not either.
        assert np.quantile(change[~mask], 0.99) < 0.12
        assert (change[mask] > 0.12).mean() > 0.1


def test_a_longer_exposure_smears_an_object_further_and_keeps_its_light():
    dot = Cutout(np.full((8, 8, 3), 5.0, np.float32), np.ones((8, 8), np.float32))
    ground = np.ones((100, 400, 3), np.float32)
    moving = moving_scene(ground, (1, 4, 16), Motion(objects=1, travel=0.05, trail=0.4), seed=4, cutouts=[dot])
    added = [moving.frame(i)[..., 0] - 1 for i in range(3)]
    width = [(a.max(axis=0) > 0.02).sum() for a in added]
    assert width[0] < width[1] < width[2]
    assert width[2] - 8 == pytest.approx(0.4 * 100, rel=0.5)
    assert [a.sum() for a in added] == pytest.approx([64 * 4] * 3, rel=0.01)


def test_an_object_hides_what_is_behind_it():
    black = Cutout(np.zeros((30, 30, 3), np.float32), np.ones((30, 30), np.float32))
    moving = moving_scene(np.ones((100, 100, 3), np.float32), (1, 2, 4), Motion(objects=1, trail=0), seed=9, cutouts=[black])
    assert moving.frame(1).min() == 0
    assert (moving.frame(1)[..., 0] < 0.5).sum() == pytest.approx(900, rel=0.1)


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_sampling_stays_within_the_four_nearest_pixels_and_hits_pixels_exactly(seed):
    rng = np.random.default_rng(seed)
    image = rng.lognormal(0, 3, (12, 15, 2)).astype(np.float32)
    y, x = np.mgrid[0:12, 0:15].astype(np.float64)
    assert np.array_equal(sample(image, x, y), image)
    x, y = rng.uniform(-3, 18, (9, 9)), rng.uniform(-3, 15, (9, 9))
    x0, y0 = np.clip(np.floor(x), 0, 14).astype(int), np.clip(np.floor(y), 0, 11).astype(int)
    corners = np.stack([image[np.minimum(y0 + b, 11), np.minimum(x0 + a, 14)] for a in (0, 1) for b in (0, 1)])
    got = sample(image, x, y)
    assert (got >= corners.min(axis=0)).all()
    assert (got <= corners.max(axis=0)).all()


def test_sampling_follows_opencv_cubic_where_the_picture_is_smooth():
    y, x = np.mgrid[0:64, 0:64].astype(np.float32)
    image = (np.sin(x / 6)[..., None] + np.cos(y / 5)[..., None] + 3).astype(np.float32)
    rng = np.random.default_rng(0)
    px, py = rng.uniform(5, 58, (30, 30)), rng.uniform(5, 58, (30, 30))
    theirs = cv2.remap(image, px.astype(np.float32), py.astype(np.float32), cv2.INTER_CUBIC)
    # OpenCV's cubic has the other usual tension (-0.75); on smooth pictures both follow the truth.
    truth = np.sin(px / 6) + np.cos(py / 5) + 3
    ours = sample(image, px, py)[..., 0]
    assert np.abs(ours - truth).max() < 0.012
    assert np.abs(ours - theirs).max() < 0.03


# ---- chance ----

FINGERPRINT = """
import hashlib, numpy as np
from gmodiff.moving_scene import Motion, generator
from gmodiff.simulate import Camera, s_curve, simulate
light = np.square(generator((8, 8)).standard_normal((90, 120, 3), dtype=np.float32))
camera = Camera(s_curve(), lens_px=0.7, vignetting=0.3, jpeg_quality=None)
made = simulate(light, (1, 4, 16), camera, Motion(shake_px=3, objects=2, waves_px=1.5), seed=11, margin=8)
print(hashlib.sha256(b"".join(f.encoded.tobytes() for f in made.bracket.frames) + made.truth.tobytes()).hexdigest()[:32])
"""
EXPECTED = "44afcd59f83fa30e65e084fc7d19d295"


def fingerprint(**environment: str) -> str:
    source = str(Path(gmodiff.__file__).parents[1])
    run = [sys.executable, "-W", "ignore", "-c", FINGERPRINT]
    done = subprocess.run(run, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": source, **environment})
    return done.stdout.strip()


def test_a_seed_gives_the_same_codes_on_every_machine():
    assert fingerprint() == EXPECTED


def test_vector_instructions_do_not_change_the_codes():
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    if not found:
        pytest.skip("this processor has no vector instructions that NumPy could leave out")
    assert fingerprint(NPY_DISABLE_CPU_FEATURES=" ".join(found)) == EXPECTED


def test_seeds_and_frames_have_their_own_noise():
    light = np.full((20, 20, 3), 0.3, np.float32)
    camera = Camera(full_well=500, jpeg_quality=None)
    first, again, other = (render_bracket([light] * 3, (1, 1, 1), camera, seed=s) for s in (1, 1, 2))
    codes = [hashlib.sha256(f.encoded.tobytes()).hexdigest() for b in (first, other) for f in b.frames]
    assert len(set(codes)) == 6
    assert all(np.array_equal(a.encoded, b.encoded) for a, b in zip(first.frames, again.frames, strict=True))


def test_frames_may_be_made_one_by_one():
    light = scene()
    at_once = render_bracket([light, light * 2], (1, 2), Camera(), seed=3)
    one_by_one = render_bracket(lambda i: light * np.float32(i + 1), (1, 2), Camera(), seed=3, names=["a.jpg", "b.jpg"])
    assert [f.name for f in one_by_one.frames] == ["a.jpg", "b.jpg"]
    for a, b in zip(at_once.frames, one_by_one.frames, strict=True):
        assert np.array_equal(a.encoded, b.encoded)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Camera(bits=12),
        lambda: Camera(bits=16, jpeg_quality=90),
        lambda: Camera(jpeg_quality=0),
        lambda: Camera(vignetting=1),
        lambda: Camera(iso=0),
        lambda: Camera(lens_px=-1),
        lambda: Camera(denoising=-1),
        lambda: Camera(black=0.1),
        lambda: Camera(sharpening=3),
        lambda: s_curve((2, 0, 0)),
        lambda: render_bracket([scene()] * 2, (2, 1), Camera(), seed=0),
        lambda: render_bracket([scene()] * 2, (0, 1), Camera(), seed=0),
        lambda: render_bracket([scene()] * 2, (1, 2), Camera(), seed=0, reference=2),
        lambda: moving_scene(scene(20, 20), (1, 2), Motion(), seed=0, margin=8),
    ],
)
def test_what_cannot_be_simulated_is_refused(wrong):
    with pytest.raises(InputError):
        wrong()


def test_streams_of_one_seed_differ_by_purpose():
    streams = (1, (1, 0), (1, 1), (1, 2), (1, 2, 0), (1, 2, 1), (0, 1), (1, 2, 0, 0))
    assert len({float(generator(s).random()) for s in streams}) == len(streams)
