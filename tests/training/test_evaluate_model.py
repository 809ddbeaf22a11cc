"""training/evaluate_model.py: its results against scikit-learn, and its files."""

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import onnx
import pytest
import rednet
import torch
from datasets import load_dataset
from huggingface_hub import EvalResult, ModelCard
from PIL import Image
from rednet.export import export_model
from rednet.hub import check_hub_folder, save_hub_folder
from rednet.hub.cards import add_results, imagenet_card, make_card
from rednet.training.evaluate_model import EvaluationConfig, confused_pairs, main, match_labels, unique
from rednet.training.figures.trade_off import read_result
from rednet.training.options.models import check_model_name
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, log_loss, recall_score, top_k_accuracy_score
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


@pytest.mark.parametrize(
    "labels, names, words",
    [
        (["cat", "dgo"], ["cat", "dog"], ["data has the class 'dgo', which model lacks (did you mean dog?)"]),
        (["cat"], ["dog", "cat"], ["model has the class 'dog', which data lacks"]),
        (["cat", "dog"], ["cat", "dog", "cat"], ["model has 2 classes named 'cat'", "--labels_by_number"]),
    ],
)
def test_different_classes_are_named(labels, names, words):
    config = EvaluationConfig(model_name_or_path="model", dataset_name="data")
    with pytest.raises(ValueError) as raised:
        match_labels(labels, names, config)
    assert all(word in str(raised.value) for word in words)


def test_classes_are_matched_by_name_or_by_number():
    config = EvaluationConfig(model_name_or_path="model", dataset_name="data")
    assert match_labels(["cat", "dog", "cow"], ["cow", "cat", "dog"], config) == [1, 2, 0]
    assert match_labels(None, ["cow", "cat", "dog"], config) == [0, 1, 2]
    config.labels_by_number = True
    assert match_labels(["n01", "n02"], ["cow", "cat"], config) == [0, 1]
    with pytest.raises(ValueError, match=r"data has 1 class\(es\), but model has 2"):
        match_labels(["n01"], ["cow", "cat"], config)


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
