"""What estimating a large picture at a smaller size costs in quality, on real photos, in one run.

    python benchmarks/estimate_size.py FOLDER IMG_1.JPG IMG_2.JPG IMG_3.JPG       # a tripod bracket, and which of its photos are seen

The three photos are merged; the network estimates on that merge at full size, half and a third of a side; each is held to what the
reference measured. Printed: PSNR-mu against the truth, which is the merge of all photos of the folder (up to one factor, the exposures
being fitted), PSNR-mu against full size, and seconds. Nothing is aligned: the photos must come from a tripod.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np

from gmodiff.align import Alignment
from gmodiff.bracket import read_bracket
from gmodiff.estimate import Estimator
from gmodiff.image import Bracket
from gmodiff.merge import merge
from gmodiff.provenance import constrain
from gmodiff.radiometry import F32
from gmodiff.runtime import load_model

PHOTOS = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}


def merged(bracket: Bracket) -> F32:
    """(H, W, 3) radiance of photos that lie on each other."""
    return merge(bracket, [Alignment()] * len(bracket.frames)).radiance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("photos", nargs="+", help="names of the photos that are seen")
    parser.add_argument("--model", default="compact")
    arguments = parser.parse_args()
    bracket = read_bracket([arguments.folder / name for name in arguments.photos])
    reference = bracket.frames[bracket.reference]
    found = {"classical merge": merged(bracket)}
    model = load_model(arguments.model)
    seconds = {}
    for name, shrink in (("full size", 1), ("half", 2), ("a third", 3)):
        started = time.perf_counter()
        radiance = Estimator(model, shrink=shrink)(bracket, [Alignment()] * len(bracket.frames), found["classical merge"]).radiance
        seconds[name] = time.perf_counter() - started
        found[name] = constrain(radiance, reference.encoded, bracket.response, reference.noise)

    everything = sorted(p for p in arguments.folder.iterdir() if p.suffix.lower() in PHOTOS)
    truth = merged(read_bracket(everything))
    known = (found["classical merge"] > 0.02) & (found["classical merge"] < 0.8) & (truth > 0)
    truth *= np.float32(np.median(found["classical merge"][known] / truth[known]))
    white = np.float32(1 / min(bracket.relative_exposures))

    def psnr_mu(a: F32, b: F32) -> float:
        """PSNR of log(1 + 5000 h) / log(5001), h relative to the short frame's white."""
        x, y = (np.log1p(np.float32(5000) * np.clip(v / white, 0, 1)) / np.float32(math.log(5001)) for v in (a, b))
        return float(-10 * np.log10(np.mean((x - y) ** 2, dtype=np.float64)))

    print(f"{arguments.folder.name}, {bracket.shape[1]}x{bracket.shape[0]}, {len(bracket.frames)} of {len(everything)} photos, mu 5000")
    print("| | PSNR-mu | against full size | network s |\n|---|---:|---:|---:|")
    for name, radiance in found.items():
        against = "–" if name == "full size" else f"{psnr_mu(radiance, found['full size']):.1f}"
        print(f"| {name} | {psnr_mu(radiance, truth):.2f} | {against} | {seconds.get(name, math.nan):.1f} |".replace("nan", "–"))


if __name__ == "__main__":
    main()
