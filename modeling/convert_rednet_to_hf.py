"""Converts a checkpoint of the authors (mmcls, .pth) or of PaddleClas (.pdparams) to a complete Hub folder.

    python -m rednet.convert_rednet_to_hf --checkpoint_path rednet50.pth --output_dir rednet-50

A .pth file from your own training with the authors' code works too. Its weights may be in an entry such as `model`,
`state_dict` or `model_ema` (averaged weights are preferred), and their names may have the prefixes of DDP and of
torch.compile. Depths, kernel sizes and the number of classes follow from the weights. No code in a file is executed.
"""

import argparse
import json
import sys
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from rednet.checkpoints.layouts import build_model, find_config
from rednet.checkpoints.read import read_checkpoint
from rednet.configuration_rednet import RedNetConfig
from rednet.hub import check_replaceable, check_token, imagenet_card, push_hub_folder, save_hub_folder
from transformers import ConvNextImageProcessor


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rednet.convert_rednet_to_hf", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint_path", type=Path, required=True, help="a .pth or .pdparams file")
    parser.add_argument("--output_dir", type=Path, required=True, help="the Hub folder to write")
    parser.add_argument(
        "--config",
        type=Path,
        help="a config.json that the checkpoint must match; it also gives the names of the classes",
    )
    parser.add_argument("--push_to_hub", metavar="REPO", help="push the folder to this repository")
    options = parser.parse_args()
    try:
        if options.push_to_hub:
            check_token(options.push_to_hub)
        config = None if options.config is None else read_config(options.config)
        convert(options.checkpoint_path, options.output_dir, config, options.push_to_hub)
        print(f"{options.checkpoint_path} -> {options.output_dir}")
        if options.push_to_hub:
            print(push_hub_folder(options.output_dir, options.push_to_hub).repo_url)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")


def read_config(path: Path) -> RedNetConfig:
    """
    Raises:
        ValueError: the file is not a valid configuration of a RedNet.
    """
    try:
        return RedNetConfig.from_dict(json.loads(path.read_text()))
    except (ValueError, StrictDataclassError) as error:
        raise ValueError(f"{path} is not a valid configuration of a RedNet: {error}") from error


def convert(
    checkpoint_path: str | Path,
    output_dir: str | Path,
    config: RedNetConfig | None = None,
    repository: str | None = None,
) -> None:
    """
    Converts a checkpoint to a complete Hub folder. If the conversion fails, nothing is written.

    Args:
        checkpoint_path: a `.pth` file of the authors or of a training with their code (a classifier, a backbone, a
            detector or a segmentation model), or a `.pdparams` file of PaddleClas.
        config: gives what the weights do not show: channels per group, reduction ratio, and names of the classes.
        repository: the repository that the examples of the card load, by default the name of `output_dir`.

    Raises:
        FileExistsError: `output_dir` is not a folder, or has other files with the names of a model's files.
        FileNotFoundError: `checkpoint_path` does not exist.
        ValueError: the checkpoint cannot be read, is not that of a RedNet, or does not match `config`.
    """
    output_dir = Path(output_dir)
    check_replaceable(output_dir)
    publisher, weights = read_checkpoint(checkpoint_path)
    found = find_config(weights, config)
    for name in ("depths", "hidden_sizes", "embedding_size", "kernel_size", "stem_kernel_size"):
        if config is not None and getattr(config, name) != getattr(found, name):
            raise ValueError(
                f"{name} is {getattr(config, name)} in the configuration, {getattr(found, name)} in the checkpoint"
            )
    model = build_model(weights, found)
    processor = ConvNextImageProcessor(
        size={"shortest_edge": 224}, crop_pct=0.875, resample=2, do_convert_rgb=True,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    card = imagenet_card(found, repository or output_dir.name, publisher)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    save_hub_folder(output_dir, model, processor, card)


if __name__ == "__main__":
    main()
