"""The number of CPUs that a process may use."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def available_cpus(root: Path = Path("/")) -> int:
    """The number of CPUs in the affinity mask of this process, limited by the CPU quota of its control groups (as in
    containers).

    Args:
        root: the folder that contains proc and sys.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min([allowed, *map(math.ceil, _quotas(root))]), 1)


def _quotas(root: Path) -> Iterator[float]:
    """Yields the CPU quota of each control group (version 1 or 2) of this process, in CPUs."""
    groups = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        # In a container, the path may be that of the host, while the container sees only its own group, as the root.
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
