"""ICC profiles of matrix RGB colour spaces: a small writer for what we embed, and a bounds-checked reader for what photos bring.

Only three-component matrix/TRC profiles (ICC.1:2022, section 8.3.3) are described by a ColourSpace; others are left to a colour
management module. Imports NumPy only.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from gmodiff.errors import FileFormatError
from gmodiff.radiometry import ADOBE_RGB, BT2020, DISPLAY_P3, SRGB, ColourSpace

F64 = NDArray[np.float64]

D50 = np.array([0.9642, 1.0, 0.8249])
"""XYZ of the profile connection space's white (ICC.1:2022, section 7.2.16)."""

_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
"""Cone responses of the linearised Bradford transform (ICC.1:2022, annex E.2)."""

_DESCRIPTIONS = {"srgb": "sRGB", "display-p3": "Display P3", "adobe-rgb": "Adobe RGB compatible", "bt2020": "Rec. ITU-R BT.2020 primaries"}

_MAX_TAGS = 200
"""Real profiles have 9 to 60 tags; a count beyond this is damage."""

_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
"""g, a, b, c, d of parametric curve type 3 for IEC 61966-2-1."""


def adaptation(source_white: F64, target_white: F64) -> F64:
    """(3, 3) linear Bradford matrix that takes XYZ seen under one white to the other (ICC.1:2022, annex E.2)."""
    scale = (_BRADFORD @ target_white) / (_BRADFORD @ source_white)
    return np.asarray(np.linalg.solve(_BRADFORD, scale[:, None] * _BRADFORD), np.float64)


# ---- writing ------------------------------------------------------------------------------------------------------------


def profile_bytes(colour: ColourSpace) -> bytes:
    """A minimal ICC version 4 display profile of a matrix colour space, about 500 bytes.

    The colorants are adapted to D50 and sum to it exactly, so that R = G = B is neutral; the same input gives the same bytes.
    """
    to_d50 = adaptation(_white_xyz(colour), D50)
    colorants = np.rint(to_d50 @ colour.to_xyz * 65536).astype(np.int64)
    white = np.rint(D50 * 65536).astype(np.int64)
    colorants[:, 1] += white - colorants.sum(axis=1)
    xyz = {name: _xyz_tag(colorants[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    curve = _curve_tag(colour.transfer)
    tags = {
        b"desc": _text_tag(_DESCRIPTIONS.get(colour.name, colour.name)),
        b"cprt": _text_tag("No copyright, use freely"),
        b"wtpt": _xyz_tag(white),
        b"chad": b"sf32\0\0\0\0" + np.rint(to_d50.ravel() * 65536).astype(">i4").tobytes(),
        **xyz,
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    start = 128 + 4 + 12 * len(tags)
    table, body, placed = struct.pack(">I", len(tags)), b"", {}
    for signature, data in tags.items():
        if data not in placed:
            placed[data] = start + len(body)
            body += data + b"\0" * (-len(data) % 4)
        table += struct.pack(">4sII", signature, placed[data], len(data))
    header = struct.pack(
        ">I4sI4s4s4s6H4s4sI4sIQI3i4s16s28x",
        start + len(body),
        b"\0\0\0\0",  # preferred module: none
        0x04200000,  # version 4.2: all that we use, and what older readers know
        b"mntr",
        b"RGB ",
        b"XYZ ",
        *(2025, 1, 1, 0, 0, 0),  # a fixed date keeps the output reproducible
        b"acsp",
        b"\0\0\0\0",
        0,
        b"\0\0\0\0",
        0,
        0,
        0,  # perceptual intent
        *(int(v) for v in white),
        b"\0\0\0\0",
        b"\0" * 16,
    )
    return bytes(header + table + body)


def _white_xyz(colour: ColourSpace) -> F64:
    x, y = colour.chromaticities[3]
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _xyz_tag(fixed: NDArray[np.int64]) -> bytes:
    return b"XYZ \0\0\0\0" + bytes(fixed.astype(">i4").tobytes())


def _text_tag(text: str) -> bytes:
    encoded = text.encode("utf-16-be")
    return b"mluc" + struct.pack(">III2s2sII", 0, 1, 12, b"en", b"US", len(encoded), 28) + encoded


def _curve_tag(transfer: str) -> bytes:
    if transfer == "linear":
        return b"curv\0\0\0\0\0\0\0\0"
    kind, parameters = (3, _SRGB_CURVE) if transfer == "srgb" else (0, (float(transfer),))
    return b"para" + struct.pack(">IHH", 0, kind, 0) + bytes(np.rint(np.array(parameters) * 65536).astype(">i4").tobytes())


# ---- reading ------------------------------------------------------------------------------------------------------------


def colour_space_from_icc(data: bytes) -> ColourSpace | None:
    """The colour space an ICC profile describes; None where a matrix and one curve cannot describe it.

    None stands for: grey, CMYK or Lab data, lookup tables (A2B0), channels with different curves, or a curve that is neither
    sRGB's nor a plain exponent. Whites other than D65 are adapted to it (relative colorimetry, Bradford).
    Raises FileFormatError where the profile is malformed.
    """
    tags = _tags(data)
    if data[16:20] != b"RGB " or data[20:24] != b"XYZ " or b"A2B0" in tags:
        return None
    needed = (b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC")
    missing = [name.decode() for name in needed if name not in tags]
    if missing:
        raise FileFormatError(f"ICC profile: tag {missing[0]} is missing")
    colorants = np.stack([_read_xyz(tags[name], name) for name in needed[:3]], axis=1)
    encoded = np.linspace(0.0, 1.0, 256)
    curves = np.stack([_read_curve(tags[name], encoded, name) for name in needed[3:]])
    # Compared roughly as the eye does: 0.02 of linear light is nothing in the whites and everything in the blacks.
    if np.ptp(np.clip(curves, 0, 1) ** (1 / 2.2), axis=0).max() > _CURVE_TOLERANCE:
        return None
    transfer = _name_transfer(encoded, curves.mean(axis=0))
    if transfer is None:
        return None
    primaries = _chromaticities(colorants)
    for known in (SRGB, DISPLAY_P3, ADOBE_RGB, BT2020):
        if np.abs(np.array(known.chromaticities[:3]) - primaries).max() < 0.004:
            same = transfer == known.transfer or (known is ADOBE_RGB and transfer[0] == "2" and abs(float(transfer) - 2.2) < 0.02)
            return known if same else ColourSpace(_read_description(tags), known.chromaticities, transfer)
    r, g, b = ((float(x), float(y)) for x, y in primaries)
    return ColourSpace(_read_description(tags), (r, g, b, SRGB.chromaticities[3]), transfer)


_CURVE_TOLERANCE = 0.012
"""How far a curve may lie from the plain one it is taken for, in encoded units (3 codes of 255)."""


def _tags(data: bytes) -> dict[bytes, bytes]:
    if len(data) < 132 or data[36:40] != b"acsp":
        raise FileFormatError(f"ICC profile: {len(data)} bytes without the signature 'acsp' at 36")
    size, count = struct.unpack_from(">I", data)[0], struct.unpack_from(">I", data, 128)[0]
    if size > len(data) or size < 132:
        raise FileFormatError(f"ICC profile: header says {size} bytes, {len(data)} are there")
    if count > _MAX_TAGS or 132 + 12 * count > size:
        raise FileFormatError(f"ICC profile: {count} tags do not fit {size} bytes")
    tags = {}
    for i in range(count):
        name, offset, length = struct.unpack_from(">4sII", data, 132 + 12 * i)
        if offset + length > size or length < 8:
            raise FileFormatError(f"ICC profile: tag {name!r} ({length} bytes at {offset}) lies outside its {size} bytes")
        tags[name] = data[offset : offset + length]
    return tags


def _read_xyz(tag: bytes, name: bytes) -> F64:
    if tag[:4] != b"XYZ " or len(tag) < 20:
        raise FileFormatError(f"ICC profile: tag {name.decode()} is not an XYZ value")
    return np.frombuffer(tag, ">i4", 3, 8) / 65536


def _read_curve(tag: bytes, x: F64, name: bytes) -> F64:
    """Linear values at encoded positions x of a curveType or parametricCurveType tag (ICC.1:2022, sections 10.6 and 10.18)."""
    damaged = FileFormatError(f"ICC profile: curve {name.decode()} is damaged")
    if tag[:4] == b"curv" and len(tag) >= 12:
        count = struct.unpack_from(">I", tag, 8)[0]
        if len(tag) < 12 + 2 * count:
            raise damaged
        if count == 0:
            return x
        values = np.frombuffer(tag, ">u2", count, 12)
        return np.asarray(x ** (values[0] / 256) if count == 1 else np.interp(x, np.linspace(0, 1, count), values / 65535), np.float64)
    if tag[:4] != b"para" or len(tag) < 12:
        raise damaged
    kind = struct.unpack_from(">H", tag, 8)[0]
    counts = (1, 3, 4, 5, 7)
    if kind >= len(counts) or len(tag) < 12 + 4 * counts[kind]:
        raise damaged
    p = (np.frombuffer(tag, ">i4", counts[kind], 12) / 65536).tolist()
    g = p[0]
    a, b = (p[1], p[2]) if kind else (1.0, 0.0)
    with np.errstate(all="ignore"):
        power = np.maximum(a * x + b, 0.0) ** g
        if kind in (0, 1, 2):
            c = p[3] if kind == 2 else 0.0
            y = power + c if kind == 0 or a == 0 else np.where(x >= -b / a, power + c, c)
        else:
            e, f = p[5:7] if kind == 4 else (0.0, 0.0)
            y = np.where(x >= p[4], power + e, p[3] * x + f)
    if not np.isfinite(y).all():
        raise damaged
    return np.asarray(y, np.float64)


def _name_transfer(encoded: F64, linear: F64) -> str | None:
    """The `transfer` of a ColourSpace whose curve this is; None where none is near."""
    inner = slice(26, -1)  # encoded 0.1 and up: the toe says little about the exponent
    if (linear[inner] <= 0).any() or linear[-1] <= 0:
        return None
    exponent = float(np.median(np.log(linear[inner] / linear[-1]) / np.log(encoded[inner])))
    if not 0.2 <= exponent <= 5:
        return None
    if abs(exponent - 1) < 2e-3:
        exponent = 1.0
    # Files store exponents in steps of 1/65536: 1.8 comes back as 1.80000305.
    exponent = round(exponent, 4) if abs(exponent - round(exponent, 4)) < 1e-5 else round(exponent, 8)
    plain = {"srgb": SRGB.decode(encoded), "linear" if exponent == 1 else f"{exponent:.10g}": encoded**exponent}
    seen = np.clip(linear, 0, 1) ** (1 / 2.2)
    errors = {name: float(np.abs(np.clip(curve, 0, 1) ** (1 / 2.2) - seen).max()) for name, curve in plain.items()}
    best = min(errors, key=lambda name: errors[name])
    return best if errors[best] <= _CURVE_TOLERANCE else None


def _chromaticities(colorants: F64) -> F64:
    """(3, 2) xy of red, green and blue under D65, from (3, 3) columns of XYZ under the profile's own white."""
    white = colorants.sum(axis=1)
    if not ((white > 0.2) & (white < 2)).all() or abs(np.linalg.det(colorants)) < 1e-4:
        raise FileFormatError("ICC profile: its colorants do not span a colour space")
    xyz = adaptation(white, _white_xyz(SRGB)) @ colorants
    total = xyz.sum(axis=0)
    if (np.abs(total) < 1e-4).any() or (np.abs(xyz[1]) < 1e-5).any():
        raise FileFormatError("ICC profile: a colorant has no chromaticity")
    return np.asarray((xyz[:2] / total).T, np.float64)


def _read_description(tags: dict[bytes, bytes]) -> str:
    tag = tags.get(b"desc", b"")
    text = ""
    if tag[:4] == b"desc" and len(tag) >= 12:
        length = struct.unpack_from(">I", tag, 8)[0]
        text = tag[12 : 12 + min(length, 200)].decode("latin-1")
    elif tag[:4] == b"mluc" and len(tag) >= 28:
        length, offset = struct.unpack_from(">II", tag, 20)
        text = tag[offset : offset + min(length, 200) // 2 * 2].decode("utf-16-be", "replace")
    return "".join(c for c in text.split("\0")[0] if c.isprintable()).strip()[:60] or "unnamed profile"
