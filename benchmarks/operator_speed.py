"""Speed of the operator alone, over the seventeen involutions of RedNet-50.

    python benchmarks/operator_speed.py --output benchmarks/results/operator-DEVICE-DATE

Forward, both gradients, and the fused form with its gradients, against plain PyTorch (the loop over the taps and unfold, eager and
compiled), the authors' form (contiguous tensors; on a GPU one thread for each output), and the memory floor: the time
in which a copy moves as many bytes as the operator reads and writes. A second table has other shapes: kernel sizes,
`group_channels`, and few pixels at batch 1. "Loop" and "loop, both gradients" compare the two
forms in plain PyTorch in eager mode.
"""

import argparse

import torch
from tqdm import tqdm

import involution
from involution import reference, taps
from involution.timing import median_seconds
from measure import arguments, report


# Channels, size of the input, stride, kernel size, and the number of such involutions in RedNet-50, seventeen in total.
SHAPES = [
    (32, 112, 1, 3, 1),
    (64, 56, 1, 7, 3),
    (128, 56, 2, 7, 1),
    (128, 28, 1, 7, 3),
    (256, 28, 2, 7, 1),
    (256, 14, 1, 7, 5),
    (512, 14, 2, 7, 1),
    (512, 7, 1, 7, 2),
]
# Channels, size of the input, kernel size, channels of a group, and batch size (None: that of the options).
OTHER_SHAPES = [
    (128, 28, 5, 16, None),
    (128, 28, 9, 16, None),
    (128, 28, (3, 5), 16, None),
    (64, 28, 7, 1, None),
    (64, 28, 7, 4, None),
    (64, 28, 7, 8, None),
    (64, 28, 7, 64, None),
    (256, 14, 7, 16, 1),
    (512, 7, 7, 16, 1),
]


def make_functions(
    shape: tuple, batch: int, device: str, dtype: torch.dtype, group_channels: int = 16
) -> tuple[dict, dict]:
    """The functions to time, and the bytes that each reads and writes."""
    channels, size, stride, kernel_size, _ = shape
    kernel_h, kernel_w = kernel_size = [kernel_size] * 2 if isinstance(kernel_size, int) else list(kernel_size)
    groups, hidden, out = channels // group_channels, channels // 4, size // stride

    def image(channels, size):
        return torch.randn(batch, channels, size, size, device=device, dtype=dtype).to(
            memory_format=torch.channels_last
        )

    input, features, grad = image(channels, size), image(hidden, out), image(channels, out)
    weight = torch.randn(groups * kernel_h * kernel_w, hidden, 1, 1, device=device, dtype=dtype)
    bias = torch.randn(groups * kernel_h * kernel_w, device=device, dtype=dtype)
    kernel = reference.generated_kernel(features, weight, bias, kernel_size)
    contiguous = (input.contiguous(), kernel.contiguous())
    window = [stride] * 2, [kernel_h // 2, kernel_w // 2], [1, 1]
    torch._dynamo.reset()
    ops = torch.ops.involution
    compiled_loop, compiled_unfold = (torch.compile(f.involution2d, dynamic=False) for f in (taps, reference))

    def both_gradients(form):
        form.involution2d_input_grad(grad, kernel, [size, size], *window)
        form.involution2d_kernel_grad(grad, input, groups, kernel_size, *window)

    def separate_gradients():
        generated = reference.generated_kernel(features, weight, bias, kernel_size)
        ops.involution2d_input_grad(grad, generated, [size, size], *window)
        kernel_grad = ops.involution2d_kernel_grad(grad, input, groups, kernel_size, *window)
        reference.generated_kernel_gradients(kernel_grad, features, weight, [True] * 3)

    functions = {
        "forward": lambda: ops.involution2d(input, kernel, *window),
        "input grad": lambda: ops.involution2d_input_grad(grad, kernel, [size, size], *window),
        "kernel grad": lambda: ops.involution2d_kernel_grad(grad, input, groups, kernel_size, *window),
        "fused": lambda: ops.involution2d_fused(
            input, features, weight, bias, None, None, False, kernel_size, *window
        ),
        "1x1 convolution + forward": lambda: ops.involution2d(
            input, reference.generated_kernel(features, weight, bias, kernel_size), *window
        ),
        "fused grad": lambda: ops.involution2d_fused_grad(grad, input, features, weight, bias, kernel_size, *window),
        "separate gradients": separate_gradients,
        "loop": lambda: taps.involution2d(input, kernel, *window),
        "loop compiled": lambda: compiled_loop(input, kernel, *window),
        "loop, both gradients": lambda: both_gradients(taps),
        "unfold, both gradients": lambda: both_gradients(reference),
        "unfold": lambda: reference.involution2d(input, kernel, *window),
        "unfold compiled": lambda: compiled_unfold(input, kernel, *window),
        "contiguous": lambda: ops.involution2d(*contiguous, *window),
    }
    moved = {
        "forward": (input, kernel, grad),
        "input grad": (grad, kernel, input),
        "kernel grad": (grad, input, kernel),
        "fused": (input, features, grad),
        "fused grad": (grad, input, features, input, features),
    }
    return functions, {name: sum(t.nbytes for t in tensors) for name, tensors in moved.items()}


def measure(functions: dict, moved: dict, options: argparse.Namespace) -> tuple[dict, dict]:
    """Seconds of each function, and of a copy of the bytes that it moves."""
    block = torch.empty(2**26, device=options.device)  # 256 MB, more than the caches hold
    target = torch.empty_like(block)
    times = median_seconds({**functions, "copy": lambda: target.copy_(block)}, options.repeats)
    return times, {name: times["copy"] * size / (2 * block.nbytes) for name, size in moved.items()}


def other_shape(shape: tuple, options: argparse.Namespace) -> dict:
    channels, size, kernel_size, group_channels, batch = shape
    batch = batch or options.batch_size
    functions, moved = make_functions(
        (channels, size, 1, kernel_size, 0), batch, options.device, torch.float32, group_channels
    )
    compared = "1x1 convolution + forward", "separate gradients", "contiguous"
    functions = {name: functions[name] for name in (*moved, *compared)}
    times, floors = measure(functions, moved, options)
    return {
        "input": f"{batch} x {channels} x {size} x {size}, K {kernel_size}, {group_channels} channels per group",
        "forward ms": f"{1e3 * times['forward']:.3f}",
        **{f"{name} / memory floor": f"{times[name] / floors[name]:.2f}" for name in floors},
        "fused: faster than convolution + forward": f"{times['1x1 convolution + forward'] / times['fused']:.2f}",
        "fused grad: faster than separate": f"{times['separate gradients'] / times['fused grad']:.2f}",
        "contiguous / channels-last": f"{times['contiguous'] / times['forward']:.2f}",
    }


@torch.no_grad()
def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    one = torch.zeros(1, 1, 1, 1, device=options.device)
    involution.involution2d(one, one[..., None, None])  # compiles the operator if necessary
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for shape in tqdm(SHAPES, desc=str(dtype)):
            channels, size, stride, kernel_size, count = shape
            functions, moved = make_functions(shape, options.batch_size, options.device, dtype)
            times, floors = measure(functions, moved, options)
            output = options.batch_size * channels * (size // stride) ** 2
            row = {
                "dtype": str(dtype).removeprefix("torch."),
                "input": f"{options.batch_size} x {channels} x {size} x {size}, K {kernel_size}, stride {stride}",
                "in RedNet-50": count,
                "forward ms": f"{1e3 * times['forward']:.2f}",
                "GFLOP/s": f"{2e-9 * output * kernel_size**2 / times['forward']:.0f}",
            }
            row |= {f"{name} / memory floor": f"{times[name] / floors[name]:.2f}" for name in floors}
            row["fused: faster than convolution + forward"] = (
                f"{times['1x1 convolution + forward'] / times['fused']:.2f}"
            )
            row["fused grad: faster than separate"] = f"{times['separate gradients'] / times['fused grad']:.2f}"
            for name in ("loop", "loop compiled", "unfold", "unfold compiled", "contiguous"):
                row[f"forward: faster than {name}"] = f"{times[name] / times['forward']:.1f}"
            for name in ("", ", both gradients"):
                row[f"loop{name}: faster than unfold"] = f"{times[f'unfold{name}'] / times[f'loop{name}']:.1f}"
            rows.append(row)
    report("Involution, the operator alone", rows, options)
    if options.output:
        options.output = options.output.with_name(f"{options.output.name}-other-shapes")
    report("Involution, other shapes", [other_shape(shape, options) for shape in tqdm(OTHER_SHAPES)], options)


if __name__ == "__main__":
    main()
