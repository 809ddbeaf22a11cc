"""Gradient checkpointing of RedNet's bottlenecks."""

import pytest
import torch
from rednet import RedNetBackbone, RedNetConfig
from transformers import PreTrainedModel

from small_models import random_images, small_config, small_model


def enable_checkpointing(model, use_reentrant: bool) -> None:
    """By the public method, which has two names across the supported releases of Transformers."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(use_reentrant):
    """Equal gradients, and BatchNorm statistics that have seen the batch once."""
    images, labels = random_images(2, 3, 48, 48, requires_grad=True), torch.tensor([1, 2])
    plain, checkpointed = small_model(), small_model()
    enable_checkpointing(checkpointed, use_reentrant)
    for model in (plain, checkpointed):
        model.train()
        model(images, labels=labels).loss.backward()
    for (name, expected), value in zip(plain.named_parameters(), checkpointed.parameters()):
        torch.testing.assert_close(value.grad, expected.grad, msg=name)
    for (name, expected), value in zip(plain.named_buffers(), checkpointed.buffers()):
        assert torch.equal(value, expected), name


def test_gradient_checkpointing_inside_of_another_model():
    """A detector that enables checkpointing for all of its parts must not count the batch twice either."""

    class Detector(PreTrainedModel):
        config_class = RedNetConfig
        supports_gradient_checkpointing = True

        def __init__(self, config):
            super().__init__(config)
            self.backbone = RedNetBackbone(config)
            self.post_init()

    detector = Detector(small_config()).train()
    enable_checkpointing(detector, use_reentrant=False)
    detector.backbone(random_images(2, 3, 48, 48)).feature_maps[0].sum().backward()
    counts = [m.num_batches_tracked.item() for m in detector.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert set(counts) == {1}


def test_gradient_checkpointing_under_compile():
    images, labels = random_images(2, 3, 48, 48), torch.tensor([1, 2])
    plain, checkpointed = (small_model(hidden_sizes=[64], depths=[1]) for _ in range(2))
    enable_checkpointing(checkpointed, use_reentrant=False)
    compiled = torch.compile(checkpointed.train(), backend="aot_eager")
    compiled(images, labels=labels).loss.backward()
    plain.train()(images, labels=labels).loss.backward()
    for (name, expected), value in zip(plain.named_buffers(), checkpointed.named_buffers()):
        torch.testing.assert_close(value[1], expected, msg=name)
