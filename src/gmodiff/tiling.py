"""Work on strips of rows in threads, so that memory stays bounded and every core is used (NumPy and OpenCV release the GIL); and the
sizes and places of tiles that a network gets one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

STRIP_ROWS = 64
"""Rows of one strip: at 4000 px wide, a float32 RGB strip is 3 MB and a handful of them stay in the cache."""

BESIDE = 1.1
"""How much more work tiles side by side are than tiles over the whole width, whose inputs need no copying."""


def threads() -> int:
    """Cores this process may run on: a share of the machine in a container or a worker that was given its own."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def for_each_strip(
    work: Callable[[int, int], None],
    height: int,
    *,
    rows: int = STRIP_ROWS,
    workers: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Call work(first_row, end_row) for consecutive strips covering 0..height. Strips must not depend on each other.

    The first error is raised after the strips already started have ended. progress gets the fraction done, in this thread.
    """
    strips = [(r, min(r + rows, height)) for r in range(0, height, rows)]
    count = min(workers or threads(), len(strips))
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(work, first, end) for first, end in strips]
        try:
            for done, future in enumerate(futures, start=1):
                future.result()
                if progress is not None:
                    progress(done / len(futures))
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def tile_shape(height: int, width: int, most: tuple[int, int] | None, area: int, halo: int, stride: int) -> tuple[int, int]:
    """(rows, columns) of tiles, multiples of the stride: no larger than `most`, or `area` pixels, and with them least to compute.

    halo: how far around a pixel has to be seen; two halos and a stride have to fit the area.
    """

    def even(size: int, count: int) -> int:
        """The side of so many tiles that cover a size."""
        side = -(-(size + 2 * halo * (count - 1)) // count)
        return -(-side // stride) * stride

    def fewest(size: int, limit: int) -> int | None:
        """How many tiles of at most that side cover a size."""
        return next((n for n in range(1, size + 2) if even(size, n) <= limit), None) if limit > 2 * halo else None

    if most is not None:
        limits = [(-(-m // stride) * stride) for m in most]
        counts = [fewest(size, limit) or 1 for size, limit in zip((height, width), limits, strict=True)]
        return even(height, counts[0]), even(width, counts[1])
    best: tuple[float, tuple[int, int]] | None = None
    for across in range(1, 1 + -(-width // (2 * halo))):
        columns = even(width, across)
        down = fewest(height, area // columns)
        if down is not None:
            tile = even(height, down), columns
            work = across * down * tile[0] * tile[1] * (1 if across == 1 else BESIDE)
            if best is None or work < best[0]:
                best = work, tile
    assert best is not None  # tiles of two halos and a stride fit the area
    return best[1]


def tile_cores(size: int, tile: int, halo: int) -> list[tuple[int, int]]:
    """What each tile is trusted with: all but a halo at sides where another tile goes on. Bounds are multiples of the stride, so
    that every tile folds pixels into cells as the whole picture would.
    """
    bounds = [0]
    if size > tile:
        bounds.append(tile - halo)
        while size - bounds[-1] > tile - halo:
            bounds.append(bounds[-1] + tile - 2 * halo)
    return list(pairwise([*bounds, size]))


def tile_start(first: int, size: int, tile: int, halo: int, stride: int) -> int:
    """Where the tile of a core begins. The last one ends where the whole picture would: what lies beyond its edge counts too."""
    end = -(-size // stride) * stride
    return max(min(first - halo, end - tile), 0)
