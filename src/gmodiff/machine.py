"""What of this machine is free for this process: memory, and files that no other process holds."""

from __future__ import annotations

import os
from pathlib import Path


def free_bytes() -> int:
    """Memory that can be used without swapping, in bytes: what the system says is available, or a container's limit if less."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):
            continue  # "max", or no such control group
    if found:
        return max(min(found), 0)
    try:
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 0.6)
    except (AttributeError, OSError, ValueError):
        return 4 << 30


def held_alone(file: int) -> bool:
    """Whether an open file or folder (its descriptor) now belongs to this process alone, for as long as it stays open; the system lets go
    of it whatever ends the process. True too where nothing keeps processes apart: on Windows, on a network disk without locks.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a network disk without locks
    return True
