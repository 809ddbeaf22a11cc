"""How the examples write their results."""

import argparse
import json
import os
from pathlib import Path

from matplotlib.figure import Figure
from rednet.training.figures.style import look
from rednet.training.utils.files import write_json


__all__ = ["add_output_dir", "look", "save"]


def add_output_dir(parser: argparse.ArgumentParser) -> None:
    help = "folder for the picture and its numbers (default: %(default)s)"
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/examples"), help=help)


def save(folder: Path, name: str, figure: Figure, numbers: dict) -> None:
    """Writes name.webp and name.json, each to a temporary path that is then renamed, and prints the numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"{name}.webp"
    temporary = picture.with_name(f".{os.getpid()}.{picture.name}")  # the suffix is the format
    figure.savefig(temporary, dpi=100, pil_kwargs={"quality": 80})
    temporary.replace(picture)
    write_json(folder / f"{name}.json", numbers)
    print(json.dumps(numbers, indent=2), picture, sep="\n")
