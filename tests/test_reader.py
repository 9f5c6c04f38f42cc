import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import OpenImageIO as oiio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from gmodiff.decode import upright
from gmodiff.errors import FileFormatError, GMODiffError, InputError
from gmodiff.exif import read_exif
from gmodiff.gainmap import GainMap, GainMapMetadata, apply_log2_gain, log2_gain
from gmodiff.hdrgm import iso_bytes, map_xmp, primary_xmp
from gmodiff.icc import profile_bytes
from gmodiff.image import HDRImage
from gmodiff.radiometry import ADOBE_RGB, BT2020, DISPLAY_P3, SRGB, ColourSpace, srgb_decode
from gmodiff.reader import apply_gain, read
from gmodiff.ultrahdr import ISO_HEADER, XMP_HEADER, join, split, with_metadata
from gmodiff.writer import write
from hdr_samples import exif_block, jpeg, picture, rendition, sdr_base, segment

PICTURE = picture()
LINEAR_TABLE = srgb_decode(np.arange(256) / 255)


def pixels(data: bytes) -> np.ndarray:
    decoded = np.asarray(Image.open(io.BytesIO(data)))
    return decoded if decoded.ndim == 3 else decoded[..., None]


def iso_formula(base: np.ndarray, stored: np.ndarray, m: GainMapMetadata, weight: float = 1.0) -> np.ndarray:
    """ISO 21496-1 equations in float64, written out once more as an oracle. base: linear; stored: 0..1 of the base's size."""
    low, high, gamma = (np.array(v) for v in (m.minimum, m.maximum, m.gamma))
    gain = low + (high - low) * stored ** (1 / gamma)
    return np.maximum((base + np.array(m.base_offset)) * 2 ** (weight * gain) - np.array(m.alternate_offset), 0)


# ---- gain-map photos ----------------------------------------------------------------------------------------------------


def test_ours_comes_back_as_the_formula_says(tmp_path):
    write(PICTURE, tmp_path / "a.jpg")
    image = read(tmp_path / "a.jpg")
    assert image.content == "rendition"
    assert image.look is None
    assert image.metadata["forms"] == ["iso", "xmp", "mpf", "gcontainer"]
    expected = iso_formula(LINEAR_TABLE[image.base], image.gain_map.codes / 255, image.gain_map.metadata)
    assert np.abs(image.radiance - expected).max() < 1e-5
    assert np.allclose(image.radiance, image.gain_map.apply(LINEAR_TABLE[image.base].astype(np.float32)), atol=1e-6)
    assert (image.rendition(slice(10, 20)) == image.radiance[10:20]).all()


def android_file() -> tuple[bytes, np.ndarray, GainMap]:
    """As phones wrote them at first: XMP alone, one channel, a quarter of the size, 4:2:0 base, no MPF."""
    linear = rendition(160, 240)
    base = sdr_base(linear)
    small = cv2.resize(linear.max(axis=2), (60, 40), interpolation=cv2.INTER_AREA)[..., None]
    below = cv2.resize(srgb_decode(base / 255.0).max(axis=2), (60, 40), interpolation=cv2.INTER_AREA)[..., None]
    gain = log2_gain(below, small)
    m = GainMapMetadata((float(gain.min()),) * 3, (float(gain.max()),) * 3, gamma=(1.2,) * 3, alternate_headroom=2.585)
    codes = m.quantise(gain)
    second = jpeg(codes, quality=85)
    second = second[:2] + segment(0xE1, XMP_HEADER + map_xmp(m)) + second[2:]
    first = jpeg(base, subsampling=2)
    packet = primary_xmp(len(second), {}, "phone")
    return first[:2] + segment(0xE1, XMP_HEADER + packet) + first[2:] + second, base, GainMap(codes, m)


def test_android_xmp_only_quarter_size_map_and_subsampled_base(tmp_path):
    data, _, gain = android_file()
    (tmp_path / "a.jpg").write_bytes(data)
    image = read(tmp_path / "a.jpg")
    assert image.metadata["format"] == "Ultra HDR JPEG, XMP only"
    assert image.gain_map.codes.shape == (40, 60, 1)
    stored = np.stack([cv2.resize(image.gain_map.codes[..., 0] / 255.0, (240, 160), interpolation=cv2.INTER_LINEAR)] * 3, axis=-1)
    expected = iso_formula(LINEAR_TABLE[image.base], stored, gain.metadata)
    assert np.abs(image.radiance - expected).max() < 1e-4
    assert image.gain_map.metadata.gamma == pytest.approx((1.2,) * 3)


def test_adobe_iso_only_opens_although_pillow_takes_it_for_a_multi_picture_file(tmp_path):
    m = PICTURE.gain_map.metadata
    whole = join(jpeg(PICTURE.base), jpeg(PICTURE.gain_map.codes), m, icc=profile_bytes(DISPLAY_P3))
    # Make both XMP segments unrecognisable without moving anything.
    stripped = whole.replace(XMP_HEADER, XMP_HEADER[::-1]).replace(b"hdrgm", b"nobdy")
    (tmp_path / "a.jpg").write_bytes(stripped)
    with Image.open(tmp_path / "a.jpg") as seen:
        assert seen.format == "MPO"
    image = read(tmp_path / "a.jpg")
    assert image.metadata["format"] == "gain-map JPEG, ISO 21496-1 only"
    assert image.metadata["forms"] == ["iso", "mpf"]
    assert image.colour == DISPLAY_P3
    expected = iso_formula(LINEAR_TABLE[image.base], image.gain_map.codes / 255, m)
    assert np.abs(image.radiance - expected).max() < 1e-5


def test_gain_in_the_alternates_colour_space(tmp_path):
    """use_base_colour_space = 0: the base goes to the primaries of the map's profile, is multiplied there, and comes back."""
    m = replace(PICTURE.gain_map.metadata, use_base_colour_space=False)
    data = join(jpeg(PICTURE.base), jpeg(PICTURE.gain_map.codes), m, icc=profile_bytes(SRGB), map_icc=profile_bytes(DISPLAY_P3))
    (tmp_path / "a.jpg").write_bytes(data)
    image = read(tmp_path / "a.jpg")
    to_p3 = SRGB.matrix_to(DISPLAY_P3)
    in_p3 = iso_formula(LINEAR_TABLE[image.base] @ to_p3.T, image.gain_map.codes / 255, m)
    expected = in_p3 @ np.linalg.inv(to_p3).T
    assert image.colour == SRGB
    assert image.metadata["alternate_colour"]["name"] == "display-p3"
    assert np.abs(image.radiance - expected).max() < 1e-3  # profiles hold primaries to four digits
    same = iso_formula(LINEAR_TABLE[image.base], image.gain_map.codes / 255, m)
    assert np.abs(image.radiance - same).max() > 0.02  # it does matter
    # The same flag without a profile of the map's own means the base's colour space.
    (tmp_path / "b.jpg").write_bytes(join(jpeg(PICTURE.base), jpeg(PICTURE.gain_map.codes), m, icc=profile_bytes(SRGB)))
    assert np.abs(read(tmp_path / "b.jpg").radiance - same).max() < 1e-5


def hdr_base_file(m: GainMapMetadata, *, iso: bool) -> bytes:
    """A file whose main picture is the HDR rendition (here no brighter than white); the gain leads from SDR to HDR."""
    hdr = np.full((32, 48, 3), 200, np.uint8)
    codes = np.repeat(np.linspace(0, 255, 48).astype(np.uint8)[None, :, None], 32, axis=0)
    if iso:
        turned = bytearray(iso_bytes(m))
        turned[5:13], turned[13:21] = turned[13:21], turned[5:13]  # the two headrooms
        turned[45:53], turned[53:61] = turned[53:61], turned[45:53]  # the two offsets
        extra = segment(0xE2, ISO_HEADER + bytes(turned))
    else:
        extra = segment(0xE1, XMP_HEADER + map_xmp(m).replace(b'BaseRenditionIsHDR="False"', b'BaseRenditionIsHDR="True"'))
    second = jpeg(codes, 100)
    return jpeg(hdr, 100) + second[:2] + extra + second[2:]


@pytest.mark.parametrize("iso", [True, False], ids=["ISO", "XMP"])
def test_hdr_base(tmp_path, iso):
    m = GainMapMetadata((0.0,) * 3, (2.0,) * 3, base_offset=(1 / 64,) * 3, alternate_offset=(1 / 32,) * 3, alternate_headroom=2)
    (tmp_path / "a.jpg").write_bytes(hdr_base_file(m, iso=iso))
    image = read(tmp_path / "a.jpg")
    assert "HDR rendition" in image.metadata["notes"][0]
    hdr = LINEAR_TABLE[200]
    assert image.radiance == pytest.approx(np.full((32, 48, 3), hdr), abs=1e-6)
    stored = image.gain_map.codes[..., :1] / 255
    sdr = (hdr + 1 / 32) / 2 ** (2 * stored) - 1 / 64
    assert np.abs(LINEAR_TABLE[image.base] - sdr).max() < 0.006  # half a code
    # From here on it is like any other: base and map give the HDR rendition.
    gain = image.gain_map
    again = apply_log2_gain(LINEAR_TABLE[image.base], gain.metadata.log2_gain(gain.codes / 255), gain.metadata)
    assert np.abs(again - hdr).max() < 0.02


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_photos_come_upright_with_their_map(tmp_path, orientation):
    base, codes = PICTURE.base[:64, :96], PICTURE.gain_map.codes[:64, :96]
    data = join(jpeg(base), jpeg(codes), PICTURE.gain_map.metadata, exif=exif_block(orientation))
    (tmp_path / "a.jpg").write_bytes(data)
    image = read(tmp_path / "a.jpg")
    with Image.open(io.BytesIO(jpeg(base))) as plain:
        exif = Image.Exif()
        exif[0x0112] = orientation
        plain.info["exif"] = exif.tobytes()
        turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # Pillow's Transpose for each orientation
        expected = np.asarray(plain.transpose(Image.Transpose(turns[orientation])) if orientation in turns else plain)
    assert (image.base == expected).all()
    assert image.gain_map.codes.shape[:2] == image.base.shape[:2]
    assert read_exif(image.exif).orientation == 1
    expected = iso_formula(LINEAR_TABLE[image.base], image.gain_map.codes / 255, image.gain_map.metadata)
    assert np.abs(image.radiance - expected).max() < 1e-5


def test_upright_undoes_itself_in_pairs():
    square = np.arange(24).reshape(4, 2, 3)
    for orientation, back in ((1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 8), (7, 7), (8, 6)):
        assert (upright(upright(square, orientation), back) == square).all()


@pytest.mark.parametrize("size", [(48, 64), (12, 16), (5, 7), (1, 1), (96, 128)])
@pytest.mark.parametrize("channels", [1, 3])
def test_strips_equal_the_plain_function(size, channels):
    random = np.random.default_rng(0)
    base = random.integers(0, 256, (48, 64, 3), np.uint8)
    codes = random.integers(0, 256, (*size, channels), np.uint8)
    gain = GainMap(codes, GainMapMetadata((-1, 0, 0.5), (1, 2, 3), (0.5, 1, 2), alternate_headroom=2))
    light = LINEAR_TABLE.astype(np.float32)
    if channels == 1:
        gain = GainMap(codes, GainMapMetadata((-1,) * 3, (2,) * 3, (0.5,) * 3, alternate_headroom=2))
    for headroom in (None, 0.7):
        weight = 1.0 if headroom is None else gain.metadata.weight(headroom)
        ours = apply_gain(base, light, gain, SRGB, SRGB, weight)
        plain = gain.apply(light[base], headroom)
        assert (np.abs(ours - plain) <= 1e-5 + 1e-5 * plain).all()


def test_adobe_rgb_base_is_linearised_by_its_own_curve(tmp_path):
    data = join(jpeg(PICTURE.base), jpeg(PICTURE.gain_map.codes), PICTURE.gain_map.metadata, icc=profile_bytes(ADOBE_RGB))
    (tmp_path / "a.jpg").write_bytes(data)
    image = read(tmp_path / "a.jpg")
    light = ADOBE_RGB.decode(pixels(jpeg(PICTURE.base)) / 255.0)
    expected = iso_formula(light, image.gain_map.codes / 255, PICTURE.gain_map.metadata)
    assert np.abs(image.radiance - expected).max() < 1e-4
    assert image.base_colour.chromaticities == ADOBE_RGB.chromaticities
    assert np.abs(LINEAR_TABLE[image.base] - light).max() < 0.005  # the base now has the sRGB curve, as HDRImage promises


def test_our_facts_come_back(tmp_path):
    write(replace(PICTURE, metadata={"look": "camera"}), tmp_path / "a.jpg")
    metadata = read(tmp_path / "a.jpg").metadata
    assert metadata["look"] == "camera"
    shares = metadata["provenance"]
    assert shares["inferred_percent"] == pytest.approx(100 * 16 / PICTURE.provenance.size, abs=1e-3)
    assert sum(shares.values()) == pytest.approx(100, abs=2e-3)


# ---- plain photos -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_plain_photo(tmp_path, suffix):
    Image.fromarray(PICTURE.base).save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    image = read(tmp_path / f"a.{suffix}")
    assert image.gain_map is None
    assert image.content == "rendition"
    assert image.metadata["format"].endswith("(SDR)")
    assert np.abs(image.base.astype(int) - PICTURE.base).mean() < 1.5
    assert np.abs(image.radiance - LINEAR_TABLE[image.base]).max() < 1e-6


def test_plain_p3_photo_keeps_its_colour_space(tmp_path):
    (tmp_path / "a.jpg").write_bytes(with_metadata(jpeg(PICTURE.base), icc=profile_bytes(DISPLAY_P3), exif=exif_block()))
    image = read(tmp_path / "a.jpg")
    assert image.base_colour == DISPLAY_P3
    assert image.exif is not None


def test_stripped_map_is_noted(tmp_path):
    write(PICTURE, tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(split((tmp_path / "a.jpg").read_bytes()).base)
    image = read(tmp_path / "b.jpg")
    assert image.gain_map is None
    assert "dropped it" in image.metadata["notes"][-1]


# ---- radiance files by others -------------------------------------------------------------------------------------------


def exr(path: Path, values: np.ndarray, names: tuple[str, ...], **attributes: object) -> None:
    spec = oiio.ImageSpec(values.shape[1], values.shape[0], values.shape[2], "float")
    spec.channelnames = names
    for name, value in attributes.items():
        if isinstance(value, tuple):
            spec.attribute(name, f"float[{len(value)}]", value)
        else:
            spec.attribute(name, value)
    out = oiio.ImageOutput.create(str(path))
    assert out.open(str(path), spec)
    assert out.write_image(np.ascontiguousarray(values, np.float32))
    out.close()


LIGHT = rendition(20, 30)


def test_exr_of_other_channel_orders_and_layers(tmp_path):
    extra = np.full((20, 30, 1), 0.5, np.float32)
    cases = [
        (("B", "G", "R"), LIGHT[..., ::-1], None),
        (("R", "G", "B", "A"), np.concatenate([LIGHT, extra], axis=-1), None),
        (("A", "Z", "beauty.R", "beauty.G", "beauty.B"), np.concatenate([extra, extra, LIGHT], axis=-1), "layer 'beauty'"),
    ]
    for names, values, note in cases:
        exr(tmp_path / "a.exr", values, names)
        image = read(tmp_path / "a.exr")
        assert np.abs(image.radiance - LIGHT).max() == 0, names
        assert image.content == "scene"
        assert note is None or note in image.metadata["notes"][0]


def test_grey_exr_and_one_without_colours(tmp_path):
    exr(tmp_path / "a.exr", LIGHT[..., :1], ("Y",))
    assert (read(tmp_path / "a.exr").radiance == LIGHT[..., :1]).all()
    exr(tmp_path / "b.exr", LIGHT[..., :2], ("U", "V"))
    with pytest.raises(FileFormatError, match=r"b\.exr: has channels U, V; expected R, G and B"):
        read(tmp_path / "b.exr")


def test_white_luminance_scales_to_sdr_white(tmp_path):
    exr(tmp_path / "a.exr", LIGHT, ("R", "G", "B"), whiteLuminance=406.0)
    assert np.abs(read(tmp_path / "a.exr").radiance - 2 * LIGHT).max() < 1e-5


def test_chromaticities_name_the_colour_space(tmp_path):
    for colour in (SRGB, DISPLAY_P3, BT2020):
        exr(tmp_path / "a.exr", LIGHT, ("R", "G", "B"), chromaticities=tuple(v for xy in colour.chromaticities for v in xy))
        assert read(tmp_path / "a.exr").colour.name == colour.name
    own = ((0.7347, 0.2653), (0.1595, 0.8404), (0.0366, 0.0001), (0.3127, 0.3290))
    exr(tmp_path / "a.exr", LIGHT, ("R", "G", "B"), chromaticities=tuple(v for xy in own for v in xy))
    assert read(tmp_path / "a.exr").colour.chromaticities[0] == pytest.approx(own[0])


def test_another_white_is_adapted_and_grey_stays_grey(tmp_path):
    aces = (0.7347, 0.2653, 0.0, 1.0, 0.0001, -0.0770, 0.32168, 0.33767)  # SMPTE ST 2065-1
    grey = np.repeat(LIGHT[..., :1], 3, axis=2)
    exr(tmp_path / "a.exr", grey, ("R", "G", "B"), chromaticities=aces)
    image = read(tmp_path / "a.exr")
    assert image.colour == SRGB
    assert np.abs(image.radiance - grey).max() < 2e-3
    assert "not D65" in image.metadata["notes"][0]


def test_values_that_are_no_numbers_are_replaced_and_noted(tmp_path):
    light = LIGHT.copy()
    light[0, 0], light[0, 1, 0], light[0, 2, 1] = np.nan, np.inf, -np.inf
    exr(tmp_path / "a.exr", light, ("R", "G", "B"))
    image = read(tmp_path / "a.exr")
    assert np.isfinite(image.radiance).all()
    assert (image.radiance[0, 0] == 0).all()
    assert image.radiance[0, 1, 0] == LIGHT.max()
    assert image.metadata["notes"] == [f"5 values were NaN or infinite; they became 0 and {LIGHT.max():.4g}"]


def test_radiance_header_exposure_and_primaries(tmp_path):
    write(HDRImage(LIGHT, colour=DISPLAY_P3), tmp_path / "a.hdr")
    assert read(tmp_path / "a.hdr").colour == DISPLAY_P3
    data = (tmp_path / "a.hdr").read_bytes()
    (tmp_path / "b.hdr").write_bytes(data.replace(b"SOFTWARE=", b"EXPOSURE=4\nEXPOSURE=0.5\nSOFTWARE=", 1))
    assert np.allclose(read(tmp_path / "b.hdr").radiance * 2, read(tmp_path / "a.hdr").radiance)


def test_float_tiff_of_another_program(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    tifffile.imwrite(tmp_path / "a.tif", LIGHT, compression="zlib", predictor=True, photometric="rgb")
    image = read(tmp_path / "a.tif")
    assert (image.radiance == LIGHT).all()
    assert image.colour == SRGB


# ---- what cannot be read ------------------------------------------------------------------------------------------------


def test_kind_is_told_by_content_not_by_name(tmp_path):
    for suffix in ("jpg", "exr", "hdr", "png", "avif", "jxl", "tif"):
        write(PICTURE, tmp_path / f"a.{suffix}")
        (tmp_path / f"a.{suffix}").rename(tmp_path / "nameless")
        assert read(tmp_path / "nameless").radiance.shape == (192, 256, 3), suffix


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"GIF89a" + b"\0" * 50, "is not a picture this program reads"),
        (b"hello, world, this is text", "is not a picture this program reads"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "truncated|damaged|does not fit"),
        (b"v/1\x01" + b"\0" * 40, "truncated or damaged"),
        (b"#?RADIANCE\n\n-Y 9 +X 9\n", "truncated or damaged"),
        (b"\0\0\0\x1cftypavif" + b"\0" * 40, "box|truncated"),
    ],
)
def test_what_is_no_picture(tmp_path, content, message):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith("bad.jpg")
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match=r"a\.jpg: cannot be read: no such file"):
        read(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="is a folder"):
        read(tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "exr", "hdr", "png", "avif", "jxl", "tif"])
def test_pixel_limit_holds_for_every_format(tmp_path, suffix):
    write(PICTURE, tmp_path / f"a.{suffix}")
    with pytest.raises(InputError, match="256x192, 49152 pixels, above the limit of 49151"):
        read(tmp_path / f"a.{suffix}", max_pixels=49151)
    assert read(tmp_path / f"a.{suffix}", max_pixels=49152).radiance.size


def test_hlg_is_refused_by_name(tmp_path):
    write(PICTURE, tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    at = data.index(b"cICP")
    data[at + 5] = 18
    data[at + 8 : at + 12] = struct.pack(">I", zlib.crc32(data[at : at + 8]))
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(FileFormatError, match="HLG"):
        read(tmp_path / "a.png")


SMALL = {}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("suffix", ["jpg", "exr", "hdr", "png", "avif", "jxl", "tif"])
@given(data=st.data())
def test_damage_of_any_kind_is_one_line_of_ours(tmp_path, suffix, data):
    if suffix not in SMALL:
        write(picture(24, 32), tmp_path / f"whole.{suffix}", force=True)
        SMALL[suffix] = (tmp_path / f"whole.{suffix}").read_bytes()
    damaged = bytearray(SMALL[suffix])
    if data.draw(st.booleans()):
        damaged = damaged[: data.draw(st.integers(0, len(damaged) - 1))]
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, min(len(damaged), 1500) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged"
    path.write_bytes(damaged)
    message = "damaged"
    try:
        read(path, max_pixels=1_000_000)
    except GMODiffError as error:
        message = str(error)
    assert message.startswith("damaged")
    assert "\n" not in message


def test_colour_space_of_an_unusual_screen_survives_ultra_hdr(tmp_path):
    colour = ColourSpace("wide", ((0.69, 0.31), (0.20, 0.75), (0.14, 0.05), SRGB.chromaticities[3]))
    write(replace(PICTURE, colour=colour, base_colour=colour), tmp_path / "a.jpg")
    back = read(tmp_path / "a.jpg")
    assert np.abs(np.array(back.base_colour.chromaticities) - np.array(colour.chromaticities)).max() < 1e-3
