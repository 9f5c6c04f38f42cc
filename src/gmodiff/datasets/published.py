"""Published deghosting sets as their users have them on disk: 16-bit photos, log2 exposures in a text, the truth as .hdr or .exr.

A scene is a folder with two or more TIFF or PNG photos of one kind, one exposure text and one truth, whatever its name:

    Kalantari (SIGGRAPH 2017)   262A0898.tif ...   exposure.txt   HDRImg.hdr
    Tel, Prabhakar              input_1.tif ...    the same idea under other names
    Challenge123, test          NNN_1, NNN_2, NNN_3, three states of motion, each ldr_img_1.tif ... with exposure.txt and hdr_img.hdr:
                                a scene is photo 1 of NNN_1, photo 2 of NNN_2 (the reference) and photo 3 of NNN_3, truth of NNN_2

Conventions of these sets, the same in all of them: photos are encoded as linear ** (1 / 2.2), 65535 = 1.0; exposures are in stops, one a
line, for the photos in the order of their names; 1.0 in the truth is the white of the *shortest* photo. Files are taken as stored: no
orientation, colour profile, EXPOSURE or PRIMARIES of a header is applied, since the sets' own loaders apply none (`photo.read_photo`
and `reader.read` do, as they should for a user's own files).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import OpenImageIO as oiio
from numpy.typing import NDArray

from gmodiff.datasets.scene import Mask, Scene, common_facts, fingerprint, with_masks
from gmodiff.decode import decode_png, decode_tiff
from gmodiff.errors import FileFormatError, GMODiffError, InputError
from gmodiff.exposure import natural_key
from gmodiff.floatfiles import first_line
from gmodiff.hdrgm import GMODIFF
from gmodiff.image import MAX_FRAMES, MIN_FRAMES, Bracket, Calibration, Frame
from gmodiff.photo import MAX_PIXELS
from gmodiff.radiometry import CLIPPED_ENCODED, F32, CameraResponse, NoiseModel, response_slope

MAX_DEPTH = 6
"""Folders below the root that are looked into."""

KINDS = {".tif": ".tif", ".tiff": ".tif", ".png": ".png"}
EXPOSURE_TEXTS = ("exposure.txt", "exposures.txt", "input_exp.txt")
TRUTHS = (".hdr", ".exr")

DISAGREEMENT = 0.25
"""Relative difference from the truth, beyond DISAGREEMENT_SIGMAS of noise, from which a photo saw something else."""

DISAGREEMENT_SIGMAS = 4.0
BLACK_BELOW = 0.02
"""Encoded value below which a sample says nothing: black levels differ between photo and truth."""

SPECK_PX = 5
"""Motion is where most of a square of this many pixels disagrees: lone pixels are noise, lines are edges half a pixel off."""

STORED_STEP = 1 / 128
"""Of a pixel's brightest channel: what the shared exponent of .hdr may be off by in its other channels, cut off instead of rounded."""


@dataclass(frozen=True)
class PublishedScene:
    """A scene of a published set, not loaded yet: a SceneSource.

    photos: in the order of the exposures' lines.   exposures: text file with log2 of relative exposures; None where it is missing.
    truth: .hdr or .exr, 1.0 = the shortest photo's white; None where there is none.
    reference: index into photos of the one whose geometry the truth has; None for the middle one by exposure.
    problem: what is wrong with the folder, found before any file was read; `load` raises it.
    """

    name: str
    photos: tuple[Path, ...] = field(repr=False)
    exposures: Path | None = field(default=None, repr=False)
    truth: Path | None = field(default=None, repr=False)
    reference: int | None = None
    problem: str = ""

    @property
    def fingerprint(self) -> str:
        """Of the contents and names of all files. Raises InputError where one cannot be read."""
        files = {f"photo {i} {p.name}": p for i, p in enumerate(self.photos)}
        files |= {what: p for what, p in (("exposures", self.exposures), ("truth", self.truth)) if p is not None}
        return fingerprint(f"published 1, reference {self.reference}, {self.problem}", files)

    def load(self) -> Scene:
        """Read the scene; relative exposures are 2**(e - min e). Raises InputError or FileFormatError with one line."""
        try:
            return self._load()
        except GMODiffError as error:
            raise type(error)(f"{self.name}: {error}") from None

    def _load(self) -> Scene:
        if self.problem or self.exposures is None:
            raise InputError(self.problem or f"no exposure text (expected {', '.join(EXPOSURE_TEXTS)})")
        stops = read_stops(self.exposures)
        if len(stops) != len(self.photos):
            raise InputError(f"{self.exposures.name} holds {len(stops)} exposures for {len(self.photos)} photos: expected one for each")
        bracket = self._bracket(stops)
        facts: dict[str, Any] = {"source": "published", "exposures": "2**(e - min e)"}
        if self.truth is None:
            return Scene(self.name, bracket, facts=facts | common_facts(bracket, {}))
        stored, known = read_float_picture(self.truth, bracket.shape)
        truth = stored * np.float32(1.0 / bracket.relative_exposures[0])
        masks = with_masks(truth, bracket, estimated_motion(truth, bracket))
        facts |= {**common_facts(bracket, masks), "motion_mask": "estimated from the frames", **known_share(known)}
        return Scene(self.name, bracket, truth, masks, known, facts=facts)

    def _bracket(self, stops: Sequence[float]) -> Bracket:
        """Shortest exposure first; the reference is the photo of the truth, or the middle one."""
        lowest, count = min(stops), len(stops)
        if max(stops) == lowest:
            raise InputError(f"{count} photos of one exposure: a bracket needs different exposures")
        names = [p.name for p in self.photos]
        if len({p.parent for p in self.photos}) > 1:
            names = [f"{p.parent.name}/{p.name}" for p in self.photos]
        order = sorted(range(count), key=lambda i: stops[i])
        frames = []
        for i in order:
            codes = read_codes(self.photos[i])
            noise = NoiseModel.of_photo(None, codes.dtype.itemsize * 8, lossy=False)
            frames.append(Frame(codes, 2.0 ** (stops[i] - lowest), names[i], noise=noise))
        reference = count // 2 if self.reference is None else order.index(self.reference)
        return Bracket(tuple(frames), reference, CameraResponse.named("gamma2.2"), calibration=Calibration("exposure.txt"))


# ---- finding ------------------------------------------------------------------------------------------------------------


def find_published(root: Path) -> list[PublishedScene]:
    """The scenes of published sets at and below a folder, at most MAX_DEPTH down, in the order of their folders.

    A folder with photos, exposures and a truth is a scene; so is one with photos and an exposure.txt but no truth. Beside one of those, a
    folder that lacks one of the three is a broken scene, whose `load` says what is missing: a gap in a set must not go unnoticed. Without
    any the list is empty. Truths made by this program are not taken for truths. Raises InputError where root is no folder.
    """
    folders = [_Folder.of(folder, files) for folder, files in folders_below(root)]
    states = _states_of_motion(folders, root)
    grouped = {member.folder for members in states.values() for member in members.values()}
    plain = [f for f in folders if f.folder not in grouped and f.parts >= 2]
    if not states and not any(f.is_scene for f in plain):
        return []
    found = [(f.folder, f.scene()) for f in plain] + [(place, _challenge_scene(place, members)) for place, members in states.items()]
    found.sort(key=lambda item: natural_key(str(item[0])))
    names = scene_names([place for place, _ in found], root)
    return [replace(scene, name=name) for (_, scene), name in zip(found, names, strict=True)]


def folders_below(root: Path) -> Iterator[tuple[Path, list[Path]]]:
    """(folder, its files in natural order) for root and every folder at most MAX_DEPTH below; each once, however many links lead to it.

    Hidden files and folders are left out, so are folders that may not be read. Raises InputError where root is no folder.
    """
    if not root.is_dir():
        raise InputError(f"{root} is {'not a folder' if root.exists() else 'not there'}: expected a folder of scenes")
    seen: set[Path] = set()
    waiting = [(root, 0)]
    while waiting:
        folder, depth = waiting.pop(0)
        place = folder.resolve()
        if place in seen:
            continue
        seen.add(place)
        try:
            entries = sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: natural_key(p.name))
            files, folders = [p for p in entries if p.is_file()], [p for p in entries if p.is_dir()]
        except OSError as error:
            if folder == root:
                raise InputError(f"{root} cannot be read ({error.strerror})") from None
            continue
        yield folder, files
        if depth < MAX_DEPTH:
            # A folder keeps its own name even where a link beside it leads to it too.
            waiting += [(p, depth + 1) for p in sorted(folders, key=Path.is_symlink)]


def scene_names(places: Iterable[Path], root: Path) -> list[str]:
    """A name for each place at or below root: its path from there with - for /, what no file may be called replaced, unique."""
    names: list[str] = []
    for place in places:
        inside = place.relative_to(root).as_posix()
        name = (root.resolve().name or "scene") if inside == "." else inside.replace("/", "-")
        name = "".join(c if c.isprintable() and c not in '\\/:*?[]"<>|' else "_" for c in name)
        wanted, number = name, 1
        while name in names:
            number += 1
            name = f"{wanted}-{number}"
        names.append(name)
    return names


def made_by_gmodiff(path: Path) -> bool:
    """True for files this program wrote; False also for those that cannot be read."""
    marks = (GMODIFF.encode(), b"GMODiff ")
    try:
        with path.open("rb") as file:
            ends = [file.read(1 << 17)]  # near the start in JPEG, PNG, EXR and .hdr, near the end in AVIF and TIFF
            file.seek(max(path.stat().st_size - (1 << 17), 0))
            ends.append(file.read())
    except OSError:
        return False
    return any(mark in end for mark in marks for end in ends)


@dataclass(frozen=True)
class _Folder:
    """What of a scene a folder holds. text_named: the exposure text has one of the known names, not just numbers in it."""

    folder: Path
    photos: tuple[Path, ...]
    text: Path | None
    text_named: bool
    truths: tuple[Path, ...]

    @staticmethod
    def of(folder: Path, files: list[Path]) -> _Folder:
        photos = {kind: tuple(p for p in files if KINDS.get(p.suffix.lower()) == kind) for kind in (".tif", ".png")}
        chosen = photos[".tif"] if len(photos[".tif"]) >= 2 else max(photos.values(), key=len)
        texts = {p.name.lower(): p for p in files if p.suffix.lower() == ".txt"}
        text = next((texts[name] for name in EXPOSURE_TEXTS if name in texts), None)
        named = text is not None
        if text is None and len(texts) == 1 and _holds_numbers(*texts.values()):
            text = next(iter(texts.values()))
        truths = tuple(p for p in files if p.suffix.lower() in TRUTHS and not made_by_gmodiff(p)) if chosen or named else ()
        return _Folder(folder, chosen, text, named, truths)

    @property
    def parts(self) -> int:
        """How many of photos, exposures and truth are there."""
        return (len(self.photos) >= 2) + (self.text is not None) + bool(self.truths)

    @property
    def is_scene(self) -> bool:
        return self.parts == 3 or (len(self.photos) >= 2 and self.text_named)

    def scene(self) -> PublishedScene:
        problem = ""
        if not MIN_FRAMES <= len(self.photos) <= MAX_FRAMES:
            problem = f"{len(self.photos)} TIFF or PNG photos, expected {MIN_FRAMES} to {MAX_FRAMES}"
        elif len(self.truths) > 1:
            problem = f"{' and '.join(p.name for p in self.truths)} could all be the truth: expected one .hdr or .exr"
        return PublishedScene(self.folder.name, self.photos, self.text, self.truths[0] if self.truths else None, problem=problem)


def _holds_numbers(text: Path) -> bool:
    try:
        return bool(read_stops(text))
    except InputError:
        return False


# ---- Challenge123 -------------------------------------------------------------------------------------------------------

STATE_PHOTOS = ("ldr_img_1", "ldr_img_2", "ldr_img_3")


def _states_of_motion(folders: list[_Folder], root: Path) -> dict[Path, dict[int, _Folder]]:
    """parent/NNN to its folders NNN_1 ... NNN_3, where two or more of them hold ldr_img_* photos. A lone one is a scene of its own."""
    found: dict[Path, dict[int, _Folder]] = {}
    for f in folders:
        match = re.fullmatch(r"(.+)_([123])", f.folder.name)
        if match and f.folder != root and f.photos and all(p.stem.lower() in STATE_PHOTOS for p in f.photos):
            found.setdefault(f.folder.parent / match[1], {})[int(match[2])] = f
    return {place: members for place, members in found.items() if len(members) > 1}


def _challenge_scene(place: Path, members: dict[int, _Folder]) -> PublishedScene:
    photos: list[Path] = []
    problems: list[str] = []
    for state, stem in enumerate(STATE_PHOTOS, start=1):
        found = [p for p in members[state].photos if p.stem.lower() == stem] if state in members else []
        photos += found[:1]
        if not found:
            problems.append(f"{place.name}_{state} " + (f"holds no {stem}" if state in members else "is missing beside the others"))
    middle = members[2].scene() if 2 in members else PublishedScene("", ())
    return replace(middle, photos=tuple(photos), reference=1, problem=(problems or [middle.problem])[0])


# ---- reading ------------------------------------------------------------------------------------------------------------


def read_stops(path: Path) -> list[float]:
    """Numbers of an exposure text, log2 of relative exposures. Raises FileFormatError where it holds anything else or none."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            words = file.read(10_000).replace(",", " ").split()
    except OSError as error:
        raise InputError(f"{path.name} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise FileFormatError(f"{path.name} is no text: expected log2 of the exposures, one a line") from None
    values = []
    for word in words:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not abs(value) <= 40:
            shown = ascii(word[:40])
            raise FileFormatError(f"{path.name} says {shown}: expected log2 of the exposures, one a line, numbers from -40 to 40")
        values.append(value)
    if not values:
        raise FileFormatError(f"{path.name} is empty: expected log2 of the exposures, one a line")
    return values


def read_codes(path: Path) -> NDArray[Any]:
    """(H, W, 3) uint8 or uint16 RGB of a TIFF or PNG as stored: not turned, no profile applied. Raises FileFormatError with one line."""

    def accept(width: int, height: int) -> None:
        if width * height > MAX_PIXELS:
            raise InputError(f"is {width}x{height}, above the limit of {MAX_PIXELS} pixels")

    try:
        with path.open("rb") as file:
            head = file.read(4)
        if head not in (b"\x89PNG", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise FileFormatError("is neither TIFF nor PNG")
        decoded = (decode_png if head == b"\x89PNG" else decode_tiff)(path, accept)
    except GMODiffError as error:
        raise type(error)(f"{path.name} {error}") from None
    except OSError as error:
        raise InputError(f"{path.name} cannot be read ({error.strerror})") from None
    except Exception as error:
        # Two decoders raise several kinds of error on damage; for the user they are one.
        raise FileFormatError(f"{path.name} is truncated or damaged: {first_line(str(error))}") from error
    if decoded.linear or decoded.inks or decoded.pixels.ndim != 3 or decoded.pixels.shape[2] < 3:
        raise FileFormatError(f"{path.name} is not RGB of 8 or 16 bits")
    return np.ascontiguousarray(decoded.pixels[..., :3])


def read_float_picture(path: Path, shape: tuple[int, int]) -> tuple[F32, Mask | None]:
    """(H, W, 3) float32 RGB of an .hdr, .exr or float TIFF as stored, and (H, W) where it can be believed, None for everywhere.

    Negative values become 0. What is not a number becomes 0 and what is infinite the largest finite value; neither is to be believed.
    shape: (height, width) it must have. Raises InputError for another size, FileFormatError where it cannot be read.
    """
    try:
        opened = oiio.ImageInput.open(str(path))
    except Exception as error:
        raise FileFormatError(f"{path.name} cannot be read: {first_line(str(error))}") from error
    if opened is None:
        raise FileFormatError(f"{path.name} cannot be read: {first_line(oiio.geterror())}")
    try:
        spec = opened.spec()
        if (spec.height, spec.width) != shape:
            raise InputError(f"{path.name} is {spec.width}x{spec.height} but the photos are {shape[1]}x{shape[0]}")
        if str(spec.format) not in ("float", "half", "double"):
            raise FileFormatError(f"{path.name} holds {spec.format} values, expected floating-point radiance")
        names = [str(n).lower() for n in spec.channelnames]
        if not {"r", "g", "b"} <= set(names):
            raise FileFormatError(f"{path.name} has channels {', '.join(names[:8])}; expected R, G and B")
        pixels = opened.read_image("float")
        if pixels is None:
            raise FileFormatError(f"{path.name} is truncated or damaged: {first_line(opened.geterror())}")
    finally:
        opened.close()
    truth = np.ascontiguousarray(pixels[..., [names.index(c) for c in "rgb"]], np.float32)
    finite = np.isfinite(truth)
    if not finite.any() or truth[finite].max() <= 0:
        raise FileFormatError(f"{path.name} holds no light")
    known = finite.all(axis=-1)
    if not known.all():
        np.nan_to_num(truth, copy=False, nan=0.0, posinf=float(truth[finite].max()), neginf=0.0)
    return np.maximum(truth, np.float32(0)), None if known.all() else np.asarray(known)


def known_share(known: Mask | None) -> dict[str, float]:
    """The fact that some of the truth is not known; nothing where all of it is."""
    return {} if known is None else {"known_share": round(float(known.mean()), 5)}


# ---- motion -------------------------------------------------------------------------------------------------------------


def estimated_motion(truth: F32, bracket: Bracket) -> Mask:
    """(H, W) where a photo other than the reference saw something else than the truth, while the reference saw the truth.

    An estimate: what moved without changing its light by DISAGREEMENT is missed, and so is what photos have black. A clipped sample is
    a lower bound: it disagrees only where the truth is darker.
    """
    differ = [_disagrees(truth, frame, bracket, ratio) for frame, ratio in zip(bracket.frames, bracket.relative_exposures, strict=True)]
    doubtful = differ.pop(bracket.reference)
    share = cv2.blur(np.any(differ, axis=0).astype(np.float32), (SPECK_PX, SPECK_PX))
    return np.asarray((share > 0.5) & ~doubtful)


def _disagrees(truth: F32, frame: Frame, bracket: Bracket, ratio: float) -> Mask:
    """(H, W) where any channel of a photo differs from the truth by more than DISAGREEMENT, noise and the truth's storage explain."""
    codes = frame.encoded
    top = np.iinfo(codes.dtype).max
    table = bracket.response.codes(codes.dtype)
    noise = DISAGREEMENT_SIGMAS * frame.noise.sigma_linear(table, response_slope(table)) / ratio
    stored = truth.max(axis=-1) * np.float32(STORED_STEP)
    found = np.zeros(codes.shape[:2], bool)
    for c in range(3):
        seen, light = (table[:, c] / np.float32(ratio)).take(codes[..., c]), truth[..., c]
        allowed = np.maximum(DISAGREEMENT * np.maximum(seen, light), noise[:, c].astype(np.float32).take(codes[..., c])) + stored
        clipped = codes[..., c] >= CLIPPED_ENCODED * top
        difference = np.where(clipped, seen - light, np.abs(seen - light))
        found |= (difference > allowed) & (codes[..., c] >= BLACK_BELOW * top)
    return found
