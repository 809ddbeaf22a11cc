"""The involution layers in one, two and three dimensions."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.modules.module import _has_any_global_hook

from .arguments import check_optional_types, check_types, per_dimension
from .ops import involution1d, involution2d, involution2d_fused, involution3d
from .reference import accumulation_dtype
from .taps import is_channels_last


# While a model is traced, its parameters are fake tensors.
_PLAIN_TENSORS = (Tensor, nn.Parameter, FakeTensor, FunctionalTensor)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling `module` does more than its class: it or all modules have hooks, or its `forward` changed."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return "forward" in vars(module) or any(hooks) or _has_any_global_hook()


def is_pointwise(convolution: nn.Module) -> bool:
    """Whether calling `convolution` computes a 1x1 convolution with its weight and bias, and does nothing else.

    If a user changes anything (hooks of this or of all modules, adapters, parametrizations, attributes, parameters of
    a tensor subclass), the module has to be called.
    """
    return (
        (type(convolution) is nn.Conv1d or type(convolution) is nn.Conv2d)
        and "_conv_forward" not in vars(convolution)
        and not has_hooks(convolution)
        and {*convolution.kernel_size, *convolution.stride, *convolution.dilation} == {1}
        and set(convolution.padding) == {0}
        and convolution.padding_mode == "zeros"
        and convolution.groups == 1
        and type(convolution.weight) in _PLAIN_TENSORS
        and (convolution.bias is None or type(convolution.bias) in _PLAIN_TENSORS)
    )


class _Involution(nn.Module):
    """What the layers of one, two and three dimensions share. Each names its functions and modules."""

    _dimensions: int
    _shape: str  # the dimensions of an image without its channels, such as "H, W"
    _convolution: Callable[..., nn.Module]
    _norm: Callable[..., nn.Module]
    _average_pool: Callable[..., Tensor]
    _involution: Callable[..., Tensor]
    _fused_involution: Any = None

    span: Any
    kernel_generator: Any
    project: nn.Module | None
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]

    def __init__(
        self,
        channels: int,
        kernel_size: int | Sequence[int] = 7,
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        group_channels: int = 16,
        reduction_ratio: int = 4,
        out_channels: int | None = None,
        kernel_generator: nn.Module | None = None,
        bias: bool = False,
        kernel_normalization: Literal["softmax", "l2"] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.out_channels = channels if out_channels is None else out_channels
        self.group_channels = group_channels
        self.reduction_ratio = reduction_ratio
        self.kernel_normalization = kernel_normalization
        for name, value in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation)):
            setattr(self, name, tuple(per_dimension(self._name(), name, value, 1, self._dimensions)))
        self._check_arguments(out_channels, kernel_generator)
        self.groups = self.out_channels // group_channels

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.kernel_generator = kernel_generator
        if kernel_generator is None:
            hidden = channels // reduction_ratio
            self.reduce = nn.Sequential(
                self._convolution(channels, hidden, 1, bias=False, **factory), self._norm(hidden, **factory), nn.ReLU()
            )
            self.span = self._convolution(hidden, math.prod(self.kernel_size) * self.groups, 1, **factory)
        self.project = None
        if self.out_channels != channels:
            self.project = self._convolution(channels, self.out_channels, 1, bias=False, **factory)
        self.bias = nn.Parameter(torch.zeros(self.out_channels, **factory)) if bias else None

    def forward(self, input: Tensor, guide: Tensor | None = None) -> Tensor:
        self._check_tensors(input, guide)
        if input.dim() == self._dimensions + 1:
            guide = None if guide is None else guide.unsqueeze(0)
            return self._apply_to_batch(input.unsqueeze(0), guide).squeeze(0)
        return self._apply_to_batch(input, guide)

    def _apply_to_batch(self, input: Tensor, guide: Tensor | None) -> Tensor:
        source = input if guide is None else guide
        features = None if self.kernel_generator is not None else self.reduce(self._pool(source))
        projected, window = self._window(input if self.project is None else self.project(input))
        if features is not None and self._can_fuse():
            span = self.span
            output = self._fused_involution(projected, features, span.weight, span.bias, self.kernel_size, *window)
        else:
            kernel = self._generated(source, input) if features is None else self.span(features)
            output = self._involution(projected, self._normalized(kernel), *window)
        if self.bias is None:
            return output
        return output + self.bias.to(output.dtype).unflatten(0, (-1, *[1] * self._dimensions))

    def _generated(self, source: Tensor, input: Tensor) -> Tensor:
        """The kernel from the user's generator: (B, G * taps, ...)."""
        kernel = self.kernel_generator(source)
        check_types(self._name(), **{"the result of kernel_generator": kernel})
        size = [-(-size // stride) for size, stride in zip(input.shape[2:], self.stride)]
        expected = (input.shape[0], self.groups * math.prod(self.kernel_size), *size)
        if kernel.dim() != len(expected) or any(one != other for one, other in zip(kernel.shape, expected)):
            raise ValueError(
                f"{self._name()}: kernel_generator returned shape {tuple(kernel.shape)}, expected {expected}: the "
                f"batch, {self.groups} groups of {self.kernel_size} taps, and the size of the output"
            )
        return kernel

    def _pool(self, input: Tensor) -> Tensor:
        # ceil_mode generates a kernel for every output pixel: at odd sizes, the last window averages the pixels that
        # exist. If the stride divides the size, it changes nothing.
        return input if set(self.stride) == {1} else self._average_pool(input, self.stride, ceil_mode=True)

    def _window(self, input: Tensor) -> tuple[Tensor, tuple]:
        """The input, padded if kernels are even, and the stride, padding and dilation of "same" padding."""
        span = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size)]
        if any(s % 2 for s in span):
            input = F.pad(input, [n for s in reversed(span) for n in (0, s % 2)])
        return input, (self.stride, [s // 2 for s in span], self.dilation)

    def _can_fuse(self) -> bool:
        """Whether the last convolution of the kernel generation and the involution can run as one operator."""
        return self._fused_involution is not None and self.kernel_normalization is None and is_pointwise(self.span)

    def _normalized(self, kernel: Tensor) -> Tensor:
        """(B, G * taps, ...) -> (B, G, *kernel_size, ...), normalized over the taps if the layer does so."""
        taps = kernel.unflatten(1, (self.groups, -1))
        if self.kernel_normalization is not None:
            values = taps.to(accumulation_dtype(kernel.dtype))
            # In channels-last, the taps of a pixel are next to each other: the last dimension of PyTorch's loops.
            channels_last = is_channels_last(kernel)
            values, dim = (values.movedim((1, 2), (-2, -1)), -1) if channels_last else (values, 2)
            values = values.softmax(dim) if self.kernel_normalization == "softmax" else F.normalize(values, dim=dim)
            taps = (values.movedim((-2, -1), (1, 2)) if channels_last else values).to(kernel.dtype)
        return taps.unflatten(2, self.kernel_size)

    def _name(self) -> str:
        return f"Involution{self._dimensions}d"

    def _check_arguments(self, out_channels: int | None, kernel_generator: nn.Module | None) -> None:
        divided = {"group_channels": "channels" if out_channels is None else "out_channels"}
        if kernel_generator is None:
            divided["reduction_ratio"] = "channels"
        elif not isinstance(kernel_generator, nn.Module):
            kind = type(kernel_generator).__name__
            raise TypeError(f"{self._name()}: kernel_generator is {kind}, expected a torch.nn.Module or None")
        for name, multiple in divided.items():
            divisor, number = getattr(self, name), getattr(self, multiple)
            integers = isinstance(divisor, Integral) and isinstance(number, Integral)
            if not integers or divisor < 1 or number < 1 or number % divisor != 0:
                raise ValueError(f"{self._name()}: {name} is {divisor}, expected a divisor of {multiple} = {number}")
        if self.kernel_normalization not in (None, "softmax", "l2"):
            raise ValueError(
                f"{self._name()}: kernel_normalization is {self.kernel_normalization!r}, expected None, 'softmax' or "
                "'l2'"
            )

    def _check_tensors(self, input: Tensor, guide: Tensor | None) -> None:
        check_types(self._name(), input=input)
        check_optional_types(self._name(), guide=guide)
        without_batch = self._dimensions + 1
        if input.dim() not in (without_batch, without_batch + 1) or input.shape[-without_batch] != self.channels:
            expected = f"{self.channels}, {self._shape}"
            raise ValueError(
                f"{self._name()}: input has shape {tuple(input.shape)}, expected (B, {expected}) or ({expected})"
            )
        if guide is not None and self.kernel_generator is None and guide.shape != input.shape:
            raise ValueError(
                f"{self._name()}: guide has shape {tuple(guide.shape)}, expected that of input, {tuple(input.shape)}, "
                "because there is no kernel_generator"
            )

    def extra_repr(self) -> str:
        text = (
            f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}, "
            f"group_channels={self.group_channels}, reduction_ratio={self.reduction_ratio}"
        )
        if self.out_channels != self.channels:
            text += f", out_channels={self.out_channels}"
        if self.bias is not None:
            text += ", bias=True"
        if self.kernel_normalization is not None:
            text += f", kernel_normalization={self.kernel_normalization!r}"
        return text


# What mmcv's ConvModule makes the parameters of the authors' layer begin with, and what they begin with here.
_AUTHORS_NAMES = {"conv1.conv.": "reduce.0.", "conv1.bn.": "reduce.1.", "conv2.conv.": "span."}


class Involution2d(_Involution):
    """Involution whose kernel is generated from the pixel at its center (arXiv 2103.06255, section 3).

    The kernel generation is average pooling by the stride (if it is not 1) -> 1x1 convolution to
    `channels / reduction_ratio` channels without bias -> BatchNorm -> ReLU -> 1x1 convolution to `Kh * Kw * groups`
    channels with bias. There is no softmax. The defaults are those of the paper. The layer is a drop-in replacement
    for a convolution with "same" padding: the output measures `ceil(H / stride) x ceil(W / stride)` for every input
    size.

    `load_state_dict` also accepts the names of parameters of the authors' layer (`conv1.conv.weight` and so on).

    Args:
        channels: number of input channels, divisible by `reduction_ratio`.
        kernel_size: an int or a pair (Kh, Kw), odd or even. An even kernel reaches one pixel further right and down.
        stride: an int or a pair (vertical, horizontal).
        dilation: an int or a pair.
        group_channels: number of output channels that share a kernel.
        reduction_ratio: number of channels divided by the number of hidden channels of the kernel generation. It is
            not used if there is a `kernel_generator`.
        out_channels: number of output channels, divisible by `group_channels`; default: `channels`. If it differs from
            `channels`, a 1x1 convolution without bias, `project`, maps the input to `out_channels` before the
            involution. The kernel is generated from the input as it is.
        kernel_generator: a module that replaces this kernel generation, pooling included. It maps the guide, or the
            input, to (B, groups * Kh * Kw, ceil(H / stride), ceil(W / stride)) with
            `groups = out_channels / group_channels`.
        bias: whether to add a learned bias to the output. It is zero at the start.
        kernel_normalization: normalizes each kernel over its `Kh * Kw` taps: "softmax", or "l2", which divides by the
            Euclidean norm; in float32 for values of 16 bits. Default: no normalization.
        device, dtype: of the parameters, as in `torch.nn.Conv2d`.

    Inputs:
        input: (B, channels, H, W) or (channels, H, W).
        guide: the tensor that the kernel is generated from; default: the input. It has a batch if the input has one.
            A `kernel_generator` may take any channels and size, and gets a batch of one if there is none. Without it,
            the guide has the shape of the input.

    Returns:
        (B, out_channels, ceil(H / stride), ceil(W / stride)), or without B as the input.

    Raises:
        TypeError, ValueError: an argument, or the shape of the input, the guide or the generated kernel, is invalid.
            The message names the argument, the given value and the expected one.
    """

    _dimensions = 2
    _shape = "H, W"
    _convolution = nn.Conv2d
    _norm = nn.BatchNorm2d
    _average_pool = staticmethod(F.avg_pool2d)
    _involution = staticmethod(involution2d)
    _fused_involution = staticmethod(involution2d_fused)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for key in list(state_dict):
            for theirs, ours in _AUTHORS_NAMES.items():
                if key.startswith(prefix + theirs):
                    state_dict[prefix + ours + key[len(prefix + theirs) :]] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _involution1d_fused(input, features, weight, bias, kernel_size, stride, padding, dilation):
    images = (tensor.unsqueeze(2) for tensor in (input, features, weight))
    window = (1, *stride), (0, *padding), (1, *dilation)
    return involution2d_fused(*images, bias, (1, *kernel_size), *window).squeeze(2)


class Involution1d(_Involution):
    """`Involution2d` for sequences: (B, channels, L) or (channels, L) -> (B, out_channels, ceil(L / stride)).

    It has the arguments of `Involution2d`, with `K` in the place of `Kh * Kw`. The parameters have the same names, and
    the 1x1 convolutions are `torch.nn.Conv1d`.
    """

    _dimensions = 1
    _shape = "L"
    _convolution = nn.Conv1d
    _norm = nn.BatchNorm1d
    _average_pool = staticmethod(F.avg_pool1d)
    _involution = staticmethod(involution1d)
    _fused_involution = staticmethod(_involution1d_fused)


class Involution3d(_Involution):
    """`Involution2d` for volumes: (B, channels, D, H, W) or (channels, D, H, W) -> (B, out_channels, D', H', W').

    It has the arguments of `Involution2d`, with `Kd * Kh * Kw` in the place of `Kh * Kw`; `D'` is `ceil(D / stride)`.
    The parameters have the same names, and the 1x1 convolutions are `torch.nn.Conv3d`. The kernel is written to
    memory: `Kd * Kh * Kw / group_channels` times the output.
    """

    _dimensions = 3
    _shape = "D, H, W"
    _convolution = nn.Conv3d
    _norm = nn.BatchNorm3d
    _average_pool = staticmethod(F.avg_pool3d)
    _involution = staticmethod(involution3d)
