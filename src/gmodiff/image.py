"""The nouns: a Frame is one photo, a Bracket is photos of one scene at different exposures, an HDRImage is the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gmodiff.errors import InputError
from gmodiff.gainmap import GainMap
from gmodiff.radiometry import F32, SRGB, CameraResponse, ColourSpace, NoiseModel

MIN_FRAMES, MAX_FRAMES = 2, 16


class Progress(Protocol):
    """Called as a stage advances: its name, and how much of it is done, 0..1. It may raise to cancel the work."""

    def __call__(self, stage: str, fraction: float) -> None:
        """Stage is one of read, calibrate, align, merge, estimate, noise, render, write."""
        ...


@dataclass(frozen=True)
class Frame:
    """One photo of a bracket, upright, as stored.

    encoded: (H, W, 3) uint8 or uint16 over the full range of the type.
    exposure: relative exposure t*ISO/100/N^2 (only ratios matter); NaN while unknown.
    name: what messages call it, normally the file name.
    exif: raw EXIF block (TIFF structure without the "Exif\\0\\0" prefix), orientation already reset to 1; None if there is none.
    """

    encoded: NDArray[Any] = field(repr=False)
    exposure: float
    name: str
    exif: bytes | None = field(default=None, repr=False)
    noise: NoiseModel = field(default_factory=NoiseModel)

    def __post_init__(self) -> None:
        if self.encoded.ndim != 3 or self.encoded.shape[2] != 3 or self.encoded.dtype not in (np.uint8, np.uint16):
            raise InputError(
                f"{self.name}: expected (H, W, 3) uint8 or uint16 pixels, got {self.encoded.dtype} of shape {self.encoded.shape}"
            )

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.encoded.shape[0])

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.encoded.shape[1])


@dataclass(frozen=True)
class Calibration:
    """How exposures and response were found.

    exposure_source: "given", "exif", "exposure.txt" or "estimated".
    residual_stops / srgb_residual_stops: median |disagreement| in stops between each pair of neighbouring exposures under the
    response in use and under plain sRGB; NaN for a pair that shares too few valid pixels.
    notes: sentences for the user (what was assumed, what contradicted what, which frame disagrees).
    """

    exposure_source: str
    residual_stops: tuple[float, ...] = ()
    srgb_residual_stops: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bracket:
    """Frames of one scene, shortest exposure first, with the index of the reference frame.

    All frames have one size and one pixel type, exposures rise; InputError otherwise. `colour` is that of all of them.
    """

    frames: tuple[Frame, ...]
    reference: int
    response: CameraResponse = field(default_factory=lambda: CameraResponse.named("srgb"))
    colour: ColourSpace = SRGB
    calibration: Calibration = Calibration("given")

    def __post_init__(self) -> None:
        if not MIN_FRAMES <= len(self.frames) <= MAX_FRAMES:
            raise InputError(f"a bracket has {MIN_FRAMES} to {MAX_FRAMES} frames, got {len(self.frames)}")
        first = self.frames[0]
        for frame in self.frames[1:]:
            if frame.encoded.shape != first.encoded.shape:
                raise InputError(
                    f"{frame.name} is {frame.width}x{frame.height} but {first.name} is {first.width}x{first.height}: "
                    "all frames of a bracket must have the same size"
                )
            if frame.encoded.dtype != first.encoded.dtype:
                raise InputError(f"{frame.name} has {frame.encoded.dtype} pixels but {first.name} has {first.encoded.dtype}")
        if not 0 <= self.reference < len(self.frames):
            raise InputError(f"reference {self.reference} is not one of the {len(self.frames)} frames")
        exposures = [f.exposure for f in self.frames]
        if any(not np.isfinite(e) or e <= 0 for e in exposures) or exposures != sorted(exposures):
            raise InputError(f"exposures must be positive and in rising order, got {exposures}")

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of every frame."""
        return self.frames[0].height, self.frames[0].width

    @property
    def relative_exposures(self) -> tuple[float, ...]:
        """Exposure of each frame divided by the reference's: radiance = linear / relative exposure."""
        reference = self.frames[self.reference].exposure
        return tuple(f.exposure / reference for f in self.frames)


class Look(Protocol):
    """Turns scene-linear radiance into what a screen shows."""

    @property
    def name(self) -> str:
        """What files say they show."""
        ...

    @property
    def headroom(self) -> float:
        """Stops above SDR white that the brightest radiance is shown at."""
        ...

    def __call__(self, radiance: F32) -> F32:
        """(rows, W, 3) radiance to (rows, W, 3) display-linear light in the base's colour space, 1.0 = SDR white."""
        ...


@dataclass(frozen=True)
class HDRImage:
    """A merged photo: radiance is what was there, base and gain map are how it is shown.

    radiance: (H, W, 3) float32, scene-linear (or a rendition, see `content`), 1.0 = SDR diffuse white, in `colour` primaries.
    base: (H, W, 3) uint8, the SDR photo, sRGB transfer, in `base_colour` primaries; None where the file had none.
    gain_map: from base to the HDR rendition; None where the file had none.
    provenance: (H, W) uint8: 0 measured in the reference, 1 measured in an aligned frame, 2 inferred; None where unknown.
    degradation: (H, W) uint8, 0..255: where the model that made the radiance doubts it; None without a model, or unknown.
    look: the rendition the base and the gain map show; None where radiance already is the rendition.
    content: "scene" or "rendition": what radiance holds.
    exif: the reference's EXIF block, for the output. metadata: plain facts for people and for JSON.
    """

    radiance: F32 = field(repr=False)
    base: NDArray[np.uint8] | None = field(default=None, repr=False)
    gain_map: GainMap | None = field(default=None, repr=False)
    provenance: NDArray[np.uint8] | None = field(default=None, repr=False)
    degradation: NDArray[np.uint8] | None = field(default=None, repr=False)
    look: Look | None = field(default=None, repr=False)
    content: str = "scene"
    colour: ColourSpace = SRGB
    base_colour: ColourSpace = SRGB
    exif: bytes | None = field(default=None, repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def rendition(self, rows: slice = slice(None)) -> F32:
        """Rows of what an HDR screen shows: display-linear float32, 1.0 = SDR white, in `base_colour` primaries."""
        part = self.radiance[rows]
        return part if self.look is None else self.look(part)
