"""Autocast of the operators, as of convolutions: tensors are cast to the autocast dtype, except those of float64."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch


def is_enabled(device_type: str) -> bool:
    return device_type in ("cpu", "cuda") and torch.is_autocast_enabled(device_type)


def disabled(device_type: str) -> AbstractContextManager:
    """For backward passes: they use the dtypes of the forward pass, whether or not autocast is enabled by then."""
    return torch.autocast(device_type, enabled=False) if is_enabled(device_type) else nullcontext()


def casting(function: Callable, device_type: str, count: int) -> Callable:
    """Returns `function` with its first `count` arguments, tensors or None, cast to the autocast dtype."""

    def cast_and_call(*arguments):
        dtype = torch.get_autocast_dtype(device_type)
        cast = [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in arguments[:count]]
        with torch.autocast(device_type, enabled=False):
            return function(*cast, *arguments[count:])

    return cast_and_call
