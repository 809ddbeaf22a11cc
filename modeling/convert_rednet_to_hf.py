"""Converts a checkpoint of the authors (mmcls, .pth) or of PaddleClas (.pdparams) to a complete Hub folder.

    python -m rednet.convert_rednet_to_hf --checkpoint_path rednet50.pth --output_dir rednet-50

A .pth of your own training with the authors' code is read as well: weights in an entry such as `model`, `state_dict` or
`model_ema` (averaged weights are preferred), with an optimizer beside them, under DDP or torch.compile. Format, depth, kernel sizes and number of classes are found in the file. Nothing in it is executed.
"""

import argparse
import json
import math
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import ConvNextImageProcessor

from .configuration_rednet import RedNetConfig
from .hub import check_replaceable, check_token, push_hub_folder, save_hub_folder
from .hub.cards import imagenet_card
from .modeling_rednet import RedNetForImageClassification, RedNetModel


# From our names to the authors', applied one after the other. PaddleClas has the same ones, less the prefix.
RENAMES = [
    (r"^rednet\.", ""),
    (r"^embedder\.layers\.0\.(?=conv|norm)", "stem.0."),
    (r"^embedder\.layers\.1\.involution\.", "stem.1."),
    (r"^embedder\.layers\.1\.normalization\.", "stem.2."),
    (r"^embedder\.layers\.2\.", "stem.4."),
    (r"^encoder\.stages\.(\d+)\.layers\.", lambda match: f"layer{int(match[1]) + 1}."),
    *[(rf"\.layer\.{n}\.convolution\.", f".conv{n + 1}.") for n in (0, 2)],
    *[(rf"\.layer\.{n}\.normalization\.", f".bn{n + 1}.") for n in range(3)],
    (r"\.layer\.1\.involution\.", ".conv2."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"\.reduce\.", ".conv1."),
    (r"\.span\.", ".conv2.conv."),
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".bn."),
    (r"^classifier\.", "fc."),
]
# What a checkpoint of a detector or of a segmentation model has beside its backbone.
OTHER_PARTS = ("neck.", "rpn_head.", "roi_head.", "bbox_head.", "mask_head.", "decode_head.", "auxiliary_head.")


# Where training scripts put the weights in what they save. Averaged weights come first: they are those to evaluate.
ENTRIES = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "model_state_dict", "net", "module")
# What else is in such files, and does nothing: the options of a script, and numbers of NumPy such as the best accuracy.
_SCALAR = np.float64(0).__reduce__()[0]
HARMLESS = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
    *[(_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")],
]


class NumpyUnpickler(pickle.Unpickler):
    """Knows what numpy arrays are pickled with, and nothing else: no name in a file leads to any other code."""

    def find_class(self, module: str, name: str):
        known = {
            ("multiarray", "_reconstruct"): lambda kind, shape, code: np.ndarray.__new__(np.ndarray, (0,), "b"),
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
        }
        try:
            return known[re.sub(r"^numpy\._?core\.", "", module), name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only numpy arrays are read") from None


def load_checkpoint(path: str | Path) -> tuple[str | None, dict[str, Tensor]]:
    """
    Who published it (`authors` or `paddleclas`, None if it comes from a training of somebody else), and its weights
    under the authors' names without the prefix `backbone.`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or has other than tensors where its weights are.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    if path.suffix == ".pdparams":
        return "paddleclas", _from_paddle(_read(path, _load_pickle))
    content = _read(path, _load_torch)
    # The authors' files have weights and words on their training, and nothing to continue it with.
    published = {*_filled(content)} <= {"meta", "state_dict"} or not _entry(content)
    while entry := _entry(content):
        content = content.pop(entry)  # a dict that holds itself ends as well
    if isinstance(content, dict) and not any(isinstance(value, Tensor) for value in content.values()):
        names = _some(sorted(map(str, content)))
        raise ValueError(f"{path} has no weights: its entries are {names}, expected one of {', '.join(ENTRIES)}")
    weights = _only(Tensor, content, path)
    unwrapped = {_unwrap(key): value for key, value in weights.items() if key != "n_averaged"}  # of torch's averaging
    if len(unwrapped) < len(weights.keys() - {"n_averaged"}):
        raise ValueError(f"{path} has some weights twice, with and without the names of wrappers")
    return "authors" if published and unwrapped.keys() == weights.keys() else None, _from_mmcls(unwrapped)


def _filled(content) -> list[str]:
    return [key for key, value in content.items() if value is not None] if isinstance(content, dict) else []


def _entry(content) -> str | None:
    """The entry of a checkpoint that has the weights, None where these are the entries themselves."""
    if not isinstance(content, dict):
        return None
    # Also dicts that lead to weights; what averages them may have an entry of its options alone.
    entries = [name for name in ENTRIES if isinstance(content.get(name), dict)]
    return next((name for name in entries if any(isinstance(v, Tensor | dict) for v in content[name].values())), None)


def _unwrap(key: str) -> str:
    """Without what DDP, torch.compile and modules of training scripts around the model have put before its names."""
    key = ".".join(part for part in key.split(".") if part not in ("module", "_orig_mod"))
    return re.sub(r"^((model|net|ema)\.)+", "", key)


def _read(path: Path, load):
    try:
        return load(path)
    except Exception as error:  # a damaged file raises whatever its bytes happen to mean
        unknown = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {unknown[1]}, and only tensors are read" if unknown else str(error).split("\n")[0]
        raise ValueError(f"{path} cannot be read as a checkpoint: {type(error).__name__}: {reason}") from error


def _load_torch(path: Path):
    with torch.serialization.safe_globals(HARMLESS):
        return torch.load(path, map_location="cpu", weights_only=True)


def _load_pickle(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        content = NumpyUnpickler(file).load()
    if isinstance(content, dict):
        content.pop("StructuredToParameterName@@", None)
    return _only(np.ndarray, content, path)


def _only(kind: type, content, path: Path) -> dict:
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, expected a dict of weights")
    for key, value in content.items():
        if not isinstance(key, str):
            raise ValueError(f"{path} has weights under {key!r}, expected names")
        if not isinstance(value, kind) or (kind is np.ndarray and value.dtype.kind not in "fiu"):
            raise ValueError(f"{path}: {key!r} is {type(value).__name__}, expected {kind.__name__} of numbers")
    return content


def _from_mmcls(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    if not any(key.startswith("backbone.") for key in weights):
        return weights  # a bare backbone
    renamed = {}
    for key, value in weights.items():
        if key.startswith(OTHER_PARTS):
            continue
        renamed[key.removeprefix("backbone.").removeprefix("head.")] = value
    return renamed


def _from_paddle(weights: dict[str, np.ndarray]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in weights.items():
        key = re.sub(r"\._mean$", ".running_mean", re.sub(r"\._variance$", ".running_var", key))
        # Paddle's linear layers hold (in, out).
        renamed[key] = torch.tensor(value.T if key == "fc.weight" else value)
        if key.endswith(".running_mean"):
            renamed[key.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
    return renamed


def find_config(weights: dict[str, Tensor], config: RedNetConfig | None = None) -> RedNetConfig:
    """
    The architecture that has these weights. Channels of a group and the reduction ratio, which a file does not tell
    apart from kernel sizes and widths, are those of `config`, by default 16 and 4 as in every published checkpoint.

    Raises:
        ValueError: a weight without which nothing can be told is missing, or has no shape that a RedNet has.
    """
    config = config or RedNetConfig()

    def shape(key: str) -> list[int]:
        if key not in weights:
            raise ValueError(f"this is no checkpoint of a RedNet: {key!r} is missing")
        return list(weights[key].shape)

    def kernel_size(key: str, channels: int) -> int:
        group_channels = config.group_channels or channels
        size = math.isqrt(shape(key)[0] * group_channels // channels)
        if size % 2 == 0 or size**2 * channels != shape(key)[0] * group_channels:
            raise ValueError(
                f"{key!r} has shape {shape(key)}: for {channels} channels in groups of {group_channels}, expected "
                "an odd number squared, times the number of groups"
            )
        return size

    stages = sorted({int(match[1]) for key in weights if (match := re.match(r"layer(\d+)\.", key))})
    depths = [len({key.split(".")[1] for key in weights if key.startswith(f"layer{n}.")}) for n in stages]
    hidden_sizes = [shape(f"layer{n}.0.conv3.weight")[0] for n in stages] or shape("layer1.0.conv3.weight")
    embedding_size = shape("stem.4.conv.weight")[0]
    found: dict[str, Any] = {
        "num_channels": shape("stem.0.conv.weight")[1],
        "embedding_size": embedding_size,
        "hidden_sizes": hidden_sizes,
        "depths": depths,
        "kernel_size": kernel_size("layer1.0.conv2.conv2.conv.weight", hidden_sizes[0] // 4),
        "stem_kernel_size": kernel_size("stem.1.conv2.conv.weight", embedding_size // 2),
        "group_channels": config.group_channels,
        "reduction_ratio": config.reduction_ratio,
    }
    if "fc.weight" not in weights:
        return RedNetConfig(**found, architectures=["RedNetModel"])
    num_labels = shape("fc.weight")[0]
    labels = imagenet_labels() if num_labels == 1000 else [f"LABEL_{n}" for n in range(num_labels)]
    if config.id2label and len(config.id2label) == num_labels and config.id2label[0] != "LABEL_0":
        labels = [config.id2label[n] for n in range(num_labels)]
    return RedNetConfig(
        **found,
        architectures=["RedNetForImageClassification"],
        id2label=dict(enumerate(labels)),
        label2id={label: n for n, label in enumerate(labels)},
    )


def imagenet_labels() -> list[str]:
    """
    The names of the 1000 classes of ImageNet-1k in their order, from torchvision.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """
    try:
        from torchvision.models import ResNet50_Weights
    except ImportError as error:
        raise ModuleNotFoundError("the names of ImageNet's classes come with torchvision: install it") from error
    return ResNet50_Weights.IMAGENET1K_V1.meta["categories"]


def build_model(weights: dict[str, Tensor], config: RedNetConfig) -> RedNetForImageClassification | RedNetModel:
    """
    The model of this configuration with these weights, in evaluation mode and in the dtype of the weights.

    Raises:
        ValueError: a weight is missing, left over, or of another shape; the message has its name in the checkpoint.
    """
    make = RedNetModel if config.architectures == ["RedNetModel"] else RedNetForImageClassification
    with torch.device("meta"):
        model = make(config)
    expected, state = model.state_dict(), {}
    sources = {name: checkpoint_name(name) for name in expected}
    if missing := sorted(set(sources.values()) - set(weights)):
        raise ValueError(f"the checkpoint has no {_some(missing)}")
    if surplus := sorted(set(weights) - set(sources.values())):
        raise ValueError(f"the checkpoint has {_some(surplus)}, which this RedNet does not have")
    for name, source in sources.items():
        if weights[source].shape != expected[name].shape:
            shapes = f"{list(weights[source].shape)}, expected {list(expected[name].shape)}"
            raise ValueError(f"{source!r} in the checkpoint has shape {shapes}")
        state[name] = weights[source]
    model.load_state_dict(state, assign=True)
    return model.eval()


def checkpoint_name(name: str) -> str:
    """The authors' name of one of our weights."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _some(names: list[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + rest


def convert(
    checkpoint_path: str | Path,
    output_dir: str | Path,
    config: RedNetConfig | None = None,
    repository: str | None = None,
) -> None:
    """
    Writes the complete Hub folder `output_dir`, or nothing.

    Args:
        checkpoint_path: `.pth` of the authors (with or without a head, of a detector or a segmentation model too) or
            of a training with their code, or `.pdparams` of PaddleClas.
        config: what the file does not tell: channels of a group, reduction ratio, names of the classes.
        repository: the id that the card's examples load, by default the folder's name.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: the message says what is wrong, and with which weight.
    """
    output_dir = Path(output_dir)
    check_replaceable(output_dir)
    whose, weights = load_checkpoint(checkpoint_path)
    found = find_config(weights, config)
    for name in ("depths", "hidden_sizes", "embedding_size", "kernel_size", "stem_kernel_size"):
        if config is not None and getattr(config, name) != getattr(found, name):
            raise ValueError(
                f"{name} is {getattr(config, name)} in the configuration, {getattr(found, name)} in the file"
            )
    model = build_model(weights, found)
    processor = ConvNextImageProcessor(
        size={"shortest_edge": 224}, crop_pct=0.875, resample=2, do_convert_rgb=True,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    card = imagenet_card(found, repository or output_dir.name, whose)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    save_hub_folder(output_dir, model, processor, card)


def read_config(path: Path) -> RedNetConfig:
    """
    Raises:
        ValueError: it is no configuration of a RedNet.
    """
    try:
        return RedNetConfig.from_dict(json.loads(path.read_text()))
    except (ValueError, StrictDataclassError) as error:
        raise ValueError(f"{path} is no configuration of a RedNet: {error}") from error


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rednet.convert_rednet_to_hf", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint_path", type=Path, required=True, help="a .pth of the authors, or a .pdparams")
    parser.add_argument("--output_dir", type=Path, required=True, help="where the Hub folder is written")
    parser.add_argument("--config", type=Path, help="a config.json to check the file against; also names of classes")
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


if __name__ == "__main__":
    main()
