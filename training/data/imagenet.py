"""Sets to evaluate models of ImageNet on: their classes are a part of the model's, or each picture has several labels.

Names, WordNet ids and the file of ImageNet-ReaL are those of timm.
"""

import re
from collections.abc import Sequence

import torch
from datasets import Image
from rednet.training.data.problems import first_of
from rednet.training.data.sources import Images
from rednet.training.utils.errors import nearest
from timm.data import ImageNetInfo, RealLabelsImagenet


WORDNET_ID = re.compile(r"n\d{8}")
VALIDATION_PICTURES = 50_000
HINT = "; --labels_by_number matches classes by their numbers"


def match_labels(
    labels: Sequence[str] | None, names: Sequence[str], source: str, model: str, by_number: bool = False
) -> list[int]:
    """
    Finds the class of a model for each label of a data set: by its name, by its WordNet id (n01440764), or by its
    number.

    Args:
        labels: names of the classes of the images, None if the data set has numbers only.
        names: names of the classes of the model.
        source, model: where both come from, for messages.
        by_number: label n is class n. WordNet ids are then numbered as in ImageNet-1k, if the model has 1,000 classes,
            and labels that are themselves numbers are the classes (a listing sorts the folder 10 before the folder 2).

    Returns:
        The class of the model for each label. Classes of the model that the data set lacks are left out.

    Raises:
        ValueError: a label has no class, or its class is ambiguous. The message names it.
    """
    if labels is None or labels == names:
        return list(range(len(names)))
    if all(map(WORDNET_ID.fullmatch, labels)) and not set(labels) <= set(names):
        if not by_number:
            return match_wordnet_ids(labels, names, source, model)
        if len(names) == ImageNetInfo().num_classes():
            return imagenet_numbers(labels, source)
    if by_number:
        return match_numbers(labels, len(names), source, model)
    for label in labels:
        if label not in names:
            raise ValueError(f"{source} has the class {label!r}, which {model} lacks{nearest(label, names)}{HINT}")
        for where, given in ((source, labels), (model, names)):
            if given.count(label) > 1:
                raise ValueError(f"{where} has {given.count(label)} classes named {label!r}{HINT}")
    return [names.index(label) for label in labels]


def match_wordnet_ids(labels: Sequence[str], names: Sequence[str], source: str, model: str) -> list[int]:
    """By the words of each id ("tench, Tinca tinca"), as models of Transformers name the classes of ImageNet."""
    info, classes = ImageNetInfo(), []
    numbers = {synset: number for number, synset in enumerate(info.label_names())}
    for label in labels:
        try:
            words = info.label_name_to_description(label)
        except KeyError as error:
            raise ValueError(f"{source} has the class {label}, which is no WordNet id of ImageNet") from error
        number = numbers.get(label, len(names))
        if number < len(names) and names[number] == words:  # two classes are called "crane"
            classes.append(number)
        elif names.count(words) == 1:
            classes.append(names.index(words))
        else:
            raise ValueError(
                f"{source} has the class {label} ({words}), which {model} lacks{nearest(words, names)}{HINT}"
            )
    return classes


def imagenet_numbers(labels: Sequence[str], source: str) -> list[int]:
    """The numbers of WordNet ids in ImageNet-1k."""
    synsets = ImageNetInfo().label_names()
    if unknown := [label for label in labels if label not in synsets]:
        raise ValueError(f"{source} has classes that ImageNet-1k lacks: {first_of(unknown)}")
    return [synsets.index(label) for label in labels]


def match_numbers(labels: Sequence[str], num_labels: int, source: str, model: str) -> list[int]:
    if all(label.isdecimal() for label in labels):
        numbers = [int(label) for label in labels]
        if max(numbers) >= num_labels or len(set(numbers)) < len(numbers):
            raise ValueError(
                f"{source} has the classes {first_of(labels)}, but {model} has {num_labels} classes, from 0 on"
            )
        return numbers
    if len(labels) != num_labels:
        raise ValueError(f"{source} has {len(labels)} class(es), but {model} has {num_labels}")
    return list(range(num_labels))


class RealLabels:
    """All labels of each validation picture of ImageNet, from ImageNet-ReaL (Beyer et al. 2020, "Are we done with
    ImageNet?"). Some pictures have none.

    Args:
        file: real.json, or `timm` for the file that timm contains.

    Raises:
        OSError, ValueError: the file cannot be read, or does not have the labels of 50,000 pictures.
    """

    def __init__(self, file: str):
        expected = f"expected a list of the labels of {VALIDATION_PICTURES:,} pictures"
        try:
            real = RealLabelsImagenet([""] * VALIDATION_PICTURES, None if file == "timm" else file)
            self.labels: dict[str, list[int]] = real.real_labels
            self.most = max(map(len, self.labels.values()))
            self.num_labels = 1 + max(label for labels in self.labels.values() for label in labels)
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"--real_labels: {file} cannot be used, {expected}: {error}") from error

    def __call__(self, rows: list[dict]) -> torch.Tensor:
        """The labels of `rows` as int64 (rows, labels), filled up with -1.

        Raises:
            ValueError: the name of a file is not one of ImageNet's.
        """
        given = [self.find(row["image"]["path"]) for row in rows]
        return torch.tensor([labels + [-1] * (self.most - len(labels)) for labels in given])

    def find(self, path: str | None) -> list[int]:
        """The labels of a picture. Some copies of ImageNet have a class after its number in the name."""
        number = re.search(r"ILSVRC2012_val_\d{8}", path or "")
        name = f"{number[0]}.JPEG" if number else None
        if name not in self.labels:
            raise ValueError(
                f"--real_labels needs the file names of ImageNet, ILSVRC2012_val_00000001.JPEG ..., but a picture has "
                f"{path or 'no name'}"
            )
        return self.labels[name]

    def check(self, images: Images, num_labels: int, source: str) -> None:
        """Raises ValueError if `images` have other classes or other names. Only the first name is read."""
        if num_labels < self.num_labels:
            raise ValueError(
                f"--real_labels has labels up to {self.num_labels - 1}, but {source} has {num_labels} classes"
            )
        self([next(iter(images.cast_column("image", Image(decode=False))))])
