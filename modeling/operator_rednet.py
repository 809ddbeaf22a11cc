"""Selects the implementation of involution: the package `involution`, a Kernel Hub repository, or plain PyTorch.

In plain PyTorch, `involution2d_fused` and `involution2d_batch_norm` are None.
"""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging


logger = logging.get_logger(__name__)

try:
    from involution import involution2d, involution2d_batch_norm, involution2d_fused
except ImportError as error:  # remote code runs without the package of the compiled operator
    involution2d_batch_norm, involution2d_fused, _missing = None, None, str(error)
    if _source := os.environ.get("REDNET_KERNEL"):
        try:
            from kernels import get_kernel, get_local_kernel

            # By default, a CUDA build of torch does not load kernels for the CPU, even without a GPU. The user trusts the
            # repository by naming it; by default, `kernels` requires that the Hub vouches for its owner.
            _backend = None if torch.cuda.is_available() else "cpu"
            _kernel = (
                get_local_kernel(Path(_source), backend=_backend)
                if os.path.isdir(_source)
                else get_kernel(_source, version=1, backend=_backend, trust_remote_code=[_source])
            )
            involution2d, involution2d_fused = _kernel.involution2d, _kernel.involution2d_fused
            involution2d_batch_norm = _kernel.involution2d_batch_norm
        except Exception as error:  # plain PyTorch works after any failure
            involution2d_batch_norm, involution2d_fused = None, None
            _missing = f"REDNET_KERNEL={_source} cannot be loaded: {error!r}"

if involution2d_fused is None:

    def involution2d(input: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
        """Applies kernels (B, G, K, K, H', W') of size K = 2 * padding + 1 to an input (B, C, H, W)."""
        if not torch.compiler.is_compiling():  # a warning would break the graph
            logger.warning_once(
                f"RedNet's involutions run in plain PyTorch, slower and with far more memory ({_missing}). To use the "
                "compiled operator, install the package `rednet` from its repository (`pip install .` in a clone), or "
                "`pip install kernels` and set REDNET_KERNEL to a repository (user/involution) or folder that has it."
            )
        # Reads each size as an element of a shape: `torch.jit.trace` records slices of shapes and the sizes in
        # `unflatten` as constants.
        batch, groups, height, width = kernel.shape[0], kernel.shape[1], kernel.shape[4], kernel.shape[5]
        kernel_size = 2 * padding + 1
        columns = F.unfold(input, kernel_size, padding=padding, stride=stride)
        columns = columns.view(batch, groups, -1, kernel_size, kernel_size, height, width)
        return (kernel.unsqueeze(2) * columns).sum((3, 4)).reshape(batch, input.shape[1], height, width)
