"""Camera RAW: linear, in the camera's primaries, alike within a bracket."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gmodiff.errors import MissingDependencyError
from gmodiff.exif import read_exif
from gmodiff.photo import read_photo
from gmodiff.radiometry import SRGB
from gmodiff.raw import RawDevelopment
from photo_files import CAMERA_MIX, NEUTRAL, dng_bytes, ramp, refusal, save


def sensor(linear_srgb: np.ndarray) -> np.ndarray:
    """Camera RGB before white balance."""
    return linear_srgb @ CAMERA_MIX.T * NEUTRAL


@pytest.fixture
def rawpy() -> object:
    return pytest.importorskip("rawpy")


def test_raw_is_linear_and_in_the_cameras_primaries(tmp_path: Path, rawpy: object) -> None:
    light = ramp(96, 128)[..., :1] * np.array([0.9, 0.6, 0.3])
    short = read_photo(save(tmp_path, "a.dng", dng_bytes(sensor(light / 4), time=(1, 400))))
    long = read_photo(save(tmp_path, "b.dng", dng_bytes(sensor(light), time=(1, 100))))
    assert (short.exposure_time_s, long.exposure_time_s, long.iso, long.f_number) == (0.0025, 0.01, 100, pytest.approx(5.6))
    assert long.linear
    assert long.encoded.dtype == np.uint16
    inner = (slice(8, -8), slice(8, -8))
    a, b = short.encoded[inner].astype(float), long.encoded[inner].astype(float)
    valid = (a > 500) & (b < 64000)
    assert valid.mean() > 0.5
    assert np.abs(np.log2(b / np.maximum(a, 1) / 4))[valid].max() < 0.03
    back = long.encoded[inner] / 65535 @ long.colour.matrix_to(SRGB).T
    assert np.abs(back - light[inner]).max() < 0.01


def test_raw_channels_clip_at_the_top_code(tmp_path: Path, rawpy: object) -> None:
    # White balance scales red by 2 and blue by 1.6; each channel must still end at 65535, and a bright frame must not be rescaled.
    photo = read_photo(save(tmp_path, "a.dng", dng_bytes(np.full((64, 64, 3), 1.0))))
    assert (photo.encoded[8:-8, 8:-8] == 65535).all()
    blue_clips = read_photo(save(tmp_path, "b.dng", dng_bytes(np.full((64, 64, 3), 1.0) * [0.2, 0.5, 0.9])))
    assert blue_clips.encoded[32, 32] == pytest.approx([0.4 * 65535, 0.5 * 65535, 65535], abs=80)
    nearly = read_photo(save(tmp_path, "c.dng", dng_bytes(np.full((64, 64, 3), 0.9) * NEUTRAL)))
    assert nearly.encoded[32, 32] == pytest.approx([0.9 * 65535] * 3, rel=2e-3)


def test_raw_bracket_shares_one_white_balance_and_black_level(tmp_path: Path, rawpy: object) -> None:
    grey = np.full((64, 64, 3), 0.4) * NEUTRAL
    first = read_photo(save(tmp_path, "a.dng", dng_bytes(grey)))
    other = save(tmp_path, "b.dng", dng_bytes(grey, neutral=(0.7, 1.0, 0.5)))
    assert isinstance(first.raw, RawDevelopment)
    alone, shared = read_photo(other), read_photo(other, raw_development=first.raw)
    assert np.ptp(alone.encoded[32, 32].astype(int)) > 5000
    assert np.ptp(shared.encoded[32, 32].astype(int)) < 100
    dark = save(tmp_path, "c.dng", dng_bytes(grey, black=600))
    assert read_photo(dark, raw_development=first.raw).encoded.mean() > read_photo(dark).encoded.mean()


def test_raw_orientation_and_exif(tmp_path: Path, rawpy: object) -> None:
    light = ramp(96, 128)
    plain = read_photo(save(tmp_path, "a.dng", dng_bytes(sensor(light))))
    turned = read_photo(save(tmp_path, "b.dng", dng_bytes(sensor(light), orientation=6)))
    assert np.array_equal(turned.encoded, np.rot90(plain.encoded, -1))
    assert turned.exif is not None
    facts = read_exif(turned.exif)
    assert (facts.camera, facts.exposure_time_s, facts.orientation, facts.raw_sensor) == ("GMODiff Synthetic", 0.01, 1, False)


def test_raw_is_recognised_under_any_name_and_needs_rawpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, "a.tif", dng_bytes(np.full((64, 64, 3), 0.4)))
    monkeypatch.setitem(__import__("sys").modules, "rawpy", None)
    with pytest.raises(MissingDependencyError, match=r"gmodiff\[raw\]"):
        read_photo(path)


def test_damaged_raw_is_refused(tmp_path: Path, rawpy: object) -> None:
    data = dng_bytes(np.full((64, 64, 3), 0.4))
    refusal(save(tmp_path, "a.dng", data[: len(data) // 2]))
    refusal(save(tmp_path, "b.cr3", b"\0\0\0\x18ftypcrx \0\0\0\1" + bytes(100)))
    refusal(save(tmp_path, "c.raf", b"FUJIFILMCCD-RAW " + bytes(100)))
