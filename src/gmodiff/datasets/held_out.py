"""What training must never see: the photos and cameras that the committed evaluation sets are made of.

HDR pictures carry their split in their folder's MANIFEST.csv; photos and cameras are named here. A test reads the committed sets
(benchmarks/sets) and fails where one of them uses a picture that training could have seen.
"""

from __future__ import annotations

import csv
from pathlib import Path

from gmodiff.datasets.measured_responses import TEST_CAMERAS
from gmodiff.datasets.pictures import HDR_SUFFIXES
from gmodiff.errors import InputError

__all__ = ["HELD_OUT_PHOTOS", "TEST_CAMERAS", "training_pictures"]

HELD_OUT_PHOTOS = (
    "budgie-orange-hallway.jpg",
    "budgie-san-francisco-skyline.jpg",
    "budgie-spiral-firework.jpg",
    "clic-2a2420f929cd.jpg",
    "clic-c9510efb03d1.jpg",
    "deepin-zetong-li-tbhypbi-gbc-unsplash.jpg",
    "nextcloud-vineyard.jpg",
    "solus-red-cherry-leaves.jpg",
)
"""File names of photos that evaluation is made of."""

HELD_OUT_FOLDERS = (
    "hdrtb_stack_room",
    "luishsu_pentax_city_night",
    "luishsu_pentax_glass_dusk",
    "luishsu_pentax_shade",
    "luishsu_pentax_tower_night",
    "luishsu_sample_street",
    "radiantlab_office_fisheye",
)
"""Folders of the real brackets that evaluation is made of."""

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")
MANIFEST = "MANIFEST.csv"


def training_pictures(data: Path) -> tuple[list[Path], list[Path]]:
    """HDR pictures and photos below a folder that training may see, each in the order of their paths.

    Left out are pictures whose row in a MANIFEST.csv, beside them or in `data`, has another split than "train"; HELD_OUT_PHOTOS and
    HELD_OUT_FOLDERS wherever they lie; and folders called "brackets" or holding a training run, whose pictures are no scenes.
    Raises InputError where the folder is not there or a manifest cannot be read.
    """
    if not data.is_dir():
        raise InputError(f"{data} is not a folder: --data names one that holds HDR pictures (.hdr, .exr) or photos (.jpg, .png)")
    hdr, photos = [], []
    of_all = _not_for_training(data / MANIFEST)
    for folder in sorted({data, *(p for p in data.iterdir() if p.is_dir())}):
        if folder.name in (*HELD_OUT_FOLDERS, "brackets") or (folder / "checkpoint.pt").exists():
            continue
        kept_for_testing = {*HELD_OUT_PHOTOS, *_not_for_training(folder / MANIFEST)}
        for path in sorted(folder.iterdir()):
            names = {path.name, path.relative_to(data).as_posix()}
            if path.name in kept_for_testing or names & of_all or not path.is_file():
                continue
            if path.suffix.lower() in HDR_SUFFIXES:
                hdr.append(path)
            elif path.suffix.lower() in PHOTO_SUFFIXES:
                photos.append(path)
    return hdr, photos


def _not_for_training(manifest: Path) -> set[str]:
    if not manifest.is_file():
        return set()
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as stream:  # spreadsheets put a byte order mark in front
            rows = csv.DictReader(stream)
            columns = rows.fieldnames or []
            if "file" in columns:
                return {row["file"] for row in rows if (row.get("split") or "train") != "train"}
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{manifest}: cannot be read ({error}); expected a table with the columns file and split") from None
    # Were it passed over, what it keeps out would be trained on.
    raise InputError(f"{manifest}: its columns are {', '.join(columns) or 'none'}; expected file and, to keep some out, split, with commas")
