"""Who is compared: ways from a scene's bracket to radiance, ours and OpenCV's, and other people's results from files.

A method sees a scene's bracket, never its truth (`run` takes it away first); `oracle` and `held-truth` alone do. OpenCV's methods take
frames shifted by its own AlignMTB, as its users have them. Methods that know the response are scored as they are. The others know radiance
only up to one factor, which `metrics.fitted_scale` gives them (rows keep the factor, and PSNR without it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from gmodiff.calibrate import calibrate
from gmodiff.datasets.published import read_float_picture
from gmodiff.datasets.scene import Scene, fingerprint
from gmodiff.errors import FileFormatError, InputError
from gmodiff.estimate import Estimate, Estimator
from gmodiff.evaluate.oracle import NotApplicable, oracle
from gmodiff.image import Bracket
from gmodiff.model_card import Model
from gmodiff.pipeline import reconstruct_radiance
from gmodiff.radiometry import F32, srgb_decode
from gmodiff.refine import Refinement
from gmodiff.runtime import DEFAULT_MODEL, load_card, load_model, load_refiner, state_of

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Method:
    """A name, what it does in a sentence, and how: a scene to (H, W, 3) float32 radiance, 1.0 = the reference's white.

    fitted: it cannot know the scale of its radiance, so one factor is fitted before scoring.
    timed: its time and memory are its own; those of reading somebody's file are not.
    sees_truth: it is given the scene whole.   prepare: what happens once and is not timed, such as loading weights.
    state: name of a scene to a text that changes with what the method's result rests on beyond the scene and this project's code.
    """

    name: str
    about: str
    run: Callable[[Scene], F32]
    fitted: bool = False
    timed: bool = True
    sees_truth: bool = False
    prepare: Callable[[], object] = lambda: None
    state: Callable[[str], str] = lambda scene: ""


def method(name: str) -> Method:
    """A method by name: one of METHODS, saved:FOLDER, model:CARD, model:CARD@HOW, or SHOWN= before either.

    model: a network by the path of its card.   HOW: auto: the response fitted; refine: its refiner at full strength; exact: in float32
    throughout.   SHOWN: what tables call it.

    Raises InputError for other names, and for a folder or card that is not there.
    """
    if name in METHODS:
        return METHODS[name]
    shown, found, card = name.partition("model:")
    if found and card and (not shown or _is_label(shown)):
        path, _, how = card.partition("@")
        if how not in ("", "auto", "refine", "exact"):
            raise InputError(f"method {name!r}: after @ expected auto, refine or exact")
        load_card(path)
        return _learned(shown.removesuffix("=") or name, path, how, f"the network of {path}")
    shown, found, _ = name.partition("saved:")
    if found and (not shown or _is_label(shown)):
        return _saved(name)
    raise InputError(f"method {name!r}: expected {', '.join(METHODS)}, saved:FOLDER, model:CARD, or NAME= before either")


def _is_label(shown: str) -> bool:
    return shown.endswith("=") and bool(shown[:-1].strip()) and shown[:-1] not in METHODS


# ---- this project, and the reference alone --------------------------------------------------------------------------------


def _reference(scene: Scene) -> F32:
    bracket = scene.bracket
    return bracket.response.linearise(bracket.frames[bracket.reference].encoded)


def _classical(scene: Scene) -> F32:
    return reconstruct_radiance(scene.bracket).radiance


def _classical_auto(scene: Scene) -> F32:
    return reconstruct_radiance(_as_fitted(scene.bracket)).radiance


def _as_fitted(bracket: Bracket) -> Bracket:
    """The bracket as a user has it: exposures from EXIF, response and small corrections of the exposures from the pixels."""
    exposures, response, calibration = calibrate(
        bracket.frames,
        reference=bracket.reference,
        exposures_known=True,
        exposure_source="exif",
        response=None,
        transfer=bracket.colour.transfer,
    )
    frames = tuple(replace(f, exposure=e) for f, e in zip(bracket.frames, exposures, strict=True))
    return Bracket(frames, bracket.reference, response, bracket.colour, calibration)


@lru_cache(maxsize=2)
def _model(card: str, exact: bool) -> Model:
    return load_model(card, exact=exact)


@lru_cache(maxsize=2)
def _refined_model(card: str) -> Estimator:
    return Estimator(_model(card, False), refinement=Refinement(load_refiner(card)))


def _learned(name: str, card: str, how: str, about: str) -> Method:
    """how: see `method`."""

    def prepared() -> Model | Estimator:
        return _refined_model(card) if how == "refine" else _model(card, how == "exact")

    def run(scene: Scene) -> F32:
        return reconstruct_radiance(_as_fitted(scene.bracket) if how == "auto" else scene.bracket, prepared()).radiance

    return Method(name, about, run, how == "auto", prepare=prepared, state=lambda scene: _state_of(card, how == "refine"))


@lru_cache(maxsize=8)
def _state_of(card: str, refined: bool) -> str:
    """Asked for every scene."""
    return state_of(card, refined=refined)


@dataclass(frozen=True)
class _Truth:
    """The truth in a model's place (`estimate.Estimates`), the merge where nobody knows it."""

    truth: F32
    known: NDArray[np.bool_] | None

    def __call__(self, bracket: Bracket, alignments: object, merged: F32, *, progress: object = None) -> Estimate:
        """All that an estimate can be."""
        return Estimate(self.truth if self.known is None else np.where(self.known[..., None], self.truth, merged))


def _held_truth(scene: Scene) -> F32:
    """What the pipeline leaves of a perfect estimate: what the reference measured stays near the merge; what stood still is the merge."""
    if scene.truth is None:
        raise NotApplicable(f"{scene.name} has no ground truth: there is nothing to hold")
    return reconstruct_radiance(scene.bracket, _Truth(scene.truth, scene.known)).radiance


# ---- OpenCV ---------------------------------------------------------------------------------------------------------------

CALIBRATION_PIXELS = 60_000
"""Size to which pictures are reduced for Robertson's calibration, whose time grows with every pixel and round."""


def _eight_bit(bracket: Bracket) -> list[U8]:
    """The frames as OpenCV's HDR functions take them."""
    frames = [f.encoded if f.encoded.dtype == np.uint8 else np.rint(f.encoded / np.float32(257)).astype(np.uint8) for f in bracket.frames]
    return [np.ascontiguousarray(f) for f in frames]


def _shifted(bracket: Bracket) -> list[U8]:
    """The frames shifted onto the reference by median threshold bitmaps (Ward 2003), edges repeated."""
    frames = _eight_bit(bracket)
    # Its search reaches 2**bits pixels; the default of 6 finds chance matches across a small picture.
    mtb = cv2.createAlignMTB(max_bits=int(np.clip(np.log2(min(bracket.shape) / 20), 1, 6)))
    grey = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames]
    height, width = grey[0].shape
    for i, frame in enumerate(frames):
        if i != bracket.reference:
            dx, dy = mtb.calculateShift(grey[bracket.reference], grey[i])
            rows, columns = np.clip(np.arange(height) - dy, 0, height - 1), np.clip(np.arange(width) - dx, 0, width - 1)
            frames[i] = np.ascontiguousarray(frame[rows][:, columns])
    return frames


def _opencv_merge(scene: Scene, kind: str, auto: bool) -> F32:
    bracket = scene.bracket
    frames = _shifted(bracket)
    times = np.asarray(bracket.relative_exposures, np.float32)
    response: NDArray[Any]
    if not auto:
        response = bracket.response.codes(np.dtype(np.uint8))
        response[0] = response[1] / 4  # Debevec takes the logarithm
        response = np.ascontiguousarray(response[:, None, :])
    elif kind == "debevec":
        response = cv2.createCalibrateDebevec().process(frames, times)
    else:
        shrink = (CALIBRATION_PIXELS / frames[0][..., 0].size) ** 0.5
        small = [cv2.resize(f, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_NEAREST) if shrink < 1 else f for f in frames]
        response = cv2.createCalibrateRobertson().process(small, times)
    merger = cv2.createMergeDebevec() if kind == "debevec" else cv2.createMergeRobertson()
    merged = np.asarray(merger.process(frames, times, response), np.float32)
    return np.maximum(np.nan_to_num(merged, nan=0.0, posinf=65504.0, neginf=0.0), 0.0)


def _mertens(scene: Scene) -> F32:
    fused = np.asarray(cv2.createMergeMertens().process(_shifted(scene.bracket)))
    return np.asarray(srgb_decode(np.clip(fused, 0, 1)), np.float32)


METHODS = {
    m.name: m
    for m in (
        Method("reference", "the reference frame alone, linearised", _reference),
        Method("debevec", "OpenCV MergeDebevec, told the response", partial(_opencv_merge, kind="debevec", auto=False)),
        Method("debevec-auto", "OpenCV MergeDebevec with its CalibrateDebevec", partial(_opencv_merge, kind="debevec", auto=True), True),
        Method("robertson", "OpenCV MergeRobertson, told the response", partial(_opencv_merge, kind="robertson", auto=False)),
        Method(
            "robertson-auto", "OpenCV MergeRobertson with its CalibrateRobertson", partial(_opencv_merge, kind="robertson", auto=True), True
        ),
        Method("mertens", "OpenCV MergeMertens, its picture decoded as sRGB (exposure fusion has no radiance)", _mertens, True),
        Method("classical", "this project without a network, told the response (or what the scene's photos all together give)", _classical),
        Method("classical-auto", "this project without a network, as used: the response fitted from the bracket", _classical_auto, True),
        _learned("compact", DEFAULT_MODEL, "", "this project's compact network, told the response as classical is"),
        _learned("compact-auto", DEFAULT_MODEL, "auto", "this project's compact network, as used: the response fitted from the bracket"),
        Method("oracle", "the best weighted mean of motionless frames, knowing the truth: the ceiling", oracle, sees_truth=True),
        Method("held-truth", "the truth in a network's place, held as its estimate is", _held_truth, sees_truth=True),
    )
}
"""Methods by name, in the order in which tables show them."""


# ---- other people's results -------------------------------------------------------------------------------------------------

SUFFIXES = (".exr", ".hdr", ".npy", ".tif", ".tiff")
SCALES = ("short", "reference", "fit")


def _saved(name: str) -> Method:
    shown, _, where = name.rpartition("saved:")
    folder, at, scale = where.rpartition("@")
    if not at or scale not in SCALES:
        folder, scale = where, "short"
    if not folder or not Path(folder).is_dir():
        raise InputError(f"{name}: {folder!r} is not a folder; give the folder of the outputs, as in saved:outputs@reference")
    about = f"outputs in files, 1.0 = {'a fitted scale' if scale == 'fit' else f'white of the {scale} frame'}"
    plain = f"saved:{folder.rstrip('/')}" + (f"@{scale}" if scale != "short" else "")
    run = partial(_read_saved, folder=Path(folder), scale=scale)
    state = partial(_state_of_saved, folder=Path(folder), scale=scale)
    return Method(shown.removesuffix("=") or plain, about, run, scale == "fit", timed=False, state=state)


def _state_of_saved(name: str, folder: Path, scale: str) -> str:
    """Of the files that could be a scene's output, and of their scale."""
    return fingerprint(scale, {s: p for s in SUFFIXES if (p := folder / f"{name}{s}").is_file()})


def _read_saved(scene: Scene, folder: Path, scale: str) -> F32:
    """The output of exactly this scene: FOLDER/NAME.exr (.hdr .npy .tif), and nothing of any other name."""
    found = [p for s in SUFFIXES if (p := folder / f"{scene.name}{s}").is_file()]
    if len(found) != 1:
        what = f"{len(found)} outputs ({', '.join(p.name for p in found[:3])})" if found else "no output"
        raise InputError(f"{folder} holds {what} for {scene.name}: expected one, {scene.name}.exr, .hdr, .npy or .tif")
    radiance = _pixels(found[0], scene.bracket.shape)
    return radiance * np.float32(scene.short_white) if scale == "short" else radiance


def _pixels(path: Path, shape: tuple[int, int]) -> F32:
    """Floats as stored: what was predicted is scored, not what a reader makes of it."""
    if path.suffix == ".npy":
        try:
            values: Any = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise FileFormatError(f"{path}: not a NumPy array ({str(error).splitlines()[0]})") from None
        if values.ndim != 3 or values.shape[2] != 3 or values.dtype.kind != "f":
            raise FileFormatError(f"{path}: {values.dtype} of shape {values.shape}, expected floating-point (H, W, 3), RGB")
        return np.asarray(values, np.float32)
    radiance, known = read_float_picture(path, shape)
    if known is not None:
        raise InputError(f"{path} holds {int((~known).sum())} pixels that are not finite")
    return radiance
