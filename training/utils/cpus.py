"""How many CPUs a process may use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def available_cpus(root: Path = Path("/")) -> int:
    """The CPUs of this process's affinity mask, and no more than its control groups pay for, as in containers.

    `root` is where /proc and /sys are.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min([allowed, *map(math.ceil, _quotas(root))]), 1)


def _quotas(root: Path) -> Iterator[float]:
    """CPU time per time, of each control group that this process is in: version 1, 2 or both."""
    groups = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        # A container may see the path that its group has outside, and only its own group, as the root.
        for folder in (PurePosixPath(path), *PurePosixPath(path).parents):
            inside = folder.relative_to("/")
            if controllers == "":
                quota = _read(groups / inside / "cpu.max").split()  # "max 100000" or "150000 100000"
            elif "cpu" in controllers.split(","):
                quota = _read(groups / "cpu" / inside / "cpu.cfs_quota_us").split()  # "-1" or "150000"
                quota += _read(groups / "cpu" / inside / "cpu.cfs_period_us").split()
            else:
                continue
            if len(quota) == 2 and quota[0] not in ("max", "-1"):
                yield int(quota[0]) / int(quota[1])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
