"""Computes what the app shows: classes, heat maps of kernels, and the kernel of one pixel. Independent of Gradio."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import Normalize, to_hex
from PIL import Image, ImageDraw
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)


HEAT = colormaps["viridis"]
SIGNED = colormaps["RdBu_r"]  # blue below zero, white at zero, red above
OPACITY = 0.65  # of the heat map over the picture
GRAYS = (0.3, 0.9)  # range of the picture under it: full contrast would change the colors of the heat
DISPLAY = 560  # longer side of a heat map in pixels: a multiple of 28, 14 and 7, for cells of equal size


def load_model_and_processor(model_id: str) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    Loads a RedNet, with its classifier if it has one, and its image processor. If `rednet` is not installed, as in a
    Space, the code that was saved with the model is executed.

    Args:
        model_id: a folder, or the id of a Hub repository.

    Raises:
        ValueError: the model does not exist, is not a RedNet, has no involutions, or takes pictures of other than
            three channels.
    """
    try:
        import rednet  # noqa: F401  registers RedNet with the Auto classes

        remote = {}
    except ImportError:
        remote = {"trust_remote_code": True}
    try:
        config, _ = PreTrainedConfig.get_config_dict(model_id)
        if config.get("model_type") != "rednet":
            raise ValueError(f"model_type is {config.get('model_type')!r}, expected 'rednet'")
        if config.get("operator_type") == "convolution":
            raise ValueError("operator_type is 'convolution', expected 'involution'")
        if config.get("num_channels", 3) != 3:
            raise ValueError(f"num_channels is {config['num_channels']}, expected 3")
        # In any other model the classifier would be random, so it is loaded without one.
        classifier = "RedNetForImageClassification" in (config.get("architectures") or [])
        model_class = AutoModelForImageClassification if classifier else AutoModel
        model = model_class.from_pretrained(model_id, **remote).eval()
        return model, AutoImageProcessor.from_pretrained(model_id)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{model_id} cannot be shown: {error}") from error


@dataclass(frozen=True)
class Analysis:
    """
    The output of a model for a picture.

    Attributes:
        picture: the part of the picture that the model processes, (H, W, 3) from 0 to 1.
        classes: the probabilities of the five most probable classes. Empty if the model has no classifier.
        kernels: for each stage (0 is the stem), the kernels (G, K, K, H', W') of its involutions in order.
        strides: the strides of the same involutions.
    """

    picture: np.ndarray
    classes: dict[str, float]
    kernels: dict[int, list[Tensor]]
    strides: dict[int, list[int]]


@torch.no_grad()
def analyze(model: PreTrainedModel, processor: BaseImageProcessor, picture: Image.Image) -> Analysis:
    pixel_values = processor(picture.convert("RGB"), return_tensors="pt")["pixel_values"]
    kernels = model.involution_kernels(pixel_values)
    stages = [(stage, kernels[name]) for stage, name in enumerate(model.config.stage_names)]
    return Analysis(
        denormalize(pixel_values[0], processor),
        top_classes(model(pixel_values).logits[0], model.config.id2label) if hasattr(model, "classifier") else {},
        {stage: [kernel[0] for kernel in of_stage.values()] for stage, of_stage in stages},
        {stage: [model.get_submodule(name).stride for name in of_stage] for stage, of_stage in stages},
    )


def denormalize(pixel_values: Tensor, processor: BaseImageProcessor) -> np.ndarray:
    """Converts pixel values (3, H, W) to a picture (H, W, 3) from 0 to 1."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    return (pixel_values * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()


def top_classes(logits: Tensor, labels: dict[int, str], count: int = 5) -> dict[str, float]:
    """
    Returns the probabilities of the most probable classes. The number of the class follows a label that several classes
    share.
    """
    best = logits.softmax(0).topk(min(count, len(logits)))
    every = list(labels.values())
    names = [labels[n] if every.count(labels[n]) == 1 else f"{labels[n]} ({n})" for n in best.indices.tolist()]
    return dict(zip(names, best.values.tolist()))


@dataclass(frozen=True)
class PixelKernel:
    """
    The kernel of one pixel.

    Attributes:
        kernel: (K, K), the taps from top left to bottom right.
        row, column: the position of the pixel in the feature map.
        size: height and width of the feature map, (H', W').
        window: left, top, right and bottom of the window that the kernel is applied to, as fractions of the picture.
    """

    kernel: Tensor
    row: int
    column: int
    size: tuple[int, int]
    window: tuple[float, float, float, float]


def kernel_at(kernels: Tensor, stride: int, group: int, point: tuple[float, float]) -> PixelKernel:
    """
    Returns the kernel at a point of the picture.

    Args:
        kernels: (G, K, K, H', W') of one involution.
        stride: the stride of the involution.
        group: the index of the group, from 0.
        point: x and y as fractions of the width and height of the picture, in [0, 1).
    """
    (height, width), reach = kernels.shape[-2:], kernels.shape[1] // 2
    column, row = int(point[0] * width), int(point[1] * height)
    # The window is centered on pixel (stride * row, stride * column) of the input.
    left, right = (column * stride - reach) / (width * stride), (column * stride + reach + 1) / (width * stride)
    top, bottom = (row * stride - reach) / (height * stride), (row * stride + reach + 1) / (height * stride)
    return PixelKernel(kernels[group, :, :, row, column], row, column, (height, width), (left, top, right, bottom))


def kernel_sums(kernels: Tensor, group: int) -> np.ndarray:
    """Sums the kernels (G, K, K, H', W') of one group over their K x K taps: (H', W')."""
    return kernels[group].sum((0, 1)).numpy()


def heat_over(gray: np.ndarray | float, heat: np.ndarray | float) -> np.ndarray:
    """Returns the colors (..., 3) of heat from 0 to 1 over gray from 0 to 1."""
    return OPACITY * np.asarray(HEAT(heat))[..., :3] + (1 - OPACITY) * gray


def heat_map(picture: np.ndarray, sums: np.ndarray, marked: PixelKernel) -> Image.Image:
    """
    Draws the sums (H', W') as colors over the gray picture (H, W, 3), one cell for each sum, and outlines one cell and
    its window in black and white.
    """
    scale = DISPLAY / max(picture.shape[:2])
    size = tuple(round(side * scale) for side in picture.shape[1::-1])
    gray = Image.fromarray((255 * picture @ [0.299, 0.587, 0.114]).astype(np.uint8))
    gray = np.asarray(gray.resize(size, Image.Resampling.BICUBIC)) / 255
    cells = np.asarray(Image.fromarray(sums.astype(np.float32)).resize(size, Image.Resampling.NEAREST))
    gray = GRAYS[0] + (GRAYS[1] - GRAYS[0]) * gray[..., None]
    mixed = Image.fromarray((255 * heat_over(gray, Normalize(sums.min(), sums.max())(cells))).round().astype(np.uint8))
    draw, (height, width) = ImageDraw.Draw(mixed), marked.size
    cell = (
        marked.column / width,
        marked.row / height,
        (marked.column + 1) / width,
        (marked.row + 1) / height,
    )
    for box in (marked.window, cell):
        left, top, right, bottom = (round(part * side) for part, side in zip(box, size * 2))
        draw.rectangle((left - 2, top - 2, right + 1, bottom + 1), outline="black", width=4)
        draw.rectangle((left - 1, top - 1, right, bottom), outline="white", width=2)
    return mixed


# HTML


def number(value: float, format: str) -> str:
    return f"{value:{format}}".replace("-", "\N{MINUS SIGN}")


def gradient(colors: Callable[[float], Sequence[float]], labels: list[str]) -> str:
    """Returns a color bar as HTML, with labels evenly spaced below it."""
    stops = ", ".join(to_hex(colors(n / 16)) for n in range(17))
    spans = "".join(f"<span>{label}</span>" for label in labels)
    return (
        f'<div class="bar" style="background: linear-gradient(to right, {stops})"></div>'
        f'<div class="bar-labels">{spans}</div>'
    )


def heat_legend(sums: np.ndarray) -> str:
    labels = [number(value, ".3g") for value in (sums.min(), (sums.min() + sums.max()) / 2, sums.max())]
    return gradient(lambda heat: heat_over(sum(GRAYS) / 2, heat), labels)


def kernel_table(kernel: Tensor) -> str:
    """
    Returns a kernel (K, K) as an HTML table of numbers on colors that are symmetric about zero. The title of a cell is
    the value in six digits.
    """
    largest = kernel.abs().max().item()
    power = math.floor(math.log10(largest)) if largest > 0 else 0
    power = 0 if -1 <= power <= 1 else power
    scale = Normalize(-largest or -1, largest or 1)
    rows = []
    for row, values in enumerate(kernel.tolist()):
        cells = []
        for column, value in enumerate(values):
            color = SIGNED(scale(value))
            ink = "black" if np.dot(color[:3], [0.299, 0.587, 0.114]) > 0.5 else "white"
            center = ' class="center"' if row == column == len(kernel) // 2 else ""
            cells.append(
                f'<td{center} title="{value:.6g}" style="background: {to_hex(color)}; color: {ink}">'
                f"{number(value / 10**power, '.2f')}</td>"
            )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    unit = f"<p>numbers × 10<sup>{power}</sup></p>" if power else ""
    bar = gradient(SIGNED, [number(value, ".3g") for value in (-largest, 0, largest)])
    return f'<table class="kernel" style="--taps: {len(kernel)}">{"".join(rows)}</table>{unit}{bar}'
