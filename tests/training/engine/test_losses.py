"""Losses of classifiers and their teachers: against timm, against their formulas in float64, and against the teacher's
own image processor."""

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from PIL import Image
from rednet.training.data.transforms import normalize
from rednet.training.engine.losses import check_classes, classification_loss, distillation_loss, load_teacher
from rednet.training.options.groups import NormalizationOptions
from rednet.training.options.optimization import DistillationOptions, LossOptions
from rednet.training.options.scripts import TrainingConfig
from rednet.training.train import compute_loss
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
)

from small_models import small_config, small_model


NAMES = ["ash", "beech", "cedar", "elm", "fir"]
LOGITS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * 3
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


def labeled(names: list[str]):
    return small_config(num_labels=len(names), id2label=dict(enumerate(names)))


@pytest.mark.parametrize("smoothing, threshold", [(0.0, None), (0.1, None), (0.1, 0.2), (0.0, 0.2)])
@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
@pytest.mark.parametrize("mixed", [False, True])
def test_losses_of_timm(loss, mixed, smoothing, threshold):
    """For mixed labels, timm smooths them where it mixes them, with the label of the last image for the first one."""
    config = LossOptions(loss, smoothing, threshold if loss == "bce" else None)
    weight = 0.7
    labels = (weight * torch.eye(5)[LABELS] + (1 - weight) * torch.eye(5)[LABELS.flip(0)]) if mixed else LABELS
    target = mixup_target(LABELS, 5, lam=weight, smoothing=smoothing) if mixed else LABELS
    if loss == "bce":
        theirs = BinaryCrossEntropy(smoothing=smoothing, target_threshold=threshold)
    else:
        theirs = SoftTargetCrossEntropy() if mixed else LabelSmoothingCrossEntropy(smoothing)
    torch.testing.assert_close(classification_loss(LOGITS, labels, config), theirs(LOGITS, target))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_by_its_formula(temperature):
    """The mean over the images of the sum of p log(p / q), times the square of the temperature."""
    teacher = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)) * 2
    p, q = (np.exp(t.double().numpy() / temperature) for t in (teacher, LOGITS))
    p, q = (values / values.sum(1, keepdims=True) for values in (p, q))
    expected = (p * np.log(p / q)).sum(1).mean() * temperature**2
    config = DistillationOptions(distillation_temperature=temperature)
    assert distillation_loss(LOGITS, teacher, config).item() == pytest.approx(expected, rel=1e-5)
    hard = DistillationOptions(distillation_type="hard")
    chosen = -np.log(np.exp(LOGITS.double().numpy()) / np.exp(LOGITS.double().numpy()).sum(1, keepdims=True))
    expected = chosen[np.arange(6), teacher.argmax(1)].mean()
    assert distillation_loss(LOGITS, teacher, hard).item() == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Classifiers of three libraries with random weights: one of timm, a ResNet of Transformers, a RedNet."""
    folder = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=5)
    options = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.3, 0.2], "input_size": [3, 48, 48], "crop_pct": 1.0}
    timm.models.save_for_hf(
        network,
        folder / "timm",
        model_config={"pretrained_cfg": options, "label_names": NAMES},
        safe_serialization=True,
    )
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: n for n, name in enumerate(NAMES)}}
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **names)
    for name, model in (
        ("resnet", ResNetForImageClassification(resnet)),
        ("rednet", small_model(**names)),
    ):
        model.save_pretrained(folder / name)
        ConvNextImageProcessor(
            size={"shortest_edge": 40}, crop_pct=1.0, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]
        ).save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("name, size", [("timm", 48), ("resnet", 40), ("rednet", 40)])
@pytest.mark.parametrize("same_size", [True, False])
def test_a_teacher_sees_what_its_processor_makes(teachers, name, size, same_size):
    """From images that are normalized for the student. At another size, the resizing differs a little from Pillow's."""
    folder = str(teachers / name)
    normalization = NormalizationOptions()
    teacher = load_teacher(
        DistillationOptions(folder), small_config(num_labels=5), normalization, Accelerator(cpu=True)
    )
    side = size if same_size else 64
    ramp = np.linspace(0, 255, side)  # a smooth picture, which every filter resizes alike
    pixels = np.stack([np.add.outer(ramp, ramp) / 2, np.tile(ramp, (side, 1)), np.tile(ramp[::-1], (side, 1)).T], 2)
    picture = pixels.round().astype(np.uint8)
    images = normalize(torch.from_numpy(picture).permute(2, 0, 1)[None], normalization)
    seen = []
    teacher.model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    logits = teacher(images)
    processor = AutoImageProcessor.from_pretrained(folder)
    expected = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    assert seen[0].shape == expected.shape == (1, 3, size, size)
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-5 if same_size else 0.1)
    assert logits.shape == (1, 5) and not logits.requires_grad and not teacher.model.training


def test_the_loss_of_a_student(teachers):
    """With the weight 0 only the labels count, with 1 only the teacher; the teacher gets no gradient."""
    images = torch.randint(256, (4, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch, model = {"pixel_values": images, "labels": LABELS[:4]}, small_model().eval()
    losses = {}
    for alpha in (0.0, 0.25, 1.0):
        config = TrainingConfig(teacher_model_name_or_path=str(teachers / "resnet"), distillation_alpha=alpha)
        teacher = load_teacher(config, model.config, config, Accelerator(cpu=True))
        losses[alpha] = compute_loss(model, batch, config, teacher=teacher)
    losses[0.25].backward()
    assert model.classifier.weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    torch.testing.assert_close(losses[0.0], compute_loss(model, batch, TrainingConfig()))
    torch.testing.assert_close(losses[0.25], 0.75 * losses[0.0] + 0.25 * losses[1.0])


def test_teachers_of_other_classes_are_refused(teachers):
    for name in ("timm", "resnet"):
        teacher = AutoConfig.from_pretrained(teachers / name)
        check_classes(name, teacher, labeled(NAMES))
        with pytest.raises(ValueError, match=f"the teacher {name} has 5 classes, but the model has 2"):
            check_classes(name, teacher, labeled(NAMES[:2]))
        with pytest.raises(ValueError, match="'beech' is number 1 of the teacher and number 2 of the model"):
            check_classes(name, teacher, labeled(["ash", "cedar", "beech", "elm", "fir"]))
    check_classes("timm", teacher, labeled(["ash", "ash", "beech tree", "elm", "fir"]))  # some names differ
