"""Converts a trained RedNet to a complete Hub folder: the weights that PaddleClas publishes, those of the authors (mmcls,
.pth), or your own from a training with their code.

    python -m rednet.convert_rednet_to_hf --checkpoint rednet-50 --output_dir rednet-50 --check
    python -m rednet.convert_rednet_to_hf --checkpoint rednet50.pth --output_dir rednet-50
    python -m rednet.convert_rednet_to_hf --all --output_dir models --push_to_hub your-name

The weights in a .pth file may be in an entry such as `model`, `state_dict` or `model_ema` (averaged weights are
preferred), and their names may have the prefixes of DDP and of torch.compile. Depths, kernel sizes and the number of
classes follow from the weights. No code in a file is executed. A detector (Faster R-CNN, Mask R-CNN or RetinaNet of
MMDetection) becomes a folder for `rednet.detection.load_detector`.
"""

import argparse
import hashlib
import sys
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from rednet.checkpoints.download import PUBLISHED, PUBLISHED_FILES, locate
from rednet.checkpoints.layouts import backbone_of, build_model, check_config, find_config, find_detector
from rednet.checkpoints.read import Checkpoint, read_checkpoint
from rednet.checkpoints.samples import check_samples_available, describe_samples
from rednet.configuration_rednet import RedNetConfig
from rednet.hub import (
    check_collection_token,
    check_replaceable,
    check_token,
    imagenet_card,
    push_collection,
    push_hub_folder,
    pushed_url,
    save_hub_folder,
)
from rednet.hub.cards import has_published_weights
from rednet.loading import find_class, read_object
from transformers import BaseImageProcessor, ConvNextImageProcessor, SegformerImageProcessor


# Title and description of the Collection of the five published models.
COLLECTION = (
    "RedNet",
    "RedNet-26 to RedNet-152 (Involution, CVPR 2021), trained on ImageNet-1k, published by PaddleClas",
)
DETECTOR_NOTE = (
    "The weights do not show everything: anchors, coding of boxes, and normalization and size of the pictures are those of "
    "the authors' configurations. docs/dense.md lists what a detector does differently from MMDetection."
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rednet.convert_rednet_to_hf",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    names = ", ".join(PUBLISHED)
    source.add_argument("--checkpoint", help=f"{names} (published by PaddleClas), a URL, or a .pth or .pdparams file")
    source.add_argument("--all", action="store_true", help=f"convert {names}, each to a folder in the output folder")
    parser.add_argument("--output_dir", type=Path, required=True, help="the Hub folder to write")
    parser.add_argument(
        "--config",
        type=Path,
        help="a config.json that the checkpoint must match. It gives the names of the classes, and what the weights do not "
        "show: the channels per group, the activation, and the stride of the stem",
    )
    parser.add_argument(
        "--backbone_only",
        action="store_true",
        help="convert the backbone of a detector, segmentation model or classifier, without neck and head",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="classify a cat, a rocket and a cup of coffee (pictures of scikit-image) with the result",
    )
    push = parser.add_argument_group("push to the Hub")
    push.add_argument(
        "--push_to_hub",
        metavar="NAMESPACE",
        help="push to this account or organization, to a repository with the name of the folder; with --all, also create "
        "a Collection of the five models",
    )
    push.add_argument("--private", action="store_true", default=None, help="create the repositories as private ones")
    push.add_argument(
        "--revision", metavar="BRANCH", help="push to this branch, which is created if it does not exist"
    )
    push.add_argument("--create_pr", action="store_true", help="open pull requests, and create no Collection")
    options = parser.parse_args()
    if options.all and options.config:
        parser.error("--config is for one checkpoint, but --all is given")
    if options.push_to_hub is None and (options.private or options.revision or options.create_pr):
        parser.error("--private, --revision and --create_pr need --push_to_hub")
    if options.push_to_hub and "/" in options.push_to_hub:
        parser.error(
            f"--push_to_hub is {options.push_to_hub}, expected an account or an organization, without a slash"
        )
    return options


def main() -> None:
    options = parse_arguments()
    try:
        run(options)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command resumes a download")


def run(options: argparse.Namespace) -> None:
    folders = {options.checkpoint: options.output_dir}
    if options.all:
        folders = {name: options.output_dir / name for name in PUBLISHED}
    repositories = {}
    if options.push_to_hub:
        repositories = {name: f"{options.push_to_hub}/{path.absolute().name}" for name, path in folders.items()}
    config = check(options, folders, repositories)
    for checkpoint, folder in folders.items():
        convert(checkpoint, folder, config, repositories.get(checkpoint), options.backbone_only)
        print(f"{checkpoint} -> {folder}")
        if options.check:
            print(describe_samples(folder))
    try:
        push(options, folders, repositories)
    except Exception as error:  # the class for a broken connection differs between releases of huggingface_hub
        sys.exit(f"error: {error}\n{options.output_dir} is complete: repeat the command to push it again")


def check(options: argparse.Namespace, folders: dict[str, Path], repositories: dict[str, str]) -> RedNetConfig | None:
    """Checks all that can be checked before a download, and returns the configuration that is given."""
    if options.check:
        check_samples_available()
    for folder in folders.values():
        check_replaceable(folder)
    for repository in repositories.values():
        check_token(repository, "model", options.revision, options.create_pr)
    if makes_collection(options):
        check_collection_token(options.push_to_hub)
    return None if options.config is None else read_config(options.config)


def push(options: argparse.Namespace, folders: dict[str, Path], repositories: dict[str, str]) -> None:
    """Pushes every folder, and prints the pages of the repositories and of the Collection."""
    for name, repository in repositories.items():
        commit = push_hub_folder(
            folders[name], repository, options.private, revision=options.revision, create_pr=options.create_pr
        )
        print(pushed_url(commit, options.revision))
    if makes_collection(options):
        models = list(repositories.values())
        print(push_collection(options.push_to_hub, *COLLECTION, models, private=bool(options.private)).url)


def makes_collection(options: argparse.Namespace) -> bool:
    # A pull request is for repositories of others, whose account gets no Collection.
    return options.push_to_hub is not None and options.all and not options.create_pr


def read_config(path: Path) -> RedNetConfig:
    """
    Reads a `config.json`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a valid configuration of a RedNet.
    """
    content = read_object(path)
    find_class(content, path)
    try:
        return RedNetConfig.from_dict(content)
    except (ValueError, StrictDataclassError) as error:
        raise ValueError(f"{path} is not a valid configuration of a RedNet: {error}") from error


def convert(
    checkpoint: str | Path,
    output_dir: str | Path,
    config: RedNetConfig | None = None,
    repository: str | None = None,
    backbone_only: bool = False,
) -> None:
    """
    Converts a checkpoint to a complete Hub folder, or, if it is that of a detector, to a folder for
    `rednet.detection.load_detector`. If the conversion fails, nothing is written. The SHA-256 of the file is printed, and
    stands in the card.

    Args:
        checkpoint: a name in `PUBLISHED`, a URL, or a path. The file is a `.pth` file of the authors or of a training
            with their code (a classifier, a backbone, Semantic FPN, Faster R-CNN, Mask R-CNN or RetinaNet), or a
            `.pdparams` file of PaddleClas.
        output_dir: the folder to write. A saved RedNet in it is replaced, see `rednet.hub.replacing`.
        config: gives the names of the classes, and what the weights do not show of the architecture, see `find_config`.
        repository: the repository that the examples of the card load, by default the name of `output_dir`.
        backbone_only: whether to leave out neck and head.

    Raises:
        ConnectionError: the download failed.
        FileExistsError: `output_dir` is not a folder, or has other files with the names of a model's files.
        FileNotFoundError: `checkpoint` does not exist.
        ValueError: the checkpoint cannot be read, is not that of a RedNet, or does not match `config`; or it is that of
            a detector and `repository` is given.
    """
    output_dir = Path(output_dir)
    check_replaceable(output_dir)
    content, source, sha256 = read(checkpoint)
    weights = backbone_of(content.weights) if backbone_only else content.weights
    detector = find_detector(weights)
    if detector is not None and repository is not None:
        raise ValueError(
            f"{source} is a detector, which has no card: convert it without --push_to_hub, and push it with "
            f"`hf upload {repository} {output_dir}`"
        )
    found = find_config(weights, config, content.labels)
    if config is not None:
        check_config(config, found)
    if detector is not None:
        from rednet.checkpoints.detectors import convert_detector  # it needs torchvision

        convert_detector(detector, weights, found, content.labels, output_dir)
        print(DETECTOR_NOTE)
        return
    if found.num_channels != 3:
        raise ValueError(f"{source} is a model for images of {found.num_channels} channels, expected 3 (RGB)")
    model = build_model(weights, found)
    # A file of the user may look like those of the authors: only weights.
    publisher = content.publisher if has_published_weights(found) else None
    card = imagenet_card(found, repository or output_dir.name, publisher, source=source, sha256=sha256)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    save_hub_folder(output_dir, model, make_processor(found), card)


def read(checkpoint: str | Path) -> tuple[Checkpoint, str, str]:
    """Returns the content of a checkpoint, the URL or the name of its file, and the SHA-256 of the file."""
    path, url = locate(checkpoint)
    try:
        content = read_checkpoint(path)
    except ValueError as error:
        if url is None:
            raise
        raise ValueError(f"{error}. To download it again, delete this file") from error
    source, sha256 = url or path.name, hashlib.sha256(path.read_bytes()).hexdigest()
    print(f"SHA-256 of {path}: {sha256}")
    if source.split("/")[-1] in PUBLISHED_FILES:
        content = content._replace(publisher="paddleclas")
    return content, source, sha256


def make_processor(config: RedNetConfig) -> BaseImageProcessor:
    """Returns the image processor of a model. It resizes and crops images, except for segmentation."""
    normalization = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    if config.architectures == ["RedNetForSemanticSegmentation"]:
        return SegformerImageProcessor(do_resize=False, do_convert_rgb=True, **normalization)
    return ConvNextImageProcessor(
        size={"shortest_edge": 224},
        crop_pct=0.875,
        resample=2,  # bilinear
        do_convert_rgb=True,
        **normalization,
    )


if __name__ == "__main__":
    main()
