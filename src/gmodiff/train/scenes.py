"""What networks are trained on: simulated brackets, aligned and merged by the same code that users run.

A scene is drawn from (seed, number) alone, so that any machine renders the same one in any order, and a run can go on where it was
killed. Rendering costs about three seconds; a cache folder keeps what was rendered.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gmodiff.align import align, warp_rows
from gmodiff.calibrate import LARGE_DISAGREEMENT_STOPS, calibrate
from gmodiff.datasets.held_out import TEST_CAMERAS, training_pictures
from gmodiff.datasets.measured_responses import known_cameras, measured_response
from gmodiff.datasets.pictures import HDR_SUFFIXES, exposed, read_radiance
from gmodiff.datasets.scene import fingerprint
from gmodiff.datasets.static import static_truth
from gmodiff.errors import GMODiffError, InputError, OutputError
from gmodiff.image import Bracket
from gmodiff.merge import merge
from gmodiff.moving_scene import Cutout, Motion, generator, piece_of
from gmodiff.radiometry import F32, CameraResponse, deviation_of_codes
from gmodiff.reader import read
from gmodiff.simulate import Camera, Simulation, render_bracket, simulate
from gmodiff.writer import replacing

SIZE_PX, MARGIN_PX = 768, 40
"""Side of a training scene, and the picture kept around it for shake. What moves is a share of the side, and people in photos are several
hundred pixels high, which scenes of 384 pixels do not show (docs/training.md says what a short run on larger ones brought).
"""
LEAST_HDR_PX, LEAST_HDR_STOPS = 64, 1.0
"""Rows of a panorama, and stops from the median to the brightest thousandth, that a training picture has at least."""
SCENE_STREAM, RENDER_STREAM, RENDERING_STREAM = 1000, 1001, 1003
"""Purposes of random streams, beside those of `simulate` and `crops`."""

RENDER_VERSION = 8
"""Raised whenever the same draw gives other pixels, so that caches are not taken for what they no longer are."""
VIEWS = 8
PLAIN_SHARE = 0.35
"""Of the scenes, taken with a camera that only measures (`_measurable`): raw developers and scientific cameras come near to it."""

LARGEST_RADIANCE = 6e4
"""Above this, radiance does not fit a half float."""


@dataclass(frozen=True)
class Sources:
    """Where scenes come from: HDR pictures, photos, and camera responses by name."""

    hdr: tuple[Path, ...]
    photos: tuple[Path, ...]
    responses: tuple[CameraResponse, ...] = field(repr=False)


def find_sources(data: Path, curves: Path | None = None) -> Sources:
    """Everything below a data folder that training may see (`held_out`); curves: measured responses, if there are any.

    Every picture is looked at before the first step: one that cannot be used would otherwise end a run after hours. Raises InputError
    for the first such picture, and where there is none at all.
    """
    hdr, photos = training_pictures(data)
    for path in hdr:
        _check_hdr(path)
    for path in photos:
        _check_photo(path)
    if not hdr and not photos:
        raise InputError(f"{data} holds no HDR picture (.hdr, .exr) and no photo (.jpg, .png) to train on, in it or one folder below")
    plain = [CameraResponse.named(n) for n in ("srgb", "srgb", "gamma1.8", "gamma2.0", "gamma2.2", "gamma2.4")]
    if curves is not None and not curves.is_file():
        raise InputError(f"--curves {curves}: there is no such file; leave it out to use responses/curves.json in --data, if it is there")
    where = data / "responses" / "curves.json" if curves is None else curves
    measured = [measured_response(where, c) for c in known_cameras(where) if c not in TEST_CAMERAS] if where.is_file() else []
    return Sources(tuple(hdr), tuple(photos), tuple(plain + measured))


def _check_hdr(path: Path) -> None:
    try:
        picture = read(path)
    except GMODiffError as error:
        raise InputError(f"{path}: {str(error).removeprefix(f'{path.name}: ')}; take it out of the training data") from None
    light = picture.radiance
    height, width = light.shape[:2]
    if picture.content != "scene":
        raise InputError(f"{path}: holds a {picture.metadata['format'] or 'photo'}, not linear light; take it out")
    broken = [note for note in picture.metadata["notes"] if "NaN" in note]  # the reader puts something in their place
    if broken or float(light.max()) <= 0:
        why = broken[0].partition(";")[0] if broken else "it is black all over"
        raise InputError(f"{path}: not a picture of light ({why}); take it out")
    if min(height, width) < LEAST_HDR_PX or (width != 2 * height and min(height, width) < SIZE_PX + 2 * MARGIN_PX):
        wanted = f"{SIZE_PX + 2 * MARGIN_PX} a side, or a panorama twice as wide as high of {LEAST_HDR_PX} rows"
        raise InputError(f"{path} is {width}x{height} pixels, expected at least {wanted}; take it out")
    positive = light.max(axis=-1)[light.max(axis=-1) > 0]
    stops = float(np.log2(np.quantile(positive, 0.999) / np.median(positive)))
    if stops < LEAST_HDR_STOPS:
        raise InputError(
            f"{path}: its brightest parts are {stops:.1f} stops above its median, so it is no linear HDR picture (expected "
            f"{LEAST_HDR_STOPS:g} or more): take it out, or give it as a photo (.jpg, .png)"
        )


def _check_photo(path: Path) -> None:
    try:
        with Image.open(path) as photo:
            width, height = photo.size
            photo.draft("RGB", (width // 8, height // 8))  # decoded to its end, but small
            photo.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # a broken PNG is a SyntaxError to Pillow
        raise InputError(f"{path}: not a photo that can be read ({error}); take it out of the training data") from None
    least = SIZE_PX + 2 * MARGIN_PX
    if min(width, height) < least:
        raise InputError(f"{path} is {width}x{height} pixels, expected {least} a side or more; take it out of the training data")


@dataclass(frozen=True)
class Draw:
    """What chance decided about a scene; `render` makes it.

    stops: exposures from the reference, rising; reference: index of 0 among them. told: the response is told, not fitted.
    timed: the exposures are known; otherwise they are estimated with the response, as for photos without EXIF.
    """

    seed: int
    picture: Path
    stops: tuple[float, ...]
    reference: int
    motion: Motion
    response: CameraResponse = field(repr=False)
    camera: Camera = field(repr=False)
    clipped: float
    boost_stops: float
    reduction: int
    told: bool
    timed: bool
    colour: tuple[float, float, float] | None
    foreign: Path | None


def draw(sources: Sources, seed: int, number: int) -> Draw:
    """The scene of a number. Cheap: nothing is read."""
    rng = generator((seed, SCENE_STREAM, number))
    from_photo = bool(sources.photos) and (not sources.hdr or rng.random() < 0.45)
    pool = sources.photos if from_photo else sources.hdr
    picture = pool[int(rng.integers(len(pool)))]
    foreign = pool[int(rng.integers(len(pool)))] if rng.random() < 0.5 else None
    stops = _stops(rng)
    middle = len(stops) // 2
    reference = int(rng.integers(len(stops))) if rng.random() < 0.12 else middle
    stops = tuple(round(s - stops[reference], 3) for s in stops)
    response = sources.responses[int(rng.integers(len(sources.responses)))]
    # How the camera makes a picture of what its sensor saw. Without it a network takes what bright colours do for motion.
    rendering = generator((seed, RENDERING_STREAM, number))
    renders = rendering.random() >= PLAIN_SHARE

    def maybe(share: float, low: float, high: float) -> float | None:
        """A value for some of the cameras that render."""
        value, had = float(rendering.uniform(low, high)), rendering.random() < share
        return value if renders and had else None

    camera = Camera(
        response,
        saturation=maybe(0.75, 1, 2) or 1.0,
        whitening=maybe(0.6, 0, 0.8) or 0.0,
        denoising=maybe(0.5, 0.5, 4) or 0.0,
        black=maybe(0.4, -0.003, 0.003) or 0.0,
        sharpening=maybe(0.55, 0.1, 1.2) or 0.0,
        iso=float(rng.choice((100, 100, 200, 400, 800, 1600, 3200, 6400, 12800))),
        full_well=float(rng.uniform(12000, 50000)),
        read_electrons=float(rng.uniform(2, 8)),
        lens_px=float(rng.uniform(0.2, 0.7)),
        demosaic_px=float(rng.uniform(0.2, 0.7)),
        vignetting=float(rng.uniform(0, 0.3)),
        jpeg_quality=None if rng.random() < 0.1 else int(rng.integers(75, 99)),
    )
    motion = _motion(rng)
    saturated = motion.objects and rng.random() < 0.25
    colour = tuple(float(c) for c in rng.uniform(0.02, 1, 3) ** 2 * rng.uniform(0.5, 6)) if saturated else None
    return Draw(
        seed=int(rng.integers(2**31)),
        picture=picture,
        stops=stops,
        reference=reference,
        motion=motion,
        response=response,
        camera=camera,
        clipped=float(rng.uniform(0.01, 0.12) if rng.random() < 0.6 else rng.uniform(0.12, 0.35)),
        boost_stops=float(rng.uniform(0, 5)) if from_photo and rng.random() < 0.75 else 0.0,
        reduction=int(rng.integers(1, 7)),
        told=bool(rng.random() < 0.5),
        timed=bool(rendering.random() < 0.75),
        colour=colour,  # type: ignore[arg-type]
        foreign=foreign,
    )


def _stops(rng: np.random.Generator) -> tuple[float, ...]:
    """Exposures: 2 to 9 frames, mostly 3, spaced 0.7 to 4 stops, evenly or not."""
    count = int(rng.choice((2, 3, 4, 5, 7, 9), p=(0.06, 0.5, 0.08, 0.2, 0.11, 0.05)))
    widest = {2: 4.0, 3: 4.0, 4: 3.5, 5: 3.0, 7: 2.2, 9: 1.5}[count]
    steps = np.full(count - 1, rng.uniform(0.7, widest))
    if rng.random() < 0.4:
        steps = steps * rng.uniform(0.7, 1.3, count - 1)
    elif rng.random() < 0.6:
        steps = np.maximum(np.rint(steps), 1.0)
    return tuple(float(s) for s in np.concatenate([[0.0], np.cumsum(steps)]))


def _motion(rng: np.random.Generator) -> Motion:
    kind = rng.random()
    if kind < 0.12:
        return Motion()
    shake = float(rng.uniform(0.5, 12))
    if kind < 0.3:
        return Motion(shake_px=shake)
    if kind < 0.75:
        return Motion(
            shake_px=shake if rng.random() < 0.8 else 0.0,
            objects=int(rng.integers(1, 5)),
            object_size=float(rng.uniform(0.15, 0.6)),
            travel=float(rng.uniform(0.01, 0.3)),
            trail=float(rng.uniform(0, 0.15)),
        )
    return Motion(
        shake_px=shake,
        objects=int(rng.integers(0, 2)),
        waves_px=float(rng.uniform(0.6, 3)),
        wave_length_px=float(rng.uniform(8, 80)),
        wave_share=float(rng.uniform(0.15, 0.7)),
    )


@dataclass(frozen=True)
class TrainingScene:
    """An aligned and merged bracket with its truth, the reference first.

    codes: (n, H, W, 3) uint8, aligned.   coverage: (n, H, W) uint8, 0..255.   stops: (n,) from the reference.   table: (256, 3) linear
    value of each code, as the pipeline believes it; sigma: (256, 3) its deviation in the reference.   merged, truth: (H, W, 3) float16
    radiance, 1.0 = the reference's white, truth on the scale of that table.   moving: (H, W) bool.
    """

    codes: NDArray[np.uint8]
    coverage: NDArray[np.uint8]
    stops: F32
    table: F32
    sigma: F32
    merged: NDArray[np.float16]
    truth: NDArray[np.float16]
    moving: NDArray[np.bool_]


def simulated(drawn: Draw, size: int = SIZE_PX) -> Simulation:
    """The photos of a drawn scene, as the camera wrote them. Raises InputError for a picture that is black all over."""
    side = size + 2 * MARGIN_PX
    rng = generator((drawn.seed, RENDER_STREAM))
    for _ in range(VIEWS):  # a view may be all black where the picture is not
        picture = read_radiance(drawn.picture, side, side, rng, boost_stops=drawn.boost_stops, reduction=drawn.reduction)
        if picture.max() > 0:
            break
    else:
        raise InputError(f"{drawn.picture}: not a picture of light: {VIEWS} views of it are all black")
    radiance = exposed(picture, drawn.clipped)
    exposures = [2.0**s for s in drawn.stops]
    cutouts = _cutouts(drawn, radiance, rng, size)
    return simulate(
        radiance, exposures, drawn.camera, drawn.motion, seed=drawn.seed, reference=drawn.reference, margin=MARGIN_PX, cutouts=cutouts
    )


def render(drawn: Draw, size: int = SIZE_PX) -> TrainingScene:
    """Simulate a drawn scene, then calibrate, align and merge it as a user's bracket would be."""
    made = simulated(drawn, size)
    bracket = made.bracket if drawn.told else _as_fitted(made.bracket, timed=drawn.timed)
    alignments = align(bracket)
    merged = merge(bracket, alignments).radiance
    truth = _measurable(drawn, made, bracket, merged)
    order = [drawn.reference, *(i for i in range(len(bracket.frames)) if i != drawn.reference)]
    warped = [warp_rows(bracket.frames[i], alignments[i], 0, size) for i in order]
    full = np.full((size, size), 255, np.uint8)
    return TrainingScene(
        codes=np.stack([w for w, _ in warped]),
        coverage=np.stack([full if c is None else np.rint(c * np.float32(255)).astype(np.uint8) for _, c in warped]),
        stops=np.log2(np.array([bracket.relative_exposures[i] for i in order], np.float32)),
        table=bracket.response.codes(np.dtype(np.uint8)),
        sigma=deviation_of_codes(bracket.response, bracket.frames[drawn.reference].noise, np.dtype(np.uint8)),
        merged=np.minimum(merged, LARGEST_RADIANCE).astype(np.float16),
        truth=np.minimum(truth, LARGEST_RADIANCE).astype(np.float16),
        moving=made.motion_mask,
    )


PLAIN = Camera()
BEYOND_STOPS = 2.0
"""How much shorter and longer than the bracket's the exposures of the perfect photos go."""


def _measurable(drawn: Draw, made: Simulation, bracket: Bracket, merged: F32) -> F32:
    """(H, W, 3) truth of a scene: of a camera that only measures and whose response is told, radiance itself; of any other, what could
    be measured with it and with the response and exposures that the bracket is believed to have.

    The latter is made as truth is made from real photos (`datasets.static`): from photos of the scene as it was in the reference's
    moment, without noise and JPEG, some shorter and longer than the bracket's. A network that is shown radiance itself would learn to
    undo cameras' sharpening and black points, and errors of fitted responses that nobody can see in a bracket; on photos that stay as
    they are it would shift colours. Where those photos contradict each other, as in whitened highlights, it is radiance again.
    """
    camera = drawn.camera
    plain = all(getattr(camera, k) == getattr(PLAIN, k) for k in ("saturation", "whitening", "denoising", "black", "sharpening"))
    if plain and bracket is made.bracket:
        return made.truth
    perfect = replace(camera, bits=16, jpeg_quality=None)
    stops = (drawn.stops[0] - BEYOND_STOPS, *drawn.stops, drawn.stops[-1] + BEYOND_STOPS)
    photos = render_bracket(
        [made.scene] * len(stops), [2.0**s for s in stops], perfect, seed=drawn.seed, reference=drawn.reference + 1, noiseless=True
    )
    noise = made.bracket.frames[0].noise
    believed = [f.exposure for f in bracket.frames]
    believed = [believed[0] * 2.0**-BEYOND_STOPS, *believed, believed[-1] * 2.0**BEYOND_STOPS]
    frames = tuple(replace(f, noise=noise, exposure=e) for f, e in zip(photos.frames, believed, strict=True))
    truth, known = static_truth(replace(photos, frames=frames, response=bracket.response))
    light = made.truth if bracket is made.bracket else made.truth * np.float32(_scale(merged, made.truth))
    return np.where(known[..., None], truth, light)


def _as_fitted(bracket: Bracket, *, timed: bool) -> Bracket:
    """The bracket with the response and exposures that `--response auto` would find, with exposures from EXIF (timed) or without; as it
    is where nothing can be found, or what was found explains the photos so badly that users are told to give a response themselves.
    """
    try:
        exposures, response, calibration = calibrate(
            bracket.frames if timed else tuple(replace(f, exposure=float("nan")) for f in bracket.frames),
            reference=bracket.reference,
            exposures_known=timed,
            exposure_source="exif" if timed else "estimated",
            response=None,
            transfer=bracket.colour.transfer,
        )
        if any(stops > LARGE_DISAGREEMENT_STOPS for stops in calibration.residual_stops):
            return bracket
        frames = tuple(replace(f, exposure=e) for f, e in zip(bracket.frames, exposures, strict=True))
        return Bracket(frames, bracket.reference, response, bracket.colour, calibration)
    except InputError:  # also where exposures so near to each other come out in another order
        return bracket


def _scale(merged: F32, truth: F32) -> float:
    """The factor that a fitted response leaves open (`metrics.fitted_scale` gives evaluated methods its inverse)."""
    good = ((truth > 0.02) & (truth < 0.8)).all(axis=-1) & (merged > 1e-6).all(axis=-1)
    return float(np.median(merged[good] / truth[good])) if good.sum() >= 100 else 1.0


def _cutouts(drawn: Draw, radiance: F32, rng: np.random.Generator, size: int) -> list[Cutout]:
    """The moving objects: pieces of this or of another picture, some in a saturated colour."""
    if not drawn.motion.objects or (drawn.colour is None and drawn.foreign is None):
        return []
    source = radiance
    if drawn.foreign is not None:
        boost = drawn.boost_stops if drawn.foreign.suffix.lower() not in HDR_SUFFIXES else 0.0
        source = exposed(read_radiance(drawn.foreign, size, size, rng, boost_stops=boost, reduction=drawn.reduction), drawn.clipped)
    made = []
    for _ in range(drawn.motion.objects):
        piece = piece_of(source, rng, drawn.motion.object_size * size)
        if drawn.colour is not None:
            texture = piece.radiance.mean(axis=-1, keepdims=True)
            texture = np.clip(texture / max(float(np.median(texture)), 1e-4), 0.25, 3.0)
            piece = Cutout(np.asarray(texture * np.asarray(drawn.colour, np.float32), np.float32), piece.coverage)
        made.append(piece)
    return made


# ---- cache ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SceneStore:
    """Scenes by number, rendered when they are first asked for, kept in a folder if there is one."""

    sources: Sources
    seed: int
    cache: Path | None = None
    size: int = SIZE_PX

    @cached_property
    def digest(self) -> str:
        """16 hex digits of everything the scenes follow from: pictures, responses, seed, size, and how they are rendered."""
        settings = f"{RENDER_VERSION} {self.seed} {self.size} " + " ".join(
            hashlib.sha256(r.table.tobytes()).hexdigest() for r in self.sources.responses
        )
        return fingerprint(settings, {f"{i} {p.name}": p for i, p in enumerate((*self.sources.hdr, *self.sources.photos))})

    def frames(self, number: int) -> int:
        """How many frames a scene has, without rendering it."""
        return len(draw(self.sources, self.seed, number).stops)

    def __getitem__(self, number: int) -> TrainingScene:
        """Raises InputError where a source picture cannot be used."""
        path = self._path(number)
        if path is not None and path.is_file():
            try:
                with path.open("rb") as opened, np.load(opened) as stored:
                    return TrainingScene(**{k: stored[k] for k in stored.files})
            except (EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
                pass  # cut short: render it again
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error.strerror}); give another --cache") from None
        made = self._rendered(number)
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"{path.parent}: cannot be made ({error.strerror}); give another --cache") from None
            with replacing(path, force=True) as unfinished, unfinished.open("wb") as stream:
                np.savez(stream, **_arrays(made))  # type: ignore[arg-type]  # names are ours, none is allow_pickle
        return made

    def is_full(self, scenes: int) -> bool:
        """Whether so many scenes lie in the cache, rendered."""
        return all(path is not None and path.is_file() for path in map(self._path, range(scenes)))

    def _path(self, number: int) -> Path | None:
        return None if self.cache is None else self.cache / self.digest / f"scene_{number:06d}.npz"

    def _rendered(self, number: int) -> TrainingScene:
        drawn = draw(self.sources, self.seed, number)
        try:
            return render(drawn, self.size)
        except GMODiffError as error:
            raise InputError(f"scene {number} of {drawn.picture}: {error}") from None


def _arrays(scene: TrainingScene) -> dict[str, NDArray[Any]]:
    return {name: getattr(scene, name) for name in TrainingScene.__dataclass_fields__}
