"""`Involution2d`, the layer."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from involution import Involution2d


def pixel_by_pixel(layer: Involution2d, image: torch.Tensor, i: int, j: int) -> torch.Tensor:
    """One output pixel of an odd kernel by the paper's equations 4 and 6: phi of the (pooled) pixel, then the sum."""
    (sh, sw), (dh, dw), (kh, kw) = layer.stride, layer.dilation, layer.kernel_size
    pooled = image[:, i * sh : (i + 1) * sh, j * sw : (j + 1) * sw].mean((1, 2))
    convolution, norm, _ = layer.reduce
    hidden = convolution.weight[:, :, 0, 0] @ pooled
    hidden = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    taps = layer.span.weight[:, :, 0, 0] @ hidden.relu() + layer.span.bias
    taps = taps.view(layer.groups, kh, kw)
    output = torch.zeros(layer.channels, dtype=image.dtype)
    for c in range(layer.channels):
        for u in range(kh):
            for v in range(kw):
                y, x = i * sh + (u - kh // 2) * dh, j * sw + (v - kw // 2) * dw
                if 0 <= y < image.shape[1] and 0 <= x < image.shape[2]:
                    output[c] += taps[c // layer.group_channels, u, v] * image[c, y, x]
    return output


@pytest.mark.parametrize("stride", [1, 2, (3, 1)])
@pytest.mark.parametrize("kernel_size, dilation", [(7, 1), (3, 2), ((1, 5), (1, 2))])
@pytest.mark.parametrize("size", [(8, 8), (9, 11), (1, 2)])
def test_matches_the_paper_pixel_by_pixel(kernel_size, stride, dilation, size):
    torch.manual_seed(0)
    layer = Involution2d(8, kernel_size, stride, dilation, group_channels=4, reduction_ratio=2, dtype=torch.float64)
    layer.reduce[1].running_mean.normal_()
    layer.reduce[1].running_var.uniform_(0.5, 2)
    layer.eval()
    input = torch.randn(2, 8, *size, dtype=torch.float64)
    with torch.no_grad():
        output = layer(input)
        assert output.shape[2:] == (-(-size[0] // layer.stride[0]), -(-size[1] // layer.stride[1]))
        for b, i, j in ((0, 0, 0), (1, output.shape[2] - 1, output.shape[3] - 1), (1, 0, output.shape[3] // 2)):
            torch.testing.assert_close(output[b, :, i, j], pixel_by_pixel(layer, input[b], i, j))


@pytest.mark.parametrize("kernel_size, dilation, stride", [(2, 1, 1), ((4, 3), 1, 2), (4, (3, 1), (1, 3))])
def test_even_kernels_reach_one_further_right_and_down(kernel_size, dilation, stride):
    """As a convolution with padding="same", which a layer with a constant kernel is equal to."""
    layer = Involution2d(16, kernel_size, stride, dilation, dtype=torch.float64)
    torch.nn.init.zeros_(layer.span.weight)
    input = torch.randn(1, 16, 9, 7, dtype=torch.float64)
    weight = layer.span.bias.view(1, 1, *layer.kernel_size).expand(16, -1, -1, -1)
    expected = F.conv2d(input, weight, padding="same", dilation=dilation, groups=16)
    torch.testing.assert_close(layer(input), expected[:, :, :: layer.stride[0], :: layer.stride[1]])


def test_parameters_of_the_paper():
    """C=64, K=7, r=4, 16 channels a group: 64*16 + BatchNorm 2*16 + (16 + 1) * 49 * 4."""
    layer = Involution2d(64)
    assert sum(p.numel() for p in layer.parameters()) == 64 * 16 + 32 + 17 * 196
    assert (layer.kernel_size, layer.group_channels, layer.reduction_ratio) == ((7, 7), 16, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trains_under_compile_and_autocast(dtype):
    torch.manual_seed(0)
    layer = Involution2d(16, 3).to(memory_format=torch.channels_last)
    compiled = torch.compile(layer, fullgraph=True)
    input = torch.randn(2, 16, 6, 5).to(memory_format=torch.channels_last)
    grads = []
    for module in (layer, compiled):
        layer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = module(input)
        assert output.dtype == dtype
        output.float().square().sum().backward()
        grads.append([p.grad.clone() for p in layer.parameters()])
    # Eager and compiled code round differently, and the backward pass of BatchNorm subtracts such sums.
    tolerance = 5e-2 if dtype == torch.bfloat16 else 1e-4
    for eager, fused in zip(*grads):
        torch.testing.assert_close(eager, fused, rtol=0, atol=tolerance * max(g.abs().max() for g in grads[0]))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"group_channels": 5}, "group_channels is 5"),
        ({"reduction_ratio": 3}, "reduction_ratio is 3"),
        ({"kernel_size": (3, 3, 3)}, r"kernel_size is \(3, 3, 3\), expected an int >= 1"),
        ({"kernel_size": 3.0}, "kernel_size is 3.0"),
        ({"stride": 0}, "stride is 0"),
    ],
)
def test_invalid_arguments_raise(arguments, words):
    with pytest.raises(ValueError, match=words):
        Involution2d(16, **arguments)


@pytest.mark.parametrize("package", ["exported program", "AOTInductor"])
def test_exports_with_dynamic_batch_and_size(package, tmp_path):
    layer = Involution2d(32, stride=2, dtype=torch.float64).eval().requires_grad_(False)
    dynamic = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(layer, (torch.randn(2, 32, 9, 11, dtype=torch.float64),), dynamic_shapes=(dynamic,))
    path = str(tmp_path / "layer.pt2")
    if package == "AOTInductor":
        loaded = torch._inductor.aoti_load_package(
            torch._inductor.aoti_compile_and_package(program, package_path=path)
        )
    else:
        torch.export.save(program, path)
        loaded = torch.export.load(path).module()
    for shape in ((1, 32, 20, 7), (3, 32, 8, 8)):
        input = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(loaded(input), layer(input))


DATA_PARALLEL = """
import os
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from involution import Involution2d
dist.init_process_group("gloo")
torch.manual_seed(0)
layer = Involution2d(16, 3, dtype=torch.float64).eval()  # BatchNorm with fixed statistics, which batches cannot change
images = torch.randn(4, 16, 6, 5, dtype=torch.float64)
layer(images).square().mean().backward()
expected = [p.grad.clone() for p in layer.parameters()]
layer.zero_grad()
parallel = DistributedDataParallel(layer)
parallel(images[2 * dist.get_rank() :][:2]).square().mean().backward()
for parameter, gradient in zip(layer.parameters(), expected):
    torch.testing.assert_close(parameter.grad, gradient)
dist.destroy_process_group()
os._exit(0)  # in the ordinary end of a process, threads of gloo have called abort (torch 2.15, seen once)
"""


def test_two_processes_give_the_gradients_of_the_double_batch(tmp_path):
    script = tmp_path / "data_parallel.py"
    script.write_text(DATA_PARALLEL)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


class Half(torch.nn.Module):
    def forward(self, weight):
        return weight / 2


class HalfTensor(torch.Tensor):
    """Like a quantized weight: the stored values are not those that a convolution uses."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        if function is F.conv2d:
            arguments = [t.as_subclass(torch.Tensor) / 2 if isinstance(t, HalfTensor) else t for t in arguments]
        return super().__torch_function__(function, types, arguments, keywords)


def watched(layer):
    layer.span.register_forward_hook(lambda module, arguments, output: output / 2)


def parametrized(layer):
    for name in ("weight", "bias"):
        torch.nn.utils.parametrize.register_parametrization(layer.span, name, Half())


def patched(layer):
    layer.span.forward = lambda features: F.conv2d(features, layer.span.weight, layer.span.bias) / 2


def replaced(layer):
    layer.span = torch.nn.Sequential(layer.span, Half())


def of_a_subclass(layer):
    for name in ("weight", "bias"):
        tensor = getattr(layer.span, name).detach().as_subclass(HalfTensor)
        setattr(layer.span, name, torch.nn.Parameter(tensor, requires_grad=False))


@pytest.mark.parametrize("change", [watched, parametrized, patched, replaced, of_a_subclass])
def test_changed_convolutions_are_called(change):
    """Each change halves the kernel, and with it the output."""
    layer = Involution2d(16, 3, dtype=torch.float64).eval()
    input = torch.randn(1, 16, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = layer(input) / 2
        change(layer)
        torch.testing.assert_close(layer(input), expected)


@pytest.mark.parametrize("changes", [{"stride": (2, 2)}, {"padding": (1, 1)}, {"groups": 2}])
def test_changed_attributes_of_the_convolution_count(changes):
    """Such a convolution generates no valid kernel: the layer raises an error and does not ignore the change."""
    layer = Involution2d(16, 3)
    for name, value in changes.items():
        setattr(layer.span, name, value)
    with pytest.raises((RuntimeError, ValueError), match="kernel has shape|divisible by 2"):
        layer(torch.randn(1, 16, 6, 6))


def test_backward_and_global_hooks_see_the_convolution():
    layer, seen = Involution2d(16, 3), []
    layer.span.register_full_backward_pre_hook(lambda module, grad: seen.append(module))
    layer(torch.randn(1, 16, 6, 6)).sum().backward()
    assert seen == [layer.span]

    layer, seen = Involution2d(16, 3), []
    hook = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        layer(torch.randn(1, 16, 6, 6))
    finally:
        hook.remove()
    assert seen == [*layer.reduce, layer.reduce, layer.span, layer]


def test_trains_without_the_bias_of_the_kernel():
    layer, input = Involution2d(16, 3, dtype=torch.float64), torch.randn(1, 16, 5, 4, dtype=torch.float64)
    torch.nn.init.zeros_(layer.span.bias)
    layer(input).square().sum().backward()
    expected = layer.span.weight.grad.clone()
    layer.zero_grad()
    layer.span.bias = None
    layer(input).square().sum().backward()
    torch.testing.assert_close(layer.span.weight.grad, expected)


def test_loads_the_names_of_the_authors():
    """Anywhere in a model, with strict=True, which still finds what is missing and what is not expected."""
    model = torch.nn.Sequential(torch.nn.Identity(), Involution2d(16, 3))
    expected = {name: torch.randn_like(value.float()) for name, value in model.state_dict().items()}
    replacements = ("reduce.0.", "conv1.conv."), ("reduce.1.", "conv1.bn."), ("span.", "conv2.conv.")
    theirs = {}
    for name, value in expected.items():
        for old, new in replacements:
            name = name.replace(old, new)
        theirs[name] = value
    assert "1.conv1.bn.running_var" in theirs and "1.conv2.conv.bias" in theirs
    keys = list(theirs)
    model.load_state_dict(theirs)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value.float(), expected[name].to(value.dtype).float())
    assert list(theirs) == keys
    theirs["1.conv2.norm.bias"] = theirs.pop("1.conv2.conv.bias")
    with pytest.raises(RuntimeError, match="(?s)Missing.*1.span.bias.*Unexpected.*1.conv2.norm.bias"):
        model.load_state_dict(theirs)
