"""RedNet-50 against ResNet-50 in every precision and mode of a GPU: speed and memory.

    python benchmarks/network_modes.py --phase inference --output outputs/gpu/inference

Modes are eager, `torch.compile`, a CUDA graph of eager mode, and a CUDA graph of the compiled network. Images are 224 x
224 in channels-last. For inference in 16 bits the weights are converted; a training step in 16 bits runs under autocast.
Each row compares with the faster ResNet-50, and with the smaller one. The table is written after each row.
"""

import argparse
import copy
import itertools
import math
import time
from collections.abc import Callable

import torch
from rednet import RedNetConfig, RedNetForImageClassification
from rednet.profile import peak_bytes
from torch import nn

from involution import timing
from measure import arguments, describe_conditions, infer, report, train, write
from networks import LOOP, OURS, installed_peers, loop_forward, peer, with_involution
from tables import comma_separated, some_of


# Those that matter most come first: a run that ends early has them.
PRECISIONS = ("bfloat16", "float32 with TF32", "float16", "float32")
EAGER, COMPILED, GRAPH, COMPILED_GRAPH = "eager", "compiled", "CUDA graph", "compiled CUDA graph"
MODES = (EAGER, COMPILED, GRAPH, COMPILED_GRAPH)
NO_TIME = "not measured: no time left"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--phase", choices=("inference", "training"), required=True)
    parser.add_argument("--batches", type=comma_separated, default=["256", "1", "64"], help="(default: 256,1,64)")
    parser.add_argument(
        "--precisions", type=some_of(PRECISIONS), default=PRECISIONS, help=f"of {', '.join(PRECISIONS)}"
    )
    parser.add_argument("--modes", type=some_of(MODES), default=MODES, help=f"of {', '.join(MODES)}; on a CPU 2")
    parser.add_argument("--compile_first", type=int, default=math.inf, help="compiles only in the first N cases")
    parser.add_argument("--with_loop", action="store_true", help=f"compiled, also {LOOP}")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begins no row later than this")


def set_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


class Benchmark:
    def __init__(self, options: argparse.Namespace):
        self.options, self.device, self.training = options, options.device, options.phase == "training"
        self.peers, self.rows, self.start = installed_peers(), [], time.monotonic()
        models = {OURS: RedNetForImageClassification(RedNetConfig(num_labels=1000))}
        models |= {name: peer(name) for name in self.peers}
        if options.with_loop:
            models[LOOP] = with_involution(models[OURS], loop_forward)
        self.models = {
            name: model.to(self.device, memory_format=torch.channels_last).train(self.training)
            for name, model in models.items()
        }

    def case(self, precision: str, batch: int, modes: tuple[str, ...]) -> None:
        """Adds a row for each mode."""
        set_tf32(precision.endswith("TF32"))
        dtype = getattr(torch, precision.split()[0])
        models = self.models
        if not self.training and dtype != torch.float32:
            models = {name: copy.deepcopy(model).to(dtype) for name, model in models.items()}
        for mode in modes:
            sides = {name: model for name, model in models.items() if name != LOOP or mode.startswith(COMPILED)}
            if time.monotonic() - self.start > self.options.seconds:
                times, memory, problems = {}, {}, {OURS: NO_TIME}
            else:
                times, memory, problems = self.measure(sides, dtype, batch, mode)
            self.add(precision, batch, mode, times, memory, problems)
        if any(mode.startswith(COMPILED) for mode in modes):
            torch._dynamo.reset()
        timing.free_memory(self.device)

    def measure(self, models: dict[str, nn.Module], dtype: torch.dtype, batch: int, mode: str) -> tuple:
        """Seconds, peak memory and problems of each network.

        Graphs hold their memory, so these networks are measured one after the other, and take no turns.
        """
        times: dict[str, float] = {}
        memory: dict[str, float] = {}
        problems: dict[str, str] = {}
        one_by_one = mode.endswith(GRAPH)
        turns: dict[str, Callable] = {}
        for name, model in models.items():
            run, problem = self.first_call(model, dtype, batch, mode)
            if run is None:
                problems[name] = problem
            elif one_by_one:
                times |= timing.median_seconds({name: run}, self.options.repeats)
            else:
                turns[name] = run
                memory[name] = self.state_bytes(model) + peak_bytes(run, self.device)
            del run
            model.zero_grad(set_to_none=True)
            timing.free_memory(self.device)
        if turns:
            times |= timing.median_seconds(turns, self.options.repeats)
        return times, memory, problems

    def first_call(self, model: nn.Module, dtype: torch.dtype, batch: int, mode: str) -> tuple[Callable | None, str]:
        """A function that runs the network once and has been called, or None and why it cannot run."""
        made: list[Callable] = []

        def start() -> None:
            made.append(self.make(model, dtype, batch, mode))
            made[0]()

        problem = timing.try_first_call(start, self.device)
        return (None if problem else made[0]), problem

    def make(self, model: nn.Module, dtype: torch.dtype, batch: int, mode: str) -> Callable:
        """A function that runs the network once."""
        images = torch.randn(batch, 3, 224, 224, device=self.device, dtype=torch.float32 if self.training else dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        network: Callable = torch.compile(model, dynamic=False) if mode.startswith(COMPILED) else model
        if self.training and dtype != torch.float32:
            network = under_autocast(network, self.device, dtype)
        run = train(model, images, network) if self.training else infer(network, images)
        return capture(run) if mode.endswith(GRAPH) else run

    def state_bytes(self, model: nn.Module) -> int:
        state = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
        return state + (sum(p.nbytes for p in model.parameters()) if self.training else 0)  # momentum

    def add(self, precision: str, batch: int, mode: str, times: dict, memory: dict, problems: dict) -> None:
        row = {"precision": precision, "batch": batch, "mode": mode}
        for name in (OURS, LOOP):
            row[f"{name}, images/s"] = f"{batch / times[name]:.1f}" if name in times else problems.get(name, "")
        fastest = min((name for name in self.peers if name in times), key=times.__getitem__, default=None)
        row["peer"] = fastest or "; ".join(dict.fromkeys(problems[p] for p in self.peers if p in problems))
        row["peer, images/s"] = f"{batch / times[fastest]:.1f}" if fastest else ""
        both = fastest and OURS in times
        row["RedNet-50 / ResNet-50"] = f"{times[fastest] / times[OURS]:.2f}" if both else ""
        row["RedNet-50, MiB"] = f"{memory[OURS] / 2**20:.0f}" if OURS in memory else ""
        smallest = min((memory[name] for name in self.peers if name in memory), default=None)
        row["peer, MiB"] = f"{smallest / 2**20:.0f}" if smallest else ""
        row["memory / ResNet-50"] = f"{memory[OURS] / smallest:.2f}" if smallest and OURS in memory else ""
        self.rows.append(row)
        print(", ".join(f"{key}: {value}" for key, value in row.items() if value != ""), flush=True)
        if self.options.output:
            write(title(self.options), self.rows, self.options, describe_conditions(self.options))


def under_autocast(network: Callable, device: str, dtype: torch.dtype) -> Callable:
    def run(images: torch.Tensor):
        with torch.autocast(device, dtype):
            return network(images)

    return run


def capture(run: Callable) -> Callable:
    """A CUDA graph of a function. The graph reads the tensors of the function: the result keeps them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # allocates what stays, such as the state of an optimizer
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()

    def replay(kept: Callable = run) -> None:
        graph.replay()

    return replay


def title(options: argparse.Namespace) -> str:
    what = "inference" if options.phase == "inference" else "a training step"
    return f"RedNet-50 against ResNet-50: {what}, 224 x 224, channels-last"


def main() -> None:
    options = arguments(__doc__.splitlines()[0], add_options)
    if options.device == "cpu":
        options.precisions = [p for p in options.precisions if p in ("float32", "bfloat16")]
        options.modes = [mode for mode in options.modes if not mode.endswith(GRAPH)]
    benchmark = Benchmark(options)
    cases = itertools.product(options.precisions, map(int, options.batches))
    for number, (precision, batch) in enumerate(cases):
        compiles = number < options.compile_first
        modes = tuple(m for m in options.modes if compiles or not m.startswith(COMPILED))
        benchmark.case(precision, batch, modes)
    report(title(options), benchmark.rows, options)


if __name__ == "__main__":
    main()
