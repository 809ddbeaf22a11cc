"""What the authors' training code (OpenMMLab 1.x) and its successor (2.x) save beside the weights."""

import sys
import types

import numpy as np
import pytest
import torch
from rednet.checkpoints.read import read_checkpoint


LABELS = ["cat", "dog", "owl"]


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"backbone.stem.0.conv.weight": torch.randn(4, 3, 3, 3), "head.fc.weight": torch.randn(3, 8)}


def check_weights(weights: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == {"stem.0.conv.weight", "fc.weight"}
    assert all(torch.equal(weights[name.split(".", 1)[1]], value) for name, value in state.items())


@pytest.fixture
def mmengine(monkeypatch) -> types.SimpleNamespace:
    """The classes of OpenMMLab 2.x whose objects are in its checkpoints, where that package has them."""
    classes = types.SimpleNamespace()
    for path, name in (
        ("mmengine.logging.history_buffer", "HistoryBuffer"),
        ("mmengine.optim.scheduler.param_scheduler", "OneCycleParamScheduler"),
    ):
        for end in range(1, path.count(".") + 2):
            parent = ".".join(path.split(".")[:end])
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        kind = type(name, (), {"__module__": path, "anneal": lambda self: None})
        kind.anneal.__qualname__, kind.anneal.__module__ = f"{name}.anneal", path
        setattr(sys.modules[path], name, kind)
        setattr(classes, name, kind)
    return classes


def test_files_of_openmmlab_2(state, tmp_path, mmengine, monkeypatch):
    """With logs, schedulers and averages. The weights to evaluate are in `state_dict`."""
    log = mmengine.HistoryBuffer()
    log._log_history, log._count_history, log.max_length = np.array([0.5, 0.4]), np.ones(2), 1000000
    meta = {"mmengine_version": "0.10.7", "cfg": "model = dict()", "dataset_meta": {"classes": tuple(LABELS)}}
    content = {
        "meta": meta,
        "state_dict": state,
        "message_hub": {
            "log_scalars": {"train/loss": log},
            "runtime_info": {"best": np.float64(0.4), "palette": np.zeros((3, 3))},
        },
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.02}]},
        "param_schedulers": [{"anneal_func": mmengine.OneCycleParamScheduler().anneal, "last_step": 3}],
        "ema_state_dict": {f"module.{name}": torch.zeros_like(value) for name, value in state.items()},
    }
    torch.save(content, tmp_path / "a.pth")
    torch.save({"meta": meta, "state_dict": state}, tmp_path / "weights.pth")
    for name in [name for name in sys.modules if name.split(".")[0] == "mmengine"]:
        monkeypatch.delitem(sys.modules, name)  # it is not installed where the files are read
    for file in ("a.pth", "weights.pth"):
        weights, publisher, labels = read_checkpoint(tmp_path / file)
        assert (publisher, labels) == (None, LABELS)  # the authors did not use this release
        check_weights(weights, state)


def test_averages_of_openmmlab_1_are_left_out(state, tmp_path):
    """Its hooks keep a second set of weights in buffers, and evaluate the weights under their own names."""
    averages = {f"ema_{name.replace('.', '_')}": torch.zeros_like(value) for name, value in state.items()}
    torch.save({"meta": {"CLASSES": LABELS}, "state_dict": {**averages, **state}}, tmp_path / "a.pth")
    weights, publisher, labels = read_checkpoint(tmp_path / "a.pth")
    assert (publisher, labels) == (None, LABELS)
    check_weights(weights, state)


@pytest.mark.parametrize(
    "meta", [None, {}, {"CLASSES": None}, {"CLASSES": "cat"}, {"CLASSES": [1, 2]}, {"dataset_meta": {"classes": ()}}]
)
def test_metadata_without_names_of_classes(state, tmp_path, meta):
    torch.save({"meta": meta, "state_dict": state}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth").labels is None


def test_arrays_are_no_weights(state, tmp_path):
    torch.save({"state_dict": {**state, "head.fc.bias": np.zeros(3)}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="'head.fc.bias' is ndarray, expected Tensor"):
        read_checkpoint(tmp_path / "a.pth")
