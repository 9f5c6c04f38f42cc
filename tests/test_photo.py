"""Reading photos: every format by content, upright, in full depth, in its colour space."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import OpenImageIO as oiio
import pytest
from PIL import Image, ImageCms

from gmodiff.exif import read_exif
from gmodiff.icc import profile_bytes
from gmodiff.photo import read_photo
from gmodiff.radiometry import ADOBE_RGB, BT2020, DISPLAY_P3, SRGB, ColourSpace
from photo_files import (
    GOLDEN,
    RAMP8,
    RAMP16,
    exif_bytes,
    jpeg_bytes,
    pillow_bytes,
    png16,
    ramp,
    refusal,
    save,
    tiff_bytes,
    with_chunk,
    write_tiff,
)

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
