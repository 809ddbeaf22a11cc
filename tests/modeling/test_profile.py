"""Counts of parameters and operations, against the paper's."""

import pytest
import torch
from rednet import RedNetConfig, count_macs, count_parameters
from transformers import AutoConfig, AutoModelForImageClassification

from small_models import small_model


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
