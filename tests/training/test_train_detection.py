"""training/train_detection.py on pictures of red and blue rectangles, with the ids of a data set that has gaps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn
from PIL import ExifTags, Image
from pycocotools import mask as coco_masks
from rednet import RedNetConfig, RedNetForImageClassification, count_parameters
from rednet.detection import load_detector
from rednet.training import train_detection
from rednet.training.data.coco import (
    categories_of,
    check_annotations,
    load_annotations,
    make_index,
    objects_of,
    read_annotations,
    run_lengths,
)
from rednet.training.data.detection import TrainingPictures, check_pictures, detection_loaders, pictures
from rednet.training.metrics.detection import average_precision, to_coco
from rednet.training.options.groups import DetectionConfig
from torchvision.ops import masks_to_boxes
from torchvision.transforms.v2.functional import pil_to_tensor

from processes import Training, start_together, together
from runs import assert_same


CATEGORIES = [{"id": 31, "name": "red"}, {"id": 7, "name": "blue"}]
COLORS = {31: (230, 40, 40), 7: (60, 60, 240)}
SMALL = {"embedding_size": 32, "hidden_sizes": [64, 64, 128, 128], "depths": [1, 1, 1, 1]}


def rectangle(number: int, image: int, category: int, x: int, y: int, w: int, h: int, **more) -> dict:
    outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    annotation = {"id": number, "image_id": image, "category_id": category, "bbox": [x, y, w, h]}
    return {**annotation, "segmentation": outline, **more}


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
    (tmp_path / "run/results.json").unlink()
    arguments = [*arguments, str(tmp_path / "run"), "--per_device_eval_batch_size", "1"]
    together(root, tmp_path / "output", arguments, "rednet.training.train_detection")
    alone, both = (json.loads((folder / "results.json").read_text()) for folder in (expected, tmp_path / "run"))
    names = [name for name in alone if name.startswith("eval_")]
    assert both["eval_samples"] == 5 and len(names) > 6
    assert {name: both[name] for name in names} == pytest.approx({name: alone[name] for name in names}, abs=1e-3)


def annotations(folder: Path, objects: list[dict], images: int | list[dict] = 1, **more) -> Path:
    if isinstance(images, int):
        images = [{"id": n, "file_name": f"{n}.png", "width": 100, "height": 90} for n in range(images)]
    content = {"images": images, "annotations": objects, "categories": CATEGORIES, **more}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder / "annotations.json"


def detection(score: float, x: float, y: float, w: float, h: float, image: int = 0, category: int = 7) -> dict:
    return {"image_id": image, "category_id": category, "score": score, "bbox": [x, y, w, h]}


def test_average_precision_by_hand(tmp_path):
    """Precision 1 up to half of the objects and 2/3 up to all of them, at COCO's 101 recalls, in every threshold."""
    path = annotations(tmp_path, [rectangle(1, 0, 7, 0, 0, 40, 40), rectangle(2, 0, 7, 50, 40, 40, 40)])
    truth = read_annotations(path, masks=False)
    found = [detection(0.9, 0, 0, 40, 40), detection(0.8, 55, 0, 40, 40), detection(0.7, 50, 40, 40, 40)]
    result = average_precision(truth, found, [0], "bbox")
    expected = (51 + 50 * 2 / 3) / 101
    assert result == pytest.approx({"ap": expected, "ap_50": expected, "ap_75": expected, "ap_medium": expected})

    # Half of one object is found with an overlap of 0.775: in six of the ten thresholds from 0.5 to 0.95.
    result = average_precision(truth, [detection(0.9, 0, 0, 40, 31)], [0], "bbox")
    assert result["ap_50"] == pytest.approx(51 / 101) and result["ap"] == pytest.approx(0.6 * 51 / 101)
    assert average_precision(truth, [], [0], "bbox")["ap"] == 0

    # A crowd is neither missed nor found in vain; what is found in a picture without objects is.
    crowd = rectangle(3, 0, 7, 0, 50, 40, 40, iscrowd=1)
    crowd["segmentation"] = {"size": [90, 100], "counts": [9000]}
    truth = read_annotations(annotations(tmp_path, [rectangle(1, 0, 7, 50, 40, 40, 40), crowd], 2), masks=False)
    right, inside = detection(0.7, 50, 40, 40, 40), detection(0.9, 5, 55, 20, 20)
    assert average_precision(truth, [right, inside], [0, 1], "bbox")["ap"] == pytest.approx(1)
    in_vain = detection(0.8, 5, 5, 20, 20, image=1)
    assert average_precision(truth, [right, inside, in_vain], [0, 1], "bbox")["ap"] == pytest.approx(0.5)
    assert average_precision(truth, [right, inside, in_vain], [0], "bbox")["ap"] == pytest.approx(1)


def test_average_precision_of_masks_by_hand(tmp_path):
    """The box is right, and the mask has 3/5 of it: right up to the threshold 0.6."""
    truth = read_annotations(annotations(tmp_path, [rectangle(1, 0, 31, 10, 20, 50, 40)]), masks=True)
    mask = torch.zeros(1, 1, 90, 100)
    mask[:, :, 20:60, 10:40] = 0.9
    mask[:, :, 20:60, 40:60] = 0.4
    output = {"boxes": torch.tensor([[10.0, 20, 60, 60]]), "labels": torch.tensor([2]), "scores": torch.tensor([0.8])}
    detections = to_coco({**output, "masks": mask}, 0, [7, 31])
    assert average_precision(truth, detections, [0], "bbox")["ap"] == pytest.approx(1)
    result = average_precision(truth, detections, [0], "segm")
    assert result["ap"] == pytest.approx(0.3) and result["ap_50"] == pytest.approx(1) and result["ap_75"] == 0


def test_targets(tmp_path):
    """Labels in the order of the ids, boxes cut at the border, no crowds, no pictures without objects."""
    objects = [rectangle(1, 0, 31, 10, 20, 30, 40), rectangle(2, 0, 7, 80, 70, 40, 40)]
    objects += [rectangle(3, 0, 7, 0, 0, 9, 9, iscrowd=1), rectangle(4, 1, 7, 0, 0, 9, 9, iscrowd=1)]
    objects += [rectangle(5, 2, 7, 5, 5, 0, 9), rectangle(6, 3, 7, 100, 5, 9, 9)]
    truth = read_annotations(annotations(tmp_path, objects, images=5), masks=True)
    assert [len(objects_of(truth, number)) for number in range(5)] == [2, 0, 0, 0, 0]
    images = pictures(truth, str(tmp_path), for_training=True)
    assert list(images["id"]) == [0] and len(pictures(truth, str(tmp_path), for_training=False)) == 5
    Image.new("RGB", (100, 90)).save(tmp_path / "0.png")
    for flip in (0.0, 1.0):
        config = DetectionConfig(detector="maskrcnn", random_flip=flip)
        batches = TrainingPictures(images, categories_of(truth), config)
        (target,) = batches.__getitems__([((0, 0), 0)])["targets"]
        boxes = torch.tensor([[10.0, 20, 40, 60], [80, 70, 100, 90]])
        if flip:
            boxes[:, [0, 2]] = 100 - boxes[:, [2, 0]]
        assert torch.equal(target["boxes"], boxes) and target["labels"].tolist() == [2, 1]
        assert torch.equal(masks_to_boxes(target["masks"]) + torch.tensor([0, 0, 1, 1]), boxes)


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


MASK = np.asfortranarray(np.arange(90 * 100).reshape(90, 100) % 7 < 3, np.uint8)
COMPRESSED = {"size": [90, 100], "counts": coco_masks.encode(MASK)["counts"].decode()}
COUNTS = run_lengths(COMPRESSED["counts"])


def test_run_lengths_are_those_of_the_mask():
    """Written by pycocotools; the definition is the mask itself, column by column."""
    pixels = np.concatenate([np.full(count, n % 2) for n, count in enumerate(COUNTS)])
    assert np.array_equal(pixels.reshape(100, 90).T, MASK)
    assert run_lengths(COUNTS) == COUNTS


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"category_id": 8}, "category_id 8, which none of the categories has"),
        ({"category_id": "7"}, "category_id '7', which"),
        ({"category_id": None}, "category_id None, which"),
        ({"category_id": [7]}, r"category_id \[7\], which"),
        ({"image_id": 9}, "image_id 9, which none of the images has"),
        ({"image_id": "0"}, "image_id '0', which"),
        ({"bbox": [1, 2, 3]}, r"bbox \[1, 2, 3\], expected \[x, y, width, height\]"),
        ({"bbox": None}, "bbox None"),
        ({"bbox": [1, 2, float("nan"), 3]}, r"bbox \[1, 2, nan, 3\]"),
        ({"bbox": [1, 2, float("inf"), 3]}, r"bbox \[1, 2, inf, 3\]"),
        ({"bbox": [1, 2, -3, 3]}, r"bbox \[1, 2, -3, 3\]"),
        ({"bbox": ["1", "2", "3", "4"]}, "bbox .*'4'"),
        ({"bbox": {"x": 1}}, "bbox {'x': 1}"),
        ({"iscrowd": 2}, "iscrowd 2, expected 0 or 1"),
        ({"iscrowd": "0"}, "iscrowd '0'"),
        ({"area": -5}, "area -5, expected a number of pixels"),
        ({"area": "9"}, "area '9'"),
        ({"area": float("nan")}, "area nan"),
        ({"segmentation": []}, "no segmentation, which Mask R-CNN needs"),
        ({"segmentation": None}, "no segmentation"),
        ({"segmentation": [[]]}, r"segmentation \[\[\]\]: a polygon of 0 numbers, expected x and y of at least 3"),
        ({"segmentation": [[1, 2, 3, 4]]}, "a polygon of 4 numbers"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6], [1, 2, 3]]}, "a polygon of 3 numbers"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "a polygon of 7 numbers"),
        ({"segmentation": [1, 2, 3, 4, 5, 6]}, "expected a list of polygons"),
        ({"segmentation": [["1", 2, 3, 4, 5, 6]]}, "expected a list of polygons"),
        ({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, "expected a list of polygons"),
        ({"segmentation": [[1, 2, 3, 4, 5e9, 6]]}, "far outside of the picture, which is 100 x 90"),
        ({"segmentation": "mask.png"}, "expected polygons, or run lengths"),
        ({"segmentation": {"counts": [9000]}}, "expected polygons, or run lengths"),
        ({"segmentation": {**COMPRESSED, "size": [100, 90]}}, r"size \[100, 90\], expected \[90, 100\]"),
        ({"segmentation": {**COMPRESSED, "counts": COMPRESSED["counts"][:-9]}}, "run lengths of .*, expected 9000"),
        ({"segmentation": {**COMPRESSED, "counts": "\u00e9~"}}, "counts that are no run lengths"),
        ({"segmentation": {**COMPRESSED, "counts": 9000}}, "counts that are no run lengths"),
        ({"segmentation": {**COMPRESSED, "counts": [3, 2]}}, "run lengths of 5 pixels, expected 9000"),
        ({"segmentation": {**COMPRESSED, "counts": [-1, 9001]}}, "none below 0"),
        ({"segmentation": {**COMPRESSED, "counts": ""}}, "run lengths of 0 pixels"),
    ],
)
def test_bad_annotations_are_named(tmp_path, wrong, words):
    path = annotations(tmp_path, [{**rectangle(5, 0, 7, 1, 1, 9, 9), **wrong}])
    with pytest.raises(ValueError, match=f"{path}: annotation 5 has .*{words}"):
        read_annotations(path, masks=True)


@pytest.mark.parametrize(
    "part, wrong, words",
    [
        ("annotations", {"id": None}, r"annotations\[0\] has id None, expected an integer"),
        ("annotations", {"id": "5"}, r"annotations\[0\] has id '5'"),
        ("images", {"id": "0"}, r"images\[0\] has id '0'"),
        ("images", {"id": 0.5}, r"images\[0\] has id 0.5"),
        ("images", {"width": -1, "height": -1}, "image 0 has width -1 and height -1, expected those of the picture"),
        ("images", {"width": 0}, "image 0 has width 0"),
        ("images", {"height": "90"}, "image 0 has width 100 and height '90'"),
        ("images", {"height": 90.5}, "image 0 has width 100 and height 90.5"),
        ("images", {"width": float("nan")}, "image 0 has width nan"),
        ("images", {"file_name": None}, "image 0 has file_name None, expected text"),
        ("categories", {"id": "31"}, r"categories\[0\] has id '31'"),
        ("categories", {"name": 31}, "category 31 has name 31, expected text"),
    ],
)
def test_bad_entries_are_named(tmp_path, part, wrong, words):
    content = json.loads(annotations(tmp_path, [rectangle(5, 0, 7, 1, 1, 9, 9)], images=2).read_text())
    content[part][0] |= wrong
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"annotations.json: {words}"):
        read_annotations(tmp_path / "annotations.json", masks=True)


def test_all_that_is_wrong_is_named_together(options, tmp_path):
    """In both files, also ids that are there twice."""
    box = rectangle(5, 0, 7, 1, 1, 9, 9)
    twice = [{"id": 0, "file_name": f"{n}.png", "width": 100, "height": 90} for n in range(2)]
    path = annotations(tmp_path, [box, {**box, "iscrowd": 3}, {**box, "id": 6, "bbox": []}], images=2)
    (tmp_path / "other").mkdir()
    other = annotations(tmp_path / "other", [], images=twice, categories=[*CATEGORIES, CATEGORIES[0]])
    config = DetectionConfig(**{**options, "train_annotations": str(path), "validation_annotations": str(other)})
    with pytest.raises(ValueError) as raised:
        check_annotations(*map(load_annotations, (path, other)), config)
    assert str(raised.value).splitlines() == [
        "the data set has 4 problems:",
        f"- {path}: annotations[1] has id 5, which another one of the annotations has as well",
        f"- {path}: annotation 6 has bbox [], expected [x, y, width, height] in pixels",
        f"- {other}: images[1] has id 0, which another one of the images has as well",
        f"- {other}: categories[2] has id 31, which another one of the categories has as well",
    ]


def test_files_as_tools_write_them(tmp_path):
    """A byte order mark, whole numbers as floats, flags as booleans, null for what is not known, masks of all kinds."""
    objects = [rectangle(n, 0, 7, 10, 10, 20, 20) for n in range(4)]
    objects[0] |= {"id": 0.0, "image_id": 0.0, "category_id": 7.0, "iscrowd": False, "area": None}
    objects[1] |= {"segmentation": COMPRESSED, "iscrowd": None}
    objects[2] |= {"segmentation": {"size": [90, 100], "counts": COUNTS}, "iscrowd": True}
    objects[3] |= {"area": 0, "bbox": [-5.5, 80, 20, 30]}
    content = {"images": [{"id": 0.0, "file_name": "0.png", "width": 100.0, "height": 90}], "annotations": objects}
    text = json.dumps({**content, "categories": CATEGORIES}, ensure_ascii=False)
    (tmp_path / "annotations.json").write_text(text, encoding="utf-8-sig")
    coco = read_annotations(tmp_path / "annotations.json", masks=True)
    assert [entry["iscrowd"] for entry in coco.imgToAnns[0]] == [0, 0, 1, 0]
    assert [entry["area"] for entry in coco.imgToAnns[0]] == [400, 400, 400, 0]
    assert all(np.array_equal(coco.annToMask(entry), MASK) for entry in coco.imgToAnns[0][1:3])
    # COCO's evaluation takes an object of the id 0 for one that nothing matches.
    truth = read_annotations(annotations(tmp_path, [rectangle(0, 0, 7, 10, 10, 20, 20)]), masks=False)
    assert average_precision(truth, [detection(0.9, 10, 10, 20, 20)], [0], "bbox")["ap"] == pytest.approx(1)


def test_boxes_without_area_are_left_out_with_a_warning(options, tmp_path, caplog):
    """Also one that has an area until float32 rounds it away, and torchvision refuses it."""
    boxes = [(10, 10, 20, 20), (10, 10, 0, 20), (100, 5, 9, 9), (-9, 5, 9, 9), (50.00001, 5, 1e-6, 9)]
    objects = [rectangle(n, 0, 7, *box) for n, box in enumerate(boxes)]
    path = str(annotations(tmp_path, objects))
    config = DetectionConfig(**{**options, "train_annotations": path})
    contents = [load_annotations(name) for name in (path, config.validation_annotations)]
    check_annotations(*contents, config)
    (record,) = caplog.records
    assert f"{path}: 4 annotations have no area in their picture: 1, 2, 3, 4." in record.getMessage()
    assert [entry["bbox"] for entry in objects_of(make_index(contents[0]), 0)] == [[10, 10, 20, 20]]


@pytest.mark.parametrize(
    "content",
    ["no json", "[1, 2]", '{"images": [], "annotations": [], "categories": []}', '{"images": {}, "annotations": []}'],
)
def test_files_of_another_format_are_named(tmp_path, content):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(ValueError, match="labels.json cannot be read as annotations in COCO's format"):
        read_annotations(tmp_path / "labels.json", masks=False)


def test_other_categories_and_no_objects_are_named(options, tmp_path):
    green = annotations(tmp_path, [rectangle(1, 0, 7, 1, 1, 9, 9)], categories=[{"id": 7, "name": "green"}])
    config = DetectionConfig(**{**options, "validation_annotations": str(green)})
    contents = [load_annotations(name) for name in (config.train_annotations, green)]
    with pytest.raises(ValueError, match="have not the same categories; in one of them only.*green"):
        check_annotations(*contents, config)
    path = str(annotations(tmp_path, [rectangle(1, 0, 7, 1, 1, 9, 9, iscrowd=1), rectangle(2, 0, 7, 1, 1, 0, 9)]))
    config.train_annotations = config.validation_annotations = path
    with pytest.raises(ValueError, match="annotations.json has no objects that have an area and are no crowds"):
        check_annotations(load_annotations(path), load_annotations(path), config)
    coco = make_index(load_annotations(annotations(tmp_path, [rectangle(1, 0, 7, 1, 1, 9, 9)], images=9)))
    config.max_eval_samples = 1
    with pytest.raises(ValueError, match="annotations.json has no objects to evaluate on"):
        detection_loaders(coco, coco, config, 0, 1)


def test_pictures_that_do_not_fit_are_named_together(tmp_path, caplog):
    """From their headers alone: the pixels of none of these files are there."""
    images = [(100, 90), (90, 100), (100, 90), (90, 100), (100, 90), (100, 90), (100, 90)]
    names = ["right.jpg", "other.png", "deep.png", "turned.jpg", "none.jpg", "text.jpg", "half_turn.jpg"]
    quarter, half = Image.Exif(), Image.Exif()
    quarter[ExifTags.Base.Orientation], half[ExifTags.Base.Orientation] = 6, 3
    Image.new("RGB", (100, 90)).save(tmp_path / names[0])
    Image.new("RGB", (100, 90)).save(tmp_path / names[1])
    Image.new("I;16", (100, 90)).save(tmp_path / names[2])
    Image.new("RGB", (90, 100)).save(tmp_path / names[3], exif=quarter)
    (tmp_path / names[5]).write_text("no picture")
    Image.new("RGB", (100, 90)).save(tmp_path / names[6], exif=half)
    for name in names:
        if (tmp_path / name).exists():
            content = (tmp_path / name).read_bytes()
            (tmp_path / name).write_bytes(content[: content.find(b"IDAT") + 8 if b"IDAT" in content else -100])
    rows = [
        {"image": {"bytes": None, "path": str(tmp_path / name)}, "width": width, "height": height}
        for name, (width, height) in zip(names, images)
    ]
    features = Features({"image": ImageColumn(decode=False), "width": Value("int64"), "height": Value("int64")})
    data = Dataset.from_list(rows, features)
    with pytest.raises(ValueError) as raised:
        check_pictures(data, data.select([0]))
    lines = str(raised.value).splitlines()
    assert lines[0] == "the data set has 5 problems:"
    assert lines[1].endswith("other.png is 100 x 90, the annotations say 90 x 100")
    assert "deep.png cannot be used: its pixels are of the mode I;16" in lines[2]
    assert "turned.jpg is 100 x 90 (stored as 90 x 100, and turned" in lines[3]
    assert "EXIF orientation 6), the annotations say 90 x 100. " in lines[3] and "remove the EXIF" in lines[3]
    assert lines[4].endswith("none.jpg cannot be used: there is no such file")
    assert "text.jpg cannot be used: it cannot be read" in lines[5]

    check_pictures(data.select([0]), data.select([6]))
    (record,) = caplog.records
    assert "1 pictures have an EXIF orientation" in record.getMessage() and "half_turn.jpg" in record.getMessage()


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
