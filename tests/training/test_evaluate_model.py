"""training/evaluate_model.py: its results against scikit-learn, and its files."""

import csv
import io
import json
import multiprocessing
import xml.etree.ElementTree as ET
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import rednet
import torch
import torch.nn.functional as F
from datasets import ClassLabel, Dataset, Features, load_dataset
from datasets import Image as ImageFeature
from huggingface_hub import EvalResult, ModelCard
from PIL import Image
from rednet.export import export_model
from rednet.hub import check_hub_folder, save_hub_folder
from rednet.hub.cards import add_results, imagenet_card, make_card
from rednet.training.data.imagenet import RealLabels, match_labels
from rednet.training.engine.results_table import add_row, has_row
from rednet.training.evaluate_model import confused_pairs, describe_environment, main, parse_config, unique
from rednet.training.figures.trade_off import read_result
from rednet.training.options.models import check_model_name
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, log_loss, recall_score, top_k_accuracy_score
from timm.data import ImageNetInfo, RealLabelsImagenet
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
)

from card_metadata import check, metadata
from processes import together


NAMES = [f"number {n}" for n in range(10)]


def expected_calibration_error(hits: np.ndarray, confidences: np.ndarray) -> float:
    """15 bins; scikit-learn's curve has the accuracy and the mean confidence of those that are not empty."""
    accuracy, confidence = calibration_curve(hits, confidences, n_bins=15)
    images = np.histogram(confidences, 15, (0, 1))[0]
    return np.average(np.abs(accuracy - confidence), weights=images[images > 0])


SUFFIXES = {"onnxruntime": ".onnx", "openvino": ".xml", "aoti": ".pt2"}
FORMATS = {"onnxruntime": "onnx", "openvino": "openvino", "aoti": "aoti"}


@pytest.mark.parametrize("runtime", SUFFIXES)
def test_an_exported_file_has_the_accuracy_of_its_model(runtime, digits, folder, expected, tmp_path, capsys):
    labels, probabilities = expected
    file = tmp_path / f"digits{SUFFIXES[runtime]}"
    export_model(rednet.load_model(folder), file, FORMATS[runtime])
    main([*options(digits, folder, tmp_path / "run"), "--runtime", runtime, "--exported_file", str(file)])
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["eval_accuracy"] == pytest.approx(top_k_accuracy_score(labels, probabilities, k=1), abs=1e-9)
    assert results["eval_loss"] == pytest.approx(log_loss(labels, probabilities), rel=1e-4)
    assert results["runtime"] == runtime and results["exported_file"] == str(file)
    assert results["images_per_second"] > 0 and results["batch_size"] == 64 and results["threads"] > 0
    assert results["parameters"] == rednet.count_parameters(rednet.load_model(folder))
    assert "peak_memory_bytes" not in results and "images/s in batches of 64" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--runtime", "onnxruntime"], "--exported_file together"),
        (["--exported_file", "a.onnx"], "--exported_file together"),
        (["--runtime", "tflite", "--exported_file", "a.tflite"], "--runtime"),
        (["--runtime", "openvino", "--exported_file", "a.onnx"], "a.onnx, expected a name that ends in .xml"),
        (["--runtime", "onnxruntime", "--exported_file", "nowhere.onnx"], "no such file: nowhere.onnx"),
        (["--runtime", "openvino", "--exported_file", "half.xml"], "no such file: half.bin"),
        (
            ["--runtime", "onnxruntime", "--exported_file", "other.onnx", "--mixed_precision", "bf16"],
            "--mixed_precision excludes",
        ),
        (["--runtime", "onnxruntime", "--exported_file", "other.onnx"], "onnxruntime cannot run other.onnx"),
        (["--runtime", "openvino", "--exported_file", "other.xml"], "openvino cannot run other.xml"),
        (["--runtime", "aoti", "--exported_file", "other.pt2"], "aoti cannot run other.pt2"),
    ],
)
def test_files_that_a_runtime_cannot_run_are_refused(arguments, words, digits, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("half.xml", "other.onnx", "other.xml", "other.bin", "other.pt2"):
        Path(name).write_text("not a model")
    with pytest.raises(SystemExit) as stopped:
        main([*options(digits, folder, tmp_path / "run"), *arguments])
    assert words in f"{stopped.value} {capsys.readouterr().err}"
    assert not (tmp_path / "run").exists()


def test_a_file_with_other_classes_is_refused(digits, folder, tmp_path):
    """The mean of each color as logits: a model of three classes."""
    images, logits = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("pixel_values", ["batch", 3, "height", "width"]), ("logits", ["batch", 3]))
    )
    mean = onnx.helper.make_node("ReduceMean", ["pixel_values"], ["logits"], axes=[2, 3], keepdims=0)
    graph = onnx.helper.make_graph([mean], "other", [images], [logits])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), tmp_path / "other.onnx")
    arguments = ["--runtime", "onnxruntime", "--exported_file", str(tmp_path / "other.onnx")]
    with pytest.raises(SystemExit, match=r"returns \(1, 3\) for a picture, expected logits of shape \(1, 10\)"):
        main([*options(digits, folder, tmp_path / "run"), *arguments])


def test_confused_pairs():
    assert confused_pairs(np.array([[1, 0, 2], [0, 0, 0], [3, 0, 9]])) == [(2, 0), (0, 2)]


def test_classes_of_the_same_name_are_distinguished():
    """Each is a column of a file."""
    assert unique(["cat", "dog"]) == ["cat", "dog"]
    assert unique(["crane", "cat", "crane"]) == ["crane (0)", "cat (1)", "crane (2)"]


@pytest.fixture(scope="module")
def digit_images(digits):
    return load_dataset(str(digits))


@pytest.fixture(scope="module")
def folder(digit_images, tmp_path_factory):
    """A Hub folder whose model knows the digits in falling order. Its classifier alone is trained."""
    torch.manual_seed(0)
    names = NAMES[::-1]
    config = rednet.RedNetConfig(
        embedding_size=32,
        hidden_sizes=[64],
        depths=[1],
        stem_stride=1,
        id2label=dict(enumerate(names)),
        label2id={name: n for n, name in enumerate(names)},
    )
    model = rednet.RedNetForImageClassification(config).eval()
    processor = ConvNextImageProcessor(size={"shortest_edge": 8}, crop_pct=1.0, do_convert_rgb=True)
    rows = digit_images["train"][:300]
    with torch.no_grad():
        features = model.rednet(**processor(rows["picture"], return_tensors="pt")).pooler_output.flatten(1)
        fitted = LogisticRegression(C=1e4, max_iter=300).fit(features, 9 - np.array(rows["digit"]))
        model.classifier.weight.copy_(torch.tensor(fitted.coef_))
        model.classifier.bias.copy_(torch.tensor(fitted.intercept_))
    measured = {"task_type": "image-classification", "dataset_type": "another", "dataset_name": "another"}
    results = [EvalResult(**measured, metric_type="accuracy", metric_name="Top-1", metric_value=0.25)]
    folder = tmp_path_factory.mktemp("model") / "last"
    save_hub_folder(folder, model, processor, make_card(config, "Digits", "digits", "Made.", "None.", results=results))
    return folder


def options(digits, folder, output_dir) -> list[str]:
    data = ["--dataset_name", str(digits), "--validation_split", "test", "--image_column_name", "picture"]
    data += ["--label_column_name", "digit", "--dataloader_num_workers", "0"]
    return ["--model_name_or_path", str(folder), *data, "--output_dir", str(output_dir)]


@pytest.fixture(scope="module")
def evaluated(digits, folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluated")
    main([*options(digits, folder, output), "--update_card"])
    return output


@pytest.fixture(scope="module")
def expected(digit_images, folder):
    """Labels and probabilities of all test images in the order of the digits, by the Auto classes."""
    processor, model = (c.from_pretrained(folder) for c in (AutoImageProcessor, AutoModelForImageClassification))
    with torch.no_grad():
        logits = model.eval()(**processor(list(digit_images["test"]["picture"]), return_tensors="pt")).logits
    return np.array(digit_images["test"]["digit"]), logits.double().softmax(1).flip(1).numpy()


def test_accuracy_and_calibration(evaluated, expected):
    labels, probabilities = expected
    results = json.loads((evaluated / "results.json").read_text())
    predictions = probabilities.argmax(1)
    assert 0.5 < results["eval_accuracy"] < 1 and results["eval_samples"] == len(labels) == 397
    values = {
        "eval_accuracy": top_k_accuracy_score(labels, probabilities, k=1),
        "eval_top_5_accuracy": top_k_accuracy_score(labels, probabilities, k=5),
        "eval_loss": log_loss(labels, probabilities),
        "eval_calibration_error": expected_calibration_error(labels == predictions, probabilities.max(1)),
    }
    assert {name: results[name] for name in values} == pytest.approx(values, rel=1e-5)


def test_classes(evaluated, expected):
    labels, probabilities = expected
    predictions = probabilities.argmax(1)
    head, *rows = csv.reader((evaluated / "confusion_matrix.csv").open())
    assert head[1:] == [row[0] for row in rows] == NAMES
    matrix = np.array([row[1:] for row in rows], int)
    assert np.array_equal(matrix, confusion_matrix(labels, predictions))
    rows = list(csv.DictReader((evaluated / "per_class.csv").open()))
    assert [row["class"] for row in rows] == NAMES and [int(row["images"]) for row in rows] == list(matrix.sum(1))
    assert [float(row["accuracy"]) for row in rows] == pytest.approx(recall_score(labels, predictions, average=None))
    cells = ET.parse(evaluated / "confusion_matrix.svg").iter("{http://www.w3.org/2000/svg}g")
    assert {f"{row} {column}" for row, column in np.ndindex(10, 10)} < {cell.get("id") for cell in cells}
    with Image.open(evaluated / "confusion_matrix.png") as picture:
        assert picture.width > 800


def test_cost(evaluated, folder):
    results = json.loads((evaluated / "results.json").read_text())
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert results["parameters"] == rednet.count_parameters(model)
    assert results["macs"] == rednet.count_macs(model, 8, 8) and results["image_size"] == [8, 8]
    assert results["latency_ms"] > 0 and results["images_per_second"] > 0 and results["batch_size"] == 64
    # At least the stem's first two activations of the batch, 16 channels of float32 in full size.
    assert results["peak_memory_bytes"] >= 2 * 64 * 16 * 8 * 8 * 4
    assert results["threads"] == torch.get_num_threads() and results["torch"] == torch.__version__
    assert {"device", "date", "transformers", "model", "dataset", "split"} < results.keys()


def test_the_card_has_the_results(evaluated, folder, digits):
    results = json.loads((evaluated / "results.json").read_text())
    card = ModelCard.load(folder / "README.md")
    found = {(r.dataset_name, r.dataset_split, r.metric_name): r.metric_value for r in card.data.eval_results}
    assert found == {
        ("another", None, "Top-1"): 0.25,
        (digits.name, "test", "Top-1"): results["eval_accuracy"],
        (digits.name, "test", "Top-5"): results["eval_top_5_accuracy"],
    }
    assert check(str(card)) == ([], []) and metadata(str(card))["pipeline_tag"] == "image-classification"
    row = f"| Top-1 on {digits.name} | {100 * results['eval_accuracy']:.2f} % (measured with this repository's weights) |"
    assert card.text.count(row) == 1 and "| Top-1 on another | 25.00 %" in card.text
    check_hub_folder(folder)


def test_measured_results_take_the_place_of_published_ones():
    config = rednet.RedNetConfig(num_labels=1000)
    card = imagenet_card(config, "rednet-50", "authors")
    assert "were not measured again" in card.text and "| Top-1 on ImageNet-1k | 78.35 % (as published" in card.text
    names = {"dataset_type": "ILSVRC/imagenet-1k", "dataset_name": "imagenet-1k", "dataset_split": "validation"}
    other = {"dataset_type": "imagenet-v2", "dataset_name": "v2", "metric_type": "accuracy", "metric_name": "Top-1"}
    add_results(card, [EvalResult("image-classification", **other, metric_value=0.5)])
    assert "were not measured again" in card.text
    for value in (0.7, 0.75):  # the second time as well
        one = EvalResult(
            "image-classification", **names, metric_type="accuracy", metric_value=value, metric_name="Top-1"
        )
        add_results(card, [one])
    card = ModelCard(str(card))
    found = [(result.dataset_name, result.metric_value, result.source_url) for result in card.data.eval_results]
    assert found == [("v2", 0.5, None), ("imagenet-1k", 0.75, None)]
    measured = "(measured with this repository's weights)"
    rows = [line for line in card.text.splitlines() if line.startswith("| Top-")]
    assert rows == [f"| Top-1 on v2 | 50.00 % {measured} |", f"| Top-1 on imagenet-1k | 75.00 % {measured} |"]
    assert "were not measured again" not in card.text


def test_trade_off_reads_the_results(evaluated, digits):
    result = read_result(evaluated / "results.json", "mine")
    results = json.loads((evaluated / "results.json").read_text())
    assert result["top_1"] == 100 * results["eval_accuracy"] and result["macs"] == results["macs"] / 1e9
    assert result["data_set"] == f"{digits.name}, test, 397 images"


def test_two_processes_have_the_same_results(root, digits, folder, tmp_path):
    arguments = [*options(digits, folder, tmp_path / "run"), "--per_device_eval_batch_size", "30"]
    arguments += ["--max_eval_samples", "100"]
    main([*arguments[:-5], str(tmp_path / "alone"), *arguments[-4:]])
    text = together(root, tmp_path / "output.txt", arguments, "rednet.training.evaluate_model")
    alone, both = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("alone", "run"))
    names = [name for name in alone if name.startswith("eval_")]
    assert alone["eval_samples"] == 100 and len(names) == 5
    assert {name: both[name] for name in names} == pytest.approx({name: alone[name] for name in names}, rel=1e-5)
    assert "taken for number" in text


def test_another_architecture_on_folders_of_images(digit_images, tmp_path, capsys):
    """A ResNet of Transformers; two classes that it knows under other names."""
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=2)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.8).save_pretrained(tmp_path / "resnet")
    for n, row in enumerate(digit_images["test"].select(range(20))):
        path = tmp_path / f"pictures/{'even' if n % 2 == 0 else 'odd'}/{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        row["picture"].save(path)
    arguments = ["--model_name_or_path", str(tmp_path / "resnet"), "--validation_dir", str(tmp_path / "pictures")]
    arguments += ["--output_dir", str(tmp_path / "run"), "--dataloader_num_workers", "0"]
    with pytest.raises(SystemExit, match="has the class 'even'.*which .*resnet lacks.*--labels_by_number"):
        main(arguments)
    main([*arguments, "--labels_by_number"])
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["eval_samples"] == 20 and results["image_size"] == [32, 32] and results["eval_top_5_accuracy"] == 1
    assert "top-1" in capsys.readouterr().out


def imagenet_names() -> list[str]:
    info = ImageNetInfo()
    return [info.index_to_description(n) for n in range(1000)]


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A model with random weights that knows the classes of ImageNet as models of Transformers name them."""
    torch.manual_seed(0)
    names = dict(enumerate(imagenet_names()))
    config = rednet.RedNetConfig(embedding_size=32, hidden_sizes=[64], depths=[1], stem_stride=1, id2label=names)
    model = rednet.RedNetForImageClassification(config)
    model.classifier.weight.data.mul_(100)  # so that predictions depend on the picture
    folder = tmp_path_factory.mktemp("imagenet")
    model.save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 8}, crop_pct=1.0, do_convert_rgb=True).save_pretrained(folder)
    return folder


def logits_of(folder, images: list[Image.Image]) -> torch.Tensor:
    processor, model = (c.from_pretrained(folder) for c in (AutoImageProcessor, AutoModelForImageClassification))
    with torch.no_grad():
        return model.eval()(**processor([image.convert("RGB") for image in images], return_tensors="pt")).logits


# Numbers of classes of ImageNet-1k, of which two are called "crane", as folders of a set that has these alone.
SUBSET = {"n01440764": 0, "n02012849": 134, "n03126707": 517, "n07749582": 951, "n02085620": 151, "n15075141": 999}


def test_a_part_of_the_classes_and_a_table_of_results(imagenet, digit_images, tmp_path, capsys):
    """As for ImageNet-A and -R: folders of WordNet ids, whose logits alone are compared."""
    rows = digit_images["test"].select(range(36))["picture"]
    labels = []
    for n, image in enumerate(rows):
        name = sorted(SUBSET)[n % 6]
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / f"data/{name}/{n}.png")
        labels.append(SUBSET[name])
    logits = torch.full((36, 1000), -torch.inf)
    kept = list(SUBSET.values())
    logits[:, kept] = logits_of(imagenet, rows)[:, kept]
    ranked, labels = logits.argsort(1, descending=True), torch.tensor(labels)
    table = tmp_path / "results.csv"
    arguments = ["--model_name_or_path", str(imagenet), "--validation_dir", str(tmp_path / "data")]
    arguments += ["--dataloader_num_workers", "0", "--results_csv", str(table), "--output_dir"]
    main([*arguments, str(tmp_path / "run")])
    results = json.loads((tmp_path / "run/results.json").read_text())
    hits = ranked[:, :5] == labels[:, None]
    assert 0 < results["eval_accuracy"] < 1
    assert results["eval_accuracy"] == pytest.approx(hits[:, 0].double().mean().item())
    assert results["eval_top_5_accuracy"] == pytest.approx(hits.any(1).double().mean().item())
    assert results["eval_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    assert results["classes"] == 6 and "on 36 images in 6 of the model's 1000 classes" in capsys.readouterr().out
    (row,) = csv.DictReader(table.open())
    assert float(row["eval_accuracy"]) == results["eval_accuracy"] and row["image_size"] == "8 x 8"
    assert row["model"] == str(imagenet) and row["dataset"] == str(tmp_path / "data") and row["real_labels"] == ""
    assert int(row["parameters"]) == results["parameters"] and float(row["images_per_second"]) > 0

    main([*arguments, str(tmp_path / "again")])  # it is there already
    assert "results.csv already has a row for" in capsys.readouterr().out and not (tmp_path / "again").exists()
    main([*arguments, str(tmp_path / "other"), "--max_eval_samples", "9"])
    main([*arguments, str(tmp_path / "others"), "--max_eval_samples", "9", "--seed", "1"])  # other pictures
    first, *parts = csv.DictReader(table.open())
    assert first == row
    assert [(part["eval_samples"], part["max_eval_samples"], part["seed"]) for part in parts] == [
        ("9", "9", "42"),
        ("9", "9", "1"),
    ]
    table.write_text("model,top1\n")
    with pytest.raises(SystemExit, match=r"results.csv has the columns \['model', 'top1'\]"):
        main([*arguments, str(tmp_path / "again")])


def test_several_labels_of_a_picture(imagenet, digit_images, tmp_path):
    """ImageNet-ReaL, against timm: labels that are right, the second best, others, and none."""
    images = digit_images["test"].select(range(40))["picture"]
    logits = logits_of(imagenet, images)
    ranked = logits.argsort(1, descending=True).tolist()
    real = [[] for _ in range(50_000)]
    for n, classes in enumerate(ranked):
        real[7 * n] = [[3, classes[0]], [classes[20], classes[3]], [classes[9], classes[7], classes[500]], []][n % 4]
    (tmp_path / "real.json").write_text(json.dumps(real))
    names = [f"ILSVRC2012_val_{7 * n + 1:08}.JPEG" for n in range(40)]
    timm_labels = RealLabelsImagenet(names + [""] * 49_960, tmp_path / "real.json")
    timm_labels.add_result(logits)
    rows = []
    for n, (name, image) in enumerate(zip(names, images)):
        content = io.BytesIO()
        image.save(content, "PNG")
        name = name.replace(".JPEG", "_n01440764.JPEG") if n % 2 else name
        rows.append({"image": {"bytes": content.getvalue(), "path": name}, "label": n % 3})
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=ImageNetInfo().label_names())})
    (tmp_path / "data").mkdir()
    Dataset.from_list(rows, features).to_parquet(tmp_path / "data/validation.parquet")
    arguments = ["--model_name_or_path", str(imagenet), "--dataset_name", str(tmp_path / "data")]
    arguments += ["--per_device_eval_batch_size", "3", "--dataloader_num_workers", "0"]
    arguments += ["--output_dir", str(tmp_path / "run"), "--real_labels", str(tmp_path / "real.json")]
    main(arguments)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["eval_samples"] == 30 and results["real_labels"] == str(tmp_path / "real.json")
    expected = timm_labels.get_accuracy()
    assert 100 * results["eval_accuracy"] == pytest.approx(expected[1]) and expected[1] == pytest.approx(100 / 3)
    assert 100 * results["eval_top_5_accuracy"] == pytest.approx(expected[5]) and expected[5] == pytest.approx(200 / 3)


def test_labels_of_timm_and_files_that_are_no_labels(tmp_path):
    labels = RealLabels("timm")
    assert labels.find("a/ILSVRC2012_val_00000002.JPEG") == [970, 795] and labels.num_labels == 1000
    assert labels.find("ILSVRC2012_val_00000001_n01751748.JPEG") == []
    for path in ("ILSVRC2012_val_00050001.JPEG", "1.png", None):
        with pytest.raises(
            ValueError, match=f"ILSVRC2012_val_00000001.JPEG ..., but a picture has {path or 'no name'}"
        ):
            labels.find(path)
    for text in ("[[0], [1]]", "[", "{}", json.dumps([0] * 50_000)):
        (tmp_path / "real.json").write_text(text)
        with pytest.raises(ValueError, match="real.json cannot be used, expected a list of the labels of 50,000 pict"):
            RealLabels(str(tmp_path / "real.json"))
    images = Dataset.from_dict({"image": ["ILSVRC2012_val_00000001.JPEG"]}, Features({"image": ImageFeature()}))
    labels.check(images, 1000, "data")
    with pytest.raises(ValueError, match="has labels up to 999, but data has 200 classes"):
        labels.check(images, 200, "data")


@pytest.mark.parametrize(
    "labels, names, by_number, words",
    [
        (["cat", "dgo"], ["cat", "dog"], False, "data has the class 'dgo', which model lacks (did you mean dog?)"),
        (["cat", "dog"], ["cat", "dog", "cat"], False, "model has 2 classes named 'cat'; --labels_by_number"),
        (["cat", "cat"], ["cat", "dog"], False, "data has 2 classes named 'cat'; --labels_by_number"),
        (["n01"], ["cow", "cat"], True, "data has 1 class(es), but model has 2"),
        (["0", "2"], ["cow", "cat"], True, "data has the classes 0, 2, but model has 2 classes, from 0 on"),
        (["1", "01"], ["cow", "cat"], True, "data has the classes 1, 01, but model has 2 classes, from 0 on"),
        (["n01440764"], ["LABEL_0"], False, "data has the class n01440764 (tench, Tinca tinca), which model lacks"),
        (["n99999999"], ["LABEL_0"], False, "data has the class n99999999, which is no WordNet id of ImageNet"),
        (["n00004475"], ["LABEL_0"] * 1000, True, "data has classes that ImageNet-1k lacks: n00004475"),
    ],
)
def test_classes_that_do_not_match_are_named(labels, names, by_number, words):
    with pytest.raises(ValueError) as raised:
        match_labels(labels, names, "data", "model", by_number)
    assert words in str(raised.value)


def test_classes_are_matched_by_name_by_number_or_by_wordnet_id():
    match = partial(match_labels, source="data", model="model")
    assert match(["cat", "dog", "cow"], ["cow", "cat", "dog"]) == [1, 2, 0]
    assert match(["dog", "cat"], ["cow", "cat", "dog"]) == [2, 1]
    assert match(None, ["cow", "cat", "dog"]) == [0, 1, 2]
    assert match(["n01", "n02"], ["cow", "cat"], by_number=True) == [0, 1]
    assert match(["0", "1", "10", "2"], ["a"] * 12, by_number=True) == [0, 1, 10, 2]  # folders of ImageNet-V2
    subset, numbers = list(SUBSET), list(SUBSET.values())
    assert match(subset, imagenet_names()) == match(subset, ["LABEL"] * 1000, by_number=True) == numbers
    assert match(["n01440764", "n07749582"], ["lemon", "tench, Tinca tinca", "cow"]) == [1, 0]
    assert match(["n07749582", "n01440764"], ["n01440764", "n01443537", "n07749582"]) == [2, 0]
    assert match(["n07749582", "n01440764"], ["lemon", "tench"], by_number=True) == [0, 1]


def test_rows_of_a_table_are_added_at_the_same_time(tmp_path):
    """By four processes; a row of the same model and data set is replaced."""
    path = tmp_path / "tables/results.csv"
    with ProcessPoolExecutor(4, multiprocessing.get_context("fork")) as pool:
        for done in [pool.submit(add_row, path, {"model": n % 20, "eval_accuracy": n % 20 / 2}) for n in range(80)]:
            done.result()
    rows = list(csv.DictReader(path.open()))
    assert sorted((row["model"], row["eval_accuracy"]) for row in rows) == sorted(
        (str(n), str(n / 2)) for n in range(20)
    )
    assert has_row(path, {"model": 3}) and not has_row(path, {"model": 3, "split": "test"})
    add_row(path, {"model": 3, "eval_accuracy": 0.5, "image_size": [8, 9]})
    (row,) = [row for row in csv.DictReader(path.open()) if row["model"] == "3"]
    assert (row["eval_accuracy"], row["image_size"], row["split"]) == ("0.5", "8 x 9", "")


@pytest.mark.parametrize(
    "more",
    [["--dataset_config_name", "fog"], ["--labels_by_number"], ["--train_val_split", "0.1"]],
    ids=lambda more: more[0],
)
def test_a_row_is_of_one_configuration_and_assignment_of_classes(more, start, tmp_path):
    """ImageNet-C has a configuration for each corruption: each is evaluated."""
    model = AutoModelForImageClassification.from_pretrained(start)
    arguments = ["--model_name_or_path", str(start), "--dataset_name", "imagenet-c"]
    one, other = (
        describe_environment(parse_config([*arguments, *given]), model, torch.device("cpu")) for given in ([], more)
    )
    add_row(tmp_path / "results.csv", one)
    assert has_row(tmp_path / "results.csv", one) and not has_row(tmp_path / "results.csv", other)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--dataset_name", "a"], ["--model_name_or_path"]),
        (["--model_name_or_path", "a"], ["--dataset_name", "--validation_dir"]),
        (["--model_name_or_path", "a", "--validation_dir", "nowhere"], ["--validation_dir nowhere", "no such folder"]),
        (["--model_name_or_path", "a", "--dataset_name", "b", "--update_card"], ["--update_card", "a/README.md"]),
        (["--model_name_or_path", "a", "--train_dir", "."], ["--train_val_split"]),
        (
            ["--model_name_or_path", "CARD", "--update_card", "--max_eval_samples", "9"],
            ["excludes --max_eval_samples"],
        ),
        (["--model_name_or_path", "CARD", "--update_card", "--real_labels", "timm"], ["excludes --real_labels"]),
        (["--model_name_or_path", "a", "--datset_name", "b"], ["--datset_name", "did you mean --dataset_name?"]),
    ],
)
def test_wrong_options_are_named(arguments, words, folder, capsys):
    arguments = [str(folder) if argument == "CARD" else argument for argument in arguments]
    if str(folder) in arguments:
        arguments += ["--dataset_name", "b"]
    with pytest.raises(SystemExit):
        main(arguments)
    error = capsys.readouterr().err
    assert all(word in error for word in words)


def test_folders_that_cannot_be_written_are_named_first(tmp_path):
    (tmp_path / "file").touch()
    data = ["--model_name_or_path", "nowhere", "--validation_dir", str(tmp_path)]
    for option in ("--output_dir", "--results_csv"):
        with pytest.raises(SystemExit, match="file is not a folder"):
            main([*data, option, str(tmp_path / "file/results")])


@pytest.mark.parametrize("content", [b"---\na: [\n---\n", b"---\n- a\n---\n", b"---\nmodel-index: 5\n---\n", b"\xff"])
def test_a_damaged_card_is_named_first(content, tmp_path, capsys):
    (tmp_path / "README.md").write_bytes(content)
    with pytest.raises(SystemExit):
        main(["--model_name_or_path", str(tmp_path), "--validation_dir", str(tmp_path), "--update_card"])
    assert f"--update_card: {tmp_path}/README.md has invalid metadata" in capsys.readouterr().err


def test_missing_models_are_named(tmp_path, folder):
    (tmp_path / "best").mkdir()
    for name in (tmp_path / "bets", tmp_path / "nowhere/at/all"):
        with pytest.raises(ValueError, match=f"there is no folder {name}"):
            check_model_name(str(name))
    with pytest.raises(ValueError, match=r"did you mean .*/best\?"):
        check_model_name(str(tmp_path / "bets"))
    check_model_name("microsoft/resnet-50")
    check_model_name(str(folder))


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and "--labels_by_number" in text and "image classifier" in text


def test_models_for_gray_pictures_are_refused(start, digits, tmp_path):
    """Images are read as RGB."""
    config = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(tmp_path / "gray")
    AutoImageProcessor.from_pretrained(start).save_pretrained(tmp_path / "gray")
    with pytest.raises(SystemExit, match="gray has num_channels 1, expected 3"):
        main(["--model_name_or_path", str(tmp_path / "gray"), "--dataset_name", str(digits)])
