"""Where the images come from: anything that `datasets` can load, in memory-mapped files or as a stream."""

import io
import os
import random
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value, load_dataset, load_dataset_builder
from PIL import Image as PILImage
from pyarrow import ArrowException, parquet
from rednet.training.data.class_folders import read_class_folders
from rednet.training.data.fashion_mnist import FASHION_MNIST, load_fashion_mnist
from rednet.training.data.problems import raise_problems
from rednet.training.options.groups import DataOptions, TrainingConfig
from tqdm.auto import tqdm


INTEGERS = [Value(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)] + [Value("bool")]
CHECKED_PICTURES = 2000
LABELS_IN_A_BATCH = 100_000


def load_images(config: TrainingConfig) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset]:
    """The training and the validation images, with columns `image` and `label` (a `ClassLabel`, or integers).

    Streamed images are not decoded (`augmentation.open_image` opens them), the others are when they are read.

    Raises:
        ValueError: a split or a column is not there, the labels are no classes, or those of both splits differ. The
            message names what is missing, and what there is.
    """
    splits = with_validation(read_source(config), config)
    train, validation = (select(splits, option, config) for option in ("train_split", "validation_split"))
    if isinstance(train, Dataset) and isinstance(validation, Dataset):
        check_classes(train, validation, config)
    return limit(train, config.max_train_samples, config), limit(validation, config.max_eval_samples, config)


def load_validation_images(config: DataOptions) -> Dataset | IterableDataset:
    """The validation images alone, the same as those of `load_images`: training images need not be there."""
    return limit(
        select(with_validation(read_source(config), config), "validation_split", config),
        config.max_eval_samples,
        config,
    )


def with_validation(splits: dict[str, Dataset | IterableDataset], config: DataOptions) -> dict:
    """The splits of a data set, with the validation split that `train_val_split` makes.

    Raises:
        ValueError: there is a validation split already, or none can be made.
    """
    if config.train_val_split is None:
        return splits
    if config.validation_split in splits:
        raise ValueError(f"{config.source} has the split {config.validation_split!r}: leave out --train_val_split")
    return split_off_validation(splits, config)


def read_source(config: DataOptions) -> dict[str, Dataset | IterableDataset]:
    if config.train_dir or config.validation_dir:
        # `validation_split` may have another name; what is in validation_dir is what it means. Nothing of the files is
        # stored, with `streaming` or without.
        folders = {config.train_split: config.train_dir, config.validation_split: config.validation_dir}
        return read_class_folders({split: folder for split, folder in folders.items() if folder})
    if config.dataset_name == FASHION_MNIST and not config.streaming:
        return load_fashion_mnist()
    if Path(config.dataset_name).is_dir():
        check_linked_folders(config.dataset_name)
        check_parquet_classes(config)
    return load_dataset(config.dataset_name, config.dataset_config_name, streaming=config.streaming)


def check_linked_folders(folder: str) -> None:
    """`datasets` does not look into folders that are links: a class that is one would go unnoticed."""
    links = []
    for root, names, _ in os.walk(folder):
        names[:] = sorted(name for name in names if name[0] != ".")  # `datasets` skips what is hidden
        links += [path for name in names if os.path.islink(path := os.path.join(root, name))]
    cure = "give folders of classes as --train_dir and --validation_dir"
    raise_problems(
        (f"{path} is a link to a folder, which `datasets` does not follow: {cure}" for path in links), folder
    )


def check_parquet_classes(config: DataOptions) -> None:
    """`datasets` reads all splits with the class names of the first: with others, labels would silently change."""
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


def split_off_validation(splits: dict[str, Dataset], config: TrainingConfig) -> dict[str, Dataset]:
    """Divides the training split; a class has the same part in both where the labels say the classes."""
    train = split_named(splits, "train_split", config)
    if isinstance(train, IterableDataset):
        raise ValueError("train_val_split needs all images at hand: not with streaming. Give a validation split")
    label = config.label_column_name
    by_class = label if isinstance(train.features.get(label), ClassLabel) else None
    parts = train.train_test_split(config.train_val_split, seed=config.seed, stratify_by_column=by_class)
    return {config.train_split: parts["train"], config.validation_split: parts["test"]}


def select(splits: dict, option: str, config: DataOptions, masks: bool = False) -> Dataset | IterableDataset:
    """One split with the columns `image` and `label`, which is a picture as well with `masks`."""
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
            f"{label!r} holds {features[label]}, expected a ClassLabel or integers{cure_of(features, label)}"
        )
    if isinstance(split, IterableDataset):
        # First of all: a stream renames columns of decoded rows, and a later cast would compress the pictures again.
        for column in pictures:
            split = split.cast_column(column, Image(decode=False))
    split = split.select_columns([image, label])
    return split.rename_columns({old: new for old, new in ((image, "image"), (label, "label")) if old != new})


def cure_of(features: Features, label: str) -> str:
    if getattr(features[label], "dtype", None) in ("string", "large_string", "string_view"):
        return f". For a data set `d` of `datasets`, d.class_encode_column({label!r}) makes classes of strings"
    if isinstance(features[label], Value) and "float" in features[label].dtype:
        return f". For a data set `d` of `datasets`, d.cast_column({label!r}, Value('int64')) makes integers of them"
    return ""


def check_classes(train: Dataset, validation: Dataset, config: DataOptions) -> None:
    """Classes that are never trained are a mistake: of the folders, the files or the splits."""
    strange = sorted(n for n in distinct_labels(validation) - distinct_labels(train) if n is not None and n >= 0)
    problems = label_problems(train, config.train_split) + label_problems(validation, config.validation_split)
    if strange:
        names = class_names(validation) or range(max(strange) + 1)
        problems.append(
            f"{config.validation_split} has labels {[names[n] for n in strange]}, {config.train_split} has none of them"
        )
    raise_problems(problems, config.source)


def distinct_labels(images: Dataset) -> set:
    """All labels. `Dataset.unique` would copy the pictures of a part of a data set to the disk before it reads them."""
    labels = images.select_columns("label").with_format("arrow")
    return set().union(*(batch["label"].unique().to_pylist() for batch in labels.iter(LABELS_IN_A_BATCH)))


def label_problems(images: Dataset, split: str, num_labels: int | None = None) -> list[str]:
    """What is wrong with the labels: missing, negative, or no class of a model with `num_labels`."""
    labels = distinct_labels(images)
    hidden = [label for label in (None, -1) if label in labels]
    negative = sorted(label for label in labels - {None, -1} if label < 0)
    problems = [f"{split} has images without a label ({label})" for label in hidden]
    if negative:
        problems.append(f"{split} has negative labels {negative[:5]}, expected classes from 0 on")
    if num_labels is not None and (beyond := sorted(label for label in labels - {None} if label >= num_labels)):
        problems.append(f"{split} has labels {beyond[:5]}, but the model has {num_labels} classes, from 0 on")
    return problems


def check_images(splits: dict[str, Dataset | IterableDataset], num_labels: int, config: DataOptions) -> None:
    """
    Reads, on one process and before the first step, what is cheap to read: all labels, and the headers of at most
    `CHECKED_PICTURES` of each split, drawn by the seed. Of a stream, nothing.

    Raises:
        ValueError: a label is no class of the model, or a file is no picture; the message names up to 20 of them.
    """
    problems = []
    for split, images in splits.items():
        if isinstance(images, Dataset):
            problems += label_problems(images, split, num_labels)
            problems += picture_problems(images, split, config.seed)
    raise_problems(problems, config.source)


def picture_problems(images: Dataset, split: str, seed: int) -> list[str]:
    images, rows = images.cast_column("image", Image(decode=False)), range(len(images))
    if len(rows) > CHECKED_PICTURES:
        rows = sorted(random.Random(seed).sample(rows, CHECKED_PICTURES))
    problems = []
    for row in tqdm(rows, desc=f"check {split}", leave=False, delay=2):
        stored = images[row]["image"]
        name = f"{split}, row {row}" if stored is None else stored["path"] or f"{split}, row {row}"
        try:
            if stored is None:
                raise ValueError("there is no picture")
            content = stored["path"] if stored["bytes"] is None else io.BytesIO(stored["bytes"])
            with PILImage.open(content) as image:
                if image.mode[0] in "IF":
                    raise ValueError(f"its pixels are of the mode {image.mode}, expected 8 bits for each value")
        except Exception as error:  # Pillow has many for damaged files
            problems.append(f"{name}: {error}")
    return problems


def limit(images: Dataset | IterableDataset, samples: int | None, config: TrainingConfig) -> Dataset | IterableDataset:
    """At most `samples` images, drawn by the seed because the images of a class may be beside each other.

    A stream stays what it is: its limit is the length of an epoch, see `TrainingOrder` and `EvaluationOrder`. Cutting
    it here would end the shuffling of its files.
    """
    if samples is None or isinstance(images, IterableDataset):
        return images
    return images.shuffle(config.seed).select(range(min(samples, len(images))))


def split_named(splits: dict, option: str, config: DataOptions) -> Dataset | IterableDataset:
    name = getattr(config, option)
    if name not in splits:
        cure = " (--train_val_split takes a part of the training images)" if option == "validation_split" else ""
        raise ValueError(f"{option} is {name!r}, but {config.source} has {sorted(splits)}{cure}")
    return splits[name]


def class_names(images: Dataset | IterableDataset) -> list[str] | None:
    """The names of the classes, None where the labels are bare integers."""
    return getattr(images.features["label"], "names", None)
