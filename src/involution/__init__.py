"""Involution, the operator that inverts convolution (Li et al., CVPR 2021, arXiv 2103.06255).

`operators` holds what the functions call: `torch.ops.involution`, or its like in a kernel from the Hub.
"""

from ._ops import ops as operators
from .extension import show_config
from .module import Involution2d
from .ops import involution2d, involution2d_fused


__all__ = ["Involution2d", "involution2d", "involution2d_fused", "operators", "show_config"]
