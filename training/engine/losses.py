"""The losses of classifiers: cross-entropy, binary cross-entropy, and distillation from a teacher (Hinton et al., 2015)."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.logging import get_logger
from PIL import Image
from rednet.training.engine.models import load_classifier
from rednet.training.options.groups import NormalizationOptions
from rednet.training.options.models import check_model_name
from rednet.training.options.optimization import DistillationOptions, LossOptions
from timm.loss import BinaryCrossEntropy
from torch import Tensor
from transformers import AutoConfig, BaseImageProcessor, PreTrainedConfig, PreTrainedModel


logger = get_logger(__name__)


def classification_loss(logits: Tensor, labels: Tensor, config: LossOptions) -> Tensor:
    """Mean loss of a batch.

    Args:
        logits: (B, classes).
        labels: the classes (B,), or their probabilities (B, classes), to which label smoothing applies as well.
    """
    if config.loss == "cross_entropy":
        return F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
    num_classes = logits.shape[1]
    targets = F.one_hot(labels, num_classes) if labels.ndim == 1 else labels
    targets = targets.float() * (1 - config.label_smoothing) + config.label_smoothing / num_classes
    return BinaryCrossEntropy(smoothing=0, target_threshold=config.bce_target_thresh)(logits.float(), targets)


def distillation_loss(logits: Tensor, teacher_logits: Tensor, config: DistillationOptions) -> Tensor:
    """
    How far a student (B, classes) is from its teacher (B, classes), as a mean over the images. soft: the Kullback-Leibler
    divergence at the temperature, times its square; hard: the cross-entropy of the class that the teacher predicts.
    """
    logits, teacher_logits = logits.float(), teacher_logits.float()
    if config.distillation_type == "hard":
        return F.cross_entropy(logits, teacher_logits.argmax(1))
    temperature = config.distillation_temperature
    student, teacher = ((values / temperature).log_softmax(1) for values in (logits, teacher_logits))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


class Teacher:
    """
    A classifier that predicts the classes of a student's images (B, 3, H, W), mixed or not. It gets them in the size and
    with the normalization of its own image processor.

    Args:
        normalization: that of the student's images.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: BaseImageProcessor,
        normalization: NormalizationOptions,
        accelerator: Accelerator,
    ):
        model.eval().requires_grad_(False)
        self.model = model.to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.accelerator = accelerator
        self.size, scale, shift = expected_pixels(processor)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (normalization.image_mean, normalization.image_std))
        self.scale = (std * scale).to(accelerator.device)
        self.shift = (mean * scale + shift).to(accelerator.device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images that are normalized for the student."""
        images = images * self.scale + self.shift
        if tuple(images.shape[2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", antialias=True)
        with self.accelerator.autocast():
            return self.model(images.contiguous(memory_format=torch.channels_last)).logits


def expected_pixels(processor: BaseImageProcessor) -> tuple[tuple[int, int], Tensor, Tensor]:
    """
    What a classifier expects: height and width of its images, and the scale and the shift (1, 3, 1, 1) of pixel values
    from 0 to 1. They follow from what the processor makes of a black and of a white picture.
    """
    pictures = [Image.new("RGB", (640, 480), color) for color in ("black", "white")]
    black, white = (processor(picture, return_tensors="pt")["pixel_values"].float() for picture in pictures)
    height, width = black.shape[2:]
    center = (..., slice(height // 2, height // 2 + 1), slice(width // 2, width // 2 + 1))
    return (height, width), white[center] - black[center], black[center]


def load_teacher(
    config: DistillationOptions,
    student: PreTrainedConfig,
    normalization: NormalizationOptions,
    accelerator: Accelerator,
) -> Teacher | None:
    """The teacher of the options, if there is one.

    Raises:
        ValueError, OSError: it does not exist, or has other classes than the student.
    """
    name = config.teacher_model_name_or_path
    if name is None:
        return None
    with accelerator.main_process_first():
        check_model_name(name)
        architecture = AutoConfig.from_pretrained(name)
        # Transformers passes the number of classes to timm a second time if it is among these.
        (getattr(architecture, "model_args", None) or {}).pop("num_classes", None)
        model, processor = load_classifier(name, config=architecture)
    check_classes(name, model.config, student)
    return Teacher(model, processor, normalization, accelerator)


def check_classes(name: str, teacher: PreTrainedConfig, student: PreTrainedConfig) -> None:
    """
    Warns if the classes of two models have different names, which may be different words for the same.

    Raises:
        ValueError: the teacher `name` has more or fewer classes than the student, or the same in another order.
    """
    own, others = ([model.id2label[n] for n in range(model.num_labels)] for model in (teacher, student))
    if len(own) != len(others):
        raise ValueError(f"the teacher {name} has {len(own)} classes, but the model has {len(others)}")
    for number, label in enumerate(own):
        if own.count(label) == 1 and others.count(label) == 1 and others[number] != label:
            raise ValueError(
                f"the teacher {name} has the classes in another order: {label!r} is number {number} of the teacher and "
                f"number {others.index(label)} of the model"
            )
    if not set(own) & set(others):
        logger.warning(
            f"the teacher {name} has other names of classes, {own[:3]} ..., than the model, {others[:3]} ..."
        )
