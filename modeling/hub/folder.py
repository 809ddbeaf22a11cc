"""Writes a complete Hub repository into a folder, and checks such a folder."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import distribution
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import StrictDataclassError
from rednet.configuration_rednet import AUTO_MAP, REMOTE_CODE, RedNetConfig
from rednet.hub.cards import PICTURE, repository_of
from rednet.hub.notebook import NOTEBOOK, make_notebook
from rednet.loading import find_class, read_object
from rednet.modeling_rednet import RedNetPreTrainedModel
from safetensors import SafetensorError, safe_open
from transformers import BaseImageProcessor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


# What `save_hub_folder` writes, except for the weights.
WRITTEN = ("README.md", "LICENSE", "config.json", "preprocessor_config.json", PICTURE.name, NOTEBOOK, *REMOTE_CODE)
# The files that are pushed. A folder may have more: other logs, checkpoints, the state of an optimizer.
MODEL_FILES = ["README.md", "LICENSE", NOTEBOOK, "*.json", "*.safetensors", "*.png", *REMOTE_CODE]
MODEL_FILES += ["onnx/*", "openvino/*", "runs/**/*tfevents*"]
# The temporary folder is inside the folder: files can only be renamed within one file system, and the folder itself may
# be a mount point or a link to another one.
TEMPORARY = ".rednet-new"


def save_hub_folder(
    folder: str | os.PathLike, model: RedNetPreTrainedModel, processor: BaseImageProcessor, card: ModelCard
) -> None:
    """
    Writes a complete Hub repository: weights, configuration, image processor, card with its picture, notebook (if
    `make_card` rendered the card), and remote code with its LICENSE.

    If `folder` already has a saved RedNet, its files are replaced, with the guarantees of `replacing`.

    Raises:
        FileExistsError: `folder` is not a folder, or has files of these names that do not belong to a saved RedNet.
        PermissionError: `folder` is not writable.
    """
    with replacing(Path(folder)) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        card.save(temporary / "README.md")
        shutil.copy(PICTURE, temporary)
        license = distribution("rednet").read_text("licenses/LICENSE")  # the file at the root of the sources
        if license is not None:  # some packagers leave it out
            (temporary / "LICENSE").write_text(license, encoding="utf-8")
        if repository := repository_of(card):
            notebook = make_notebook(model.config, card.data.get("model_name", "RedNet"), repository)
            (temporary / NOTEBOOK).write_text(notebook, encoding="utf-8")


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """
    Replaces a saved model: yields a temporary folder for the new files, and moves them into `folder` at the end of the
    block.

    Files with the same names are overwritten. Weights of the previous model that the new model does not have (shards
    and their index) are deleted. All other files stay, and so does the folder itself, which may be a clone of a
    repository, a mount point or a symbolic link.

    If the block raises, the files in `folder` do not change. If the process is killed while files are moved, `folder`
    has a model that does not load, but never a mixture of two models that loads: `config.json`, which every model needs,
    is deleted first and moved last. The next call repairs such a folder.

    Raises:
        FileExistsError: `folder` is not a folder, or has files of these names that do not belong to a saved RedNet.
        PermissionError: `folder` is not writable.
    """
    check_replaceable(folder)
    temporary, folder_is_new = folder / TEMPORARY, not folder.exists()
    was_interrupted = temporary.exists()  # an earlier call was killed
    if was_interrupted:
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        names = sorted(path.name for path in temporary.iterdir())
        for name in names:
            if (folder / name).is_dir():
                raise FileExistsError(f"{folder / name} is a folder, expected a file or nothing")
    except BaseException:
        shutil.rmtree(temporary)
        if was_interrupted:
            temporary.mkdir()  # the sign that the files without a `config.json` are ours and can be replaced
        if folder_is_new:
            with suppress(OSError):  # another process has written into it
                folder.rmdir()
        raise
    (folder / "config.json").unlink(missing_ok=True)
    for path in [path for path in folder.iterdir() if is_weights(path.name) and path.name not in names]:
        path.unlink()
    for name in sorted(names, key=lambda name: name == "config.json"):
        os.replace(temporary / name, folder / name)
    temporary.rmdir()


def check_replaceable(folder: Path) -> None:
    """
    Checks that a model can be saved in `folder`, which does not need to exist, without loss of other people's files.

    Raises:
        FileExistsError: `folder` is not a folder, or has files of a model's names that do not belong to a saved RedNet.
        PermissionError: `folder` is not writable.
    """
    check_writable(folder)
    # The temporary folder exists only after an earlier call has passed this check.
    if not folder.is_dir() or (folder / TEMPORARY).is_dir() or _has_saved_rednet(folder):
        return
    if foreign := sorted(path.name for path in folder.iterdir() if path.name in WRITTEN or is_weights(path.name)):
        raise FileExistsError(
            f"{folder} is not a folder of a saved RedNet, but has {', '.join(foreign)}: choose another folder, or move "
            "these files"
        )


def check_writable(folder: Path) -> None:
    """
    Checks that files can be written into `folder`, which does not need to exist.

    Raises:
        FileExistsError: `folder`, or a path that should contain it, is not a folder.
        PermissionError: `folder` is not writable.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise FileExistsError(f"{existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} is not writable: this user has no permission to write into {existing}")


def _is_detector(folder: Path) -> bool:
    try:
        return "detector" in read_object(folder / "config.json")
    except (OSError, ValueError):
        return False


def _has_saved_rednet(folder: Path) -> bool:
    """Returns whether a folder has the configuration of a RedNet, or of a detector with a RedNet as backbone."""
    try:
        config = read_object(folder / "config.json")
    except (OSError, ValueError):
        return False
    backbone = config.get("backbone") if "detector" in config else config
    return isinstance(backbone, dict) and backbone.get("model_type") == "rednet"


def write_text(path: Path, text: str) -> None:
    """Replaces `path` with `text` in UTF-8. An interruption leaves the old file or the new one, never a part of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8", newline="")
    os.replace(temporary, path)


def is_weights(name: str) -> bool:
    """Returns whether a file name is that of a model's weights, of one shard, or of the index of the shards."""
    return name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME) or bool(
        re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", name)
    )


def is_export(name: str) -> bool:
    """Returns whether a file, by its path in a repository, is an export of the model for another runtime."""
    return name.startswith(("onnx/", "openvino/"))


def matching_files(folder: Path, patterns: list[str]) -> dict[str, Path]:
    """Returns the paths of the files that match, by their names in the repository. Hidden files do not match."""
    paths = (path for pattern in patterns for path in folder.glob(pattern))
    return {path.relative_to(folder).as_posix(): path for path in paths if path.is_file() and path.name[0] != "."}


def check_hub_folder(folder: str | os.PathLike) -> None:
    """
    Checks that a folder is a complete repository: it has a configuration, an image processor, a card, the remote code, and
    weights that match the configuration; its exports are not older than its weights.

    Raises:
        ValueError: the folder is not complete. The message names the file and, if a weight is wrong, the weight.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    if _is_detector(folder):
        raise ValueError(f"{folder} is a detector, which has no card: push it with `hf upload user/name {folder}`")
    for name in ("config.json", "preprocessor_config.json", "README.md", *REMOTE_CODE):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not a complete model: {name} is missing")
    expected, found = _expected_shapes(folder / "config.json"), _saved_shapes(folder)
    if found != expected:
        name = min(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        raise ValueError(
            f"{folder} has weights that do not match its config.json: {name} is {found.get(name, 'missing')}, "
            f"expected {expected.get(name, 'no such weight')}"
        )
    _check_exports(folder)


def _check_exports(folder: Path) -> None:
    """Raises ValueError if an export is older than the weights. A training that writes into a folder keeps the exports
    of the model that it replaces."""
    times = {name: path.stat().st_mtime_ns for name, path in matching_files(folder, MODEL_FILES).items()}
    weights = max(time for name, time in times.items() if is_weights(name))
    if old := sorted(name for name, time in times.items() if is_export(name) and time < weights):
        raise ValueError(
            f"{folder} has exports that are older than its weights: {', '.join(old)}. Export the model again, or remove "
            "these files. If they were made from these weights, `touch` them"
        )


def _expected_shapes(config_path: Path) -> dict[str, list[int]]:
    """Returns the shapes of all weights of the model that a configuration describes."""
    config = read_object(config_path)
    model_class = find_class(config, config_path)
    if config.get("auto_map") != AUTO_MAP:
        raise ValueError(
            f"{config_path} has auto_map {config.get('auto_map')}, expected {AUTO_MAP}: load the model and save it again "
            "with this release of rednet"
        )
    try:
        with torch.device("meta"):
            model = model_class(RedNetConfig.from_dict(config))
    except StrictDataclassError as error:
        raise ValueError(f"{config_path} is not a valid configuration of a RedNet: {error}") from error
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def _saved_shapes(folder: Path) -> dict[str, list[int]]:
    """Returns the shapes of all weights in a folder. Reads only the headers of the files."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    names = {SAFE_WEIGHTS_NAME}
    if index.is_file():
        weight_map = read_object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{index} has weight_map {weight_map!r}, expected an object")
        names = set(weight_map.values())
    shapes: dict[str, list[int]] = {}
    for name in sorted(names):
        try:
            with safe_open(folder / name, "pt") as file:
                shapes |= {key: file.get_slice(key).get_shape() for key in file.keys()}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{folder / name} cannot be read: {error}") from error
    return shapes
