"""What this machine can do at once: cores, memory, and how much of both a set takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise

from gmodiff.tiling import threads

NETWORK_BYTES, BASE_BYTES = 1_900_000_000, 200_000_000
"""Of a worker with its libraries: with the network, its tiles and the programs for two sizes of them that it keeps; and without."""

BYTES_PER_PIXEL, BYTES_PER_FRAME_PIXEL = 20, 11
"""Peak of a merge beyond that: per pixel of the picture, and further per pixel of each photo of 8 bits."""

RAW_BYTES_PER_PIXEL = 42
"""While LibRaw develops a photo, on top of what its 16-bit pixels take."""

KEPT_FREE = 0.15
"""Share of the free memory that is left to everything else."""


def set_bytes(pixels: int, frames: int, *, raw: bool = False, network: bool = True) -> int:
    """Most memory that merging a set of so many pixels a photo takes, in bytes: measured, and a tenth more (docs/batch.md)."""
    per_frame = BYTES_PER_FRAME_PIXEL * (2 if raw else 1)
    per_pixel = BYTES_PER_PIXEL + per_frame * frames + (RAW_BYTES_PER_PIXEL if raw else 0)
    return (NETWORK_BYTES if network else BASE_BYTES) + pixels * per_pixel


def shown_bytes(count: int) -> str:
    """1.9 GB, or 1 MB: for a person."""
    return f"{count / 1e9:.1f} GB" if count >= 10**8 else f"{count / 1e6:.0f} MB"


def worker_count(sizes: Sequence[int], memory: int, asked: int | None = None) -> int:
    """Workers for sets of so many bytes: as many as asked, else as cores, and never more than sets, or than memory holds of most sets."""
    if not sizes:
        return 1
    usual = sorted(sizes)[len(sizes) // 2]
    by_memory = max(int(memory // usual), 1)
    return max(min(asked or threads(), by_memory, len(sizes)), 1)


def core_shares(workers: int) -> list[list[int]]:
    """Cores of each worker: all of them, dealt out evenly; [] each where the system does not let a process choose."""
    if not hasattr(os, "sched_getaffinity"):
        return [[] for _ in range(workers)]
    cores = sorted(os.sched_getaffinity(0))
    if workers >= len(cores):
        return [[cores[i % len(cores)]] for i in range(workers)]
    edges = [round(i * len(cores) / workers) for i in range(workers + 1)]
    return [cores[a:b] for a, b in pairwise(edges)]
