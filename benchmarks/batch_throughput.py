"""Sets an hour against workers, and how near that is to the ideal: the sum of single runs on a worker's share of cores, over workers.

    python benchmarks/batch_throughput.py --sets 40 --megapixels 12 --workers 1 2 -o benchmarks/results/batch_throughput.md

Makes its own photos (three frames of a simulated hand-held scene, two stops apart), merges them with the network, and writes a table.
Time of loading the network is part of both; wall time is that of the batch, manifest and syncing included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from gmodiff.batch.capacity import core_shares, set_bytes
from gmodiff.batch.manifest import Manifest
from gmodiff.batch.one_set import Settings
from gmodiff.batch.plan_file import PlanFile, PlannedSet
from gmodiff.batch.run import MANIFEST, run_batch
from gmodiff.runtime import state_of
from synthetic import photos, scene

FRAMES = 3


def make_sets(folder: Path, count: int, megapixels: float) -> PlanFile:
    """Brackets of one scene, each shifted by another distance."""
    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    width = round(height * 1.5)
    frames = photos(scene(height, width), (-2.0, 0.0, 2.0), noise=0.004).frames
    sets = []
    for n in range(count):
        paths = []
        for i, frame in enumerate(frames):
            exif = Image.Exif()
            exif.get_ifd(0x8769).update({0x829A: 0.01 * 4.0 ** (i - 1), 0x829D: 8.0, 0x8827: 100})
            path = folder / f"{n}_{i}.jpg"
            moved = np.roll(frame.encoded, (17 * n + 3 * i, 29 * n + 5 * i), (0, 1))  # 3 and 5 pixels between photos: as by hand
            Image.fromarray(moved).save(path, quality=92, exif=exif)
            paths.append(str(path))
        sets.append(PlannedSet(f"{n}.jpg", tuple(paths), pixels=width * height))
    return PlanFile(tuple(sets))


def measure(plan: PlanFile, workers: int, settings: Settings) -> tuple[float, list[float], int]:
    """(wall seconds of the batch, seconds of each set in its worker, most megabytes of a worker)."""
    with tempfile.TemporaryDirectory() as out:
        done = run_batch(plan, out, settings, workers=workers)
        assert not done.failed, done
        rows = Manifest(Path(out) / MANIFEST).finished.values()
        return done.seconds, [r["seconds"] for r in rows], max(r["peak_mb"] or 0 for r in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=40)
    parser.add_argument("--singles", type=int, default=3, help="sets run alone, for the ideal")
    parser.add_argument("--megapixels", type=float, default=12)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--model", default="compact")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    weights = "" if options.model == "none" else state_of(options.model)
    settings = Settings(model=options.model, weights=weights)
    folder = Path(tempfile.mkdtemp())
    every = os.sched_getaffinity(0)
    load = os.getloadavg()[0]
    try:
        plan = make_sets(folder, options.sets, options.megapixels)
        rows = []
        for workers in options.workers:
            os.sched_setaffinity(0, core_shares(workers)[0])
            alone = [measure(PlanFile((one,)), 1, settings)[0] for one in plan.sets[: options.singles]]
            os.sched_setaffinity(0, every)
            wall, inside, peak = measure(plan, workers, settings)
            # A single run loads libraries and network each time, a worker once: the ideal counts both as they are.
            ideal = options.sets * sum(alone) / len(alone) / workers
            mean = sum(alone) / len(alone)
            row = {
                "workers": workers,
                "sets": options.sets,
                "wall_s": round(wall, 1),
                "sets_per_hour": round(3600 * options.sets / wall, 1),
            }
            row |= {"single_s": round(mean, 1), "in_worker_s": round(sum(inside) / len(inside), 1)}
            rows.append(row | {"of_ideal": round(ideal / wall, 2), "peak_mb": peak})
            print(json.dumps(rows[-1]), flush=True)
    finally:
        shutil.rmtree(folder)
    estimated = round(set_bytes(round(options.megapixels * 1e6), FRAMES, network=options.model != "none") / 1e6)
    table = [
        f"{options.sets} sets of {FRAMES} frames of {options.megapixels:g} megapixels, model {options.model}; {platform.machine()}, "
        f"{len(every)} cores, load {load:.1f} before; memory reckoned for a set: {estimated} MB.",
        "",
        "| workers | wall | sets/hour | single run | a set in a worker | of ideal | peak a worker |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {r['workers']} | {r['wall_s']} s | {r['sets_per_hour']} | {r['single_s']} s | {r['in_worker_s']} s | {r['of_ideal']} "
            f"| {r['peak_mb']} MB |"
            for r in rows
        ),
        "",
    ]
    print("\n".join(table))
    if options.output is not None:
        options.output.write_text("\n".join(table))


if __name__ == "__main__":
    main()
