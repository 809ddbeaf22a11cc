"""Images: where they come from and how they become batches."""

import gzip
import io
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset, load_from_disk
from huggingface_hub import HfApi
from PIL import Image as PILImage
from torchvision.transforms import v2
from transformers import BaseImageProcessor

from arguments import TrainingConfig


FASHION_MNIST = "zalando-datasets/fashion_mnist"
FASHION_MNIST_CLASSES = [
    "T - shirt / top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FILES = Path("usr/share/datasets/fashion-mnist")
DATA_DIRECTORY = Path("outputs/data")


def load_images(config: TrainingConfig) -> tuple[Dataset, Dataset]:
    """The training and the validation images, with columns `image` and `label` (a `ClassLabel`).

    Raises:
        ValueError: a split or a column is not there, or the labels are no classes.
    """
    dataset = load_fashion_mnist() if config.dataset_name == FASHION_MNIST else load_dataset(config.dataset_name)
    splits = []
    for option, limit in (("train_split", config.max_train_samples), ("validation_split", config.max_eval_samples)):
        name = getattr(config, option)
        if name not in dataset:
            raise ValueError(f"{option} is {name!r}, but {config.dataset_name} has {sorted(dataset)}")
        split = dataset[name]
        for column in (config.image_column_name, config.label_column_name):
            if column not in split.column_names:
                raise ValueError(f"there is no column {column!r} in {config.dataset_name}: {split.column_names}")
        split = split.select_columns([config.image_column_name, config.label_column_name])
        split = split.rename_columns({config.image_column_name: "image", config.label_column_name: "label"})
        if not isinstance(split.features["label"], ClassLabel):
            raise ValueError(f"{config.label_column_name} holds {split.features['label']}, expected a ClassLabel")
        splits.append(split.select(range(min(limit or len(split), len(split)))))
    return splits[0], splits[1]


def load_fashion_mnist() -> DatasetDict:
    """Fashion-MNIST from the Hub where it can be reached, else from Debian's package, kept in outputs/data.

    Raises:
        RuntimeError: neither can be had; the message says what helps.
    """
    kept = DATA_DIRECTORY / "fashion_mnist"
    if kept.is_dir():
        return load_from_disk(kept)
    try:
        # A quick question first: `load_dataset` retries for half a minute where there is no network.
        HfApi().dataset_info(FASHION_MNIST, timeout=10)
        return load_dataset(FASHION_MNIST)
    except Exception as error:
        print(f"Fashion-MNIST cannot be had from the Hub ({type(error).__name__}), taking Debian's package")
    files = _debian_files()
    features = Features({"image": Image(), "label": ClassLabel(names=FASHION_MNIST_CLASSES)})
    dataset = DatasetDict()
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = _read_idx(files / f"{prefix}-images-idx3-ubyte.gz")
        labels = _read_idx(files / f"{prefix}-labels-idx1-ubyte.gz")
        columns = {"image": [{"bytes": _png(image), "path": None} for image in images], "label": labels.tolist()}
        dataset[split] = Dataset.from_dict(columns, features=features)
    beside = kept.with_name(f"{kept.name}.{os.getpid()}")
    dataset.save_to_disk(beside)
    beside.rename(kept)
    return load_from_disk(kept)


def _debian_files() -> Path:
    installed, unpacked = Path("/") / DEBIAN_FILES, DATA_DIRECTORY / DEBIAN_FILES
    if installed.is_dir():
        return installed
    if not unpacked.is_dir() and shutil.which("apt-get") and shutil.which("dpkg"):
        _download_debian_package()
    if not unpacked.is_dir():
        raise RuntimeError(
            f"Fashion-MNIST cannot be had here. Either give this machine a network that reaches the Hugging Face Hub "
            f"({FASHION_MNIST}), or install Debian's package {DEBIAN_PACKAGE} (its files belong into {installed})"
        )
    return unpacked


def _download_debian_package() -> None:
    """Downloads and unpacks into outputs/data, which needs no root; with package lists of its own where the machine
    has none."""
    lists = (DATA_DIRECTORY / "apt").resolve()
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    own_lists = ["-o", f"Dir::State::Lists={lists}"]
    for commands in ([["download"]], [[*own_lists, "update"], [*own_lists, "download"]]):
        for command in commands:
            package = [DEBIAN_PACKAGE] if command[-1] == "download" else []
            subprocess.run(["apt-get", "-qq", *command, *package], cwd=DATA_DIRECTORY, stderr=subprocess.DEVNULL)
        if archives := sorted(DATA_DIRECTORY.glob(f"{DEBIAN_PACKAGE}_*.deb")):
            subprocess.run(["dpkg", "-x", str(archives[-1]), str(DATA_DIRECTORY)])
            break


def _read_idx(path: Path) -> np.ndarray:
    content = gzip.decompress(path.read_bytes())
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


class TrainingCollator:
    """Rows of a data set to a batch of images, randomly cropped and flipped, as uint8 (B, 3, size, size).

    Bytes travel; `normalize` makes them floats where the model is.
    """

    def __init__(self, config: TrainingConfig):
        size, min_scale = (config.image_size, config.image_size), config.random_crop_min_scale
        self.crop = v2.Resize(size) if min_scale is None else v2.RandomResizedCrop(size, scale=(min_scale, 1))

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        pictures = [np.array(self.crop(row["image"].convert("RGB"))) for row in rows]
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)  # channels-last, as PIL has them
        flipped = torch.rand(len(rows)) < 0.5
        images[flipped] = images[flipped].flip(3)
        return {"pixel_values": images, "labels": torch.tensor([row["label"] for row in rows])}


class EvaluationCollator:
    """Rows of a data set to a batch as the image processor makes it: what is measured is what users will run."""

    def __init__(self, processor: BaseImageProcessor):
        self.processor = processor

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = self.processor([row["image"] for row in rows], return_tensors="pt")
        return {**batch, "labels": torch.tensor([row["label"] for row in rows])}


def normalize(images: torch.Tensor, config: TrainingConfig) -> torch.Tensor:
    """uint8 (B, 3, H, W) to the floats that the image processor gives, in channels-last."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (config.image_mean, config.image_std))
    return ((images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)
