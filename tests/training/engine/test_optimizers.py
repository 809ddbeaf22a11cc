"""Parameter groups and optimizers against their definitions, and against timm."""

import pytest
import torch
from rednet import RedNetBackbone, RedNetForSemanticSegmentation
from rednet.detection import fasterrcnn_rednet_fpn
from rednet.training import train
from rednet.training.engine.optimizers import backbone_parts, freeze, layer_groups, make_optimizer, parameter_groups
from rednet.training.options.scripts import TrainingConfig
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from small_models import random_images, small_config, small_model


def test_groups_without_weight_decay(options):
    """Off as in the paper: everything decays. On: neither BatchNorm nor biases."""
    model = train.make_model(TrainingConfig(**options[1]), None)
    (everything,) = parameter_groups(model.parameters(), 1e-4, no_decay_on_norm_and_bias=False)
    assert len(everything["params"]) == len(list(model.parameters())) and everything["weight_decay"] == 1e-4
    decayed, excluded = parameter_groups(model.parameters(), 1e-4, no_decay_on_norm_and_bias=True)
    assert decayed["weight_decay"] == 1e-4 and excluded["weight_decay"] == 0
    expected = {id(module.weight) for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    assert {id(parameter) for parameter in decayed["params"]} == expected
    assert len(decayed["params"]) + len(excluded["params"]) == len(list(model.parameters()))


def by_parameter(groups: list[dict], rate: str) -> dict[int, tuple]:
    """Learning rate or scale, and weight decay, by the id of a parameter."""
    return {id(p): (group.get(rate), group["weight_decay"]) for group in groups for p in group["params"]}


def test_groups_of_timm():
    model = small_model()
    config = TrainingConfig(weight_decay=0.02, no_decay_on_norm_and_bias=True)
    ours, theirs = layer_groups(model, config), param_groups_weight_decay(model, 0.02)
    assert {p: decay for p, (_, decay) in by_parameter(ours, "").items()} == {
        p: decay for p, (_, decay) in by_parameter(theirs, "").items()
    }


def test_layer_decay_of_timm(monkeypatch):
    """With the stages as layers, which timm finds by the names of parameters."""
    model = small_model()
    names = {"stem": r"^rednet\.embedder", "blocks": r"^rednet\.encoder\.stages\.(\d+)"}
    monkeypatch.setattr(type(model), "group_matcher", lambda self, coarse: names, raising=False)
    theirs = by_parameter(param_groups_layer_decay(model, 0.02, layer_decay=0.6), "lr_scale")
    config = TrainingConfig(learning_rate=1.0, layer_decay=0.6, weight_decay=0.02, no_decay_on_norm_and_bias=True)
    ours = by_parameter(layer_groups(model, config), "lr")
    assert len(ours) == len(theirs) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert ours[id(parameter)] == pytest.approx(theirs[id(parameter)]), name


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_parts_of_the_other_tasks(task):
    """Necks and heads have the full rate. Frozen parts are in no group."""
    sizes = {"hidden_sizes": [64] * 4, "depths": [1] * 4}
    if task == "segmentation":
        model = RedNetForSemanticSegmentation(small_config(neck_hidden_size=16, decoder_hidden_size=16, **sizes))
        prefixes, frozen = ["rednet.embedder.", *(f"rednet.encoder.stages.{n}." for n in range(4))], 1
        assert freeze(model, frozen_stages=1) == backbone_parts(model)[:2]
    else:
        backbone = RedNetBackbone(small_config(out_features=["stage1", "stage2", "stage3", "stage4"], **sizes))
        model, frozen = fasterrcnn_rednet_fpn(backbone, num_classes=3, channels=16, trainable_layers=3), 1
        prefixes = ["backbone.body.embedder.", *(f"backbone.body.encoder.stages.{n}." for n in range(4))]
    found = by_parameter(layer_groups(model, TrainingConfig(learning_rate=1.0, layer_decay=0.5)), "lr")
    for name, parameter in model.named_parameters():
        part = next((n for n, prefix in enumerate(prefixes) if name.startswith(prefix)), 5)
        rate, _ = found.get(id(parameter), (None, None))
        assert rate == (None if part <= frozen else 0.5 ** (5 - part)), name


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("sgd", {}, {"momentum": 0.9}),
        ("adamw", {}, {}),
        ("adamw", {"opt_betas": [0.8, 0.9], "opt_eps": 1e-3}, {"betas": (0.8, 0.9), "eps": 1e-3}),
        ("lamb", {"opt_eps": 1e-6}, {"eps": 1e-6}),
        ("muon", {"momentum": 0.95}, {"momentum": 0.95, "nesterov": True}),
    ],
)
def test_three_steps_of_the_optimizers_of_timm(name, options, expected):
    """The weights are those of timm's factory with the same settings. The order of sums differs, and a step of Adam can
    make 1e-5 of it; a learning rate or decay of another group would make 1e-3."""
    images, labels = random_images(4, 3, 32, 32), torch.arange(4)
    results = []
    for ours in (True, False):
        model = small_model(hidden_sizes=[64], depths=[1])
        if ours:
            config = TrainingConfig(
                optimizer=name, learning_rate=0.01, weight_decay=0.02, no_decay_on_norm_and_bias=True, **options
            )
            optimizer = make_optimizer(layer_groups(model, config), config)
        else:
            optimizer = create_optimizer_v2(
                model, opt=name, lr=0.01, weight_decay=0.02, filter_bias_and_bn=True, **expected
            )
        for _ in range(3):
            model(images, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(model.state_dict())
    start = small_model(hidden_sizes=[64], depths=[1]).state_dict()
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], rtol=0, atol=1e-4, msg=key)
    assert not torch.equal(results[0]["classifier.weight"], start["classifier.weight"])
