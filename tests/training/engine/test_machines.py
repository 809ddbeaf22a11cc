"""Two machines that share only a network: two network namespaces of this machine, connected by a cable."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from processes import together


HOSTS = {"rednet-a": "10.213.77.1", "rednet-b": "10.213.77.2"}
STEPS = 36


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts():
    """Names of two hosts. Their processes are killed at the end."""
    if not shutil.which("ip"):
        pytest.skip("needs ip, of iproute2")
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        first, second = HOSTS
        ip("link", "add", "cable", "netns", first, "type", "veth", "peer", "name", "cable", "netns", second)
        for host, address in HOSTS.items():
            ip("-n", host, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", host, "link", "set", device, "up")
        yield list(HOSTS)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this process may not create networks: {error.stderr.strip()}")
    finally:
        for host in HOSTS:
            switch_off(host)
            subprocess.run(["ip", "netns", "delete", host], capture_output=True)


def start(root: Path, host: str, folder: Path, arguments: list[str]) -> subprocess.Popen:
    """The command of docs/distributed.md for machines that may be lost, on one of them."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    torchrun += ["--max_restarts", "3", "--rdzv_backend", "c10d", "--rdzv_id", "test", "--local_addr", HOSTS[host]]
    torchrun += ["--rdzv_endpoint", f"{HOSTS['rednet-a']}:29511", "--rdzv_conf", f"is_host={int(host == 'rednet-a')}"]
    environment = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "cable"}
    # Without it, a machine that joins later waits forever for the address of the first process.
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with open(folder / f"{host}.txt", "a") as output:
        return subprocess.Popen(
            ["ip", "netns", "exec", host, *torchrun, "training/train.py", *arguments],
            cwd=root,
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
        )


def switch_off(host: str) -> None:
    """Kills all processes of a host at once."""
    found = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True)
    for pid in map(int, found.stdout.split()):
        os.kill(pid, signal.SIGKILL)


def test_training_survives_the_loss_of_a_machine(root, options, hosts, tmp_path):
    """One of two machines is lost within an epoch and restarted. The weights are those of an undisturbed run."""
    values = {**options[1], "max_train_samples": 240, "max_eval_samples": 60, "per_device_train_batch_size": 10}
    values |= {"num_train_epochs": 3, "checkpointing_steps": "5"}
    (tmp_path / "options.yaml").write_text(json.dumps(values))
    arguments = ["--config", str(tmp_path / "options.yaml"), "--output_dir"]
    together(root, tmp_path / "undisturbed.txt", [*arguments, str(tmp_path / "undisturbed")])

    running = [start(root, host, tmp_path, [*arguments, str(tmp_path / "run")]) for host in hosts]
    deadline = time.monotonic() + 200
    while not list((tmp_path / "run/checkpoints").glob("step_*")):
        assert time.monotonic() < deadline, (tmp_path / "rednet-a.txt").read_text()
        time.sleep(0.001)
    switch_off("rednet-b")
    running[1].wait()
    assert not (tmp_path / "run/results.json").exists()
    running[1] = start(root, "rednet-b", tmp_path, [*arguments, str(tmp_path / "run")])
    for process, host in zip(running, hosts):
        assert process.wait(timeout=200) == 0, (tmp_path / f"{host}.txt").read_text()

    output = "".join((tmp_path / f"{host}.txt").read_text() for host in hosts)
    assert "Resuming from step" in output
    weights, expected = (load_file(tmp_path / name / "last/model.safetensors") for name in ("run", "undisturbed"))
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert json.loads((tmp_path / "run/results.json").read_text())["steps"] == STEPS
