"""How the operators are sharded over devices, for tensors of `torch.distributed.tensor`."""

from functools import cache

from torch import Tensor

from ._ops import ops


def prepare(tensor: Tensor) -> None:
    """Registers the sharding of the operators if `tensor` is distributed. Not at import, because it takes a second."""
    if type(tensor).__module__.startswith("torch.distributed.tensor"):
        _register()


@cache
def _register() -> None:
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
    from torch.distributed.tensor._op_schema import RuntimeSchemaInfo
    from torch.distributed.tensor.experimental import register_sharding

    def register(tensors: int, operators: list, placements) -> None:
        register_sharding(operators)(placements)
        # Sharding decisions are cached for calls with equal arguments. By default, `register_sharding` ignores lists
        # of integers in this comparison, such as the size of the input, which determines the size of its gradient.
        information = RuntimeSchemaInfo(static_argnum=tensors, needs_pytree=True)
        for operator in operators:
            DTensor._op_dispatcher.sharding_propagator.op_to_schema_info[operator] = information

    # Images are independent: either all tensors are replicated, or each device has a part of the batch.
    def bilinear(first, second, *rest):
        return [([placement], [placement] * 2 + [None] * len(rest)) for placement in (Replicate(), Shard(0))]

    def fused(input, features, *rest):
        whole = [None if tensor is None else Replicate() for tensor in rest[:4]]  # weight, bias, scale, shift
        options = [None] * len(rest[4:])
        return [([placement], [placement, placement, *whole, *options]) for placement in (Replicate(), Shard(0))]

    def fused_grad(grad_output, input, features, weight, bias, *rest):
        whole = [Replicate(), None if bias is None else Replicate()]
        return [
            # The gradients of weight and bias are sums over the batch.
            ([placement, placement, sums, sums], [*[placement] * 3, *whole, *[None] * len(rest)])
            for placement, sums in ((Replicate(), Replicate()), (Shard(0), Partial()))
        ]

    names = ("involution2d", "involution2d_input_grad", "involution2d_kernel_grad")
    register(2, [getattr(ops, name).default for name in names], bilinear)
    register(6, [ops.involution2d_fused.default], fused)
    register(5, [ops.involution2d_fused_grad.default], fused_grad)
