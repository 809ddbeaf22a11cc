"""Draws a confusion matrix."""

import numpy as np
from matplotlib.figure import Figure
from rednet.training.figures.style import look


@look
def draw_confusion_matrix(matrix: np.ndarray, names: list[str]) -> Figure:
    """
    Each row is a true class, shaded by the fraction of its images. Up to 20 classes have their counts in the cells.

    Args:
        matrix: (classes, classes), the number of images by true and predicted class.
    """
    parts = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = max(7.5, 0.22 * len(names) + 3)
    figure = Figure(figsize=(side + 1.5, side))
    axes = figure.subplots()
    image = axes.imshow(parts, cmap="Greys", vmin=0, vmax=1)
    fontsize = max(6, min(13, 300 / len(names)))
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=fontsize)
    axes.set_yticks(range(len(names)), names, fontsize=fontsize)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.grid(False)
    if len(names) <= 20:
        for (row, column), count in np.ndenumerate(matrix):
            color = "white" if parts[row, column] > 0.5 else "black"
            axes.text(column, row, count, ha="center", va="center", color=color, gid=f"{row} {column}", fontsize=10)
    figure.colorbar(image, label="fraction of the true class")
    return figure
