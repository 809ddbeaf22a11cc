"""Stochastic depth: rates and expectation as timm has them, and nothing else about a model changes."""

import pytest
import timm
import torch
from huggingface_hub.errors import StrictDataclassError
from rednet import RedNetBackbone, RedNetConfig, RedNetForImageClassification, RedNetForSemanticSegmentation
from rednet.modeling_rednet import RedNetDropPath
from rednet.training import train, train_detection
from rednet.training.options.scripts import DetectionConfig, TrainingConfig
from timm.layers import DropPath

from plain_rednet import plain
from small_models import check_close, random_images, small_config, small_model


def rates(model: torch.nn.Module) -> list[float]:
    return [module.rate for module in model.modules() if isinstance(module, RedNetDropPath)]


@pytest.mark.parametrize("depths", [[3, 4, 6, 3], [1, 2, 2, 1]])
def test_rates_are_those_of_a_resnet_of_timm(depths):
    """They grow linearly over all blocks. timm leaves the module out of the first block, whose rate is 0."""
    with torch.device("meta"):
        resnet = timm.models.resnet.ResNet(timm.models.resnet.Bottleneck, depths, drop_path_rate=0.3)
        config = RedNetConfig(depths=depths, drop_path_rate=0.3, num_labels=3)
        models = [c(config) for c in (RedNetForImageClassification, RedNetForSemanticSegmentation, RedNetBackbone)]
    expected = [module.drop_prob for module in resnet.modules() if isinstance(module, DropPath)]
    for model in models:
        assert rates(model) == pytest.approx([0.0, *expected], abs=1e-12)


def test_one_block():
    assert rates(small_model(hidden_sizes=[64], depths=[1], drop_path_rate=0.5)) == [0.0]


@pytest.mark.parametrize("layer", [RedNetDropPath(0.3), DropPath(0.3)], ids=["ours", "timm"])
def test_each_image_is_kept_whole_or_dropped(layer):
    """30 % of 20,000 images are zero, the others are divided by 0.7: the mean stays (standard error 0.005)."""
    torch.manual_seed(0)
    images = torch.ones(20_000, 2, 1, 2)
    values = layer(images)
    first = values[:, :1, :1, :1]
    assert torch.equal(values, first.expand_as(values))
    torch.testing.assert_close(values.unique(), torch.tensor([0, 1 / 0.7]))
    assert abs((first == 0).double().mean() - 0.3) < 0.02 and abs(first.mean() - 1) < 0.03
    assert layer.eval()(images) is images


def test_other_modules_do_not_change():
    """The same state and the same initial weights; the same values in evaluation, and in training at rate 0."""
    images = random_images(2, 3, 48, 48)
    without, zero, model = small_model(), small_model(drop_path_rate=0), small_model(drop_path_rate=0.9)
    assert without.config.drop_path_rate == 0
    for expected, other in ((without, zero), (without, model)):
        assert list(expected.state_dict()) == list(other.state_dict())
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in expected.state_dict().items())
    assert torch.equal(model.eval()(images).logits, without.eval()(images).logits)
    assert torch.equal(zero.train()(images).logits, without.train()(images).logits)


def enable_checkpointing(model: torch.nn.Module) -> None:
    """By the public method, which has two names across the supported releases of Transformers."""
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_modules(checkpointing):
    """With the same random numbers as the modules called one by one; recomputed activations repeat them."""
    network = small_model(depths=[2, 2], drop_path_rate=0.5).double().train()
    reference = plain(network)
    if checkpointing:
        enable_checkpointing(network)
    results = []
    for model in (reference, network):
        torch.manual_seed(1)
        images = random_images(4, 3, 32, 32, dtype=torch.float64).requires_grad_()
        model(images).logits.square().sum().backward()
        results.append([images.grad, *(parameter.grad for parameter in model.parameters())])
    for expected, value in zip(*results, strict=True):
        check_close(value, expected)


def test_what_a_hook_keeps_is_not_overwritten():
    network, seen = small_model(drop_path_rate=0.5).train(), []
    for module in network.modules():
        if isinstance(module, RedNetDropPath):
            module.register_forward_hook(lambda module, inputs, output: seen.append((output, output.clone())))
    network(random_images(4, 3, 32, 32))
    assert len(seen) == 3 and all(torch.equal(output, copy) for output, copy in seen)


def test_saved_with_the_configuration(tmp_path):
    small_model(drop_path_rate=0.2).save_pretrained(tmp_path)
    assert rates(RedNetForImageClassification.from_pretrained(tmp_path)) == pytest.approx([0, 0.1, 0.2])
    changed = RedNetForImageClassification.from_pretrained(tmp_path, drop_path_rate=0.4)
    assert rates(changed) == pytest.approx([0, 0.2, 0.4])
    with pytest.raises(StrictDataclassError, match="drop_path_rate=1 must be from 0 to below 1"):
        small_config(drop_path_rate=1)


def test_option_of_the_training_scripts(tmp_path):
    """--drop_path_rate replaces the rate of an architecture, and of pretrained weights; without it, they keep theirs."""
    small_model(drop_path_rate=0.2, hidden_sizes=[64] * 4, depths=[1] * 4).save_pretrained(tmp_path)
    folder, changed = str(tmp_path), pytest.approx([0, 0.2, 0.4, 0.6])
    start = {"config_name": folder}, {"model_name_or_path": folder}
    for options in start:
        assert rates(train.make_model(TrainingConfig(**options, drop_path_rate=0.6), None)) == changed
        assert rates(train.make_model(TrainingConfig(**options), None))[-1] == 0.2
        config = DetectionConfig(**options, drop_path_rate=0.6, trainable_layers=2)
        detector = train_detection.make_model(config, train_detection.detector_options(config, 1), [])
        assert rates(detector) == changed
        layers = [layer for layer in detector.modules() if isinstance(layer, RedNetDropPath)]
        assert [layer.training for layer in layers] == [False, False, True, True]  # two stages are frozen
