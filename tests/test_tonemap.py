import numpy as np
import pytest

from gmodiff.errors import InputError
from gmodiff.radiometry import ADOBE_RGB, DISPLAY_P3, SRGB, CameraResponse, ColourSpace, srgb_decode
from gmodiff.tonemap import KNEE, _roll_off, camera_look, in_published_primaries, linear_look, output_colour, render
from synthetic import photos, scene


def s_curve() -> CameraResponse:
    """A response with a toe and a shoulder, as cameras have."""
    encoded = np.array([0.02, 0.1, 0.25, 0.5, 0.75, 0.85, 0.9, 0.95, 1.0])
    stops = np.array([-7.8, -6.0, -4.6, -3.1, -1.8, -1.2, -0.85, -0.45, 0.0])
    grid = np.linspace(0, 1, 500)
    linear = np.exp2(np.interp(grid, encoded, stops)) * np.clip(grid / 0.02, 0, 1)
    return CameraResponse.from_samples(grid, linear, "s-curve")


@pytest.mark.parametrize("response", [CameraResponse.named("srgb"), CameraResponse.named("gamma2.2"), s_curve()])
def test_camera_look_is_the_photo_up_to_white(response):
    """Showing the radiance of a code gives that code's own light back."""
    codes = np.repeat(np.arange(0, 256, dtype=np.uint8)[None, :, None], 3, axis=2)
    shown = camera_look(response, SRGB, 2.0)(response.linearise(codes))
    np.testing.assert_allclose(shown, srgb_decode(codes / 255.0), atol=2e-3)


@pytest.mark.parametrize("content_stops", [0.0, 0.5, 2.0, 6.0])
@pytest.mark.parametrize("response", [CameraResponse.named("srgb"), s_curve()])
def test_extension_is_smooth_rising_and_bounded(response, content_stops):
    look = camera_look(response, SRGB, content_stops, 3.0)
    ramp = np.exp2(np.linspace(-1, max(content_stops, 0.1), 2000)).astype(np.float32)
    shown = look(np.repeat(ramp[None, :, None], 3, axis=2))[0, :, 1]
    stops = np.log2(shown)
    slope = np.diff(stops) / np.diff(np.log2(ramp))
    smooth = np.convolve(slope, np.ones(40) / 40, "valid")
    assert (np.diff(shown) >= -1e-6).all()
    assert stops.max() <= 3.0 + 1e-3
    assert np.abs(np.diff(smooth)).max() < 0.05
    if content_stops > 0:
        white = np.searchsorted(ramp, 1.0)
        below, above = slope[white - 60 : white - 5].mean(), slope[white + 5 : white + 60].mean()
        assert abs(below - above) < 0.25 * max(below, above)


def test_highlights_keep_their_hue():
    look = camera_look(s_curve(), SRGB, 4.0)
    colour = np.array([1.0, 0.5, 0.2], np.float32)
    ratios = []
    for level in (1.0, 2.0, 8.0):
        shown = look((colour * level)[None, None])[0, 0]
        ratios.append(shown / shown[0])
    np.testing.assert_allclose(ratios[1], ratios[0], rtol=1e-3)
    np.testing.assert_allclose(ratios[2], ratios[0], rtol=1e-3)


def test_linear_look_is_proportional_until_the_headroom():
    look = linear_look(SRGB, 2.0, 3.0)
    ramp = np.linspace(0.01, 4, 100, dtype=np.float32)
    np.testing.assert_allclose(look(np.repeat(ramp[None, :, None], 3, axis=2))[0, :, 0], ramp, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("look", ["camera", "linear"])
@pytest.mark.parametrize("gain", [1.0, 8.0])
def test_base_and_gain_map_give_the_rendition_back(look, gain):
    truth = scene() * gain
    bracket = photos(truth)
    rendered = render(truth, bracket, look=look)
    hdr = rendered.look(truth)
    base = srgb_decode(rendered.base / 255.0).astype(np.float32)
    shown = rendered.gain_map.apply(base)
    error = np.abs(shown + 1 / 64 - hdr - 1 / 64) / (hdr + 1 / 64)
    assert np.percentile(error, 99.5) < 0.01
    assert rendered.gain_map.metadata.alternate_headroom <= np.log2(hdr.max()) + 0.26
    np.testing.assert_allclose(rendered.gain_map.apply(base, headroom=0), base, atol=1e-6)


def test_mid_tones_stay_and_highlights_keep_detail():
    """Mid-tones within 0.1 stop of the reference frame; texture two stops above white still shows in the SDR base."""
    y, x = np.mgrid[0:256, 0:256].astype(np.float32)
    truth = np.where(x < 128, 0.15, 4.0) * (1 + 0.2 * np.sin(x / 4) * np.sin(y / 4))
    truth = np.repeat(truth[..., None], 3, axis=2).astype(np.float32)
    bracket = photos(truth, (-3.0, 0.0, 2.0))
    base = render(truth, bracket).base
    shadow = np.log2(srgb_decode(base / 255.0) / srgb_decode(bracket.frames[1].encoded / 255.0))[:, :100]
    assert np.abs(np.median(shadow)) < 0.02
    assert np.percentile(np.abs(shadow), 99) < 0.1
    bright = base[:, 140:, 1].astype(float)
    assert bright.std() > 3
    assert bright.mean() > 180
    assert (bright < 255).mean() > 0.99


def test_a_sky_has_hardly_a_rim_beside_what_is_dark():
    """Its light falls from left to right, between two buildings six stops darker, and so does the SDR base up to 50 pixels before the
    second one, but for two codes.
    """
    x = np.arange(800, dtype=np.float32)
    sky = np.tile(3.0 - 1.5 * x / 800, (400, 1))
    sky[:20, 400:420] = 8
    dark = (x < 150) | (x > 650)
    truth = np.repeat(np.where(dark, 0.04, sky)[..., None], 3, axis=2).astype(np.float32)
    base = render(truth, photos(truth, (-4.0, 0.0, 2.0))).base[:, :, 1].astype(float)
    row = base[100:, 154:600].mean(axis=0)
    assert row[0] - row[-1] > 10
    assert (row - np.minimum.accumulate(row)).max() < 3


def test_reference_base_is_the_photo_itself():
    truth = scene()
    bracket = photos(truth)
    rendered = render(truth, bracket, base="reference")
    assert np.array_equal(rendered.base, bracket.frames[1].encoded)


def test_near_black_gain_is_capped():
    truth = np.full((64, 64, 3), 0.5, np.float32)
    bracket = photos(np.full((64, 64, 3), 1e-5, np.float32))
    rendered = render(truth, bracket, base="reference")
    # 0.05 is the least width of a map's range.
    assert max(rendered.gain_map.metadata.maximum) <= 2.3 + 0.05 + 1e-6


@pytest.mark.parametrize(("colour", "expected"), [(SRGB, SRGB), (DISPLAY_P3, DISPLAY_P3), (ADOBE_RGB, DISPLAY_P3)])
def test_output_colour(colour, expected):
    assert output_colour(colour) == expected


def test_adobe_rgb_is_shown_with_its_own_colours():
    """Adobe RGB green is outside sRGB; in Display P3 the shown light must have the same XYZ."""
    look = linear_look(ADOBE_RGB, 0.0)
    rgb = np.array([0.3, 0.5, 0.25], np.float32)
    shown = look(rgb[None, None])[0, 0]
    np.testing.assert_allclose(DISPLAY_P3.to_xyz @ shown, ADOBE_RGB.to_xyz @ rgb, rtol=5e-3)


@pytest.mark.parametrize(
    ("options", "expected"), [({"look": "vivid"}, "camera or linear"), ({"base": "x"}, "tonemap or"), ({"max_headroom": 9}, "0.25")]
)
def test_bad_options(options, expected):
    truth = scene()
    with pytest.raises(InputError, match=expected):
        render(truth, photos(truth), **options)


def test_roll_off():
    light = np.linspace(0, 8, 2001)
    shown = _roll_off(light, 8.0)
    np.testing.assert_array_equal(shown[light <= KNEE], light[light <= KNEE])
    assert (np.diff(shown) > 0).all()
    assert shown[-1] == pytest.approx(1)
    assert np.diff(shown)[light[:-1] > KNEE][0] / (light[1] - light[0]) == pytest.approx(1, abs=0.05)


def test_camera_primaries_become_published_ones_and_show_the_same():
    """A RAW file's own RGB (blue with negative y) is held in Display P3; the rendition does not change."""
    camera = ColourSpace("camera rgb", ((0.72, 0.28), (0.2, 0.8), (0.12, -0.03), (0.3127, 0.329)), "linear")
    look = linear_look(camera, 1.0)
    radiance = np.random.default_rng(0).uniform(0.05, 1.9, (20, 30, 3)).astype(np.float32)
    held = radiance.copy()
    new_look, colour = in_published_primaries(held, look, camera)
    assert colour == DISPLAY_P3
    np.testing.assert_allclose(held[3, 4] @ DISPLAY_P3.to_xyz.T, camera.to_xyz @ radiance[3, 4], rtol=1e-4)
    np.testing.assert_allclose(new_look(held), look(radiance), atol=2e-4)
    same = radiance.copy()
    assert in_published_primaries(same, linear_look(ADOBE_RGB, 1.0), ADOBE_RGB)[1] == ADOBE_RGB
    assert np.array_equal(same, radiance)


def test_a_small_lamp_anywhere_is_in_the_gain_map_and_strays_are_capped():
    """Twelve rows of highlights at any height, and a few pixels far beyond the content: both within the headroom."""
    for top in (0, 1, 161, 290):
        radiance = np.full((400, 600, 3), 0.2, np.float32)
        radiance[top : top + 12, 200:400] = 3.5
        rendered = render(radiance, photos(radiance))
        shown = rendered.gain_map.apply(srgb_decode(rendered.base / 255.0).astype(np.float32))
        np.testing.assert_allclose(shown[top + 6, 300], rendered.look(radiance[top + 6 : top + 7])[0, 300], rtol=0.03)
        assert shown[top + 6, 300, 1] > 3
    stray = np.full((200, 300, 3), 0.2, np.float32)
    stray[50, 50:53] = 200
    rendered = render(stray, photos(stray), max_headroom=2.0)
    assert rendered.look(stray).max() <= 2.0**2 * 1.001
