"""What the shipped refiner costs: its parts on one square, one step beside fifty, the whole command, and a system as large as Stable
Diffusion 2.1.

    python benchmarks/refiner_cost.py                 # options: --megapixels 12 --runs 3 --against-sd21 256
Parts: torch, float32, one thread, one square as the card has it (192 pixels and its surroundings); operations as torch counts them, two for
a multiplication and an addition. The command: three photos of so many megapixels made from the example's, OpenVINO, medians of seconds and
of peak memory, runs in turn. --against-sd21 PX: seconds of the UNet of Stable Diffusion 2.1 (`full_model_cost`, random weights) on square
crops of half and all of so many pixels a side, scaled by area to 1500x1000 and by 50 steps, beside the whole command on such photos,
refined.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import gmodiff
from full_model_cost import SCHEDULER, STEPS, UNET, VAE, operations
from gmodiff.align import align
from gmodiff.bracket import read_bracket
from gmodiff.estimate import Estimator
from gmodiff.merge import merge
from gmodiff.model.diffusion import ONE_STEP_AT
from gmodiff.model.refiner import read_refiner
from gmodiff.model_card import Card
from gmodiff.refine import CORE_PX, Refinement
from gmodiff.runtime import load_model, refiner_card

ROOT = Path(__file__).parents[1]
WEIGHTS = Path(gmodiff.__file__).parent / "weights"
LAUNCHER = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(child.pid, 0)
print(used.ru_maxrss)
sys.exit(bool(status))
"""
"""Between us and a command whose memory is measured: the peak of a child begins with what its parent held, and we hold much."""


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
    side = CORE_PX + 2 * Card.read(WEIGHTS / "compact-refiner.json").halo_px
    refiner, _ = read_refiner(WEIGHTS / "compact-refiner.safetensors")
    gain, short = torch.rand(1, 3, side, side), torch.rand(1, 3, side, side)
    mask = torch.rand(1, 1, side // 4, side // 4)
    context = [torch.randn(1, w, side // f, side // f) for w, f in zip(refiner.denoiser.shape.context, (8, 16, 32), strict=True)]
    small, at = torch.nn.functional.avg_pool2d(mask, 2), torch.full((1,), ONE_STEP_AT)
    with torch.no_grad():
        latent, skips = refiner.latent(gain)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))

    def loop(steps: int) -> object:
        return refiner.refine(gain, short, mask, context, noise=noise, steps=steps)

    def denoise(times: int) -> None:
        for _ in range(times):
            refiner.denoiser(latent, latent, small, context, at)

    works: dict[str, Callable[[], object]] = {
        "encode one picture": lambda: refiner.latent(gain),
        "denoise once": lambda: denoise(1),
        "denoise fifty times": lambda: denoise(STEPS),
        "decode": lambda: refiner.decoded(latent, skips, context[0], small),
        "one step, whole": lambda: refiner.refine(gain, short, mask, context),
        "fifty steps from noise, whole": lambda: loop(STEPS),
    }
    timed = {}
    with torch.no_grad():
        for name, work in works.items():
            timed[name] = seconds(work, 1 if "fifty" in name else runs)
            print(f"{name}: {1e3 * timed[name]:.0f} ms, {operations(work) / 1e9:.1f} GFLOP a square of {side} px")
    print(f"fifty steps take {timed['fifty steps from noise, whole'] / timed['one step, whole']:.1f} times as long as one")
    print(f"the denoiser runs {STEPS} times instead of once: {1e3 * timed['denoise fifty times']:.0f} ms")


def photos(place: Path, megapixels: float) -> list[Path]:
    """The example's bracket at another size."""
    width, found = round((megapixels * 1.5e6) ** 0.5), []
    for path in sorted((ROOT / "examples").glob("*.jpg")):
        image = Image.open(path)
        found.append(place / path.name)
        image.resize((width, round(width / 1.5)), Image.Resampling.LANCZOS).save(found[-1], exif=image.info["exif"], quality=92)
    return found


def merged(given: Sequence[Path], more: Sequence[str], place: Path) -> tuple[float, float]:
    """Seconds and peak MB of `gmodiff merge`, the whole process."""
    words = ["merge", *map(str, given), *more, "-o", f"{place}/out.jpg", "--force", "--quiet"]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, sys.executable, "-m", "gmodiff", *words], capture_output=True, text=True, check=True
    )
    return time.perf_counter() - began, float(done.stdout) * 1.024 / 1000


class Counted:
    """A refiner that says what the estimate says, and how often it was asked."""

    runtime = "counted"

    def __init__(self, card: Card) -> None:
        self.card, self.asked = card, 0

    def __call__(self, square: Mapping[str, Any]) -> dict[str, Any]:
        """See `model_card.Model`."""
        self.asked += 1
        return {"refined": square["gain"]}


def squares(given: Sequence[Path]) -> tuple[int, int]:
    """How many squares of a bracket are refined, and how many there are."""
    bracket = read_bracket(given)
    alignments = align(bracket)
    radiance, model, card = merge(bracket, alignments).radiance, load_model("compact"), refiner_card("compact")
    asked = []
    for threshold in (card.facts["threshold"], 0.0):
        counted = Counted(replace(card, facts={**card.facts, "threshold": threshold}))
        Estimator(model, refinement=Refinement(counted))(bracket, alignments, radiance)
        asked.append(counted.asked)
    return asked[0], asked[1]


def command(megapixels: float, runs: int) -> None:
    """gmodiff merge without refining and with it, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        given = photos(place, megapixels)
        some, of = squares(given)
        found: dict[str, list[tuple[float, float]]] = {"0": [], "1": []}
        for _ in range(runs):
            for share, made in found.items():
                made.append(merged(given, ["--refine", share], place))
        (plain, plain_mb), (refined, refined_mb) = (np.median(found[s], axis=0) for s in ("0", "1"))
        print(f"{megapixels:g} megapixels, {some} of {of} squares refined, the whole command:")
        print(f"  {plain:.2f} s, refined {refined:.2f} s ({refined - plain:+.2f} s); {plain_mb:.0f} MB, refined {refined_mb:.0f} MB")
        print(f"  runs: {found}")


def against_sd21(side: int, runs: int) -> None:
    """Fifty steps of Stable Diffusion 2.1's UNet on the processor, scaled, and the whole command on 1500x1000."""
    from gmodiff.model import sd21

    torch.set_num_threads(2)
    with torch.device("meta"):
        unet = sd21.Sd21(UNET, VAE, SCHEDULER).unet
    unet = unet.to_empty(device="cpu").eval()
    for tensor in (*unet.parameters(), *unet.buffers()):
        if tensor.is_floating_point():
            tensor.detach().uniform_(-0.03, 0.03)
    scaled = []
    for px in (side // 2, side):
        latents, context, at = torch.rand(1, 8, px // 8, px // 8), torch.rand(1, (px // 32) ** 2, 1024), torch.full((1,), 499)
        with torch.no_grad():
            once = seconds(partial(unet, latents, at, encoder_hidden_states=context), runs)
        scaled.append(once * STEPS * 1500 * 1000 / px**2)
        print(f"UNet of Stable Diffusion 2.1, {px}x{px} crop, float32, two threads: {once:.2f} s an evaluation")
        print(f"  scaled to {STEPS} steps without guidance at 1500x1000: {scaled[-1]:.0f} s")
    with tempfile.TemporaryDirectory() as folder:
        given = photos(Path(folder), 1.5)
        ours = statistics.median(merged(given, ["--refine", "1"], Path(folder))[0] for _ in range(runs))
    print(f"gmodiff merge --refine 1 at 1500x1000, whole: {ours:.2f} s; ratio {scaled[0] / ours:.0f} and {scaled[1] / ours:.0f}")


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--against-sd21", type=int, metavar="PX")
    arguments = parser.parse_args()
    parts(arguments.runs)
    command(arguments.megapixels, arguments.runs)
    if arguments.against_sd21 is not None:
        against_sd21(arguments.against_sd21, arguments.runs)


if __name__ == "__main__":
    main()
