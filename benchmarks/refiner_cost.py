"""What the shipped refiner costs: its parts on one tile, one step beside fifty, and the whole command with and without it.

    python benchmarks/refiner_cost.py                 # options: --megapixels 12 --runs 3
Parts: torch, float32, one thread, a square of 448 pixels (a core of 192 and its surroundings). The command: three photos of so many
megapixels made from the example's, OpenVINO, medians of runs in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

import gmodiff
from gmodiff.model.refiner import read_refiner
from gmodiff.refine import CORE_PX

SIDE = CORE_PX + 256
ROOT = Path(__file__).parents[1]


def seconds(work: Callable[[], object], runs: int) -> float:
    """Median of some runs after one that does not count."""
    work()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def parts(runs: int) -> None:
    """Encoder, denoiser, decoder; one step and fifty."""
    torch.set_num_threads(1)
    refiner, _ = read_refiner(Path(gmodiff.__file__).parent / "weights" / "compact-refiner.safetensors")
    gain, short = torch.rand(1, 3, SIDE, SIDE), torch.rand(1, 3, SIDE, SIDE)
    mask = torch.rand(1, 1, SIDE // 4, SIDE // 4)
    context = [torch.randn(1, w, SIDE // f, SIDE // f) for w, f in zip((64, 128, 192), (8, 16, 32), strict=True)]
    small, at = torch.nn.functional.avg_pool2d(mask, 2), torch.full((1,), 499)
    with torch.no_grad():
        latent, skips = refiner.latent(gain)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
        timed = {
            "encode one picture": seconds(lambda: refiner.latent(gain), runs),
            "denoise once": seconds(lambda: refiner.denoiser(latent, latent, small, context, at), runs),
            "decode": seconds(lambda: refiner.decoded(latent, skips, context[0], small), runs),
            "one step, whole": seconds(lambda: refiner.refine(gain, short, mask, context), runs),
            "fifty steps from noise, whole": seconds(lambda: refiner.refine(gain, short, mask, context, noise=noise, steps=50), 1),
        }
    for name, took in timed.items():
        print(f"{name}: {1e3 * took:.0f} ms a square of {SIDE} px")
    print(f"fifty steps take {timed['fifty steps from noise, whole'] / timed['one step, whole']:.1f} times as long as one")


def command(megapixels: float, runs: int) -> None:
    """gmodiff merge with --refine 0 and 1, in turn."""
    with tempfile.TemporaryDirectory() as place:
        width = round((megapixels * 1.5e6) ** 0.5)
        photos = []
        for path in sorted((ROOT / "examples").glob("*.jpg")):
            image = Image.open(path)
            photos.append(Path(place) / path.name)
            image.resize((width, round(width / 1.5)), Image.Resampling.LANCZOS).save(photos[-1], exif=image.info["exif"], quality=92)
        times: dict[str, list[float]] = {"0": [], "1": []}
        for _ in range(runs):
            for share, found in times.items():
                words = ["merge", *map(str, photos), "--refine", share, "-o", f"{place}/out.jpg", "--force", "--json"]
                began = time.perf_counter()
                done = subprocess.run([sys.executable, "-m", "gmodiff", *words], capture_output=True, text=True, check=True)
                found.append(time.perf_counter() - began)
                json.loads(done.stdout)
        plain, refined = (statistics.median(times[s]) for s in ("0", "1"))
        print(f"{megapixels:g} megapixels, whole command: {plain:.2f} s, refined {refined:.2f} s ({refined - plain:+.2f} s); runs {times}")


def main() -> None:
    """Both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    parts(arguments.runs)
    command(arguments.megapixels, arguments.runs)


if __name__ == "__main__":
    main()
