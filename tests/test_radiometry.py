import numpy as np
import pytest

from gmodiff.errors import InputError
from gmodiff.radiometry import (
    ADOBE_RGB,
    BT2020,
    CLIPPED_ENCODED,
    DISPLAY_P3,
    SRGB,
    CameraResponse,
    NoiseModel,
    exposure_from_settings,
    luminance_weights,
    pq_decode,
    pq_encode,
    radiance_interval_codes,
    srgb_decode,
    srgb_encode,
)


def test_srgb_round_trip_and_known_points():
    x = np.linspace(0, 1, 1001)
    np.testing.assert_allclose(srgb_decode(srgb_encode(x)), x, atol=1e-12)
    # IEC 61966-2-1: mid grey 0.5 encoded is 0.21404 linear; the two branches meet.
    assert srgb_decode(np.array(0.5)) == pytest.approx(0.21404114, abs=1e-7)
    assert srgb_encode(np.array(0.0031308)) == pytest.approx(0.0404499, abs=1e-6)


def test_pq_known_points():
    # ITU-R BT.2408 table 1: 203 cd/m2 is 58 % PQ, 100 cd/m2 is 51 %, 1000 is 75 %.
    np.testing.assert_allclose(pq_encode(np.array([100.0, 203.0, 1000.0, 10000.0])), [0.508, 0.5807, 0.7518, 1.0], atol=2e-4)
    nits = np.geomspace(0.01, 10000, 200)
    np.testing.assert_allclose(pq_decode(pq_encode(nits)), nits, rtol=1e-9)


def test_primaries_against_published_matrices():
    # IEC 61966-2-1 and ITU-R BT.2020: luminance weights.
    np.testing.assert_allclose(luminance_weights(SRGB), [0.2126, 0.7152, 0.0722], atol=1e-4)
    np.testing.assert_allclose(luminance_weights(BT2020), [0.2627, 0.6780, 0.0593], atol=1e-4)
    # W3C css-color-4, sRGB to P3.
    np.testing.assert_allclose(SRGB.matrix_to(DISPLAY_P3)[0], [0.8225, 0.1775, 0.0], atol=2e-4)
    for space in (DISPLAY_P3, ADOBE_RGB, BT2020):
        np.testing.assert_allclose(space.matrix_to(SRGB) @ np.ones(3), np.ones(3), atol=1e-9)


@pytest.mark.parametrize(("time_s", "iso", "f", "expected"), [(1 / 60, 100, 8, 1 / 60 / 64), (1, 400, None, 4.0), (2, 200, 0, 4.0)])
def test_exposure(time_s, iso, f, expected):
    assert exposure_from_settings(time_s, iso, f) == pytest.approx(expected)


@pytest.mark.parametrize(("time_s", "iso"), [(0, 100), (-1, 100), (1e9, 100), (float("nan"), 100), (0.01, 0), (0.01, float("inf"))])
def test_absurd_exposure_is_refused(time_s, iso):
    with pytest.raises(InputError, match="cannot be right"):
        exposure_from_settings(time_s, iso, 8)


@pytest.mark.parametrize("name", ["srgb", "gamma2.2", "gamma1.8", "linear"])
def test_response_inverts(name):
    response = CameraResponse.named(name)
    codes = np.arange(256, dtype=np.uint8)
    image = np.repeat(codes[None, :, None], 3, axis=2)
    linear = response.linearise(image)
    back = np.rint(response.encode(linear) * 255).astype(np.uint8)
    assert np.array_equal(back, image)


def test_response_dtypes_agree():
    response = CameraResponse.named("gamma2.2")
    codes = np.arange(256)
    as8 = response.linearise(np.repeat(codes.astype(np.uint8)[None, :, None], 3, axis=2))
    as16 = response.linearise(np.repeat((codes * 257).astype(np.uint16)[None, :, None], 3, axis=2))
    np.testing.assert_allclose(as8, as16, atol=1e-6)


@pytest.mark.parametrize("name", ["rec709", "gamma", "gamma-1", "gamma99", ""])
def test_unknown_response_says_what_is_known(name):
    with pytest.raises(InputError, match="expected"):
        CameraResponse.named(name)


def test_response_rejects_falling_curve():
    table = CameraResponse.named("srgb").table.copy()
    table[100] = 0.9
    with pytest.raises(InputError, match="never decreasing"):
        CameraResponse(table, "bad")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_interval_contains_what_made_the_code(dtype):
    """Any light that rounds to a code lies in that code's interval; clipped is unbounded; black reaches 0."""
    response = CameraResponse.named("srgb")
    top = np.iinfo(dtype).max
    low, high, _ = radiance_interval_codes(response, NoiseModel(), np.dtype(dtype))
    linear = np.linspace(0, 1, 4001).astype(np.float32)
    codes = np.rint(response.encode(np.repeat(linear[:, None], 3, axis=1)) * top).astype(int)[:, 0]
    assert (low[codes, 1] <= linear + 1e-7).all()
    assert (high[codes, 1] >= linear - 1e-7).all()
    assert np.isinf(high[-1]).all()
    assert np.isfinite(high[int(CLIPPED_ENCODED * top) - 1]).all()
    assert (low[0] == 0).all()
    assert (np.diff(low[:, 0]) >= 0).all()
