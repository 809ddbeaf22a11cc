"""How the operators divide a batch over devices, for tensors of `torch.distributed.tensor`."""

from functools import cache

from torch import Tensor

from ._ops import ops


def prepare(tensor: Tensor) -> None:
    """Tells PyTorch how the operators are sharded, when the first distributed tensor comes: the import takes a second."""
    if type(tensor).__module__.startswith("torch.distributed.tensor"):
        _register()


@cache
def _register() -> None:
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor._op_schema import RuntimeSchemaInfo
    from torch.distributed.tensor.experimental import register_sharding

    def register(tensors: int, operators: list, placements) -> None:
        register_sharding(operators)(placements)
        # A decision is kept for calls with equal arguments. `register_sharding` does not look at lists of integers, such
        # as the size of the input, which decides the size of its gradient.
        information = RuntimeSchemaInfo(static_argnum=tensors, needs_pytree=True)
        for operator in operators:
            DTensor._op_dispatcher.sharding_propagator.op_to_schema_info[operator] = information

    # Every image is computed by itself: all tensors are whole on each device, or each device has a part of the batch.
    def bilinear(first, second, *rest):
        return [([place], [place, place] + [None] * len(rest)) for place in (Replicate(), Shard(0))]

    def fused(input, features, *rest):
        whole = [None if tensor is None else Replicate() for tensor in rest[:4]]  # weight, bias, scale, shift
        return [([place], [place, place, *whole] + [None] * len(rest[4:])) for place in (Replicate(), Shard(0))]

    names = ("involution2d", "involution2d_input_grad", "involution2d_kernel_grad")
    register(2, [getattr(ops, name).default for name in names], bilinear)
    register(6, [ops.involution2d_fused.default], fused)
