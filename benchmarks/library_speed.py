"""Speed of the library in the wheel, relative to the library that is compiled for this machine.

    make wheel
    python benchmarks/library_speed.py --output benchmarks/results/library-DEVICE-DATE

Each library is in its own process, because a process has only one operator. The processes take turns over the seventeen
involutions of RedNet-50. Each repeat starts new ones, because where a process has its memory changes its times. A number
above 1 means that the library in the wheel is faster.
"""

import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from tqdm import tqdm

from involution import extension
from measure import arguments, report
from operator_speed import SHAPES, make_functions


FUNCTIONS = ["forward", "contiguous", "fused", "input grad", "kernel grad", "fused grad"]


def measure(library: Path, threads: int, connection: Connection) -> None:
    """Receives (shape, batch size, dtype) and sends a duration of each function, until it receives None.

    It is the median of five calls, because the caches belong to the other process when a turn begins.
    """
    torch.ops.load_library(library)
    torch.set_num_threads(threads)
    prepared, functions = None, {}
    for case in iter(connection.recv, None):
        if case != prepared:
            shape, batch, dtype = prepared = case
            functions, _ = make_functions(shape, batch, "cpu", dtype)
            for name in FUNCTIONS:
                functions[name]()
        times = []
        for name in FUNCTIONS:
            calls = []
            for _ in range(5):
                start = time.perf_counter()
                functions[name]()
                calls.append(time.perf_counter() - start)
            times.append(statistics.median(calls))
        connection.send(times)


def measure_pair(libraries: tuple[Path, Path], threads: int, cases: list[tuple]) -> list[list[list[float]]]:
    """The durations of each function, of both libraries in new processes, for each case."""
    context = multiprocessing.get_context("spawn")
    processes, connections = [], []
    for library in libraries:
        connection, other = context.Pipe()
        processes.append(context.Process(target=measure, args=(library, threads, other), daemon=True))
        processes[-1].start()
        connections.append(connection)
    times: list[list[list[float]]] = []
    for case in cases:
        times.append([])
        for connection in connections:
            connection.send(case)
            times[-1].append(connection.recv())
    for connection, process in zip(connections, processes, strict=True):
        connection.send(None)
        process.join()
    return times


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    packaged = next(Path().glob("build/lib.*/involution/lib/involution_cpu.so"), None)
    if packaged is None:
        raise SystemExit("build has no library for the wheel: run `make wheel`")
    libraries = (extension.build("cpu"), packaged.absolute())
    batches = [(dtype, batch) for dtype in (torch.float32, torch.bfloat16) for batch in (1, options.batch_size)]
    cases = [(shape, batch, dtype) for dtype, batch in batches for shape in SHAPES]
    repeats = [measure_pair(libraries, options.threads, cases) for _ in tqdm(range(options.repeats))]
    medians = {
        case: [[statistics.median(times) for times in zip(*turns, strict=True)] for turns in zip(*pairs, strict=True)]
        for case, pairs in zip(cases, zip(*repeats, strict=True), strict=True)
    }

    rows = []
    for dtype, batch in batches:
        totals = torch.zeros(2, len(FUNCTIONS), dtype=torch.float64)
        for shape in SHAPES:
            times = medians[shape, batch, dtype]
            totals += shape[-1] * torch.tensor(times, dtype=torch.float64)
            rows.append(_row(dtype, batch, f"{shape[0]} x {shape[1]} x {shape[1]}, K {shape[3]}", *times))
        rows.append(_row(dtype, batch, "all seventeen", *totals.tolist()))
    report("The library in the wheel, relative to that compiled for this machine", rows, options)


def _row(dtype: torch.dtype, batch: int, shape: str, native: list[float], packaged: list[float]) -> dict:
    ratios = {name: f"{a / b:.2f}" for name, a, b in zip(FUNCTIONS, native, packaged, strict=True)}
    return {"dtype": str(dtype).removeprefix("torch."), "batch": batch, "input": shape, **ratios}


if __name__ == "__main__":
    main()
