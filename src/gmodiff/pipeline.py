"""The road of one bracket, on one page: align, merge, estimate, constrain (less noise, constrained again), render. Start reading here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmodiff.align import Alignment
from gmodiff.align import align as align_bracket
from gmodiff.errors import InputError
from gmodiff.estimate import Estimates, estimator
from gmodiff.image import Bracket, Frame, HDRImage, Progress
from gmodiff.merge import Merged, merge
from gmodiff.model_card import Model
from gmodiff.provenance import constrain, summarise
from gmodiff.radiometry import F32
from gmodiff.stillness import hold_where_still
from gmodiff.tonemap import DEFAULT_HEADROOM_STOPS, in_published_primaries, render


@dataclass(frozen=True)
class Reconstruction:
    """Radiance before it is rendered: (H, W, 3) float32, 1.0 = the reference's white; (H, W) provenance; how frames were aligned.

    degradation: (H, W) uint8, 0..255, where the model doubts its own estimate; None without a model.   noise_reduced: whether it was,
    where the reference measured (`noise_reduction`).   network, refine: see `estimate.Estimate`.
    """

    radiance: F32 = field(repr=False)
    provenance: NDArray[np.uint8] = field(repr=False)
    alignments: tuple[Alignment, ...]
    degradation: NDArray[np.uint8] | None = field(default=None, repr=False)
    noise_reduced: bool = False
    network: str | None = None
    refine: float = 0.0

    def towards(self, model: Reconstruction, share: float) -> Reconstruction:
        """From this, the classical result, some of the way to a model's: 0 is this, 1 the model's.

        Between, a mean of the light, so that what holds for both holds for it. Raises InputError for another share.
        """
        if not 0 <= share <= 1:
            raise InputError(f"share {share:g}: expected 0 (the classical merge) to 1 (all that the network says)")
        if share in (0, 1):
            return model if share else self
        return replace(model, radiance=self.radiance + np.float32(share) * (model.radiance - self.radiance))


def reconstruct_radiance(
    bracket: Bracket, model: Model | Estimates | None = None, *, align: bool = True, progress: Progress | None = None
) -> Reconstruction:
    """`reconstruct` without the rendering: align, merge, estimate, constrain, less noise. Radiance is in the bracket's own primaries."""
    alignments = aligned(bracket, align=align, progress=progress)
    merged = merge(bracket, alignments, with_motion=model is not None, progress=_step(progress, "merge"))
    return estimated(bracket, alignments, merged, model, progress=progress)


def aligned(bracket: Bracket, *, align: bool = True, progress: Progress | None = None) -> tuple[Alignment, ...]:
    """Where the reference's pixels are found in each frame; align: False leaves every frame as it is."""
    return tuple(align_bracket(bracket, progress=_step(progress, "align")) if align else (Alignment() for _ in bracket.frames))


def estimated(
    bracket: Bracket,
    alignments: tuple[Alignment, ...],
    merged: Merged,
    model: Model | Estimates | None,
    *,
    keep: bool = False,
    progress: Progress | None = None,
) -> Reconstruction:
    """What a model makes of a merged bracket, constrained; the merge itself, constrained, without one.

    merged: with `Merged.moved` where there is a model.   keep: leave `merged.radiance` as it is; else it becomes the result.
    """
    reference = bracket.frames[bracket.reference]
    provenance, degradation, held_to, shares, reducer = merged.provenance, None, None, None, None
    network, refine = None, 0.0
    radiance = np.array(merged.radiance) if keep and model is None else merged.radiance
    if model is not None:
        estimate = estimator(model)(bracket, alignments, merged.radiance, progress=_step(progress, "estimate"))
        if estimate.radiance.shape != radiance.shape:
            raise InputError(f"the model returned radiance of shape {estimate.radiance.shape}, expected {radiance.shape}")
        # What follows works in place.
        radiance = estimate.radiance if estimate.fresh else np.array(estimate.radiance, np.float32)
        held = False if estimate.everywhere else hold_where_still(radiance, merged, reference.encoded)
        provenance, degradation = np.where(held, provenance, estimate.relabelled(provenance)), estimate.degradation
        held_to, reducer = merged.radiance, estimate.noise_reducer
        network, refine = estimate.network, estimate.refine
        del estimate  # as large as the picture
    measured = reference.encoded, bracket.response, reference.noise
    constrain(radiance, *measured, merged=held_to, out=radiance)
    if reducer is not None:
        shares = reducer(bracket, radiance, merged.radiance, progress=_step(progress, "noise"))
        if shares is not None:
            constrain(radiance, *measured, merged=held_to, shares=shares, out=radiance)
    return Reconstruction(radiance, provenance, alignments, degradation, noise_reduced=shares is not None, network=network, refine=refine)


def _step(progress: Progress | None, stage: str) -> Callable[[float], None] | None:
    return None if progress is None else lambda fraction: progress(stage, fraction)


def reconstruct(
    bracket: Bracket,
    model: Model | Estimates | None = None,
    *,
    align: bool = True,
    look: str = "camera",
    base: str = "tonemap",
    headroom: float = DEFAULT_HEADROOM_STOPS,
    progress: Progress | None = None,
) -> HDRImage:
    """Reconstruct the radiance of a bracket, and render it.

    model: from `load_model`; None for the classical result (measured samples only, smooth continuation where there are none).
    align: False for frames known to be registered. look, base, headroom: see `tonemap.render`.
    Raises InputError where the model returns another shape. Whatever it says, what the reference frame measured stays within half a
    deviation of its noise of the classical merge, and inside the radiance interval of its codes (`provenance.constrain`).
    """
    made = reconstruct_radiance(bracket, model, align=align, progress=progress)
    return finished(made, bracket, look=look, base=base, headroom=headroom, progress=progress)


def finished(
    made: Reconstruction,
    bracket: Bracket,
    *,
    look: str = "camera",
    base: str = "tonemap",
    headroom: float = DEFAULT_HEADROOM_STOPS,
    progress: Progress | None = None,
) -> HDRImage:
    """Render what `reconstruct_radiance` made: the last step of `reconstruct`, again and again where somebody tries settings.

    The picture takes `made.radiance` over, and brings it in place to primaries that other programs know.
    """
    reference = bracket.frames[bracket.reference]
    rendered = render(made.radiance, bracket, look=look, base=base, max_headroom=headroom, progress=_step(progress, "render"))
    summary = summarise(made.provenance, made.radiance, bracket.relative_exposures[-1])
    shown_as, colour = in_published_primaries(made.radiance, rendered.look, bracket.colour)
    return HDRImage(
        radiance=made.radiance,
        base=rendered.base,
        gain_map=rendered.gain_map,
        provenance=made.provenance,
        degradation=made.degradation,
        look=shown_as,
        colour=colour,
        base_colour=rendered.colour,
        exif=reference.exif,
        metadata={
            "provenance": summary.as_dict(),
            "look": look,
            "base": base,
            "brightest_stops": rendered.look.content_stops,
            "reference": reference.name,
            "network": made.network,
            "refine": made.refine,
            "noise_reduced": made.noise_reduced,
            "alignment": [_motion(f, a) for f, a in zip(bracket.frames, made.alignments, strict=True)],
        },
    )


def _motion(frame: Frame, alignment: Alignment) -> dict[str, Any]:
    """What alignment did to one frame, for people and for JSON; shifts in pixels at the frame's centre."""
    if alignment.is_identity:
        return {"name": frame.name, "motion": "left as it is", "shift_px": 0.0, "dense": False}
    shift = 0.0
    if alignment.homography is not None:
        centre = np.array([frame.width / 2, frame.height / 2, 1.0])
        moved = alignment.homography @ centre
        shift = float(np.hypot(*(moved[:2] / moved[2] - centre[:2])))
    dense = alignment.flow is not None
    whole = f"moved {shift:.1f} px as a whole" if alignment.homography is not None else "held still"
    motion = whole + (", moving parts followed" if dense else "")
    errors = f" (disagreement {alignment.error_before:.3f} to {alignment.error_after:.3f} stops)"
    return {"name": frame.name, "motion": motion + errors, "shift_px": round(shift, 2), "dense": dense}
