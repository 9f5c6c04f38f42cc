"""Small cards full of brackets, and runners that need no processes."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from gmodiff.batch.one_set import make_set
from synthetic import photos, scene

STOPS = (0.0, -2.0, 2.0)


def write_set(folder: Path, first: int, *, seed: int = 0, height: int = 72, width: int = 96, minute: int = 0, iso: int = 100) -> list[Path]:
    """Three JPEGs of an automatic bracket, IMG_<first>.jpg and following, taken within a second."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    rising = tuple(sorted(STOPS))
    by_stop = dict(zip(rising, photos(scene(height, width, seed), rising, noise=0.004, seed=seed).frames, strict=True))
    for i, stop in enumerate(STOPS):
        exif = Image.Exif()
        exif[0x010F], exif[0x0110] = "Maker", "Model 1"
        exif.get_ifd(0x8769).update(
            {
                0x829A: 0.01 * 2.0**stop,
                0x829D: 8.0,
                0x8827: iso,
                0x9003: f"2026:05:01 10:{minute:02d}:00",
                0x9291: f"{3 * i}0",
                0x9204: stop,
                0xA402: 2,
            }
        )
        path = folder / f"IMG_{first + i:04d}.jpg"
        Image.fromarray(by_stop[stop].encoded).save(path, quality=95, subsampling=0, exif=exif)
        paths.append(path)
    return paths


def write_card(folder: Path, sets: int) -> list[list[Path]]:
    """Sets a minute apart."""
    return [write_set(folder, 3 * n, seed=n, minute=n) for n in range(sets)]


def run_inline(jobs, *, starting, ended, tick=lambda running: None, stop=None, **_):
    """As workers.run_here, in this process."""
    for job in jobs:
        if stop is not None and stop.finish:
            return
        starting(job)
        tick(1)
        ended(job, make_set(job))
