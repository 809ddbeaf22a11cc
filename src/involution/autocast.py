"""Autocast of the operators, as of convolutions: tensors are cast to the autocast dtype, except those of float64.

It works on every device that has autocast, whether or not there are compiled kernels for it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch


# The dispatch keys of autocast, of all devices that have it. "PrivateUse1" is that of devices outside of PyTorch.
KEYS = tuple(
    f"Autocast{device}" for device in ("CPU", "CUDA", "MPS", "XPU", "HPU", "IPU", "XLA", "MTIA", "MAIA", "PrivateUse1")
)


def is_enabled(device_type: str) -> bool:
    # Dynamo writes the question for other devices into its graph.
    available = device_type in ("cpu", "cuda") or torch.amp.is_autocast_available(device_type)
    return available and torch.is_autocast_enabled(device_type)


def disabled(device_type: str) -> AbstractContextManager:
    """For backward passes: they use the dtypes of the forward pass, whether or not autocast is enabled by then."""
    return torch.autocast(device_type, enabled=False) if is_enabled(device_type) else nullcontext()


def casting(function: Callable, count: int) -> Callable:
    """Returns `function` with its first `count` arguments, a tensor and tensors or None, cast to the autocast dtype."""

    def cast_and_call(*arguments):
        device_type = arguments[0].device.type
        dtype = torch.get_autocast_dtype(device_type)
        cast = [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in arguments[:count]]
        with torch.autocast(device_type, enabled=False):
            return function(*cast, *arguments[count:])

    return cast_and_call
