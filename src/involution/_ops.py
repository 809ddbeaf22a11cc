"""The namespace that the operators are registered in.

The names in this file are those that kernel-builder expects. In a Kernel Hub kernel, another file replaces it, with a
namespace of that kernel alone: one process can load this package and any number of such kernels.
"""

import torch


ops = torch.ops.involution


def add_op_namespace_prefix(name: str) -> str:
    return f"involution::{name}"
