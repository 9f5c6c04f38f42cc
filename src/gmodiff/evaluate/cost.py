"""What a method costs: wall time, and the memory it needed above what was held before."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measured(work: Callable[[], T]) -> tuple[T, float, float | None]:
    """Result, seconds and megabytes (10**6 bytes) of a call.

    Memory is the highest resident size during the call less the size before it: what the method adds, result included. It is read from
    Linux's /proc, whose high-water mark can be reset; elsewhere it is None, since a mark that never falls says nothing about one call.
    """
    _give_back_free_memory()
    before = _reset_peak()
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    peak = _status_kb("VmHWM") if before is not None else None
    return result, seconds, None if peak is None or before is None else max(0.0, (peak - before) * 1024 / 1e6)


def _give_back_free_memory() -> None:
    """What earlier calls freed but the allocator kept would hide what this one takes."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc has it, musl does not
    if trim is not None:
        trim(0)


def _reset_peak() -> int | None:
    """Resident size in KiB, the high-water mark set back to it; None where the system cannot."""
    try:
        CLEAR.write_text("5")  # proc(5): 5 resets VmHWM
    except OSError:
        return None
    return _status_kb("VmRSS")


def _status_kb(field: str) -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(field + ":")), None)
