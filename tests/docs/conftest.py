"""Small models and data under the names that the pages use, in a folder that looks like a clone."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage
from rednet import RedNetConfig, RedNetForImageClassification
from rednet.checkpoints.download import PUBLISHED
from rednet.hub import save_hub_folder
from rednet.hub.cards import make_card
from rednet.training import train
from skimage import data
from sklearn.datasets import load_digits, load_sample_images
from transformers import ConvNextImageProcessor

from checkpoint_files import authors_weights, paddle_weights, write_to_cache
from pictures import coins
from plain_openmmlab import rcnn
from remote import WITHOUT_PACKAGES


CLASSES = ["coin", "flower", "temple"]
LINKS = ("app", "benchmarks", "configs", "examples", "hub_cards", "modeling", "src", "training", "Makefile")
# The quick pages ask for outputs/demo only. These options make a run of seconds.
DEMO = [
    "--max_train_samples",
    "256",
    "--max_eval_samples",
    "100",
    "--num_train_epochs",
    "1",
    "--num_warmup_steps",
    "0",
]


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stand_ins")
    write_models(folder)
    write_pictures(folder)
    write_masks(folder)
    write_objects(folder)
    write_fashion_mnist(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train.main(["--config", "fashion_mnist", *DEMO])
    return folder


@pytest.fixture
def reader(root, stand_ins, tmp_path, monkeypatch) -> Path:
    """The current folder of somebody who reads a page."""
    folder = tmp_path / "clone"
    shutil.copytree(stand_ins, folder)
    for name in LINKS:
        (folder / name).symlink_to(root / name)
    monkeypatch.chdir(folder)
    return folder


def write_models(folder: Path) -> None:
    """
    `rednet-50` and `your-name/rednet-50`, a RedNet with one bottleneck in each of four stages, and the same as
    checkpoints of the authors and of PaddleClas, which are downloaded already.
    """
    torch.manual_seed(0)
    names = dict(enumerate(CLASSES))
    sizes = {"hidden_sizes": [64, 128, 256, 512], "depths": [1, 1, 1, 1], "stem_kernel_size": 7}
    config = RedNetConfig(**sizes, id2label=names, label2id={name: n for n, name in names.items()})
    model = RedNetForImageClassification(config).eval()
    model.config.architectures = ["RedNetForImageClassification"]
    processor = ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875, resample=2, do_convert_rgb=True)
    card = make_card(model.config, "RedNet", "your-name/rednet-50", "A stand-in.", "Not trained.")
    for name in ("rednet-50", "your-name/rednet-50", "outputs/imagenet_rednet50/best"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_hub_folder(folder / name, model, processor, card)
    torch.save({"meta": {}, "state_dict": authors_weights(model)}, folder / "rednet50.pth")
    detector = rcnn(sizes["hidden_sizes"], 32, 3, neck="convolution", head="convolution", masks=True)
    backbone = {key: value for key, value in authors_weights(model).items() if key.startswith("backbone.")}
    torch.save({"meta": {}, "state_dict": {**backbone, **detector.state_dict()}}, folder / "mask_rcnn.pth")
    for url in PUBLISHED.values():
        write_to_cache(folder / "torch", url, paddle_weights(model))
    (folder / "classify.py").write_text(
        WITHOUT_PACKAGES
        + "from transformers import pipeline\n"
        + 'print(pipeline("image-classification", "your-name/rednet-50", trust_remote_code=True)("picture.jpg"))\n'
    )


def write_pictures(folder: Path) -> None:
    """One folder per class, and the same pictures as data sets of the Hub."""
    temple, flower = load_sample_images().images
    sources = {"coin": np.stack([data.coins()] * 3, -1), "flower": flower, "temple": temple}
    PILImage.fromarray(flower).save(folder / "picture.jpg")
    random, images, labels = np.random.default_rng(0), [], []
    for label, (name, source) in enumerate(sources.items()):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(12):
            y, x = (int(random.integers(side - 96)) for side in source.shape[:2])
            crop = np.ascontiguousarray(source[y : y + 96, x : x + 96])
            PILImage.fromarray(crop).save(folder / f"pictures/{name}/{number}.jpg")
            images.append(crop)
            labels.append(label)
    for split in ("train", "validation"):  # in place of drawings
        shutil.copytree(folder / "pictures", folder / "outputs/data/open_clip_art" / split)
    for repository, column in (("ILSVRC/imagenet-1k", "label"), ("AI-Lab-Makerere/beans", "labels")):
        (folder / repository).mkdir(parents=True)
        features = Features({"image": Image(), column: ClassLabel(names=CLASSES)})
        for split in ("train", "validation"):
            Dataset.from_dict({"image": images, column: labels}, features).to_parquet(
                folder / f"{repository}/{split}.parquet"
            )


def write_masks(folder: Path) -> None:
    """Pictures whose masks have all classes of Cityscapes, or two classes."""
    names = {0: "background", 1: "coin"}
    model = {"model_type": "rednet", "architectures": ["RedNetForSemanticSegmentation"], "neck_hidden_size": 32}
    model |= {"id2label": names, "label2id": {name: n for n, name in names.items()}}
    (folder / "my-classes.json").write_text(json.dumps(model))
    picture, numbers = coins()
    pixels = (picture.permute(1, 2, 0) * 255).byte().numpy()
    stripes = np.broadcast_to(np.arange(pixels.shape[1]) // 20 % 19, pixels.shape[:2]).astype(np.uint8)
    masks = {"mine": (numbers > 0).byte().numpy(), "cityscapes": stripes}
    for name, mask in masks.items():
        for split in ("train", "val"):
            for kind, array in (("images", pixels), ("annotations", mask)):
                (folder / name / split / kind).mkdir(parents=True)
                for half, part in (("left", slice(None, 192)), ("right", slice(192, None))):
                    suffix = "jpg" if kind == "images" and name == "mine" else "png"
                    PILImage.fromarray(np.ascontiguousarray(array[:, part])).save(
                        folder / name / split / kind / f"{half}.{suffix}"
                    )


def write_objects(folder: Path) -> None:
    """A picture of coins, and where they are, under the names of COCO as well."""
    picture, numbers = coins()
    pixels = (picture.permute(1, 2, 0) * 255).byte().numpy()
    annotations = []
    for number in range(1, int(numbers.max()) + 1):
        ys, xs = np.nonzero(numbers.numpy() == number)
        x, y, w, h = (int(n) for n in (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1))
        box = {"id": number, "image_id": (number - 1) % 4, "category_id": 1, "bbox": [x, y, w, h], "area": w * h}
        annotations.append({**box, "iscrowd": 0})
    size = {"width": pixels.shape[1], "height": pixels.shape[0]}
    images = [{"id": n, "file_name": f"{n}.jpg", **size} for n in range(4)]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "coin"}]}
    for name in ("objects", "coco/train2017", "coco/val2017", "coco/annotations"):
        (folder / name).mkdir(parents=True)
    for name in ("objects", "coco/train2017", "coco/val2017"):
        for image in images:
            PILImage.fromarray(pixels).save(folder / name / image["file_name"])
    for name in ("train", "val", "coco/annotations/instances_train2017", "coco/annotations/instances_val2017"):
        (folder / f"{name}.json").write_text(json.dumps(content))


def write_fashion_mnist(folder: Path) -> None:
    """Digits in its place, where the scripts keep it."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8).repeat(4, 1).repeat(4, 2)[:, 2:30, 2:30]
    features = Features({"image": Image(), "label": ClassLabel(names=[f"class {n}" for n in range(10)])})
    splits = {"train": slice(0, 600), "test": slice(600, 800)}
    DatasetDict(
        {
            split: Dataset.from_dict({"image": list(images[rows]), "label": labels[rows].tolist()}, features)
            for split, rows in splits.items()
        }
    ).save_to_disk(os.fspath(folder / "outputs/data/fashion_mnist"))
