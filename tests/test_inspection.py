import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from gmodiff.errors import GMODiffError, InputError, OutputError
from gmodiff.gainmap import GainMap, GainMapMetadata
from gmodiff.hdrgm import iso_bytes, map_xmp
from gmodiff.icc import profile_bytes
from gmodiff.image import HDRImage
from gmodiff.inspection import as_text, describe, preview, render_preview
from gmodiff.radiometry import DISPLAY_P3, SRGB, srgb_decode, srgb_encode
from gmodiff.reader import read
from gmodiff.ultrahdr import ISO_HEADER, XMP_HEADER, join
from gmodiff.writer import write
from hdr_samples import exif_block, jpeg, picture, segment

PICTURE = replace(picture(exif=exif_block()), metadata={"look": "camera"})


def test_ultra_hdr_facts(tmp_path):
    write(PICTURE, tmp_path / "a.jpg")
    facts = describe(tmp_path / "a.jpg")
    m = PICTURE.gain_map.metadata
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert (facts["file"], facts["format"], facts["width"], facts["height"]) == ("a.jpg", "Ultra HDR JPEG", 256, 192)
    assert facts["bytes"] == (tmp_path / "a.jpg").stat().st_size
    assert (facts["content"], facts["look"], facts["colour"]) == ("rendition", "camera", "srgb")
    assert facts["headroom_stops"] == pytest.approx(m.alternate_headroom, abs=1e-6)
    assert facts["base_headroom_stops"] == 0
    gain = facts["gain_map"]
    assert (gain["width"], gain["height"], gain["channels"]) == (256, 192, 3)
    assert gain["minimum_stops"] == pytest.approx(m.minimum, abs=1e-6)
    assert gain["maximum_stops"] == pytest.approx(m.maximum, abs=1e-6)
    assert gain["gamma"] == [1, 1, 1]
    assert gain["base_offset"] == gain["alternate_offset"] == [1 / 64] * 3
    assert gain["forms"] == ["iso", "xmp", "mpf", "gcontainer"]
    assert gain["agree"] is True
    assert gain["largest_difference"] < 1e-8
    assert facts["provenance"]["aligned_percent"] == pytest.approx(12.5)
    assert facts["exif"] == {
        "camera": "Canonical Camera One",
        "lens": "Lens 50mm",
        "taken": "2024:05:06 07:08:09",
        "exposure_s": 0.004,
        "f_number": 2.8,
        "iso": 200.0,
    }
    assert facts["warnings"] == []
    light = facts["light"]
    assert light["peak_stops"] == pytest.approx(math.log2(6), abs=0.02)
    assert light["peak_nits"] == pytest.approx(6 * 203, rel=0.02)
    assert light["p1_stops"] < light["p50_stops"] < light["p99_stops"] < light["p99_9_stops"] <= light["peak_stops"]
    assert light["above_white_percent"] == pytest.approx(100 * np.mean(PICTURE.radiance.max(axis=2) > 1), abs=1)


def test_percentiles_are_of_luminance():
    light = np.full((10, 10, 3), 0.25, np.float32)
    light[0, 0] = (0, 8, 0)
    from gmodiff.inspection import _light

    facts = _light(HDRImage(light))
    assert facts["p50_stops"] == -2
    assert facts["peak_stops"] == 3
    assert facts["above_white_percent"] == 1
    assert _light(HDRImage(np.zeros((4, 4, 3), np.float32)))["peak_stops"] == -20


@pytest.mark.parametrize("suffix", ["exr", "hdr", "tif", "png", "avif", "jxl"])
def test_other_formats(tmp_path, suffix):
    write(replace(PICTURE, content="scene"), tmp_path / f"a.{suffix}")
    facts = describe(tmp_path / f"a.{suffix}")
    json.dumps(facts, allow_nan=False)
    assert facts["gain_map"] is None
    assert facts["content"] == ("scene" if suffix in ("exr", "hdr", "tif") else "rendition")
    assert facts["headroom_stops"] == pytest.approx(math.log2(6), abs=0.1)
    assert facts["provenance"] is not None
    assert facts["format"] in as_text(facts)


def test_plain_photo(tmp_path):
    Image.fromarray(PICTURE.base).save(tmp_path / "a.png")
    facts = describe(tmp_path / "a.png")
    assert facts["format"] == "PNG photo (SDR)"
    assert facts["headroom_stops"] == 0
    assert facts["warnings"] == []


def photo(m: GainMapMetadata, *segments: bytes) -> bytes:
    codes = jpeg(PICTURE.gain_map.codes)
    return jpeg(PICTURE.base) + codes[:2] + b"".join(segments) + codes[2:]


def warnings_of(tmp_path, data: bytes) -> str:
    (tmp_path / "a.jpg").write_bytes(data)
    return "\n".join(describe(tmp_path / "a.jpg")["warnings"])


def test_warnings(tmp_path):
    m = PICTURE.gain_map.metadata
    xmp, iso = segment(0xE1, XMP_HEADER + map_xmp(m)), segment(0xE2, ISO_HEADER + iso_bytes(m))
    assert "no MPF index" in warnings_of(tmp_path, photo(m, xmp, iso))
    only_xmp, only_iso = warnings_of(tmp_path, photo(m, xmp)), warnings_of(tmp_path, photo(m, iso))
    assert "no ISO 21496-1 metadata" in only_xmp
    assert "no hdrgm XMP metadata" not in only_xmp
    assert "no hdrgm XMP metadata" in only_iso
    assert "no ISO 21496-1 metadata" not in only_iso
    other = GainMapMetadata(m.minimum, m.maximum, alternate_headroom=m.alternate_headroom + 0.1)
    assert "disagree" in warnings_of(tmp_path, photo(m, segment(0xE1, XMP_HEADER + map_xmp(other)), iso))
    whole = join(jpeg(PICTURE.base), jpeg(PICTURE.gain_map.codes), m)
    assert warnings_of(tmp_path, whole) == ""
    generic = replace(m, alternate_headroom=math.log2(10000 / 203))
    assert "displays will show it too dark" in warnings_of(tmp_path, join(jpeg(PICTURE.base), jpeg(PICTURE.gain_map.codes), generic))
    wide = GainMapMetadata((-1.0,) * 3, (3.5,) * 3, alternate_headroom=3.5)
    assert "spans 4.5 stops" in warnings_of(tmp_path, join(jpeg(PICTURE.base), jpeg(PICTURE.gain_map.codes), wide))


def test_a_map_that_was_cut_off_is_a_warning(tmp_path):
    whole = tmp_path / "whole.jpg"
    write(picture(96, 128), whole)
    data = whole.read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: data.index(b"\xff\xd8", 100)])  # as a program leaves it that knows one picture a file
    facts = describe(tmp_path / "cut.jpg")
    assert facts["gain_map"] is None
    assert any("gain map" in w for w in facts["warnings"])
    assert not any("gain map" in n for n in facts["notes"])


def test_black_has_no_peak_in_words(tmp_path):
    write(replace(picture(32, 32), radiance=np.zeros((32, 32, 3), np.float32)), tmp_path / "black.exr")
    assert "no light at all" in as_text(describe(tmp_path / "black.exr"))


def test_text_names_what_matters(tmp_path):
    write(PICTURE, tmp_path / "a.jpg")
    text = as_text(describe(tmp_path / "a.jpg"))
    for part in ("Ultra HDR JPEG, 256 x 192", "look camera", "0 to 2.585 stops", "both metadata forms agree", "Camera One", "f/2.8"):
        assert part in text
    assert all(len(line) < 140 for line in text.splitlines())


# ---- preview ------------------------------------------------------------------------------------------------------------


def test_headroom_zero_is_the_sdr_photo(tmp_path):
    write(PICTURE, tmp_path / "a.jpg")
    preview(tmp_path / "a.jpg", tmp_path / "p.png", headroom=0)
    with Image.open(tmp_path / "p.png") as shown, Image.open(tmp_path / "a.jpg") as base:
        assert shown.mode == "RGB"
        assert np.abs(np.asarray(shown).astype(int) - np.asarray(base)).max() <= 1


@pytest.mark.parametrize("headroom", [None, 1.0, 2.0, 8.0])
def test_displays_peak_becomes_white(tmp_path, headroom):
    write(PICTURE, tmp_path / "a.jpg")
    preview(tmp_path / "a.jpg", tmp_path / "p.png", headroom=headroom)
    image = read(tmp_path / "a.jpg")
    own = image.gain_map.metadata.alternate_headroom
    stops = own if headroom is None else headroom
    light = image.gain_map.apply(srgb_decode(image.base / 255.0), min(stops, own)) / 2**stops
    with Image.open(tmp_path / "p.png") as shown:
        assert np.abs(np.asarray(shown) - 255 * srgb_encode(np.clip(light, 0, 1))).max() <= 1.01


def test_radiance_file_is_cut_off_at_the_displays_peak(tmp_path):
    light = np.full((20, 20, 3), 0.5, np.float32)
    light[0] = 7.0
    write(HDRImage(light), tmp_path / "a.exr")
    preview(tmp_path / "a.exr", tmp_path / "p.png", headroom=1.0)
    with Image.open(tmp_path / "p.png") as shown:
        pixels = np.asarray(shown)
    assert (pixels[0] == 255).all()
    assert np.abs(pixels[1:] - 255 * float(srgb_encode(np.array(0.25)))).max() <= 1


def test_colours_are_converted_to_srgb():
    red = np.zeros((16, 16, 3), np.float32)
    red[...] = (0.4, 0.2, 0.2)
    shown = render_preview(HDRImage(red, content="rendition", colour=DISPLAY_P3, base_colour=DISPLAY_P3), 0.0)
    expected = 255 * srgb_encode(np.array([0.4, 0.2, 0.2]) @ DISPLAY_P3.matrix_to(SRGB).T)
    assert np.abs(shown[0, 0] - expected).max() <= 1


def test_partial_headroom_in_the_alternates_colour_space(tmp_path):
    m = replace(PICTURE.gain_map.metadata, use_base_colour_space=False)
    data = join(jpeg(PICTURE.base), jpeg(PICTURE.gain_map.codes), m, icc=profile_bytes(SRGB), map_icc=profile_bytes(DISPLAY_P3))
    (tmp_path / "a.jpg").write_bytes(data)
    image = read(tmp_path / "a.jpg")
    there, back = SRGB.matrix_to(DISPLAY_P3), DISPLAY_P3.matrix_to(SRGB)
    inside = GainMap(image.gain_map.codes, m).apply(np.maximum(srgb_decode(image.base / 255.0) @ there.T, 0), 1.0)
    expected = 255 * srgb_encode(np.clip(inside @ back.T / 2, 0, 1))
    assert np.abs(render_preview(image, 1.0) - expected).max() <= 2


def test_preview_refuses_what_it_cannot_do(tmp_path):
    write(PICTURE, tmp_path / "a.jpg")
    with pytest.raises(OutputError, match=r"ending in \.png"):
        preview(tmp_path / "a.jpg", tmp_path / "p.jpg")
    for headroom in (-1, 17, math.nan):
        with pytest.raises(InputError, match="expected 0 to 16"):
            preview(tmp_path / "a.jpg", tmp_path / "p.png", headroom=headroom)
    (tmp_path / "p.png").write_bytes(b"precious")
    with pytest.raises(OutputError, match="--force"):
        preview(tmp_path / "a.jpg", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes() == b"precious"
    write(PICTURE, tmp_path / "own.png")
    with pytest.raises(OutputError, match="being read"):
        preview(tmp_path / "own.png", tmp_path / "own.png", force=True)
    with pytest.raises(GMODiffError):
        describe(tmp_path / "missing.jpg")


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"network": "compact", "refine": 0.5, "noise_reduced": True}, "network       compact, refined by 0.5, noise reduced"),
        ({"network": 'a "b" & <c>', "refine": 0.0, "noise_reduced": False}, 'network       a "b" & <c>'),
        ({"network": None, "refine": 0.0, "noise_reduced": False}, "network       none"),
    ],
)
def test_files_say_what_networks_did(tmp_path, said, line):
    for suffix in ("jpg", "avif", "exr", "hdr", "tif"):
        write(replace(PICTURE, metadata=said), tmp_path / f"a.{suffix}")
        facts = describe(tmp_path / f"a.{suffix}")
        assert facts["network"] == {"name": said["network"], "refine": said["refine"], "noise_reduced": said["noise_reduced"]}
        assert line in as_text(facts).splitlines()


def test_a_comment_is_one_line_whatever_a_model_is_called(tmp_path):
    """In .hdr a new line would begin another header line."""
    said = {"network": "a;b\nEXPOSURE=4\n\n-Y 1 +X 1", "refine": 0.0, "noise_reduced": False}
    plain = replace(PICTURE, metadata={"network": "ab", "refine": 0.0, "noise_reduced": False})
    for suffix in ("hdr", "exr", "tif"):
        write(replace(PICTURE, metadata=said), tmp_path / f"a.{suffix}")
        write(plain, tmp_path / f"b.{suffix}")
        a, b = (describe(tmp_path / f"{n}.{suffix}") for n in "ab")
        assert a["network"]["name"] == "a,b EXPOSURE=4 -Y 1 +X 1"
        assert a["light"] == b["light"]
        assert a["provenance"] == b["provenance"]
        assert b["content"] == a["content"]


def test_files_that_say_nothing_of_networks_or_nonsense(tmp_path):
    write(PICTURE, tmp_path / "a.jpg")
    assert describe(tmp_path / "a.jpg")["network"] is None
    write(replace(PICTURE, metadata={"network": "compact", "refine": 0.5, "noise_reduced": True}), tmp_path / "b.jpg")
    data = (tmp_path / "b.jpg").read_bytes()
    for nonsense in (b'Refine="nan"', b'Refine="2.0"'):
        broken = data.replace(b'Refine="0.5"', nonsense)
        (tmp_path / "c.jpg").write_bytes(broken)
        assert len(broken) == len(data)
        assert broken != data
        assert describe(tmp_path / "c.jpg")["network"] is None
