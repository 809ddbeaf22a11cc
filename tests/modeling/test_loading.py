"""`rednet.load_model` loads the class that the configuration names. Its errors are tested with the export command."""

import os

import pytest
import rednet
import torch
from rednet import RedNetBackbone, RedNetForImageClassification, RedNetForSemanticSegmentation, RedNetModel

from small_models import random_images, small_config


@pytest.mark.parametrize(
    "kind", [RedNetBackbone, RedNetForImageClassification, RedNetForSemanticSegmentation, RedNetModel]
)
def test_loads_the_class_that_was_saved(kind, tmp_path):
    torch.manual_seed(0)
    model = kind(small_config(neck_hidden_size=16, decoder_hidden_size=16)).eval()
    model.bfloat16().save_pretrained(tmp_path)
    loaded = rednet.load_model(tmp_path)
    assert type(loaded) is kind and not loaded.training and loaded.dtype == torch.float32
    images = random_images(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).to_tuple(), model.float()(images).to_tuple())


def test_a_configuration_without_a_class_is_that_of_a_classifier(tmp_path):
    RedNetForImageClassification(small_config()).save_pretrained(tmp_path)
    config = rednet.RedNetConfig.from_pretrained(tmp_path)
    config.architectures = None
    config.save_pretrained(tmp_path)
    assert type(rednet.load_model(tmp_path)) is RedNetForImageClassification


def test_damaged_weights_are_named(tmp_path):
    RedNetForImageClassification(small_config()).save_pretrained(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 5000)
    with pytest.raises(ValueError, match=f"the weights of {tmp_path} are damaged"):
        rednet.load_model(tmp_path)
