"""Options, data sources, batches and the metric."""

import gzip
import shutil
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from datasets import ClassLabel, Dataset, Features, Image, Value, load_dataset
from PIL import Image as PILImage
from rednet.training import ablate, evaluate_model, finetune, train, train_detection, train_segmentation
from rednet.training.data import fashion_mnist
from rednet.training.data import sources as data
from rednet.training.data.batches import EvaluationBatches, TrainingBatches
from rednet.training.data.transforms import normalize
from rednet.training.options.groups import TrainingConfig
from rednet.training.options.parser import find_architecture
from rednet.training.train import make_model, make_processor, parse_config
from sklearn.metrics import top_k_accuracy_score


REQUIRED = ["--config_name", "model.json", "--dataset_name", "pictures"]


def test_command_line_wins_over_the_file(options):
    path, values = options
    config = parse_config(["--config", str(path), "--learning_rate", "3e-2", "--image_mean", "0.1", "0.2", "0.3"])
    assert config == TrainingConfig(**{**values, "learning_rate": 0.03, "image_mean": [0.1, 0.2, 0.3]})


def test_every_recipe_in_the_repository_is_valid(root):
    for path in (root / "configs/training").glob("[!cf]*.yaml"):  # not cityscapes, coco, finetune
        config = parse_config(["--config", str(path)])
        assert Path(find_architecture(config.config_name)).is_file()


@pytest.mark.parametrize("depth", [26, 38, 50, 101, 152])
def test_imagenet_recipes_are_the_papers(root, depth):
    config = parse_config(["--config", str(root / f"configs/training/imagenet_rednet{depth}.yaml")])
    with_64_gpus = 64 * config.per_device_train_batch_size * config.gradient_accumulation_steps
    assert (with_64_gpus, config.learning_rate, config.momentum, config.weight_decay) == (2048, 0.8, 0.9, 1e-4)
    assert (config.num_train_epochs, config.num_warmup_steps, config.warmup_start_factor) == (130, 3130, 0.25)
    assert (config.label_smoothing, config.image_size, round(config.image_size / config.crop_pct)) == (0.1, 224, 256)
    beyond = (config.color_jitter, config.rand_augment_magnitude, config.mixup_alpha, config.cutmix_alpha)
    assert beyond == (0, None, 0, 0) and not config.no_decay_on_norm_and_bias and config.max_grad_norm is None
    assert config.config_name == f"rednet-{depth}"


def test_launch_files_are_understood(root):
    files = {path.stem: load_config_from_file(str(path)) for path in (root / "configs/accelerate").glob("*.yaml")}
    processes = {name: (file.num_machines, file.num_processes) for name, file in files.items()}
    assert processes == {"1_gpu": (1, 1), "8_gpus": (1, 8), "8x8_gpus": (8, 64), "fsdp_8_gpus": (1, 8)}


@pytest.mark.parametrize(
    "text, words",
    [
        ("learning_rat: 0.1", ["unknown", "recipe.yaml", "learning_rat", "did you mean learning_rate?"]),
        ("num_train_epochs: true", ["num_train_epochs", "True", "int"]),
        ("logging_steps: 0", ["--logging_steps is 0"]),
        ("train_dir: pictures", ["one of", "--dataset_name", "--train_dir"]),
        ("validation_dir: pictures", ["--validation_dir", "--train_dir"]),
        ("train_val_split: 5", ["--train_val_split is 5.0", "between 0 and 1"]),
        ("num_train_epochs: many", ["num_train_epochs", "many", "int"]),
        ("learning_rate: fast", ["learning_rate", "fast", "float"]),
        ("checkpointing_steps: 0", ["checkpointing_steps", "0"]),
        ("image_mean: 0.5", ["image_mean", "0.5"]),
        ("checkpointing_steps: often", ["checkpointing_steps", "often", "epoch"]),
        ("config_name: null", ["--model_name_or_path", "--config_name"]),
        ("dataset_name: ''", ["--dataset_name"]),
        ("lr_steps: [8, 11", ["recipe.yaml is not YAML", "line 3"]),
        ("lr_steps: [8, x]", ["lr_steps is [8, 'x']"]),
        ("image_std: [1, many, 1]", ["image_std is [1, 'many', 1]"]),
        ("max_train_steps: 0", ["--max_train_steps is 0", "at least 1"]),
        ("per_device_eval_batch_size: 0", ["--per_device_eval_batch_size is 0", "at least 1"]),
        ("lr_scheduler_type: linear", ["--lr_scheduler_type is 'linear', expected one of cosine, polynomial, step"]),
        ("mixed_precision: fp61", ["--mixed_precision is 'fp61'", "bf16", "did you mean fp16?"]),
        ("label_smoothing: 1", ["--label_smoothing is 1.0", "below 1"]),
        ("label_smoothing: .nan", ["--label_smoothing is nan", "below 1"]),
        ("learning_rate: .inf", ["--learning_rate is inf", "a finite number above 0"]),
        ("learning_rate: -0.1", ["--learning_rate is -0.1"]),
        ("learning_rate: true", ["learning_rate is True", "float"]),
        ("image_mean: [0.5]", ["--image_mean is [0.5]", "3 finite numbers"]),
        ("image_mean: [0.5, .nan, 0.5]", ["--image_mean is [0.5, nan, 0.5]"]),
        ("image_std: [0.2, 0, 0.2]", ["--image_std is [0.2, 0.0, 0.2]", "above 0"]),
        ("image_std: [1, true, 1]", ["image_std is [1, True, 1]"]),
        ("random_flip: 1.5", ["--random_flip is 1.5", "from 0 to 1"]),
        ("crop_pct: 0", ["--crop_pct is 0.0", "above 0"]),
        ("ema_decay: 1.0", ["--ema_decay is 1.0", "below 1"]),
        ("momentum: 1", ["--momentum is 1.0", "below 1"]),
        ("mixup_alpha: -1", ["--mixup_alpha is -1.0", "at least 0"]),
        ("rand_augment_magnitude: 31", ["--rand_augment_magnitude is 31", "from 0 to 30"]),
        ("lr_steps: [0]", ["--lr_steps is [0]", "from 1 on"]),
        ("lr_steps: [true]", ["lr_steps is [True]"]),
        ("num_warmup_steps: -1", ["--num_warmup_steps is -1", "at least 0"]),
        ("num_warmup_steps: '5'", ["num_warmup_steps is '5'", "int"]),
        ("seed: -1", ["--seed is -1"]),
        ("max_grad_norm: 0", ["--max_grad_norm is 0.0", "above 0"]),
    ],
)
def test_wrong_options_are_named(text, words, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(["config_name: a.json", "dataset_name: b", text]))
    with pytest.raises(SystemExit):
        parse_config(["--config", str(path)])
    error = capsys.readouterr().err
    assert all(word in error for word in words)


@pytest.mark.parametrize(
    "parse, text, words",
    [
        (train_segmentation.parse_config, "crop_size: [512]", ["--crop_size is [512]", "a height and a width"]),
        (train_segmentation.parse_config, "random_scale: [2, 1]", ["--random_scale is [2.0, 1.0]", "a least and"]),
        (train_detection.parse_config, "detector: yolo", ["--detector is 'yolo'", "fasterrcnn, maskrcnn, retinanet"]),
        (train_detection.parse_config, "trainable_layers: 6", ["--trainable_layers is 6", "from 0 to 5"]),
        (finetune.parse, "train_sampling_strategy: sorted", ["'sorted'", "random, sequential"]),
        (finetune.parse, "label_smoothing_factor: 1", ["--label_smoothing_factor is 1.0", "below 1"]),
        (evaluate_model.parse, "mixed_precision: int8", ["'int8'", "no, bf16, fp16"]),
        (ablate.main, "seeds: [-1]", ["--seeds is [-1]", "at least 0"]),
    ],
)
def test_all_scripts_check_values(parse, text, words, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(SystemExit):
        parse(["--config", str(tmp_path / "recipe.yaml")])
    error = capsys.readouterr().err
    assert all(word in error for word in words), error


def test_values_on_the_command_line_are_checked(capsys):
    with pytest.raises(SystemExit):
        parse_config([*REQUIRED, "--lr_scheduler_type", "linear"])
    assert "choose from" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_config([*REQUIRED, "--image_mean", "0.5", "0.5"])
    assert "--image_mean is [0.5, 0.5], expected 3" in capsys.readouterr().err


def test_a_source_on_the_command_line_replaces_that_of_the_file(tmp_path):
    """With what describes it there: columns and splits."""
    folder, path = str(tmp_path), tmp_path / "recipe.yaml"
    path.write_text(
        "config_name: a\ndataset_name: b\ndataset_config_name: c\nimage_column_name: picture\n"
        "validation_split: test\ntrain_val_split: 0.1"
    )
    config = parse_config(["--config", str(path), "--train-dir", folder])
    assert (config.train_dir, config.dataset_name, config.train_val_split) == (folder, "", 0.1)
    assert (config.dataset_config_name, config.image_column_name, config.validation_split) == (
        None,
        "image",
        "validation",
    )
    config = parse_config(["--config", str(path), f"--train_dir={folder}", "--validation_dir", folder])
    assert (config.validation_dir, config.dataset_name, config.train_val_split) == (folder, "", None)
    config = parse_config(["--config", str(path), "--model_name_or_path", "weights"])
    assert (config.model_name_or_path, config.config_name, config.dataset_name) == ("weights", None, "b")
    assert config.dataset_config_name == "c" and config.image_column_name == "picture"

    path.write_text(f"model_name_or_path: a\ntrain_dir: {folder}\nvalidation_dir: {folder}\nlabel_column_name: kind")
    config = parse_config(["--config", str(path), "--dataset_name", "b", "--config_name", "c"])
    assert (config.dataset_name, config.train_dir, config.validation_dir) == ("b", None, None)
    assert (config.config_name, config.model_name_or_path, config.label_column_name) == ("c", None, "kind")
    config = parse_config(["--config", str(path), "--train_val_split", "0.2"])
    assert (config.train_dir, config.validation_dir, config.train_val_split) == (folder, None, 0.2)

    # A segmenter starts from both: weights, and a configuration with its classes.
    path.write_text("model_name_or_path: a\ndataset_name: b")
    config = train_segmentation.parse_config(["--config", str(path), "--config_name", "c", "--train_dir", folder])
    assert (config.model_name_or_path, config.config_name, config.train_dir) == ("a", "c", folder)
    config = evaluate_model.parse(["--config", str(path), "--validation_dir", folder])
    assert (config.dataset_name, config.validation_dir) == ("", folder)


def test_plain_yaml_is_understood(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "config_name: a\ndataset_name: b\nmixed_precision: no\ncheckpointing_steps: 500\nlearning_rate: 1e-4"
    )
    config = parse_config(["--config", str(path)])
    assert (config.mixed_precision, config.checkpointing_steps, config.learning_rate) == ("no", "500", 1e-4)


@pytest.mark.parametrize(
    "unknown, nearest",
    [("--learning_rat", "--learning_rate"), ("--lerning-rate=3", "--learning_rate"), ("--xyz", "--help")],
)
def test_unknown_arguments_are_named(unknown, nearest, capsys):
    """Also beginnings of an option's name, which argparse would take for it."""
    with pytest.raises(SystemExit):
        parse_config([*REQUIRED, unknown, "0.1"])
    error = capsys.readouterr().err
    assert unknown in error and nearest in error


def test_missing_folders_are_named(capsys):
    with pytest.raises(SystemExit):
        parse_config(["--config_name", "model.json", "--train_dir", "nowhere"])
    assert "--train_dir nowhere: there is no such folder" in capsys.readouterr().err


def test_missing_file_is_named(capsys):
    with pytest.raises(SystemExit):
        parse_config(["--config", "nowhere.yaml", *REQUIRED])
    assert "nowhere.yaml" in capsys.readouterr().err


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


@pytest.fixture
def folders(tmp_path):
    """Images in a folder for each class: 12 cats and 4 dogs to train on, one of each to evaluate on."""
    for split, name, number in (("train", "cat", 12), ("train", "dog", 4), ("val", "cat", 1), ("val", "dog", 1)):
        (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
        for n in range(number):
            picture = np.full((9, 9, 3), 10 * n + (name == "dog"), np.uint8)
            PILImage.fromarray(picture).save(tmp_path / split / name / f"{n}.png")
    return tmp_path


@pytest.mark.parametrize("streaming", [False, True])
def test_folders_of_images(folders, streaming):
    """Nothing of the files is stored, so that streaming makes no difference."""
    config = TrainingConfig(train_dir=str(folders / "train"), validation_dir=str(folders / "val"), streaming=streaming)
    train, validation = data.load_images(config)
    assert data.class_names(train) == data.class_names(validation) == ["cat", "dog"]
    rows = [(row["image"], row["label"]) for row in train]
    assert sorted((np.array(image).max(), label) for image, label in rows) == sorted(
        (10 * n + label, label) for label, number in ((0, 12), (1, 4)) for n in range(number)
    )
    assert len(list(validation)) == 2


def test_linked_class_folders_are_followed(folders, tmp_path):
    """Classes, folders in a class, and pictures; upper-case suffixes count."""
    other = tmp_path / "other"
    (other / "deep/deeper").mkdir(parents=True)
    for name in ("deep/0.png", "deep/deeper/1.PNG"):
        PILImage.new("L", (8, 8)).save(other / name)
    (folders / "train/owl").symlink_to(other / "deep")
    (folders / "train/cat/linked").symlink_to(other / "deep/deeper")
    (folders / "train/dog/link.jpeg").symlink_to(other / "deep/0.png")
    (tmp_path / "link").symlink_to(folders / "train")
    train, _ = data.load_images(TrainingConfig(train_dir=str(tmp_path / "link"), train_val_split=0.25))
    images = data.read_source(TrainingConfig(train_dir=str(tmp_path / "link")))["train"]
    assert data.class_names(train) == ["cat", "dog", "owl"]
    assert [images["label"].count(label) for label in range(3)] == [13, 5, 2]
    paths = [image["path"] for image in images.cast_column("image", Image(decode=False))["image"]]
    assert str(tmp_path / "link/owl/deeper/1.PNG") in paths


def test_what_is_wrong_with_class_folders_is_named(folders):
    """All at once: nothing is left out without a word."""
    train = folders / "train"
    (train / "empty").mkdir()
    (train / "cat/gone.png").symlink_to("nowhere.png")
    (train / "dog/loop").symlink_to(train)
    (train / "dog/round").symlink_to("round")
    (train / "dog/zero.jpg").touch()
    (train / "alone.png").write_bytes((train / "cat/0.png").read_bytes())
    (folders / "val/wolf").mkdir()
    config = TrainingConfig(train_dir=str(train), validation_dir=str(folders / "val"))
    with pytest.raises(ValueError) as raised:
        data.load_images(config)
    problems = [
        f"{train}/alone.png is not in a folder",
        f"{train}/cat/gone.png is a broken link to nowhere.png",
        f"{train}/dog/loop is a link to {train}, which contains it",
        f"{train}/dog/round is a broken link",
        f"{train}/dog/zero.jpg is empty",
        f"{train}/empty has no pictures",
        f"{folders}/val has classes ['wolf']",
    ]
    assert str(raised.value).startswith(f"{train} and {folders}/val has 7 problems:")
    assert all(problem in str(raised.value) for problem in problems), str(raised.value)
    with pytest.raises(ValueError, match=r"other has no folders, expected one for each class"):
        (folders / "other").mkdir()
        data.load_images(TrainingConfig(train_dir=str(folders / "other"), train_val_split=0.5))


def test_files_that_are_no_pictures_are_named(folders, caplog):
    (folders / "train/cat/.DS_Store").write_bytes(b"0")
    (folders / "train/cat/notes.txt").write_text("a cat")
    (folders / "train/Thumbs.db").write_bytes(b"0")
    shutil.rmtree(folders / "val/dog")
    train, _ = data.load_images(TrainingConfig(train_dir=str(folders / "train"), validation_dir=str(folders / "val")))
    assert len(train) == 16
    first, second = caplog.messages
    assert "3 are no pictures and are not used" in first
    assert all(name in first for name in (".DS_Store", "notes.txt", "Thumbs.db"))
    assert second.endswith("1 classes have no pictures to evaluate on: dog")


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


def test_folders_with_unusual_names(folders, tmp_path):
    """Brackets are no pattern, and what editors hide in a folder is no class."""
    shutil.copytree(folders, tmp_path / "pictures [v2]")
    (tmp_path / "pictures [v2]/val/.ipynb_checkpoints").mkdir()
    train, val = (str(tmp_path / "pictures [v2]" / name) for name in ("train", "val"))
    images, _ = data.load_images(TrainingConfig(train_dir=train, validation_dir=val))
    assert len(images) == 16 and data.class_names(images) == ["cat", "dog"]


@pytest.mark.parametrize(
    "option, value, words",
    [
        ("image_column_name", "photo", "error: image_column_name is 'photo'"),
        ("config_name", "nowhere/rednet-27.json", "nowhere/rednet-27.json"),
        ("config_name", "resnet.json", "resnet.json is of the type 'resnet', expected 'rednet'"),
        ("config_name", "even.json", "kernel_size=4 must be odd"),
        ("config_name", "gray.json", "gray.json has num_channels 1, expected 3.*Set num_channels to 3"),
        ("dataset_name", "damaged", "damaged"),
    ],
)
def test_what_cannot_be_trained_on_is_said_without_a_traceback(option, value, words, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("resnet.json").write_text('{"model_type": "resnet"}')
    Path("even.json").write_text('{"model_type": "rednet", "kernel_size": 4}')
    Path("gray.json").write_text('{"model_type": "rednet", "num_channels": 1}')
    Path("damaged").mkdir()
    Path("damaged/train.parquet").write_bytes(b"no parquet")
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


def test_training_batches_look_like_the_processors(options):
    """Without crop (and up to the flip) a training image becomes what the image processor makes of it."""
    config = TrainingConfig(**{**options[1], "image_size": 8, "random_crop_min_scale": None})
    images = data.load_images(config)[1].cast_column("image", Image(decode=False))
    batch = TrainingBatches(images, config, 10).__getitems__([((0, 0, n), n) for n in range(6)])
    normalized = normalize(batch["pixel_values"], config)
    assert normalized.is_contiguous(memory_format=torch.channels_last) and batch["pixel_values"].dtype == torch.uint8
    expected = EvaluationBatches(images, make_processor(config), 10).__getitems__([(n != 5, n) for n in range(6)])
    assert torch.equal(batch["labels"][:5], expected["labels"][:5]) and expected["labels"][5] == -1
    flips = 0
    for image, reference in zip(normalized, expected["pixel_values"]):
        flipped = torch.allclose(image, reference.flip(2), atol=1e-5)
        assert flipped or torch.allclose(image, reference, atol=1e-5)
        flips += flipped
    assert 0 < flips < 6


def test_metric_agrees_with_scikit_learn(root):
    scores = np.random.default_rng(0).normal(size=(200, 10))
    labels = np.random.default_rng(1).integers(0, 10, 200)
    metric = evaluate.load(str(root / "training/metrics/top_k_accuracy.py"))
    ranked = np.argsort(-scores, axis=1)[:, :5]
    for part in np.array_split(np.arange(200), 3):
        metric.add_batch(predictions=ranked[part].tolist(), references=labels[part].tolist())
    values = metric.compute()
    assert values["accuracy"] == pytest.approx(top_k_accuracy_score(labels, scores, k=1))
    assert values["top_5_accuracy"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
