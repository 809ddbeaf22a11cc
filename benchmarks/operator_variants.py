"""Speed of the variants of the operator: 1-D, 3-D, one group, one channel for each group, and softmax kernels.

    python benchmarks/operator_variants.py --output benchmarks/results/variants-DEVICE-DATE

Each is compared with its definition in plain PyTorch, by `Tensor.unfold`: the forward pass, and the forward pass with
both gradients. `--quick` takes smaller inputs. `--batch_size` is that of images and sequences; volumes have an eighth
of it.
"""

import argparse
import math
from collections.abc import Callable

import torch
from rednet.profile import median_seconds
from tqdm import tqdm

from involution import involution1d, involution2d, involution3d, reference
from measure import arguments, report


FUNCTIONS = {1: involution1d, 2: involution2d, 3: involution3d}
# Name, channels, size of the input, kernel size, groups, and whether a softmax normalizes the kernel.
VARIANTS = [
    ("1-D", 64, (4096,), 7, 4, False),
    ("1-D, one channel per group", 64, (4096,), 15, 64, False),
    ("2-D", 64, (56, 56), 7, 4, False),
    ("2-D, one group", 64, (56, 56), 3, 1, False),
    ("2-D, one channel per group", 64, (56, 56), 3, 64, False),
    ("2-D, softmax", 64, (56, 56), 7, 4, True),
    ("3-D", 32, (16, 56, 56), 3, 2, False),
    ("3-D, one group", 32, (16, 56, 56), 3, 1, False),
    ("3-D, one channel per group", 16, (16, 28, 28), 3, 16, False),
    ("3-D", 32, (16, 28, 28), 5, 2, False),
]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="divides every height, width and length by 4")


def make_tensors(channels: int, sizes: tuple, kernel_size: int, groups: int, batch: int, device: str) -> list:
    """Input and kernel in channels-last, with the channels, or all taps of a pixel, next to each other."""
    taps = groups * kernel_size ** len(sizes)
    input, kernel = (torch.randn(batch, *sizes, number, device=device).movedim(-1, 1) for number in (channels, taps))
    kernel = kernel.unflatten(1, (groups, *[kernel_size] * len(sizes)))
    return [input.requires_grad_(), kernel.requires_grad_()]


def with_softmax(involution: Callable, dimensions: int) -> Callable:
    """`involution` with the kernel normalized over its taps, as the layers do it."""

    def normalized(input, kernel, *window):
        taps = kernel.flatten(2, 1 + dimensions).softmax(2)
        return involution(input, taps.unflatten(2, kernel.shape[2 : 2 + dimensions]), *window)

    return normalized


def measure(variant: tuple, options: argparse.Namespace) -> dict:
    name, channels, sizes, kernel_size, groups, softmax = variant
    dimensions = len(sizes)
    sizes = tuple(size // 4 for size in sizes) if options.quick else sizes
    batch = options.batch_size if dimensions < 3 else math.ceil(options.batch_size / 8)
    tensors = make_tensors(channels, sizes, kernel_size, groups, batch, options.device)
    grad = torch.randn_like(tensors[0])
    window = [[value] * dimensions for value in (1, kernel_size // 2, 1)]
    forms = {"": FUNCTIONS[dimensions], "plain, ": reference.involution}
    functions: dict[str, Callable] = {}
    for label, form in forms.items():
        form = with_softmax(form, dimensions) if softmax else form
        functions[f"{label}forward"] = torch.no_grad()(lambda form=form: form(*tensors, *window))
        functions[f"{label}with gradients"] = lambda form=form: torch.autograd.grad(
            form(*tensors, *window), tensors, grad
        )
    times = median_seconds(functions, options.repeats)
    shape = " x ".join(map(str, (batch, channels, *sizes)))
    row = {"variant": name, "input": f"{shape}, K {kernel_size}, groups {groups}"}
    for what in ("forward", "with gradients"):
        row[f"{what} ms"] = f"{1e3 * times[what]:.2f}"
        row[f"plain, {what} ms"] = f"{1e3 * times[f'plain, {what}']:.1f}"
        row[f"{what}: faster than plain"] = f"{times[f'plain, {what}'] / times[what]:.1f}"
    return row


def main() -> None:
    options = arguments(__doc__.splitlines()[0], add_options)
    rows = [measure(variant, options) for variant in tqdm(VARIANTS)]
    report("Involution, the variants of the operator", rows, options)


if __name__ == "__main__":
    main()
