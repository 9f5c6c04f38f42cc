"""Wall time and peak memory of the whole command, beside OpenCV and beside reading and writing alone.

    python benchmarks/merge_speed.py                       # 3, 12, 24, 48 MP with 3 frames; 12 MP with 3, 5, 9 frames
    python benchmarks/merge_speed.py --quick               # 12 MP, 3 frames
    options: --megapixels 3,12 --frames 3,5 --runs 5 --out results/speed.jsonl

Brackets are made for the purpose: photos of ../shared/data/photos laid side by side at their own resolution (the project's example
where they are missing), highlights expanded, hand shake of about a thousandth of the width, exposures two stops apart (one for more than
five frames), an S-shaped response, noise, JPEG quality 95 with EXIF exposure times.
Contenders, each a fresh process, run in turn (interleaved), after one run each that is
not counted:
    gmodiff     python -m gmodiff merge ... -o out.jpg: align, merge, estimate, render, one Ultra HDR JPEG (photo and gain map, quality 95)
    ISO 3200    the same of photos that say so: noise is reduced too
    no network  the same with --model none
    opencv      read, AlignMTB, MergeDebevec told an sRGB response, write Radiance .hdr; keeps every ghost
    read+write  read the photos, write one JPEG: the floor for any tool that handles the same files (Pillow, as gmodiff reads)
Wall time is that of the process; peak memory its own maximum resident set (wait4). Medians over the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# This process stays small and imports nothing heavy: a child's peak memory starts from its parent's at the fork.

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT.parent / "shared" / "data" / "photos"
NOISY_ISO = 3200
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}


# ---- children -----------------------------------------------------------------------------------------------------------


def generate(folder: Path, megapixels: float, frames: int) -> None:
    """Write a bracket of JPEGs to folder."""
    import cv2
    import numpy as np
    from PIL import Image
    from PIL.ExifTags import IFD, Base
    from PIL.TiffImagePlugin import IFDRational

    from gmodiff.radiometry import srgb_decode
    from gmodiff.simulate import s_curve

    height = round((megapixels * 1e6 * 3 / 4) ** 0.5 / 16) * 16
    width = round(megapixels * 1e6 / height / 16) * 16
    files = sorted(PHOTOS.glob("*.jpg")) or [ROOT / "examples" / "sunset_2.jpg"]
    canvas = np.zeros((height + 64, width + 64, 3), np.uint8)
    rows, columns, used = 0, 0, 0
    while rows < canvas.shape[0]:
        photo = np.asarray(Image.open(files[(used * 37) % len(files)]).convert("RGB"))[:1000]
        part = canvas[rows : rows + 1000, columns : columns + photo.shape[1]]
        if photo.shape[0] == 1000 or len(files) == 1:
            photo = np.tile(photo, (2, 1, 1))
            part[:] = photo[: part.shape[0], : part.shape[1]]
            columns += photo.shape[1]
        used += 1
        if columns >= canvas.shape[1]:
            rows, columns = rows + 1000, 0
    rng = np.random.Generator(np.random.PCG64(12))
    codes = np.arange(256) / 255
    light = 0.35 * srgb_decode(codes) * (1 + 7 * np.clip((codes - 0.75) / 0.25, 0, 1) ** 2)
    response = s_curve()
    grain = rng.normal(0, 1.2, (512, 512, 3))
    for i in range(frames):
        stops = 2.0 * (i - frames // 2) if frames <= 5 else 1.0 * (i - frames // 2)
        table = np.asarray(response.encode(np.repeat((light * 2.0**stops)[:, None], 3, axis=1)) * 255)
        shake = rng.normal(0, width / 1000, 2) if i != frames // 2 else np.zeros(2)
        turn = rng.normal(0, 3e-4) if i != frames // 2 else 0.0
        matrix = np.array([[1, -turn, 32 + shake[0] + turn * height / 2], [turn, 1, 32 + shake[1] - turn * width / 2]])
        moved = cv2.warpAffine(canvas, matrix, (width, height), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
        for c in range(3):
            moved[..., c] = cv2.LUT(moved[..., c], np.rint(table[:, c]).astype(np.uint8))
        for top in range(0, height, 512):
            strip = moved[top : top + 512]
            noise = np.tile(np.roll(grain, int(rng.integers(512)), axis=1), (1, width // 512 + 1, 1))[: strip.shape[0], :width]
            strip[:] = np.clip(np.rint(strip + noise * (strip < 255)), 0, 255).astype(np.uint8)
        exif = Image.Exif()
        inner = exif.get_ifd(IFD.Exif)
        inner[Base.ExposureTime] = IFDRational(int(2.0 ** (stops + 10)), 2**16)
        inner[Base.FNumber], inner[Base.ISOSpeedRatings] = IFDRational(8, 1), 100
        Image.fromarray(moved).save(folder / f"frame_{i + 1}.jpg", quality=95, subsampling="4:2:0", exif=exif)
        inner[Base.ISOSpeedRatings] = NOISY_ISO
        Image.fromarray(moved).save(folder / f"noisy_{i + 1}.jpg", quality=95, subsampling="4:2:0", exif=exif)


def opencv(files: list[str], target: str) -> None:
    """OpenCV's alignment and merge."""
    import cv2
    import numpy as np

    frames = [np.asarray(cv2.imread(f)) for f in files]
    cv2.createAlignMTB().process(frames, frames)
    encoded = np.arange(256) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    response = np.repeat(np.maximum(linear, 1e-4).astype(np.float32)[:, None, None], 3, axis=2)
    times = np.array([4.0**i for i in range(len(files))], np.float32)
    cv2.imwrite(target, cv2.createMergeDebevec().process(frames, times, np.ascontiguousarray(response)))


def read_write(files: list[str], target: str) -> None:
    """Reading and writing alone."""
    import numpy as np
    from PIL import Image

    frames = [np.asarray(Image.open(f)) for f in files]
    Image.fromarray(frames[len(frames) // 2]).save(target, quality=95, subsampling="4:4:4")


# ---- the parent ---------------------------------------------------------------------------------------------------------


def measure(command: list[str]) -> dict[str, float]:
    """Wall and processor seconds and peak megabytes of one process; SystemExit where it fails."""
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        child = subprocess.Popen(command, env=ENVIRONMENT, stdout=said, stderr=said)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{said.read().decode()}")
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return {"wall_s": wall, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss * 1.024 / unit}


def contenders(files: list[str], folder: Path) -> dict[str, list[str]]:
    """Name to command line."""
    me = [sys.executable, str(Path(__file__)), "--child"]
    run = [sys.executable, "-m", "gmodiff", "merge", *files, "--force", "--quiet", "-o"]
    return {
        "gmodiff": [*run, str(folder / "out.jpg")],
        "gmodiff, ISO 3200": [*(f.replace("frame_", "noisy_") for f in run), str(folder / "quiet.jpg")],
        "no network": [*run, str(folder / "none.jpg"), "--model", "none"],
        "opencv": [*me, "opencv", *files, str(folder / "out.hdr")],
        "read+write": [*me, "read_write", *files, str(folder / "plain.jpg")],
    }


def sizes(arguments: argparse.Namespace) -> list[tuple[float, int]]:
    """(megapixels, frames) to measure."""
    if arguments.quick:
        return [(12, 3)]
    if arguments.megapixels is None and arguments.frames is None:
        return [(3, 3), (12, 3), (24, 3), (48, 3), (12, 5), (12, 9)]
    megapixels = [float(m) for m in (arguments.megapixels or "12").split(",")]
    return [(m, int(n)) for m in megapixels for n in (arguments.frames or "3").split(",")]


def startup(runs: int) -> list[dict[str, Any]]:
    """What it takes to start: an empty interpreter, the import, the help page."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import gmodiff": [sys.executable, "-c", "import gmodiff"],
        "gmodiff --help": [sys.executable, "-m", "gmodiff", "--help"],
    }
    for command in commands.values():
        measure(command)
    return [{"contender": name, "run": run, **measure(command)} for run in range(runs) for name, command in commands.items()]


def median(rows: list[dict[str, Any]], column: str, **wanted: object) -> float:
    return statistics.median(r[column] for r in rows if all(r.get(k) == v for k, v in wanted.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", help="comma-separated")
    parser.add_argument("--frames", help="comma-separated")
    parser.add_argument("--quick", action="store_true", help="12 MP, 3 frames")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON lines; a Markdown table is written beside it")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    lines = ["| MP | frames | contender | wall s | processor s | peak MB |", "|---:|---:|---|---:|---:|---:|"]
    print("\n".join(lines), flush=True)
    for megapixels, frames in sizes(arguments):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            child = [sys.executable, str(Path(__file__)), "--child", "generate", str(folder), str(megapixels), str(frames)]
            subprocess.run(child, check=True, env=ENVIRONMENT)
            files = [str(folder / f"frame_{i + 1}.jpg") for i in range(frames)]
            commands = contenders(files, folder)
            for run in range(-1, arguments.runs):
                for name, command in commands.items():
                    row = {"contender": name, "megapixels": megapixels, "frames": frames, "run": run, **measure(command)}
                    if run >= 0:
                        rows.append(row)
        for name in commands:
            wall, cpu, peak = (
                median(rows, c, contender=name, megapixels=megapixels, frames=frames) for c in ("wall_s", "cpu_s", "peak_mb")
            )
            lines.append(f"| {megapixels:g} | {frames} | {name} | {wall:.2f} | {cpu:.2f} | {peak:.0f} |")
            print(lines[-1], flush=True)
    starts = startup(max(arguments.runs, 5))
    lines += ["", "| start | wall s |", "|---|---:|"]
    lines += [f"| `{name}` | {median(starts, 'wall_s', contender=name):.3f} |" for name in dict.fromkeys(r["contender"] for r in starts)]
    print("\n".join(lines[-5:]))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        machine = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "python": sys.version.split()[0]}
        arguments.out.write_text("".join(json.dumps({**row, **machine}) + "\n" for row in rows + starts))
        arguments.out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        job, *rest = sys.argv[2:]
        if job == "generate":
            generate(Path(rest[0]), float(rest[1]), int(rest[2]))
        else:
            {"opencv": opencv, "read_write": read_write}[job](rest[:-1], rest[-1])
    else:
        main()
