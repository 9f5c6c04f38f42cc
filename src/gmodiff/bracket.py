"""Photo files to a Bracket: decode, find the exposures, choose the reference, measure the camera's response."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import combinations, pairwise
from os import PathLike
from pathlib import Path

import numpy as np

from gmodiff.errors import InputError
from gmodiff.exposure import Brightness, known_exposures, measure_brightness
from gmodiff.hdrgm import GMODIFF
from gmodiff.image import MAX_FRAMES, MIN_FRAMES, Bracket, Frame, Progress
from gmodiff.photo import MAX_PIXELS, Photo, is_camera_raw, read_photo
from gmodiff.radiometry import CameraResponse, NoiseModel
from gmodiff.raw import RawDevelopment
from gmodiff.response_file import load_response_file, save_response_file

__all__ = ["read_bracket", "save_response_file"]

AnyPath = str | PathLike[str]

REFERENCE_TIE = 0.06
"""Share of well-exposed pixels within which a frame nearer to the middle of the bracket is the better reference."""


MEASURED_SHARE = 1e-4
"""Share of pixels, neither black nor clipped, below which a photo measured nothing."""


def read_bracket(
    paths: Sequence[AnyPath],
    *,
    exposures: Sequence[float] | None = None,
    ev: Sequence[float] | None = None,
    reference: int | str | None = None,
    response: str = "auto",
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> Bracket:
    """Read 2 to 16 photos of one scene, in any order, and calibrate them.

    exposures: relative exposure of each file in the order given (any scale; shutter times will do if nothing else changed).
    ev: the same in stops, as photographers set exposure compensation: +1 is one stop *brighter*. At most one of the two.
    Without them: EXIF (t*ISO/100/N^2), else an `exposure.txt` beside the files (log2 relative exposures, one a line, for the files
    in the order of their names), else the pixels. `Bracket.calibration` says which was used.
    reference: index into paths from 0, or a file name, or as text a place from 1; default: the frame with most well-exposed pixels.
    response: "auto" (fit, or a plain curve where the evidence prefers it), "estimate" (always fit), "srgb", "linear", "gamma2.2" or
    another gammaX, or a response file.

    Raises InputError and its children, with one line, for whatever makes the files no bracket.
    """
    if isinstance(paths, (str, os.PathLike)):
        raise InputError(f"paths is one path ({os.fspath(paths)}), expected a list of 2 to 16")
    files = [Path(p) for p in paths]
    _check_arguments(files, exposures, ev)
    wanted = None if reference is None else _reference_index(reference, files)
    curve = _parse_response(response)
    photos, brightness = _read_photos(files, max_pixels, progress)
    names = _short_names(files)
    _check_alike(photos, names)
    notes = [note for photo in photos for note in photo.notes]
    _check_measured(brightness)

    known, source = known_exposures(photos, names, brightness, notes, exposures, ev)
    keys = known if known is not None else [b.mean for b in brightness]
    order = sorted(range(len(files)), key=lambda i: (keys[i], brightness[i].mean))
    _check_no_twins(photos, names, [i for i in order if brightness[i].measured > MEASURED_SHARE])
    if wanted is None:
        wanted = order[_best_reference([brightness[i].exposed for i in order])]

    frames = tuple(
        Frame(photos[i].encoded, known[i] if known is not None else math.nan, names[i], photos[i].exif, _noise(photos[i])) for i in order
    )
    linear, colour = photos[0].linear, photos[0].colour
    del photos

    from gmodiff.calibrate import calibrate

    found, fitted, calibration = calibrate(
        frames,
        reference=order.index(wanted),
        exposures_known=known is not None,
        response=curve,
        linear=linear,
        transfer=colour.transfer,
        exposure_source=source,
        force_estimate=response == "estimate",
        progress=progress,
    )
    ranked = sorted(range(len(frames)), key=lambda i: found[i])
    return Bracket(
        frames=tuple(replace(frames[i], exposure=float(found[i])) for i in ranked),
        reference=ranked.index(order.index(wanted)),
        response=fitted,
        colour=colour,
        calibration=replace(
            calibration,
            residual_stops=_of_neighbours(calibration.residual_stops, ranked),
            srgb_residual_stops=_of_neighbours(calibration.srgb_residual_stops, ranked),
            notes=(*notes, *calibration.notes),
        ),
    )


def _of_neighbours(residuals: tuple[float, ...], ranked: list[int]) -> tuple[float, ...]:
    """Residuals of pairs in the calibrated order: those of old neighbours that are neighbours still, NaN for new ones."""
    if not residuals:
        return residuals
    return tuple(residuals[min(a, b)] if abs(a - b) == 1 else math.nan for a, b in pairwise(ranked))


# ---- arguments ------------------------------------------------------------------------------------------------------------


def _check_arguments(files: list[Path], exposures: Sequence[float] | None, ev: Sequence[float] | None) -> None:
    if not MIN_FRAMES <= len(files) <= MAX_FRAMES:
        raise InputError(f"a bracket has {MIN_FRAMES} to {MAX_FRAMES} photos, got {len(files)}")
    seen: dict[object, Path] = {}
    for file in files:
        try:
            status = file.stat()
        except (OSError, ValueError):
            continue  # reading it gives the better message
        # Windows reports inode 0 on some file systems; the resolved path serves there.
        key = (status.st_dev, status.st_ino) if status.st_ino else file.resolve()
        if key in seen:
            raise InputError(f"{seen[key]} and {file} are the same file: each photo of a bracket is given once")
        seen[key] = file
    if exposures is not None and ev is not None:
        raise InputError("both exposures and ev were given; give one of them")
    for name, values in (("exposures", exposures), ("ev", ev)):
        if values is not None and len(values) != len(files):
            raise InputError(
                f"{name} {', '.join(f'{v:g}' for v in values)}: {len(values)} numbers for {len(files)} photos, expected one for each"
            )
    if exposures is not None and not all(math.isfinite(e) and 1e-12 <= e <= 1e12 for e in exposures):
        raise InputError(f"exposures {list(exposures)} must all be positive numbers")
    if ev is not None and not all(math.isfinite(e) and abs(e) <= 40 for e in ev):
        raise InputError(f"ev {list(ev)} must all be numbers from -40 to 40 stops")


def _reference_index(reference: int | str, files: list[Path]) -> int:
    """Index into files. Text is a file name first, then a place from 1."""
    if isinstance(reference, str):
        matches = [i for i, f in enumerate(files) if reference in (f.name, str(f)) or Path(reference) == f]
        if len(matches) == 1:
            return matches[0]
        if len(matches) > 1:
            raise InputError(f"reference {reference!r} names {len(matches)} of the photos; give the full path or the place (1 = first)")
        if reference.isascii() and reference.isdigit() and 1 <= int(reference) <= len(files):
            return int(reference) - 1
        raise InputError(f"reference {reference!r} is not one of the photos ({', '.join(f.name for f in files)}) or a place from 1")
    if not 0 <= reference < len(files):
        raise InputError(f"reference {reference} is not an index into {len(files)} photos, expected 0 to {len(files) - 1}")
    return reference


def _parse_response(response: str) -> CameraResponse | None:
    """None for "auto" and "estimate", which leave the curve to the calibration."""
    if response in ("auto", "estimate"):
        return None
    if response in ("srgb", "linear") or re.fullmatch(r"gamma[\d.]+", response):
        return CameraResponse.named(response)
    if Path(response).suffix or Path(response).exists():
        return load_response_file(response)
    raise InputError(f"response {response!r} is unknown: expected auto, estimate, srgb, linear, gamma2.2 (or another gammaX) or a file")


# ---- reading --------------------------------------------------------------------------------------------------------------


def _read_photos(files: list[Path], max_pixels: int, progress: Progress | None) -> tuple[list[Photo], list[Brightness]]:
    """All photos, in the order given, two at a time; camera RAW one after another, developed like the first."""
    results: list[tuple[Photo, Brightness]] = []
    developed: list[RawDevelopment] = []

    def read(file: Path) -> tuple[Photo, Brightness]:
        refuse_own_result(file)
        photo = read_photo(file, max_pixels=max_pixels, raw_development=developed[0] if developed else None)
        if photo.raw is not None and not developed:
            developed.append(photo.raw)
        return photo, measure_brightness(photo)

    # A RAW file takes seven times the memory of its picture while LibRaw, itself threaded, develops it.
    with ThreadPoolExecutor(1 if is_camera_raw(files[0]) else 2) as pool:
        futures = [pool.submit(read, file) for file in files]
        try:
            for done, future in enumerate(futures):
                if progress is not None:
                    progress("read", done / len(files))
                results.append(future.result())
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    if progress is not None:
        progress("read", 1.0)
    return [photo for photo, _ in results], [brightness for _, brightness in results]


def refuse_own_result(path: Path) -> None:
    """A second `gmodiff merge *.jpg` finds the first one's result among the photos: say so, rather than merge it."""
    if not path.is_file() or not os.access(path, os.R_OK):
        return  # reading it gives the better message
    with path.open("rb") as file:
        marked = GMODIFF.encode() in file.read(1 << 17)  # XMP stands near the start in JPEG and PNG, at the end in AVIF and JXL
        file.seek(max(path.stat().st_size - (1 << 17), 0))
        marked = marked or GMODIFF.encode() in file.read()
    if marked:
        raise InputError(f"{path.name} was made by gmodiff and is no photo of a bracket: leave it out, or write results to another folder")


def _short_names(files: list[Path]) -> list[str]:
    """File names; with their folder where two are alike."""
    names = [f.name for f in files]
    return [n if names.count(n) == 1 else str(f) for n, f in zip(names, files, strict=True)]


def _check_alike(photos: list[Photo], names: list[str]) -> None:
    first = photos[0]
    for photo, name in zip(photos[1:], names[1:], strict=True):
        a, b = first.encoded, photo.encoded
        if a.shape != b.shape:
            sizes = f"{name} is {b.shape[1]}x{b.shape[0]} but {names[0]} is {a.shape[1]}x{a.shape[0]}"
            turned = " (one was taken upright)" if a.shape[:2] == b.shape[1::-1] else ""
            raise InputError(f"{sizes}{turned}: all photos of a bracket must have the same size")
        if a.dtype != b.dtype or first.linear != photo.linear:
            kinds = [f"{p.encoded.dtype.itemsize * 8}-bit{' linear' if p.linear else ''}" for p in (photo, first)]
            raise InputError(f"{name} is {kinds[0]} but {names[0]} is {kinds[1]}: all photos of a bracket must be of the same kind")
        if first.colour != photo.colour:
            raise InputError(
                f"{name} is in {photo.colour.name} but {names[0]} is in {first.colour.name}: "
                "all photos of a bracket must be in the same colour space"
            )


def _check_measured(brightness: list[Brightness]) -> None:
    if max(b.measured for b in brightness) < MEASURED_SHARE:
        state = "black" if max(b.mean for b in brightness) < 0.1 else "clipped"
        raise InputError(f"every photo is {state} throughout: nothing was measured that could be merged")


def _check_no_twins(photos: list[Photo], names: list[str], order: list[int]) -> None:
    """Two files with the same pixels are one exposure, however they are named (two black ones may well be two exposures)."""
    for a, b in combinations(order, 2):
        x, y = photos[a].encoded, photos[b].encoded
        if np.array_equal(x[::37, ::37], y[::37, ::37]) and np.array_equal(x, y):
            raise InputError(f"{names[a]} and {names[b]} hold exactly the same pixels: a bracket needs different exposures")


def _noise(photo: Photo) -> NoiseModel:
    return NoiseModel.of_photo(photo.iso, photo.encoded.dtype.itemsize * 8, photo.lossy)


def _best_reference(exposed: list[float]) -> int:
    """Index of the frame with most well-exposed pixels; among those within REFERENCE_TIE of it, the one nearest to the middle.

    Of two equally near the longer exposure: its shadows are cleaner, and it looks more like what a camera would have metered.
    """
    middle = (len(exposed) - 1) / 2
    candidates = [i for i, share in enumerate(exposed) if share >= max(exposed) - REFERENCE_TIE]
    return min(candidates, key=lambda i: (abs(i - middle), -i))
