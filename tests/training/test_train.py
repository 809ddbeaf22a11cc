"""training/train.py and training/demo.py as commands, on real pictures."""

import json
import math
import re
from pathlib import Path

import pytest
import rednet
import torch
from huggingface_hub import ModelCard
from PIL import Image
from rednet.configuration_rednet import REMOTE_CODE
from rednet.training import train
from rednet.training.data.sources import load_images
from rednet.training.options.scripts import TrainingConfig
from rednet.training.utils.files import locked
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hub_client import HubClient
from hub_server import HubServer
from processes import Training


TRAIN = "import sys\nfrom rednet.training.train import main\nmain(sys.argv[1:])"  # for `HubClient.run`


def command(options_file: Path, output_dir: Path, *more: str) -> list[str]:
    return ["--config", str(options_file), "--output_dir", str(output_dir), *more]


def run(root: Path, output_dir: Path, arguments: list[str]) -> tuple[int, str]:
    """Exit code and output of one training."""
    training = Training(root, output_dir.with_name(f"{output_dir.name}.txt"), arguments)
    return training.wait(), training.text()


def read_log(folder: Path) -> list[dict]:
    """The log without the speed, which no two runs share."""
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key != "images_per_second"} for entry in entries]


@pytest.fixture(scope="module")
def trained(root, options, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    code, text = run(root, folder, command(options[0], folder, "--report_to", "tensorboard"))
    assert code == 0, text
    return folder


def test_learns_and_reports_results(trained):
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
    files |= {*REMOTE_CODE, "involution.png", "LICENSE", "notebook.ipynb"}
    assert {path.name for path in folder.iterdir()} == files
    config = json.loads((folder / "config.json").read_text())
    assert len(config["auto_map"]) == 5 and config["id2label"]["3"] == "number 3"

    # Model and processor of the folder reach the reported accuracy on all test images.
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
    assert re.search(r"\| Training time \| \d+\.\d minutes on \d+ threads? of .+ \|", card.text)


def test_a_finished_run_is_not_trained_again(root, trained, options):
    before, log = (trained / "last/model.safetensors").read_bytes(), read_log(trained)
    code, text = run(root, trained, command(options[0], trained, "--dataloader_num_workers", "1"))
    assert code == 0 and "Resuming from step 280" in text
    assert (trained / "last/model.safetensors").read_bytes() == before and read_log(trained) == log


def test_pushes_the_last_model(trained, options, tmp_path):
    """The command of a finished run pushes it. A bad token ends it before it computes; a failed push loses nothing."""
    arguments = command(options[0], trained, "--push_to_hub", "--hub_model_id", "user/digits")
    arguments += ["--hub_revision", "v1", "--hub_private_repo", "true"]

    before = (trained / "last/model.safetensors").read_bytes()
    with HubServer() as hub, HubClient(hub, tmp_path / "home") as client:
        hub.tokens["hf_read"] = "read"
        refused = client.run(TRAIN, *arguments, token="hf_read")
        assert refused.status == 1 and "--push_to_hub: this Hub token may only read" in refused.output
        hub.fail("/commit/")
        failed = client.run(TRAIN, *arguments)
        repeat = f"python -m rednet.hub push {trained}/last user/digits --private --revision v1\n"
        assert failed.status == 1 and failed.output.endswith(repeat)
        assert (trained / "last/model.safetensors").read_bytes() == before and len(hub.commits("user/digits")) == 1
        hub.recover()
        assert f"{hub.url}/user/digits/tree/v1\n" in client.output(TRAIN, *arguments)
        assert hub.repos["user/digits"].private and len(hub.commits("user/digits")) == 1
        files = hub.files("user/digits", "v1")
        assert len(hub.commits("user/digits", "v1")) == 2 and files["model.safetensors"] == before
        assert 'model="user/digits"' in files["README.md"].decode() and "modeling_rednet.py" in files
        logs = {name: data for name, data in files.items() if name.startswith("runs/")}
        assert logs and all((trained / name).read_bytes() == data for name, data in logs.items())


def test_refuses_batches_without_statistics(options, tmp_path):
    """BatchNorm on one image whose last feature map has one pixel."""
    given = ["--image_size", "2", "--per_device_train_batch_size", "1", "--output_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match=r"error: the model's last feature map has 1 x 1 pixels for images of 2 x 2"):
        train.main(["--config", str(options[0]), *given])
    assert not (tmp_path / "run").exists()


def test_refuses_a_folder_of_another_run(root, trained, options):
    code, text = run(root, trained, command(options[0], trained, "--learning_rate", "0.1"))
    assert code != 0 and "learning_rate 0.2 -> 0.1" in text


def test_refuses_a_second_run_at_the_same_time(root, options, tmp_path):
    """It would delete the checkpoint that the first one is writing."""
    with locked(tmp_path / "run"):
        code, text = run(root, tmp_path / "run", command(options[0], tmp_path / "run"))
    assert code == 1 and f"error: another process writes to {tmp_path / 'run'}" in text
    assert list((tmp_path / "run").iterdir()) == []


def test_half_precision_accumulation_and_fine_tuning(root, trained, options, tmp_path):
    """
    From the weights of the first run, in bfloat16, with checkpoints in mid-epoch. 130 images are 13 batches, and with
    three of them in a step, of which none crosses the end of an epoch, 5 steps an epoch.
    """
    path = tmp_path / "finetune.yaml"
    values = {**options[1], "config_name": None, "model_name_or_path": str(trained / "best"), "num_warmup_steps": 0}
    path.write_text(json.dumps(values))
    more = "--max_train_samples 130 --per_device_train_batch_size 10 --gradient_accumulation_steps 3"
    more += " --num_train_epochs 2 --checkpointing_steps 1 --logging_steps 1"
    losses = []
    for folder, precision in (("run", "bf16"), ("float32", "no")):
        arguments = [*more.split(), "--learning_rate", "0.001", "--mixed_precision", precision]
        code, text = run(root, tmp_path / folder, command(path, tmp_path / folder, *arguments))
        assert code == 0, text
        lines = [json.loads(line) for line in (tmp_path / folder / "log.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert len(losses[0]) == 10 and all(map(math.isfinite, losses[0] + losses[1]))
    assert losses[0] == pytest.approx(losses[1], rel=0.05) and losses[0] != losses[1]
    results = json.loads((tmp_path / "run/results.json").read_text())
    before = json.loads((trained / "results.json").read_text())["best_eval_accuracy"]
    assert (results["steps"], results["epochs"]) == (10, 2)
    assert results["eval_accuracy"] > before - 0.1
    assert results["best_eval_accuracy"] >= results["eval_accuracy"]
    assert len(list((tmp_path / "run/checkpoints").iterdir())) == 2


@pytest.mark.parametrize(
    "learning_rate, problem, last_good",
    [
        ("1e30", "the loss is nan at step 3", "step_00000002"),  # finite weights that overflow in the next step
        ("1e38", "weights are not finite after step 2", "step_00000001"),
    ],
)
def test_stops_before_ruined_weights_are_saved(root, options, tmp_path, learning_rate, problem, last_good):
    """The warm-up starts from 0, so the first step changes nothing and the second one too much."""
    more = ["--learning_rate", learning_rate, "--warmup_start_factor", "0", "--checkpointing_steps", "1"]
    more += ["--weight_decay", "1e3"]
    code, text = run(root, tmp_path / "run", command(options[0], tmp_path / "run", *more))
    assert code != 0 and problem in text and f"before it is {tmp_path}/run/checkpoints/{last_good}" in text
    assert max((tmp_path / "run/checkpoints").iterdir()).name == last_good
    assert not (tmp_path / "run/best").exists() and not (tmp_path / "run/last").exists()


def test_saves_the_moving_average(root, options, tmp_path):
    """The average of the weights after every step, from checkpoints of every step."""
    more = ["--ema_decay", "0.7", "--max_train_steps", "4", "--checkpointing_steps", "1"]
    more += ["--checkpoints_total_limit", "9", "--num_warmup_steps", "0", "--momentum", "0"]  # so not Nesterov's
    code, text = run(root, tmp_path / "run", command(options[0], tmp_path / "run", *more))
    assert code == 0, text
    steps = [load_file(path / "model.safetensors") for path in sorted((tmp_path / "run/checkpoints").iterdir())]
    saved, expected = load_file(tmp_path / "run/last/model.safetensors"), steps[0]
    assert len(steps) == 4
    for step in steps[1:]:
        expected = {name: 0.7 * value + 0.3 * step[name] for name, value in expected.items()}
    for name, value in saved.items():
        if value.is_floating_point():
            assert torch.allclose(value, expected[name], rtol=1e-5, atol=1e-6), name
    assert any(not torch.allclose(value, steps[-1][name]) for name, value in saved.items())


def test_trackers(trained):
    events = EventAccumulator(str(trained / "runs/rednet"))
    events.Reload()
    logged = [entry["loss"] for entry in read_log(trained) if "loss" in entry]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(logged)


@pytest.mark.parametrize(
    "names, words",
    [
        ("tensorbord", "'tensorbord', expected names of .*tensorboard"),
        ("tensorboard,aim", "'aim', which is not installed"),
    ],
)
def test_unavailable_trackers_are_refused(names, words, options, tmp_path):
    with pytest.raises(SystemExit, match=words):
        train.main(["--config", str(options[0]), "--output_dir", str(tmp_path / "run"), "--report_to", names])
    assert not (tmp_path / "run").exists()


def test_synchronized_batch_norm_needs_gpus(root, options, tmp_path):
    code, text = run(root, tmp_path / "run", command(options[0], tmp_path / "run", "--sync_batch_norm"))
    assert code != 0 and "--sync_batch_norm" in text and "CPU" in text


def test_demo(root, trained, tmp_path):
    demo = Training(root, tmp_path / "demo.txt", [str(trained)], "rednet.training.demo")
    assert demo.wait() == 0, demo.text()
    assert demo.text().count("number ") >= 4 * 5 and "top-1" in demo.text()
    with Image.open(trained / "demo.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 24)) > 50
