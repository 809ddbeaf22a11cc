"""The operators on tensors of torch.distributed.tensor, whose batch is sharded over two processes."""

import datetime

import torch
import torch.distributed as dist
from torch import multiprocessing

from involution import Involution2d, involution2d, involution2d_fused


def compare_with_whole_tensors(rank: int, store: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor

    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2, timeout=timeout)
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)

    # Pairs of cases with equal shapes of kernels and results, but different sizes of the input.
    for size, stride, padding, dilation in ((9, 2, 1, 1), (10, 2, 1, 1), (11, 2, 2, 2), (12, 2, 2, 2)):
        out = (size + 2 * padding - 2 * dilation - 1) // stride + 1
        input = torch.randn(4, 6, size, size, dtype=torch.float64, requires_grad=True)
        kernel = torch.randn(4, 2, 3, 3, out, out, dtype=torch.float64, requires_grad=True)
        features = torch.randn(4, 5, out, out, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(18, 5, 1, 1, dtype=torch.float64, requires_grad=True)
        window = stride, padding, dilation
        whole = [involution2d(input, kernel, *window), involution2d_fused(input, features, weight, None, 3, *window)]
        for placements in ([Shard(0)], [Replicate()]):
            parts = [
                distribute_tensor(t.detach(), mesh, placements).requires_grad_() for t in (input, kernel, features)
            ]
            weights = distribute_tensor(weight.detach(), mesh, [Replicate()]).requires_grad_()
            given = [
                involution2d(parts[0], parts[1], *window),
                involution2d_fused(parts[0], parts[2], weights, None, 3, *window),
            ]
            for result, expected, leaves, local in (
                (given[0], whole[0], parts[:2], (input, kernel)),
                (given[1], whole[1], [parts[0], parts[2], weights], (input, features, weight)),
            ):
                torch.testing.assert_close(result.full_tensor(), expected)
                grads = torch.autograd.grad(result.square().sum(), leaves, retain_graph=True)
                expected_grads = torch.autograd.grad(expected.square().sum(), local, retain_graph=True)
                for grad, expected_grad in zip(grads, expected_grads):
                    torch.testing.assert_close(grad.full_tensor(), expected_grad)

    layer, images = Involution2d(16, dtype=torch.float64).eval(), torch.randn(4, 16, 9, 9, dtype=torch.float64)
    expected = layer(images).detach()
    distributed = distribute_module(layer, mesh)(distribute_tensor(images, mesh, [Shard(0)]))
    torch.testing.assert_close(distributed.full_tensor().detach(), expected)
    dist.destroy_process_group()


def test_distributed_tensors(tmp_path):
    multiprocessing.spawn(compare_with_whole_tensors, (str(tmp_path / "store"),), nprocs=2)
