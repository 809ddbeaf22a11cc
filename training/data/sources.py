"""Loads images and labels: all that `datasets` can load, in memory-mapped files or as a stream, and class folders."""

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value, load_dataset, load_dataset_builder
from pyarrow import ArrowException, parquet
from rednet.training.data.class_folders import read_class_folders
from rednet.training.data.fashion_mnist import FASHION_MNIST, load_fashion_mnist
from rednet.training.data.headers import read_picture_header
from rednet.training.data.problems import raise_problems, read_each
from rednet.training.options.groups import DataOptions, TrainingDataOptions


INTEGERS = [Value(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)] + [Value("bool")]
MAX_CHECKED_PICTURES = 2000
LABELS_PER_BATCH = 100_000

Images: TypeAlias = Dataset | IterableDataset


def load_images(config: TrainingDataOptions) -> tuple[Images, Images]:
    """The training and the validation images, with columns `image` and `label` (a `ClassLabel`, or integers).

    The images of a stream are not decoded (`transforms.open_image` opens them); others are decoded when they are read.

    Raises:
        ValueError: a split or a column is missing, the labels are not classes, or the classes of the splits differ.
    """
    splits = read_labeled(config)
    train, validation = (select(splits, option, config) for option in ("train_split", "validation_split"))
    if isinstance(train, Dataset) and isinstance(validation, Dataset):
        check_classes(train, validation, config)
    return limit_training(train, config), limit_evaluation(validation, config)


def load_validation_images(config: DataOptions) -> Images:
    """The validation images of `load_images`, without the training images, which need not exist."""
    return limit_evaluation(select(read_labeled(config), "validation_split", config), config)


def load_existing_images(config: TrainingDataOptions) -> dict[str, Images]:
    """The images of `load_images` by the names of their splits. One of the two splits may be missing."""
    splits = read_labeled(config)
    options = [o for o in ("train_split", "validation_split") if getattr(config, o) in splits]
    images = {o: select(splits, o, config) for o in options or ["train_split"]}  # which does not exist: an error
    train, validation = images.get("train_split"), images.get("validation_split")
    if isinstance(train, Dataset) and isinstance(validation, Dataset):
        check_classes(train, validation, config)
    if train is not None:
        images["train_split"] = limit_training(train, config)
    if validation is not None:
        images["validation_split"] = limit_evaluation(validation, config)
    return {getattr(config, o): images[o] for o in images}


def read_labeled(config: DataOptions) -> Mapping[str, Images]:
    """The splits of a source whose labels are classes, with those of `with_validation`."""
    if config.dataset_name and Path(config.dataset_name).is_dir():
        check_parquet_classes(config)
    return with_validation(read_source(config), config)


def with_validation(splits: Mapping[str, Images], config: DataOptions) -> Mapping[str, Images]:
    """The splits of a data set, with a validation split from the training images if `train_val_split` is set.

    Raises:
        ValueError: the data set already has a validation split, or its training split is missing or a stream.
    """
    if config.train_val_split is None:
        return splits
    if config.validation_split in splits:
        raise ValueError(f"{config.source} has the split {config.validation_split!r}: leave out --train_val_split")
    return split_off_validation(splits, config)


def read_source(config: DataOptions) -> Mapping[str, Images]:
    """All splits of the data set or of the class folders that `config` names."""
    if config.train_dir or config.validation_dir:
        # Class folders are listed, not copied, so that `streaming` makes no difference.
        folders = {config.train_split: config.train_dir, config.validation_split: config.validation_dir}
        return read_class_folders({split: folder for split, folder in folders.items() if folder})
    if config.dataset_name == FASHION_MNIST and not config.streaming:
        return load_fashion_mnist()
    if Path(config.dataset_name).is_dir():
        check_linked_folders(config.dataset_name)
    return load_dataset(config.dataset_name, config.dataset_config_name, streaming=config.streaming)


def check_linked_folders(folder: str) -> None:
    """Raises ValueError if `folder` contains links to folders, which `datasets` skips silently, as if a class did not
    exist."""
    links = []
    for root, names, _ in os.walk(folder):
        names[:] = sorted(name for name in names if name[0] != ".")  # `datasets` skips what is hidden
        links += [path for name in names if os.path.islink(path := os.path.join(root, name))]
    hint = "use --train_dir and --validation_dir for folders of classes"
    raise_problems(
        (f"{path} is a link to a folder, which `datasets` does not follow: {hint}" for path in links), folder
    )


def check_parquet_classes(config: DataOptions) -> None:
    """Raises ValueError if the classes of two parquet files differ. `datasets` uses those of the first file for all
    splits, which would change the labels silently."""
    files = load_dataset_builder(config.dataset_name, config.dataset_config_name).config.data_files or {}
    first = [files[split][0] for split in (config.train_split, config.validation_split) if split in files]
    if all(file.endswith(".parquet") for file in first):
        names = [getattr(parquet_features(file).get(config.label_column_name), "names", None) for file in first]
        if len(names) == 2 and names[0] != names[1]:
            raise ValueError(f"the classes of {first[0]} are {names[0]}, those of {first[1]} are {names[1]}")


def parquet_features(file: str) -> Features:
    try:
        return Features.from_arrow_schema(parquet.read_schema(file))
    except ArrowException as error:
        raise ValueError(f"{file} cannot be read as parquet: {error}") from error


def split_off_validation(splits: Mapping[str, Images], config: DataOptions) -> dict[str, Dataset]:
    """Divides the training split, with the same share of each class if the labels are a `ClassLabel`.

    Raises:
        ValueError: the split is missing, a stream, or too small.
    """
    train = split_named(splits, "train_split", config)
    if isinstance(train, IterableDataset):
        raise ValueError("train_val_split needs all images, not with streaming: give a validation split")
    label = config.label_column_name
    by_class = label if isinstance(train.features.get(label), ClassLabel) else None
    try:
        parts = train.train_test_split(config.train_val_split, seed=config.seed, stratify_by_column=by_class)
    except ValueError as error:  # such as a class with a single image
        raise ValueError(
            f"--train_val_split {config.train_val_split} cannot divide the {len(train)} images of {config.source}: {error}"
        ) from error
    return {config.train_split: parts["train"], config.validation_split: parts["test"]}


def select(splits: Mapping[str, Images], option: str, config: DataOptions, masks: bool = False) -> Images:
    """The split that `option` names, with the columns `image` and `label`, an integer or, with `masks`, an image."""
    split = split_named(splits, option, config)
    image, label = config.image_column_name, config.label_column_name
    features = split.features or Features()
    for column_option, column in (("image_column_name", image), ("label_column_name", label)):
        if column not in features:
            raise ValueError(f"{column_option} is {column!r}, but {config.source} has the columns {sorted(features)}")
    pictures = [image, label] if masks else [image]
    for column in pictures:
        if not isinstance(features[column], Image):
            raise ValueError(f"{column} holds {features[column]}, expected an Image")
    if not masks and not isinstance(features[label], ClassLabel) and features[label] not in INTEGERS:
        raise ValueError(
            f"{label!r} holds {features[label]}, expected a ClassLabel or integers{label_hint(features, label)}"
        )
    if isinstance(split, IterableDataset):
        # Before the columns are renamed: that decodes the rows of a stream, and a later cast would compress them again.
        for column in pictures:
            split = split.cast_column(column, Image(decode=False))
    split = split.select_columns([image, label])
    return split.rename_columns({old: new for old, new in ((image, "image"), (label, "label")) if old != new})


def label_hint(features: Features, label: str) -> str:
    """How to convert a column of strings or floats into labels."""
    if getattr(features[label], "dtype", None) in ("string", "large_string", "string_view"):
        return f". For a data set `d` of `datasets`, d.class_encode_column({label!r}) converts strings to classes"
    if isinstance(features[label], Value) and "float" in features[label].dtype:
        return (
            f". For a data set `d` of `datasets`, d.cast_column({label!r}, Value('int64')) converts them to integers"
        )
    return ""


def check_classes(train: Dataset, validation: Dataset, config: DataOptions) -> None:
    """Raises ValueError if labels are missing or negative, or if a class of `validation` is not in `train`."""
    untrained = sorted(n for n in distinct_labels(validation) - distinct_labels(train) if n is not None and n >= 0)
    problems = label_problems(train, config.train_split) + label_problems(validation, config.validation_split)
    if untrained:
        names = class_names(validation) or range(max(untrained) + 1)
        problems.append(
            f"{config.validation_split} has labels {[names[n] for n in untrained]}, {config.train_split} has none of them"
        )
    raise_problems(problems, config.source)


def distinct_labels(images: Dataset) -> set:
    """All labels. `Dataset.unique` would first copy the images of a selection to the disk."""
    labels = images.select_columns("label").with_format("arrow")
    return set().union(*(batch["label"].unique().to_pylist() for batch in labels.iter(LABELS_PER_BATCH)))


def label_problems(images: Dataset, split: str, num_labels: int | None = None) -> list[str]:
    """Labels that are missing, negative, or not a class of a model with `num_labels` classes."""
    labels = distinct_labels(images)
    hidden = [label for label in (None, -1) if label in labels]
    negative = sorted(label for label in labels - {None, -1} if label < 0)
    problems = [f"{split} has images without a label ({label})" for label in hidden]
    if negative:
        problems.append(f"{split} has negative labels {negative[:5]}, expected classes from 0 on")
    if num_labels is not None and (beyond := sorted(label for label in labels - {None} if label >= num_labels)):
        problems.append(f"{split} has labels {beyond[:5]}, but the model has {num_labels} classes, from 0 on")
    return problems


def check_images(splits: Mapping[str, Images], num_labels: int | None, config: DataOptions) -> None:
    """Checks, before the first step, what is cheap to read: all labels, and the headers of a sample of the images.

    The sample has at most `MAX_CHECKED_PICTURES` of each split. Streams are not checked. Without a model, `num_labels`
    is None.

    Raises:
        ValueError: a split is empty, a label is not a class of the model, or a file is not a picture.
    """
    problems = []
    for split, images in splits.items():
        if isinstance(images, Dataset):
            problems += [] if len(images) else [f"{split} has no images"]
            problems += label_problems(images, split, num_labels)
            problems += picture_problems(images, split, config.seed)
    raise_problems(problems, config.source)


def picture_problems(images: Dataset, split: str, seed: int) -> list[str]:
    """Pictures of a sample that are missing, damaged, or of more than 8 bits."""
    images = images.cast_column("image", Image(decode=False))
    rows = list(range(len(images)))
    if len(rows) > MAX_CHECKED_PICTURES:
        rows = sorted(random.Random(seed).sample(rows, MAX_CHECKED_PICTURES))

    def problem(row: int) -> str | None:
        stored, name = images[row]["image"], f"{split}, row {row}"
        if stored is None:
            return f"{name}: there is no picture"
        try:
            read_picture_header(stored)
        except ValueError as error:
            return f"{stored['path'] or name}: {error}"
        return None

    return [text for text in read_each(problem, rows, f"check {split}") if text is not None]


def limit(images: Dataset, samples: int | None, seed: int) -> Dataset:
    """At most `samples` images, drawn at random because the images of a class may follow each other."""
    return images if samples is None else images.shuffle(seed).select(range(min(samples, len(images))))


def limit_training(images: Images, config: TrainingDataOptions) -> Images:
    """At most `max_train_samples` images. For a stream, that is the length of an epoch (`batches.epoch_length`): a part
    of it could not be shuffled by files."""
    return limit(images, config.max_train_samples, config.seed) if isinstance(images, Dataset) else images


def limit_evaluation(images: Images, config: DataOptions) -> Images:
    """At most `max_eval_samples` images, the first ones of a stream."""
    if isinstance(images, Dataset):
        return limit(images, config.max_eval_samples, config.seed)
    return images if config.max_eval_samples is None else images.take(config.max_eval_samples)


def split_named(splits: Mapping[str, Images], option: str, config: DataOptions) -> Images:
    """The split whose name is the value of `option`."""
    name = getattr(config, option)
    if name not in splits:
        hint = " (--train_val_split uses a part of the training images)" if option == "validation_split" else ""
        raise ValueError(f"{option} is {name!r}, but {config.source} has {sorted(splits)}{hint}")
    return splits[name]


def class_names(images: Images) -> list[str] | None:
    """The names of the classes, or None if the labels are integers without names."""
    return getattr(images.features["label"], "names", None)
