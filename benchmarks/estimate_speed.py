"""Time and memory of the network alone, runtime by runtime, on one bracket that is aligned and merged already.

    python benchmarks/estimate_speed.py                     # 12 MP, 3 frames: OpenVINO (default, exact), ONNX Runtime, torch
    options: --megapixels 12 --frames 3 --runs 3 --runtimes openvino,openvino-exact --out results/estimate.jsonl
    openvino-full: OpenVINO, the picture at full size whatever its size (see estimate.ESTIMATED_PX)

Each runtime runs in processes of its own, in turn (interleaved). A process loads the model, estimates twice, and says how long each took:
the first includes compiling for the size of the tiles, the second does not. Peak memory is the process's maximum resident set less what it
held before the model was loaded. Medians over the runs. What the whole command takes: merge_speed.py.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
RUNTIMES = ("openvino", "openvino-exact", "openvino-full", "onnxruntime", "torch")


def child(name: str, megapixels: float, frames: int) -> None:
    """Print one line of JSON."""
    import numpy as np

    from gmodiff.align import Alignment
    from gmodiff.estimate import Estimator
    from gmodiff.image import Bracket, Frame
    from gmodiff.radiometry import CameraResponse
    from gmodiff.runtime import load_model

    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    width = round(megapixels * 1e6 / height)
    rng = np.random.default_rng(1)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / 400
    light = (0.05 * np.exp2(4 * np.abs(np.sin(x) * np.cos(y))))[..., None] * np.array([1, 0.8, 0.6], np.float32)
    response = CameraResponse.named("srgb")
    photos = []
    for i in range(frames):
        stops = 2.0 * (i - frames // 2)
        codes = np.empty(light.shape, np.uint8)
        for top in range(0, height, 256):
            encoded = response.encode(light[top : top + 256] * 2.0**stops) * 255 + rng.normal(0, 1, light[top : top + 256].shape)
            codes[top : top + 256] = np.clip(np.rint(encoded), 0, 255)
        photos.append(Frame(codes, 2.0**stops, f"frame_{i + 1}"))
    bracket = Bracket(tuple(photos), frames // 2, response)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    runtime, _, variant = name.partition("-")
    model = load_model(runtime=runtime, device="cpu" if runtime != "openvino" else "auto", exact=variant == "exact")
    estimate = Estimator(model, shrink=1 if variant == "full" else None)
    times = []
    for _ in range(2):
        started = time.perf_counter()
        estimate(bracket, [Alignment()] * frames, light)
        times.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {
                "runtime": name,
                "about": model.runtime + (", full size" if variant == "full" else ""),
                "first_s": times[0],
                "s": times[1],
                "extra_mb": (peak - before) * 1.024e-3,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--runtimes", default=",".join(RUNTIMES), help="comma-separated")
    parser.add_argument("--out", type=Path, help="JSON lines")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.megapixels, arguments.frames)
        return
    names = arguments.runtimes.split(",")
    rows: list[dict[str, Any]] = []
    for run in range(arguments.runs):
        for name in names:
            command = [
                sys.executable,
                __file__,
                "--child",
                name,
                "--megapixels",
                str(arguments.megapixels),
                "--frames",
                str(arguments.frames),
            ]
            done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
            rows.append({"run": run, "megapixels": arguments.megapixels, "frames": arguments.frames, **json.loads(done.stdout)})
    print("| MP | frames | runtime | network s | first time s | extra MB |\n|---:|---:|---|---:|---:|---:|")
    for name in names:
        mine = [r for r in rows if r["runtime"] == name]
        s, first, extra = (statistics.median(r[k] for r in mine) for k in ("s", "first_s", "extra_mb"))
        print(f"| {arguments.megapixels:g} | {arguments.frames} | {mine[0]['about']} | {s:.2f} | {first:.2f} | {extra:.0f} |")
    if arguments.out:
        arguments.out.write_text("".join(json.dumps(r) + "\n" for r in rows))


if __name__ == "__main__":
    main()
