"""The namespace that the operators are registered in, with the names that kernel-builder gives this module.

In a kernel from the Hub another file is in its place, with a namespace of that kernel alone: a process may hold this
package and any number of such kernels.
"""

import torch


ops = torch.ops.involution


def add_op_namespace_prefix(name: str) -> str:
    return f"involution::{name}"
