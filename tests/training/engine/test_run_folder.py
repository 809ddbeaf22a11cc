"""The files of a run."""

import json
import math
from dataclasses import asdict

import pytest
from rednet import RedNetConfig, RedNetForImageClassification
from rednet.training.engine.run_folder import append_log, check_inputs, check_options
from rednet.training.options.resumable import PATH_OPTIONS, RESUMABLE_OPTIONS
from rednet.training.options.scripts import DetectionConfig, SegmentationConfig, TrainingConfig
from rednet.training.utils.files import write_json


def test_what_is_written_is_json(tmp_path):
    """A skipped step of fp16 has a gradient of infinite norm, for which JSON has no word."""

    def strict(word):
        raise AssertionError(f"{word} is not JSON")

    values = {"loss": 0.5, "grad_norm": math.inf, "more": {"a": [math.nan, 1], "b": -math.inf}, "n": 3, "word": "NaN"}
    append_log(tmp_path / "log.jsonl", values)
    write_json(tmp_path / "results.json", values)
    expected = {"loss": 0.5, "grad_norm": None, "more": {"a": [None, 1], "b": None}, "n": 3, "word": "NaN"}
    for name in ("log.jsonl", "results.json"):
        assert json.loads((tmp_path / name).read_text(), parse_constant=strict) == expected


OPTIONS = asdict(TrainingConfig(train_dir="a", output_dir="b", eval_epochs=2))


def resume(folder, **changes):
    """Resumes a run with OPTIONS that its folder records, with changes."""
    check_options(str(folder), OPTIONS | changes, asdict(TrainingConfig()))


def test_options_that_a_resumed_run_may_change(tmp_path):
    write_json(tmp_path / "options.json", OPTIONS)
    resume(tmp_path)
    resume(tmp_path, output_dir="c", eval_epochs=3, logging_steps=7, train_dir="elsewhere/a", report_to="wandb")


def test_options_that_are_fixed(tmp_path):
    """The message has their old and new values, and says what may change."""
    write_json(tmp_path / "options.json", OPTIONS)
    with pytest.raises(SystemExit) as stopped:
        resume(tmp_path, seed=1, image_size=32, eval_epochs=3)
    before, after = str(stopped.value).split("may change")
    assert "image_size 224 -> 32" in before and "seed 42 -> 1" in before and "eval_epochs" not in before
    assert "eval_epochs" in after and "train_dir" in after and "train_annotations" not in after
    with pytest.raises(SystemExit, match="dataset_name .* -> .a., train_dir .a. -> None"):
        resume(tmp_path, train_dir=None, dataset_name="a")  # another kind of source has another order


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_damaged_options_are_named(text, tmp_path):
    (tmp_path / "options.json").write_text(text)
    with pytest.raises(SystemExit, match=f"error: {tmp_path}/options.json is damaged"):
        resume(tmp_path)


def test_a_run_of_an_older_version(tmp_path):
    """It had fewer options. A new one must have its default, and the others their recorded values."""
    before = {name: value for name, value in OPTIONS.items() if name not in ("max_grad_norm", "random_flip")}
    write_json(tmp_path / "options.json", before)
    resume(tmp_path)
    with pytest.raises(SystemExit, match="max_grad_norm None -> 1.0"):
        resume(tmp_path, max_grad_norm=1.0)
    write_json(tmp_path / "options.json", OPTIONS | {"forgotten": 3})
    with pytest.raises(SystemExit, match="forgotten 3 -> None"):
        resume(tmp_path)


def test_resumable_options_exist():
    options = {name for kind in (TrainingConfig, SegmentationConfig, DetectionConfig) for name in asdict(kind())}
    assert options >= RESUMABLE_OPTIONS | PATH_OPTIONS


def test_data_and_architecture_stay_the_same(tmp_path):
    """Whatever path they have."""
    sizes = {"embedding_size": 32, "hidden_sizes": [64], "depths": [1]}
    cats, dogs, wide = (
        RedNetForImageClassification(RedNetConfig(id2label={0: name}, stem_kernel_size=size, **sizes))
        for name, size in (("cat", 3), ("dog", 3), ("cat", 5))
    )
    write_json(tmp_path / "inputs.json", check_inputs(str(tmp_path), 10, 2, cats))
    cats.config.name_or_path = "elsewhere"
    assert check_inputs(str(tmp_path), 10, 2, cats) == json.loads((tmp_path / "inputs.json").read_text())
    for samples, model, words in (
        (11, cats, "10 -> 11 training images"),
        (10, dogs, "id2label.*cat.*dog"),
        (10, wide, "stem_kernel_size 3 -> 5"),
    ):
        with pytest.raises(ValueError, match=words):
            check_inputs(str(tmp_path), samples, 2, model)
    write_json(tmp_path / "inputs.json", check_inputs(str(tmp_path / "detector"), 10, 2, object()))
    check_inputs(str(tmp_path), 10, 2, object())


def test_the_number_of_processes_stays_the_same(tmp_path):
    """Batches, steps and learning rates depend on it. A finished run is only evaluated."""
    write_json(tmp_path / "inputs.json", check_inputs(str(tmp_path), 10, 8, object()))
    with pytest.raises(ValueError, match="8 -> 4 processes"):
        check_inputs(str(tmp_path), 10, 4, object())
    write_json(tmp_path / "results.json", {})
    assert check_inputs(str(tmp_path), 10, 1, object())["processes"] == 8
    (tmp_path / "results.json").unlink()
    write_json(tmp_path / "inputs.json", {"train_samples": 10, "architecture": {}})  # of an older version
    assert check_inputs(str(tmp_path), 10, 4, object())["processes"] == 4
