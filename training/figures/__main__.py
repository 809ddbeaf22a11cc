"""Draws figures for a talk or a report as .svg and .png, readable in color and in black and white.

    python -m rednet.training.figures trade_off --results outputs/mine/results.json
    python -m rednet.training.figures kernels outputs/demo/last picture.jpg
    python -m rednet.training.figures curves outputs/demo outputs/mine

`trade_off`: accuracy against parameters and multiply-accumulates, of published models and of your runs. `kernels`: the
involution kernels of a model over an image, each summed over its window. `curves`: the logs of training runs.
"""

import argparse
import sys
from pathlib import Path

from rednet.training.figures.curves import draw_curves
from rednet.training.figures.kernels import draw_kernels, kernels_name
from rednet.training.figures.style import save
from rednet.training.figures.trade_off import draw_trade_offs
from transformers.utils import logging


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    try:
        for name, figure in options.draw(options).items():
            for path in save(figure, options.output_dir, name):
                print(path)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of a command, with `draw`: a function of the options that returns figures by file name."""
    parser = argparse.ArgumentParser(
        prog="python -m rednet.training.figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="trade_off | kernels | curves")

    trade_off = commands.add_parser("trade_off", help="accuracy against parameters and multiply-accumulates")
    trade_off.add_argument(
        "--results",
        type=Path,
        nargs="+",
        default=[],
        metavar="results.json",
        help="results of train.py, finetune.py or evaluate_model.py; those on other data sets get their own figures",
    )
    trade_off.set_defaults(draw=lambda options: draw_trade_offs(options.results))

    kernels = commands.add_parser("kernels", help="the kernels of a model, as heat maps over an image")
    kernels.add_argument("model", help="a folder, or the id of a Hub repository")
    kernels.add_argument("picture", type=Path, help="an image file")
    kernels.add_argument("--stage", type=int, help="draw only this stage, counted from 1")
    kernels.set_defaults(
        draw=lambda options: {
            kernels_name(options.picture, options.stage): draw_kernels(options.model, options.picture, options.stage)
        }
    )

    curves = commands.add_parser("curves", help="loss, accuracy, learning rate and speed of runs")
    curves.add_argument("runs", type=Path, nargs="+", metavar="run", help="output_dir of a training script")
    curves.set_defaults(draw=lambda options: {"learning_curves": draw_curves(options.runs)})

    for command in (trade_off, kernels, curves):
        command.add_argument("--output_dir", type=Path, default=Path("outputs/figures"), help="default: %(default)s")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    logging.set_verbosity_error()  # not the warning that the weights of a classifier are unused
    logging.disable_progress_bar()
    main()
