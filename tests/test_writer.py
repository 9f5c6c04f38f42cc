"""Every format: what comes back, what other readers see, what is kept of the photo, what is refused."""

import io
import json
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import OpenImageIO as oiio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

import chromium_hdr
from gmodiff import avif, floatfiles, pq
from gmodiff.errors import GMODiffError, InputError, MissingDependencyError, OutputError
from gmodiff.exif import read_exif
from gmodiff.gainmap import GainMapMetadata
from gmodiff.image import HDRImage
from gmodiff.radiometry import BT2020, DISPLAY_P3, SRGB, luminance_weights, pq_encode
from gmodiff.reader import read
from gmodiff.ultrahdr import split
from gmodiff.writer import PROVENANCE_COLOURS, check_writable, write, write_provenance
from hdr_samples import Halved, exif_block, picture

WRITE = sys.modules["gmodiff.writer"]


EXIFTOOL = shutil.which("exiftool")


PICTURE = picture(exif=exif_block(orientation=1, thumbnail=b"\xff\xd8 a stale thumbnail \xff\xd9"))


def relative(result: np.ndarray, expected: np.ndarray, floor: float = 0.01) -> np.ndarray:
    return np.abs(result - expected) / np.maximum(np.abs(expected), floor)


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# ---- each format comes back ------------------------------------------------------------------------------------------------


TOLERANCES = {
    # suffix: (median, 99.9th percentile) of the relative error, dark values counted against 0.01
    "jpg": (0.015, 0.15),  # base and map are both JPEG
    "png": (1e-3, 3e-3),
    "avif": (0.02, 0.4),
    "jxl": (0.02, 0.4),
    "exr": (3e-4, 5e-4),  # half float: 11 bits
    "tif": (0.0, 0.0),
}


@pytest.mark.parametrize("suffix", TOLERANCES)
@pytest.mark.parametrize("colour", [SRGB, DISPLAY_P3], ids=lambda c: c.name)
def test_round_trip(tmp_path, suffix, colour):
    image = replace(PICTURE, colour=colour, base_colour=colour)
    write(image, tmp_path / f"a.{suffix}")
    back = read(tmp_path / f"a.{suffix}")
    assert leftovers(tmp_path) == [f"a.{suffix}"]
    light = back.radiance if back.colour == colour else back.radiance @ back.colour.matrix_to(colour).T
    error = relative(light, image.radiance)
    median, most = TOLERANCES[suffix]
    assert np.median(error) <= median
    assert np.percentile(error, 99.9) <= most
    assert back.radiance.dtype == np.float32


def test_rgbe_is_right_on_average_and_within_half_a_step(tmp_path):
    random = np.random.default_rng(1)
    light = (2.0 ** random.uniform(-20, 14, (128, 256, 1)) * random.random((128, 256, 3))).astype(np.float32)
    light[0, 0], light[0, 1], light[0, 2] = 0, (255.9, 1, 0.5), 1.0
    write(HDRImage(light), tmp_path / "a.hdr")
    stored = read(tmp_path / "a.hdr").radiance
    error = (stored - light) / np.maximum(light.max(axis=2, keepdims=True), 1e-30)
    assert np.abs(error).max() <= 1 / 255
    assert abs(error.mean()) < 1e-4  # scaling by 255 instead of 256, or cutting off, would make 3e-3
    assert (stored[0, 2] == 1).all()
    assert (stored[0, 0] == 0).all()
    # Two readers that are not ours.
    assert (cv2.imread(str(tmp_path / "a.hdr"), cv2.IMREAD_UNCHANGED)[..., ::-1] == stored).all()
    import imagecodecs

    assert (imagecodecs.rgbe_decode((tmp_path / "a.hdr").read_bytes()) == stored).all()


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, (4, 3, 3), elements=st.floats(0, 2**20, width=32)))
def test_rgbe_rounding_survives_any_pixel(light):
    moved = floatfiles.rgbe_rounded(light)
    step = 2.0 ** (np.frexp(moved.max(axis=2, keepdims=True))[1] - 8)
    stored = np.floor(moved / step) * step
    assert (np.abs(stored - light) <= 0.5 * step + 1e-30).all()


def test_exr_says_what_it_holds_and_keeps_provenance(tmp_path):
    write(replace(PICTURE, content="scene", radiance=PICTURE.radiance * 30000, colour=DISPLAY_P3), tmp_path / "a.exr")
    opened = oiio.ImageInput.open(str(tmp_path / "a.exr"))
    spec = opened.spec()
    assert tuple(spec.channelnames) == ("R", "G", "B", "provenance")
    assert str(spec.format) == "half"
    assert spec.getattribute("whiteLuminance") == 203
    shares = "MeasuredPercent=87.467; AlignedPercent=12.500; InferredPercent=0.033"
    assert spec.getattribute("ImageDescription") == f"scene-linear radiance; {shares}"
    assert np.allclose(spec.getattribute("chromaticities"), np.array(DISPLAY_P3.chromaticities).ravel())
    pixels = opened.read_image("float")
    opened.close()
    assert pixels.max() == 65504  # clipped to the largest half, not infinite
    assert (pixels[..., 3] == PICTURE.provenance).all()
    assert (read(tmp_path / "a.exr").provenance == PICTURE.provenance).all()


def test_tiff_is_float_with_a_linear_profile(tmp_path):
    from gmodiff.icc import colour_space_from_icc

    write(replace(PICTURE, colour=DISPLAY_P3), tmp_path / "a.tif")
    opened = oiio.ImageInput.open(str(tmp_path / "a.tif"))
    profile = colour_space_from_icc(bytes(np.asarray(opened.spec().getattribute("ICCProfile"), np.uint8)))
    opened.close()
    assert profile.transfer == "linear"
    assert np.abs(np.array(profile.chromaticities) - np.array(DISPLAY_P3.chromaticities)).max() < 1e-3
    assert read(tmp_path / "a.tif").colour == DISPLAY_P3


# ---- PQ --------------------------------------------------------------------------------------------------------------------


def test_pq_codes_are_the_formula_to_one_code():
    light = np.concatenate([np.geomspace(1e-9, 60, 20001), [0, 1, 10000 / 203, 1e9, np.inf]]).astype(np.float32)
    for bits in (10, 16):
        exact = pq_encode(light.astype(np.float64) * 203) * (2**bits - 1)
        assert np.abs(pq.pq_codes(light, bits) - exact).max() <= 1
    assert (pq.pq_codes(np.array([-1.0, -np.inf, np.nan], np.float32), 16) == 0).all()


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_adler_of_two_pieces(first, second):
    assert pq._joined_adler32(zlib.adler32(first), zlib.adler32(second), len(second)) == zlib.adler32(first + second)


def chunks(data: bytes) -> dict[bytes, bytes]:
    found, at = {}, 8
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        found.setdefault(kind, data[at + 8 : at + 8 + length])
        at += 12 + length
    return found


def test_png_has_code_points_and_light_level_and_other_decoders_read_its_pixels(tmp_path):
    tall = picture(300, 40)  # several strips: filters and checksums must join
    write(tall, tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    found = chunks(data)
    assert found[b"cICP"] == bytes([9, 16, 0, 1])
    max_cll, max_fall = struct.unpack(">II", found[b"cLLI"])
    brightest = (tall.radiance @ SRGB.matrix_to(BT2020).T).max(axis=2) * 203
    assert max_cll / 10000 == pytest.approx(brightest.max(), rel=1e-4)
    assert max_fall / 10000 == pytest.approx(brightest.mean(), rel=1e-4)
    expected = np.rint(pq_encode((tall.radiance @ SRGB.matrix_to(BT2020).T) * 203) * 65535)
    opened = oiio.ImageInput.open(str(tmp_path / "a.png"))
    pixels = opened.read_image("uint16")
    opened.close()
    assert np.abs(pixels.astype(int) - expected).max() <= 1
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # Pillow checks all CRCs
        assert image.size == (40, 300)
    packed, at = b"", 8
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        packed += data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    assert len(zlib.decompress(packed)) == 300 * (40 * 6 + 1)  # raises where the checksum of the whole is wrong


def test_avif_has_code_points_light_level_and_metadata(tmp_path):
    write(PICTURE, tmp_path / "a.avif")
    data = (tmp_path / "a.avif").read_bytes()
    assert avif.code_points(data) == (9, 16, 9)
    assert avif.size_and_depth(data) == (256, 192, 10)
    at = data.index(b"clli") + 4
    max_cll, max_fall = struct.unpack_from(">HH", data, at)
    brightest = (PICTURE.radiance @ SRGB.matrix_to(BT2020).T).max(axis=2) * 203
    assert max_cll == np.ceil(brightest.max())
    assert max_fall == pytest.approx(brightest.mean(), abs=1)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (256, 192)
        assert image.getexif()[0x0110] == "Camera One"
        assert b"rendition" in image.info["xmp"]


def test_avif_without_its_encoder_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'gmodiff\[avif\]'"):
        check_writable([tmp_path / "a.avif"])
    with pytest.raises(MissingDependencyError):
        write(PICTURE, tmp_path / "a.avif")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("suffix", ["png", "avif", "jxl", "exr", "hdr", "tif", "jpg"])
def test_screen_formats_hold_the_look_and_radiance_formats_the_scene(tmp_path, suffix):
    image = replace(PICTURE, look=Halved(), content="scene")
    write(image, tmp_path / f"a.{suffix}")
    back = read(tmp_path / f"a.{suffix}")
    if suffix in ("exr", "hdr", "tif"):
        assert back.metadata["content"] == "scene-linear radiance"
        assert back.content == "scene"
        factor = 1.0
    else:
        assert back.metadata["content"] == "rendition: half"
        assert back.metadata["look"] == "half"
        assert back.content == "rendition"
        factor = 0.5 if suffix != "jpg" else 1.0  # Ultra HDR is what base and map say, and they were made elsewhere
    assert back.radiance.max() == pytest.approx(PICTURE.radiance.max() * factor, rel=0.05)


# ---- Ultra HDR seen by others ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("colour", [SRGB, DISPLAY_P3], ids=lambda c: c.name)
def test_libultrahdr_sees_the_same_light(tmp_path, channels, colour):
    path = tmp_path / "a.jpg"
    # It decodes through 10-bit tables, which cost 3 % below 0.02.
    write(picture(channels=channels, colour=colour, darkest=0.03), path)
    ours = read(path).radiance
    imagecodecs = pytest.importorskip("imagecodecs", reason="the extra 'avif' is not installed")
    opened = oiio.ImageInput.open(str(path))
    versions = {"imagecodecs": imagecodecs.ultrahdr_decode(path.read_bytes()), "OpenImageIO": opened.read_image("float")}
    opened.close()
    for theirs in versions.values():
        error = relative(theirs[..., :3].astype(np.float32), ours)
        assert np.median(error) < 0.005
        assert error.max() < 0.03


@pytest.mark.skipif(chromium_hdr.missing() is not None, reason=str(chromium_hdr.missing()))
def test_chromium_shows_what_we_read(tmp_path):
    from gmodiff.inspection import _shown

    write(PICTURE, tmp_path / "rgb.jpg")
    write(PICTURE, tmp_path / "compact.jpg", compact=True)
    write(replace(PICTURE, colour=DISPLAY_P3, base_colour=DISPLAY_P3), tmp_path / "p3.jpg")
    write(PICTURE, tmp_path / "pq.png")
    write(PICTURE, tmp_path / "pq.avif", quality=98)
    with chromium_hdr.Chromium(tmp_path) as browser:
        for name, headroom in (
            *(("rgb.jpg", h) for h in (6.0, 1.0, 0.0)),
            *(("compact.jpg", h) for h in (6.0, 1.5)),
            ("p3.jpg", 6.0),
        ):
            image = read(tmp_path / name)
            ours = _shown(image, headroom)(0, 192)
            theirs = browser.decode(tmp_path / name, headroom) @ SRGB.matrix_to(image.colour).T
            # Black minus an offset may end a hair below 0 there. In P3 the canvas's half floats were rounded in other primaries.
            error = np.abs(np.maximum(theirs, 0) - ours)
            scale = ours if name != "p3.jpg" else ours.max(axis=2, keepdims=True)
            assert (error / np.maximum(scale, 0.01)).max() < 1e-3, (name, headroom)
        for name in ("pq.png", "pq.avif"):
            image = read(tmp_path / name)
            ours = image.radiance @ image.colour.matrix_to(SRGB).T
            assert np.median(relative(browser.decode(tmp_path / name), ours)) < 5e-3, name


def test_pillow_shows_the_base_as_an_ordinary_photo(tmp_path):
    write(PICTURE, tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (256, 192))
        assert np.abs(np.asarray(image).astype(int) - PICTURE.base).mean() < 1
        assert image.info["icc_profile"]


def test_exif_is_kept_with_upright_size_and_without_thumbnail(tmp_path):
    write(PICTURE, tmp_path / "a.jpg")
    block = split((tmp_path / "a.jpg").read_bytes()).exif
    facts = read_exif(block)
    assert (facts.camera, facts.orientation, facts.exposure_time_s) == ("Canonical Camera One", 1, 0.004)
    assert b"stale thumbnail" not in block
    with Image.open(tmp_path / "a.jpg") as image:
        exif = image.getexif().get_ifd(0x8769)
        assert (exif[0xA002], exif[0xA003]) == (256, 192)


@pytest.mark.parametrize("suffix", ["jpg", "png", "avif", "jxl", "exr", "tif"])
def test_strip_leaves_nothing_of_the_photographer(tmp_path, suffix):
    write(PICTURE, tmp_path / f"kept.{suffix}")
    write(PICTURE, tmp_path / f"stripped.{suffix}", strip=True)
    assert b"2024:05:06" in (tmp_path / f"kept.{suffix}").read_bytes()
    for trace in (b"Canonical", b"Camera One", b"Lens 50mm", b"2024:05:06"):
        assert trace not in (tmp_path / f"stripped.{suffix}").read_bytes()


@pytest.mark.skipif(EXIFTOOL is None, reason="exiftool is not installed (Debian: libimage-exiftool-perl)")
def test_exiftool_finds_no_fault_with_any_format(tmp_path):
    names = [f"a.{s}" for s in ("jpg", "png", "avif", "jxl", "exr", "hdr")]
    for name in names:
        write(PICTURE, tmp_path / name)
    command = [EXIFTOOL, "-j", "-a", "-G4", "-validate", "-warning", "-Content", "-Model", *names]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    for tags in json.loads(run.stdout):
        faults = {v for k, v in tags.items() if k.endswith(("Warning", "Error"))}
        # exiftool 12 does not know the ISO segment; the sample's EXIF is a minimal one.
        assert {f for f in faults if "Unknown APP2" not in f and "Missing required JPEG" not in f} == set(), tags
        if tags["SourceFile"][2:] in ("jpg", "png", "avif", "jxl"):
            assert tags["Unknown:Content"] == "rendition"
            assert tags["Unknown:Model"] == "Camera One"


def test_compact_is_a_quarter_size_luminance_map_and_smaller(tmp_path):
    grey = picture(channels=1)  # one ratio for all channels: what one channel can hold
    write(grey, tmp_path / "full.jpg")
    write(grey, tmp_path / "compact.jpg", compact=True)
    compact = read(tmp_path / "compact.jpg")
    assert compact.gain_map.codes.shape == (48, 64, 1)
    assert (tmp_path / "compact.jpg").stat().st_size < 0.7 * (tmp_path / "full.jpg").stat().st_size
    weights = luminance_weights(SRGB)
    error = relative(compact.radiance @ weights, grey.radiance @ weights)
    assert np.median(error) < 0.02
    assert compact.gain_map.metadata.alternate_headroom == pytest.approx(grey.gain_map.metadata.alternate_headroom)


@pytest.mark.parametrize("suffix", ["jpg", "png", "avif", "jxl", "hdr"])
def test_the_same_picture_gives_the_same_file(tmp_path, suffix):
    write(PICTURE, tmp_path / f"a.{suffix}")
    write(PICTURE, tmp_path / f"b.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_ultra_hdr_needs_a_base_and_a_map(tmp_path):
    with pytest.raises(InputError, match=r"a\.jpg: Ultra HDR needs an SDR base"):
        write(HDRImage(PICTURE.radiance), tmp_path / "a.jpg")
    pixels = np.zeros((16, 70000, 3), np.uint8)
    wide = replace(PICTURE, radiance=pixels.astype(np.float32), base=pixels, exif=None)
    with pytest.raises(InputError, match="65500 pixels per side, this picture is 70000x16"):
        write(wide, tmp_path / "a.jpg")
    with pytest.raises(InputError, match="quality 0"):
        write(PICTURE, tmp_path / "a.jpg", quality=0)
    assert leftovers(tmp_path) == []


# ---- provenance ------------------------------------------------------------------------------------------------------------


def test_provenance_png_stores_labels_and_shows_colours(tmp_path):
    write_provenance(PICTURE.provenance, tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        assert image.mode == "P"
        assert (np.asarray(image) == PICTURE.provenance).all()
        assert (np.asarray(image.convert("RGB")) == np.array(PROVENANCE_COLOURS, np.uint8)[PICTURE.provenance]).all()
    with pytest.raises(OutputError, match="--force"):
        write_provenance(PICTURE.provenance, tmp_path / "p.png")
    with pytest.raises(OutputError, match=r"ending in \.png"):
        write_provenance(PICTURE.provenance, tmp_path / "p.jpg")


def test_every_error_is_ours(tmp_path):
    for path in (tmp_path / "no" / "a.exr", tmp_path, tmp_path / "a.xyz"):
        with pytest.raises(GMODiffError):
            write(PICTURE, path)


def test_alternate_colour_space_is_written_back(tmp_path):
    metadata = {"alternate_colour": {"name": "display-p3", "chromaticities": DISPLAY_P3.chromaticities}}
    m = PICTURE.gain_map.metadata
    wide = GainMapMetadata(m.minimum, m.maximum, alternate_headroom=m.alternate_headroom, use_base_colour_space=False)
    image = replace(PICTURE, gain_map=replace(PICTURE.gain_map, metadata=wide))
    with pytest.raises(InputError, match="another colour space"):
        write(image, tmp_path / "a.jpg")
    write(replace(image, metadata=metadata), tmp_path / "a.jpg")
    back = read(tmp_path / "a.jpg")
    assert back.metadata["alternate_colour"]["name"] == "display-p3"
