"""Response and exposures of a bracket from its own pixels: small copies, align, sample, fit, align again, choose.

A fit needs aligned samples, alignment needs matched exposures, so they take turns: neighbouring frames (which share the most valid pixels)
are aligned on copies of about `SMALL_SIDE` pixels with the measured family's mean curve, sampled, fitted; the pairs that moved are
aligned and sampled once more with what was found. `response` holds the fit and its conventions, `response_choice` what is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from gmodiff.align import Alignment, align_frame, warp_rows
from gmodiff.errors import InputError
from gmodiff.image import Calibration, Frame, Progress
from gmodiff.radiometry import CLIPPED_ENCODED, CameraResponse
from gmodiff.response import log2_of_response, response_of_log2, response_prior
from gmodiff.response_choice import ResponseChoice, choose_response
from gmodiff.ridge import BLACK_ENCODED, F64, NO_SAMPLES, PairSamples, disagreement_stops
from gmodiff.tiling import for_each_strip

SMALL_SIDE = 640
"""Longer side in pixels, about, of the copies that are aligned and sampled."""

SMALLEST_ALIGNED = 32
"""Shorter side in pixels of a copy below which there is nothing to align by."""

SAMPLED_PIXELS = 150_000
"""Pixels of a pair that are looked at, on a regular grid."""

LEVELS, SAMPLES_PER_LEVEL = 32, 400
"""Levels of the brighter frame, and samples kept at each per pair and channel: dark and bright count alike, whatever the scene shows."""

FEWEST_SAMPLES, TOO_FEW_SAMPLES = 24, 300
"""Samples of a pair below which it shares nothing, and below which it is left out of the fit."""

REALIGNED_STOPS = 0.08
"""Disagreement left from which a pair that moved is aligned again, with the response found: below, it is mostly noise."""

LARGE_REFINEMENT_STOPS = 0.2
"""Change of a known ratio from which it is told to the user."""

OTHER_SCENE_STOPS = 1.0
"""Photos of one scene that disagree by more than this after calibration have nearly nothing in common."""
LARGE_DISAGREEMENT_STOPS = 0.25
"""Disagreement left from which the frame is named to the user."""


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
    """Exposures, response, and what they leave unexplained.

    frames: shortest first, by known exposure, else by brightness (Frame.exposure is then NaN). reference: index of the reference frame.
    exposures_known, exposure_source: whether and from where ("given", "exif", "exposure.txt") the exposures are known; "given" ones
    are never changed. response: use this one; None finds one. force_estimate: fit a curve even where a plain one does.
    linear: the frames are linear (RAW, float). transfer: the transfer function of the frames' colour profile, as `ColourSpace.transfer`.

    Returns relative exposures in the order of the frames (the reference's is unchanged where known, else 1), the response, and the
    Calibration. Raises InputError where two neighbouring frames share no pixel that both measured, or too few to find their exposures.
    """

    def report(fraction: float) -> None:
        if progress is not None:
            progress("calibrate", fraction)

    report(0.0)
    given = CameraResponse.named("linear") if response is None and linear and not force_estimate else response
    known = [math.log2(b.exposure / a.exposure) if exposures_known else math.nan for a, b in pairwise(frames)]
    small = _small_copies(frames)
    report(0.3)

    def choose() -> ResponseChoice:
        usable = [p if p.count >= TOO_FEW_SAMPLES else NO_SAMPLES for p in samples]
        exact = exposure_source == "given"
        return choose_response(usable, known, exact=exact, given=given, certain=linear, transfer=transfer, force_estimate=force_estimate)

    start = given or response_of_log2(response_prior().mean, "prior")
    every = range(len(frames) - 1)
    gathered = _gather(small, start, every)
    samples = [gathered[i][1] for i in every]
    _refuse_unshared(frames, samples, known)
    report(0.6)
    choice = choose()
    curves = log2_of_response(choice.response)
    # NaN, too few samples to tell, counts as loose.
    loose = [not disagreement_stops(p, curves, r) < REALIGNED_STOPS for p, r in zip(samples, choice.ratios, strict=True)]
    moved = [i for i in every if loose[i] and not gathered[i][0].is_identity]
    if moved:
        for i, (_, again) in _gather(small, choice.response, moved).items():
            samples[i] = again
        report(0.9)
        choice = choose()
    report(1.0)

    ratios = [r if math.isfinite(r) else k for r, k in zip(choice.ratios, known, strict=True)]
    exposures = np.exp2(np.concatenate([[0.0], np.cumsum(ratios)]))
    exposures /= exposures[reference]  # the reference's is 1 to the last bit
    scale = frames[reference].exposure if exposures_known else 1.0
    left = _disagreements(samples, choice.response, ratios)
    before = _disagreements(samples, CameraResponse.named("srgb"), ratios)
    notes = _notes(frames, known, exposure_source, choice, samples, left, response is not None)
    source = exposure_source if exposures_known else "estimated"
    return tuple(float(e * scale) for e in exposures), choice.response, Calibration(source, left, before, notes)


def _disagreements(samples: Sequence[PairSamples], response: CameraResponse, ratios: Sequence[float]) -> tuple[float, ...]:
    curves = log2_of_response(response)
    return tuple(
        disagreement_stops(pair, curves, ratio) if pair.count >= TOO_FEW_SAMPLES else math.nan
        for pair, ratio in zip(samples, ratios, strict=True)
    )


# ---- small copies and samples -------------------------------------------------------------------------------------------


def _small_copies(frames: Sequence[Frame]) -> list[Frame]:
    """Frames averaged down to about SMALL_SIDE, as uint16: the average of many codes is finer than a code."""
    factor = max(1, round(max(frames[0].height, frames[0].width) / SMALL_SIDE))
    factor = min(factor, frames[0].height, frames[0].width)
    height, width = frames[0].height // factor, frames[0].width // factor
    out = []
    for frame in frames:
        codes = np.empty((height, width, 3), np.uint16)
        scale = 65535 // int(np.iinfo(frame.encoded.dtype).max)

        def work(
            first: int, end: int, source: NDArray[np.uint8] = frame.encoded, codes: NDArray[np.uint16] = codes, scale: int = scale
        ) -> None:
            part = np.multiply(source[first * factor : end * factor, : width * factor], scale, dtype=np.uint16)
            codes[first:end] = cv2.resize(part, (width, end - first), interpolation=cv2.INTER_AREA) if factor > 1 else part

        for_each_strip(work, height, rows=16)
        out.append(replace(frame, encoded=codes, exif=None))
    return out


def _gather(small: Sequence[Frame], response: CameraResponse, indices: Sequence[int]) -> dict[int, tuple[Alignment, PairSamples]]:
    """Align and sample the pairs (i, i + 1) of some indices, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(indices, pool.map(partial(_align_and_sample, small, response), indices), strict=True))


def _align_and_sample(small: Sequence[Frame], response: CameraResponse, index: int) -> tuple[Alignment, PairSamples]:
    short, long = small[index], small[index + 1]
    # The fit takes its samples from smooth places, where what is left by a global motion does no harm.
    tiny = min(short.height, short.width) < SMALLEST_ALIGNED
    alignment = Alignment() if tiny else align_frame(short, long, response, dense=False)
    warped, coverage = warp_rows(long, alignment, 0, long.height)
    return alignment, _sample(short.encoded, warped, None if coverage is None else coverage > 0.9)


def _sample(short: NDArray[np.uint16], long: NDArray[np.uint16], covered: NDArray[np.bool_] | None) -> PairSamples:
    """Samples of two aligned images, (H, W, 3): at every brightness about as many, chosen at random, smoothest surroundings first."""
    step = max(1, round(math.sqrt(short.shape[0] * short.shape[1] / SAMPLED_PIXELS)))
    rows, columns = slice(step // 2, None, step), slice(step // 2, None, step)
    kernel = np.ones((3, 3), np.uint8)
    encoded, spread = [], np.zeros_like(short[rows, columns], np.float32)
    for image in (short, long):
        encoded.append(image[rows, columns] * np.float32(1 / 65535))
        contrast = cv2.morphologyEx(np.ascontiguousarray(image), cv2.MORPH_GRADIENT, kernel)[rows, columns] * np.float32(1 / 65535)
        spread += contrast / (encoded[-1] + np.float32(0.05))
    brighter = np.maximum(*encoded)
    valid = (brighter > BLACK_ENCODED) & (brighter < CLIPPED_ENCODED)
    if covered is not None:
        valid &= covered[rows, columns, None]
    rng = np.random.default_rng(0)
    chosen: list[tuple[F64, F64]] = []
    for c in range(3):
        at = np.flatnonzero(valid[..., c])
        x, y, rough, light = (image[..., c].ravel()[at] for image in (*encoded, spread, brighter))
        level = (light * LEVELS).astype(np.intp)
        share = SAMPLES_PER_LEVEL / np.maximum(np.bincount(level, minlength=LEVELS), 1)
        keep = np.flatnonzero(rng.random(len(at)) < share[level])
        keep = keep[np.argsort(rough[keep])]
        chosen.append((x[keep].astype(np.float64), y[keep].astype(np.float64)))
    (r, g, b) = chosen
    return PairSamples((r[0], g[0], b[0]), (r[1], g[1], b[1]))


# ---- words for the user -------------------------------------------------------------------------------------------------


def _refuse_unshared(frames: Sequence[Frame], samples: Sequence[PairSamples], known: Sequence[float]) -> None:
    """Raise InputError where neighbours share no valid pixel, or too few to tell an unknown exposure."""
    for a, b, pair, ratio in zip(frames[:-1], frames[1:], samples, known, strict=True):
        if pair.count >= (FEWEST_SAMPLES if math.isfinite(ratio) else TOO_FEW_SAMPLES):
            continue
        dark, bright = _share(a, below=BLACK_ENCODED), _share(b, above=CLIPPED_ENCODED)
        if pair.count >= FEWEST_SAMPLES:
            reason = "too few to find their exposures; say them with --exposures or --ev, or add a frame between them"
        elif dark > 0.999:
            reason = f"{a.name} is black throughout; leave it out"
        elif bright > 0.999:
            reason = f"{b.name} is clipped throughout; leave it out"
        else:
            reason = "they are too far apart or show different things; add a frame between them or leave one out"
        raise InputError(
            f"{a.name} and {b.name} share {'no' if pair.count < FEWEST_SAMPLES else 'hardly any'} valid pixels "
            f"({100 * dark:.0f} % of {a.name} is black, {100 * bright:.0f} % of {b.name} is clipped): {reason}"
        )


def _share(frame: Frame, *, below: float = -1.0, above: float = 2.0) -> float:
    """Share of samples of a frame at or below, or at or above, an encoded value."""
    encoded = frame.encoded[::7, ::7] / np.iinfo(frame.encoded.dtype).max
    return float(np.mean((encoded <= below) | (encoded >= above)))


def _notes(
    frames: Sequence[Frame],
    known: Sequence[float],
    source: str,
    choice: ResponseChoice,
    samples: Sequence[PairSamples],
    left: Sequence[float],
    is_given: bool,
) -> tuple[str, ...]:
    """What was assumed, what contradicted what, and which frames still disagree."""
    notes = []
    says = {"exif": "EXIF says", "given": "the exposures given say"}.get(source, f"{source} says")
    for i, wrong in enumerate(choice.contradicted):
        if wrong:
            text = f"{frames[i + 1].name}: {says} {known[i]:+.1f} stops from {frames[i].name}, pixels say {choice.pixel_ratios[i]:+.1f}"
            hint = " (a hand-set lens reports no aperture)" if source == "exif" else ""
            notes.append(f"{text}; used as given" if source == "given" else f"{text}; using {choice.ratios[i]:+.1f}{hint}")
        elif abs(choice.ratios[i] - known[i]) > LARGE_REFINEMENT_STOPS:  # False where unknown: NaN
            text = f"{frames[i + 1].name}: {says} {known[i]:+.2f} stops from {frames[i].name}"
            notes.append(f"{text}, refined by the pixels to {choice.ratios[i]:+.2f}")
    for i, pair in enumerate(samples):
        if pair.count < TOO_FEW_SAMPLES:
            notes.append(
                f"{frames[i].name} and {frames[i + 1].name} share too few valid pixels to be compared; their exposures are not checked"
            )
    if choice.own_channels:
        notes.append("the colour channels have curves of their own; greys may shift slightly with brightness")
    cause = "the response given is not this camera's" if is_given else "a camera setting changed"
    large = [stops > LARGE_DISAGREEMENT_STOPS for stops in left]
    named: set[int] = set()
    for i, is_large in enumerate(large):
        if not is_large or i in named:
            continue
        if i + 1 < len(large) and large[i + 1]:
            named.add(i + 1)
            apart = max(left[i], left[i + 1])
            text = f"{frames[i + 1].name} disagrees with its neighbours by {left[i]:.2f} and {left[i + 1]:.2f} stops"
        else:
            apart = left[i]
            text = f"{frames[i].name} and {frames[i + 1].name} disagree by {left[i]:.2f} stops"
        others = ", or these are photos of different scenes (gmodiff batch sorts a folder of them)" if apart > OTHER_SCENE_STOPS else ""
        notes.append(f"{text} after calibration: something moved everywhere, or {cause}{others}")
    return tuple(notes)
