"""Brackets of ordinary photos in folders: exposures from meta.json, EXIF, exposure.txt or the pixels, the response fitted.

A folder may also hold, by name:

    meta.json    "images": [{"file": name}, ...], the photos of the bracket; "ev": [stops, ...], one for each image, brighter = larger;
                 "reference": name; "motion": "static" or "dynamic". All of it may be left out.
    truth.exr, truth.hdr    the truth, 1.0 = the reference's white, in the photos' own primaries and the reference's geometry
    HDRImg.hdr   the same as published sets have it: 1.0 = the shortest photo's white

With a truth the reference is what meta.json says, else the middle photo by exposure: which one it is must not depend on a choice of ours.
Truths are taken as stored (see `published.read_float_picture`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gmodiff.bracket import read_bracket
from gmodiff.datasets.published import (
    estimated_motion,
    folders_below,
    known_share,
    made_by_gmodiff,
    read_float_picture,
    scene_names,
)
from gmodiff.datasets.scene import Scene, common_facts, fingerprint, with_masks
from gmodiff.errors import FileFormatError, GMODiffError, InputError
from gmodiff.exposure import natural_key
from gmodiff.image import MAX_FRAMES, MIN_FRAMES, Bracket

PHOTO_KINDS = (
    (".jpg", ".jpeg"),
    (".tif", ".tiff"),
    (".png",),
    (".heic", ".heif"),
    (".avif",),
    (".webp",),
    (".dng",),
    (".cr2",),
    (".cr3",),
    (".nef",),
    (".arw",),
    (".raf",),
    (".orf",),
    (".rw2",),
    (".pef",),
    (".srw",),
)
"""Endings of photos, those of one kind together. A bracket is of one kind: JPEG beside RAW is the same photos twice."""

TRUTHS = {"truth.exr": "reference", "truth.hdr": "reference", "HDRImg.hdr": "shortest"}
"""Truths by name, and whose white is 1.0 in them."""

META = "meta.json"


@dataclass(frozen=True)
class FolderScene:
    """A bracket in a folder, not loaded yet: a SceneSource.

    photos: file names; empty for those that meta.json lists, else all photos of the folder of the most frequent kind.
    reference: file name; None for what the module says.
    """

    name: str
    folder: Path = field(repr=False)
    photos: tuple[str, ...] = ()
    reference: str | None = None

    @property
    def fingerprint(self) -> str:
        """Of the photos, meta.json, exposure.txt and the truth. Raises InputError where one cannot be read."""
        files = {p.name: p for p in self._files(_Meta.of(self.folder))}
        files |= {n: self.folder / n for n in (META, "exposure.txt", *TRUTHS) if (self.folder / n).is_file()}
        return fingerprint(f"folder 1, {self.reference}", files)

    def load(self) -> Scene:
        """Read the photos by `read_bracket`, and the truth where there is one. Raises GMODiffError with one line."""
        try:
            return self._load()
        except GMODiffError as error:
            raise type(error)(f"{self.name}: {error}") from None

    def _load(self) -> Scene:
        meta = _Meta.of(self.folder)
        files = self._files(meta)
        reference = self.reference or meta.reference
        bracket = read_bracket(files, ev=meta.ev_of([p.name for p in files]), reference=reference)
        truths = [n for n in TRUTHS if (self.folder / n).is_file()]
        if len(truths) > 1:
            raise InputError(f"{' and '.join(truths)} could both be the truth: keep one of them")
        if not truths:
            return Scene(self.name, bracket, facts=_facts(bracket, {}, meta))
        if reference is None:
            bracket = replace(bracket, reference=len(bracket.frames) // 2)
        truth, known = read_float_picture(self.folder / truths[0], bracket.shape)
        if TRUTHS[truths[0]] == "shortest":
            truth = truth * np.float32(1.0 / bracket.relative_exposures[0])
        masks = with_masks(truth, bracket, estimated_motion(truth, bracket))
        facts = {**_facts(bracket, masks, meta), "motion_mask": "estimated from the frames", **known_share(known)}
        return Scene(self.name, bracket, truth, masks, known, facts=facts)

    def _files(self, meta: _Meta) -> list[Path]:
        if not self.folder.is_dir():
            raise InputError(f"{self.folder} is not there: expected a folder of photos")
        names = self.photos or meta.files or _photos_of(self.folder.iterdir())
        missing = [n for n in names if not (self.folder / n).is_file()]
        if missing:
            raise InputError(f"{self.folder.name} holds no {missing[0]}" + ("" if self.photos else f", which its {META} lists"))
        return [self.folder / n for n in names]


def find_brackets(root: Path) -> list[FolderScene]:
    """Every folder at or below root that holds a bracket, 2 to 16 photos or a meta.json that lists some, in the order of the folders.

    Photos this program made do not count. Whether the photos are a bracket indeed shows at `load`, and so does what is wrong with a
    meta.json. Raises InputError where root is no folder.
    """
    found = []
    for folder, files in folders_below(root):
        try:
            listed = len(_Meta.of(folder).files)
        except InputError:
            listed = 0
        if listed or MIN_FRAMES <= len(_photos_of(files)) <= MAX_FRAMES:
            found.append(folder)
    found.sort(key=lambda p: natural_key(str(p)))
    return [FolderScene(name, folder) for name, folder in zip(scene_names(found, root), found, strict=True)]


def _photos_of(files: Iterable[Path]) -> tuple[str, ...]:
    """Names of the photos of the most frequent kind, in natural order; JPEG before others where two kinds are as frequent."""
    shown = [p for p in files if not p.name.startswith(".") and p.is_file()]
    groups = [[p.name for p in shown if p.suffix.lower() in kind and not made_by_gmodiff(p)] for kind in PHOTO_KINDS]
    most = max(groups, key=len)
    return tuple(sorted(most, key=natural_key))


def _facts(bracket: Bracket, masks: Mapping[str, Any], meta: _Meta) -> dict[str, Any]:
    calibration = bracket.calibration
    facts = {
        "source": "photos",
        **common_facts(bracket, masks),
        "exposure_source": calibration.exposure_source,
        "notes": list(calibration.notes),
    }
    return facts if meta.motion is None else {**facts, "motion": meta.motion}


# ---- meta.json ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Meta:
    """What a meta.json says of a bracket; nothing where there is none. ev: one for each of files, or none at all."""

    files: tuple[str, ...] = ()
    ev: tuple[float, ...] = ()
    reference: str | None = None
    motion: str | None = None

    @staticmethod
    def of(folder: Path) -> _Meta:
        """Raises InputError or FileFormatError where the file is there but cannot be used."""
        path = folder / META
        if not path.is_file():
            return _Meta()
        try:
            table = json.loads(path.read_bytes())
        except OSError as error:
            raise InputError(f"{META} cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError) as error:
            raise FileFormatError(f"{META} is not JSON: {' '.join(str(error).split())[:160]}") from None
        if not isinstance(table, dict):
            raise FileFormatError(f'{META} holds a {type(table).__name__}, expected an object with "images"')
        files = _listed(table.get("images", []))
        reference, motion = table.get("reference"), table.get("motion")
        if reference is not None and reference not in files:
            raise FileFormatError(f"{META}: reference is {reference!r}, expected one of the files it lists")
        return _Meta(files, _stops(table.get("ev"), len(files)), reference, motion if isinstance(motion, str) else None)

    def ev_of(self, names: Sequence[str]) -> list[float] | None:
        """Stops of the named photos; None where one of them has none."""
        known = dict(zip(self.files, self.ev, strict=True)) if self.ev else {}
        return [known[n] for n in names] if all(n in known for n in names) else None


def _listed(images: Any) -> tuple[str, ...]:
    names = []
    for image in images if isinstance(images, list) else [None]:
        name = image.get("file") if isinstance(image, dict) else None
        if not isinstance(name, str) or not name or Path(name).name != name:
            raise FileFormatError(f'{META}: "images" must be a list of objects, each with "file", the name of a file beside it')
        names.append(name)
    return tuple(names)


def _stops(ev: Any, count: int) -> tuple[float, ...]:
    if not isinstance(ev, list) or len(ev) != count:
        return ()
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in ev):
        raise FileFormatError(f'{META}: "ev" must be numbers, the stops of each image')
    return tuple(float(v) for v in ev)
