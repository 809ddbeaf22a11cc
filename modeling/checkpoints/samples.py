"""Classifies pictures that scikit-image ships, so that a person sees whether the weights of a model work."""

from importlib.util import find_spec
from pathlib import Path

import torch
from rednet.loading import load_model, read_object
from transformers import AutoImageProcessor


# Picture in skimage.data -> what it shows, and the classes of ImageNet for it.
SAMPLES = {
    "chelsea": ("a cat", "tabby, tiger cat, Egyptian cat"),
    "rocket": ("a rocket", "missile, projectile, space shuttle"),
    "coffee": ("a cup of coffee", "espresso, cup, coffee mug"),
}


def check_samples_available() -> None:
    """
    Checks that the pictures are installed.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
    """
    if find_spec("skimage") is None:
        raise ModuleNotFoundError("--check classifies pictures of scikit-image: run `pip install scikit-image`")


@torch.no_grad()
def describe_samples(folder: Path) -> str:
    """
    Loads the classifier in a folder, and returns its first five classes for each of the `SAMPLES` as text. If the folder
    has another model, the text says so.
    """
    from PIL import Image  # this and the next package are optional
    from skimage import data

    if read_object(folder / "config.json").get("architectures") != ["RedNetForImageClassification"]:
        return "--check does nothing for this model: it does not classify pictures"
    model, processor = load_model(folder), AutoImageProcessor.from_pretrained(folder)
    is_imagenet = model.config.num_labels == 1000
    lines = []
    for name, (content, classes) in SAMPLES.items():
        image = Image.fromarray(getattr(data, name)())
        probabilities = model(**processor(image, return_tensors="pt")).logits[0].softmax(0)
        values, indices = probabilities.topk(min(5, len(probabilities)))
        top = "; ".join(f"{model.config.id2label[n.item()]} {100 * p:.1f} %" for p, n in zip(values, indices))
        lines.append(f"{content}{f' (expected: {classes})' if is_imagenet else ''}\n  {top}")
    return "\n".join(lines)
