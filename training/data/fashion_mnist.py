"""Fashion-MNIST, the data set of the demonstration, from the Hub or from a Debian package."""

import gzip
import io
import os
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_dataset, load_from_disk
from huggingface_hub import HfApi
from PIL import Image as PILImage
from rednet.training.data.debian import DATA_DIRECTORY, debian_files


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


def load_fashion_mnist() -> DatasetDict:
    """Loads Fashion-MNIST from the Hub. If that fails, from a Debian package, and stores it in outputs/data.

    Raises:
        FileNotFoundError: neither the Hub nor the package is available.
    """
    folder = DATA_DIRECTORY / "fashion_mnist"
    if folder.is_dir():
        return load_from_disk(folder)
    try:
        # First a request that fails fast: without a network, `load_dataset` retries for half a minute.
        HfApi().dataset_info(FASHION_MNIST, timeout=10)
        return load_dataset(FASHION_MNIST)
    except Exception as error:
        print(f"Cannot load Fashion-MNIST from the Hub ({type(error).__name__}), falling back to the Debian package")
    files = debian_files(DEBIAN_PACKAGE, DEBIAN_FILES)
    if files is None:
        raise FileNotFoundError(
            f"Fashion-MNIST is not available. Connect this machine to the Hugging Face Hub ({FASHION_MNIST}), or install "
            f"the Debian package {DEBIAN_PACKAGE} (its files are in /{DEBIAN_FILES})"
        )
    features = Features({"image": Image(), "label": ClassLabel(names=FASHION_MNIST_CLASSES)})
    dataset = DatasetDict()
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = _read_idx(files / f"{prefix}-images-idx3-ubyte.gz")
        labels = _read_idx(files / f"{prefix}-labels-idx1-ubyte.gz")
        columns = {"image": [{"bytes": _png(image), "path": None} for image in images], "label": labels.tolist()}
        dataset[split] = Dataset.from_dict(columns, features=features)
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}")
    dataset.save_to_disk(temporary)
    temporary.rename(folder)
    return load_from_disk(folder)


def _read_idx(path: Path) -> np.ndarray:
    """Reads a compressed file in the IDX format of MNIST, of unsigned bytes."""
    content = gzip.decompress(path.read_bytes())
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
