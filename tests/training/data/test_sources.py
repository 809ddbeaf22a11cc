"""Data sets: splits, columns, labels and limits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value, load_dataset
from PIL import Image as PILImage
from rednet.training import train
from rednet.training.data import sources as data
from rednet.training.data.batches import EvaluationBatches
from rednet.training.data.pictures import read_split
from rednet.training.options.groups import DataOptions
from rednet.training.options.scripts import TrainingConfig
from rednet.training.train import make_model, make_processor


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"validation_split": "dev"}, ["validation_split", "'dev'", "['test', 'train']"]),
        ({"image_column_name": "photo"}, ["'photo'", "picture"]),
        ({"label_column_name": "picture"}, ["picture", "ClassLabel"]),
        ({"image_column_name": "digit"}, ["digit", "expected an Image"]),
        ({"validation_split": "dev", "streaming": True}, ["validation_split", "'dev'", "['test', 'train']"]),
        ({"validation_split": "dev", "streaming": True, "train_val_split": 0.1}, ["not with streaming"]),
    ],
)
def test_missing_splits_and_columns_are_named(options, changes, words):
    with pytest.raises(ValueError) as raised:
        data.load_images(TrainingConfig(**{**options[1], **changes}))
    assert all(word in str(raised.value) for word in words)


def test_links_that_datasets_does_not_follow_are_named(folders, tmp_path):
    (folders / "val").rename(folders / "validation")
    (folders / "train/dog").rename(tmp_path / "dog")
    (folders / "train/dog").symlink_to(tmp_path / "dog")
    with pytest.raises(ValueError, match=r"train/dog is a link to a folder, which .* --train_dir"):
        data.load_images(TrainingConfig(dataset_name=str(folders)))


def test_links_in_hidden_folders_are_not_looked_at(folders):
    (folders / "val").rename(folders / "validation")
    (folders / ".venv/lib").mkdir(parents=True)
    (folders / ".venv/lib64").symlink_to(folders / ".venv/lib")
    train_images, _ = data.load_images(TrainingConfig(dataset_name=str(folders)))
    assert len(train_images) == 16


@pytest.mark.parametrize("damaged", [b"no picture", b"\x89PNG\r\n\x1a\n", "I;16"])
def test_files_that_cannot_be_read_are_named_before_the_first_step(damaged, folders, options, tmp_path):
    for name in ("cat/3", "dog/0"):
        if damaged == "I;16":
            PILImage.new("I;16", (8, 8)).save(folders / f"train/{name}.png")
        else:
            (folders / f"train/{name}.png").write_bytes(damaged)
    given = ["--train_dir", str(folders / "train"), "--validation_dir", str(folders / "val")]
    Path(options[0].parent / "two.json").write_text('{"model_type": "rednet", "num_labels": 2}')
    given += ["--config_name", str(options[0].parent / "two.json"), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match=r"(?s)has 2 problems:.*train/cat/3.png: .*train/dog/0.png: "):
        train.main(["--config", str(options[0]), *given])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("empty", ["train", "val"])
def test_a_split_without_images_is_named_before_the_first_step(empty, folders):
    """Otherwise the first evaluation, after an epoch, would fail."""
    images = data.load_images(TrainingConfig(train_dir=str(folders / "train"), validation_dir=str(folders / "val")))
    splits = {name: split.select([]) if name == empty else split for name, split in zip(("train", "val"), images)}
    with pytest.raises(ValueError, match=f"has 1 problem:\n- {empty} has no images"):
        data.check_images(splits, 2, TrainingConfig(train_dir=str(folders / "train")))


def test_a_part_of_the_training_images_for_validation(folders):
    """A quarter of each class, by the seed; refused where there is a validation split."""
    values = {"train_dir": str(folders / "train"), "train_val_split": 0.25}
    train, validation = data.load_images(TrainingConfig(**values))
    assert sorted(validation["label"]) == [0, 0, 0, 1] and sorted(train["label"]) == [0] * 9 + [1] * 3
    shades = [{np.array(image).max() for image in split["image"]} for split in (train, validation)]
    assert not shades[0] & shades[1]
    again = data.load_images(TrainingConfig(**values))[1]
    assert {np.array(image).max() for image in again["image"]} == shades[1]
    with pytest.raises(ValueError, match="'validation': leave out --train_val_split"):
        data.load_images(TrainingConfig(**values, validation_dir=str(folders / "val")))


def test_too_few_images_for_a_validation_split(folders):
    for path in (folders / "train/dog").glob("[1-9].png"):
        path.unlink()
    with pytest.raises(
        ValueError, match="--train_val_split 0.25 cannot divide the 13 images of .*train: .*only 1 member"
    ):
        data.load_images(TrainingConfig(train_dir=str(folders / "train"), train_val_split=0.25))


def test_labels_are_read_without_a_copy_of_the_pictures(tmp_path):
    """Those of a part of a data set: with `unique`, all its pictures would be written to the disk again."""
    features = Features({"image": Image(), "label": Value("int64")})
    pictures = [np.random.default_rng(n).integers(0, 256, (64, 64, 3), np.uint8) for n in range(20)]
    rows = {"image": pictures, "label": [0, 1] * 10}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    whole = load_dataset("parquet", data_files=str(tmp_path / "train.parquet"), cache_dir=tmp_path, split="train")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    data.check_images({"train": whole.select(range(0, 20, 2))}, 2, TrainingConfig(dataset_name="pictures"))
    assert data.distinct_labels(whole.select(range(1, 20, 2))) == {1}
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before


def test_classes_that_are_not_trained_are_named(tmp_path):
    features = Features({"image": Image(), "label": Value("int64")})
    for split, labels in (("train", [0, 2]), ("validation", [2, 3, 0, 5])):
        rows = {"image": [np.zeros((8, 8), np.uint8)] * len(labels), "label": labels}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(ValueError, match=r"validation has labels \[3, 5\], train has none"):
        data.load_images(TrainingConfig(dataset_name=str(tmp_path)))


@pytest.mark.parametrize("kind", ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("streaming", [False, True])
def test_every_integer_is_a_label(kind, streaming, tmp_path):
    features = Features({"image": Image(), "label": Value(kind)})
    for split in ("train", "validation"):
        rows = {"image": [np.zeros((8, 8), np.uint8)] * 2, "label": [1, 0]}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    images, _ = data.load_images(TrainingConfig(dataset_name=str(tmp_path), streaming=streaming))
    images = images.cast_column("image", Image(decode=False))
    rows = [(True, row) for row in (images if streaming else range(2))]
    batch = EvaluationBatches(images, make_processor(TrainingConfig()), 2).__getitems__(rows)
    assert batch["labels"].dtype == torch.int64 and batch["labels"].tolist() == [1, 0]


@pytest.mark.parametrize(
    "labels, kind, words",
    [
        (["cat", "dog"], "string", ["'label' holds", "d.class_encode_column('label')"]),
        ([0.0, 1.0], "float32", ["'label' holds", "d.cast_column('label', Value('int64'))"]),
        ([0, -2], "int64", ["train has negative labels [-2]", "validation has negative labels [-2]"]),
        ([0, None], "int64", ["train has images without a label (None)", "validation has images without"]),
    ],
)
def test_labels_that_are_no_classes_are_named(labels, kind, words, tmp_path):
    features = Features({"image": Image(), "label": Value(kind)})
    for split in ("train", "validation"):
        rows = {"image": [np.zeros((8, 8), np.uint8)] * 2, "label": labels}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(ValueError) as raised:
        data.load_images(TrainingConfig(dataset_name=str(tmp_path)))
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_labels_beyond_the_model_are_named_before_the_first_step(options, tmp_path):
    (tmp_path / "nine.json").write_text('{"model_type": "rednet", "num_labels": 9}')
    digits = load_dataset(options[1]["dataset_name"])
    for split, images in digits.items():
        images.cast_column("digit", Value("int64")).to_parquet(tmp_path / f"data/{split}.parquet")
    given = ["--dataset_name", str(tmp_path / "data"), "--config_name", str(tmp_path / "nine.json")]
    with pytest.raises(SystemExit, match=r"(?s)train has labels \[9\].*9 classes.*test has labels \[9\]"):
        train.main(["--config", str(options[0]), *given, "--output_dir", str(tmp_path / "run")])


def test_hidden_labels_are_named(tmp_path):
    """Test splits on the Hub often have the label -1."""
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    for split, labels in (("train", [0, 1]), ("validation", [-1, -1])):
        rows = {"image": [np.zeros((8, 8), np.uint8)] * 2, "label": labels}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(ValueError, match=r"validation has images without a label \(-1\)"):
        data.load_images(TrainingConfig(dataset_name=str(tmp_path)))


@pytest.mark.parametrize(
    "option, value, words",
    [
        ("image_column_name", "photo", "error: image_column_name is 'photo'"),
        ("config_name", "nowhere/rednet-27.json", "nowhere/rednet-27.json"),
        ("config_name", "resnet.json", "resnet.json is of the type 'resnet', expected 'rednet'"),
        ("config_name", "even.json", "kernel_size=4 must be odd"),
        ("config_name", "gray.json", "gray.json has num_channels 1, expected 3.*Set num_channels to 3"),
        ("dataset_name", "damaged", "damaged"),
        ("dataset_name", "bytes", "while generating the dataset: .utf-8. codec"),
    ],
)
def test_what_cannot_be_trained_on_is_said_without_a_traceback(option, value, words, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("resnet.json").write_text('{"model_type": "resnet"}')
    Path("even.json").write_text('{"model_type": "rednet", "kernel_size": 4}')
    Path("gray.json").write_text('{"model_type": "rednet", "num_channels": 1}')
    Path("damaged").mkdir()
    Path("damaged/train.parquet").write_bytes(b"no parquet")
    Path("bytes").mkdir()
    Path("bytes/train.csv").write_bytes(b"image,label\n\xff,0\n")
    with pytest.raises(SystemExit, match=words):
        train.main(["--config", str(options[0]), "--output_dir", "run", f"--{option}", value])
    assert not Path("run").exists()


def test_classes_that_do_not_match_are_named(folders, options, tmp_path):
    (folders / "val/dog").rename(folders / "val/wolf")
    config = TrainingConfig(train_dir=str(folders / "train"), validation_dir=str(folders / "val"))
    with pytest.raises(ValueError, match=r"\['wolf'\].*\['cat', 'dog'\]"):
        data.load_images(config)
    for split, names in (("train", ["cat", "dog"]), ("validation", ["dog", "cat"])):
        features = Features({"image": Image(), "label": ClassLabel(names=names)})
        rows = {"image": [np.zeros((8, 8), np.uint8)], "label": [0]}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"sets/{split}/0.parquet")
    with pytest.raises(ValueError, match=r"\['cat', 'dog'\].*\['dog', 'cat'\]"):
        data.load_images(TrainingConfig(dataset_name=str(tmp_path / "sets")))
    pictures = read_split(DataOptions(dataset_name=str(tmp_path / "sets")))  # which predict.py reads without labels
    assert pictures.column_names == ["image"]
    model = make_model(TrainingConfig(**options[1]), ["cat", "dog"])
    model.save_pretrained(tmp_path / "model")
    config = TrainingConfig(model_name_or_path=str(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"2 classes, \['cat', 'dog'\].*3, \['dog', 'cat', 'cow'\].*--ignore_mis"):
        make_model(config, ["dog", "cat", "cow"])
    config.ignore_mismatched_sizes = True
    assert make_model(config, ["dog", "cat", "cow"]).config.id2label == {0: "dog", 1: "cat", 2: "cow"}
    assert make_model(config, None).config.id2label == {0: "cat", 1: "dog"}


def test_limits_on_samples(options):
    train, test = data.load_images(TrainingConfig(**options[1], max_train_samples=7, max_eval_samples=10**6))
    assert (len(train), len(test)) == (7, 397)
