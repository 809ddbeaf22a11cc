"""Random involutions and the definition that they are checked against."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor


# Largest error allowed, relative to the largest value: rounding of the result, and of sums taken in float32.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
DTYPES = list(TOLERANCE)


def plain_involution(input: Tensor, kernel: Tensor, stride, padding, dilation) -> Tensor:
    """The definition, one tap at a time: Y = sum over u, v of H[u, v] * shifted X."""
    groups, kernel_h, kernel_w, out_h, out_w = kernel.shape[1:]
    padded = F.pad(input, (padding[1], padding[1], padding[0], padding[0]))
    output = 0
    for u in range(kernel_h):
        for v in range(kernel_w):
            rows = slice(u * dilation[0], u * dilation[0] + (out_h - 1) * stride[0] + 1, stride[0])
            columns = slice(v * dilation[1], v * dilation[1] + (out_w - 1) * stride[1] + 1, stride[1])
            spread = kernel[:, :, u, v].repeat_interleave(input.shape[1] // groups, dim=1)
            output = output + spread * padded[:, :, rows, columns]
    return output


@contextmanager
def num_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class Case:
    batch: int
    groups: int
    group_channels: int
    size: tuple[int, int]
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    dtype: torch.dtype
    input_layout: str
    kernel_layout: str

    @property
    def window(self):
        return list(self.stride), list(self.padding), list(self.dilation)

    @property
    def output_size(self) -> tuple[int, int]:
        return tuple(
            (self.size[n] + 2 * self.padding[n] - self.dilation[n] * (self.kernel_size[n] - 1) - 1) // self.stride[n]
            + 1
            for n in range(2)
        )

    def tensors(self, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        """Input, kernel and output gradient."""
        torch.manual_seed(0)
        channels, taps = self.groups * self.group_channels, self.kernel_size[0] * self.kernel_size[1]
        input = laid_out(torch.randn(self.batch, channels, *self.size), self.input_layout)
        kernel = laid_out(torch.randn(self.batch, self.groups * taps, *self.output_size), self.kernel_layout)
        grad = laid_out(torch.randn(self.batch, channels, *self.output_size), self.input_layout)
        input, kernel, grad = (t.to(device, self.dtype) for t in (input, kernel, grad))
        return input, kernel.unflatten(1, (self.groups, *self.kernel_size)), grad


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return tensor.to(memory_format=torch.channels_last)
    if layout == "slice":  # every second row of a larger image
        larger = tensor.new_zeros(*tensor.shape[:2], 2 * tensor.shape[2], tensor.shape[3])
        larger[:, :, ::2] = tensor
        return larger[:, :, ::2]
    return tensor


@st.composite
def cases(draw, dtypes=tuple(DTYPES)) -> Case:
    """Geometries from the paper's own to the outlandish, whose window fits into the padded input."""
    kernel_size = draw(
        st.one_of(st.sampled_from([(7, 7), (3, 3), (5, 5), (9, 9)]), st.tuples(st.integers(1, 5), st.integers(1, 9)))
    )
    stride = draw(st.one_of(st.sampled_from([(1, 1), (2, 2)]), st.tuples(st.integers(1, 3), st.integers(1, 3))))
    dilation = draw(st.one_of(st.just((1, 1)), st.tuples(st.integers(1, 3), st.integers(1, 3))))
    padding = draw(st.tuples(st.integers(0, 6), st.integers(0, 6)))
    least = [max(1, dilation[n] * (kernel_size[n] - 1) + 1 - 2 * padding[n]) for n in range(2)]
    size = tuple(draw(st.integers(smallest, smallest + 17)) for smallest in least)
    layouts = st.sampled_from(["contiguous", "channels_last", "slice"])
    return Case(
        batch=draw(st.integers(1, 2)),
        groups=draw(st.integers(1, 3)),
        group_channels=draw(st.sampled_from([16, 1, 3, 4, 8, 17, 24, 32])),
        size=size,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        dtype=draw(st.sampled_from(dtypes)),
        input_layout=draw(layouts),
        kernel_layout=draw(layouts),
    )


def check_operators(ops, case: Case, device: str = "cpu") -> None:
    """Forward and both gradients of `ops` against autograd through the definition in float64."""
    input, kernel, grad = case.tensors(device)
    stride, padding, dilation = case.window
    exact_input, exact_kernel = (t.double().requires_grad_() for t in (input, kernel))
    exact = plain_involution(exact_input, exact_kernel, stride, padding, dilation)
    exact_grads = torch.autograd.grad(exact, (exact_input, exact_kernel), grad.double())

    window = (stride, padding, dilation)
    output = ops.involution2d(input, kernel, *window)
    grad_input = ops.involution2d_input_grad(grad, kernel, list(case.size), *window)
    grad_kernel = ops.involution2d_kernel_grad(grad, input, case.groups, list(case.kernel_size), *window)

    for name, result, expected in (
        ("output", output, exact),
        ("grad_input", grad_input, exact_grads[0]),
        ("grad_kernel", grad_kernel, exact_grads[1]),
    ):
        assert result.dtype == case.dtype and result.shape == expected.shape
        error = (result.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
        assert error <= TOLERANCE[case.dtype], f"{name}: relative error {error:.2g}"
    if case.input_layout == "channels_last":
        assert output.is_contiguous(memory_format=torch.channels_last)
        assert grad_input.is_contiguous(memory_format=torch.channels_last)
    else:
        assert output.is_contiguous() and grad_input.is_contiguous()


def check_fused(ops, case: Case, hidden_channels: int, affine: bool, relu: bool, device: str = "cpu") -> None:
    """`ops.involution2d_fused`, with and without what follows, against the definition in float64."""
    input, _, _ = case.tensors(device)
    (kernel_h, kernel_w), channels = case.kernel_size, case.groups * case.group_channels
    out = case.groups * kernel_h * kernel_w
    features = laid_out(torch.randn(case.batch, hidden_channels, *case.output_size), case.kernel_layout)
    weight, bias = torch.randn(out, hidden_channels, 1, 1) / hidden_channels**0.5, torch.randn(out)
    features, weight, bias = (t.to(device, case.dtype) for t in (features, weight, bias))
    accumulation = torch.promote_types(case.dtype, torch.float32)
    scale, shift = (torch.randn(channels, device=device, dtype=accumulation) if affine else None for _ in range(2))

    kernel = F.conv2d(features.double(), weight.double(), bias.double())
    kernel = kernel.unflatten(1, (case.groups, *case.kernel_size))
    expected = plain_involution(input.double(), kernel, *case.window)
    if affine:
        expected = expected * scale.double()[:, None, None] + shift.double()[:, None, None]
    if relu:
        expected = expected.relu()

    result = ops.involution2d_fused(
        input, features, weight, bias, scale, shift, relu, list(case.kernel_size), *case.window
    )
    assert result.dtype == case.dtype and result.shape == expected.shape
    # The kernel may be rounded to the dtype of the input before it is applied, as it is without fusion.
    error = (result.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    assert error <= 3 * TOLERANCE[case.dtype], f"relative error {error:.2g}"
    if case.input_layout == "channels_last":
        assert result.is_contiguous(memory_format=torch.channels_last)
    else:
        assert result.is_contiguous()
