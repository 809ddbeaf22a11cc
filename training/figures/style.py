"""The look of all figures, and how they are saved."""

import os
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure


SLIDE = (13.33, 7.5)  # inches: the size of a 16:9 slide, so that font sizes are in points of the slide
# Color, line and marker: the last two distinguish series in print without color. The colors are those of Okabe and Ito,
# which people with color blindness can distinguish.
STYLES: list[dict[str, Any]] = [
    {"color": "#000000", "linestyle": "-", "marker": "o"},
    {"color": "#d55e00", "linestyle": "--", "marker": "s"},
    {"color": "#0072b2", "linestyle": "-.", "marker": "^"},
    {"color": "#009e73", "linestyle": ":", "marker": "D"},
    {"color": "#cc79a7", "linestyle": (0, (7, 2, 1, 2, 1, 2)), "marker": "v"},
    {"color": "#56b4e9", "linestyle": (0, (3, 3)), "marker": "P"},
    {"color": "#9a7500", "linestyle": (0, (1, 3)), "marker": "X"},
]

# A decorator of the functions that draw. The settings of the process do not change.
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
    """Writes name.svg and name.png, each to a temporary path that is then renamed, and returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.svg", folder / f"{name}.png"]
    for path in paths:
        temporary = path.with_name(f".{os.getpid()}.{path.name}")  # the suffix is the format
        figure.savefig(temporary, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
        temporary.replace(path)
    return paths


def labels_of(folders: list[Path]) -> list[str]:
    """Labels for a legend: the names of the folders, or their paths if two names are the same."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
