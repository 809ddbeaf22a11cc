"""Counts of parameters, operations and activations, against published ones and a real pass."""

import pytest
import torch
from rednet import (
    RedNetConfig,
    RedNetForImageClassification,
    RedNetForSemanticSegmentation,
    count_activations,
    count_macs,
    count_parameters,
)
from rednet.modeling_rednet import RedNetInvolution
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, ConvNextConfig, ResNetConfig

from plain_rednet import plain
from small_models import small_config, small_model


# The paper's table: depth -> parameters, 10^9 multiply-accumulates at 224 x 224.
PUBLISHED = {
    26: (9_233_166, 1.685),
    38: (12_386_986, 2.167),
    50: (15_540_806, 2.649),
    101: (25_652_950, 4.659),
    152: (33_984_582, 6.679),
}


@pytest.mark.parametrize("depth", PUBLISHED)
def test_published_parameters_and_macs(root, depth):
    config = AutoConfig.from_pretrained(root / f"configs/models/rednet-{depth}.json")
    assert type(config) is RedNetConfig and config.num_labels == 1000
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(config)
    parameters, macs = PUBLISHED[depth]
    assert count_parameters(model) == parameters
    assert round(count_macs(model, 224, 224) / 1e9, 3) == macs


def test_counting_leaves_frozen_layers_frozen():
    model = small_model().train()
    model.rednet.embedder.eval()
    before = [module.training for module in model.modules()]
    assert count_macs(model, 64, 64) > 0
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize(
    ("config", "millions"),
    [(ResNetConfig(), 11.1), (ConvNextConfig(depths=[2, 2, 8, 2], hidden_sizes=[80, 160, 320, 640]), 8.4)],
    ids=["ResNet-50", "ConvNeXt-Nano"],
)
def test_activations_are_those_that_timm_publishes(config, millions):
    config.num_labels = 1000
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(config)
    assert round(count_activations(model) / 1e6, 1) == millions


@pytest.mark.parametrize("task", [RedNetForImageClassification, RedNetForSemanticSegmentation])
@pytest.mark.parametrize("operator", ["involution", "convolution"])
def test_activations_of_a_real_pass(task, operator):
    """Every layer that has weights runs by itself, and the convolutions among them generate the kernels."""
    torch.manual_seed(0)
    model, outputs = task(small_config(operator_type=operator, neck_type=operator)).train(), []
    unchanged = [module.training for module in model.modules()]
    counted = count_activations(model, 40, 56)
    assert [module.training for module in model.modules()] == unchanged
    model = plain(model).eval()
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear | RedNetInvolution)]
    assert any(isinstance(layer, RedNetInvolution) for layer in layers) == (operator == "involution")
    for layer in layers:
        layer.register_forward_hook(lambda _, inputs, output: outputs.append(output.numel()))
    with torch.no_grad():
        model(torch.randn(1, 3, 40, 56))
    assert len(outputs) >= len(layers)
    assert counted == sum(outputs)
