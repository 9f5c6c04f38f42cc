"""The exposures of a bracket's photos before any fitting: what the user, the metadata or an exposure.txt say, and how bright they are."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gmodiff.errors import FileFormatError, InputError
from gmodiff.photo import Photo
from gmodiff.radiometry import CLIPPED_ENCODED, exposure_from_settings, luminance_weights, srgb_decode

SAMPLES_PER_SIDE = 400
"""Brightness statistics come from a grid of about this many pixels on the longer side."""

DARKEST_EXPOSED = 0.05
"""Encoded luminance (sRGB) below which a pixel is too dark to be called well exposed: noise and quantisation are 10 % there."""

SAME_EXPOSURE_STOPS = 0.1
"""Frames whose brightness differs by less than this hold the same exposure, whatever is written about them."""


@dataclass(frozen=True)
class Brightness:
    """mean: of linear luminance, 0..1. exposed: share of well-exposed pixels. measured: share that is neither black nor clipped."""

    mean: float
    exposed: float
    measured: float


def measure_brightness(photo: Photo) -> Brightness:
    """The statistics of a photo, from a sparse grid of its pixels."""
    step = max(1, math.ceil(max(photo.encoded.shape[:2]) / SAMPLES_PER_SIDE))
    codes = photo.encoded[::step, ::step]
    encoded = np.linspace(0.0, 1.0, np.iinfo(codes.dtype).max + 1)
    # Real tone curves differ from sRGB's, but all rise: good enough for an order and for thresholds.
    linear_of = (encoded if photo.linear else srgb_decode(encoded)).astype(np.float32)
    luminance = linear_of[codes] @ luminance_weights(photo.colour)
    clipped = codes >= CLIPPED_ENCODED * (encoded.size - 1)
    exposed = (luminance > float(srgb_decode(np.array(DARKEST_EXPOSED)))) & ~clipped.any(axis=2)
    black = linear_of[codes.max(axis=2)] <= float(srgb_decode(np.array(4 / 255)))
    measured = ~black & ~clipped.all(axis=2)
    return Brightness(float(luminance.mean()), float(exposed.mean()), float(measured.mean()))


def known_exposures(
    photos: list[Photo],
    names: list[str],
    brightness: list[Brightness],
    notes: list[str],
    exposures: Sequence[float] | None = None,
    ev: Sequence[float] | None = None,
) -> tuple[list[float] | None, str]:
    """(exposure of each photo, where from), by order of trust; (None, "estimated") where the pixels have to tell.

    Appends to notes what was there but not used. Raises InputError where all photos have one exposure.
    """
    if exposures is not None or ev is not None:
        given = [float(e) for e in exposures] if exposures is not None else [2.0 ** float(e) for e in ev or ()]
        if not _differ(given):
            raise InputError(f"the exposures given for {listed(names)} are all the same: a bracket needs different exposures")
        return given, "given"
    found = {"exif": _exif_exposures(photos, names, notes), "exposure.txt": None}
    if found["exif"] is None or not _differ(found["exif"]):
        found["exposure.txt"] = _exposure_txt([p.path for p in photos], notes)
    alike = _spread_stops(brightness) < SAME_EXPOSURE_STOPS
    for source, values in found.items():
        if values is None:
            continue
        if _differ(values):
            return values, source
        shown = _settings(photos[0]) if source == "exif" else source
        if alike:
            raise InputError(f"{listed(names)} have the same exposure ({shown}) and brightness: a bracket needs different exposures")
        notes.append(f"all photos have the same exposure ({shown}) but not the same brightness; their exposures are estimated")
    if alike:
        raise InputError(
            f"{listed(names)} are equally bright and carry no exposure: a bracket needs different exposures (--ev says which they had)"
        )
    return None, "estimated"


def _exif_exposures(photos: list[Photo], names: list[str], notes: list[str]) -> list[float] | None:
    """t*ISO/100/N^2 of each photo; None where one of them has no exposure time. Constant unknowns cancel."""
    times, isos = [p.exposure_time_s for p in photos], [p.iso for p in photos]
    without = [n for n, t in zip(names, times, strict=True) if t is None]
    if without:
        if len(without) < len(photos):
            notes.append(f"no usable exposure time in {listed(without)}; the metadata of the others was not used either")
        return None
    without = [n for n, iso in zip(names, isos, strict=True) if iso is None]
    if 0 < len(without) < len(photos):
        notes.append(f"no ISO in {listed(without)}, but in the others; exposures from metadata were not used")
        return None
    apertures = {p.f_number for p in photos if p.f_number is not None}
    without = [n for n, p in zip(names, photos, strict=True) if p.f_number is None]
    if apertures and without:
        if len(apertures) > 1:
            notes.append(f"no aperture in {listed(without)}, and the others differ; exposures from metadata were not used")
            return None
        notes.append(f"no aperture in {listed(without)}; f/{min(apertures):g} is assumed as in the other photos")
    common = min(apertures) if apertures else None
    try:
        return [
            exposure_from_settings(t, iso or 100.0, p.f_number or common)
            for t, iso, p in zip([t or 0.0 for t in times], isos, photos, strict=True)
        ]
    except InputError as error:
        notes.append(f"{error}; exposures from metadata were not used")
        return None


def _exposure_txt(files: list[Path], notes: list[str]) -> list[float] | None:
    """Exposures of an exposure.txt beside the files; None where there is none for them."""
    folders = {f.parent for f in files}
    text = files[0].parent / "exposure.txt"
    if len(folders) != 1 or not text.is_file():
        return None
    try:
        with text.open(encoding="utf-8-sig") as file:
            content = file.read(10_000)
        values = [float(word) for word in content.replace(",", " ").split()]
    except OSError as error:
        raise InputError(f"{text} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise FileFormatError(f"{text} is malformed ({error}); expected log2 of relative exposures, one a line") from error
    if not all(math.isfinite(v) and abs(v) <= 40 for v in values):
        raise FileFormatError(f"{text} is malformed: {values} must be numbers from -40 to 40, log2 of relative exposures")
    if len(values) != len(files):
        notes.append(f"{text.name} holds {len(values)} exposures for {len(files)} photos and was not used")
        return None
    by_name = sorted(range(len(files)), key=lambda i: natural_key(files[i].name))
    exposures = [0.0] * len(files)
    for value, i in zip(values, by_name, strict=True):
        exposures[i] = 2.0**value
    return exposures


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key under which exp_9 comes before exp_10, upper and lower case alike."""
    return [(int(part), "") if part.isdigit() and part.isascii() else (-1, part) for part in re.split(r"([0-9]+)", name.lower())]


def _settings(photo: Photo) -> str:
    """1/60 s, ISO 100, f/8: what the metadata says."""
    t, iso, n = photo.exposure_time_s, photo.iso, photo.f_number
    time = "" if t is None else f"1/{1 / t:.0f} s" if t < 0.4 else f"{t:g} s"
    return ", ".join(part for part in (time, f"ISO {iso:g}" if iso else "", f"f/{n:g}" if n else "") if part)


def _differ(exposures: list[float]) -> bool:
    return math.log2(max(exposures) / min(exposures)) >= SAME_EXPOSURE_STOPS


def _spread_stops(brightness: list[Brightness]) -> float:
    means = [max(b.mean, 1e-6) for b in brightness]
    return math.log2(max(means) / min(means))


def listed(names: list[str]) -> str:
    """a, b and c; the middle of a long list left out."""
    shown = names if len(names) <= 4 else [*names[:2], "...", names[-1]]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
