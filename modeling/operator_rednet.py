"""Which involution runs: that of the package `involution`, of a Kernel Hub repository, or plain PyTorch.

`involution2d_fused` and `operators` are None where plain PyTorch runs.
"""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging


logger = logging.get_logger(__name__)

try:
    from involution import involution2d, involution2d_fused, operators
except ImportError as error:  # as remote code, where the package with the compiled operator is not installed
    involution2d_fused, operators, _missing = None, None, str(error)
    if _source := os.environ.get("REDNET_KERNEL"):
        try:
            from kernels import get_kernel, get_local_kernel

            # By default a CUDA build of torch would take no kernel for the CPU, GPU or not. Who names a repository
            # trusts its code; without this `kernels` asks that the Hub vouches for its owner.
            _backend = None if torch.cuda.is_available() else "cpu"
            _kernel = (
                get_local_kernel(Path(_source), backend=_backend)
                if os.path.isdir(_source)
                else get_kernel(_source, version=1, backend=_backend, trust_remote_code=[_source])
            )
            operators, involution2d = _kernel.operators, _kernel.involution2d
            involution2d_fused = _kernel.involution2d_fused
        except Exception as error:  # whatever fails, plain PyTorch can take over
            _missing = f"REDNET_KERNEL={_source} cannot be loaded: {error!r}"

if involution2d_fused is None:

    def involution2d(input: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
        """Applies kernels (B, G, K, K, H', W') of size K = 2 * padding + 1 to an input (B, C, H, W)."""
        if not torch.compiler.is_compiling():  # where a warning would break the graph
            logger.warning_once(
                f"RedNet's involutions run in plain PyTorch, slower and with far more memory ({_missing}). For the "
                "compiled operator install the package `rednet` from its repository (`pip install .` there), or "
                "`pip install kernels` and set REDNET_KERNEL to a repository (user/involution) or folder with it."
            )
        # Sizes are read one by one: `torch.jit.trace` would keep a slice of a shape, and `unflatten`, as constants.
        batch, groups, height, width = kernel.shape[0], kernel.shape[1], kernel.shape[4], kernel.shape[5]
        kernel_size = 2 * padding + 1
        columns = F.unfold(input, kernel_size, padding=padding, stride=stride)
        columns = columns.view(batch, groups, -1, kernel_size, kernel_size, height, width)
        return (kernel.unsqueeze(2) * columns).sum((3, 4)).reshape(batch, input.shape[1], height, width)
