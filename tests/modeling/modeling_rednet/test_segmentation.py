"""Semantic FPN on RedNet, against torchvision's FPN, plain definitions and real pictures."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rednet import (
    RedNetConfig,
    RedNetForImageClassification,
    RedNetForSemanticSegmentation,
)
from rednet.execution_rednet import RedNetFoldedNorm
from torch.optim.lr_scheduler import OneCycleLR
from torchvision.ops import FeaturePyramidNetwork
from transformers import AutoConfig, AutoModelForSemanticSegmentation, SegformerImageProcessor, pipeline

from involution import Involution2d
from pictures import COIN, coins, flower_and_sky
from small_models import random_images, randomize_norms


def small_model(**changes) -> RedNetForSemanticSegmentation:
    torch.manual_seed(0)
    values = {"embedding_size": 32, "hidden_sizes": [64, 64, 128, 128], "depths": [1, 1, 1, 1], "num_labels": 5}
    values |= {"neck_hidden_size": 32, "decoder_hidden_size": 24}
    model = RedNetForSemanticSegmentation(RedNetConfig(**{**values, **changes}))
    randomize_norms(model)
    return model.eval()


@pytest.mark.parametrize("name", ["rednet-50-cityscapes", "rednet-50-cityscapes-involution"])
def test_configurations_of_cityscapes(root, name):
    """The class of the model, and the labels."""
    config = AutoConfig.from_pretrained(root / f"configs/models/{name}.json")
    with torch.device("meta"):
        model = AutoModelForSemanticSegmentation.from_config(config)
    assert type(model) is RedNetForSemanticSegmentation
    assert (config.num_labels, config.id2label[0], config.label2id["bicycle"]) == (19, "road", 18)
    assert config.architectures == ["RedNetForSemanticSegmentation"]


@pytest.mark.parametrize("neck_type", ["convolution", "involution"])
@pytest.mark.parametrize("size", [(64, 96), (67, 45)])
def test_neck_is_torchvisions_pyramid(neck_type, size):
    model = small_model(neck_type=neck_type).double()
    neck = model.neck
    pyramid = FeaturePyramidNetwork([64, 64, 128, 128], 32).double()
    for lateral, block in zip(neck.laterals, pyramid.inner_blocks, strict=True):
        block[0].load_state_dict(lateral.state_dict())
    for n, output in enumerate(neck.outputs):
        if neck_type == "convolution":
            pyramid.layer_blocks[n][0].load_state_dict(output.state_dict())
        else:
            layer = Involution2d(32, kernel_size=7).double().eval()
            layer.load_state_dict(dict(zip(layer.state_dict(), output.state_dict().values(), strict=True)))
            pyramid.layer_blocks[n] = layer
    with torch.no_grad():
        features = model.rednet(random_images(2, 3, *size).double(), output_hidden_states=True).hidden_states[1:]
        expected = pyramid({str(n): feature for n, feature in enumerate(features)})
        for result, value in zip(neck(features), expected.values(), strict=True):
            torch.testing.assert_close(result, value)


def test_head_is_the_definition():
    """Level n: max(1, n) times convolution, BatchNorm, ReLU, with 2x upsampling after each above level 0; the sum."""
    head = small_model().decode_head.double()
    features = [random_images(2, 32, 32 // 2**n, 48 // 2**n).double() for n in range(4)]
    total = 0
    for n, feature in enumerate(features):
        for layer in head.levels[n]:
            norm = layer.normalization
            feature = F.conv2d(feature, layer.convolution.weight, padding=1)
            feature = F.batch_norm(feature, norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()
            if n > 0:
                feature = F.interpolate(feature, scale_factor=2, mode="bilinear")
        total = total + feature
    assert [len(layers) for layers in head.levels] == [1, 1, 2, 3]
    expected = F.conv2d(total, head.classifier.weight, head.classifier.bias)
    with torch.no_grad():
        torch.testing.assert_close(head(features), expected)


def test_dropout_is_the_papers():
    head = RedNetForSemanticSegmentation(small_model().config).decode_head
    dropped = head.dropout.train()(torch.ones(200, 100, 1, 1)) == 0
    assert abs(dropped.double().mean() - 0.1) < 0.01


@pytest.mark.parametrize("neck_type", ["convolution", "involution"])
@pytest.mark.parametrize("size", [(64, 96), (67, 45), (32, 32)])
def test_logits_have_the_size_of_the_first_stage(neck_type, size):
    outputs = small_model(neck_type=neck_type)(random_images(2, 3, *size), output_hidden_states=True)
    assert outputs.logits.shape == (2, 5, -(-size[0] // 4), -(-size[1] // 4))
    assert outputs.logits.shape[2:] == outputs.hidden_states[1].shape[2:] and len(outputs.hidden_states) == 5


def test_loss_leaves_out_what_is_not_labeled():
    model, images = small_model().double(), random_images(2, 3, 64, 96).double()
    labels = torch.randint(5, (2, 64, 96))
    labels[:, 10:40, 20:50] = 255
    outputs = model(images, labels=labels)
    logits = F.interpolate(outputs.logits, size=(64, 96), mode="bilinear", align_corners=False)
    chosen = logits.log_softmax(1).gather(1, labels.clamp(max=4)[:, None])[:, 0]
    torch.testing.assert_close(outputs.loss, -chosen[labels != 255].mean())
    assert model(images).loss is None

    other = small_model(semantic_loss_ignore_index=0).double()
    labels = torch.randint(5, (2, 32, 48))  # coarser than the picture
    logits = F.interpolate(other(images).logits, size=(32, 48), mode="bilinear", align_corners=False)
    chosen = logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(other(images, labels=labels).loss, -chosen[labels != 0].mean())


def test_a_single_class_has_no_loss():
    """It would be 0 for all weights, and a training would learn nothing."""
    model, images = small_model(num_labels=1), random_images(1, 3, 32, 32)
    assert model(images).logits.shape == (1, 1, 8, 8)
    with pytest.raises(ValueError, match="num_labels=1 must be at least 2"):
        model(images, labels=torch.zeros(1, 32, 32, dtype=torch.long))


def test_no_class_is_refused():
    with pytest.raises(ValueError, match="num_labels=0 must be at least 1 for semantic segmentation"):
        small_model(num_labels=0)


@pytest.mark.parametrize("neck_type", ["convolution", "involution"])
def test_saves_and_loads(neck_type, tmp_path):
    model, images = small_model(neck_type=neck_type), random_images(1, 3, 64, 64)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert type(loaded) is RedNetForSemanticSegmentation and loaded.config.neck_type == neck_type
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    with torch.no_grad():
        # Equal weights at other addresses may be summed in another order.
        found, expected = (one.double()(images.double()).logits for one in (loaded, model))
        torch.testing.assert_close(found, expected)
        logits, states = loaded(images.double(), output_hidden_states=True, return_dict=False)
    assert logits.shape == (1, 5, 16, 16) and len(states) == 5


def test_starts_from_a_classifier(tmp_path):
    classifier = RedNetForImageClassification(small_model().config)
    classifier.save_pretrained(tmp_path)
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    for name, value in classifier.rednet.state_dict().items():
        assert torch.equal(model.rednet.state_dict()[name], value), name
    assert 0.005 < model.decode_head.classifier.weight.std() < 0.015  # every class about equally likely


def test_trains_every_parameter_with_and_without_checkpointing():
    images, labels = random_images(2, 3, 64, 64).double(), torch.randint(5, (2, 64, 64))
    grads = []
    for checkpointing in (False, True):
        model = small_model(neck_type="involution", classifier_dropout_prob=0.0).double().train()
        if checkpointing:
            # By the public method, which has two names across the supported releases of Transformers.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        model(images, labels=labels).loss.backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, grad in grads[0].items():
        assert grad.isfinite().all() and grad.abs().max() > 0, name
        torch.testing.assert_close(grads[1][name], grad)


def test_fuse_and_compile_change_nothing():
    model, images = small_model(neck_type="involution"), random_images(1, 3, 64, 80)
    with torch.no_grad():
        expected = model(images).logits
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images).logits, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
        fused = model.fuse()
        assert isinstance(fused.decode_head.levels[3][2].normalization, RedNetFoldedNorm)
        torch.testing.assert_close(fused(images).logits, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_neck_must_divide_into_groups():
    RedNetConfig(neck_hidden_size=24)
    with pytest.raises(Exception, match="neck_hidden_size"):
        RedNetConfig(neck_hidden_size=24, neck_type="involution")


SIZE = (96, 128)


def pictures_and_classes() -> tuple[torch.Tensor, torch.Tensor]:
    """Four pictures (4, 3, 96, 128) from 0 to 1, of coins, a flower and sky, and the class of every pixel."""
    picture, numbers = coins()
    pictures, classes = flower_and_sky()
    pictures += [picture[:, :150, :192], picture[:, 150:300, 190:]]
    classes += [COIN * (part > 0) for part in (numbers[:150, :192], numbers[150:300, 190:])]
    pictures = [F.interpolate(p[None], SIZE, mode="bilinear", antialias=True) for p in pictures]
    classes = [F.interpolate(c[None, None].float(), SIZE, mode="nearest")[0].long() for c in classes]
    return torch.cat(pictures), torch.cat(classes)


def test_learns_and_the_pipeline_shows_it(tmp_path, caplog, monkeypatch):
    """From random weights to the outlines of coins, flower and sky in 70 steps, and through files and pipeline."""
    pictures, classes = pictures_and_classes()
    processor = SegformerImageProcessor(size={"height": SIZE[0], "width": SIZE[1]})
    pictures = [Image.fromarray((p.permute(1, 2, 0) * 255).byte().numpy()) for p in pictures]
    images = processor(pictures, return_tensors="pt").pixel_values
    names = ["background", "coin", "flower", "sky"]
    torch.manual_seed(0)
    model = RedNetForSemanticSegmentation(
        RedNetConfig(
            embedding_size=32,
            hidden_sizes=[64, 128, 256],
            depths=[1, 1, 1],
            stem_stride=2,
            neck_type="involution",
            neck_hidden_size=32,
            decoder_hidden_size=32,
            id2label=dict(enumerate(names)),
            label2id={name: n for n, name in enumerate(names)},
        )
    )
    steps, rate = 70, 4e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for _ in range(steps):
        loss = model(images, labels=classes).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with caplog.at_level("ERROR", logger="transformers"):
        segment = pipeline("image-segmentation", model=str(tmp_path))
    assert not caplog.records  # that the model is not supported, say
    predicted = torch.zeros_like(classes)
    for picture, prediction in zip(pictures, predicted):
        for part in segment(picture):
            prediction[torch.from_numpy(np.array(part["mask"])) > 0] = names.index(part["label"])
    for n, name in enumerate(names):
        true, found = classes == n, predicted == n
        overlap = ((true & found).sum() / (true | found).sum()).item()
        assert overlap > 0.93, f"{name}: intersection over union {overlap:.3f}"
