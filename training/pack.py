"""Packs a data set for training: resized once, as JPEG, in parquet files.

    python training/pack.py --train_dir pictures --train_val_split 0.1 --output_dir outputs/packed
    accelerate launch training/train.py --dataset_name outputs/packed --config_name rednet-26

It reads what `train.py` reads, with the same options, and writes the training and the validation split with the columns
`image` and `label`. The shorter edge of a picture then has at most 500 pixels. Smaller JPEG files are copied byte for
byte. Pictures that cannot be decoded are left out and listed in `damaged.csv`.

Start the same command again after an interruption: shards that are complete are kept. The files are the same for any
number of worker processes.
"""

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from datasets import Dataset, DatasetInfo, Image, IterableDataset, SplitDict, SplitInfo
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard, DatasetCardData
from rednet.hub import check_writable
from rednet.loading import read_object
from rednet.training.data.packing import Shard, hash_pictures, pack, packed_features
from rednet.training.data.sources import Images, check_images, load_existing_images
from rednet.training.options.parser import check_folders, parse_options
from rednet.training.options.scripts import PackOptions
from rednet.training.utils.errors import clear_errors
from rednet.training.utils.files import locked, write_csv, write_json, write_text
from tqdm.auto import tqdm


DATA, UNFINISHED = "data", ".unfinished"  # `datasets` does not see hidden folders
SPLIT = r"\w+(\.\w+)*"  # the names of splits that `datasets` loads
RECORD, DAMAGED = "pack.json", "damaged.csv"
# A resumed run may change these options. Pictures of other folders have other names, which are compared.
RESUMABLE_OPTIONS = {"output_dir", "preprocessing_num_workers", "train_dir", "validation_dir"}
logger = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(arguments)
    output = Path(config.output_dir)
    with clear_errors():
        check_output(output)
        splits = read_splits(config)
        check_images(splits, None, config)
        with locked(output):
            finish(output, splits, write_shards(output, splits, config), config)


def parse_config(arguments: list[str] | None = None) -> PackOptions:
    """
    Raises:
        SystemExit: an argument is unknown, missing, invalid or contradicts another one. The message names it.
    """
    config, parser = parse_options(PackOptions, arguments, __doc__)
    if bool(config.dataset_name) == bool(config.train_dir or config.validation_dir):
        parser.error(
            "give one of --dataset_name, a Hub id or a local folder, and --train_dir or --validation_dir, folders of images"
        )
    if config.train_val_split is not None and config.validation_dir:
        parser.error("give one of --validation_dir and --train_val_split: both choose the images to evaluate on")
    for option in ("train_split", "validation_split"):
        if re.fullmatch(SPLIT, name := getattr(config, option)) is None:
            parser.error(f"--{option} is {name!r}, expected letters, digits and _, as `datasets` needs them in a name")
    if config.streaming and config.shuffle:
        parser.error("--shuffle excludes --streaming: a stream has no random access")
    check_folders(config, parser)
    return config


def check_output(output: Path) -> None:
    """
    Raises:
        FileExistsError: `output` has files, but not those of this script, or is a file.
        PermissionError: it cannot be written.
    """
    check_writable(output)
    ours = any((output / folder / RECORD).is_file() for folder in (DATA, UNFINISHED))
    if output.exists() and not ours and any(output.iterdir()):
        raise FileExistsError(f"{output} exists and has no packed data set: choose another --output_dir")


def read_splits(config: PackOptions) -> dict[str, Images]:
    """The splits to pack, in their order."""
    splits = load_existing_images(config)
    for name, maximum in (
        (config.train_split, config.max_train_samples),
        (config.validation_split, config.max_eval_samples),
    ):
        if name not in splits:
            logger.warning(f"{config.source} has no split {name!r}: it is not packed")
        elif isinstance(splits[name], IterableDataset) and maximum is not None:
            splits[name] = splits[name].take(maximum)
    if config.shuffle and config.train_split in splits:
        splits[config.train_split] = splits[config.train_split].shuffle(config.seed)
    return splits


def begin(output: Path, splits: Mapping[str, Images], config: PackOptions) -> Path:
    """The folder of the shards, with a record of what is packed in it.

    Raises:
        ValueError: the folder belongs to a run with other options or other pictures.
    """
    options = {name: value for name, value in asdict(config).items() if name not in RESUMABLE_OPTIONS}
    record = {"options": options, "pictures": {name: hash_pictures(images) for name, images in splits.items()}}
    folder = output / (DATA if (output / DATA / RECORD).is_file() else UNFINISHED)
    if (folder / RECORD).exists():
        previous = read_object(folder / RECORD)
        before = previous["options"]
        changes = [f"{n} {before.get(n)!r} -> {options.get(n)!r}" for n in options if options[n] != before.get(n)]
        if not changes and record != previous:
            changes = [f"other pictures or labels in {config.source}, or in another order"]
        if changes:
            raise ValueError(
                f"{output} belongs to a run with other options ({', '.join(changes)}). Choose another --output_dir, or "
                "remove the folder"
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RECORD, record)
    return folder


def write_shards(output: Path, splits: dict[str, Images], config: PackOptions) -> list[Shard]:
    """Writes the shards that do not exist yet, with a progress bar. Returns all of them, in order."""
    folder, shards = begin(output, splits, config), []
    lengths = [len(images) for images in splits.values() if isinstance(images, Dataset)]
    with tqdm(total=sum(lengths) if len(lengths) == len(splits) else None, unit="picture", unit_scale=True) as bar:
        for shard in pack(splits, config, folder):
            shards.append(shard)
            bar.set_description(shard.split)
            bar.update(shard.rows)
    return shards


def finish(output: Path, splits: Mapping[str, Images], shards: list[Shard], config: PackOptions) -> None:
    """Writes the card and the list of damaged pictures, and makes the shards visible, which are complete by now.

    Raises:
        ValueError: a split has no pictures.
    """
    for name in splits:
        if not sum(shard.pictures for shard in shards if shard.split == name):
            raise ValueError(f"the split {name!r} of {config.source} has no pictures that can be decoded")
    damaged = list_damaged(splits, shards)
    if damaged:
        write_csv(output / DAMAGED, damaged)
    unfinished = output / UNFINISHED
    if unfinished.exists():
        write_text(output / "README.md", str(make_card(unfinished, splits, shards, config)))
        for path in unfinished.iterdir():  # of runs that were killed
            if re.fullmatch(r"\..+\.parquet\.\d+", path.name):
                path.unlink()
        unfinished.rename(output / DATA)
    for name in splits:
        print(f"{name}: {describe(name, shards)}")
    if damaged:
        print(f"{output / DAMAGED} lists the damaged pictures")
    options = {
        "validation_split": (config.validation_split, "validation"),
        "train_split": (config.train_split, "train"),
    }
    more = "".join(f" --{option} {name}" for option, (name, default) in options.items() if name != default)
    print(f"-> --dataset_name {output}{more}")


def list_damaged(splits: Mapping[str, Images], shards: list[Shard]) -> list[dict]:
    """The pictures that were left out, with the number of their row in the split."""
    damaged, first = [], dict.fromkeys(splits, 0)
    for shard in shards:
        for each in shard.damaged:
            row, path = first[shard.split] + each["row"], each["path"]
            images = splits[shard.split]
            if path and isinstance(images, Dataset):  # a shard has the name only
                path = images.cast_column("image", Image(decode=False))[row]["image"]["path"]
            damaged.append({"split": shard.split, "row": row, "path": path, "error": each["error"]})
        first[shard.split] += shard.rows
    return damaged


def describe(split: str, shards: list[Shard]) -> str:
    """The size of a split, in words."""
    own = [shard for shard in shards if shard.split == split]
    pictures, size = (sum(getattr(shard, name) for shard in own) for name in ("pictures", "num_bytes"))
    damaged = sum(len(shard.damaged) for shard in own)
    without = f", without {damaged:,} damaged ones" if damaged else ""
    return f"{pictures:,} pictures{without}, {size / 1e6:,.1f} MB in {len(own)} files"


def make_card(folder: Path, splits: Mapping[str, Images], shards: list[Shard], config: PackOptions) -> DatasetCard:
    """The card of the data set. `datasets` reads in it which files and how many pictures each split has."""
    sizes = SplitDict()
    for name in splits:
        own = [shard for shard in shards if shard.split == name]
        sizes.add(SplitInfo(name, sum(s.num_bytes for s in own), sum(s.pictures for s in own)))
    total = sum(shard.num_bytes for shard in shards)
    features = packed_features(next(iter(splits.values())))
    files = [{"split": name, "path": f"{DATA}/{name}-*.parquet"} for name in splits]
    # The cache of `datasets` distinguishes data sets by this text, not by their files.
    description = hashlib.sha256((folder / RECORD).read_bytes()).hexdigest()
    data = DatasetCardData(
        configs=[{"config_name": "default", "description": f"pack.json {description}", "data_files": files}]
    )
    info = DatasetInfo(features=features, splits=sizes, download_size=total, dataset_size=total)
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    lines = [f"- {name}: {describe(name, shards)}" for name in splits]
    text = [
        f"# {config.source}, packed",
        "\n".join(lines),
        f"Pictures of {config.source}, whose license holds. Pictures with a shorter edge of more than "
        f"{config.shortest_edge} pixels are resized to this length, and saved upright as JPEG of quality "
        f"{config.jpeg_quality}. Smaller JPEG files, and PNG files that are smaller than a JPEG file, are unchanged.",
    ]
    return DatasetCard(f"---\n{data}\n---\n\n" + "\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
