"""Which implementation is the fastest for each involution of RedNet-50, and the settings that follow from it.

    python benchmarks/operator_choice.py --output outputs/gpu/operator

Times what `python -m involution.profile` times: on a CUDA device the families of kernels, the loop over the taps under
`torch.compile` (one kernel by Triton), and the generation of the kernel fused with the involution or separate from it.
Writes OUTPUT.csv, OUTPUT.md, and OUTPUT.json with the recommended settings.
"""

import argparse
import collections
import math
import os
import time
from pathlib import Path

import torch
from rednet.training.utils.files import write_json
from tqdm import tqdm

from involution import families, profile, timing
from measure import arguments, describe_conditions, report, write
from operator_speed import SHAPES
from tables import some_of


TITLE = "The implementations of involution, in the seventeen involutions of RedNet-50"
GAIN = 0.98  # a setting is changed for a time of at most this part of the other
FUSED = "generation and forward"
Times = dict[tuple[str, tuple, str, str], float]  # dtype, shape, pass, implementation -> seconds


def add_options(parser: argparse.ArgumentParser) -> None:
    dtypes = [dtype for dtype in profile.DTYPES if dtype != "float64"]
    parser.add_argument("--dtypes", type=some_of(dtypes), default=dtypes, help=f"(default: {','.join(dtypes)})")
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="the number of shapes (default: all)")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begins no shape later than this")


def geometry(shape: tuple, batch: int, dtype: str, device: str) -> profile.Geometry:
    channels, size, stride, kernel_size, _ = shape
    return profile.Geometry(
        shape=[batch, channels, size, size],
        groups=channels // 16,
        kernel_size=[kernel_size] * 2,
        window=([stride] * 2, [kernel_size // 2] * 2, [1, 1]),
        hidden_channels=channels // 4,
        dtype=profile.DTYPES[dtype],
        memory_format="channels_last",
        device=device,
    )


def measure(options: argparse.Namespace) -> tuple[list[dict], Times]:
    """The rows of the table, and the times. Writes the table after each shape."""
    rows: list[dict] = []
    times: Times = {}
    start = time.monotonic()
    # The first ones are the most frequent of RedNet-50: a run that ends early has them.
    shapes = sorted(SHAPES, key=lambda shape: -shape[-1])[: options.shapes]
    for shape in tqdm(shapes):
        for dtype in options.dtypes:
            if rows and time.monotonic() - start > options.seconds:
                continue
            case = geometry(shape, options.batch_size, dtype, options.device)
            try:
                measured = profile.measure(case, backward=True, repeats=options.repeats)
            except torch.OutOfMemoryError:  # of the tensors themselves
                print(f"{case}: out of memory")
                timing.free_memory(options.device)
                continue
            for row in measured[0]:
                size = f"{shape[0]} x {shape[1]} x {shape[1]}, K {shape[3]}, stride {shape[2]}"
                begin = {"dtype": dtype, "input": f"{options.batch_size} x {size}", "in RedNet-50": shape[-1]}
                rows.append(begin | profile.cells(row, *measured[1:]))
                if row.seconds is not None:
                    times[dtype, shape, row.step.name, row.implementation] = row.seconds
        if rows and options.output:
            write(TITLE, rows, options, describe_conditions(options))
    return rows, times


def total(times: Times, dtype: str, step: str, wanted: str, other: str) -> tuple[float, float]:
    """The time of two implementations of a pass, over the involutions for which both ran, as often as RedNet has them."""
    sums = [0.0, 0.0]
    for key_dtype, shape, name, implementation in times:
        pair = [times.get((dtype, shape, step, choice)) for choice in (wanted, other)]
        if (key_dtype, name, implementation) == (dtype, step, wanted) and None not in pair:
            sums = [a + shape[-1] * b for a, b in zip(sums, pair, strict=True)]
    return sums[0], sums[1]


def recommend_tensor_cores(times: Times, dtype: str) -> dict | None:
    """INVOLUTION_TENSOR_CORES, by the time of all passes of a training step."""
    steps = {step for _, _, step, _ in times}
    pairs = {step: total(times, dtype, step, families.TENSOR_CORES, families.TILED) for step in steps}
    with_them, without = (sum(pair[n] for pair in pairs.values()) for n in range(2))
    if not without:
        return None
    return {
        "setting": "environment variable INVOLUTION_TENSOR_CORES",
        "dtype": dtype,
        "today": "unset",
        "recommended": "1" if with_them < GAIN * without else "unset",
        "measured": f"tensor cores {1e3 * with_them:.2f} ms, tiled {1e3 * without:.2f} ms in all passes",
    }


def recommend_fusion(times: Times, dtype: str) -> dict | None:
    """kMinHiddenChannelsForConvolution: from how many hidden channels on a separate convolution is faster."""
    faster: dict[int, list[bool]] = collections.defaultdict(list)
    words = []
    fused = (families.GENERAL, families.TILED, "compiled kernel")
    for key_dtype, shape, step, implementation in times:
        if (key_dtype, step, implementation) == (dtype, FUSED, profile.SEPARATE):
            one_kernel = [times[key] for name in fused if (key := (dtype, shape, FUSED, name)) in times]
            if one_kernel:
                separate = times[dtype, shape, FUSED, profile.SEPARATE]
                faster[shape[0] // 4].append(separate < min(one_kernel))
                words.append(f"R {shape[0] // 4}: separate {separate / min(one_kernel):.2f} of the time of fused")
    if not words:
        return None
    fused_channels = [channels for channels, results in faster.items() if not all(results)]
    above = sorted(channels for channels in faster if channels > max(fused_channels, default=0))
    return {
        "setting": "kMinHiddenChannelsForConvolution in src/involution/csrc/cuda/operators.cuh",
        "dtype": dtype,
        "today": "64",
        "recommended": str(above[0]) if above else f"more than {max(fused_channels)}",
        "measured": "; ".join(words),
    }


def recommend_loop(times: Times, dtype: str, step: str) -> dict | None:
    """Whether a kernel by Triton is faster than the best of ours."""
    ours = [families.GENERAL, families.TILED, families.TENSOR_CORES, "compiled kernel"]
    best: dict[tuple, float] = {}
    for key_dtype, shape, name, implementation in times:
        if (key_dtype, name) == (dtype, step) and implementation in ours:
            best[shape] = min(best.get(shape, math.inf), times[key_dtype, shape, name, implementation])
    pairs = [
        (shape[-1] * times[key], shape[-1] * seconds)
        for shape, seconds in best.items()
        if (key := (dtype, shape, step, profile.COMPILED_LOOP)) in times
    ]
    if not pairs:
        return None
    loop, kernels = (sum(pair[n] for pair in pairs) for n in range(2))
    return {
        "setting": f"implementation of the {step} under torch.compile (there is no setting)",
        "dtype": dtype,
        "today": "compiled kernels",
        "recommended": profile.COMPILED_LOOP if loop < GAIN * kernels else "compiled kernels",
        "measured": f"loop {1e3 * loop:.2f} ms, the best kernels {1e3 * kernels:.2f} ms",
    }


def recommend(times: Times, dtypes: list[str], device: str) -> list[dict]:
    found: list[dict | None] = []
    for dtype in dtypes:
        if device == "cuda":
            found += [recommend_tensor_cores(times, dtype), recommend_fusion(times, dtype)]
        found += [recommend_loop(times, dtype, step) for step in ("forward", "input gradient", "kernel gradient")]
    return [setting for setting in found if setting is not None]


def main() -> None:
    os.environ.setdefault("INVOLUTION_TENSOR_CORES", "1")  # makes them one of the families; read at the first call
    options = arguments(__doc__.splitlines()[0], add_options)
    rows, times = measure(options)
    report(TITLE, rows, options)
    settings = recommend(times, options.dtypes, options.device)
    if options.output:
        write_json(Path(f"{options.output}.json"), {"device": timing.device_name(options.device),
                   "conditions": describe_conditions(options), "settings": settings})  # fmt: skip
    for setting in settings:
        print("{setting}, {dtype}: {recommended} (today {today}). {measured}".format(**setting))


if __name__ == "__main__":
    main()
