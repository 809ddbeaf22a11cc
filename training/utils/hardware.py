"""The name of the hardware that a run uses, for its card."""

import contextlib
import platform
from pathlib import Path

import torch


def describe_hardware(device: torch.device, num_processes: int) -> str:
    """
    Returns for example `8 x NVIDIA H100`, or `4 threads of AMD EPYC 9B14`.

    Args:
        device: of this process. All processes have such a device, and as many threads as this one.
    """
    if device.type == "cuda":
        return f"{num_processes} x {torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        return f"{num_processes} x {device.type}"
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):  # only on Linux, and not on Arm
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    threads = num_processes * torch.get_num_threads()
    return f"{threads} thread{'s' * (threads != 1)} of {name}"
