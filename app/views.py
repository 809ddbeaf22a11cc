"""What the app shows, computed: classes, heat maps of kernels, and the kernel of one place. Knows nothing of Gradio."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import Normalize, to_hex
from PIL import Image, ImageDraw
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
OPACITY = 0.65  # of the heat over the picture
GRAYS = (0.3, 0.9)  # of the picture under it: in full contrast it would make other colours of the heat
DISPLAY = 560  # pixels of the longer side of a heat map: a multiple of 28, 14 and 7, so that its cells are equal


def load_model(model_id: str) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    Loads a RedNet, with its classifier where it has one, from a folder or from the Hub. Where `rednet` is not installed,
    the code that comes with the model is executed.

    Raises:
        ValueError: it is not there, is no RedNet, or has no involutions.
    """
    try:
        import rednet  # noqa: F401  registers RedNet with the Auto classes

        remote = {}
    except ImportError:
        remote = {"trust_remote_code": True}
    try:
        config, _ = PreTrainedConfig.get_config_dict(model_id)
        if config.get("model_type") != "rednet":
            raise ValueError(f"its model_type is {config.get('model_type')!r}, expected 'rednet'")
        if config.get("operator_type") == "convolution":
            raise ValueError(
                "it is the ResNet to compare with, and has no involutions (operator_type is 'convolution')"
            )
        # Another model gets the classes' weights at random: of those only the features are shown.
        classifier = "RedNetForImageClassification" in (config.get("architectures") or [])
        model_class = AutoModelForImageClassification if classifier else AutoModel
        model = model_class.from_pretrained(model_id, **remote).eval()
        return model, AutoImageProcessor.from_pretrained(model_id)
    except (OSError, ValueError) as error:
        raise ValueError(f"{model_id} cannot be shown: {error}") from error


@dataclass(frozen=True)
class Seen:
    """
    What a model makes of a picture.

    Attributes:
        picture: the part of it that the model saw, (H, W, 3) from 0 to 1.
        classes: the probabilities of the (up to) five most probable; none where the model has no classifier.
        kernels: the kernels (G, K, K, H', W') of every involution, by stage (0 is the stem) and in their order there.
        strides: of the same involutions.
    """

    picture: np.ndarray
    classes: dict[str, float]
    kernels: dict[int, list[Tensor]]
    strides: dict[int, list[int]]


@torch.no_grad()
def see(model: PreTrainedModel, processor: BaseImageProcessor, picture: Image.Image) -> Seen:
    pixel_values = processor(picture.convert("RGB"), return_tensors="pt")["pixel_values"]
    kernels = model.involution_kernels(pixel_values)
    stages = [(stage, kernels[name]) for stage, name in enumerate(model.config.stage_names)]
    return Seen(
        denormalize(pixel_values[0], processor),
        top_classes(model(pixel_values).logits[0], model.config.id2label) if hasattr(model, "classifier") else {},
        {stage: [kernel[0] for kernel in of_stage.values()] for stage, of_stage in stages},
        {stage: [model.get_submodule(name).stride for name in of_stage] for stage, of_stage in stages},
    )


def denormalize(pixel_values: Tensor, processor: BaseImageProcessor) -> np.ndarray:
    """The picture as the model sees it, (H, W, 3) from 0 to 1, of pixel values (3, H, W)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    return (pixel_values * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()


def top_classes(logits: Tensor, labels: dict[int, str], count: int = 5) -> dict[str, float]:
    """Probabilities of the most probable classes. Of labels that several classes have, each gets the class's number."""
    best = logits.softmax(0).topk(min(count, len(logits)))
    every = list(labels.values())
    names = [labels[n] if every.count(labels[n]) == 1 else f"{labels[n]} ({n})" for n in best.indices.tolist()]
    return dict(zip(names, best.values.tolist()))


@dataclass(frozen=True)
class Place:
    """
    A kernel, and where it is.

    Attributes:
        kernel: (K, K), the taps from top left to bottom right.
        row, column: of the pixel that it belongs to, in a feature map of `size`, (H', W').
        window: left, top, right and bottom of what it is applied to, as parts of the picture's width and height.
    """

    kernel: Tensor
    row: int
    column: int
    size: tuple[int, int]
    window: tuple[float, float, float, float]


def place(kernels: Tensor, stride: int, group: int, point: tuple[float, float]) -> Place:
    """
    The kernel at a point of the picture.

    Args:
        kernels: (G, K, K, H', W') of one involution.
        stride: its stride.
        group: counted from 0.
        point: x and y as parts of the picture's width and height, from 0 to (not including) 1.
    """
    (height, width), reach = kernels.shape[-2:], kernels.shape[1] // 2
    column, row = int(point[0] * width), int(point[1] * height)
    # The window is around pixel (stride * row, stride * column) of the input.
    left, right = (column * stride - reach) / (width * stride), (column * stride + reach + 1) / (width * stride)
    top, bottom = (row * stride - reach) / (height * stride), (row * stride + reach + 1) / (height * stride)
    return Place(kernels[group, :, :, row, column], row, column, (height, width), (left, top, right, bottom))


def kernel_sums(kernels: Tensor, group: int) -> np.ndarray:
    """(H', W'): the kernels of one group, each summed over its K x K taps."""
    return kernels[group].sum((0, 1)).numpy()


def heat_over(gray: np.ndarray | float, heat: np.ndarray | float) -> np.ndarray:
    """The colours (..., 3) of heat between 0 and 1 over grays between 0 and 1."""
    return OPACITY * np.asarray(HEAT(heat))[..., :3] + (1 - OPACITY) * gray


def heat_map(picture: np.ndarray, sums: np.ndarray, marked: Place) -> Image.Image:
    """
    The sums as colours over the picture in grey, each sum a cell without smoothing; outlined in it one place, in black
    and white, and its window.
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
    """A colour bar with labels at its left, (middle) and right."""
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
    """A kernel (K, K) as a table of numbers on colours that are symmetric about zero; a cell's title has six digits."""
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
            centre = ' class="centre"' if row == column == len(kernel) // 2 else ""
            cells.append(
                f'<td{centre} title="{value:.6g}" style="background: {to_hex(color)}; color: {ink}">'
                f"{number(value / 10**power, '.2f')}</td>"
            )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    unit = f"<p>numbers × 10<sup>{power}</sup></p>" if power else ""
    bar = gradient(SIGNED, [number(value, ".3g") for value in (-largest, 0, largest)])
    return f'<table class="kernel" style="--taps: {len(kernel)}">{"".join(rows)}</table>{unit}{bar}'
