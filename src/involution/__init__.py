"""Involution, an operator that inverts the principles of convolution (Li et al., CVPR 2021, arXiv 2103.06255).

`operators` is the namespace of the registered operators: `torch.ops.involution`, or that of a Kernel Hub kernel.
"""

from ._ops import ops as operators
from .batch_norm import involution2d_batch_norm
from .extension import show_config
from .module import Involution1d, Involution2d, Involution3d
from .ops import involution1d, involution2d, involution2d_fused, involution3d


__all__ = [
    "Involution1d",
    "Involution2d",
    "Involution3d",
    "involution1d",
    "involution2d",
    "involution2d_batch_norm",
    "involution2d_fused",
    "involution3d",
    "operators",
    "show_config",
]
