"""Speed of the variants of the operator: 1-D, 3-D, one group, one channel for each group, and softmax kernels.

    python benchmarks/operator_variants.py --output benchmarks/results/variants-DEVICE-DATE

Each is compared with its definition in plain PyTorch, by `Tensor.unfold`, in both memory formats: the forward pass, and
the forward pass with both gradients. `--batch_size` is that of images and sequences; volumes have an eighth of it.
"""

import argparse
import itertools
import math
from collections.abc import Callable
from functools import partial

import torch
from tqdm import tqdm

from involution import Involution2d, involution1d, involution2d, involution3d, reference
from involution.timing import median_seconds
from measure import arguments, report


FUNCTIONS = {1: involution1d, 2: involution2d, 3: involution3d}
# Name, channels, size of the input, kernel size, groups, and whether a softmax normalizes the kernel.
VARIANTS = [
    ("1-D", 64, (2048,), 7, 4, False),
    ("1-D, one channel per group", 64, (2048,), 15, 64, False),
    ("2-D", 64, (28, 28), 7, 4, False),
    ("2-D, one group", 64, (28, 28), 3, 1, False),
    ("2-D, one channel per group", 64, (28, 28), 3, 64, False),
    ("2-D, softmax", 64, (28, 28), 7, 4, True),
    ("3-D", 32, (16, 28, 28), 3, 2, False),
    ("3-D, one group", 32, (16, 28, 28), 3, 1, False),
    ("3-D, one channel per group", 16, (16, 28, 28), 3, 16, False),
    ("3-D, large kernel", 32, (8, 28, 28), 5, 2, False),
]


def make_tensors(
    channels: int, sizes: tuple, kernel_size: int, groups: int, batch: int, channels_last: bool, device: str
) -> list:
    """Input and kernel. In channels-last, the channels, and all taps of a pixel, are next to each other."""
    taps = groups * kernel_size ** len(sizes)
    input, kernel = (torch.randn(batch, *sizes, number, device=device).movedim(-1, 1) for number in (channels, taps))
    if not channels_last:
        input, kernel = input.contiguous(), kernel.contiguous()
    kernel = kernel.unflatten(1, (groups, *[kernel_size] * len(sizes)))
    return [input.requires_grad_(), kernel.requires_grad_()]


def make_forms(dimensions: int, channels: int, kernel_size: int, groups: int, softmax: bool) -> dict[str, Callable]:
    """The variant and its definition: functions of input, kernel, stride, padding and dilation."""
    if not softmax:
        return {"": FUNCTIONS[dimensions], "plain, ": reference.involution}
    options = {"group_channels": channels // groups, "kernel_generator": torch.nn.Identity()}
    layer = Involution2d(channels, kernel_size, kernel_normalization="softmax", **options)

    def plain(input, kernel, *window):
        return reference.involution(input, kernel.flatten(2, 3).softmax(2).unflatten(2, kernel.shape[2:4]), *window)

    return {"": lambda input, kernel, *window: layer(input, kernel.flatten(1, 3)), "plain, ": plain}


def measure(variant: tuple, channels_last: bool, options: argparse.Namespace) -> dict:
    name, channels, sizes, kernel_size, groups, softmax = variant
    dimensions = len(sizes)
    batch = options.batch_size if dimensions < 3 else math.ceil(options.batch_size / 8)
    tensors = make_tensors(channels, sizes, kernel_size, groups, batch, channels_last, options.device)
    grad = torch.randn_like(tensors[0])
    window = [[value] * dimensions for value in (1, kernel_size // 2, 1)]

    def infer(form):
        with torch.no_grad():
            form(*tensors, *window)

    def train(form):
        torch.autograd.grad(form(*tensors, *window), tensors, grad)

    functions = {}
    for label, form in make_forms(dimensions, channels, kernel_size, groups, softmax).items():
        functions[f"{label}forward"] = partial(infer, form)
        functions[f"{label}with gradients"] = partial(train, form)
    times = median_seconds(functions, options.repeats)
    row = {
        "variant": name,
        "input": f"{' x '.join(map(str, (batch, channels, *sizes)))}, K {kernel_size}, groups {groups}",
        "memory format": "channels-last" if channels_last else "contiguous",
    }
    for what in ("forward", "with gradients"):
        row[f"{what} ms"] = f"{1e3 * times[what]:.2f}"
        row[f"plain, {what} ms"] = f"{1e3 * times[f'plain, {what}']:.2f}"
        row[f"{what}: faster than plain"] = f"{times[f'plain, {what}'] / times[what]:.1f}"
    return row


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    cases = list(itertools.product(VARIANTS, (True, False)))
    rows = [measure(variant, channels_last, options) for variant, channels_last in tqdm(cases)]
    report("Involution, the variants of the operator", rows, options)


if __name__ == "__main__":
    main()
