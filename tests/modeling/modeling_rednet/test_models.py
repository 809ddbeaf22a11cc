"""The model family by the conventions of Transformers."""

import json
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rednet import (
    RedNetBackbone,
    RedNetConfig,
    RedNetForImageClassification,
    RedNetForSemanticSegmentation,
    RedNetModel,
)
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
)

from small_models import random_images, small_config, small_model


@pytest.mark.parametrize(
    "kind", [RedNetModel, RedNetForImageClassification, RedNetForSemanticSegmentation, RedNetBackbone]
)
def test_what_takes_the_input_is_the_first_convolution(kind):
    """Adapters on a frozen, checkpointed model ask for it, and quantizers and noise on embeddings do."""
    model = kind(small_config(neck_hidden_size=16, decoder_hidden_size=16))
    embedder = getattr(model, "rednet", model).embedder
    assert model.get_input_embeddings() is embedder.layers[0].convolution
    seen = []
    model.get_input_embeddings().register_forward_hook(lambda module, arguments, output: seen.append(output))
    model.requires_grad_(False).enable_input_require_grads()
    model(random_images(2, 3, 48, 48))
    assert seen[0].requires_grad


def test_round_trip_through_auto_classes(tmp_path):
    model = small_model().eval()
    images = random_images(2, 3, 64, 64)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "rednet"
    with torch.no_grad():
        expected = model(images)
        classifier = AutoModelForImageClassification.from_pretrained(tmp_path)
        assert type(classifier) is RedNetForImageClassification and not classifier.training
        torch.testing.assert_close(classifier(images).logits, expected.logits, rtol=1e-4, atol=1e-5)
        base = AutoModel.from_pretrained(tmp_path)
        assert type(base) is RedNetModel
        torch.testing.assert_close(classifier.classifier(base(images).pooler_output), expected.logits)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == classifier.config.to_dict()


def test_backbone_gives_the_features_of_every_stage(tmp_path):
    model = small_model().eval()
    model.save_pretrained(tmp_path)
    names = ["stem", "stage1", "stage2"]
    backbone = RedNetBackbone.from_pretrained(tmp_path, out_features=names)
    images = random_images(1, 3, 64, 96)
    with torch.no_grad():
        features = backbone(images).feature_maps
        states = model(images, output_hidden_states=True).hidden_states
    assert [tuple(f.shape[1:]) for f in features] == [(32, 16, 24), (64, 16, 24), (128, 8, 12)]
    assert backbone.channels == [32, 64, 128]
    for feature, state in zip(features, states, strict=True):
        torch.testing.assert_close(feature, state, rtol=1e-4, atol=1e-5)

    chosen = AutoBackbone.from_config(small_config(out_indices=[1]))
    assert type(chosen) is RedNetBackbone and chosen.out_features == ["stage1"]
    outputs = chosen(images, output_hidden_states=True)
    assert len(outputs.feature_maps) == 1 and len(outputs.hidden_states) == 3
    assert chosen(images).hidden_states is None


def test_hidden_states_and_tuples():
    model = small_model().eval()
    images = random_images(2, 3, 64, 64)
    outputs = model(images, output_hidden_states=True)
    assert [tuple(s.shape) for s in outputs.hidden_states] == [(2, 32, 16, 16), (2, 64, 16, 16), (2, 128, 8, 8)]
    logits, states = model(images, output_hidden_states=True, return_dict=False)
    assert torch.equal(logits, outputs.logits) and len(states) == 3
    assert model(images).hidden_states is None
    model.config.return_dict = False
    assert torch.equal(model(images)[0], outputs.logits)
    model.config.return_dict = True
    pooled = model.rednet(images)
    assert torch.equal(pooled.pooler_output, pooled.last_hidden_state.mean((2, 3)))


@torch.no_grad()
def test_the_features_of_every_stage_are_kept_only_if_asked_for():
    """The result of a stage is freed when the next stage has used it."""
    model = small_model(hidden_sizes=[64, 128, 128], depths=[1, 1, 1]).eval()
    first, _, last = model.rednet.encoder.stages
    features, is_alive = [], []
    first.register_forward_hook(lambda module, inputs, output: features.append(weakref.ref(output)))
    last.register_forward_pre_hook(lambda module, inputs: is_alive.append(features[-1]() is not None))
    images = random_images(1, 3, 32, 32)
    model(images)
    model(images, output_hidden_states=True)
    assert is_alive == [False, True]


def test_loss_is_the_cross_entropy_of_the_labels():
    model = small_model()
    labels = torch.tensor([3, 0])
    outputs = model(random_images(2, 3, 64, 64), labels=labels)
    expected = -outputs.logits.log_softmax(1)[[0, 1], labels].mean()
    torch.testing.assert_close(outputs.loss, expected)


def test_loads_with_another_number_of_labels(tmp_path):
    model = small_model(num_labels=5)
    model.save_pretrained(tmp_path)
    other = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert other.classifier.weight.shape == (7, 128)
    for (name, value), kept in zip(other.rednet.state_dict().items(), model.rednet.state_dict().values()):
        assert torch.equal(value, kept), name


def test_initialization_is_the_papers():
    model = RedNetForImageClassification(RedNetConfig(depths=[1, 1, 1, 1]))
    for block in (layer for stage in model.rednet.encoder.stages for layer in stage.layers):
        assert (block.layer[-1].normalization.weight == 0).all()
        assert (block.layer[1].normalization.weight == 1).all()
        assert block.layer[1].involution.span.bias.abs().max() == 0
        weight = block.layer[0].convolution.weight  # Kaiming, fan-out: variance 2 / (out_channels * 1 * 1)
        assert abs(weight.std() / (2 / weight.shape[0]) ** 0.5 - 1) < 0.05


def test_loading_resets_what_the_checkpoint_lacks(tmp_path):
    """BatchNorm buffers that are missing in a file get their defaults, not what memory held."""
    model = small_model()
    state = {k: v for k, v in model.state_dict().items() if "embedder.layers.0.normalization" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    norm = RedNetForImageClassification.from_pretrained(tmp_path).rednet.embedder.layers[0].normalization
    assert (norm.running_mean == 0).all() and (norm.running_var == 1).all() and (norm.weight == 1).all()
    assert norm.num_batches_tracked == 0


@given(height=st.integers(32, 75), width=st.integers(32, 75), stem_stride=st.sampled_from([1, 2, 4]))
@settings(max_examples=15)
def test_any_size_from_32_up(height, width, stem_stride):
    model = small_model(stem_stride=stem_stride).eval()
    with torch.no_grad():
        states = model(random_images(1, 3, height, width), output_hidden_states=True).hidden_states
    # A stride of 2 rounds up, for convolution, pooling and involution alike.
    sizes = [(height, width)]
    while len(sizes) < 4:
        sizes.append(tuple((n + 1) // 2 for n in sizes[-1]))
    first = {1: 0, 2: 1, 4: 2}[stem_stride]
    assert [tuple(s.shape[2:]) for s in states] == [sizes[first], sizes[first], sizes[first + 1]]


def test_wrong_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="1 channels, expected 3"):
        small_model()(torch.zeros(1, 1, 64, 64))


def test_trainer_accumulates_as_the_large_batch(tmp_path):
    """One step of Trainer on 4 x 2 images gives the weights of one step on 8 (frozen BatchNorm: no batch statistics)."""
    rows = [
        {"pixel_values": random_images(8, 3, 32, 32)[n], "labels": torch.tensor(n % 5)} for n in range(8)
    ]  # fmt: skip

    class FrozenRedNetForImageClassification(RedNetForImageClassification):
        def train(self, mode=True):
            super().train(mode)
            for module in self.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()
            return self

    weights = []
    for accumulation in (1, 4):
        torch.manual_seed(0)
        model = FrozenRedNetForImageClassification(small_config())
        arguments = TrainingArguments(
            str(tmp_path / str(accumulation)), per_device_train_batch_size=8 // accumulation, use_cpu=True,
            gradient_accumulation_steps=accumulation, max_steps=1, learning_rate=0.1, optim="sgd", report_to=[],
            lr_scheduler_type="constant", disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=rows).train()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1])
