"""Options and reports of the benchmarks."""

import argparse
from types import SimpleNamespace

import pytest
import torch

from measure import train, write
from network_modes import MODES
from tables import some_of


def test_a_list_of_choices():
    choose = some_of(MODES)
    assert choose(",".join(MODES)) == list(MODES)  # so no name has a comma
    with pytest.raises(argparse.ArgumentTypeError, match="graph: expected some of eager, compiled, CUDA graph,"):
        choose("eager,graph")


def test_a_report_keeps_its_name(tmp_path):
    write("Title", [{"a": 1}], SimpleNamespace(output=tmp_path / "bench/torch-2.15"), "today")
    assert {path.name for path in (tmp_path / "bench").iterdir()} == {"torch-2.15.csv", "torch-2.15.md"}


def test_a_training_step_of_a_compiled_network():
    """Compiled modules without a length have no truth value."""
    model = torch.nn.Linear(12, 1000)
    before = model.weight.clone()
    train(model, torch.randn(2, 12), torch.compile(model, backend="eager"))()
    assert not torch.equal(model.weight, before)
