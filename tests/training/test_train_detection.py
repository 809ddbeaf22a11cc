"""training/train_detection.py on pictures of red and blue rectangles, with the ids of a data set that has gaps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rednet import RedNetConfig, RedNetForImageClassification, count_parameters
from rednet.detection import load_detector
from rednet.mmdetection import ExactAnchors
from rednet.training import train_detection
from rednet.training.metrics.detection import average_precision, to_coco
from rednet.training.options.scripts import DetectionConfig
from torchvision.transforms.v2.functional import pil_to_tensor

from coco_files import CATEGORIES, annotations, read_annotations, rectangle
from processes import Training, start_together, together
from runs import assert_same


COLORS = {31: (230, 40, 40), 7: (60, 60, 240)}
SMALL = {"embedding_size": 32, "hidden_sizes": [64, 64, 128, 128], "depths": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    """Pictures in the folders train and val, and their annotations, without the `area` that not everybody writes."""
    folder, random = tmp_path_factory.mktemp("coco"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 5)):
        (folder / split).mkdir()
        images, annotations = [], []
        for number in range(count):
            pixels = random.integers(0, 60, (64, 80, 3), dtype=np.uint8)
            for _ in range(0 if number == 3 else 2):
                w, h = (int(n) for n in random.integers(20, 36, 2))
                x, y, category = int(random.integers(80 - w)), int(random.integers(64 - h)), (31, 7)[number % 2]
                pixels[y : y + h, x : x + w] = COLORS[category]
                annotations.append(rectangle(len(annotations) + 1, 100 + number, category, x, y, w, h))
            Image.fromarray(pixels).save(folder / f"{split}/{number}.png")
            images.append({"id": 100 + number, "file_name": f"{number}.png", "width": 80, "height": 64})
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (folder / f"{split}.json").write_text(json.dumps(content))
    (folder / "model.json").write_text(json.dumps({"model_type": "rednet", "stem_stride": 2, **SMALL}))
    return folder


@pytest.fixture(scope="module")
def options(coco) -> dict:
    return {
        "config_name": str(coco / "model.json"),
        "detector": "maskrcnn",
        "neck": "involution",
        "head": "involution",
        "channels": 32,
        "trainable_layers": 5,
        "min_size": 64,
        "max_size": 80,
        "train_dir": str(coco / "train"),
        "train_annotations": str(coco / "train.json"),
        "validation_dir": str(coco / "val"),
        "validation_annotations": str(coco / "val.json"),
        "dataloader_num_workers": 0,
        "photometric_distortion": True,
        "num_train_epochs": 4,
        "lr_steps": [3],
        "num_warmup_steps": 4,
        "max_grad_norm": 5.0,
        "eval_epochs": 2,
        "checkpointing_steps": "2",
        "logging_steps": 3,
    }


@pytest.fixture(scope="module")
def trained(root, options, tmp_path_factory) -> tuple[list[str], Path]:
    """Arguments of a training, and the folder of one that ran to its end."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "options.yaml").write_text(json.dumps(options))
    arguments = ["--config", str(folder / "options.yaml"), "--output_dir"]
    training = Training(root, folder / "run.txt", [*arguments, str(folder / "run")], "rednet.training.train_detection")
    assert training.wait() == 0, training.text()
    return arguments, folder / "run"


def test_the_folder_loads_and_reaches_what_was_reported(trained, coco):
    """Pictures read, and detections collected, without the script's loaders."""
    results = json.loads((trained[1] / "results.json").read_text())
    assert results["steps"] == 12 and results["train_samples"] == 7 and results["eval_samples"] == 5
    losses = [json.loads(line).get("loss") for line in (trained[1] / "log.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss]
    assert losses[-1] < losses[0] / 2 and "eval_mask_ap_75" in results and results["eval_box_ap_50"] > 0

    model, categories = load_detector(trained[1] / "last")
    assert categories == [{"id": 7, "name": "blue"}, {"id": 31, "name": "red"}] and not model.training
    truth, detections = read_annotations(coco / "val.json", masks=True), []
    for number in range(5):
        with torch.no_grad():
            (output,) = model([pil_to_tensor(Image.open(coco / f"val/{number}.png")) / 255])
        detections += to_coco(output, 100 + number, [7, 31])
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        found = average_precision(truth, detections, list(range(100, 105)), kind)
        reported = {key.removeprefix(f"eval_{name}_"): results[key] for key in results if f"eval_{name}_" in key}
        assert found == pytest.approx({key: reported[key] for key in found}, abs=1e-3)


def test_killed_in_an_epoch_and_resumed(root, trained, tmp_path):
    """What the detector samples at random, flips and distortions are those of the run that was not killed."""
    arguments, expected = trained
    folder = tmp_path / "run"
    killed = Training(root, tmp_path / "run.txt", [*arguments, str(folder)], "rednet.training.train_detection")
    killed.kill_when(lambda: (folder / "checkpoints/step_00000004").exists())
    assert not (folder / "last").exists()
    arguments = [*arguments, str(folder), "--dataloader_num_workers", "1"]
    training = Training(root, tmp_path / "run.txt", arguments, "rednet.training.train_detection")
    assert training.wait() == 0, training.text()
    assert "Resuming from step" in training.text()
    assert_same(folder, expected)


def test_two_processes_evaluate_as_one(root, trained, tmp_path):
    """The main process evaluates what both detected: 5 images, of which one process has 2 and the other 3."""
    arguments, expected = trained
    shutil.copytree(expected, tmp_path / "run")
    (tmp_path / "run/results.json").write_text("{}")  # to be written again
    arguments = [*arguments, str(tmp_path / "run"), "--per_device_eval_batch_size", "1"]
    together(root, tmp_path / "output", arguments, "rednet.training.train_detection")
    alone, both = (json.loads((folder / "results.json").read_text()) for folder in (expected, tmp_path / "run"))
    names = [name for name in alone if name.startswith("eval_")]
    assert both["eval_samples"] == 5 and len(names) > 6
    assert {name: both[name] for name in names} == pytest.approx({name: alone[name] for name in names}, abs=1e-3)


def test_starts_from_a_classifier(options, tmp_path):
    torch.manual_seed(0)
    classifier = RedNetForImageClassification(RedNetConfig(**SMALL, num_labels=10))
    classifier.save_pretrained(tmp_path)
    values = {**options, "config_name": None, "model_name_or_path": str(tmp_path), "detector": "retinanet"}
    config = DetectionConfig(**{**values, "head": "convolution", "trainable_layers": 3})
    model = train_detection.make_model(config, train_detection.detector_options(config, 2), [])
    weights = model.backbone.body.state_dict()
    assert weights.keys() == classifier.rednet.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in classifier.rednet.state_dict().items())
    assert model.head.classification_head.num_classes == 3


def test_starts_from_a_detector(options, trained):
    config = DetectionConfig(**{**options, "config_name": None, "model_name_or_path": str(trained[1] / "best")})
    _, categories = load_detector(trained[1] / "best")
    model = train_detection.make_model(config, train_detection.detector_options(config, 2), categories)
    expected = load_detector(trained[1] / "best")[0].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())

    more = [*categories, {"id": 40, "name": "green"}]
    with pytest.raises(ValueError, match="other categories or layers.*--ignore_mismatched_sizes"):
        train_detection.make_model(config, train_detection.detector_options(config, 3), more)
    config.ignore_mismatched_sizes = True
    found = train_detection.make_model(config, train_detection.detector_options(config, 3), more).state_dict()
    new = {name for name, value in found.items() if not torch.equal(value, expected[name])}
    predictors = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
    assert len(new) == 6 and all(name.startswith(predictors) for name in new)


def test_a_detector_keeps_its_style(options, trained, tmp_path):
    """The weights were trained with these anchors and features of regions."""
    shutil.copytree(trained[1] / "best", tmp_path / "best")
    content = json.loads((tmp_path / "best/config.json").read_text())
    content["options"]["style"] = "mmdetection"
    (tmp_path / "best/config.json").write_text(json.dumps(content))
    config = DetectionConfig(**{**options, "config_name": None, "model_name_or_path": str(tmp_path / "best")})
    kept = train_detection.detector_options(config, 2)
    model = train_detection.make_model(config, kept, content["categories"])
    assert kept["style"] == "mmdetection" and isinstance(model.rpn.anchor_generator, ExactAnchors)


TITLES = {"fasterrcnn": "Faster R-CNN", "maskrcnn": "Mask R-CNN", "retinanet": "RetinaNet"}


def test_recipes_build_the_rows_of_the_table(root, coco):
    """Every detector's row has a recipe; what it trains has the row's parameters."""
    folders = [f"--{name}_dir={coco}/{split}" for name, split in (("train", "train"), ("validation", "val"))]
    files = [f"--{n}_annotations={coco}/{split}.json" for n, split in (("train", "train"), ("validation", "val"))]
    found = set()
    for recipe in sorted((root / "configs/training").glob("coco_*.yaml")):
        config = train_detection.parse_config(["--config", str(recipe), *folders, *files])
        config.model_name_or_path, config.config_name = None, str(root / "configs/models/rednet-50.json")
        with torch.device("meta"):
            model = train_detection.make_model(config, train_detection.detector_options(config, 80), [])
        parameters = count_parameters(model, trainable_only=True) / 1e6
        found.add((TITLES[config.detector], config.neck, config.head, f"{parameters:.3f}"))
        assert config.output_dir == f"outputs/{recipe.stem}" and yaml.safe_load(recipe.read_text())
    lines = [line.split(" | ") for line in (root / "benchmarks/results/dense-costs.md").read_text().splitlines()]
    rows = {(line[0][2:], line[1], line[2], line[4]) for line in lines if line[0][2:] in TITLES.values()}
    assert found == rows and len(rows) == 8


def test_a_failed_check_ends_all_processes(root, options, tmp_path):
    """The main process says why, the other one nothing, and neither waits for the other."""
    path = annotations(tmp_path, [{**rectangle(5, 0, 7, 1, 1, 9, 9), "iscrowd": 2}])
    (tmp_path / "options.yaml").write_text(json.dumps({**options, "train_annotations": str(path)}))
    arguments = ["--config", str(tmp_path / "options.yaml"), "--output_dir", str(tmp_path / "run")]
    first, second = start_together(
        root, tmp_path / "output", arguments, "rednet.training.train_detection", ACCELERATE_USE_CPU="true"
    )
    assert first.wait(60) == 1 and "annotation 5 has iscrowd 2" in first.text()
    assert second.wait(60) == 1 and "iscrowd" not in second.text() and "Traceback" not in second.text()
    assert not (tmp_path / "run/options.json").exists()


@pytest.mark.parametrize(
    "more, words",
    [
        (["--train_dir", "nowhere"], "--train_dir nowhere: no such folder"),
        (["--validation_annotations", "none.json"], "--validation_annotations none.json: no such file"),
        (["--detector", "retinanet"], "--head involution is for the RPN and the mask head"),
        (["--trainable_layers", "3"], "must not be frozen: give --trainable_layers 5"),
        (["--detector", "yolo"], "expected one of fasterrcnn, maskrcnn, retinanet"),
    ],
)
def test_bad_options_are_named(trained, tmp_path, capsys, more, words):
    with pytest.raises(SystemExit):
        train_detection.parse_config([*trained[0], str(tmp_path), *more])
    assert words in capsys.readouterr().err
