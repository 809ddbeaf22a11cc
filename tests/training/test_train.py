"""training/train.py and training/demo.py as commands, on real pictures."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from train import schedule
from transformers import AutoImageProcessor, AutoModelForImageClassification

import rednet
from arguments import TrainingConfig
from data import load_images


LAUNCH = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no"),
]
SCRIPT = "training/train.py"
# The tests run side by side, one thread each.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(options_file: Path, output_dir: Path, *more: str) -> list[str]:
    return [sys.executable, SCRIPT, "--config", str(options_file), "--output_dir", str(output_dir), *more]


def run(root: Path, arguments: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, cwd=root, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)


def read_log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(root, options, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    result = run(root, command(options[0], folder))
    assert result.returncode == 0, result.stderr
    return folder


def test_learns_and_says_how_well(trained):
    results = json.loads((trained / "results.json").read_text())
    assert results["eval_accuracy"] > 0.8 and results["eval_samples"] == 397
    assert results["steps"] == 4 * 70 and results["best_eval_accuracy"] >= results["eval_accuracy"]
    log = read_log(trained)
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 28 and losses[-1] < losses[0] < 3
    assert [entry["epoch"] for entry in log if "eval_accuracy" in entry] == [1, 2, 3, 4]
    assert log[-2]["learning_rate"] == 0


@pytest.mark.parametrize("which", ["best", "last"])
def test_leaves_complete_hub_folders(trained, options, which):
    folder = trained / which
    files = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    files |= {"configuration_rednet.py", "modeling_rednet.py", "modeling_rednet_segmentation.py", "involution.png"}
    assert {path.name for path in folder.iterdir()} == files
    config = json.loads((folder / "config.json").read_text())
    assert len(config["auto_map"]) == 5 and config["id2label"]["3"] == "number 3"

    # What the folder classifies is what was reported: all test images again, by processor and model from the folder.
    processor, model = (c.from_pretrained(folder) for c in (AutoImageProcessor, AutoModelForImageClassification))
    assert type(model) is rednet.RedNetForImageClassification
    _, images = load_images(TrainingConfig(**options[1]))
    with torch.no_grad():
        predictions = model.eval()(**processor(list(images["image"]), return_tensors="pt")).logits.argmax(1)
    accuracy = (predictions == torch.tensor(images["label"])).double().mean().item()
    results = json.loads((trained / "results.json").read_text())
    reported = results["eval_accuracy" if which == "last" else "best_eval_accuracy"]
    assert abs(accuracy - reported) < 0.003  # one image may be on the border

    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "image-classification" and card.data.library_name == "transformers"
    assert card.data.eval_results[0].metric_value == reported
    assert f"{100 * reported:.2f} %" in card.text and "{{" not in card.text


def test_a_finished_run_is_not_trained_again(root, trained, options):
    before, log = (trained / "last/model.safetensors").read_bytes(), read_log(trained)
    _, *arguments = command(options[0], trained)
    result = run(root, [*LAUNCH, *arguments])
    assert result.returncode == 0 and "Going on from step 280" in result.stdout
    assert (trained / "last/model.safetensors").read_bytes() == before and read_log(trained) == log


def test_refuses_a_folder_of_another_run(root, trained, options):
    result = run(root, command(options[0], trained, "--learning_rate", "0.1"))
    assert result.returncode != 0 and "learning_rate 0.2 -> 0.1" in result.stderr


def test_a_killed_run_ends_with_the_same_weights(root, trained, options, tmp_path):
    process = subprocess.Popen(
        command(options[0], tmp_path),
        cwd=root,
        env=ENVIRONMENT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("checkpoints/step_*")):  # killed in the second epoch or later
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "results.json").exists()
    (tmp_path / "checkpoints/new").mkdir(exist_ok=True)  # a checkpoint that was being written

    result = run(root, command(options[0], tmp_path))
    assert result.returncode == 0, result.stderr
    assert "Going on from step" in result.stdout
    expected, weights = (load_file(folder / "last/model.safetensors") for folder in (trained, tmp_path))
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    without_speed = [
        [{k: v for k, v in entry.items() if k != "images_per_second"} for entry in read_log(folder)]
        for folder in (trained, tmp_path)
    ]
    assert without_speed[0] == without_speed[1]
    assert len(list(tmp_path.glob("checkpoints/*"))) == 2


def test_half_precision_accumulation_and_fine_tuning(root, trained, options, tmp_path):
    """From the weights of the first run: two steps of three batches, in bfloat16, with checkpoints in mid-epoch."""
    path = tmp_path / "finetune.yaml"
    values = {**options[1], "config_name": None, "model_name_or_path": str(trained / "best"), "num_warmup_steps": 0}
    path.write_text(json.dumps(values))
    more = "--mixed_precision bf16 --gradient_accumulation_steps 3 --max_train_steps 2 --checkpointing_steps 1"
    result = run(root, command(path, tmp_path / "run", *more.split(), "--learning_rate", "0.001"))
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / "run/results.json").read_text())
    before = json.loads((trained / "results.json").read_text())["best_eval_accuracy"]
    assert results["steps"] == 2 and results["eval_accuracy"] > before - 0.1
    assert results["best_eval_accuracy"] == results["eval_accuracy"]
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 2


def test_stops_when_the_loss_is_not_finite(root, options, tmp_path):
    result = run(root, command(options[0], tmp_path, "--learning_rate", "1e30", "--num_warmup_steps", "0"))
    assert result.returncode != 0 and "the loss is nan at step 10" in result.stderr


def test_schedule_is_the_papers():
    """Linear warm-up from a quarter over 3,130 steps, cosine to 0 over 130 epochs of 626 steps."""
    config, total = TrainingConfig(), 130 * 626
    assert schedule(0, total, config) == 0.25
    assert math.isclose(schedule(1565, total, config), 0.625 * (1 + math.cos(math.pi * 1565 / total)) / 2)
    assert math.isclose(schedule(total // 2, total, config), 0.5) and schedule(total, total, config) == 0
    assert schedule(3129, total, config) < schedule(3130, total, config) > schedule(3131, total, config)


def test_demo_shows_what_was_learnt(root, trained):
    result = run(root, [sys.executable, "training/demo.py", str(trained)])
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("number ") >= 4 * 5 and "top-1" in result.stdout
    with Image.open(trained / "demo.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 24)) > 50
