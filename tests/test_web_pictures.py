"""Tiles, pyramid, histogram, read-out: what the viewer is told is what the picture holds."""

import dataclasses
import errno
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gmodiff.errors import InputError
from gmodiff.radiometry import DISPLAY_P3, SRGB, srgb_decode
from gmodiff.web.pictures import FILES_KEPT, TILE_PX, Picture, in_file
from gmodiff.web.workspace import remove_folder
from hdr_samples import picture


@pytest.fixture
def small(tmp_path):
    return Picture("p", picture(192, 256), tmp_path, frames=[("a.jpg", np.full((192, 256, 3), 7, np.uint8)), ("b.jpg", sixteen())])


def sixteen():
    return (np.arange(192 * 256 * 3).reshape(192, 256, 3) % 65536).astype(np.uint16)


def whole(shown: Picture, layer: str, level: int) -> np.ndarray:
    """A level put together from its tiles."""
    height, width = shown.describe()["sizes"][level]
    kind, channels = (np.dtype("<f2") if layer in ("radiance", "gain") else np.uint8), shown.layers()[layer]
    out = np.zeros((height, width, channels), kind)
    for row in range(-(-height // TILE_PX)):
        for column in range(-(-width // TILE_PX)):
            part = out[row * TILE_PX : (row + 1) * TILE_PX, column * TILE_PX : (column + 1) * TILE_PX]
            part[:] = np.frombuffer(shown.tile(layer, level, column, row), kind).reshape(part.shape)
    return out


def test_tiles_are_the_picture(small):
    assert np.allclose(whole(small, "radiance", 0), small.image.radiance, rtol=1e-3, atol=1e-4)
    assert np.array_equal(whole(small, "base", 0), small.image.base)
    assert np.array_equal(whole(small, "labels", 0)[..., 0], small.image.provenance)
    assert np.array_equal(whole(small, "frame1", 0), sixteen() >> 8)


def test_base_and_gain_make_the_rendition_by_the_standards_formula(small):
    m = small.image.gain_map.metadata
    base, gain = srgb_decode(whole(small, "base", 0) / 255.0), whole(small, "gain", 0).astype(np.float64)
    for headroom in (0.0, 1.0, m.alternate_headroom):
        mine = (base + np.array(m.base_offset)) * 2 ** (m.weight(headroom) * gain) - np.array(m.alternate_offset)
        theirs = small.image.gain_map.apply(srgb_decode(small.image.base / 255.0), headroom)
        assert np.allclose(mine, theirs, rtol=3e-3, atol=1e-3)


def test_a_small_map_is_enlarged_as_the_standard_says(tmp_path):
    image = picture(64, 96)
    few = np.ascontiguousarray(image.gain_map.codes[::4, ::4])
    shown = Picture("p", dataclasses.replace(image, gain_map=dataclasses.replace(image.gain_map, codes=few)), tmp_path)
    base = srgb_decode(image.base / 255.0).astype(np.float32)
    m = image.gain_map.metadata
    mine = (base + np.float32(m.base_offset[0])) * 2 ** whole(shown, "gain", 0).astype(np.float32) - np.float32(m.alternate_offset[0])
    assert np.allclose(mine, shown.image.gain_map.apply(base), rtol=3e-3, atol=1e-3)


def test_a_pyramid_of_means_whose_last_level_is_one_tile(tmp_path):
    image = picture(700, 1300)
    shown = Picture("p", image, tmp_path)
    sizes = shown.describe()["sizes"]
    assert sizes == [[700, 1300], [350, 650], [175, 325]]
    assert max(sizes[-1]) <= TILE_PX < max(sizes[-2])
    halves = image.radiance.reshape(350, 2, 650, 2, 3).mean(axis=(1, 3))
    assert np.allclose(whole(shown, "radiance", 1), halves, rtol=2e-3, atol=1e-3)
    labels = whole(shown, "labels", 2)[..., 0]
    assert set(np.unique(labels)) <= {0, 1, 2}
    assert labels[150, 10] == 1


def test_odd_sizes_lose_no_column(tmp_path):
    image = picture(5, TILE_PX * 2 + 1)
    shown = Picture("p", image, tmp_path)
    assert shown.describe()["sizes"] == [[5, 1025], [3, 513], [2, 257]]
    assert whole(shown, "radiance", 1).shape == (3, 513, 3)


@pytest.mark.parametrize(
    "at",
    [("radiance", 9, 0, 0), ("radiance", -1, 0, 0), ("radiance", 0, 1, 0), ("radiance", 0, 0, -1), ("frame9", 0, 0, 0), ("../x", 0, 0, 0)],
)
def test_a_tile_that_is_not_there_is_refused(small, at):
    with pytest.raises(InputError, match="this picture has no"):
        small.tile(*at)


def test_light_that_half_floats_cannot_hold_is_cut(tmp_path):
    image = picture(8, 8)
    image.radiance[0, 0] = (1e9, np.nan, -1e9)
    with np.errstate(all="raise"):
        tile = np.frombuffer(Picture("p", image, tmp_path).tile("radiance", 0, 0, 0), "<f2").reshape(8, 8, 3)
    assert tile[0, 0].tolist() == [65504.0, 0.0, -65504.0]


def test_colours_come_with_the_matrices_that_show_them(tmp_path):
    told = Picture("p", picture(16, 16, colour=DISPLAY_P3), tmp_path).describe()
    assert np.allclose(np.reshape(told["radiance_to_srgb"], (3, 3)), DISPLAY_P3.matrix_to(SRGB), atol=1e-6)
    assert np.allclose(np.reshape(told["gain"]["base_to_gain"], (3, 3)), np.eye(3))
    assert np.allclose(np.reshape(told["gain"]["gain_to_srgb"], (3, 3)), DISPLAY_P3.matrix_to(SRGB), atol=1e-6)


def test_the_histogram_counts_every_pixel_once_under_its_label(small):
    told = small.histogram()
    shares = {label: sum(values) for label, values in told["percent"].items()}
    assert sum(shares.values()) == pytest.approx(100, abs=0.05)
    assert shares["1"] == pytest.approx(100 * np.mean(small.image.provenance == 1), abs=0.05)
    grey = Picture(
        "p", dataclasses.replace(picture(8, 8), radiance=np.full((8, 8, 3), 2.0**1.6, np.float32), provenance=None), small.folder
    )
    told = grey.histogram()
    (bin_,) = np.flatnonzero(told["percent"]["0"])
    assert told["from"] + bin_ / told["per_stop"] <= 1.6 < told["from"] + (bin_ + 1) / told["per_stop"]


def test_a_pixel_tells_its_story(small):
    small.source = np.ones((192, 256), np.uint8)
    told = small.pixel(10, 150)
    assert told["label"] == "measured in another photo"
    assert told["source"] == "b.jpg"
    assert told["radiance"] == pytest.approx(small.image.radiance[150, 10].tolist(), rel=1e-4)
    assert small.pixel(0, 0)["label"] == "inferred"
    assert small.pixel(0, 0)["source"] is None
    with pytest.raises(InputError, match="256, 0 is outside"):
        small.pixel(256, 0)


def test_files_are_made_once_per_setting(small):
    with small.written(".jpg") as first, small.written(".jpg") as second, small.written(".jpg", quality=60) as smaller:
        assert os.path.samestat(os.fstat(first.fileno()), os.fstat(second.fileno()))
        assert os.fstat(smaller.fileno()).st_size < os.fstat(first.fileno()).st_size


def test_only_the_last_files_of_a_picture_are_kept(small):
    for quality in range(1, FILES_KEPT + 5):
        small.written(".jpg", quality=quality).close()
    assert len(list(small.folder.glob("out*"))) == FILES_KEPT
    with small.written(".png", quality=10) as one, small.written(".png", quality=90) as other:
        assert os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))


def test_a_file_that_was_removed_is_made_again_and_one_that_is_open_is_read_to_its_end(small):
    with small.written(".jpg") as opened:
        (place,) = small.folder.glob("out*")
        whole = place.read_bytes()
        place.unlink()
        assert opened.read() == whole
    assert small.made(".jpg") is None
    with small.written(".jpg") as again:
        assert again.read() == whole


def test_who_looks_at_a_picture_that_is_gone_is_told_so(tmp_path):
    shown = Picture("p", picture(700, 900), tmp_path / "folder")
    shown.folder.mkdir()
    shown.tile("radiance", 0, 0, 0)
    shown.gone = True
    remove_folder(shown.folder)
    for look in (lambda: shown.tile("base", 1, 0, 0), lambda: shown.written(".png")):
        with pytest.raises(InputError, match="not here any more"):
            look()


def test_a_full_disk_says_so_and_anything_else_does_not(tmp_path, monkeypatch):
    kept = in_file(np.arange(5), tmp_path / "a.npy")

    def refusing(number):
        def save(file, values):
            file.write(b"half")
            raise OSError(number, os.strerror(number))

        return save

    for number, words in ((errno.ENOSPC, "free some space"), (errno.EIO, "cannot be kept in the temporary folder: Input/output error")):
        monkeypatch.setattr(np, "save", refusing(number))
        with pytest.raises(InputError, match=words):
            in_file(np.zeros(5), tmp_path / "a.npy")
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]
    assert list(kept) == [0, 1, 2, 3, 4]


def test_a_file_that_is_looked_at_is_never_written_into(tmp_path):
    first = in_file(np.zeros(5), tmp_path / "a.npy")
    second = in_file(np.ones(5), tmp_path / "a.npy")
    assert (first.sum(), second.sum()) == (0, 5)


def test_who_waits_for_one_layer_waits_for_no_other(small):
    with small._making_of("radiance"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(small.tile, "base", 0, 0, 0).result(timeout=20)
