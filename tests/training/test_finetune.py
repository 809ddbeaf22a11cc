"""training/finetune.py: a RedNet for new classes, with Trainer."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from rednet.hub import check_hub_folder
from rednet.training.data.sources import load_images
from rednet.training.engine.optimizers import freeze, layer_groups
from rednet.training.engine.trainer import newest_checkpoint
from rednet.training.figures.curves import read_log
from rednet.training.figures.trade_off import read_result
from rednet.training.finetune import load_model, main, parse_config
from rednet.training.options.finetune import FinetuneConfig
from rednet.training.options.scripts import TrainingConfig
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from hub_server import HubServer
from processes import Training


RATE, DECAY = 5e-3, 0.5


@pytest.fixture(scope="module")
def recipe(start, digits, tmp_path_factory) -> list[str]:
    values = {
        "model_name_or_path": str(start),
        "dataset_name": str(digits),
        "validation_split": "test",
        "image_column_name": "picture",
        "label_column_name": "digit",
        "dataloader_num_workers": 0,
        "random_crop_min_scale": 0.9,
        "random_flip": 0.0,
        "per_device_train_batch_size": 20,
        "learning_rate": RATE,
        "lr_scheduler_type": "linear",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    path = tmp_path_factory.mktemp("recipe") / "digits.yaml"
    path.write_text(json.dumps(values))
    return ["--config", str(path)]


FROZEN = ["--frozen_stages", "1", "--layer_decay", str(DECAY), "--num_train_epochs", "2", "--logging_steps", "20"]
FROZEN += ["--label_smoothing_factor", "0.1", "--weight_decay", "0.01"]


@pytest.fixture(scope="module")
def finetuned(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetuned")
    main([*recipe, *FROZEN, "--output_dir", str(folder)])
    return folder


def test_learns_new_classes(finetuned, digits):
    results = json.loads((finetuned / "results.json").read_text())
    assert results["eval_accuracy"] > 0.5 and results["eval_samples"] == 397  # at random: 0.1
    assert results["steps"] == 2 * 70 and results["epochs"] == 2
    config = json.loads((finetuned / "best/config.json").read_text())
    assert config["id2label"] == {str(n): f"number {n}" for n in range(10)}
    log = [entry for entry in read_log(finetuned) if "eval_accuracy" in entry]
    assert [entry["epoch"] for entry in log] == [1, 2]
    assert max(entry["eval_accuracy"] for entry in log) == results["eval_accuracy"]
    point = read_result(finetuned / "results.json", "mine")
    assert point["data_set"] == f"{digits.name}, test, 397 images"


def test_frozen_stages_stay_as_they_were(finetuned, start):
    """Weights and statistics of the stem and of the first stage to the bit; all others change."""
    before, after = (load_file(folder / "model.safetensors") for folder in (start, finetuned / "best"))
    frozen = {name for name in before if name.startswith(("rednet.embedder.", "rednet.encoder.stages.0."))}
    assert len(frozen) > 20 and any("running_var" in name for name in frozen)
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    for name in before.keys() - frozen - {"classifier.weight", "classifier.bias"}:
        assert not torch.equal(before[name], after[name]), name
    results = json.loads((finetuned / "results.json").read_text())
    trained = [name for name in after if name not in frozen and "running" not in name and "num_batches" not in name]
    assert results["trainable_parameters"] == sum(after[name].numel() for name in trained) < results["parameters"]


def test_leaves_a_hub_folder(finetuned, start):
    """What it classifies is what was reported, by the Auto classes on the pictures themselves."""
    check_hub_folder(finetuned / "best")
    results = json.loads((finetuned / "results.json").read_text())
    processor, model = (
        c.from_pretrained(finetuned / "best") for c in (AutoImageProcessor, AutoModelForImageClassification)
    )
    options = json.loads((finetuned / "options.json").read_text())
    names = TrainingConfig.__dataclass_fields__.keys() & options.keys()
    _, images = load_images(TrainingConfig(**{name: options[name] for name in names}))
    with torch.no_grad():
        logits = model.eval()(**processor(list(images["image"]), return_tensors="pt")).logits
    assert abs(accuracy_score(images["label"], logits.argmax(1)) - results["eval_accuracy"]) < 0.003
    card = ModelCard.load(finetuned / "best/README.md")
    assert card.data.eval_results[0].metric_value == results["eval_accuracy"]
    assert "frozen: the stem and 1 stage(s)" in card.text and "learning_rate: 0.005" in card.text
    assert card.data.base_model is None  # a folder is no id


def test_the_optimizer_has_the_rates_of_the_layers(finetuned):
    """Of the classifier, then of the second stage; frozen stages have none."""
    checkpoint = sorted(finetuned.glob("checkpoint-*"))[0]
    groups = torch.load(checkpoint / "optimizer.pt", weights_only=True)["param_groups"]
    assert [(group["initial_lr"], group["weight_decay"]) for group in groups] == [(RATE, 0.01), (RATE * DECAY, 0.01)]


@pytest.mark.parametrize("frozen_stages", [-1, 0, 2])
def test_layer_decay_is_its_definition(start, frozen_stages):
    """Learning rate x decay ^ (layers between a parameter and the classifier), by the parameters' names."""
    model = AutoModelForImageClassification.from_pretrained(start)
    config = FinetuneConfig(
        output_dir="run", learning_rate=1.0, layer_decay=DECAY, weight_decay=0.1, no_decay_on_norm_and_bias=True
    )
    freeze(model, frozen_stages)
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in layer_groups(model, config)
        for parameter in group["params"]
    }
    prefixes = ["rednet.embedder.", "rednet.encoder.stages.0.", "rednet.encoder.stages.1.", "classifier."]
    for name, parameter in model.named_parameters():
        layer = next(n for n, prefix in enumerate(prefixes) if name.startswith(prefix))
        if layer <= frozen_stages:
            assert id(parameter) not in found and not parameter.requires_grad
        else:
            plain = "normalization" in name or name.endswith("bias")
            plain = plain or parameter.ndim == 1  # BatchNorm of the kernel generation
            assert found.pop(id(parameter)) == (DECAY ** (3 - layer), 0.0 if plain else 0.1), name
    assert not found


def test_stops_early(recipe, tmp_path):
    """With a learning rate of 0 the first evaluation is the best, and the run ends two evaluations later."""
    more = [
        "--learning_rate",
        "0",
        "--frozen_stages",
        "2",
        "--early_stopping_patience",
        "2",
        "--max_train_samples",
        "40",
    ]
    main([*recipe, *more, "--max_eval_samples", "60", "--output_dir", str(tmp_path / "run")])
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert (results["epochs"], results["steps"]) == (3, 6)
    assert "Fine-tuned for 3 of at most 10 epochs" in (tmp_path / "run/best/README.md").read_text()


def test_killed_and_resumed(root, recipe, tmp_path):
    """With random augmentation and mixing; killed in the second of three epochs of six steps. The weights are the same,
    although the resumed run logs every second step. TensorBoard has every line of its log once."""
    more = ["--max_train_samples", "120", "--max_eval_samples", "60", "--num_train_epochs", "3"]
    more += ["--save_strategy", "steps", "--save_steps", "4", "--eval_strategy", "steps", "--eval_steps", "4"]
    more += ["--auto_augment", "rand-m5", "--mixup_alpha", "0.2", "--cutmix_alpha", "1", "--logging_steps", "1"]
    more += ["--random_erase_prob", "0.5", "--interpolation", "random", "--train_image_size", "6", "8"]
    folder = tmp_path / "run"
    arguments, sizes = [*recipe, *more, "--output_dir", str(folder), "--report_to", "tensorboard"], []
    training = Training(root, tmp_path / "output.txt", arguments, "rednet.training.finetune")

    def logged_after_checkpoint():
        if (folder / "checkpoint-8/trainer_state.json").exists():
            sizes.append(sum(path.stat().st_size for path in folder.glob("runs/rednet/events.*")))
        return sizes and sizes[-1] > sizes[0]

    training.kill_when(logged_after_checkpoint)
    assert not (folder / "results.json").exists()
    for path in folder.glob("checkpoint-*/trainer_state.json"):  # as if the first part had run for hours, elsewhere
        state = json.loads(path.read_text())
        (hardware,) = state["stateful_callbacks"]["ClockCallback"]["attributes"]["seconds"]
        state["stateful_callbacks"]["ClockCallback"]["attributes"]["seconds"] = {"1 x abacus": 7200.0}
        path.write_text(json.dumps(state))
    main([*arguments, "--logging_steps", "2"])
    main([*recipe, *more, "--output_dir", str(tmp_path / "other")])
    card, other = ((run / "best/README.md").read_text() for run in (folder, tmp_path / "other"))
    duration = rf"\d+\.\d minutes on {re.escape(hardware)} \|"
    assert re.search(rf"\| Training time \| 2\.0 hours on 1 x abacus, {duration}", card)
    assert re.search(rf"\| Training time \| {duration}", other)
    weights, expected = (load_file(run / "best/model.safetensors") for run in (folder, tmp_path / "other"))
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    results = [json.loads((run / "results.json").read_text()) for run in (folder, tmp_path / "other")]
    assert results[0] == results[1] and results[0]["steps"] == 18
    logs = [
        [entry for line in (run / "log.jsonl").read_text().splitlines() if "loss" in (entry := json.loads(line))]
        for run in (folder, tmp_path / "other")
    ]
    assert [entry["step"] for entry in logs[0]] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18]
    assert logs[0][:8] == logs[1][:8]
    means = [(one["loss"] + two["loss"]) / 2 for one, two in zip(logs[1][8::2], logs[1][9::2], strict=True)]
    assert [entry["loss"] for entry in logs[0][8:]] == pytest.approx(means, rel=1e-5)
    events = EventAccumulator(str(folder / "runs/rednet"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx([e["loss"] for e in logs[0]])
    assert [event.step for event in events.Scalars("eval/accuracy")] == [4, 8, 12, 16, 18, 18]  # last and best model


def test_a_last_batch_of_one_picture(recipe, tmp_path):
    """Where the last map has one pixel BatchNorm cannot train on it: it is left out, of the training only."""
    small = ["--image_size", "2", "--num_train_epochs", "1", "--max_eval_samples", "21"]
    main([*recipe, *small, "--max_train_samples", "41", "--output_dir", str(tmp_path / "run")])
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert (results["steps"], results["train_samples"], results["eval_samples"]) == (2, 41, 21)
    for images, batch in (("1", "20"), ("40", "1")):
        more = ["--max_train_samples", images, "--per_device_train_batch_size", batch]
        with pytest.raises(SystemExit, match=r"1 x 1 pixels for images of 2 x 2.*per_device_train_batch_size"):
            main([*recipe, *small, *more, "--output_dir", str(tmp_path / "refused")])
    assert not (tmp_path / "refused").exists()


def test_incomplete_checkpoints_are_skipped(tmp_path):
    for step, state in ((9, "{}"), (10, '{"epoch"'), (11, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}/trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-10 (copy)").mkdir()
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")
    assert newest_checkpoint(tmp_path / "checkpoint-9") is None


def test_other_folders_named_like_checkpoints_are_refused(recipe, tmp_path):
    """Trainer would delete them as old checkpoints."""
    for name in ("checkpoint-9", "checkpoint-9-copy", "checkpoint-best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text("{}")
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")
    with pytest.raises(SystemExit, match=r"checkpoint-9-copy, .*checkpoint-best: Trainer would delete"):
        main([*recipe, "--output_dir", str(tmp_path)])


def test_a_finished_run_is_pushed_by_its_command(root, recipe, finetuned, tmp_path):
    """As a pull request of one commit with our card, not by Trainer; nothing is trained again."""
    before = (finetuned / "best/model.safetensors").read_bytes()
    command = [
        sys.executable,
        "training/finetune.py",
        *recipe,
        *FROZEN,
        "--output_dir",
        str(finetuned),
        "--push_to_hub",
    ]
    with HubServer() as hub:
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | hub.environment(tmp_path)
        command += ["--hub_model_id", "user/digits", "--hub_create_pr", "true"]
        result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0 and "is finished" in result.stdout, result.stderr
        assert result.stdout.endswith(f"{hub.url}/user/digits/discussions/1\n")
        files = hub.files("user/digits", "refs/pr/1")
        assert len(hub.commits("user/digits", "refs/pr/1")) == 2 and files["model.safetensors"] == before
        assert len(hub.commits("user/digits")) == 1
        assert 'model="user/digits"' in files["README.md"].decode() and "training_args.bin" not in files


def test_a_folder_of_another_run_is_refused(recipe, finetuned):
    with pytest.raises(SystemExit, match=r"layer_decay 0.5 -> 0.6"):
        main([*recipe, *FROZEN, "--output_dir", str(finetuned), "--layer_decay", "0.6"])


def test_new_classes_get_a_new_classifier(start, tmp_path):
    model, _ = load_model(FinetuneConfig(output_dir="run", model_name_or_path=str(start)), list("abcde"))
    before = load_file(start / "model.safetensors")["classifier.weight"]
    assert model.classifier.weight.shape == before.shape and not torch.equal(model.classifier.weight, before)
    assert 0.005 < model.classifier.weight.std() < 0.015 and model.classifier.bias.abs().max() == 0
    model.save_pretrained(tmp_path)
    AutoImageProcessor.from_pretrained(start).save_pretrained(tmp_path)
    config = FinetuneConfig(output_dir="run", model_name_or_path=str(tmp_path), image_size=16)
    again, processor = load_model(config, list("abcde"))
    assert torch.equal(again.classifier.weight, model.classifier.weight) and processor.size == {"shortest_edge": 16}


def test_models_of_other_families_are_refused(recipe, tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    for name, problem in (
        ("resnet", "is of the type 'resnet', expected 'rednet'"),
        ("rsenet", "did you mean .*resnet"),
    ):
        with pytest.raises(SystemExit, match=problem):
            main([*recipe, "--model_name_or_path", str(tmp_path / name), "--output_dir", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match=r"--frozen_stages is 3, expected -1 \(nothing\) to 2"):
        main([*recipe, "--frozen_stages", "3", "--output_dir", str(tmp_path / "run")])


@pytest.mark.parametrize(
    "text, words",
    [
        ("frozen_stage: 1", ["unknown", "recipe.yaml", "did you mean --frozen_stages?"]),
        ("lerning_rate: 1", ["did you mean --learning_rate?"]),
        ("learning_rate: fast", ["learning_rate", "fast", "number"]),
        ("num_train_epochs: many", ["num_train_epochs", "many"]),
        ("frozen_stages: stem", ["frozen_stages", "stem", "int"]),
        ("layer_decay: 1.5", ["--layer_decay is 1.5", "up to 1"]),
        ("early_stopping_patience: 0", ["--early_stopping_patience is 0"]),
        ("{early_stopping_patience: 2, load_best_model_at_end: false}", ["needs --load_best_model_at_end"]),
        ("metric_for_best_model: acuracy", ["'acuracy'", "did you mean accuracy?"]),
        ("eval_strategy: no", ["save and eval strategy to match"]),
        ("lr_scheduler_type: cosinus", ["cosinus", "'cosine'"]),
        ("streaming: true", ["--streaming"]),
        ("{bf16_full_eval: true, use_cpu: true}", ["--bf16_full_eval is True, expected False", "rounded"]),
        ("fp16_full_eval: true", ["--fp16_full_eval is True", "rounded"]),
        ("batch_eval_metrics: true", ["--batch_eval_metrics is True"]),
        ("prediction_loss_only: true", ["--prediction_loss_only is True"]),
        ("eval_do_concat_batches: false", ["--eval_do_concat_batches is False, expected True"]),
        ("label_names: [targets]", ["--label_names is ['targets']"]),
        ("train_sampling_strategy: group_by_length", ["--train_sampling_strategy is 'group_by_length'", "'random'"]),
        ("save_only_model: true", ["--save_only_model is True", "resume"]),
        ("deepspeed: zero.json", ["deepspeed"]),
        ("dataloader_drop_last: true", ["--dataloader_drop_last is True"]),
        ("use_liger_kernel: true", ["--use_liger_kernel is True", "language models"]),
        ("{push_to_hub: true, hub_strategy: checkpoint}", ["--hub_strategy is 'checkpoint'", "once"]),
        ("greater_is_better: false", ["--greater_is_better is False", "worst accuracy"]),
        ("save_steps: 0", ["--save_steps is 0"]),
        ("gradient_accumulation_steps: 0", ["--gradient_accumulation_steps is 0", "at least 1"]),
        ("label_smoothing_factor: 1.5", ["--label_smoothing_factor is 1.5", "below 1"]),
        ("dataset_name: ''", ["--dataset_name", "--train_dir"]),
        ("model_name_or_path: ''", ["--model_name_or_path"]),
    ],
)
def test_wrong_options_are_named(text, words, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    values = {"model_name_or_path": "a", "dataset_name": "b"}
    values = {name: value for name, value in values.items() if name not in text}
    more = [f"--{name}={value}" for name, value in values.items()]
    path.write_text(text)
    with pytest.raises(SystemExit):
        parse_config(["--config", str(path), *more])
    error = capsys.readouterr().err
    assert all(word in error for word in words), error


def test_the_recipe_of_the_repository_is_valid(root):
    path = root / "configs/training/finetune.yaml"
    arguments = ["--config", str(path), "--model_name_or_path", "a", "--dataset_name", "b", "--learning_rate", "1e-4"]
    config = parse_config(arguments)
    assert config.learning_rate == 1e-4 and config.early_stopping_patience == 5 and config.layer_decay == 0.7
    assert config.load_best_model_at_end and config.greater_is_better


def test_help_begins_with_the_options_of_the_script(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and "Fine-tunes a RedNet" in text
    assert 0 < text.index("--frozen_stages") < text.index("--adam_beta1")
