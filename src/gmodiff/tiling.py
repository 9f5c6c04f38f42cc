"""Work on strips of rows in threads, so that memory stays bounded and every core is used (NumPy and OpenCV release the GIL)."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

STRIP_ROWS = 64
"""Rows of one strip: at 4000 px wide, a float32 RGB strip is 3 MB and a handful of them stay in the cache."""


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
