"""A dataset by its path: a set file (.toml), a folder of published scenes, or a folder of brackets.

A set file is text:

    kind = "synthetic"                     # or "real-static"
    about = "what it is for"
    data = "../../../shared/data"          # folder of its pictures, from this file's folder; --data names another
    size = [1500, 1000]                    # any field of a scene, for all scenes

    [[scene]]
    name = "autoshop_01-people"
    picture = "hdr/autoshop_01.hdr"
    seed = 1
    motion = "people"                      # what is not given is drawn from the seed

Instead of scenes, a synthetic set may say where pictures are and how many scenes to draw from them:

    folder = "hdr"                         # below data; MANIFEST.csv there (columns file and split) says what belongs to which split
    split = "val"
    count = 24
    seed = 7
"""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gmodiff.datasets.folders import find_brackets
from gmodiff.datasets.published import find_published
from gmodiff.datasets.scene import Dataset, SceneSource
from gmodiff.datasets.static import StaticRecipe, StaticScene
from gmodiff.datasets.synthetic import Recipe, SyntheticScene
from gmodiff.errors import FileFormatError, InputError

PICTURES = (".hdr", ".exr", ".jpg", ".jpeg", ".png", ".tif", ".tiff")
KINDS = ("synthetic", "real-static")
NOT_OF_SCENES = ("kind", "about", "data", "folder", "split", "count", "scene")


def open_dataset(path: Path, data: Path | None = None) -> Dataset:
    """The scenes that a path stands for, none of them loaded yet.

    data: for set files, where their pictures are, instead of what the file says. Raises InputError where nothing is there, or nothing of
    the kind, FileFormatError where a set file is wrong; both with one line.
    """
    if path.is_dir():
        if data is not None:
            raise InputError(f"{path} is a folder of scenes: --data is for set files (.toml)")
        return _of_folder(path)
    if not path.is_file():
        raise InputError(f"{path} is not there: expected a set file (.toml) or a folder of scenes")
    return _of_file(path, data)


def _of_folder(path: Path) -> Dataset:
    name = path.resolve().name or "scenes"
    published = find_published(path)
    if published:
        return Dataset(name, "a published set: 16-bit photos, exposure.txt, HDRImg.hdr", tuple(published))
    brackets = find_brackets(path)
    if not brackets:
        raise InputError(
            f"{path} holds no scenes: expected folders with the photos of one scene each, and exposure.txt with HDRImg.hdr, "
            "meta.json, or EXIF"
        )
    return Dataset(name, "brackets of photos", tuple(brackets))


def _of_file(path: Path, data: Path | None) -> Dataset:
    try:
        with path.open("rb") as stream:
            table = tomllib.load(stream)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FileFormatError(f"{path} is not a set file (TOML): {' '.join(str(error).split())}") from None
    kind = table.get("kind")
    if kind not in KINDS:
        raise FileFormatError(f"{path}: kind is {kind!r}, expected one of {', '.join(KINDS)}")
    if data is None:
        stored = table.get("data")
        if not isinstance(stored, str):
            raise InputError(f'{path} does not say where its pictures are: add data = "FOLDER", or give --data FOLDER')
        data = path.parent / stored
    if not data.is_dir():
        raise InputError(f"{data}, the pictures of {path.name}, is not there: --data names the folder that holds them")
    shared = {k: v for k, v in table.items() if k not in NOT_OF_SCENES}
    scenes = table.get("scene")
    if scenes is None and kind == "synthetic" and "count" in table:
        sources = _drawn(path, table, shared, data)
    elif isinstance(scenes, list) and scenes and all(isinstance(s, dict) for s in scenes):
        sources = tuple(_scene(path, kind, shared | s, data) for s in scenes)
    else:
        raise FileFormatError(
            f"{path} lists no scenes: expected [[scene]] tables" + (", or folder, count and seed" if kind == "synthetic" else "")
        )
    return Dataset(path.stem, str(table.get("about", "")), sources)


def _scene(path: Path, kind: str, table: Mapping[str, Any], data: Path) -> SceneSource:
    name = table.get("name")
    if name is None:
        raise FileFormatError(f"{path}: a scene has no name")
    if not isinstance(name, str) or not name or name in (".", "..") or any(c in name for c in "/\\:*?[]") or not name.isprintable():
        raise FileFormatError(f"{path}: a scene is called {name!r}, expected a name that can be a file's, without / \\ : * ? [ ]")
    where = f"{path}, scene {name}"
    values = {k: v for k, v in table.items() if k != "name"}
    try:
        if kind == "synthetic":
            return SyntheticScene(name, Recipe.parse(values, where), data)
        return StaticScene(name, StaticRecipe.parse(values, where), data)
    except InputError as error:
        raise FileFormatError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def _drawn(path: Path, table: Mapping[str, Any], shared: Mapping[str, Any], data: Path) -> tuple[SceneSource, ...]:
    """Scenes from a folder of pictures, each picture in turn; the seeds of the scenes follow the set's."""
    count, seed, folder = table["count"], table.get("seed"), table.get("folder")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise FileFormatError(f"{path}: count is {count!r}, expected a whole number, 1 or more")
    if not isinstance(seed, int) or not isinstance(folder, str):
        raise FileFormatError(f"{path}: drawing {count} scenes needs folder (text, below data) and seed (a whole number)")
    pictures = _pictures(path, data, folder, table.get("split"))
    sources = []
    for n in range(count):
        picture = pictures[n % len(pictures)]
        values = {**shared, "name": f"{picture.stem}-{n // len(pictures) + 1}", "picture": f"{folder}/{picture.name}", "seed": seed + n}
        sources.append(_scene(path, "synthetic", values, data))
    return tuple(sources)


def _pictures(path: Path, data: Path, folder: str, split: Any) -> list[Path]:
    place = data / folder
    if not place.is_dir():
        raise InputError(f"{path}: {place} is not there")
    found = sorted(p for p in place.iterdir() if p.suffix.lower() in PICTURES)
    if split is not None:
        try:
            with (place / "MANIFEST.csv").open(newline="", encoding="utf-8") as manifest:
                of_split = {row["file"] for row in csv.DictReader(manifest) if row["split"] == split}
        except (OSError, KeyError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: split {split!r} needs {place}/MANIFEST.csv with columns file and split ({error})") from None
        found = [p for p in found if p.name in of_split]
    if not found:
        raise InputError(f"{path}: {place} holds no pictures" + (f" of split {split!r}" if split is not None else ""))
    return found
