import io
import json
import tarfile

import numpy as np
import pytest
import rednet
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from sklearn.datasets import load_digits
from transformers import ConvNextImageProcessor


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """1,797 real handwritten digits of 8 x 8 pixels, which scikit-learn ships, as a folder that `datasets` loads."""
    folder = tmp_path_factory.mktemp("digits")
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    features = Features({"picture": Image(), "digit": ClassLabel(names=[f"number {n}" for n in range(10)])})
    for split, rows in (("train", slice(0, 1400)), ("test", slice(1400, None))):
        columns = {"picture": list(images[rows]), "digit": labels[rows].tolist()}
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="session")
def digit_archives(tmp_path_factory):
    """240 and 60 of the same digits as WebDataset archives, four and one of them."""
    folder = tmp_path_factory.mktemp("archives")
    images, labels = load_digits(return_X_y=True)
    for split, rows in (("train", range(240)), ("test", range(1400, 1460))):
        for part in range(4 if split == "train" else 1):
            with tarfile.open(folder / f"{split}-{part}.tar", "w") as archive:
                for row in list(rows)[part :: 4 if split == "train" else 1]:
                    picture = io.BytesIO()
                    PILImage.fromarray((images[row].reshape(8, 8) * 255 / 16).astype(np.uint8)).save(
                        picture, "PNG", compress_level=1
                    )
                    for name, content in (("png", picture.getvalue()), ("cls", str(labels[row]).encode())):
                        entry = tarfile.TarInfo(f"{row:04}.{name}")
                        entry.size = len(content)
                        archive.addfile(entry, io.BytesIO(content))
    return folder


@pytest.fixture(scope="session")
def options(digits, tmp_path_factory):
    """A training that takes seconds, as a configuration file and the values in it."""
    folder = tmp_path_factory.mktemp("options")
    model = {"model_type": "rednet", "embedding_size": 32, "hidden_sizes": [64, 128], "depths": [1, 1]}
    model |= {"stem_stride": 1, "num_labels": 10}
    (folder / "model.json").write_text(json.dumps(model))
    values = {
        "config_name": str(folder / "model.json"),
        "dataset_name": str(digits),
        "validation_split": "test",
        "image_column_name": "picture",
        "label_column_name": "digit",
        "dataloader_num_workers": 0,
        "image_size": 8,
        "crop_pct": 1.0,
        "random_crop_min_scale": 0.9,
        "per_device_train_batch_size": 20,
        "num_train_epochs": 4,
        "learning_rate": 0.2,
        "num_warmup_steps": 10,
        "max_grad_norm": 1.0,
        "logging_steps": 10,
    }
    path = folder / "digits.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return path, values


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """A model for five classes, with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("start")
    sizes = {"embedding_size": 32, "hidden_sizes": [64, 128], "depths": [1, 1], "stem_stride": 1, "num_labels": 5}
    rednet.RedNetForImageClassification(rednet.RedNetConfig(**sizes)).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 8}, crop_pct=1.0, do_convert_rgb=True).save_pretrained(folder)
    return folder
