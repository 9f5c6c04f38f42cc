"""Reading photos: every format by content, upright, in full depth, and one clear line for everything that is no photo."""

from __future__ import annotations

import io
import os
import shutil
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import OpenImageIO as oiio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms

from gmodiff.errors import FileFormatError, GMODiffError, InputError, MissingDependencyError
from gmodiff.exif import clean_block, read_exif, rebuilt_block
from gmodiff.icc import profile_bytes
from gmodiff.photo import read_photo
from gmodiff.radiometry import ADOBE_RGB, BT2020, DISPLAY_P3, SRGB, ColourSpace
from gmodiff.raw import RawDevelopment
from photo_files import CAMERA_MIX, GOLDEN, NEUTRAL, dng_bytes, exif_bytes, jpeg_bytes, ramp, tiff_bytes

RAMP8 = np.rint(ramp(48, 64) * 255).astype(np.uint8)
RAMP16 = np.rint(ramp(48, 64) * 65535).astype(np.uint16)


def save(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def pillow_bytes(pixels: np.ndarray, kind: str, mode: str | None = None, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels, mode=mode).save(out, kind, **options)
    return out.getvalue()


def png16(pixels: np.ndarray) -> bytes:
    order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[pixels.shape[2]]
    return cv2.imencode(".png", cv2.cvtColor(pixels, order))[1].tobytes()


def with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    return png[:33] + struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) + png[33:]


def write_tiff(path: Path, pixels: np.ndarray, kind: str, **attributes: object) -> Path:
    spec = oiio.ImageSpec(pixels.shape[1], pixels.shape[0], pixels.shape[2], kind)
    for name, value in attributes.items():
        spec.attribute(name.replace("__", ":"), value)
    out = oiio.ImageOutput.create(str(path.with_suffix(".tif")))
    assert out.open(str(path), spec), out.geterror()
    assert out.write_image(pixels), out.geterror()
    out.close()
    return path


def refusal(path: Path, **options: object) -> str:
    """The one line that reading this file gives."""
    with pytest.raises(GMODiffError) as caught:
        read_photo(path, **options)  # type: ignore[arg-type]
    line = str(caught.value)
    assert "\n" not in line
    assert path.name in line
    return line


# ---- formats --------------------------------------------------------------------------------------------------------------


def test_jpeg_decodes_as_pillow_does(tmp_path: Path) -> None:
    photo = read_photo(save(tmp_path, "a.jpg", jpeg_bytes(RAMP8)))
    expected = np.asarray(Image.open(io.BytesIO(jpeg_bytes(RAMP8))))
    assert np.abs(photo.encoded.astype(int) - expected).max() <= 1
    assert photo.lossy
    assert photo.colour is SRGB
    assert not photo.linear
    assert photo.exif is None
    assert photo.notes == ()


@pytest.mark.parametrize("name", ["a.jpg", "no_suffix", "a.tif", "a.exr", "a.nef"])
def test_content_decides_the_format_not_the_name(tmp_path: Path, name: str) -> None:
    tiff = write_tiff(tmp_path / "source.tif", RAMP16, "uint16").read_bytes()
    for data, pixels in ((png16(RAMP16), RAMP16), (tiff, RAMP16), (pillow_bytes(RAMP8, "PNG"), RAMP8)):
        assert np.array_equal(read_photo(save(tmp_path, name, data)).encoded, pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    data = jpeg_bytes(RAMP8, exif_bytes(orientation=orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    photo = read_photo(save(tmp_path, "a.jpg", data))
    assert photo.encoded.shape == expected.shape
    assert np.abs(photo.encoded.astype(int) - expected).max() <= 1
    assert photo.exif is not None
    assert read_exif(photo.exif).orientation == 1


def test_png_keeps_16_bits_and_rgb_order(tmp_path: Path) -> None:
    photo = read_photo(save(tmp_path, "a.png", png16(RAMP16)))
    assert photo.encoded.dtype == np.uint16
    assert np.array_equal(photo.encoded, RAMP16)
    assert not photo.lossy


def test_opaque_alpha_is_dropped_and_transparency_refused(tmp_path: Path) -> None:
    for pixels, write in ((RAMP8, lambda a: pillow_bytes(a, "PNG")), (RAMP16, png16)):
        top = np.iinfo(pixels.dtype).max
        alpha = np.full(pixels.shape[:2], top, pixels.dtype)
        photo = read_photo(save(tmp_path, "a.png", write(np.dstack([pixels, alpha]))))
        assert np.array_equal(photo.encoded, pixels)
        alpha[5, 5] = top // 2
        assert "transparent" in refusal(save(tmp_path, "a.png", write(np.dstack([pixels, alpha]))))


def test_grey_and_palette_become_rgb(tmp_path: Path) -> None:
    grey = RAMP8[..., 0]
    photo = read_photo(save(tmp_path, "g.png", pillow_bytes(grey, "PNG")))
    assert np.array_equal(photo.encoded, np.repeat(grey[..., None], 3, axis=2))
    photo = read_photo(save(tmp_path, "g.jpg", jpeg_bytes(grey)))
    assert (photo.encoded == photo.encoded[..., :1]).all()
    palette = Image.fromarray(RAMP8).quantize(32)
    out = io.BytesIO()
    palette.save(out, "PNG")
    assert np.array_equal(read_photo(save(tmp_path, "p.png", out.getvalue())).encoded, np.asarray(palette.convert("RGB")))


def test_black_and_white_is_refused(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif"):
        path = tmp_path / name
        Image.fromarray(RAMP8[..., 0]).convert("1").save(path)
        assert "1-bit" in refusal(path)


def test_webp(tmp_path: Path) -> None:
    lossless = read_photo(save(tmp_path, "a.webp", pillow_bytes(RAMP8, "WEBP", lossless=True)))
    assert np.array_equal(lossless.encoded, RAMP8)
    assert not lossless.lossy
    lossy = read_photo(save(tmp_path, "b.webp", pillow_bytes(RAMP8, "WEBP", quality=95, exif=b"Exif\0\0" + exif_bytes())))
    assert lossy.lossy
    assert np.abs(lossy.encoded.astype(int) - RAMP8).mean() < 3
    assert lossy.exposure_time_s == pytest.approx(0.01)


def test_avif_of_8_and_more_bits(tmp_path: Path) -> None:
    photo = read_photo(save(tmp_path, "a.avif", pillow_bytes(RAMP8, "AVIF", quality=95, subsampling="4:4:4")))
    assert photo.encoded.dtype == np.uint8
    assert np.abs(photo.encoded.astype(int) - RAMP8).mean() < 2
    imagecodecs = pytest.importorskip("imagecodecs")
    for bits in (10, 12):
        codes = np.rint(ramp(48, 64) * (2**bits - 1)).astype(np.uint16)
        photo = read_photo(save(tmp_path, "d.avif", imagecodecs.avif_encode(codes, level=98, speed=8, bitspersample=bits)))
        assert photo.encoded.dtype == np.uint16
        assert photo.encoded.max() == 65535
        assert np.abs(photo.encoded - ramp(48, 64) * 65535).mean() < 65535 * 0.003


def test_deep_avif_without_imagecodecs_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    codes = np.rint(ramp(48, 64) * 1023).astype(np.uint16)
    path = save(tmp_path, "d.avif", imagecodecs.avif_encode(codes, level=98, speed=8, bitspersample=10))
    monkeypatch.setitem(__import__("sys").modules, "imagecodecs", None)
    photo = read_photo(path)
    assert photo.encoded.dtype == np.uint8
    assert "gmodiff[avif]" in photo.notes[0]


def test_heic_is_upright_once_and_keeps_ten_bits() -> None:
    rotated = read_photo(GOLDEN / "rotated.heic")
    assert np.abs(rotated.encoded / 255 - np.rot90(ramp(48, 64), -1)).max() < 0.04
    assert (rotated.exposure_time_s, rotated.f_number, rotated.iso) == (pytest.approx(0.01), 2.0, 200)
    assert rotated.exif is not None
    assert read_exif(rotated.exif).orientation == 1
    deep = read_photo(GOLDEN / "ten_bit.heic")
    assert deep.encoded.dtype == np.uint16
    assert deep.encoded.max() == 65535
    assert np.abs(deep.encoded / 65535 - ramp(48, 64)).max() < 0.02
    wide = read_photo(GOLDEN / "display_p3.heic")
    assert wide.colour is DISPLAY_P3
    assert np.abs(wide.encoded / 255 - ramp(48, 64)).max() < 0.04  # after the decoder has gone, with its memory


def test_heic_with_types_that_are_no_text_is_refused_before_the_decoder_sees_it(tmp_path: Path) -> None:
    data = (GOLDEN / "rotated.heic").read_bytes()
    at = data.index(b"infe") + 12
    # pi-heif 1.4 ends the whole process on this file.
    assert "no text" in refusal(save(tmp_path, "a.heic", data[:at] + b"\xba" + data[at + 1 :]))


def test_hdr_pictures_are_refused_as_frames(tmp_path: Path) -> None:
    assert "PQ" in refusal(GOLDEN / "pq.heic")
    assert "HLG" in refusal(save(tmp_path, "a.png", with_chunk(png16(RAMP16), b"cICP", bytes([9, 18, 0, 1]))))
    assert "already" in refusal(save(tmp_path, "a.exr", b"v/1\x01" + bytes(60)))
    assert "already" in refusal(save(tmp_path, "a.hdr", b"#?RADIANCE\n" + bytes(60)))


def test_first_picture_of_a_gain_map_jpeg_is_used(tmp_path: Path) -> None:
    out = io.BytesIO()
    first, second = Image.fromarray(RAMP8), Image.fromarray(255 - RAMP8)
    first.save(out, "MPO", save_all=True, append_images=[second], quality=95)
    photo = read_photo(save(tmp_path, "a.jpg", out.getvalue()))
    assert np.abs(photo.encoded.astype(int) - RAMP8).mean() < 5
    assert "gain map" in photo.notes[0]


# ---- TIFF -----------------------------------------------------------------------------------------------------------------


def test_tiff_of_8_and_16_bits(tmp_path: Path) -> None:
    for pixels, kind in ((RAMP8, "uint8"), (RAMP16, "uint16")):
        photo = read_photo(write_tiff(tmp_path / "a.tif", pixels, kind, compression="zip", Orientation=8))
        assert np.array_equal(photo.encoded, np.rot90(pixels))
        assert not photo.linear
        assert photo.colour is SRGB


@pytest.mark.parametrize("kind", ["half", "float", "double"])
@pytest.mark.parametrize("tile", [0, 16])
def test_float_tiff_is_linear_light(tmp_path: Path, kind: str, tile: int) -> None:
    pixels = ramp(80, 64).astype(np.float32) * 1.25
    pixels[0, 0, 0] = -0.5
    path = tmp_path / "a.tif"
    spec = oiio.ImageSpec(64, 80, 3, kind)
    if tile:
        spec.tile_width = spec.tile_height = tile
    out = oiio.ImageOutput.create("a.tif")
    assert out.open(str(path), spec)
    assert out.write_image(pixels)
    out.close()
    if tile and kind == "double":
        assert "64-bit" in refusal(path)
        return
    photo = read_photo(path)
    assert photo.linear
    assert photo.colour.transfer == "linear"
    assert photo.encoded.dtype == np.uint16
    assert np.abs(photo.encoded / 65535 - np.clip(pixels, 0, 1)).max() < (6e-4 if kind == "half" else 2e-5)
    assert any("above 1" in note for note in photo.notes)
    assert any("1 float values" in note and "below 0" in note for note in photo.notes)


def test_float_tiff_with_an_srgb_profile_is_encoded(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    spec = oiio.ImageSpec(64, 48, 3, "float")
    profile = np.frombuffer(profile_bytes(SRGB), np.uint8)
    spec.attribute("ICCProfile", oiio.TypeDesc(f"uint8[{len(profile)}]"), profile)
    out = oiio.ImageOutput.create("a.tif")
    assert out.open(str(path), spec)
    assert out.write_image(ramp(48, 64).astype(np.float32))
    out.close()
    photo = read_photo(path)
    assert photo.colour is SRGB
    assert not photo.linear


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_float_tiff_with_a_value_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    pixels = ramp(48, 64).astype(np.float32)
    pixels[40, 3, 1] = value
    assert "1 NaN or infinite" in refusal(write_tiff(tmp_path / "a.tif", pixels, "float"))


def test_tiff_kinds_that_hold_no_photo_are_refused(tmp_path: Path) -> None:
    assert "int16" in refusal(write_tiff(tmp_path / "a.tif", RAMP16 // 2, "int16"))
    Image.fromarray(RAMP8, mode="LAB").save(tmp_path / "lab.tif")
    assert "photometric" in refusal(tmp_path / "lab.tif")


def test_tiff_exif_survives_without_pixel_tags(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", RAMP8, "uint8", Make="Maker", Model="M1", ExposureTime=0.02, Exif__PhotographicSensitivity=400)
    photo = read_photo(path)
    assert photo.exif is not None
    assert (photo.exposure_time_s, photo.camera) == (pytest.approx(0.02), "Maker M1")
    block = read_exif(photo.exif)
    assert (block.exposure_time_s, block.camera, block.orientation) == (pytest.approx(0.02), "Maker M1", 1)
    assert len(photo.exif) < 600


# ---- colour ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", [SRGB, DISPLAY_P3, ADOBE_RGB, BT2020], ids=lambda c: c.name)
def test_embedded_profiles_are_honoured(tmp_path: Path, colour: ColourSpace) -> None:
    icc = profile_bytes(colour)
    files = {
        "a.jpg": jpeg_bytes(RAMP8, icc=icc),
        "a.png": pillow_bytes(RAMP8, "PNG", icc_profile=icc),
        "a.webp": pillow_bytes(RAMP8, "WEBP", lossless=True, icc_profile=icc),
        "a.avif": pillow_bytes(RAMP8, "AVIF", icc_profile=icc),
        "a.tif": pillow_bytes(RAMP8, "TIFF", icc_profile=icc),
    }
    for name, data in files.items():
        assert read_photo(save(tmp_path, name, data)).colour is colour, name


def test_adobe_rgb_by_exif_as_cameras_mark_it(tmp_path: Path) -> None:
    marked = {0x8769: (4, [0]), 0x010F: (2, "Maker")}
    # The interoperability directory stands where the helper puts GPS; point to it from the EXIF directory.
    first = tiff_bytes([marked, {0xA001: (3, [65535]), 0xA005: (4, [0])}, {1: (2, "R03")}])
    at = 8 + 6 + 12 * 2
    interop = at + 6 + 12 * 2
    entry = first.index(struct.pack("<HHI", 0xA005, 4, 1))
    block = first[: entry + 8] + struct.pack("<I", interop) + first[entry + 12 :]
    assert read_photo(save(tmp_path, "a.jpg", jpeg_bytes(RAMP8, block))).colour is ADOBE_RGB
    assert read_photo(save(tmp_path, "b.jpg", jpeg_bytes(RAMP8, block, profile_bytes(SRGB)))).colour is SRGB


def test_cicp_of_a_png_names_its_colour_space(tmp_path: Path) -> None:
    png = pillow_bytes(RAMP8, "PNG")
    assert read_photo(save(tmp_path, "a.png", with_chunk(png, b"cICP", bytes([12, 13, 0, 1])))).colour is DISPLAY_P3
    linear = read_photo(save(tmp_path, "b.png", with_chunk(png, b"cICP", bytes([1, 8, 0, 1]))))
    assert linear.linear
    assert linear.colour.chromaticities == SRGB.chromaticities


def test_broken_profile_is_noted_and_srgb_assumed(tmp_path: Path) -> None:
    photo = read_photo(save(tmp_path, "a.jpg", jpeg_bytes(RAMP8, icc=profile_bytes(DISPLAY_P3)[:200])))
    assert photo.colour is SRGB
    assert "sRGB is assumed" in photo.notes[0]


def lab_profile() -> bytes:
    """An RGB profile that no matrix and curve can describe: sRGB's header says Lab."""
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    curves = bytearray(profile_bytes(ADOBE_RGB))
    # Red with another exponent than green and blue: valid for LittleCMS, too much for one curve.
    for i in range(struct.unpack_from(">I", curves, 128)[0]):
        if curves[132 + 12 * i : 136 + 12 * i] == b"rTRC":
            struct.pack_into(">II", curves, 136 + 12 * i, len(curves), 16)
    curves += b"para" + struct.pack(">IHHi", 0, 0, 0, round(1.6 * 65536))
    struct.pack_into(">I", curves, 0, len(curves))
    assert plain
    return bytes(curves)


def test_profile_beyond_a_matrix_is_converted_at_8_bits_and_refused_at_16(tmp_path: Path) -> None:
    icc = lab_profile()
    photo = read_photo(save(tmp_path, "a.png", pillow_bytes(RAMP8, "PNG", icc_profile=icc)))
    expected = ImageCms.profileToProfile(
        Image.fromarray(RAMP8), ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB"), renderingIntent=1
    )
    assert expected is not None
    assert np.array_equal(photo.encoded, np.asarray(expected))
    assert photo.colour is SRGB
    packed = b"x\0\0" + zlib.compress(icc)
    assert "convert it" in refusal(save(tmp_path, "b.png", with_chunk(png16(RAMP16), b"iCCP", packed)))


def test_cmyk_needs_its_profile(tmp_path: Path) -> None:
    inks = np.dstack([255 - RAMP8, np.zeros((48, 64), np.uint8)])
    for name, kind in (("a.jpg", "JPEG"), ("a.tif", "TIFF")):
        assert "CMYK" in refusal(save(tmp_path, name, pillow_bytes(inks, kind, mode="CMYK")))
        assert "CMYK" in refusal(save(tmp_path, name, pillow_bytes(inks, kind, mode="CMYK", icc_profile=profile_bytes(SRGB))))


# ---- EXIF -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
def test_exposure_settings_are_read(tmp_path: Path, order: str) -> None:
    photo = read_photo(save(tmp_path, "a.jpg", jpeg_bytes(RAMP8, exif_bytes(order=order))))
    assert (photo.exposure_time_s, photo.iso, photo.f_number) == (pytest.approx(0.01), 200, pytest.approx(2.8))
    assert (photo.camera, photo.lens, photo.datetime) == ("Maker Model 7", "35mm f/2", "2026:05:01 12:00:00")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"time": (0, 1)}, (None, 200, 2.8)),
        ({"time": (1, 0)}, (None, 200, 2.8)),
        ({"time": (4_000_000_000, 1)}, (None, 200, 2.8)),
        ({"iso": 0}, (0.01, None, 2.8)),
        ({"f_number": (0, 1)}, (0.01, 200, None)),
        ({"f_number": (0, 0)}, (0.01, 200, None)),
        ({"time": None, "t0x9201": (10, [(7, 1)])}, (2**-7, 200, 2.8)),
        ({"iso": 65535, "t0x8832": (4, [102400])}, (0.01, 102400, 2.8)),
        ({"iso": None, "t0x8830": (3, [1]), "t0x8831": (4, [640])}, (0.01, 640, 2.8)),
        ({"f_number": None, "t0x9202": (5, [(4, 1)])}, (0.01, 200, 4)),
    ],
)
def test_absurd_or_indirect_exposure_settings(tmp_path: Path, options: dict, expected: tuple) -> None:
    photo = read_photo(save(tmp_path, "a.jpg", jpeg_bytes(RAMP8, exif_bytes(**options))))
    found = (photo.exposure_time_s, photo.iso, photo.f_number)
    assert [None if v is None else pytest.approx(v) for v in expected] == list(found)
    assert bool(photo.notes) == (expected[0] is None)


def test_clean_exif_keeps_maker_note_and_loses_thumbnail(tmp_path: Path) -> None:
    original = exif_bytes(orientation=6)
    photo = read_photo(save(tmp_path, "a.jpg", jpeg_bytes(RAMP8, original)))
    assert photo.exif is not None
    assert b"T" * 36 in original
    assert b"T" * 36 not in photo.exif
    # Offsets inside a maker note count from the start of the block: it must not move.
    assert photo.exif.index(b"maker note") == original.index(b"maker note")
    longer = clean_block(original + bytes(range(200)), 10, 10)
    assert longer is not None
    assert b"TTT" not in longer
    assert longer.endswith(bytes(range(200)))
    exif = Image.Exif()
    exif.load(b"Exif\0\0" + photo.exif)
    assert exif[0x0112] == 1
    assert not exif.get_ifd(ExifTags.IFD.IFD1)
    assert exif.get_ifd(0x8769)[0xA002] == 48
    assert exif.get_ifd(0x8769)[0xA003] == 64
    assert exif.get_ifd(0x8825)[2] == (48.0, 51.0, 30.0)
    assert exif.get_ifd(0x8769)[0x829A] == pytest.approx(0.01)


def test_clean_exif_is_valid_for_exiftool(tmp_path: Path) -> None:
    exiftool = shutil.which("exiftool")
    if exiftool is None:
        pytest.skip("exiftool is not installed")
    import subprocess

    photo = read_photo(save(tmp_path, "a.jpg", jpeg_bytes(RAMP8, exif_bytes(orientation=6))))
    path = save(tmp_path, "b.jpg", jpeg_bytes(photo.encoded, photo.exif))
    said = subprocess.run(
        [exiftool, "-validate", "-warning", "-Orientation", "-ExposureTime", "-GPSLatitude", "-s3", str(path)],
        capture_output=True,
        text=True,
    ).stdout
    assert "Horizontal (normal)" in said
    assert "1/100" in said
    assert "48 deg 51'" in said
    assert "offset" not in said.lower()


@given(st.integers(0, 400), st.binary(min_size=1, max_size=6))
def test_damaged_exif_never_raises(position: int, junk: bytes) -> None:
    block = bytearray(exif_bytes())
    block[position : position + len(junk)] = junk
    for damaged in (bytes(block), bytes(block[:position])):
        facts = read_exif(damaged)
        assert facts.exposure_time_s is None or 1e-7 <= facts.exposure_time_s <= 1e5
        for clean in (clean_block(damaged, 10, 10), rebuilt_block(damaged, 10, 10)):
            assert clean is None or read_exif(clean).orientation == 1


def test_photo_with_damaged_exif_is_still_read(tmp_path: Path) -> None:
    photo = read_photo(save(tmp_path, "a.jpg", jpeg_bytes(RAMP8, exif_bytes()[:60])))
    assert photo.exposure_time_s is None


# ---- camera RAW -----------------------------------------------------------------------------------------------------------


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


# ---- bad input ------------------------------------------------------------------------------------------------------------


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing.jpg")
    assert "folder" in refusal(tmp_path)
    with pytest.raises(InputError):
        read_photo("a\0b.jpg")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.jpg")
        assert "regular file" in refusal(tmp_path / "pipe.jpg")


def test_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, "a.jpg", jpeg_bytes(RAMP8))

    def denied(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert "Permission denied" in refusal(path)


@pytest.mark.parametrize("data", [b"", b"\0", b"hello, I am a text\n" * 20, b"\xff\xd8\xff", b"GIF89a" + bytes(50), b"II*\0", bytes(1000)])
def test_files_that_are_no_photos_are_refused(tmp_path: Path, data: bytes) -> None:
    refusal(save(tmp_path, "a.jpg", data))


def all_kinds(folder: Path) -> dict[str, bytes]:
    files = {
        "a.jpg": jpeg_bytes(RAMP8, exif_bytes(), profile_bytes(SRGB)),
        "progressive.jpg": pillow_bytes(RAMP8, "JPEG", progressive=True),
        "a.png": pillow_bytes(RAMP8, "PNG", icc_profile=profile_bytes(SRGB)),
        "deep.png": png16(RAMP16),
        "a.webp": pillow_bytes(RAMP8, "WEBP"),
        "a.avif": pillow_bytes(RAMP8, "AVIF"),
        "a.tif": write_tiff(folder / "t.tif", RAMP16, "uint16", compression="zip").read_bytes(),
        "float.tif": write_tiff(folder / "f.tif", ramp(48, 64).astype(np.float32), "float").read_bytes(),
        "a.heic": (GOLDEN / "rotated.heic").read_bytes(),
    }
    return files


def test_truncated_photos_are_refused_not_grey(tmp_path: Path) -> None:
    for name, data in all_kinds(tmp_path).items():
        assert read_photo(save(tmp_path, name, data)).encoded.shape[2] == 3
        for keep in (0.3, 0.6, 0.95):
            refusal(save(tmp_path, name, data[: int(len(data) * keep)]))


def test_png_says_what_is_damaged(tmp_path: Path) -> None:
    png = png16(RAMP16)
    assert "has no end" in refusal(save(tmp_path, "a.png", png[:-12]))
    assert "checksum" in refusal(save(tmp_path, "b.png", png[:100] + bytes([png[100] ^ 1]) + png[101:]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 8), st.floats(0, 1), st.binary(min_size=1, max_size=4))
def test_damage_gives_a_photo_or_our_error(tmp_path: Path, which: int, where: float, junk: bytes) -> None:
    name, data = list(_KINDS_CACHE.setdefault("files", all_kinds(tmp_path)).items())[which]
    at = int(where * len(data))
    path = save(tmp_path, name, data[:at] + junk + data[at + len(junk) :])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            photo = read_photo(path, max_pixels=1_000_000)
        except GMODiffError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert photo.encoded.dtype in (np.uint8, np.uint16)


_KINDS_CACHE: dict[str, dict[str, bytes]] = {}


@pytest.mark.parametrize(("width", "height"), [(1, 1), (15, 100), (100000, 10)])
def test_photos_too_small_to_align_are_refused(tmp_path: Path, width: int, height: int) -> None:
    assert f"{width}x{height}, too small" in refusal(save(tmp_path, "a.png", pillow_bytes(np.zeros((height, width, 3), np.uint8), "PNG")))


def test_decompression_bombs_are_refused_from_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    )
    assert "10000000000 pixels" in refusal(save(tmp_path, "bomb.png", b"\x89PNG\r\n\x1a\n" + body))
    for name, data in all_kinds(tmp_path).items():
        assert "--max-pixels" in refusal(save(tmp_path, name, data), max_pixels=48 * 64 - 1)
        read_photo(save(tmp_path, name, data), max_pixels=48 * 64)


def test_pillows_own_limit_does_not_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # refuses from 4000, warns from 2000; the photos have 3072
    for name, data in all_kinds(tmp_path).items():
        read_photo(save(tmp_path, name, data))


def test_line_break_in_a_name_stays_out_of_the_message(tmp_path: Path) -> None:
    path = save(tmp_path, "two\nlines.jpg", b"no photo at all")
    with pytest.raises(FileFormatError) as caught:
        read_photo(path)
    assert "\n" not in str(caught.value)
