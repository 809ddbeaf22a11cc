"""The gain of each shortcut of `rednet.execution_rednet`: RedNet-50 with all of them, and with all but one.

    python benchmarks/shortcut_speed.py --device cpu --output benchmarks/results/shortcuts-cpu-DATE

Eager mode at 224 x 224 in channels-last. A shortcut that never gains 5 % of time or memory should be removed.
"""

from collections.abc import Callable
from contextlib import ExitStack
from unittest.mock import patch

import torch
import torch.nn.functional as F
from rednet import RedNetConfig, RedNetForImageClassification, execution_rednet, modeling_rednet
from rednet.profile import peak_bytes
from tqdm import tqdm

from involution.timing import median_seconds
from measure import arguments, infer, report, train


ALL = "all shortcuts"


def convolve(hidden_state, weight, bias, convolution):
    return F.conv2d(hidden_state, weight, bias, convolution.stride, convolution.padding)


def never(*_) -> bool:
    return False


# Name, phase, and the functions that replace others to leave the shortcut out.
SHORTCUTS = {
    "BatchNorm as scale and shift": (
        "inference",
        [(execution_rednet, "is_affine", never)],
    ),
    "1x1 convolutions of few pixels as matrix products": (
        "inference",
        [(execution_rednet, "_convolve", convolve)],
    ),
    "involution fused with the last step of its kernel generation": (
        "inference",
        [(execution_rednet, "is_pointwise", never)],
    ),
    "ReLU and residual written over their input": (
        "inference",
        [(execution_rednet, "may_overwrite", never)],
    ),
    "ReLU and residual written over their input, in training": (
        "training",
        [(execution_rednet, "may_overwrite", never)],
    ),
    "max pooling before ReLU": (
        "training",
        [(modeling_rednet, "pooled_stem", lambda layers, pooler, images, last_layer_class: pooler(layers(images)))],
    ),
    "kernel and input of BatchNorm computed again in the backward pass": (
        "training",
        [(execution_rednet, "can_normalize_involution", never)],
    ),
}


def without(patches: list[tuple], function: Callable) -> Callable:
    def run():
        with ExitStack() as stack:
            for module, name, replacement in patches:
                stack.enter_context(patch.object(module, name, replacement))
            function()

    return run


def measure(phase: str, batch: int, dtype: torch.dtype, options) -> list[dict]:
    model = RedNetForImageClassification(RedNetConfig(num_labels=1000)).to(options.device, dtype)
    model.to(memory_format=torch.channels_last).train(phase == "training")
    images = torch.randn(batch, 3, 224, 224, device=options.device, dtype=dtype)
    function = (train if phase == "training" else infer)(model, images.contiguous(memory_format=torch.channels_last))
    sides = {ALL: function}
    sides |= {name: without(patches, function) for name, (kind, patches) in SHORTCUTS.items() if kind == phase}
    times = median_seconds(sides, options.repeats * (3 if batch == 1 else 1))
    peaks = {name: peak_bytes(side, options.device) / 2**20 for name, side in sides.items()}
    return [
        {
            "left out": name,
            "phase": phase,
            "batch": batch,
            "dtype": str(dtype).removeprefix("torch."),
            "ms": f"{1000 * times[name]:.1f}",
            "time against all shortcuts": f"{times[name] / times[ALL]:.3f} x",
            "peak MiB": f"{peaks[name]:.0f}",
            "memory against all shortcuts": f"{peaks[name] / peaks[ALL]:.2f} x",
        }
        for name in sides
    ]


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    rows = []
    cases = [("inference", b, d) for b in (1, options.batch_size) for d in (torch.float32, torch.bfloat16)]
    for case in tqdm([*cases, ("training", options.batch_size, torch.float32)]):
        rows += measure(*case, options)
    report("RedNet-50 with all shortcuts but one, 224 x 224, channels-last", rows, options)


if __name__ == "__main__":
    main()
