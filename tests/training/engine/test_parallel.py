"""Several batches and processes train like one."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from rednet.training.utils.cpus import available_cpus
from safetensors.torch import load_file

from interpreter import python
from processes import start_together, together


LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no"]
LAUNCH += ["--dynamo_backend", "no"]


@pytest.fixture(scope="module")
def step(root, options, tmp_path_factory):
    """A function that returns the result of `tests/support/gradients.py` for one step with the same sixty images."""
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


def test_two_processes_train_and_evaluate(root, options, tmp_path):
    """From options to results.json; 150 images to evaluate on do not divide by two batches of 64."""
    values = {**options[1], "max_train_samples": 200, "max_eval_samples": 150, "num_train_epochs": 2}
    values |= {"per_device_train_batch_size": 10, "ema_decay": 0.5, "mixup_alpha": 0.1}
    (tmp_path / "options.yaml").write_text(json.dumps(values))
    arguments = ["--config", str(tmp_path / "options.yaml"), "--output_dir", str(tmp_path / "run")]
    assert "Resuming" not in together(root, tmp_path / "output", arguments)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert (results["steps"], results["eval_samples"], results["train_samples"]) == (20, 150, 200)
    # One process, on which two epochs are 40 steps, evaluates the finished run again: the same images, the same weights.
    assert "Resuming from step 20" in together(root, tmp_path / "again", arguments, processes=1)
    again = json.loads((tmp_path / "run/results.json").read_text())
    assert again["steps"] == 20
    assert all(again[name] == pytest.approx(results[name], rel=1e-5) for name in again if name.startswith("eval"))


def test_fsdp_trains_like_ddp(root, options, tmp_path):
    """Also from a checkpoint on."""
    values = {**options[1], "max_train_samples": 200, "max_eval_samples": 50, "per_device_train_batch_size": 10}
    values |= {"checkpointing_steps": "4", "max_train_steps": 10}
    (tmp_path / "options.yaml").write_text(json.dumps(values))
    arguments = ["--config", str(tmp_path / "options.yaml"), "--output_dir"]
    together(root, tmp_path / "whole.txt", [*arguments, str(tmp_path / "whole")])
    together(root, tmp_path / "shares.txt", [*arguments, str(tmp_path / "shares")], "sharded")
    shutil.rmtree(tmp_path / "shares/checkpoints/step_00000010")
    text = together(root, tmp_path / "again.txt", [*arguments, str(tmp_path / "shares")], "sharded")
    assert "Resuming from step 8" in text
    found, expected = (load_file(tmp_path / name / "last/model.safetensors") for name in ("shares", "whole"))
    assert all(torch.allclose(found[name], value, rtol=1e-4, atol=1e-6) for name, value in expected.items())
    assert found.keys() == expected.keys()


@pytest.mark.parametrize(
    "script, arguments",
    [
        ("rednet.training.train", ["--config", "{options}"]),
        (
            "rednet.training.train_segmentation",
            ["--config_name", "{model}", "--train_dir", "{folder}", "--validation_dir", "{folder}"],
        ),
        (
            "rednet.training.train_detection",
            ["--config_name", "{model}", "--trainable_layers", "5", "--train_dir", "{folder}", "--validation_dir"]
            + ["{folder}", "--train_annotations", "{options}", "--validation_annotations", "{options}"],
        ),
        (
            "rednet.training.finetune",
            ["--model_name_or_path", "{start}", "--train_dir", "{folder}", "--train_val_split", "0.5"],
        ),
        ("rednet.training.evaluate_model", ["--model_name_or_path", "{start}", "--validation_dir", "{folder}"]),
    ],
)
def test_unconnected_processes_stop(script, arguments, root, options, start, tmp_path):
    """As torchrun starts them on a machine without GPUs. Accelerate connects them only with ACCELERATE_USE_CPU."""
    output_dir = tmp_path / "run"
    values = {"options": options[0], "model": options[1]["config_name"], "start": start, "folder": tmp_path}
    arguments = [argument.format(**values) for argument in arguments] + ["--output_dir", str(output_dir)]
    for training in start_together(root, tmp_path / "output", arguments, script, 2, CUDA_VISIBLE_DEVICES=""):
        assert training.wait() == 1, training.text()
        assert "error: WORLD_SIZE is 2" in training.text() and "ACCELERATE_USE_CPU=true torchrun" in training.text()
    assert not output_dir.exists()


def test_accelerate_launch_with_more_processes_than_it_starts(root, options, tmp_path):
    command = [*LAUNCH, "--cpu", "--num_processes", "2", "training/train.py", "--config", str(options[0])]
    command += ["--output_dir", str(tmp_path / "run")]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert result.returncode == 1
    assert "several processes and started one" in result.stderr and "ACCELERATE_USE_CPU=true" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given, expected", [("1", 1), (None, available_cpus())])
def test_threads_of_a_launched_process(given, expected, root):
    """The number of the user takes precedence. The default of the launcher, 1, does not."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"CUDA_VISIBLE_DEVICES": ""} | ({} if given is None else {"OMP_NUM_THREADS": given})
    command = [*LAUNCH, "--num_processes", "1", "tests/support/threads.py"]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and int(result.stdout.split()[-1]) == expected, result.stderr


@pytest.mark.parametrize(
    "groups, files, expected",
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),  # one and a half
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/pod/one\n", {"pod/cpu.max": "300000 100000", "pod/one/cpu.max": "max 100000"}, 3),  # of the group above
        ("0::/outside/of/the/container\n", {"cpu.max": "500000 100000\n"}, 5),
        (
            "4:memory:/one\n3:cpu,cpuacct:/one\n0::/one\n",
            {"cpu/one/cpu.cfs_quota_us": "400000\n", "cpu/one/cpu.cfs_period_us": "100000\n"},
            4,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ("", {}, 64),
    ],
)
def test_the_quota_of_a_container_counts(groups, files, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert available_cpus(tmp_path) == expected
    assert available_cpus(tmp_path / "absent") == 64


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity of processes")
def test_all_defaults_respect_the_affinity(root):
    """On one CPU: loader workers, and threads of the benchmarks."""
    code = f"""
import os, sys
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
sys.path.append({str(root / "benchmarks")!r})
import measure
from rednet.training.options import groups
sys.argv = ["benchmark", "--device", "cuda"]
print(groups.WORKERS, measure.arguments("").threads)
"""
    result = python("-c", code)
    assert result.stdout.split() == ["1", "1"], result.stderr
