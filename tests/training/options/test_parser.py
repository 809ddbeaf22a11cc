"""Options from a file and from the command line."""

from dataclasses import fields
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rednet.training import ablate, evaluate_model, finetune, train_detection, train_segmentation
from rednet.training.options.parser import parse_options
from rednet.training.options.scripts import DetectionConfig, SegmentationConfig, TrainingConfig
from rednet.training.train import parse_config


REQUIRED = ["--config_name", "model.json", "--dataset_name", "pictures"]


def test_help_shows_the_defaults_that_are_values(capsys):
    with pytest.raises(SystemExit):
        parse_config(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: 0.8)" in text and "(default: False)" in text
    assert "(default: )" not in text and "(default: None)" not in text


def test_command_line_wins_over_the_file(options):
    path, values = options
    config = parse_config(["--config", str(path), "--learning_rate", "3e-2", "--image_mean", "0.1", "0.2", "0.3"])
    assert config == TrainingConfig(**{**values, "learning_rate": 0.03, "image_mean": [0.1, 0.2, 0.3]})


@pytest.mark.parametrize(
    "text, words",
    [
        ("learning_rat: 0.1", ["recipe.yaml: unknown option --learning_rat (did you mean --learning_rate?)"]),
        ("num_train_epochs: true", ["recipe.yaml: --num_train_epochs is true, expected an integer of at least 1"]),
        ("logging_steps: 0", ["--logging_steps is 0"]),
        ("train_dir: pictures", ["one of", "--dataset_name", "--train_dir"]),
        ("validation_dir: pictures", ["--validation_dir", "--train_dir"]),
        ("train_val_split: 5", ["--train_val_split is 5,", "between 0 and 1"]),
        ("num_train_epochs: many", ["--num_train_epochs is many, expected an integer"]),
        ("learning_rate: fast", ["--learning_rate is fast, expected a finite number above 0"]),
        ("checkpointing_steps: 0", ["checkpointing_steps", "0"]),
        ("image_mean: 0.5", ["image_mean", "0.5"]),
        ("checkpointing_steps: often", ["checkpointing_steps", "often", "epoch"]),
        ("config_name: null", ["--model_name_or_path", "--config_name"]),
        ("dataset_name: ''", ["--dataset_name"]),
        ("lr_steps: [8, 11", ["recipe.yaml is not YAML", "line 3"]),
        ("lr_steps: [8, x]", ["--lr_steps is 8 x, expected one or more integers"]),
        ("image_std: [1, many, 1]", ["--image_std is 1 many 1, expected 3 finite numbers above 0"]),
        ("max_train_steps: 0", ["--max_train_steps is 0", "at least 1"]),
        ("per_device_eval_batch_size: 0", ["--per_device_eval_batch_size is 0", "at least 1"]),
        ("lr_scheduler_type: linear", ["--lr_scheduler_type is linear, expected one of cosine, polynomial, step"]),
        ("mixed_precision: fp61", ["--mixed_precision is fp61, expected one of no, bf16, fp16 (did you mean fp16?)"]),
        ("label_smoothing: 1", ["--label_smoothing is 1,", "below 1"]),
        ("label_smoothing: nan", ["--label_smoothing is nan", "below 1"]),
        ("label_smoothing: .nan", ["--label_smoothing is .nan", "below 1"]),
        ("learning_rate: inf", ["--learning_rate is inf", "a finite number above 0"]),
        ("learning_rate: -0.1", ["--learning_rate is -0.1"]),
        ("learning_rate: true", ["--learning_rate is true", "number"]),
        ("image_mean: [0.5]", ["--image_mean is 0.5, expected 3 finite numbers"]),
        ("image_mean: [0.5, nan, 0.5]", ["--image_mean is 0.5 nan 0.5"]),
        ("image_std: [0.2, 0, 0.2]", ["--image_std is 0.2 0 0.2", "above 0"]),
        ("image_std: [1, true, 1]", ["--image_std is 1 true 1"]),
        ("random_flip: 1.5", ["--random_flip is 1.5", "from 0 to 1"]),
        ("crop_pct: 0", ["--crop_pct is 0,", "above 0"]),
        ("ema_decay: 1.0", ["--ema_decay is 1.0", "below 1"]),
        ("min_learning_rate: 1", ["--min_learning_rate is 1, expected at most --learning_rate 0.8"]),
        ("opt_betas: [0.9, 0.95]", ["--opt_betas is for the optimizers adamw, lamb and muon, but --optimizer is sgd"]),
        ("opt_betas: [0.9]", ["--opt_betas is 0.9, expected two numbers from 0 to below 1"]),
        ("clip_mode: agc", ["--clip_mode agc requires --max_grad_norm"]),
        ("ema_warmup: true", ["--ema_warmup requires --ema_decay"]),
        ("bce_target_thresh: 0.2", ["--bce_target_thresh is for --loss bce, but --loss is cross_entropy"]),
        ("momentum: 1", ["--momentum is 1,", "below 1"]),
        ("mixup_alpha: -1", ["--mixup_alpha is -1,", "at least 0"]),
        ("auto_augment: rand-m9-x3", ["--auto_augment is rand-m9-x3", "trivial", "rand-m7-mstd0.5-inc1"]),
        ("lr_steps: [0]", ["--lr_steps is 0,", "at least 1"]),
        ("lr_steps: [true]", ["--lr_steps is true"]),
        ("lr_steps: []", ["--lr_steps is empty, expected one or more"]),
        ("train_image_size: [8, 0]", ["--train_image_size is 8 0", "one or more integers of at least 1"]),
        (
            "train_image_size: [8, 9]\nmax_train_steps: 9",
            ["--train_image_size has 2 sizes, which share num_train_epochs: give"],
        ),
        ("image_size: [8, 8]", ["--image_size is 8 8, expected an integer of at least 1"]),
        ("nesterov: maybe", ["--nesterov is maybe, expected true or false"]),
        ("ema_decay: often", ["--ema_decay is often, expected a number from 0 to below 1 or null"]),
        ("learning_rate: null", ["--learning_rate is null, expected a finite number"]),
        ("dataset_name: null", ["--dataset_name is null, expected one value"]),
        ("config: other.yaml", ["unknown option --config"]),
        ("logging_steps: 5\nseed: 1\nlogging_steps: 9", ["recipe.yaml: --logging_steps is given 2 times"]),
        ("num_warmup_steps: -1", ["--num_warmup_steps is -1", "at least 0"]),
        ("seed: -1", ["--seed is -1"]),
        ("max_grad_norm: 0", ["--max_grad_norm is 0,", "above 0"]),
        ("output_dir: ''", ["--output_dir is '', expected the path of a folder"]),
        ("output_dir:", ["--output_dir is '', expected the path of a folder"]),
        (
            "train_split: validation\ntrain_val_split: 0.5",
            ["--train_split and --validation_split are both 'validation', expected different names"],
        ),
    ],
)
def test_wrong_options_are_named(text, words, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    lines = {"config_name": "config_name: a.json", "dataset_name": "dataset_name: b", text.partition(":")[0]: text}
    path.write_text("\n".join(lines.values()))
    with pytest.raises(SystemExit):
        parse_config(["--config", str(path)])
    error = capsys.readouterr().err
    assert all(word in error for word in words)


@pytest.mark.parametrize(
    "parse, text, words",
    [
        (train_segmentation.parse_config, "crop_size: [512]", ["--crop_size is 512, expected a height and a width"]),
        (
            train_segmentation.parse_config,
            "random_scale: [2, 1]",
            ["--random_scale is 2 1, expected a minimum and a maximum"],
        ),
        (
            train_segmentation.parse_config,
            "{config_name: a, dataset_name: b, ema_warmup: true}",
            ["--ema_warmup requires --ema_decay"],
        ),
        (
            train_detection.parse_config,
            "detector: yolo",
            ["--detector is yolo, expected one of fasterrcnn, maskrcnn, retinanet"],
        ),
        (train_detection.parse_config, "trainable_layers: 6", ["--trainable_layers is 6", "from 0 to 5"]),
        (finetune.parse_config, "train_sampling_strategy: sorted", ["sorted, expected one of random, sequential"]),
        (finetune.parse_config, "label_smoothing_factor: 1", ["--label_smoothing_factor is 1,", "below 1"]),
        (evaluate_model.parse_config, "mixed_precision: int8", ["int8, expected one of no, bf16, fp16"]),
        (ablate.main, "seeds: [-1]", ["--seeds is -1,", "at least 0"]),
    ],
)
def test_all_scripts_check_values(parse, text, words, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(SystemExit):
        parse(["--config", str(tmp_path / "recipe.yaml")])
    error = capsys.readouterr().err
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--lr_scheduler_type", "linear"], "--lr_scheduler_type is linear, expected one of cosine, polynomial, step"),
        (["--image_mean", "0.5", "0.5"], "--image_mean is 0.5 0.5, expected 3 finite numbers"),
        (["--seed"], "--seed is empty, expected an integer from 0"),
        (["--seed", "3", "recipe.yaml"], "--seed is 3 recipe.yaml, expected an integer from 0"),
        (["--optimizer", "adamw", "--opt_betas", "0.9", "1"], "--opt_betas is 0.9 1, expected two numbers from 0"),
        (["--no_nesterov", "false"], "--no_nesterov is false, expected no value"),
    ],
)
def test_values_on_the_command_line_are_checked(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_config([*REQUIRED, *arguments])
    assert f"error: {message}" in capsys.readouterr().err


def test_flags_need_no_value():
    config = parse_config([*REQUIRED, "--no_nesterov", "--torch-compile", "--sync_batch_norm", "false"])
    assert (config.nesterov, config.torch_compile, config.sync_batch_norm) == (False, True, False)


def test_a_recipe_needs_its_option(capsys):
    with pytest.raises(SystemExit):
        parse_config(["recipe.yaml"])
    assert "unknown argument recipe.yaml, expected --option value; a recipe is --config" in capsys.readouterr().err


def values_of(hint):
    """A strategy for the values that a type of an option allows."""
    if get_origin(hint) is Annotated:
        return values_of(get_args(hint)[0]).filter(hint.__metadata__[0].holds)
    if type(None) in get_args(hint):
        return st.none() | values_of(next(part for part in get_args(hint) if part is not type(None)))
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if get_origin(hint) is list:
        return st.integers(1, 3).flatmap(lambda n: st.lists(values_of(get_args(hint)[0]), min_size=n, max_size=n))
    words = st.text("abc09-_./=: #'[]{}é", min_size=1).filter(lambda word: word[0] != "-")
    return {
        bool: st.booleans(),
        int: st.integers(0, 5) | st.integers(0, 2**32 - 1),
        float: st.floats(0, 1) | st.floats(0, 1e6),
        str: words | st.sampled_from(["no", "1e-4", "007", "true", "epoch", "500"]),
    }[hint]


@pytest.mark.parametrize("kind", [TrainingConfig, SegmentationConfig, DetectionConfig])
def test_an_option_means_the_same_in_a_file_and_on_the_command_line(kind, tmp_path):
    hints = get_type_hints(kind, include_extras=True)
    path = tmp_path / "recipe.yaml"

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
    @given(st.data())
    def check(data):
        name = data.draw(st.sampled_from([field.name for field in fields(kind)]))
        value = data.draw(values_of(hints[name]))
        path.write_text(yaml.safe_dump({name: value}))
        words = {None: "null", True: "true", False: "false"}
        arguments = [f"--{name}", *map(str, value)] if isinstance(value, list) else [
            f"--{name}={words[value] if value is None or isinstance(value, bool) else value}"
        ]  # fmt: skip
        from_file, _ = parse_options(kind, ["--config", str(path)], None)
        from_command_line, _ = parse_options(kind, arguments, None)
        assert from_file == from_command_line == kind(**{name: value})

    check()


def test_a_value_of_the_file_can_be_reset_to_null(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("max_grad_norm: 1.0\nrandom_crop_min_scale: ~\nema_decay:\nconfig_name: a\ndataset_name: b")
    config = parse_config(["--config", str(path), "--max_grad_norm", "null"])
    assert (config.max_grad_norm, config.random_crop_min_scale, config.ema_decay) == (None, None, None)


def test_mappings_and_lists_reach_the_trainer(tmp_path):
    """Options of TrainingArguments."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1.0e-5}\nlabel_names: [labels]\n"
        "report_to: [tensorboard, wandb]\ndataset_name: b\nmodel_name_or_path: a"
    )
    config = finetune.parse_config(["--config", str(path)])
    assert config.lr_scheduler_kwargs == {"min_lr": 1e-5} and config.label_names == ["labels"]
    assert config.report_to == ["tensorboard", "wandb"]


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
    config = evaluate_model.parse_config(["--config", str(path), "--validation_dir", folder])
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
    [("--learning_rat", "--learning_rate"), ("--lerning-rate=3", "--learning_rate"), ("--xyz=1", "--help")],
)
def test_unknown_arguments_are_named(unknown, nearest, capsys):
    """Also beginnings of an option's name, which argparse would take for it."""
    with pytest.raises(SystemExit):
        parse_config([*REQUIRED, unknown, "0.1"])
    error = capsys.readouterr().err
    assert f"unknown option {unknown.split('=')[0].replace('g-', 'g_')}" in error and nearest in error


def test_missing_folders_are_named(capsys):
    with pytest.raises(SystemExit):
        parse_config(["--config_name", "model.json", "--train_dir", "nowhere"])
    assert "--train_dir nowhere: there is no such folder" in capsys.readouterr().err


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    """In a recipe and after `=`, no shell expands it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "recipe.yaml").write_text("output_dir: ~/runs/one\ntrain_dir: ~\nmodel_name_or_path: a~/b")
    config = parse_config(["--config=~/recipe.yaml", "--dataset_name=~/pictures"])
    assert config.output_dir == f"{tmp_path}/runs/one" and config.dataset_name == f"{tmp_path}/pictures"
    assert config.train_dir is None and config.model_name_or_path == "a~/b"


def test_text_that_is_no_json_is_named(capsys):
    with pytest.raises(SystemExit):
        finetune.parse_config(["--lr_scheduler_kwargs", "{min_lr: 1e-5}"])
    assert "--lr_scheduler_kwargs is {min_lr: 1e-5}, expected JSON" in capsys.readouterr().err


def test_missing_file_is_named(capsys):
    with pytest.raises(SystemExit):
        parse_config(["--config", "nowhere.yaml", *REQUIRED])
    assert "nowhere.yaml" in capsys.readouterr().err
