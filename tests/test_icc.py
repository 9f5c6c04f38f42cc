"""ICC profiles: what we write is read back by LittleCMS and by ourselves, and damage never gives anything but our error."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from gmodiff.errors import FileFormatError
from gmodiff.icc import adaptation, colour_space_from_icc, profile_bytes
from gmodiff.radiometry import ADOBE_RGB, BT2020, DISPLAY_P3, SRGB, ColourSpace

SPACES = [
    SRGB,
    DISPLAY_P3,
    ADOBE_RGB,
    BT2020,
    ColourSpace("P3 linear", DISPLAY_P3.chromaticities, "linear"),
    ColourSpace("narrow 1.8", ((0.61, 0.34), (0.31, 0.57), (0.16, 0.08), SRGB.chromaticities[3]), "1.8"),
]


def cms(colour: ColourSpace) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(io.BytesIO(profile_bytes(colour)))


def transform(pixels: np.ndarray, source: object, target: object) -> np.ndarray:
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    return np.asarray(ImageCms.profileToProfile(Image.fromarray(pixels), source, target, renderingIntent=intent))


@pytest.mark.parametrize("colour", SPACES, ids=lambda c: c.name)
def test_written_profile_is_read_back(colour: ColourSpace) -> None:
    back = colour_space_from_icc(profile_bytes(colour))
    assert back is not None
    assert (back.name, back.transfer) == (colour.name, colour.transfer)
    assert np.abs(np.array(back.chromaticities) - colour.chromaticities).max() < 1e-4


def test_srgb_profile_is_littlecms_srgb() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    out = transform(pixels, cms(SRGB), ImageCms.createProfile("sRGB"))
    assert np.abs(out.astype(int) - pixels).max() <= 1


@pytest.mark.parametrize("colour", SPACES, ids=lambda c: c.name)
def test_littlecms_converts_as_our_matrices_do(colour: ColourSpace) -> None:
    # Colours inside sRGB, so that nothing clips.
    srgb = np.random.default_rng(2).integers(40, 216, (32, 32, 3), dtype=np.uint8)
    linear = SRGB.decode(srgb / 255) @ SRGB.matrix_to(colour).T
    grid = np.linspace(0, 1, 20001)
    expected = np.interp(linear, colour.decode(grid), grid) * 255
    out = transform(srgb, ImageCms.createProfile("sRGB"), cms(colour))
    inside = ((linear > 0.002) & (linear < 1)).all(axis=-1)
    assert inside.mean() > 0.5
    assert np.abs(out - expected)[inside].max() < 1.6


def test_grey_stays_neutral() -> None:
    for colour in SPACES:
        data = profile_bytes(colour)
        sums = np.zeros(3, int)
        for i in range(struct.unpack_from(">I", data, 128)[0]):
            name, offset, _ = struct.unpack_from(">4sII", data, 132 + 12 * i)
            if name in (b"rXYZ", b"gXYZ", b"bXYZ"):
                sums += np.frombuffer(data, ">i4", 3, offset + 8)
        assert sums.tolist() == [0xF6D6, 0x10000, 0xD32D]


def test_profile_carries_name_version_and_adaptation() -> None:
    profile = cms(DISPLAY_P3).profile
    assert profile.profile_description == "Display P3"
    assert profile.version == pytest.approx(4.2)
    # Apple's Display P3 profile: red colorant 0.51512 0.24120 -0.00105.
    assert profile.red_colorant[0] == pytest.approx((0.51512, 0.24120, -0.00105), abs=2e-4)
    assert np.asarray(profile.chromatic_adaptation[0]) == pytest.approx(
        np.array([[1.04788, 0.02292, -0.05022], [0.02959, 0.99048, -0.01708], [-0.00925, 0.01508, 0.75168]]), abs=2e-4
    )


def test_profile_of_another_maker_is_recognised() -> None:
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert colour_space_from_icc(data) is SRGB


def replace_curves(colour: ColourSpace, curves: list[bytes]) -> bytes:
    """Our profile with other TRC tags appended."""
    data = bytearray(profile_bytes(colour))
    for i in range(struct.unpack_from(">I", data, 128)[0]):
        name = bytes(data[132 + 12 * i : 136 + 12 * i])
        if name in (b"rTRC", b"gTRC", b"bTRC"):
            curve = curves["rgb".index(name.decode()[0])]
            struct.pack_into(">II", data, 136 + 12 * i, len(data), len(curve))
            data += curve + b"\0" * (-len(curve) % 4)
    struct.pack_into(">I", data, 0, len(data))
    return bytes(data)


def table_curve(linear: np.ndarray) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">I", len(linear)) + np.rint(linear * 65535).astype(">u2").tobytes()


def parametric(kind: int, *values: float) -> bytes:
    return b"para" + struct.pack(">IHH", 0, kind, 0) + np.rint(np.array(values) * 65536).astype(">i4").tobytes()


X = np.linspace(0, 1, 1024)


@pytest.mark.parametrize(
    ("curve", "transfer"),
    [
        (table_curve(SRGB.decode(X)), "srgb"),
        (table_curve(X**1.8), "1.8"),
        (table_curve(X), "linear"),
        (b"curv\0\0\0\0" + struct.pack(">IH", 1, 563), "2.19921875"),
        (parametric(0, 2.4), "2.4"),
        (parametric(1, 2.2, 1.0, 0.0), "2.2"),
        (parametric(2, 2.2, 1.0, 0.0, 0.0), "2.2"),
        (parametric(4, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045, 0.0, 0.0), "srgb"),
    ],
)
def test_curves_are_named(curve: bytes, transfer: str) -> None:
    colour = colour_space_from_icc(replace_curves(SRGB, [curve] * 3))
    assert colour is not None
    if transfer[0].isdigit():
        assert float(colour.transfer) == pytest.approx(float(transfer), abs=2e-4)
    else:
        assert colour.transfer == transfer
    assert (colour is SRGB) == (transfer == "srgb")


def test_adobe_rgb_with_a_rounded_exponent_is_adobe_rgb() -> None:
    assert colour_space_from_icc(replace_curves(ADOBE_RGB, [parametric(0, 2.2)] * 3)) is ADOBE_RGB


def test_what_a_matrix_cannot_describe_gives_none() -> None:
    plain = profile_bytes(SRGB)
    assert colour_space_from_icc(plain[:16] + b"CMYK" + plain[20:]) is None
    assert colour_space_from_icc(plain[:16] + b"GRAY" + plain[20:]) is None
    assert colour_space_from_icc(plain[:20] + b"Lab " + plain[24:]) is None
    s_shaped = table_curve(X**2.2 * 0.2 + 0.8 * (3 * X**2 - 2 * X**3))
    assert colour_space_from_icc(replace_curves(SRGB, [s_shaped] * 3)) is None
    different = [table_curve(X**2.2), table_curve(X**2.2), table_curve(X**1.8)]
    assert colour_space_from_icc(replace_curves(SRGB, different)) is None


def test_prophoto_white_is_adapted_to_d65() -> None:
    # ROMM RGB (ISO 22028-2): white D50; adapted by Bradford its red is at 0.7347 0.2653 still seen from D50.
    romm = ColourSpace("ROMM", ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), (0.3457, 0.3585)), "1.8")
    colour = colour_space_from_icc(profile_bytes(romm))
    assert colour is not None
    assert colour.chromaticities[3] == SRGB.chromaticities[3]
    to_d50 = adaptation(SRGB.to_xyz.sum(axis=1), romm.to_xyz.sum(axis=1))
    assert to_d50 @ colour.to_xyz == pytest.approx(romm.to_xyz, abs=2e-3)


@given(st.integers(0, 535), st.binary(min_size=1, max_size=8))
def test_damage_gives_our_error_or_a_colour_space(position: int, junk: bytes) -> None:
    data = bytearray(profile_bytes(ADOBE_RGB))
    data[position : position + len(junk)] = junk
    for damaged in (bytes(data), bytes(data[:position])):
        try:
            colour = colour_space_from_icc(damaged)
        except FileFormatError:
            continue
        assert colour is None or np.isfinite(colour.to_xyz).all()


@pytest.mark.parametrize("data", [b"", b"acsp", b"\0" * 200, profile_bytes(SRGB)[:300]])
def test_truncated_profiles_are_refused(data: bytes) -> None:
    with pytest.raises(FileFormatError, match="ICC profile"):
        colour_space_from_icc(data)
