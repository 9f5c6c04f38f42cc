"""Response and exposures of a bracket from its own pixels: small copies, align, sample, fit, align again, choose.

A fit needs aligned samples, alignment needs matched exposures, so they take turns: neighbouring frames (which share the most valid pixels)
are aligned on copies of at most `SMALL_SIDE` pixels with the measured family's mean curve, sampled, fitted, and the pairs that moved are
aligned and sampled once more with what was found. `response` holds the fit and its conventions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from gmodiff.align import Alignment, align_frame, warp_rows
from gmodiff.errors import InputError
from gmodiff.image import Calibration, Frame, Progress
from gmodiff.radiometry import CameraResponse
from gmodiff.response import (
    F64,
    RATIO_SIGMA_STOPS,
    PairSamples,
    ResponseFit,
    Ridge,
    disagreement_stops,
    find_ridges,
    fit_response,
    log2_of_response,
    pair_ratio,
    response_of_log2,
    response_prior,
    ridge_misfit,
)
from gmodiff.tiling import for_each_strip

SMALL_SIDE = 800
"""Longer side in pixels of the copies that are aligned and sampled."""

SAMPLES_PER_LEVEL = 400
"""Samples kept at each of LEVELS brightness levels, per pair and channel: dark and bright count alike, whatever the scene shows most."""

LEVELS = 32

SAMPLE_RANGE = (2.0 / 255.0, 0.975)
"""Encoded values that carry information at all; the fit keeps a margin to either end (`response.VALID_ENCODED`)."""

FEW_SAMPLES, NO_SAMPLES = 300, 24
"""Samples of a pair below which it is left out of the fit, and below which it shares nothing."""

CONTRADICTION_STOPS = 0.5
"""A known ratio further than this from what the pixels say is wrong."""

LARGE_DISAGREEMENT_STOPS = 0.25
"""A pair left further apart than this is named to the user."""

PLAIN_MARGIN = 1.25
PLAIN_MARGIN_STOPS = 0.008
"""A plain curve is preferred where its misfit is at most the fitted curve's times the one plus the other."""


@dataclass(frozen=True)
class _Evidence:
    """What the pixels of a bracket say: one entry per pair of neighbours."""

    pairs: tuple[PairSamples, ...]
    alignments: tuple[Alignment, ...]


def calibrate(
    frames: tuple[Frame, ...],
    *,
    reference: int,
    exposures_known: bool,
    exposure_source: str,
    response: CameraResponse | None,
    force_estimate: bool = False,
    linear: bool = False,
    transfer: str = "srgb",
    progress: Progress | None = None,
) -> tuple[tuple[float, ...], CameraResponse, Calibration]:
    """Exposures, response and what they leave unexplained.

    frames: shortest first, by known exposure, else by brightness (Frame.exposure is then NaN). reference: index of the reference frame.
    exposures_known, exposure_source: whether and from where ("given", "exif", "exposure.txt") the exposures are known; "given" ones
    are never changed. response: use this one; None finds one. force_estimate: fit a curve even where a plain one does.
    linear: the frames are linear (RAW, float). transfer: the transfer function of the frames' colour profile, as `ColourSpace.transfer`.

    Returns relative exposures in the order of the frames, the response, and the Calibration. Raises InputError where every frame is
    black or clipped, and where two neighbouring frames share no pixel that both measured.
    """
    report = progress or (lambda stage, fraction: None)
    report("calibrate", 0.0)
    small = _small_copies(frames)
    report("calibrate", 0.3)
    start = response or (
        CameraResponse.named("linear") if linear else response_of_log2(np.repeat(response_prior().mean[:, None], 3, 1), "prior")
    )
    ratios = [math.log2(b.exposure / a.exposure) if exposures_known else math.nan for a, b in zip(frames[:-1], frames[1:], strict=True)]
    evidence = _gather(small, start, None)
    report("calibrate", 0.6)
    result = _choose(frames, evidence, ratios, exposure_source, response, force_estimate, linear, transfer)
    if any(not a.is_identity for a in evidence.alignments):
        evidence = _gather(small, result.response, evidence)
        report("calibrate", 0.9)
        result = _choose(frames, evidence, ratios, exposure_source, response, force_estimate, linear, transfer)
    report("calibrate", 1.0)

    srgb = log2_of_response(CameraResponse.named("srgb"))
    curves = log2_of_response(result.response)
    left = tuple(
        disagreement_stops(p, curves, r) if p.count >= FEW_SAMPLES else math.nan for p, r in zip(evidence.pairs, result.ratios, strict=True)
    )
    plain = tuple(
        disagreement_stops(p, srgb, r) if p.count >= FEW_SAMPLES else math.nan for p, r in zip(evidence.pairs, result.ratios, strict=True)
    )
    notes = list(result.notes)
    for i, stops in enumerate(left):
        if stops > LARGE_DISAGREEMENT_STOPS:
            notes.append(
                f"{frames[i].name} and {frames[i + 1].name} still disagree by {stops:.2f} stops: moved, or not of one camera setting"
            )
    source = exposure_source if exposures_known else "estimated"
    exposures = np.exp2(np.concatenate([[0.0], np.cumsum(result.ratios)]))
    scale = frames[reference].exposure / exposures[reference] if exposures_known else 1.0 / exposures[reference]
    return tuple(float(e * scale) for e in exposures), result.response, Calibration(source, left, plain, tuple(notes))


# ---- small copies and samples -------------------------------------------------------------------------------------------


def _small_copies(frames: Sequence[Frame]) -> list[Frame]:
    """Frames averaged down to at most SMALL_SIDE, as uint16: the average of many codes is finer than a code."""
    factor = max(1, round(max(frames[0].height, frames[0].width) / SMALL_SIDE))
    height, width = frames[0].height // factor, frames[0].width // factor
    out = []
    for frame in frames:
        codes = np.empty((height, width, 3), np.uint16)
        scale = np.uint16(65535 // np.iinfo(frame.encoded.dtype).max)

        def work(first: int, end: int, frame: Frame = frame, codes: NDArray[np.uint16] = codes, scale: np.uint16 = scale) -> None:
            part = frame.encoded[first * factor : end * factor, : width * factor].astype(np.uint16)
            part *= scale
            codes[first:end] = cv2.resize(part, (width, end - first), interpolation=cv2.INTER_AREA) if factor > 1 else part

        for_each_strip(work, height, rows=16)
        out.append(replace(frame, encoded=codes, exif=None))
    return out


def _gather(small: Sequence[Frame], response: CameraResponse, before: _Evidence | None) -> _Evidence:
    """Align each frame to its neighbour and sample the pairs; with `before`, only the pairs that had moved."""
    pairs, alignments = [], []
    for i, (short, long) in enumerate(zip(small[:-1], small[1:], strict=True)):
        if before is not None and before.alignments[i].is_identity:
            pairs.append(before.pairs[i])
            alignments.append(before.alignments[i])
            continue
        alignment = align_frame(short, long, response)
        pairs.append(_sample_pair(short, long, alignment))
        alignments.append(alignment)
    return _Evidence(tuple(pairs), tuple(alignments))


def _sample_pair(short: Frame, long: Frame, alignment: Alignment) -> PairSamples:
    """Stratified samples of two neighbouring frames: at every brightness about as many, chosen at random."""
    moved, coverage = warp_rows(long, alignment, 0, long.height)
    a, b = short.encoded, moved
    low, high = SAMPLE_RANGE[0] * 65535, SAMPLE_RANGE[1] * 65535
    kernel = np.ones((3, 3), np.uint8)
    covered = None if coverage is None else coverage > 0.9
    rng = np.random.default_rng(0)
    chosen: list[tuple[F64, F64, F64]] = []
    for c in range(3):
        x, y = np.ascontiguousarray(a[..., c]), np.ascontiguousarray(b[..., c])
        valid = (x > low) & (y < high)
        if covered is not None:
            valid &= covered
        at = np.flatnonzero(valid)
        z = (x.ravel()[at].astype(np.float64) / 65535, y.ravel()[at].astype(np.float64) / 65535)
        level = ((z[0] + z[1]) * (LEVELS / 2)).astype(np.intp)
        share = SAMPLES_PER_LEVEL / np.maximum(np.bincount(level, minlength=LEVELS), 1)
        keep = rng.random(len(at)) < share[level]
        at, zx, zy = at[keep], z[0][keep], z[1][keep]
        rough = np.zeros(len(at))
        for image, value in ((x, zx), (y, zy)):
            spread = cv2.morphologyEx(image, cv2.MORPH_GRADIENT, kernel).ravel()[at] / 65535.0
            rough += spread / (value + 0.05)
        chosen.append((zx, zy, rough))
    shorts, longs, roughs = zip(*chosen, strict=True)
    return PairSamples(shorts, longs, roughs)


# ---- choice -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    response: CameraResponse
    ratios: tuple[float, ...]
    notes: tuple[str, ...]


def _choose(
    frames: Sequence[Frame],
    evidence: _Evidence,
    known: Sequence[float],
    source: str,
    given: CameraResponse | None,
    force_estimate: bool,
    linear: bool,
    transfer: str,
) -> _Choice:
    """The response and the ratios that explain the samples best, and what was assumed."""
    pairs = evidence.pairs
    _refuse_unshared(frames, pairs, known)
    usable = [p if p.count >= FEW_SAMPLES else PairSamples(*[tuple(np.empty(0) for _ in range(3)) for _ in range(3)]) for p in pairs]
    notes: list[str] = []
    for i, pair in enumerate(pairs):
        if pair.count < FEW_SAMPLES:
            notes.append(
                f"{frames[i].name} and {frames[i + 1].name} share too few valid pixels to be compared; their exposures are taken as known"
            )

    free = [math.inf] * len(pairs)
    if given is not None or (linear and not force_estimate):
        fixed = given or CameraResponse.named("linear")
        curves = log2_of_response(fixed)
        ridges = find_ridges(usable, curves, [math.nan] * len(pairs))
        said = [pair_ratio(r, curves) for r in ridges]
        ratios = _reconcile(frames, known, said, source, notes)
        return _Choice(fixed, tuple(ratios), tuple(notes))

    fit, ridges = fit_response(usable, [math.nan] * len(pairs), ratio_sigmas=free)
    said = list(fit.log2_ratios)
    if all(math.isfinite(k) for k in known):
        trusted = _reconcile(frames, known, said, source, notes)
        sigmas = [0.0 if source == "given" else RATIO_SIGMA_STOPS if t == k else math.inf for t, k in zip(trusted, known, strict=True)]
        fit, ridges = fit_response(usable, trusted, ratio_sigmas=sigmas, start=fit.log2_curves)
        ratios = [r if math.isfinite(r) else k for r, k in zip(fit.log2_ratios, trusted, strict=True)]
        if source == "given":
            ratios = list(known)
    else:
        trusted, ratios = list(said), list(said)
    response = fit.response()
    if not force_estimate:
        plain = _plain_choice(fit, ridges, trusted, ratios, known, source, transfer)
        if plain is not None:
            response, ratios = plain
    return _Choice(response, tuple(ratios), tuple(notes))


def _plain_choice(
    fit: ResponseFit,
    ridges: Sequence[Sequence[Ridge]],
    trusted: Sequence[float],
    ratios: Sequence[float],
    known: Sequence[float],
    source: str,
    transfer: str,
) -> tuple[CameraResponse, list[float]] | None:
    """The plain curve that explains the ridges about as well as the fitted one, if there is one."""
    names = ["srgb", "gamma2.2", "linear"] if all(math.isfinite(k) for k in known) else ["srgb"]
    if transfer not in ("srgb", "linear"):
        names.append(f"gamma{transfer}")
    best: tuple[float, CameraResponse, list[float]] | None = None
    for name in names:
        response = CameraResponse.named(name)
        curves = log2_of_response(response)
        own = []
        for pair, t, r in zip(ridges, trusted, ratios, strict=True):
            said = pair_ratio(pair, curves)
            if not math.isfinite(said) or source == "given":
                own.append(r)
            elif all(math.isfinite(k) for k in known):
                own.append(t + float(np.clip(said - t, -2 * RATIO_SIGMA_STOPS, 2 * RATIO_SIGMA_STOPS)))
            else:
                own.append(said)
        misfit = ridge_misfit(ridges, curves, own)
        if best is None or misfit < best[0]:
            best = misfit, response, own
    if best is None or not best[0] <= PLAIN_MARGIN * fit.misfit + PLAIN_MARGIN_STOPS:
        return None
    return best[1], best[2]


def _reconcile(frames: Sequence[Frame], known: Sequence[float], said: Sequence[float], source: str, notes: list[str]) -> list[float]:
    """Known ratios, with those replaced that contradict the pixels; unknown ones from the pixels."""
    if not all(math.isfinite(k) for k in known):
        return list(said)
    both = [(k, s) for k, s in zip(known, said, strict=True) if math.isfinite(s)]
    # The pixels know ratios up to one factor, the exponent of the curve: the factor under which fewest stops contradict.
    factors = np.linspace(0.6, 1.7, 111)
    costs = [sum(min(abs(k - f * s), CONTRADICTION_STOPS) for k, s in both) + 0.3 * abs(math.log2(f)) for f in factors]
    factor = float(factors[int(np.argmin(costs))]) if both else 1.0
    out = []
    for i, (k, s) in enumerate(zip(known, said, strict=True)):
        pixels = factor * s
        if math.isfinite(s) and abs(k - pixels) > CONTRADICTION_STOPS:
            says = {"exif": "EXIF says", "given": "the exposures given say"}.get(source, f"{source} says")
            text = f"{frames[i + 1].name}: {says} {k:.1f} stops above {frames[i].name}, pixels say {pixels:.1f}"
            if source == "given":
                notes.append(f"{text}; used as given")
                out.append(k)
            else:
                reason = " (a hand-set lens reports no aperture)" if source == "exif" else ""
                notes.append(f"{text}; using {pixels:.1f}{reason}")
                out.append(pixels)
        else:
            out.append(k)
    return out


def _refuse_unshared(frames: Sequence[Frame], pairs: Sequence[PairSamples], known: Sequence[float]) -> None:
    """Raise InputError where neighbours share no valid pixel, or too few to tell an unknown exposure."""
    for i, pair in enumerate(pairs):
        if pair.count < NO_SAMPLES or (pair.count < FEW_SAMPLES and not math.isfinite(known[i])):
            a, b = frames[i], frames[i + 1]
            dark, bright = (
                float(np.mean(a.encoded[::7, ::7] <= _code(a, SAMPLE_RANGE[0]))),
                float(np.mean(b.encoded[::7, ::7] >= _code(b, SAMPLE_RANGE[1]))),
            )
            if dark > 0.999:
                reason = f"{a.name} is black"
            elif bright > 0.999:
                reason = f"{b.name} is clipped throughout"
            else:
                reason = "they are too far apart"
            raise InputError(
                f"{a.name} and {b.name} share no valid pixels ({reason}: {100 * dark:.0f} % of {a.name} is black, "
                f"{100 * bright:.0f} % of {b.name} is clipped): leave one out or add a frame between them"
            )


def _code(frame: Frame, encoded: float) -> float:
    return encoded * float(np.iinfo(frame.encoded.dtype).max)
