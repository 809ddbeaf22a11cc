"""Times every implementation of one involution on this machine: `python -m involution.profile --shape 16,256,28,28`.

The rows of a pass are the compiled kernels (on a CUDA device each family of them), the loop over the taps in plain
PyTorch, eager and under `torch.compile`, and unfold. One row of each pass is marked: it is what the operator ran when
it was called. Two limits are measured in the same run: the memory floor, in which a copy moves as many bytes as the
pass reads and writes, and the arithmetic limit, in which a large matrix product does as many multiplications and
additions.
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.profiler import profile

from . import arguments, extension, families, generation, reference, taps, timing, verification
from ._ops import ops


NAME = "involution.profile"
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in arguments.DTYPES}
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
LOOP, COMPILED_LOOP, UNFOLD = "loop over taps", "loop over taps, torch.compile", "unfold"
SEPARATE = "1x1 convolution + involution2d"
SEPARATE_GRADIENTS = "1x1 convolution + both gradients + its gradients"
COPY, PRODUCT = "copy", "product"  # the measurements of the limits


@dataclass(frozen=True)
class Geometry:
    """An involution with the generation of its kernel by a 1x1 convolution. Sizes are pairs (vertical, horizontal)."""

    shape: list[int]  # of the input
    groups: int
    kernel_size: list[int]
    window: arguments.Window
    hidden_channels: int  # of the features that the kernel is generated from
    dtype: torch.dtype
    memory_format: str
    device: str

    @property
    def output_size(self) -> list[int]:
        """[H', W']. Raises ValueError if the geometry is invalid."""
        input = torch.empty(self.shape, device="meta")
        return arguments.output_size(NAME, input, self.groups, self.kernel_size, *self.window)

    def __str__(self) -> str:
        b, c, h, w = self.shape
        names = ("stride", "padding", "dilation")
        words = ", ".join(f"{name} {y} x {x}" for name, (y, x) in zip(names, self.window, strict=True))
        return (
            f"{b} x {c} x {h} x {w}, K {self.kernel_size[0]} x {self.kernel_size[1]}, {self.groups} groups, {words}, "
            f"{self.hidden_channels} hidden channels, {str(self.dtype).removeprefix('torch.')}, {self.memory_format}"
        )


@dataclass(frozen=True)
class Tensors:
    """Random arguments of the operators."""

    input: Tensor
    features: Tensor
    weight: Tensor
    bias: Tensor
    kernel: Tensor
    grad: Tensor

    @staticmethod
    def of(geometry: Geometry) -> "Tensors":
        batch, channels, height, width = geometry.shape
        out = geometry.output_size
        generated = geometry.groups * geometry.kernel_size[0] * geometry.kernel_size[1]

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, device=geometry.device, dtype=geometry.dtype)

        def image(channels: int, height: int, width: int) -> Tensor:
            return random(batch, channels, height, width).contiguous(memory_format=FORMATS[geometry.memory_format])

        features = image(geometry.hidden_channels, *out)
        weight = random(generated, geometry.hidden_channels, 1, 1) / geometry.hidden_channels**0.5
        bias = random(generated)
        return Tensors(
            input=image(channels, height, width),
            features=features,
            weight=weight,
            bias=bias,
            kernel=reference.generated_kernel(features, weight, bias, geometry.kernel_size),
            grad=image(channels, *out),
        )


@dataclass(frozen=True)
class Pass:
    """One of the five operators with its arguments, and what it costs at least."""

    name: str  # of the pass, for readers
    operator: str
    arguments: tuple
    moved: int  # bytes that it reads and writes
    flops: int
    others: dict[str, Callable]  # implementations besides that of the operator, called without arguments
    used: str | None = None  # one of the others, if it is used instead of the operator

    def call(self) -> Tensor | tuple[Tensor, ...]:
        return getattr(ops, self.operator).default(*self.arguments)


@dataclass
class Row:
    """The time of one implementation of a pass."""

    step: Pass
    implementation: str
    used: bool
    seconds: float | None = None
    problem: str = ""  # why there is no time


def passes(geometry: Geometry, backward: bool) -> list[Pass]:
    """The passes to time, with their random arguments."""
    t, window, kernel_size = Tensors.of(geometry), geometry.window, geometry.kernel_size
    size, output = geometry.shape[2:], t.grad
    multiplications = output.numel() * kernel_size[0] * kernel_size[1]
    convolution = t.kernel.numel() * geometry.hidden_channels

    def plain(function: str, *arguments: object) -> dict[str, Callable]:
        """The implementations in plain PyTorch."""
        loop, unfold = (partial(getattr(form, function), *arguments) for form in (taps, reference))
        return {LOOP: loop, COMPILED_LOOP: torch.compile(loop, dynamic=False), UNFOLD: unfold}

    def separate() -> Tensor:
        kernel = reference.generated_kernel(t.features, t.weight, t.bias, kernel_size)
        return ops.involution2d.default(t.input, kernel, *window)

    def step(name: str, operator: str, given: tuple, moved: tuple[Tensor, ...], flops: int, others: dict) -> Pass:
        return Pass(name, operator, given, sum(tensor.nbytes for tensor in moved), flops, others)

    generated = (t.input, t.features, t.weight, t.bias, None, None, False, kernel_size, *window)
    forward = (t.input, t.kernel, *window)
    result = [
        step("forward", "involution2d", forward, (t.input, t.kernel, output), 2 * multiplications,
             plain("involution2d", *forward)),
        step("generation and forward", "involution2d_fused", generated, (t.input, t.features, t.weight, output),
             2 * (multiplications + convolution), {SEPARATE: separate}),
    ]  # fmt: skip
    if backward:
        of_input = (t.grad, t.kernel, size, *window)
        of_kernel = (t.grad, t.input, geometry.groups, kernel_size, *window)
        result += [
            step("input gradient", "involution2d_input_grad", of_input, (t.grad, t.kernel, t.input),
                 2 * multiplications, plain("involution2d_input_grad", *of_input)),
            step("kernel gradient", "involution2d_kernel_grad", of_kernel, (t.grad, t.input, t.kernel),
                 2 * multiplications, plain("involution2d_kernel_grad", *of_kernel)),
        ]  # fmt: skip
    if backward and geometry.device == "cpu":  # the only device that has a kernel for all gradients
        result.append(_all_gradients(geometry, t, multiplications, convolution))
    return result


def _all_gradients(geometry: Geometry, t: Tensors, multiplications: int, convolution: int) -> Pass:
    """The gradients of the input and of the convolution that generates the kernel."""
    window, kernel_size = geometry.window, geometry.kernel_size

    def separate() -> None:
        kernel = reference.generated_kernel(t.features, t.weight, t.bias, kernel_size)
        ops.involution2d_input_grad.default(t.grad, kernel, geometry.shape[2:], *window)
        grad = ops.involution2d_kernel_grad.default(t.grad, t.input, geometry.groups, kernel_size, *window)
        reference.generated_kernel_gradients(grad, t.features, t.weight, [True] * 3)

    moved = (t.grad, *[t.input, t.features, t.weight] * 2)
    return Pass(
        "generation, all gradients", "involution2d_fused_grad",
        (t.grad, t.input, t.features, t.weight, t.bias, kernel_size, *window),
        sum(tensor.nbytes for tensor in moved), 2 * (2 * multiplications + 3 * convolution),
        {SEPARATE_GRADIENTS: separate},
        None if generation.computes_in_blocks([True] * 4, t.features) else SEPARATE_GRADIENTS,
    )  # fmt: skip


def measure(geometry: Geometry, backward: bool, repeats: int) -> tuple[list[Row], float, float]:
    """Times every implementation of every pass.

    Returns:
        The rows, the bytes per second of a copy, and the floating-point operations per second of a matrix product.
    """
    extension.load(geometry.device)
    torch._dynamo.reset()
    with torch.no_grad():
        copy, copied = timing.copy(geometry.device)
        product, operations = timing.product(geometry.device, geometry.dtype)
        rows: list[Row] = []
        functions: dict[int | str, Callable] = {COPY: copy, PRODUCT: product}
        for step in passes(geometry, backward):
            for row, function in _implementations(step, geometry.device):
                row.problem = timing.try_first_call(function, geometry.device)
                if not row.problem:
                    functions[len(rows)] = function
                rows.append(row)
        times = timing.median_seconds(functions, repeats, without_launches=geometry.device == "cuda")
    for number, row in enumerate(rows):
        row.seconds = times.get(number)
    return rows, copied / times[COPY], operations / times[PRODUCT]


def _implementations(step: Pass, device: str) -> list[tuple[Row, Callable]]:
    """The rows of a pass, and their functions. One of them is that of the operator."""
    ran = _what_ran(step, device)
    result = {ran: step.call}
    if device == "cuda" and extension.load(device):
        result |= _families(step, ran)
    result |= {name: function for name, function in step.others.items() if name not in result}
    return [(Row(step, name, name == (step.used or ran)), function) for name, function in result.items()]


def _what_ran(step: Pass, device: str) -> str:
    """The implementation that the operator ran, by PyTorch's record of what it called."""
    step.call()  # loads the library
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # without messages of the profiler
    with profile(use_kineto=False) as record:
        step.call()
    names = {event.name for event in record.function_events}
    if names & {"aten::mul", "aten::addcmul_"}:  # plain PyTorch
        return f"1x1 convolution + {LOOP}" if step.operator.startswith("involution2d_fused") else LOOP
    if device == "cuda":
        return families.last(_cuda_library())
    return "1x1 convolution + kernel, in one call" if "aten::conv2d" in names else "compiled kernel"


def _cuda_library() -> Path:
    return extension.find_or_build("cuda")


def _families(step: Pass, used: str) -> dict[str, Callable]:
    """The other families of CUDA kernels that run for the arguments of a pass and passed the self-check."""
    library, operator = _cuda_library(), step.operator
    refused = {(r["operator"], r["family"]) for r in verification.refused(verification.records(library))}
    allowed = {family: (operator, family) not in refused for family in families.of(operator)}

    def call(family: str) -> Tensor | tuple[Tensor, ...]:
        families.use_only(library, operator, family)
        try:
            return step.call()
        finally:
            for name, is_allowed in allowed.items():
                if name != families.GENERAL:  # which cannot be forbidden
                    families.allow(library, operator, name, is_allowed)

    result: dict[str, Callable] = {}
    for family, is_allowed in allowed.items():
        if family == used or not is_allowed:
            continue
        call(family)
        if families.last(library) == family:  # otherwise it does not support these arguments
            result[family] = partial(call, family)
    return result


COLUMNS = ("pass", "implementation", "used", "ms", "memory floor ms", "/ floor", "limit ms", "/ limit")


def cells(row: Row, bandwidth: float, rate: float) -> dict[str, str]:
    """What is printed of a row, by `COLUMNS`."""
    floor, limit = row.step.moved / bandwidth, row.step.flops / rate
    times = [row.problem, "", ""]
    if row.seconds is not None:
        times = [f"{1e3 * row.seconds:.3f}", f"{row.seconds / floor:.2f}", f"{row.seconds / limit:.2f}"]
    used = "yes" if row.used else ""
    values = (row.step.name, row.implementation, used, times[0], f"{1e3 * floor:.3f}", times[1], f"{1e3 * limit:.3f}")
    return dict(zip(COLUMNS, (*values, times[2]), strict=True))


def parse(given: list[str] | None = None) -> tuple[Geometry, argparse.Namespace]:
    """Parses the command line. Exits with status 2 and a message if an argument is wrong."""
    parser = argparse.ArgumentParser(prog=f"python -m {NAME}", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=_numbers, required=True, metavar="B,C,H,W", help="of the input")
    parser.add_argument(
        "--kernel_size", type=_numbers, default=[7], metavar="N[,N]", help="a number, or a pair (default: 7)"
    )
    division = parser.add_mutually_exclusive_group()
    division.add_argument("--groups", type=int, help="number of groups; the channels of a group share a kernel")
    division.add_argument("--group_channels", type=int, help="number of channels of a group (default: 16)")
    parser.add_argument("--stride", type=_numbers, default=[1], metavar="N[,N]", help="(default: 1)")
    parser.add_argument("--padding", type=_numbers, metavar="N[,N]", help='(default: "same" padding)')
    parser.add_argument("--dilation", type=_numbers, default=[1], metavar="N[,N]", help="(default: 1)")
    parser.add_argument("--hidden_channels", type=int, help="of the kernel generation (default: a quarter of C)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(default: float32)")
    parser.add_argument("--memory_format", choices=FORMATS, default="channels_last", help="(default: channels_last)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device, help=f"(default: {device})")
    threads = torch.get_num_threads()
    parser.add_argument("--threads", type=int, default=threads, help=f"of the CPU (default: {threads})")
    parser.add_argument("--repeats", type=int, default=9, help="calls of each implementation (default: 9)")
    parser.add_argument("--backward", action="store_true", help="times both gradients too")
    options = parser.parse_args(given)
    try:
        return _geometry(options), options
    except ValueError as error:
        parser.error(str(error))


def _geometry(options: argparse.Namespace) -> Geometry:
    for name in ("groups", "group_channels", "hidden_channels", "threads", "repeats"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name} is {value}, expected at least 1")
    if len(options.shape) != 4 or min(options.shape) < 1:
        raise ValueError(
            f"--shape is {','.join(map(str, options.shape))}, expected four numbers B,C,H,W of at least 1"
        )
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but torch finds no GPU")
    channels, group_channels = options.shape[1], options.group_channels or 16
    if options.groups is None and channels % group_channels != 0:
        raise ValueError(f"--group_channels is {group_channels}, expected a divisor of the {channels} channels")

    def pair(name: str, minimum: int) -> list[int]:
        value = getattr(options, name)
        return arguments.per_dimension(NAME, name, value[0] if len(value) == 1 else value, minimum)

    kernel_size = pair("kernel_size", 1)
    padding = None if options.padding is None else pair("padding", 0)
    window = arguments.window(NAME, kernel_size, pair("stride", 1), padding, pair("dilation", 1))
    geometry = Geometry(
        shape=options.shape,
        groups=options.groups or channels // group_channels,
        kernel_size=kernel_size,
        window=window,
        hidden_channels=options.hidden_channels or max(1, channels // 4),
        dtype=DTYPES[options.dtype],
        memory_format=options.memory_format,
        device=options.device,
    )
    _ = geometry.output_size  # checks it
    return geometry


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers such as 3 or 3,5") from None


def main() -> None:
    geometry, options = parse()
    if geometry.device == "cpu":
        timing.keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    try:
        rows, bandwidth, rate = measure(geometry, options.backward, options.repeats)
    except torch.OutOfMemoryError as error:  # the tensors themselves do not fit
        raise SystemExit(f"error: {geometry} does not fit into the memory of the device: {error}") from error
    units = "FMA units" if geometry.device == "cpu" or geometry.dtype.itemsize > 2 else "tensor cores"
    print(f"{geometry}\n{timing.device_name(geometry.device)}, torch {torch.__version__}")
    print(f"Memory floor: a copy of 256 MB reads and writes {bandwidth / 1e9:.1f} GB/s.")
    print(f"Limit of the {units}: a large matrix product reaches {rate / 1e9:.0f} GFLOP/s.")
    print(f"Median of {options.repeats} calls, the implementations take turns.\n")
    lines = [dict(zip(COLUMNS, COLUMNS, strict=True)), *(cells(row, bandwidth, rate) for row in rows)]
    widths = {column: max(len(line[column]) for line in lines) for column in COLUMNS}
    for line in lines:
        print("  ".join(line[column].ljust(widths[column]) for column in COLUMNS).rstrip())


if __name__ == "__main__":
    main()
