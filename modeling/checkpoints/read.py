"""Reads the weights in a checkpoint file (.pth or .pdparams) under the authors' names.

The files are untrusted: no code in a file is executed, and sizes are checked before anything is read.
"""

import argparse
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


# Limit for a file, for its content after decompression, and for its weights. With its optimizer's state, RedNet-152 has
# less than half a gigabyte.
MAX_BYTES = 4 * 2**30
# Weights that no evaluation uses: an auxiliary head is for the training, and hooks of OpenMMLab 1.x for averaging keep a
# second set of weights in buffers with such names. The authors' code evaluates the weights under their own names.
UNUSED = ("auxiliary_head.", "ema_")
# Entries of a checkpoint that can have the weights. Averaged weights come first, because they are those to evaluate.
ENTRIES = ("state_dict_ema", "model_ema", "ema", "state_dict", "model", "model_state_dict", "net", "module")


class Ignored:
    """Replaces an object that a training saves only to resume, and keeps nothing of its content."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """
    Returns an empty array, which the pickle then fills with numbers and their shape. `shape` is not used: an array of this
    shape could take any amount of memory.
    """
    return np.ndarray.__new__(np.ndarray, (0,), "b")


# Harmless classes in checkpoints besides tensors: the options of a script, NumPy's numbers and arrays, and the logs and
# schedulers of OpenMMLab 2.x. A pickled scheduler calls `getattr`, which `Ignored` replaces: nothing is looked up.
NUMPY_SCALAR = np.float64(0).__reduce__()[0]
SAFE_CLASSES: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    *{type(np.dtype(code)) for code in "?bhilqBHILQefd"},
    *[(NUMPY_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")],
    *[(_empty_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")],
    (Ignored, "builtins.getattr"),
    (Ignored, "mmengine.logging.history_buffer.HistoryBuffer"),
    (Ignored, "mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler"),
]


class Checkpoint(NamedTuple):
    """
    Attributes:
        weights: under the authors' names without the prefix `backbone.`. The names of necks and heads of detectors and
            segmentation models have their prefixes (`neck.`, `rpn_head.`, ...).
        publisher: `authors` if the content looks like a file that they published, otherwise None. `paddleclas` is
            recognized by the name of a file, in the converter.
        labels: the names of the classes, if the file has them.
    """

    weights: dict[str, Tensor]
    publisher: str | None = None
    labels: list[str] | None = None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """
    Reads the weights in a checkpoint of the authors, of PaddleClas, or of a training with the code of either.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file cannot be read, has no weights, has weights that are not tensors, or has a weight twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if problem := find_problem(path):
        raise ValueError(f"{path} cannot be read as a checkpoint: {problem}")
    if path.suffix == ".pdparams":
        return Checkpoint(_from_paddle(_read(path, _load_pickle)))
    content = _read(path, _load_torch)
    meta = content.get("meta") if isinstance(content, dict) else None
    meta = meta if isinstance(meta, dict) else {}
    is_published = _looks_published(content, meta)
    while entry := _weights_entry(content):
        content = content.pop(entry)  # `pop`, so that the loop ends even for a dict that contains itself
    if isinstance(content, dict) and not any(isinstance(value, Tensor) for value in content.values()):
        names = shorten(sorted(map(str, content)))
        raise ValueError(f"{path} has no weights: its entries are {names}, expected one of {', '.join(ENTRIES)}")
    content = _check_values(content, Tensor, path)
    weights = {key: value for key, value in content.items() if key != "n_averaged"}  # the counter of torch's averaging
    unwrapped = {_remove_wrappers(key): value for key, value in weights.items()}
    if len(unwrapped) < len(weights):
        raise ValueError(f"{path} has some weights twice, with and without prefixes of wrappers")
    used = {key: value for key, value in unwrapped.items() if not key.startswith(UNUSED)}
    publisher = "authors" if is_published and used.keys() == content.keys() else None
    return Checkpoint(_from_mmcls(used), publisher, _labels(meta))


def _looks_published(content: Any, meta: dict) -> bool:
    """
    Whether a file is like those of the authors: it has weights and metadata, but nothing to resume the training with. They
    used OpenMMLab 1.x, before there was mmengine.
    """
    filled = {key for key, value in content.items() if value is not None} if isinstance(content, dict) else set()
    has_only_weights = filled <= {"meta", "state_dict"} or _weights_entry(content) is None
    return has_only_weights and "mmengine_version" not in meta


def find_problem(path: Path) -> str | None:
    """
    Returns why a file cannot be a checkpoint, or None if it may be one. Reads only its beginning and its table of
    contents: it may be empty, an HTML page, a damaged archive, or larger than `MAX_BYTES`, also after decompression.
    """
    size = path.stat().st_size
    if size == 0:
        return "it is empty"
    with open(path, "rb") as file:
        if file.read(100).lstrip().startswith(b"<"):
            return "it is an HTML page"
    if size <= MAX_BYTES and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
        except zipfile.BadZipFile as error:
            return f"it is a damaged archive: {error}"
    return f"it has {size:,} bytes, expected at most {MAX_BYTES:,}" if size > MAX_BYTES else None


def _read(path: Path, load: Callable[[Path], Any]) -> Any:
    try:
        return load(path)
    except Exception as error:  # a damaged file can raise any exception
        unknown = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {unknown[1]}, and only tensors are read" if unknown else str(error).split("\n")[0]
        raise ValueError(f"{path} cannot be read as a checkpoint: {type(error).__name__}: {reason}") from error


def _load_torch(path: Path) -> Any:
    with torch.serialization.safe_globals(SAFE_CLASSES):
        return torch.load(path, map_location="cpu", weights_only=True)


def _load_pickle(path: Path) -> dict[str, np.ndarray]:
    with open(path, "rb") as file:
        content = NumpyUnpickler(file).load()
    while entry := _weights_entry(content):
        content = content.pop(entry)
    if isinstance(content, dict):
        content.pop("StructuredToParameterName@@", None)
    return _check_values(content, np.ndarray, path)


class NumpyUnpickler(pickle.Unpickler):
    """Loads NumPy arrays, dicts and plain values. Every other class or function in the file raises an error."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("multiarray", "_reconstruct"): _empty_array,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            # In a nested dict, paddle.save writes a tensor as a call of `tuple` with the pair of its name and values.
            ("builtins", "tuple"): lambda pair: pair[1],
            ("__builtin__", "tuple"): lambda pair: pair[1],
            ("collections", "OrderedDict"): dict,
            ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
        }
        try:
            return allowed[re.sub(r"^numpy\._?core\.", "", module), name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only NumPy arrays are read") from None


def _check_values(content: Any, kind: type, path: Path) -> dict:
    """Returns `content` if it is a dict of numbers of this kind, Tensor or ndarray, by name."""
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, expected a dict of weights")
    for key, value in content.items():
        if not isinstance(key, str):
            raise ValueError(f"{path} has weights under {key!r}, expected names")
        is_numeric = not isinstance(value, np.ndarray) or value.dtype.kind in "fiu"
        if not (isinstance(value, kind) and is_numeric):
            raise ValueError(f"{path}: {key!r} is {type(value).__name__}, expected {kind.__name__} of numbers")
    # A tensor can be larger than its file: its shape may repeat the numbers that the file has.
    if (size := sum(value.nbytes for value in content.values())) > MAX_BYTES:
        raise ValueError(f"{path} has weights of {size:,} bytes, expected at most {MAX_BYTES:,}")
    return content


def _weights_entry(content: Any) -> str | None:
    """Returns the name of the entry with the weights, or None if `content` is not a dict with such an entry."""
    if not isinstance(content, dict):
        return None
    # The entry may contain a dict with the weights. An entry with nothing but the options of an averaging is skipped.
    entries = [name for name in ENTRIES if isinstance(content.get(name), dict)]
    kinds = Tensor | np.ndarray | dict
    return next((name for name in entries if any(isinstance(v, kinds) for v in content[name].values())), None)


def _remove_wrappers(key: str) -> str:
    """Removes the prefixes of DDP, of torch.compile, and of a module in a training script that contains the model."""
    key = ".".join(part for part in key.split(".") if part not in ("module", "_orig_mod"))
    return re.sub(r"^((model|net|ema)\.)+", "", key)


def _labels(meta: dict) -> list[str] | None:
    """Returns the names of the classes in the metadata of OpenMMLab 1.x (`CLASSES`) or 2.x (`dataset_meta`)."""
    data = meta.get("dataset_meta")
    names = meta.get("CLASSES") or (isinstance(data, dict) and (data.get("classes") or data.get("CLASSES")))
    is_list = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return list(names) if is_list and names else None


def _from_mmcls(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    if not any(key.startswith("backbone.") for key in weights):
        return weights  # only a backbone, without the prefix
    return {key.removeprefix("backbone.").removeprefix("head."): value for key, value in weights.items()}


def _from_paddle(weights: dict[str, np.ndarray]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in weights.items():
        key = re.sub(r"\._mean$", ".running_mean", re.sub(r"\._variance$", ".running_var", key))
        # The weight of a linear layer of Paddle has the shape (in, out).
        renamed[key] = torch.tensor(value.T if key == "fc.weight" else value)
        if key.endswith(".running_mean"):
            renamed[key.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
    return renamed


def shorten(names: list[str], most: int = 5) -> str:
    """Returns the first names for an error message."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + rest
