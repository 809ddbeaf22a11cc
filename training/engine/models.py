"""Loads classifiers, and checks models before they are trained."""

import hashlib

import torch
from rednet import RedNetPreTrainedModel
from rednet.loading import naming_damaged_weights
from rednet.training.options.models import check_channels, check_model_name
from transformers import AutoImageProcessor, AutoModelForImageClassification, BaseImageProcessor, PreTrainedModel


def load_classifier(name: str, image_size: int | None = None, **options) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    Loads an image classifier and its image processor.

    Args:
        name: a folder, or the id of a Hub repository.
        image_size: height and width of the model's input, by default those of the processor.
        options: of the model's `from_pretrained`.

    Raises:
        ValueError, OSError: the folder or repository does not exist, or has no image classifier for RGB images, or one
            whose classes have no names, or whose weights are damaged.
    """
    check_model_name(name)
    with naming_damaged_weights(name):
        model = AutoModelForImageClassification.from_pretrained(name, **options)
    check_channels(model.config, name)
    numbers = sorted(model.config.id2label)
    if numbers != list(range(len(numbers))):
        raise ValueError(
            f"{name} has id2label for the classes {numbers[:5]} of {len(numbers)}, expected 0 to {len(numbers) - 1}"
        )
    size = {} if image_size is None else {"size": {"shortest_edge": image_size}}
    return model, AutoImageProcessor.from_pretrained(name, **size)


def fingerprint(model: PreTrainedModel) -> str:
    """16 hexadecimal digits that identify the weights of a model, whatever its name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def enable_checkpointing(model: RedNetPreTrainedModel) -> None:
    """Computes the activations of each bottleneck again in the backward pass."""
    # The releases of Transformers that are supported have one of two names.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def check_batch_norm(model: RedNetPreTrainedModel, batch_size: int, size: tuple[int, int]) -> None:
    """
    Args:
        model: a RedNet with a task head, before training.
        size: height and width of the images.

    Raises:
        ValueError: BatchNorm would see one value of each channel, which has no variance.
    """
    if batch_size == 1 and has_one_pixel(model, size):
        raise ValueError(
            f"the model's last feature map has 1 x 1 pixels for images of {size[0]} x {size[1]}: BatchNorm cannot train "
            "on a batch of one image. Use a --per_device_train_batch_size of at least 2, or larger images"
        )


@torch.no_grad()
def has_one_pixel(model: RedNetPreTrainedModel, size: tuple[int, int]) -> bool:
    """Whether the last feature map of a RedNet with a task head has 1 x 1 pixels for images of this size."""
    parameter = next(model.parameters())
    training = model.training
    last = model.eval().rednet(parameter.new_zeros(1, 3, *size)).last_hidden_state
    model.train(training)
    return tuple(last.shape[2:]) == (1, 1)
