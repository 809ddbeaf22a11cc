"""Several batches, processes and machines are as one."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from processes import together


@pytest.fixture(scope="module")
def step(root, options, tmp_path_factory):
    """A function: what `tests/support/gradients.py` leaves of a step with the same sixty images."""
    values = {**options[1], "max_train_samples": 60, "max_grad_norm": None, "weight_decay": 0.0, "color_jitter": 0.3}

    def run(batch_size: int, processes: int = 1, accumulation: int = 1) -> dict:
        folder = tmp_path_factory.mktemp("step")
        more = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        (folder / "options.json").write_text(json.dumps({**values, **more}))
        files = [str(folder / "options.json"), str(folder / "weights.pt")]
        together(root, folder / "output", files, "gradients", processes)
        return torch.load(folder / "weights.pt")

    return run


@pytest.fixture(scope="module")
def expected(step):
    found = step(batch_size=60)
    moved = [name for name, value in found["after"].items() if (value - found["before"][name]).abs().max() > 1e-4]
    assert len(moved) > 15
    return found


@pytest.mark.parametrize(
    "batch_size, processes, accumulation",
    [(30, 2, 1), (20, 1, 3), (12, 1, 8), (10, 2, 3)],
    ids=["two processes", "three batches", "five batches at the end of an epoch instead of eight", "both"],
)
def test_many_batches_have_the_gradient_of_one(step, expected, batch_size, processes, accumulation):
    found = step(batch_size, processes, accumulation)
    assert (expected["processes"], found["processes"]) == (1, processes)
    assert torch.allclose(found["loss"], expected["loss"], rtol=1e-12)
    for name, value in expected["after"].items():
        assert torch.allclose(found["after"][name], value, rtol=1e-10, atol=1e-12), name


def test_two_processes_train_and_evaluate_as_one_reader_would(root, options, tmp_path):
    """From options to results.json; 150 images to evaluate on do not divide by two batches of 64."""
    values = {**options[1], "max_train_samples": 200, "max_eval_samples": 150, "num_train_epochs": 2}
    values |= {"per_device_train_batch_size": 10, "max_train_steps": 20, "ema_decay": 0.5, "mixup_alpha": 0.1}
    (tmp_path / "options.yaml").write_text(json.dumps(values))
    arguments = ["--config", str(tmp_path / "options.yaml"), "--output_dir", str(tmp_path / "run")]
    assert "Going on" not in together(root, tmp_path / "output", arguments)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert (results["steps"], results["eval_samples"], results["train_samples"]) == (20, 150, 200)
    # Started again, by one process, what was trained is evaluated again: the same images, the same weights.
    assert "Going on from step 20" in together(root, tmp_path / "again", arguments, processes=1)
    again = json.loads((tmp_path / "run/results.json").read_text())
    assert all(again[name] == pytest.approx(results[name], rel=1e-5) for name in again if name.startswith("eval"))


def test_shared_out_weights_train_as_whole_ones(root, options, tmp_path):
    """FSDP against DDP, also from a checkpoint on."""
    values = {**options[1], "max_train_samples": 200, "max_eval_samples": 50, "per_device_train_batch_size": 10}
    values |= {"checkpointing_steps": "4", "max_train_steps": 10}
    (tmp_path / "options.yaml").write_text(json.dumps(values))
    arguments = ["--config", str(tmp_path / "options.yaml"), "--output_dir"]
    together(root, tmp_path / "whole.txt", [*arguments, str(tmp_path / "whole")])
    together(root, tmp_path / "shares.txt", [*arguments, str(tmp_path / "shares")], "sharded")
    shutil.rmtree(tmp_path / "shares/checkpoints/step_00000010")
    text = together(root, tmp_path / "again.txt", [*arguments, str(tmp_path / "shares")], "sharded")
    assert "Going on from step 8" in text
    found, expected = (load_file(tmp_path / name / "last/model.safetensors") for name in ("shares", "whole"))
    assert all(torch.allclose(found[name], value, rtol=1e-4, atol=1e-6) for name, value in expected.items())
    assert found.keys() == expected.keys()
