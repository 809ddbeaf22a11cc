"""RedNet as the backbone of Transformers' models for segmentation and detection."""

import pytest
import torch
from rednet import RedNetBackbone, RedNetConfig, count_macs
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    RTDetrConfig,
    RTDetrForObjectDetection,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)


# Two images: of one alone UPerNet's 1 x 1 pooling has no batch statistics.
BOXES = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.25, 0.5]])}] * 2


def backbone_config(*stages: int) -> RedNetConfig:
    return RedNetConfig(
        embedding_size=32,
        hidden_sizes=[64, 64, 128, 128],
        depths=[1, 1, 1, 1],
        out_features=[f"stage{stage}" for stage in stages],
    )


def upernet():
    config = UperNetConfig(
        backbone_config=backbone_config(1, 2, 3, 4), hidden_size=16, auxiliary_channels=16, num_labels=3
    )
    return UperNetForSemanticSegmentation(config), {"labels": torch.randint(3, (2, 64, 96))}


def mask2former():
    config = Mask2FormerConfig(
        backbone_config=backbone_config(1, 2, 3, 4),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=5,
        num_labels=3,
        train_num_points=64,
    )
    masks = torch.zeros(1, 64, 96)
    masks[:, 16:48, 32:64] = 1
    labels = {"mask_labels": [masks] * 2, "class_labels": [torch.tensor([1])] * 2}
    return Mask2FormerForUniversalSegmentation(config), labels


def detr():
    config = DetrConfig(
        backbone_config=backbone_config(4),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=5,
        num_labels=3,
    )
    return DetrForObjectDetection(config), {"labels": BOXES}


def rt_detr():
    config = RTDetrConfig(
        backbone_config=backbone_config(2, 3, 4),
        encoder_in_channels=[64, 128, 128],
        encoder_hidden_dim=32,
        d_model=32,
        decoder_in_channels=[32, 32, 32],
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        decoder_layers=1,
        num_queries=5,
        num_denoising=2,
        num_labels=3,
    )
    return RTDetrForObjectDetection(config), {"labels": BOXES}


@pytest.fixture(params=[upernet, mask2former, detr, rt_detr], ids=lambda make: make.__name__)
def model_and_labels(request):
    torch.manual_seed(0)
    model, labels = request.param()
    # The last BatchNorm of a block starts at zero and would hide all that is before it. (In DETR and RT-DETR, which
    # freeze BatchNorm, a block of random weights would never become anything: their backbones are meant to be trained.)
    for module in model.modules():
        if "BatchNorm" in type(module).__name__ and (module.weight == 0).all():
            torch.nn.init.ones_(module.weight)
    return model, labels


def images(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def outputs_of(model) -> list[torch.Tensor]:
    with torch.no_grad():
        outputs = model.eval()(images(1))
    names = ("logits", "pred_boxes", "class_queries_logits", "masks_queries_logits")
    return [outputs[name] for name in names if name in outputs]


def test_trains_with_a_rednet_backbone(model_and_labels):
    model, labels = model_and_labels
    backbones = [module for module in model.modules() if isinstance(module, RedNetBackbone)]
    assert len(backbones) == 1
    model.train()(images(2), **labels).loss.backward()
    for name, parameter in backbones[0].named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


def test_saves_and_loads(model_and_labels, tmp_path):
    model, _ = model_and_labels
    expected = outputs_of(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert type(loaded.config.backbone_config) is RedNetConfig
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    # Equal weights at other addresses may be summed in another order: of some thousand products in a layer.
    for value, result in zip(outputs_of(loaded), expected, strict=True):
        tolerance = 10_000 * torch.finfo(value.dtype).eps * result.abs().max().item()
        torch.testing.assert_close(value, result, rtol=0, atol=tolerance)


def test_macs_are_those_of_a_real_pass(model_and_labels):
    model, _ = model_and_labels
    with FlopCounterMode(display=False) as counter:
        outputs_of(model)
    assert count_macs(model, 64, 96) == counter.get_total_flops() // 2
