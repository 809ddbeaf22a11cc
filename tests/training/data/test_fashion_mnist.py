"""Fashion-MNIST without a network."""

import gzip

import numpy as np
import pytest
from rednet.training.data import fashion_mnist


def write_idx(path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_fashion_mnist_from_debians_files(tmp_path, monkeypatch):
    """No network in the tests: the IDX files are read, pixel for pixel, and kept."""
    files = tmp_path / "installed"
    files.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    labels = np.arange(12, dtype=np.uint8) % 10
    for prefix in ("train", "t10k"):
        write_idx(files / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(files / f"{prefix}-labels-idx1-ubyte.gz", labels)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FILES", files)  # an absolute path stays what it is
    monkeypatch.setattr(fashion_mnist, "DATA_DIRECTORY", tmp_path / "data")
    dataset = fashion_mnist.load_fashion_mnist()
    assert np.array_equal(np.stack([np.array(image) for image in dataset["test"]["image"]]), images)
    assert dataset["train"]["label"] == labels.tolist()
    assert dataset["train"].features["label"].int2str(9) == "Ankle boot"
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FILES", tmp_path / "gone")
    assert len(fashion_mnist.load_fashion_mnist()["train"]) == 12


def test_fashion_mnist_where_there_is_no_way_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FILES", tmp_path / "missing")
    monkeypatch.setattr(fashion_mnist, "DATA_DIRECTORY", tmp_path / "data")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(FileNotFoundError) as raised:
        fashion_mnist.load_fashion_mnist()
    assert "Hugging Face Hub" in str(raised.value) and "dataset-fashion-mnist" in str(raised.value)
