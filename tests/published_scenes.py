"""Scenes in the layouts of published sets, written small."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from dataset_files import write_hdr
from gmodiff.datasets.published import PublishedScene, find_published
from gmodiff.image import Bracket
from gmodiff.radiometry import CameraResponse
from synthetic import photos, scene

GAMMA = CameraResponse.named("gamma2.2")


NAMES = ("262A0898.tif", "262A0899.tif", "262A0900.tif")


SHORT_WHITE = 4.0  # of photos at -2, 0, +2 stops


def bracket16(radiance: np.ndarray, stops: tuple[float, ...] = (-2.0, 0.0, 2.0)) -> Bracket:
    return photos(radiance, stops, response=GAMMA, dtype=np.uint16)


def write_photo(path: Path, codes: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), codes[..., ::-1])


def write_scene(
    folder: Path,
    radiance: np.ndarray | None = None,
    *,
    names: tuple[str, ...] = NAMES,
    text: str | None = "0.0\n2.0\n4.0\n",
    text_name: str = "exposure.txt",
    truth_name: str | None = "HDRImg.hdr",
) -> Bracket:
    """A scene as Kalantari's set has it. radiance: 1.0 = the middle photo's white."""
    light = scene(48, 64) if radiance is None else radiance
    bracket = bracket16(light)
    for name, frame in zip(names, bracket.frames, strict=True):
        write_photo(folder / name, frame.encoded)
    if text is not None:
        (folder / text_name).write_text(text)
    if truth_name is not None:
        write_hdr(folder / truth_name, light / SHORT_WHITE)
    return bracket


def only(root: Path) -> PublishedScene:
    (found,) = find_published(root)
    return found


def beside_a_good_one(tmp_path: Path) -> PublishedScene:
    """The broken scene "bad", once the good one beside it was seen to load."""
    write_scene(tmp_path / "good")
    found = {s.name: s for s in find_published(tmp_path)}
    assert found["good"].load().truth is not None
    return found["bad"]
