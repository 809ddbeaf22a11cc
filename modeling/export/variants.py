"""What an exported file computes with: the nodes of its involutions, and the data type of its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


INVOLUTIONS = ("standard", "custom")
DTYPES = ("float32", "float16", "int8")
# Allowed difference between file and model, relative to the largest value. Rounding in float32 makes about 1e-6, in
# float16 about 1e-3, and in int8 it depends on the weights: this bound finds mistakes, and only a test set tells how
# many pictures the file gets wrong.
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "int8": 0.5}


@dataclass(frozen=True)
class Variant:
    """
    Attributes:
        involution: `"standard"` or `"custom"`, for one node of the domain `rednet` for each involution.
        dtype: `"float32"`, `"float16"` or `"int8"`.
        calibration: batches of pixel values (B, C, H, W), from which a quantizer learns the ranges for int8.
    """

    involution: str = "standard"
    dtype: str = "float32"
    calibration: Sequence[Tensor] = ()

    @property
    def is_custom(self) -> bool:
        return self.involution == "custom"
