"""Counts the parameters and operations of a model, and measures its memory."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, flop_registry


FUSED = "involution2d_fused"  # the operator that generates and applies kernels in one pass


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """Returns the number of parameters, or of those with `requires_grad`."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def count_macs(
    model: nn.Module,
    height: int = 224,
    width: int = 224,
    *,
    num_channels: int | None = None,
    proposals: int = 1000,
    detections: int = 100,
) -> int:
    """Counts the multiply-accumulate operations of convolutions, involutions and matrix products for one image.

    The model runs on shapes only, without computation. The result is half of what `torch.utils.flop_counter` counts. It
    does not include biases, normalization, activations, pooling and interpolation.

    Args:
        model: takes images (1, num_channels, height, width), as the models of Transformers, or is a detector of
            torchvision.
        height, width: the size of the image in pixels. For a detector, the size after it has resized and padded the
            image.
        num_channels: the number of channels of the image, by default that of `model.config`, or 3.
        proposals, detections: the number of regions that the box head and the mask head of an R-CNN process. For a real
            image it depends on the content; the defaults are torchvision's maximum and the convention of papers.

    Returns:
        The number of multiply-accumulates. The model is unchanged.
    """
    counter = FlopCounterMode(display=False)
    _run_on_shapes(model, counter, (height, width), num_channels, proposals, detections)
    return counter.get_total_flops() // 2


def count_activations(
    model: nn.Module,
    height: int = 224,
    width: int = 224,
    *,
    num_channels: int | None = None,
    proposals: int = 1000,
    detections: int = 100,
) -> int:
    """Counts the elements of the outputs of all convolutions, involutions and matrix products for one image.

    This is the definition of fvcore and timm, for which a ResNet-50 has 11.1 million activations at 224 x 224, extended
    to involutions: the kernels that an involution generates are the output of a convolution, so they count even if the
    compiled operator never stores them. Outputs of normalization, activation functions, pooling and additions do not
    count.

    Args:
        model, height, width, num_channels, proposals, detections: as for `count_macs`.

    Returns:
        The number of elements. The model is unchanged.
    """
    # The counter calls the function of an operator with the shapes of its arguments, and sums the results.
    formulas = {op: _fused_activations if op.__name__ == FUSED else _output_elements for op in flop_registry}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    _run_on_shapes(model, counter, (height, width), num_channels, proposals, detections)
    return counter.get_total_flops()


def _output_elements(*shapes: Any, out_shape: Any, **options: Any) -> int:
    # Attention has several outputs, of which the first is the result.
    return math.prod(out_shape if isinstance(out_shape, torch.Size) else out_shape[0])


def _fused_activations(
    input: Any, features: Any, weight: torch.Size, *shapes: Any, out_shape: Any, **options: Any
) -> int:
    batch, channels, height, width = out_shape
    return batch * height * width * (weight[0] + channels)  # the kernels, and the output


def _run_on_shapes(
    model: nn.Module,
    counter: FlopCounterMode,
    size: tuple[int, int],
    num_channels: int | None,
    proposals: int,
    detections: int,
) -> None:
    """Runs a model on one image of `size` pixels (height, width), on shapes only."""
    if num_channels is None:
        num_channels = getattr(getattr(model, "config", None), "num_channels", 3)
    fake = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with fake, torch.no_grad(), counter:
            parameter = next(model.parameters())
            images = torch.empty(1, num_channels, *size, dtype=parameter.dtype, device=parameter.device)
            if hasattr(model, "transform") and hasattr(model, "backbone"):
                _run_detector(model, images, proposals, detections)
            else:
                model(images)
    finally:
        for module, mode in training.items():
            module.training = mode


def _run_detector(model: Any, images: Tensor, proposals: int, detections: int) -> None:
    """Runs the layers of a torchvision detector, without the selection of regions by their scores."""
    features = list(model.backbone(images).values())
    if not hasattr(model, "roi_heads"):
        model.head(features)
        return
    model.rpn.head(features)
    heads, channels = model.roi_heads, features[0].shape[1]
    regions = features[0].new_empty(proposals, channels, *heads.box_roi_pool.output_size)
    heads.box_predictor(heads.box_head(regions))
    if heads.has_mask():
        regions = features[0].new_empty(detections, channels, *heads.mask_roi_pool.output_size)
        heads.mask_predictor(heads.mask_head(regions))


def peak_bytes(function: Callable, device: str) -> int:
    """Calls `function` twice, and returns the peak of memory that torch allocates in the second call, in bytes.

    Args:
        device: `"cuda"` reads the statistics of the allocator, `"cpu"` the profiler.
    """
    function()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


__all__ = ["count_activations", "count_macs", "count_parameters", "peak_bytes"]
