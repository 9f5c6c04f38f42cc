"""Gain maps inside HEIC photos: Apple's own kind, and the hdrgm kind that Samsung and Adobe write as an auxiliary picture."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pi_heif
from numpy.typing import NDArray

from gmodiff.decode import check_heif_texts
from gmodiff.gainmap import GainMap, GainMapMetadata
from gmodiff.hdrgm import find_packets
from gmodiff.radiometry import FloatArray

APPLE_KIND = "urn:com:apple:photo:2020:aux:hdrgainmap"
_PQ = 16


@dataclass
class HeicHDR:
    """What makes a HEIC file HDR, if anything.

    gain_map: with metadata, from SDR to HDR. pq_codes: (H, W, 3) uint16 over the full range, with the code of their primaries.
    """

    gain_map: GainMap | None = None
    kind: str = "HEIC photo (SDR)"
    forms: tuple[str, ...] = ()
    pq_codes: NDArray[np.uint16] | None = field(default=None, repr=False)
    primaries: int = 2
    exif: bytes | None = None
    notes: list[str] = field(default_factory=list)


def open_hdr(path: Path, accept: Callable[[int, int], None]) -> HeicHDR:
    """Look into a HEIC file. accept is called with the sizes of all that is decoded."""
    data = path.read_bytes()
    check_heif_texts(data)
    with io.BytesIO(data) as file:
        photo = pi_heif.open_heif(file, convert_hdr_to_8bit=False, bgr_mode=False)
        accept(*photo.size)
        found = HeicHDR(exif=photo.info.get("exif"))
        nclx = photo.info.get("nclx_profile")
        if nclx and int(nclx["transfer_characteristics"]) == _PQ:
            codes = np.array(photo)[:, : photo.size[0], :3]  # a copy: the photo's memory goes with it
            bits = int(photo.info.get("bit_depth", 8))
            # Stored in the high bits; repeated below, so that the largest code becomes 65535.
            found.pq_codes = codes | (codes >> np.uint16(bits)) if codes.dtype == np.uint16 else codes.astype(np.uint16) * np.uint16(257)
            found.primaries = int(nclx["color_primaries"])
            return found
        maps = {kind: ids for kind, ids in photo.info.get("aux", {}).items() if "hdrgainmap" in str(kind).lower() and ids}
        if not maps:
            return found
        kind = APPLE_KIND if APPLE_KIND in maps else next(iter(maps))
        auxiliary = photo.get_aux_image(maps[kind][0])
        accept(*auxiliary.size)
        codes = np.array(auxiliary)  # a copy: the picture's memory goes with it, and NumPy does not know
    codes = codes if codes.ndim == 3 else codes[..., None]
    codes = codes[:, : auxiliary.size[0]]
    if codes.dtype != np.uint8:
        codes = (codes >> 8).astype(np.uint8)
    _interpret(found, kind, np.ascontiguousarray(codes[..., : 1 if codes.shape[2] < 3 else 3]), data)
    return found


def _interpret(found: HeicHDR, kind: str, codes: NDArray[np.uint8], data: bytes) -> None:
    """Put the gain map into `found`, or a note that says why there is none."""
    packets = find_packets(data)
    # libheif hands out the photo's own packet only; maps have theirs, so the file is searched.
    stored = next((p.metadata() for p in packets if p.has_metadata), None)
    if stored is not None and not stored.base_is_hdr:
        found.gain_map, found.kind, found.forms = GainMap(codes, stored.metadata), "HEIC with gain map", ("xmp",)
    elif kind == APPLE_KIND:
        linear = next((p.apple_headroom for p in packets if p.apple_headroom is not None and 1 < p.apple_headroom < 2**16), None)
        stops = float(np.log2(linear)) if linear is not None else _maker_note_stops(found.exif or b"")
        if stops is None or stops <= 0:
            found.notes.append("Apple's gain map is ignored: the file does not say its headroom")
            return
        found.gain_map, found.kind, found.forms = apple_gain_map(codes, stops), "HEIC with Apple's gain map", ("apple",)
    else:
        found.notes.append(f"the gain map {kind} is ignored: the file has no metadata for it that is understood")


# ---- Apple's gain map ---------------------------------------------------------------------------------------------------


def apple_headroom_stops(maker33: float, maker48: float) -> float:
    """Headroom in stops from maker note tags 33 and 48 (Apple, "Applying Apple HDR effect to your photos")."""
    if maker33 < 1:
        return -20 * maker48 + 1.8 if maker48 <= 0.01 else -0.101 * maker48 + 1.601
    return -70 * maker48 + 3.0 if maker48 <= 0.01 else -0.303 * maker48 + 2.303


def rec709_decode(encoded: FloatArray) -> FloatArray:
    """Rec.709 encoded 0..1 to linear, the inverse of its camera curve (ITU-R BT.709-6, item 1.2); Apple stores its maps so."""
    return np.where(encoded < 0.081, encoded / 4.5, ((np.maximum(encoded, 0.081) + 0.099) / 1.099) ** (1 / 0.45))


def apple_gain_map(codes: NDArray[np.uint8], stops: float) -> GainMap:
    """Apple's map as an ISO gain map: hdr = sdr * (1 + (2**stops - 1) * linear map), a pure ratio, so without offsets.

    Stored anew in log2 steps of stops / 255, so off by at most half of one: 0.3 % of light at 2 stops.
    """
    metadata = GainMapMetadata((0.0,) * 3, (stops,) * 3, base_offset=(0.0,) * 3, alternate_offset=(0.0,) * 3, alternate_headroom=stops)
    log2_gain = np.log2(1 + (2.0**stops - 1) * rec709_decode(np.arange(256) / 255))
    return GainMap(metadata.quantise(log2_gain[:, None])[:, 0].take(codes), metadata)


def _maker_note_stops(exif: bytes) -> float | None:
    """Headroom from Apple's maker note; None where it is not there. A missing one of its two tags counts as 0."""
    at = exif.find(b"Apple iOS\0")
    if at < 0:
        return None
    note = exif[at:]
    order = {b"MM": ">", b"II": "<"}.get(note[12:14])
    if order is None or len(note) < 16:
        return None
    values: dict[int, float] = {}
    for i in range(min(struct.unpack_from(order + "H", note, 14)[0], (len(note) - 16) // 12)):
        tag, kind, count, offset = struct.unpack_from(order + "HHII", note, 16 + 12 * i)
        if tag in (33, 48) and kind in (5, 10) and count == 1 and offset + 8 <= len(note):
            numerator, denominator = struct.unpack_from(order + ("ii" if kind == 10 else "II"), note, offset)
            if denominator:
                values[tag] = numerator / denominator
    return apple_headroom_stops(values.get(33, 0.0), values.get(48, 0.0)) if values else None
