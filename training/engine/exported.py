"""Exported files in place of a model, for `evaluate_model.py --runtime`."""

import hashlib
from pathlib import Path

import torch
from rednet.export import FORMATS, check_packages
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention


# The format of `rednet.export` that each runtime loads.
RUNTIMES = {"onnxruntime": "onnx", "openvino": "openvino", "aoti": "aoti"}


class ExportedClassifier(nn.Module):
    """
    A file of `rednet.export` with the `forward` of the classifier that it was made from.

    Args:
        file: the file, as onnxruntime, OpenVINO or AOTInductor loads it.
        runtime: one of `RUNTIMES`.
        model: the classifier, for its configuration.
        size: height and width of its pictures.

    Raises:
        ValueError: the file is of another format, or has other inputs or classes than the model.
    """

    def __init__(self, file: str, runtime: str, model: PreTrainedModel, size: tuple[int, int]):
        super().__init__()
        self.config = model.config
        try:
            self.run = FORMATS[RUNTIMES[runtime]].load(Path(file), torch.get_num_threads())
            logits = self(torch.zeros(1, getattr(model.config, "num_channels", 3), *size)).logits
        except Exception as error:  # each runtime has errors of its own
            raise ValueError(f"{runtime} cannot run {file}: {error}") from error
        expected = (1, model.config.num_labels)
        if logits.shape != expected:
            raise ValueError(
                f"{file} returns {tuple(logits.shape)} for a picture, expected logits of shape {expected}"
            )

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutputWithNoAttention:
        return ImageClassifierOutputWithNoAttention(logits=tree_leaves(self.run(pixel_values))[0])


def check_exported_file(file: str, runtime: str) -> None:
    """
    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: a package of the runtime is not installed.
        ValueError: the name of the file has not the suffix of the format that the runtime loads.
    """
    format = RUNTIMES[runtime]
    suffix, *others = FORMATS[format].suffixes
    if Path(file).suffix != suffix:
        raise ValueError(f"--exported_file is {file}, expected a name that ends in {suffix} for --runtime {runtime}")
    for name in (suffix, *others):
        if not Path(file).with_suffix(name).is_file():
            raise FileNotFoundError(f"--exported_file: no such file: {Path(file).with_suffix(name)}")
    check_packages(format, FORMATS[format].packages)


def exported_fingerprint(file: str, runtime: str) -> str:
    """16 hexadecimal digits that identify the content of an exported file, which may have several parts."""
    digest = hashlib.sha256()
    for suffix in FORMATS[RUNTIMES[runtime]].suffixes:
        digest.update(Path(file).with_suffix(suffix).read_bytes())
    return digest.hexdigest()[:16]
