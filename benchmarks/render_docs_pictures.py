"""Before and after, for docs/: the reference photo, OpenCV's merge, ours, where the light came from, and the highlights.

    python benchmarks/render_docs_pictures.py                              # docs/pictures: the example and hdrtb_handheld
    python benchmarks/render_docs_pictures.py hdrtb_ghost_hall --out /somewhere

hdrtb_handheld (MPL-2.0) and hdrtb_ghost_hall (GPL-3.0: not for docs/) are looked for in ../shared/data/brackets; what is missing there
is left out with a line saying so. OpenCV's merge (AlignMTB, MergeDebevec) is told our estimate of the response and the exposures, and is
rendered by our tone mapping, so that what differs is the merge.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import gmodiff
from gmodiff.image import Bracket
from gmodiff.radiometry import srgb_encode
from gmodiff.tonemap import render
from gmodiff.writer import PROVENANCE_COLOURS

Array = NDArray[np.float32]
ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data" / "brackets"
SIDE = 900
"""Longer side of the pictures, pixels."""

SETS = {
    "sunset": (ROOT / "examples", "*.jpg"),
    "hdrtb_handheld": (SHARED / "hdrtb_handheld", "*.jpg"),
    "hdrtb_ghost_hall": (SHARED / "hdrtb_ghost_hall", "*.JPG"),
}
REDISTRIBUTABLE = ("sunset", "hdrtb_handheld")


def opencv(bracket: Bracket) -> Array:
    """(H, W, 3) radiance by OpenCV: frames shifted by AlignMTB, weighted mean of log radiance."""
    frames = [f.encoded.copy() for f in bracket.frames]
    cv2.createAlignMTB().process(frames, frames)
    response = bracket.response.codes(np.dtype(np.uint8))
    response[0] = response[1] / 4  # it takes the logarithm
    times = np.asarray(bracket.relative_exposures, np.float32)
    return np.asarray(cv2.createMergeDebevec().process(frames, times, response[:, None, :].copy()), np.float32)


def darker(light: Array, stops: float) -> NDArray[np.uint8]:
    """Display-linear light as an sRGB picture, a number of stops down."""
    return np.asarray(np.rint(srgb_encode(np.clip(light * 2.0**-stops, 0, 1)) * 255), np.uint8)


def brightest_part(light: Array, share: float = 0.42) -> tuple[slice, slice]:
    """The window, a share of the picture's sides, that holds most light above white."""
    height, width = (round(n * share) for n in light.shape[:2])
    over = cv2.blur(np.clip(light.max(axis=-1) - 1, 0, 4), (width | 1, height | 1), borderType=cv2.BORDER_CONSTANT)
    over = over[height // 2 : light.shape[0] - height // 2, width // 2 : light.shape[1] - width // 2]
    top, left = np.unravel_index(int(over.argmax()), over.shape)
    return slice(int(top), int(top) + height), slice(int(left), int(left) + width)


def save(path: Path, pixels: NDArray[np.uint8], quality: int = 86) -> None:
    """Scale to SIDE and write."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    picture.save(path, quality=quality, optimize=True)
    print(f"{path.name:34s} {picture.width}x{picture.height} {path.stat().st_size / 1e3:6.0f} kB")


def pictures(name: str, out: Path) -> None:
    """All pictures of one set."""
    folder, pattern = SETS[name]
    files = sorted(folder.glob(pattern))
    if len(files) < 2:
        print(f"{name}: left out, {folder} holds no bracket")
        return
    bracket = gmodiff.read_bracket([str(f) for f in files])
    image = gmodiff.reconstruct(bracket)
    base, provenance = image.base, image.provenance
    if base is None or provenance is None:
        raise SystemExit(f"{name}: the merge gave no base or no provenance")
    reference = bracket.frames[bracket.reference].encoded
    save(out / f"{name}_reference.jpg", reference)
    save(out / f"{name}_opencv.jpg", render(opencv(bracket), bracket).base)
    save(out / f"{name}_gmodiff.jpg", base)
    labels = Image.fromarray(provenance)
    labels.thumbnail((SIDE, SIDE), Image.Resampling.NEAREST)
    labels.putpalette([value for colour in PROVENANCE_COLOURS for value in colour])
    labels.save(out / f"{name}_provenance.png", optimize=True)
    # Highlights two stops down: the reference on the left, what was recovered on the right.
    shown = image.rendition()
    window = brightest_part(shown)
    from_reference = np.asarray(image.base_colour.decode(reference / 255.0), np.float32)
    pair = [darker(light[window], 2.0) for light in (from_reference, shown)]
    save(out / f"{name}_highlights.jpg", np.concatenate([pair[0], np.full((pair[0].shape[0], 8, 3), 255, np.uint8), pair[1]], axis=1))
    if name == "sunset":
        gmodiff.write(image, out / f"{name}_hdr.jpg", quality=85, compact=True, strip=True, force=True)
        print(f"{name}_hdr.jpg {(out / f'{name}_hdr.jpg').stat().st_size / 1e3:.0f} kB, an Ultra HDR photo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=list(REDISTRIBUTABLE), metavar="SET", help=", ".join(SETS))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    arguments = parser.parse_args()
    for name in arguments.sets:
        if name not in SETS:
            parser.error(f"unknown set {name!r}: expected {', '.join(SETS)}")
        if name not in REDISTRIBUTABLE and arguments.out.resolve().is_relative_to(ROOT):
            parser.error(f"{name} may not be redistributed here: give --out a folder outside the project")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.sets:
        pictures(name, arguments.out)


if __name__ == "__main__":
    main()
