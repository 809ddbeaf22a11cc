"""Options, data sources, batches and the metric."""

import gzip

import evaluate
import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score
from train import make_processor

import data
from arguments import TrainingConfig, parse_config


REQUIRED = ["--config_name", "model.json", "--dataset_name", "pictures"]


def test_command_line_wins_over_the_file(options):
    path, values = options
    config = parse_config(["--config", str(path), "--learning_rate", "3e-2", "--image_mean", "0.1", "0.2", "0.3"])
    assert config == TrainingConfig(**{**values, "learning_rate": 0.03, "image_mean": [0.1, 0.2, 0.3]})


def test_every_recipe_in_the_repository_is_valid(root):
    for path in (root / "configs/training").glob("*.yaml"):
        config = parse_config(["--config", str(path)])
        assert (root / config.config_name).is_file()


@pytest.mark.parametrize(
    "text, words",
    [
        ("learning_rat: 0.1", ["unknown", "learning_rat"]),
        ("num_train_epochs: many", ["num_train_epochs", "many", "int"]),
        ("learning_rate: fast", ["learning_rate", "fast", "float"]),
        ("checkpointing_steps: 0", ["checkpointing_steps", "0"]),
        ("image_mean: 0.5", ["image_mean", "0.5"]),
        ("checkpointing_steps: often", ["checkpointing_steps", "often", "epoch"]),
        ("config_name: null", ["--model_name_or_path", "--config_name"]),
        ("dataset_name: ''", ["--dataset_name"]),
    ],
)
def test_wrong_options_are_named(text, words, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(["config_name: a.json", "dataset_name: b", text]))
    with pytest.raises(SystemExit):
        parse_config(["--config", str(path)])
    error = capsys.readouterr().err
    assert all(word in error for word in words)


def test_plain_yaml_is_understood(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "config_name: a\ndataset_name: b\nmixed_precision: no\ncheckpointing_steps: 500\nlearning_rate: 1e-4"
    )
    config = parse_config(["--config", str(path)])
    assert (config.mixed_precision, config.checkpointing_steps, config.learning_rate) == ("no", "500", 1e-4)


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
    ],
)
def test_missing_splits_and_columns_are_named(options, changes, words):
    with pytest.raises(ValueError) as raised:
        data.load_images(TrainingConfig(**{**options[1], **changes}))
    assert all(word in str(raised.value) for word in words)


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
    monkeypatch.setattr(data, "DEBIAN_FILES", files)  # an absolute path stays what it is
    monkeypatch.setattr(data, "DATA_DIRECTORY", tmp_path / "data")
    dataset = data.load_fashion_mnist()
    assert np.array_equal(np.stack([np.array(image) for image in dataset["test"]["image"]]), images)
    assert dataset["train"]["label"] == labels.tolist()
    assert dataset["train"].features["label"].int2str(9) == "Ankle boot"
    monkeypatch.setattr(data, "DEBIAN_FILES", tmp_path / "gone")
    assert len(data.load_fashion_mnist()["train"]) == 12


def test_fashion_mnist_where_there_is_no_way_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DEBIAN_FILES", tmp_path / "missing")
    monkeypatch.setattr(data, "DATA_DIRECTORY", tmp_path / "data")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(RuntimeError) as raised:
        data.load_fashion_mnist()
    assert "Hugging Face Hub" in str(raised.value) and "dataset-fashion-mnist" in str(raised.value)


def test_training_batches_look_like_the_processors(options):
    """Without crop (and up to the flip) a training image becomes what the image processor makes of it."""
    config = TrainingConfig(**{**options[1], "image_size": 8, "random_crop_min_scale": None})
    rows = list(data.load_images(config)[1].select(range(6)))
    torch.manual_seed(0)
    batch = data.TrainingCollator(config)(rows)
    images = data.normalize(batch["pixel_values"], config)
    assert images.is_contiguous(memory_format=torch.channels_last) and batch["pixel_values"].dtype == torch.uint8
    expected = data.EvaluationCollator(make_processor(config))(rows)
    assert torch.equal(batch["labels"], expected["labels"])
    flips = 0
    for image, reference in zip(images, expected["pixel_values"]):
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
