"""Where the images come from: anything that `datasets` can load, in memory-mapped files or as a stream."""

import glob
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value, load_dataset, load_dataset_builder
from pyarrow import ArrowException, parquet

from fashion_mnist import FASHION_MNIST, load_fashion_mnist
from options import DataOptions, TrainingConfig


INTEGERS = (Value("int64"), Value("int32"))


def load_images(config: TrainingConfig) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset]:
    """The training and the validation images, with columns `image` and `label` (a `ClassLabel`, or integers).

    Streamed images are not decoded (`augmentation.open_image` opens them), the others are when they are read.

    Raises:
        ValueError: a split or a column is not there, the labels are no classes, or those of both splits differ. The
            message names what is missing, and what there is.
    """
    splits = with_validation(read_source(config), config)
    train, validation = (select(splits, option, config) for option in ("train_split", "validation_split"))
    if not config.streaming:
        check_labels(train, validation, config)
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
        raise ValueError(f"{source(config)} has the split {config.validation_split!r}: leave out --train_val_split")
    return split_off_validation(splits, config)


def read_source(config: DataOptions) -> dict[str, Dataset | IterableDataset]:
    if config.train_dir or config.validation_dir:
        check_class_folders(config)
        # `validation_split` may have another name; what is in validation_dir is what it means.
        folders = {config.train_split: config.train_dir, config.validation_split: config.validation_dir}
        files = {split: str(Path(glob.escape(folder)) / "**") for split, folder in folders.items() if folder}
        return load_dataset("imagefolder", data_files=files, streaming=config.streaming)
    if config.dataset_name == FASHION_MNIST and not config.streaming:
        return load_fashion_mnist()
    check_parquet_classes(config)
    return load_dataset(config.dataset_name, config.dataset_config_name, streaming=config.streaming)


def check_class_folders(config: DataOptions) -> None:
    """`imagefolder` makes classes of the folders of both splits together: one too many would go unnoticed."""
    train, validation = (
        {path.name for path in Path(folder).iterdir() if path.is_dir() and path.name[0] != "."} if folder else set()
        for folder in (config.train_dir, config.validation_dir)
    )
    if config.train_dir and (unknown := validation - train):
        raise ValueError(f"{config.validation_dir} has classes {sorted(unknown)}, {config.train_dir} {sorted(train)}")


def check_parquet_classes(config: DataOptions) -> None:
    """`datasets` reads all splits with the class names of the first: with others, labels would silently change."""
    if not Path(config.dataset_name).is_dir():
        return
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
    if config.streaming:
        raise ValueError("train_val_split needs all images at hand: not with streaming. Give a validation split")
    train = split_named(splits, "train_split", config)
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
            raise ValueError(f"{column_option} is {column!r}, but {source(config)} has the columns {sorted(features)}")
    pictures = [image, label] if masks else [image]
    for column in pictures:
        if not isinstance(features[column], Image):
            raise ValueError(f"{column} holds {features[column]}, expected an Image")
    if not masks and not isinstance(features[label], ClassLabel) and features[label] not in INTEGERS:
        raise ValueError(f"{label} holds {features[label]}, expected a ClassLabel or integers")
    if isinstance(split, IterableDataset):
        # First of all: a stream renames columns of decoded rows, and a later cast would compress the pictures again.
        for column in pictures:
            split = split.cast_column(column, Image(decode=False))
    split = split.select_columns([image, label])
    return split.rename_columns({old: new for old, new in ((image, "image"), (label, "label")) if old != new})


def check_labels(train: Dataset, validation: Dataset, config: DataOptions) -> None:
    """Classes that are never trained are a mistake: of the folders, the files or the splits."""
    for split, images in ((config.train_split, train), (config.validation_split, validation)):
        if hidden := {None, -1} & set(images.unique("label")):
            raise ValueError(f"{source(config)}: {split} has images without a label ({hidden.pop()})")
    if strange := set(validation.unique("label")) - set(train.unique("label")):
        names = class_names(validation) or range(max(strange) + 1)
        raise ValueError(
            f"{source(config)}: {config.validation_split} has labels {[names[n] for n in sorted(strange)]}, "
            f"{config.train_split} has none of them"
        )


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
        raise ValueError(f"{option} is {name!r}, but {source(config)} has {sorted(splits)}{cure}")
    return splits[name]


def source(config: DataOptions) -> str:
    return config.dataset_name or config.train_dir or config.validation_dir


def class_names(images: Dataset | IterableDataset) -> list[str] | None:
    """The names of the classes, None where the labels are bare integers."""
    return getattr(images.features["label"], "names", None)
