"""Predicts labels, probabilities or embeddings of pictures, and writes them to Parquet files.

    python training/predict.py --model_name_or_path outputs/demo/last --input pictures --output outputs/predictions

`--input` is a folder, of which all pictures at any depth are read, or with `--split` a data set: a Hub id or a local
folder. The model is any image classifier of Transformers, with its own image processor.

The files part-000000.parquet, part-000001.parquet ... have one row for each picture, in the order of the input: its
`row` and its `path`, what `--output_type` names, and `error`, the reason why a picture could not be read. Any number of
processes can share the work (torchrun, accelerate launch). A run that was stopped resumes if it is started again, also
with another number of processes: files that exist are neither computed again nor changed.
"""

import hashlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import torch
from accelerate import Accelerator
from rednet.training.data.batches import make_loader
from rednet.training.data.pictures import PictureBatches, ShardOrder, list_pictures, pictures_of, read_split
from rednet.training.data.sources import Images
from rednet.training.engine.launch import check_precision, check_processes, set_threads
from rednet.training.engine.models import fingerprint, load_classifier
from rednet.training.engine.run_folder import only_run
from rednet.training.engine.shards import Shards
from rednet.training.metrics.classification import image_size
from rednet.training.options.groups import ComputeOptions, DataOptions, option
from rednet.training.options.parser import parse_options
from rednet.training.options.types import Count
from rednet.training.utils.distributed import on_main_process
from rednet.training.utils.errors import clear_errors
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import BaseImageProcessor, PreTrainedModel
from transformers.utils.logging import disable_progress_bar


FLOATS = pa.list_(pa.float32())
COLUMNS = {
    "labels": {"labels": pa.list_(pa.string()), "probabilities": FLOATS},
    "probabilities": {"label": pa.string(), "probabilities": FLOATS},
    "embeddings": {"embedding": FLOATS},
}
# A resumed run may change these options: the rows stay the same, up to rounding.
RESUMABLE_OPTIONS = {"output", "dataloader_num_workers", "per_device_eval_batch_size"}


@dataclass
class PredictionOptions:
    model_name_or_path: str = option("", "The model: a folder or the id of a Hub repository.")
    input: str = option(
        "", "A folder, of which all pictures at any depth are read. With --split, a data set: a Hub id or a folder."
    )
    split: str | None = option(None, "Split of the data set.")
    dataset_config_name: str | None = option(None, "Configuration of the data set, if it has several.")
    image_column_name: str = option("image", "Name of the column of the data set that contains the images.")
    streaming: bool = option(False, "Stream the data set from the Hub or from files, without storing it on disk.")
    output: str = option("", "Folder of the Parquet files.")
    output_type: Literal["labels", "probabilities", "embeddings"] = option(
        "labels",
        "What to write: the --top_k labels with their probabilities; the best label and the probabilities of all "
        "classes, in the order of the model's id2label; or the pooled features before the classifier.",
    )
    top_k: Count = option(5, "Number of labels of each picture.")
    rows_per_shard: Count = option(4096, "Number of pictures of each Parquet file.")


@dataclass
class PredictionConfig(ComputeOptions, PredictionOptions):
    """The options of `predict.py`."""


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(arguments)
    disable_progress_bar()  # of loading weights: the prediction has its own
    check_precision(config)
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    check_processes(accelerator.num_processes)
    set_threads(accelerator.device)
    with clear_errors():
        model, processor = load_classifier(config.model_name_or_path)
        check_features(model, image_size(processor), config)
        images, identity = read_input(accelerator, config)
        shards = Shards(Path(config.output), columns_of(config), recorded_options(config, model, identity))
        done = on_main_process(accelerator, shards.done)
    model.eval().to(accelerator.device, memory_format=torch.channels_last)
    rank = (accelerator.process_index, accelerator.num_processes)
    order = ShardOrder(images, config.per_device_eval_batch_size, config.rows_per_shard, done, *rank)
    rows = predict(accelerator, model, prediction_loader(images, order, processor, config), config)
    if config.split is None:
        rows = (row | {"path": os.path.relpath(row["path"], config.input)} for row in rows)
    progress = tqdm(rows, "predict", order.count(), unit=" pictures", disable=not accelerator.is_local_main_process)
    with only_run(accelerator, Path(config.output)):
        for number, part in itertools.groupby(progress, lambda row: row["row"] // config.rows_per_shard):
            shards.write(number, list(part))
        accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        count, errors = shards.count()
        print(f"{count:,} pictures, of which {errors:,} could not be read -> {config.output}")
    accelerator.end_training()


def parse_config(arguments: list[str] | None = None) -> PredictionConfig:
    """
    Raises:
        SystemExit: an argument is unknown, missing, invalid or contradicts another one. The message names it.
    """
    config, parser = parse_options(PredictionConfig, arguments, __doc__)
    for name in ("model_name_or_path", "input", "output"):
        if not getattr(config, name):
            parser.error(f"give --{name}")
    if config.split is None:
        if not Path(config.input).is_dir():
            parser.error(f"--input {config.input}: there is no such folder. A data set needs --split")
        if config.streaming:
            parser.error("--streaming needs --split: it is for data sets")
    return config


def read_input(accelerator: Accelerator, config: PredictionConfig) -> tuple[Images, str | int | None]:
    """The pictures, and what identifies them if the run is resumed. One process lists a folder, so that all agree."""
    if config.split is None:
        paths = on_main_process(accelerator, list_pictures, config.input)
        names = "\n".join(os.path.relpath(path, config.input) for path in paths)
        digest = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()
        return pictures_of(paths), f"{len(paths)} files, {digest[:16]}"
    data = DataOptions(
        dataset_name=config.input,
        dataset_config_name=config.dataset_config_name,
        validation_split=config.split,
        image_column_name=config.image_column_name,
        streaming=config.streaming,
    )
    with accelerator.main_process_first():
        images = read_split(data)
    return images, None if config.streaming else len(images)


def recorded_options(config: PredictionConfig, model: PreTrainedModel, identity: str | int | None) -> dict:
    """What the rows depend on."""
    options = {name: value for name, value in asdict(config).items() if name not in RESUMABLE_OPTIONS}
    return options | {"pictures": identity, "weights": fingerprint(model)}


def columns_of(config: PredictionConfig) -> dict[str, pa.DataType]:
    return {"row": pa.int64(), "path": pa.string(), **COLUMNS[config.output_type], "error": pa.string()}


def prediction_loader(
    images: Images, order: ShardOrder, processor: BaseImageProcessor, config: PredictionConfig
) -> DataLoader:
    return make_loader(PictureBatches(images, processor), order, config)


@torch.no_grad()
def predict(
    accelerator: Accelerator, model: PreTrainedModel, loader: DataLoader, config: PredictionConfig
) -> Iterator[dict]:
    """Yields one row for each picture of the loader. Those that could not be read have an error instead of values."""
    for batch in loader:
        values: Iterator[dict] = iter(())
        if len(batch["pixel_values"]):
            pixels = batch["pixel_values"].to(accelerator.device, non_blocking=True)
            with accelerator.autocast():
                values = outputs(model, pixels.contiguous(memory_format=torch.channels_last), config)
        for row, path, error in zip(batch["row"], batch["path"], batch["error"]):
            yield {"row": row, "path": path, "error": error, **({} if error else next(values))}


def outputs(model: PreTrainedModel, pixels: torch.Tensor, config: PredictionConfig) -> Iterator[dict]:
    """The values of each picture, in the columns of `COLUMNS`."""
    if config.output_type == "embeddings":
        return ({"embedding": vector} for vector in embed(model, pixels).numpy(force=True))
    probabilities = model(pixels).logits.float().softmax(1)
    names = [model.config.id2label[n] for n in range(model.config.num_labels)]
    best = probabilities.topk(min(config.top_k, len(names)))
    labels = [[names[n] for n in ranked] for ranked in best.indices.tolist()]
    if config.output_type == "labels":
        columns = zip(labels, best.values.numpy(force=True))
        return ({"labels": ranked, "probabilities": values} for ranked, values in columns)
    columns = zip(labels, probabilities.numpy(force=True))
    return ({"label": ranked[0], "probabilities": values} for ranked, values in columns)


def embed(model: PreTrainedModel, pixels: torch.Tensor) -> torch.Tensor:
    """The pooled features of the model without its head, float32 (images, features)."""
    return model.base_model(pixels).pooler_output.float().flatten(1)


def check_features(model: PreTrainedModel, size: tuple[int, int], config: PredictionConfig) -> None:
    """Raises ValueError if the model has not what is asked for: classes, or pooled features for embeddings."""
    if config.output_type != "embeddings" and model.config.num_labels == 0:
        raise ValueError(f"{config.model_name_or_path} has no classes: give --output_type embeddings")
    if config.output_type == "embeddings":
        with torch.no_grad():
            features = model.eval().base_model(torch.zeros(1, 3, *size))
        if getattr(features, "pooler_output", None) is None:
            raise ValueError(f"{config.model_name_or_path} has no pooled features: leave out --output_type embeddings")


if __name__ == "__main__":
    main()
