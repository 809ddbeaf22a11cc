"""Measures durations, and the limits of a device: the speed of a copy and of a matrix product."""

import contextlib
import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TypeVar

import torch


Key = TypeVar("Key", bound=Hashable)

# Makes glibc keep freed memory. By default it maps and unmaps every large tensor, and page faults, whose cost varies
# with the load of the machine, take half of the time of a network on a CPU.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**33), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
_CLOCK = 2e9  # cycles per second of a GPU, about
_LONGEST_PAUSE = 0.02  # seconds


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if line.startswith("model name")).split(":")[1].strip()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def keeps_freed_memory() -> bool:
    return ALLOCATOR.items() <= os.environ.items()


def keep_freed_memory() -> None:
    """Restarts this program with `ALLOCATOR` in its environment, on Linux, unless it has been started so."""
    if sys.platform == "linux" and not keeps_freed_memory():
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **ALLOCATOR})


def median_seconds(
    functions: dict[Key, Callable], repeats: int, warmup: int = 1, without_launches: bool = False
) -> dict[Key, float]:
    """Returns the median duration of each function in seconds.

    The functions take turns, so that what slows the machine slows all of them.

    Args:
        functions: called without arguments. Work that they start on an accelerator is part of their duration.
        repeats: calls of each function that are measured.
        warmup: calls of each function before them.
        without_launches: measures the time on the CUDA device only, without that in which Python launches the kernels.
            What fits into the caches of the device is in them. Each measurement takes two calls.
    """
    measure = _seconds_on_device if without_launches else _seconds
    times: dict[Key, list[float]] = {key: [] for key in functions}
    for turn in range(warmup + repeats):
        for key, function in functions.items():
            if turn < warmup:
                _seconds(function)
            else:
                times[key].append(measure(function))
    return {key: statistics.median(values) for key, values in times.items()}


def try_first_call(function: Callable, device: str) -> str:
    """Calls a function, which may compile it. Returns why it cannot be measured, or "" if it can."""
    try:
        function()
        _synchronize()
        return ""
    except Exception as error:  # of one side of a comparison; the others are still measured
        text = str(error).strip() or repr(error)
        memory = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text
        problem = "out of memory" if memory else f"failed: {text.splitlines()[0]}"
    free_memory(device)  # after the error, which refers to the tensors of the call
    return problem


def free_memory(device: str) -> None:
    """Gives memory that nothing uses back to a CUDA device."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _seconds(function: Callable) -> float:
    _synchronize()
    start = time.perf_counter()
    function()
    _synchronize()
    return time.perf_counter() - start


def _seconds_on_device(function: Callable) -> float:
    """Puts the kernels into the queue of the device behind a pause, in which Python launches them all."""
    _synchronize()
    start = time.perf_counter()
    function()
    pause = min(2 * (time.perf_counter() - start) + 1e-4, _LONGEST_PAUSE)
    _synchronize()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(int(pause * _CLOCK))
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def copy(device: str) -> tuple[Callable, int]:
    """A function that copies a tensor, and the bytes that it reads and writes: more than the caches hold."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * source.nbytes


def product(device: str, dtype: torch.dtype) -> tuple[Callable, int]:
    """A function that multiplies two large matrices, and its floating-point operations.

    On a CPU it computes in float32, as the kernels do for values of 16 bits. On a GPU, `dtype` decides whether tensor
    cores are used.
    """
    if device == "cpu":
        size, dtype = 1024, torch.promote_types(dtype, torch.float32)
    else:
        size = 8192 if dtype.itemsize == 2 else 4096
    first, second = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    target = torch.empty_like(first)
    return lambda: torch.mm(first, second, out=target), 2 * size**3
