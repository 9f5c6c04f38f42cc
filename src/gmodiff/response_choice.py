"""Which response and which exposures explain a bracket: known ratios checked against the pixels, a plain curve where one does.

Works on samples (`ridge.PairSamples`) alone. A *ratio* is log2(exposure of the longer frame / of the shorter), in stops, of a pair of
neighbours. The pixels know all ratios of a bracket up to one common factor, the exponent of the curve; a known ratio contradicts the
pixels where no factor that a camera may have brings them within `CONTRADICTION_STOPS`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gmodiff.radiometry import CameraResponse
from gmodiff.response import ResponseFit, fit_channels, fit_response, log2_of_response, response_of_log2
from gmodiff.ridge import NO_SAMPLES, PairSamples, Ridge, disagreement_stops, find_ridges, ridge_misfit, ridge_ratio

CONTRADICTION_STOPS = 0.5
"""A known ratio further than this from what the pixels say is wrong."""

LARGEST_SCATTER_STOPS = 0.4
"""Median disagreement of a pair's samples under their own best ratio from which they are no evidence (real brackets: up to 0.25)."""

RATIO_SIGMA_STOPS = 0.07
"""Doubt about a known ratio: nominal 1/30 s is 1/32 s (0.09 stop), and shutters and daylight vary."""

FAMILY_FACTORS = (0.8, 1.25)
"""How far a camera's exponent may lie from the measured family's mean."""

PLAIN_MARGIN, PLAIN_MARGIN_STOPS, PLAIN_LIMIT_STOPS = 1.5, 0.012, 0.08
"""A plain curve is preferred where its misfit is at most the fitted curve's times the first plus the second, and below the third."""

CHANNEL_GAIN_STOPS, CHANNEL_GAIN = 0.03, 0.5
"""Channels get curves of their own where that lowers the misfit by more than the one, to less than the other times what it was.

Of 14 real brackets none demands it: what separates channels there is saturation added after the tone curve, not a curve.
"""


@dataclass(frozen=True)
class ResponseChoice:
    """response: the curve in use. ratios: per pair in stops; NaN where nothing is known and the pair has no samples.

    pixel_ratios: what the pixels say, with the exponent of the chosen explanation; NaN without samples.
    contradicted: per pair, whether the known ratio is further than CONTRADICTION_STOPS from that.
    own_channels: whether the channels have curves of their own.
    """

    response: CameraResponse
    ratios: tuple[float, ...]
    pixel_ratios: tuple[float, ...]
    contradicted: tuple[bool, ...]
    own_channels: bool = False


@dataclass(frozen=True)
class _Explanation:
    """Ratios that the pixels have under one kind of curve, the factors between which its exponent is free, and a handicap in stops."""

    ratios: tuple[float, ...]
    lowest: float
    highest: float
    unlikely: float = 0.0


def choose_response(
    pairs: Sequence[PairSamples],
    known: Sequence[float],
    *,
    exact: bool = False,
    given: CameraResponse | None = None,
    certain: bool = False,
    transfer: str = "srgb",
    force_estimate: bool = False,
) -> ResponseChoice:
    """The response and ratios that explain the samples best.

    pairs: one entry per pair of neighbours, `NO_SAMPLES` where it shares too little. known: ratio of each pair, all NaN where unknown.
    exact: the known ratios are never changed. given: the response to use; certain: it is beyond doubt (linear frames).
    transfer: of the frames' colour profile (`ColourSpace`). force_estimate: fit a curve even where a plain one does.
    """
    is_known = all(math.isfinite(k) for k in known)
    if given is not None and (certain or not is_known):
        return _with_certain(pairs, known, given, exact)
    fit, ridges = fit_response(pairs, [math.nan] * len(pairs), ratio_sigmas=[math.inf] * len(pairs))
    if is_known:
        # What fits nothing (another scene, a failed alignment) has no say about exposures that are known.
        scatter = [disagreement_stops(p, fit.log2_curves, r) for p, r in zip(pairs, fit.log2_ratios, strict=True)]
        if any(s > LARGEST_SCATTER_STOPS for s in scatter):
            pairs = [NO_SAMPLES if s > LARGEST_SCATTER_STOPS else p for p, s in zip(pairs, scatter, strict=True)]
            fit, ridges = fit_response(pairs, [math.nan] * len(pairs), ratio_sigmas=[math.inf] * len(pairs))
    plain = [] if force_estimate else [CameraResponse.named(name) for name in _plain_names(transfer)]
    nothing = tuple(False for _ in pairs)
    if not is_known:
        return _with_unknown(plain, fit, ridges, nothing)
    pixels, contradicted = _reconcile(known, _explanations(fit, ridges, given))
    if given is not None:
        said = [ridge_ratio(r, log2_of_response(given)) for r in ridges]
        trusted = [k if exact or not wrong else p for k, p, wrong in zip(known, pixels, contradicted, strict=True)]
        return ResponseChoice(given, tuple(trusted if exact else _refined(trusted, said, contradicted)), pixels, contradicted)
    if not exact and all(wrong or not math.isfinite(p) for wrong, p in zip(contradicted, pixels, strict=True)) and any(contradicted):
        return _with_unknown(plain, fit, ridges, contradicted, fallback=known)

    trusted = [k if exact or not wrong else p for k, p, wrong in zip(known, pixels, contradicted, strict=True)]
    sigmas = [0.0 if exact else math.inf if wrong else RATIO_SIGMA_STOPS for wrong in contradicted]
    factor = _mean_rise(trusted) / _mean_rise(fit.log2_ratios)
    fit, ridges = fit_response(pairs, trusted, ratio_sigmas=sigmas, start=fit.log2_curves * (factor if factor > 0 else 1.0))
    ratios = tuple(t if exact or not math.isfinite(r) else r for t, r in zip(trusted, fit.log2_ratios, strict=True))
    best, chosen = _plain_limit(fit), None
    for response in plain:
        curves = log2_of_response(response)
        own = trusted if exact else _refined(trusted, [ridge_ratio(r, curves) for r in ridges], contradicted)
        misfit = ridge_misfit(ridges, curves, own)
        if misfit < best:
            best, chosen = misfit, ResponseChoice(response, tuple(own), pixels, contradicted)
    return chosen or _with_channels(ResponseFit(fit.log2_curves, ratios, fit.misfit), ridges, pixels, contradicted)


def _plain_names(transfer: str) -> list[str]:
    """Plain curves worth trying: the usual ones and what the colour profile says."""
    names = ["srgb", "gamma2.2", "linear"]
    return names if transfer in names else [f"gamma{transfer}", *names]


def _with_certain(pairs: Sequence[PairSamples], known: Sequence[float], given: CameraResponse, exact: bool) -> ResponseChoice:
    """Under a response that leaves no exponent open the pixels measure the ratios."""
    curves = log2_of_response(given)
    ridges = find_ridges(pairs, curves, [math.nan] * len(pairs))
    ridges = find_ridges(pairs, curves, [ridge_ratio(r, curves) for r in ridges], CONTRADICTION_STOPS)
    said = tuple(ridge_ratio(r, curves) for r in ridges)
    contradicted = tuple(abs(s - k) > CONTRADICTION_STOPS for s, k in zip(said, known, strict=True))  # False where one is NaN
    ratios = tuple(k if exact or not math.isfinite(s) else s for s, k in zip(said, known, strict=True))
    return ResponseChoice(given, ratios, said, contradicted)


def _with_channels(
    fit: ResponseFit, ridges: Sequence[Sequence[Ridge]], pixels: tuple[float, ...], contradicted: tuple[bool, ...]
) -> ResponseChoice:
    """The fitted curve, with one per channel where the evidence demands it."""
    own = fit_channels(ridges, fit)
    demanded = own.misfit < min(CHANNEL_GAIN * fit.misfit, fit.misfit - CHANNEL_GAIN_STOPS)
    best = own if demanded else fit
    return ResponseChoice(response_of_log2(best.log2_curves, "estimated"), best.log2_ratios, pixels, contradicted, demanded)


def _with_unknown(
    plain: Sequence[CameraResponse],
    fit: ResponseFit,
    ridges: Sequence[Sequence[Ridge]],
    contradicted: tuple[bool, ...],
    fallback: Sequence[float] | None = None,
) -> ResponseChoice:
    """Curve and ratios where no ratio can be trusted: a plain curve whose shape is as good as the fitted one's, else the family's exponent.

    All power laws have one shape; gamma 2.2 stands for them, and linear, which nobody stores without saying so, is out.
    """
    limit, best = _plain_shape_limit(fit), None
    for response in plain:
        misfit = math.inf if response.is_linear else _shape_misfit(response, ridges)
        if misfit < limit:
            limit, best = misfit, response
    curves = fit.log2_curves if best is None else log2_of_response(best)
    said = fit.log2_ratios if best is None else tuple(ridge_ratio(r, curves) for r in ridges)
    ratios = said if fallback is None else tuple(s if math.isfinite(s) else k for s, k in zip(said, fallback, strict=True))
    if best is not None:
        return ResponseChoice(best, ratios, said, contradicted)
    return _with_channels(ResponseFit(fit.log2_curves, ratios, fit.misfit), ridges, said, contradicted)


def _plain_limit(fit: ResponseFit) -> float:
    """Largest misfit in stops with which a plain curve is as good as the fitted one."""
    return min(PLAIN_MARGIN * fit.misfit + PLAIN_MARGIN_STOPS, PLAIN_LIMIT_STOPS)


def _plain_shape_limit(fit: ResponseFit) -> float:
    """The same per stop of ratio, for a curve with ratios of its own."""
    return _plain_limit(fit) / max(_mean_rise(fit.log2_ratios), 1e-3)


def _shape_misfit(response: CameraResponse, ridges: Sequence[Sequence[Ridge]]) -> float:
    """Misfit of a curve with its own best ratios, per stop of ratio (a flatter curve has smaller misfits and ratios alike)."""
    curves = log2_of_response(response)
    ratios = [ridge_ratio(r, curves) for r in ridges]
    return ridge_misfit(ridges, curves, ratios) / max(_mean_rise(ratios), 1e-3)


def _mean_rise(ratios: Sequence[float]) -> float:
    """Mean |ratio| in stops of the pairs that have one; NaN where none has."""
    finite = [abs(r) for r in ratios if math.isfinite(r)]
    return sum(finite) / len(finite) if finite else math.nan


def _explanations(fit: ResponseFit, ridges: Sequence[Sequence[Ridge]], given: CameraResponse | None) -> list[_Explanation]:
    """The measured family, the response given, and the plain curves whose shape the pixels allow."""
    out = [_Explanation(fit.log2_ratios, *FAMILY_FACTORS)]
    if given is not None:
        curves = log2_of_response(given)
        out.append(_Explanation(tuple(ridge_ratio(r, curves) for r in ridges), 0.95, 1.05))
    for name, lowest, highest, unlikely in (("srgb", 0.9, 1.1, 0.0), ("gamma2.2", 0.75, 1.2, 0.0), ("linear", 0.95, 1.05, 0.15)):
        response = CameraResponse.named(name)
        if _shape_misfit(response, ridges) <= _plain_shape_limit(fit):
            curves = log2_of_response(response)
            out.append(_Explanation(tuple(ridge_ratio(r, curves) for r in ridges), lowest, highest, unlikely))
    return out


def _reconcile(known: Sequence[float], explanations: Sequence[_Explanation]) -> tuple[tuple[float, ...], tuple[bool, ...]]:
    """(what the pixels say, whether the known ratio contradicts it) per pair, under the explanation that contradicts least.

    Disagreements beyond CONTRADICTION_STOPS count alike, so one wrong exposure does not bend the others.
    """
    best: tuple[float, tuple[float, ...]] | None = None
    for explanation in explanations:
        middle = math.sqrt(explanation.lowest * explanation.highest)
        for factor in np.geomspace(explanation.lowest, explanation.highest, 41):
            said = tuple(float(factor) * r for r in explanation.ratios)
            apart = [abs(k - s) for k, s in zip(known, said, strict=True) if math.isfinite(s)]
            cost = sum(min(d, CONTRADICTION_STOPS) for d in apart) + 0.1 * abs(math.log2(factor / middle)) + explanation.unlikely
            if best is None or cost < best[0] - 1e-12:
                best = cost, said
    pixels = best[1] if best is not None else tuple(known)
    return pixels, tuple(math.isfinite(p) and abs(k - p) > CONTRADICTION_STOPS for k, p in zip(known, pixels, strict=True))


def _refined(trusted: Sequence[float], said: Sequence[float], contradicted: Sequence[bool]) -> list[float]:
    """Trusted ratios moved towards what the pixels say by at most twice the doubt, their sum kept; contradicted ones follow the pixels."""
    free = [math.isfinite(s) and not wrong for s, wrong in zip(said, contradicted, strict=True)]
    shift = [s - t if f else 0.0 for s, t, f in zip(said, trusted, free, strict=True)]
    mean = sum(shift) / max(sum(free), 1)
    limit = 2 * RATIO_SIGMA_STOPS
    moved = [min(max(d - mean, -limit), limit) if f else 0.0 for d, f in zip(shift, free, strict=True)]
    return [s if wrong and math.isfinite(s) else t + m for t, s, m, wrong in zip(trusted, said, moved, contradicted, strict=True)]
