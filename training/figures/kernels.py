"""Draws the involution kernels of a model as heat maps over an image, each summed over its window."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image
from rednet.training.figures.style import look
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, ConvNextImageProcessor


MAX_GROUPS = 4


def kernels_name(path: Path, stage: int | None) -> str:
    """The file name of a figure."""
    return f"kernels_{path.stem}" + ("" if stage is None else f"_stage_{stage}")


def draw_kernels(model_id: str, path: Path, stage: int | None = None) -> Figure:
    """
    Args:
        model_id: a folder, or the id of a Hub repository.
        path: an image.
        stage: draws only this one, counted from 1.

    Raises:
        FileNotFoundError, ValueError: the image does not exist or is damaged, or the model lacks the stage.
    """
    model = AutoModel.from_pretrained(model_id).eval()
    processor = AutoImageProcessor.from_pretrained(model_id)
    pixel_values = processor(read_image(path), return_tensors="pt")["pixel_values"]
    kernels = model.involution_kernels(pixel_values)
    stages = [list(kernels[name].values()) for name in model.config.stage_names[1:]]
    last = {number: kernels[-1] for number, kernels in enumerate(stages, start=1)}
    if stage is not None and stage not in last:
        raise ValueError(f"stage is {stage}, but {model_id} has stages 1 to {len(last)}")
    image = denormalize(pixel_values[0], processor)
    return draw_heat_maps(image, last if stage is None else {stage: last[stage]})


def read_image(path: Path) -> Image.Image:
    if not path.is_file():
        raise FileNotFoundError(f"no such image: {path}")
    try:
        return Image.open(path).convert("RGB")
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise ValueError(f"{path} cannot be read as an image: {error}") from error


def denormalize(pixel_values: Tensor, processor: ConvNextImageProcessor) -> np.ndarray:
    """The image that the model sees, (H, W, 3) from 0 to 1, from its pixel values, (3, H, W)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    return (pixel_values * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()


def heat_maps(kernel: Tensor, size: tuple[int, int]) -> dict[int, np.ndarray]:
    """
    Args:
        kernel: (1, G, K, K, H', W').
        size: height and width of the maps.

    Returns:
        For each group, the sum over K x K, enlarged to `size`. At most MAX_GROUPS groups, evenly spaced.
    """
    sums = F.interpolate(kernel.float().sum((2, 3)), size, mode="bilinear")[0]
    groups = np.linspace(0, len(sums) - 1, min(len(sums), MAX_GROUPS)).round().astype(int)
    return {int(group): sums[group].numpy() for group in groups}


@look
def draw_heat_maps(image: np.ndarray, kernels: dict[int, Tensor]) -> Figure:
    """
    One row for each stage, one column for each group. The groups of a stage have one color scale; those of different
    stages differ too much.

    Args:
        image: (H, W, 3), from 0 to 1.
        kernels: (1, G, K, K, H', W') by stage.
    """
    maps = {stage: heat_maps(kernel, image.shape[:2]) for stage, kernel in kernels.items()}
    columns = 1 + max(map(len, maps.values()))
    figure = Figure(figsize=(2.7 * columns + 1.5, 2.9 * len(maps)))
    # The image under a heat map is gray and pale, so that brightness is that of the heat map, as in the color bar.
    pale = 0.6 + 0.4 * image @ [0.299, 0.587, 0.114]
    for (stage, row), all_axes in zip(maps.items(), figure.subplots(len(maps), columns, squeeze=False)):
        for axes in all_axes:
            axes.axis("off")
        _, groups, _, _, height, width = kernels[stage].shape
        all_axes[0].imshow(image)
        all_axes[0].set_title(f"stage {stage}, {height} x {width}")
        scale = Normalize(min(values.min() for values in row.values()), max(values.max() for values in row.values()))
        for axes, (group, values) in zip(all_axes[1:], row.items()):
            axes.imshow(pale, cmap="gray", vmin=0, vmax=1)
            heat_map = axes.imshow(values, cmap="cividis", norm=scale, alpha=0.7)
            axes.set_title(f"group {group + 1} of {groups}")
        figure.colorbar(heat_map, ax=list(all_axes), label="sum of kernel", fraction=0.03)
    return figure
