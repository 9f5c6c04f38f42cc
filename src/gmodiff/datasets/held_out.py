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

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")
MANIFEST = "MANIFEST.csv"


def training_pictures(data: Path) -> tuple[list[Path], list[Path]]:
    """HDR pictures and photos below a folder that training may see, each in the order of their paths.

    Left out are pictures whose row in a MANIFEST.csv beside them has another split than "train", and HELD_OUT_PHOTOS wherever they
    lie. Raises InputError where the folder is not there or a manifest cannot be read.
    """
    if not data.is_dir():
        raise InputError(f"{data} is not a folder: --data names one that holds HDR pictures (.hdr, .exr) or photos (.jpg, .png)")
    hdr, photos = [], []
    for folder in sorted({data, *(p for p in data.iterdir() if p.is_dir() and p.name != "brackets")}):
        kept_for_testing = _not_for_training(folder / MANIFEST)
        for path in sorted(folder.iterdir()):
            if path.name in kept_for_testing or path.name in HELD_OUT_PHOTOS or not path.is_file():
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
        with manifest.open(newline="") as stream:
            return {row["file"] for row in csv.DictReader(stream) if (row.get("split") or "train") != "train"}
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise InputError(f"{manifest}: not a table with the columns file and split ({type(error).__name__}: {error})") from None
