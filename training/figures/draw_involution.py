"""Draws involution.png, the figure of the operator in the model cards.

python -m rednet.training.figures.draw_involution
"""

from importlib.resources import files
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import ConnectionPatch, Rectangle


SIZE, BLUE, ORANGE, GRAY = 7, "#2b6cb0", "#dd6b20", "#a0aec0"


def feature_map(axes: Axes, x: float, y: float, pixels: list[tuple[tuple[int, int], str]], channels: int = 3) -> None:
    """A grid of SIZE x SIZE pixels, one sheet for each channel, with the windows of some pixels, (column, row) and
    color."""
    for channel in reversed(range(channels)):
        left, bottom, order = x + 0.55 * channel, y + 0.55 * channel, 2 - channel / channels
        axes.add_patch(
            Rectangle((left, bottom), SIZE, SIZE, facecolor="white", edgecolor=GRAY, linewidth=1, zorder=order)
        )
        for line in range(1, SIZE):
            axes.plot([left, left + SIZE], [bottom + line] * 2, color=GRAY, linewidth=0.4, zorder=order)
            axes.plot([left + line] * 2, [bottom, bottom + SIZE], color=GRAY, linewidth=0.4, zorder=order)
    for (column, row), color in pixels:
        window = Rectangle((x + column - 1, y + row - 1), 3, 3, facecolor=color, alpha=0.25, zorder=3)
        axes.add_patch(window)
        axes.add_patch(Rectangle((x + column, y + row), 1, 1, facecolor=color, zorder=3))


def kernel(axes: Axes, x: float, y: float, values: np.ndarray, color: str, sheets: int = 1) -> None:
    for sheet in reversed(range(sheets)):
        left, bottom = x + 0.4 * sheet, y + 0.4 * sheet
        for (row, column), value in np.ndenumerate(values[sheet]):
            shade = np.array(to_rgb(color)) * value + (1 - value)
            axes.add_patch(
                Rectangle((left + column, bottom + row), 1, 1, facecolor=shade, edgecolor="white", linewidth=0.8)
            )
        axes.add_patch(Rectangle((left, bottom), 3, 3, fill=False, edgecolor=color, linewidth=1.2))


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    patch = ConnectionPatch(start, end, "data", arrowstyle="-|>", mutation_scale=11, color=color, linewidth=1.3)
    patch.set_zorder(4)
    axes.add_artist(patch)


def main() -> None:
    random = np.random.default_rng(3)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.7))
    pixels = [(1, 4), (5, 1)]

    feature_map(left, 0, 0, [(pixel, BLUE) for pixel in pixels])
    kernel(left, 12.2, 2.6, random.uniform(0.1, 1, (3, 3, 3)), BLUE, sheets=3)
    for column, row in pixels:
        arrow(left, (12.0, 4.4), (column + 2.1, row + 0.5), BLUE)
    left.set_title("Convolution", fontsize=13, fontweight="bold")
    left.text(8.2, -2.3, "one kernel for all pixels,\na different one for each channel", ha="center", fontsize=11)

    feature_map(right, 0, 0, list(zip(pixels, (BLUE, ORANGE))))
    for (column, row), color, bottom in zip(pixels, (BLUE, ORANGE), (5.6, -0.2)):
        kernel(right, 12.6, bottom, random.uniform(0.1, 1, (1, 3, 3)), color)
        arrow(right, (column + 1.1, row + 0.7), (12.4, bottom + 1.9), color)
    right.set_title("Involution", fontsize=13, fontweight="bold")
    right.text(
        8.2, -2.3, "a kernel for every pixel, generated from it,\nshared by the channels", ha="center", fontsize=11
    )

    for axes in (left, right):
        axes.set(xlim=(-1, 17.5), ylim=(-2.6, 9.2), aspect="equal")
        axes.axis("off")
    figure.tight_layout()
    path = Path(str(files("rednet.hub_cards"))) / "involution.png"
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=110, format="png")
    temporary.replace(path)


if __name__ == "__main__":
    main()
