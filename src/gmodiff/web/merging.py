"""A merge as a job: the bracket read and reconstructed once, and rendered as often as somebody changes a setting.

What is large lies in files of the job's folder and is mapped from there, so that a server with ten results open needs no more memory
than one that shows its first.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from gmodiff.align import Alignment
from gmodiff.bracket import best_reference, read_bracket
from gmodiff.errors import InputError
from gmodiff.estimate import Estimates, Estimator
from gmodiff.image import Bracket, Progress
from gmodiff.merge import Merged, merge
from gmodiff.model_card import Model
from gmodiff.pipeline import Reconstruction, aligned, estimated, finished
from gmodiff.refine import Refinement
from gmodiff.runtime import NO_MODEL, has_refiner, load_model, load_refiner
from gmodiff.summary import summary
from gmodiff.tonemap import DEFAULT_HEADROOM_STOPS, MAX_HEADROOM_STOPS, MIN_HEADROOM_STOPS
from gmodiff.web.pictures import Picture, in_file
from gmodiff.web.workspace import Upload

ESTIMATE, ESTIMATES_KEPT = "estimate", 2
"""Files of a merge, by the refiner's share; and how many shares are kept."""

MERGE_BYTES_PER_PIXEL, RENDITION_BYTES_PER_PIXEL = 40, 30
"""On the disk, of one photo's pixels: the merge with its estimates; a rendition with its pyramid and a file."""


@dataclass(frozen=True)
class Rendering:
    """Settings that need no new alignment.

    look, base, headroom: see `pipeline.reconstruct`.   network: how far the network is followed, 0 (the classical merge) to 1.
    refine: the refiner's share, 0 to 1; of models that have one.   Raises InputError for other values.
    """

    look: str = "camera"
    base: str = "tonemap"
    headroom: float = DEFAULT_HEADROOM_STOPS
    network: float = 1.0
    refine: float = 0.0

    def __post_init__(self) -> None:
        if self.look not in ("camera", "linear"):
            raise InputError(f"look {self.look!r}: expected camera or linear")
        if self.base not in ("tonemap", "reference"):
            raise InputError(f"base {self.base!r}: expected tonemap or reference")
        if not MIN_HEADROOM_STOPS <= self.headroom <= MAX_HEADROOM_STOPS:
            raise InputError(f"headroom {self.headroom:g}: expected {MIN_HEADROOM_STOPS:g} to {MAX_HEADROOM_STOPS:g} stops")
        for name in ("network", "refine"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} {getattr(self, name):g}: expected 0 to 1")


@dataclass(frozen=True)
class Wanted:
    """What is to be merged. ev: stops of each photo, or None for what the photos say; reference: index into photos, or None to choose."""

    photos: tuple[Upload, ...]
    ev: tuple[float, ...] | None = None
    reference: int | None = None
    rendering: Rendering = Rendering()
    align: bool = True

    def bytes(self) -> int:
        """About how much of the disk the merge and its first rendition take."""
        pixels = max(u.shot.width * u.shot.height for u in self.photos)
        encoded = sum((6 if u.shot.raw else 3) * pixels for u in self.photos)
        return encoded + pixels * (MERGE_BYTES_PER_PIXEL + RENDITION_BYTES_PER_PIXEL)


@dataclass
class Ingredients:
    """An aligned and merged bracket, from which renditions are made, one at a time.

    made: what was estimated already, by the refiner's share; None: the classical result.   files: how the names of its files begin.
    count: of estimates ever made.
    """

    bracket: Bracket = field(repr=False)
    alignments: tuple[Alignment, ...] = field(repr=False)
    merged: Merged = field(repr=False)
    folder: Path
    name: str
    seconds: float
    made: dict[float | None, Reconstruction] = field(default_factory=dict, repr=False)
    files: dict[float | None, str] = field(default_factory=dict)
    count: int = 0


class Models:
    """The networks that the page uses, loaded once, when first needed. name: of `load_model`, or "none"."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.refines = name != NO_MODEL and has_refiner(name)
        self._lock = threading.Lock()
        self._loaded: tuple[Model, Model | None] | None = None

    def load(self) -> tuple[Model | None, Model | None]:
        """The network and its refiner; None for what there is not."""
        if self.name == NO_MODEL:
            return None, None
        with self._lock:
            if self._loaded is None:
                self._loaded = load_model(self.name), load_refiner(self.name) if self.refines else None
            return self._loaded


def prepare(wanted: Wanted, folder: Path, max_pixels: int, progress: Progress) -> Ingredients:
    """Read, align and merge. Raises InputError for what is no bracket; what `progress` raises ends it."""
    started = time.monotonic()
    paths = [u.path for u in wanted.photos]
    bracket = read_bracket(paths, ev=wanted.ev, reference=wanted.reference, max_pixels=max_pixels, progress=progress)
    bracket = _in_files(_renamed(bracket, wanted.photos), folder)
    alignments = aligned(bracket, align=wanted.align, progress=progress)
    merged = merge(bracket, alignments, with_motion=True, with_source=True, progress=lambda fraction: progress("merge", fraction))
    merged = Merged(*(in_file(getattr(merged, f.name), folder / f"merged-{f.name}.npy") for f in fields(Merged)))
    name = f"{Path(wanted.photos[0].name).stem}_hdr"
    return Ingredients(bracket, alignments, merged, folder, name, time.monotonic() - started)


def render(found: Ingredients, settings: Rendering, models: Models, folder: Path, progress: Progress) -> Picture:
    """One rendition, with its summary (`Picture.facts`)."""
    started = time.monotonic()
    model, refiner = models.load()
    made = _estimated(found, None, None, None, progress)
    if model is not None and settings.network > 0:
        share = settings.refine if refiner is not None else 0.0
        made = made.towards(_estimated(found, share, model, refiner, progress), settings.network)
    # The rendering works on the light in place.
    image = finished(
        replace(made, radiance=np.array(made.radiance)),
        found.bracket,
        look=settings.look,
        base=settings.base,
        headroom=settings.headroom,
        progress=progress,
    )
    progress("write", 0.0)
    assert image.base is not None
    assert image.gain_map is not None
    radiance = in_file(image.radiance, folder / "light.npy")
    base = in_file(image.base, folder / "base.npy")
    codes = in_file(image.gain_map.codes, folder / "codes.npy")
    image = replace(image, radiance=radiance, base=base, gain_map=replace(image.gain_map, codes=codes))
    used = model if settings.network > 0 else None
    seconds = found.seconds + time.monotonic() - started
    facts = summary(found.bracket, image, used, outputs=[], seconds=seconds)
    facts["rendering"] = asdict(settings)
    frames = [(f.name, f.encoded) for f in found.bracket.frames]
    progress("write", 1.0)
    return Picture(secrets.token_hex(8), image, folder, facts, frames, found.merged.source, found.name)


def _estimated(found: Ingredients, share: float | None, model: Model | None, refiner: Model | None, progress: Progress) -> Reconstruction:
    """The classical result (share None), or the model's with so much of the refiner; made once each."""
    if share not in found.made:
        estimates: Model | Estimates | None = model
        if model is not None and refiner is not None and share:
            estimates = Estimator(model, refinement=Refinement(refiner, share))
        made = estimated(found.bracket, found.alignments, found.merged, estimates, keep=True, progress=progress)
        found.count += 1
        radiance, provenance, degradation = (
            None if values is None else in_file(values, found.folder / f"{ESTIMATE}{found.count}-{part}.npy")
            for part, values in (("radiance", made.radiance), ("provenance", made.provenance), ("degradation", made.degradation))
        )
        assert radiance is not None
        assert provenance is not None
        found.made[share] = replace(made, radiance=radiance, provenance=provenance, degradation=degradation)
        found.files[share] = f"{ESTIMATE}{found.count}-"
        _forget_old(found)
    return found.made[share]


def _forget_old(found: Ingredients) -> None:
    """Keep the classical result and the latest estimates: a slider has a hundred places, each as large as the picture."""
    for share in [s for s in found.made if s is not None][:-ESTIMATES_KEPT]:
        del found.made[share]
        for file in found.folder.glob(f"{found.files.pop(share)}*"):
            with contextlib.suppress(OSError):  # still mapped, where that keeps a file from going
                file.unlink()


def likely_reference(photos: Sequence[Upload]) -> int | None:
    """Which photo a merge would choose, as far as thumbnails tell; None where exposures are not known."""
    if any(u.shot.exposure is None for u in photos):
        return None
    order = sorted(range(len(photos)), key=lambda i: photos[i].shot.exposure or 0.0)
    return order[best_reference([photos[i].exposed for i in order])]


def stops_of(photos: Sequence[Upload], reference: int | None) -> list[float | None]:
    """EV of each photo relative to the reference (`likely_reference`), brighter = higher; None where its exposure is not known."""
    known = [u.shot.exposure for u in photos]
    if reference is None:
        lit = sorted(e for e in known if e is not None)
        zero = lit[len(lit) // 2] if lit else 1.0
    else:
        zero = known[reference] or 1.0
    return [None if e is None else round(math.log2(e / zero), 2) for e in known]


def _renamed(bracket: Bracket, photos: Sequence[Upload]) -> Bracket:
    """The user's names instead of ours; of two alike, the second says which it is."""
    names: dict[str, str] = {}
    for n, upload in enumerate(photos):
        taken = upload.name in names.values()
        names[upload.path.name] = f"{upload.name} ({n + 1})" if taken else upload.name

    def words(text: str) -> str:
        for ours, theirs in names.items():
            text = text.replace(ours, theirs)
        return text

    calibration = replace(bracket.calibration, notes=tuple(words(n) for n in bracket.calibration.notes))
    return replace(bracket, frames=tuple(replace(f, name=words(f.name)) for f in bracket.frames), calibration=calibration)


def _in_files(bracket: Bracket, folder: Path) -> Bracket:
    frames = (replace(f, encoded=in_file(f.encoded, folder / f"frame{n}.npy")) for n, f in enumerate(bracket.frames))
    return replace(bracket, frames=tuple(frames))
