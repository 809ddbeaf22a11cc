"""What the benchmarks share: how time and memory are measured, and how they are recorded."""

import argparse
import contextlib
import csv
import datetime
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rednet.training.utils.cpus import available_cpus


# Tells glibc to keep what is freed. By default every large tensor is mapped and unmapped anew, and page faults, whose
# cost changes with the machine's mood, are half of the time of a network on a CPU. All sides are measured with it.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**33), "MALLOC_TRIM_THRESHOLD_": str(2**34)}


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=min(torch.get_num_threads(), available_cpus()))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch_size", type=int, help="of the large batch: 16 on a CPU, 256 on a GPU")
    parser.add_argument("--output", type=Path, help="writes OUTPUT.csv and OUTPUT.md")
    parsed = parser.parse_args()
    if parsed.device == "cpu" and sys.platform == "linux" and not ALLOCATOR.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    parsed.batch_size = parsed.batch_size or (16 if parsed.device == "cpu" else 256)
    torch.set_num_threads(parsed.threads)
    torch.manual_seed(0)
    return parsed


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(sides: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median seconds of every side. They take turns, so that what slows the machine slows them all."""
    times = {name: [] for name in sides}
    for turn in range(repeats + 1):  # the first one warms up
        for name, function in sides.items():
            synchronize()
            start = time.perf_counter()
            function()
            synchronize()
            if turn > 0:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(list_) for name, list_ in times.items()}


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if line.startswith("model name")).split(":")[1].strip()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def circumstances(options: argparse.Namespace, more_packages: Sequence[str] = ()) -> str:
    packages = ("torch", "transformers", "rednet", *more_packages)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    allocator = ", glibc keeps freed memory" if ALLOCATOR.items() <= os.environ.items() else ""
    return (
        f"{datetime.date.today()}, {device_name(options.device)}, {versions}; median of {options.repeats} repeats, "
        f"sides in turns{allocator}."
    )


def report(title: str, rows: list[dict], options: argparse.Namespace, more_packages: Sequence[str] = ()) -> None:
    """Prints a table; with --output, leaves it as Markdown and as CSV."""
    columns, how = list(rows[0]), circumstances(options, more_packages)
    lines = [columns, ["---"] * len(columns), *([str(row[column]) for column in columns] for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    text = f"# {title}\n\n{how}\n\n{table}\n"
    print(f"\n{text}")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.with_suffix(".md").write_text(text)
        with open(options.output.with_suffix(".csv"), "w", newline="") as file:
            writer = csv.DictWriter(file, [*columns, "circumstances"])
            writer.writeheader()
            writer.writerows({**row, "circumstances": how} for row in rows)
