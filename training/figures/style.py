"""What the figures of all scripts have in common: their look, and how they are saved."""

import os
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure


SLIDE = (13.33, 7.5)  # inches, what a 16:9 slide has: a point of a font is a point there
# Colour, line and marker: without the first, the other two tell them apart. The colours are those of Okabe and Ito,
# which people with colour blindness distinguish.
STYLES = [
    {"color": "#000000", "linestyle": "-", "marker": "o"},
    {"color": "#d55e00", "linestyle": "--", "marker": "s"},
    {"color": "#0072b2", "linestyle": "-.", "marker": "^"},
    {"color": "#009e73", "linestyle": ":", "marker": "D"},
    {"color": "#cc79a7", "linestyle": (0, (7, 2, 1, 2, 1, 2)), "marker": "v"},
    {"color": "#56b4e9", "linestyle": (0, (3, 3)), "marker": "P"},
    {"color": "#9a7500", "linestyle": (0, (1, 3)), "marker": "X"},
]

# Around every function that draws: matplotlib's own settings stay as they are.
look = matplotlib.rc_context(
    {
        "font.size": 15,
        "axes.titlesize": 15,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "lines.linewidth": 2,
        "lines.markersize": 8,
        "figure.constrained_layout.use": True,
        "figure.figsize": SLIDE,
        "svg.hashsalt": "figures",  # the same data give the same file
    }
)


@look
def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes name.svg and name.png, each to a temporary path that is then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.svg", folder / f"{name}.png"]
    for path in paths:
        temporary = path.with_name(f".{os.getpid()}.{path.name}")  # the suffix is the format
        figure.savefig(temporary, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
        temporary.replace(path)
    return paths


def labels_of(folders: list[Path]) -> list[str]:
    """What a legend calls them: their names, or their whole paths where names are the same."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


@look
def draw_confusion_matrix(matrix: np.ndarray, names: list[str]) -> Figure:
    """A row for every true class, in parts of its images; the counts stand in the cells of up to 20 classes.

    Args:
        matrix: (classes, classes), images by true and predicted class.
    """
    parts = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = max(7.5, 0.22 * len(names) + 3)
    figure = Figure(figsize=(side + 1.5, side))
    axes = figure.subplots()
    image = axes.imshow(parts, cmap="Greys", vmin=0, vmax=1)
    font = {"fontsize": max(6, min(13, 300 / len(names)))}
    axes.set_xticks(range(len(names)), names, rotation=90, **font)
    axes.set_yticks(range(len(names)), names, **font)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.grid(False)
    if len(names) <= 20:
        for (row, column), count in np.ndenumerate(matrix):
            color = "white" if parts[row, column] > 0.5 else "black"
            axes.text(column, row, count, ha="center", va="center", color=color, gid=f"{row} {column}", fontsize=10)
    figure.colorbar(image, label="part of the true class")
    return figure
