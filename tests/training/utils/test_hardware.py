"""The name of the hardware in cards."""

import subprocess

import pytest
import torch
from rednet.training.utils.hardware import describe_hardware


def test_threads_of_all_processes(monkeypatch):
    text = describe_hardware(torch.device("cpu"), num_processes=3)
    threads, _, name = text.partition(" threads of ")
    assert int(threads) == 3 * torch.get_num_threads() and name.strip() == name != ""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert describe_hardware(torch.device("cpu"), num_processes=1) == f"1 thread of {name}"


def test_the_processor_is_the_one_that_lscpu_names():
    try:
        lines = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout.splitlines()
    except FileNotFoundError:
        pytest.skip("needs lscpu of Linux")
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("Model name:")]
    if names and names[0] != "-":  # unknown in some virtual machines
        assert describe_hardware(torch.device("cpu"), 1).endswith(f" of {names[0]}")
