"""Measures an image classifier: how often it is right, how sure it may be, how large and how fast it is.

    python training/evaluate_model.py --model_name_or_path outputs/demo/last \\
      --dataset_name zalando-datasets/fashion_mnist --validation_split test

Any classifier of Transformers, of the Hub or of a folder, so that a ResNet can stand beside a RedNet; its own image
processor prepares the pictures. In `output_dir` appear `results.json`, `per_class.csv`, `confusion_matrix.csv` and,
of up to 100 classes, `confusion_matrix.svg` and `.png`. `--update_card` puts the accuracies into the card of a folder.

(It is not called evaluate.py: beside it, every script here would import that file as the library `evaluate`.)
"""

import csv
import datetime
import io
import os
import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import rednet
import torch
import torch.nn.functional as F
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from huggingface_hub import ModelCard
from rednet.hub.cards import add_results
from rednet.profile import peak_bytes
from rednet.training.data.batches import evaluation_loader
from rednet.training.data.sources import check_images, class_names, load_validation_images
from rednet.training.engine.hub_folder import accuracies, measured
from rednet.training.engine.loop import check_precision, check_processes, set_threads
from rednet.training.figures.style import draw_confusion_matrix, save
from rednet.training.metrics.classification import image_size, load_metric, predict
from rednet.training.options.groups import ComputeOptions, DataOptions, option
from rednet.training.options.models import check_channels, check_model_name
from rednet.training.options.parser import check_folders, parse_options
from rednet.training.utils.distributed import check_on_main_process
from rednet.training.utils.errors import clear_errors, nearest
from rednet.training.utils.files import write_json, write_text
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, AutoModelForImageClassification, BaseImageProcessor, PreTrainedModel
from transformers.utils.logging import disable_progress_bar


MAX_DRAWN_CLASSES = 100
PRINTED_PAIRS = 10
REPEATS = 10


@dataclass
class EvaluationOptions:
    model_name_or_path: str = option("", "What is measured: a folder or the id of a Hub repository.")
    labels_by_number: bool = option(
        False,
        "Label n of the images is class n of the model, whatever both call it (ImageNet as folders n01440764 ...).",
    )
    update_card: bool = option(False, "Put the accuracies into the README.md of the model's folder.")
    output_dir: str = option("", "Everything goes here; by default outputs/evaluation and the name of the model.")


@dataclass
class EvaluationConfig(ComputeOptions, DataOptions, EvaluationOptions):
    """What `evaluate_model.py` can be told. --train_dir is where --train_val_split takes images from."""


def main(arguments: list[str] | None = None) -> None:
    config = parse(arguments)
    disable_progress_bar()  # those of loading weights; the evaluation has its own
    check_precision(config)
    # The profiler that measures memory would report the GPU that is not there.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    check_processes(accelerator.num_processes)
    set_threads(accelerator.device)
    set_seed(config.seed)
    with clear_errors():
        model, processor = load_model(config.model_name_or_path)
        with accelerator.main_process_first():
            images = load_validation_images(config)
        names = [model.config.id2label[n] for n in range(model.config.num_labels)]
        order = match_labels(class_names(images), names, config)
        check_on_main_process(accelerator, check_images, {config.validation_split: images}, len(names), config)
    model.to(accelerator.device, memory_format=torch.channels_last)
    places = {"process": accelerator.process_index, "num_processes": accelerator.num_processes}
    loader = evaluation_loader(images, config, processor, len(names), **places)
    results, matrix = measure_accuracy(accelerator, model, loader, order)
    if accelerator.is_main_process:
        results |= measure_cost(accelerator, model, image_size(processor), config.per_device_eval_batch_size)
        write(config, results | circumstances(config, accelerator.device), matrix, class_names(images) or names)
    accelerator.end_training()


def parse(arguments: list[str] | None) -> EvaluationConfig:
    config, parser = parse_options(EvaluationConfig, arguments, __doc__)
    if not config.model_name_or_path:
        parser.error("give --model_name_or_path, a folder or the id of a Hub repository")
    if bool(config.dataset_name) == bool(config.train_dir or config.validation_dir):
        parser.error(
            "give one of --dataset_name, a Hub id or a local folder, and --validation_dir, a folder of images"
        )
    if config.train_dir and config.validation_dir or config.train_dir and config.train_val_split is None:
        parser.error("--train_dir is for the part that --train_val_split held out, without --validation_dir")
    check_folders(config, parser)
    if not config.output_dir:
        config.output_dir = "outputs/evaluation/" + config.model_name_or_path.strip("./").replace("/", "-")
    card = Path(config.model_name_or_path, "README.md")
    if config.update_card and not card.is_file():
        parser.error(f"--update_card: there is no {card}, the card of a local folder")
    if config.update_card and config.max_eval_samples is not None:
        parser.error("--update_card: a card has the accuracy on all images; leave out --max_eval_samples")
    return config


def load_model(name: str) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    Raises:
        ValueError, OSError: there is no such folder or repository, or it has no image classifier.
    """
    check_model_name(name)
    model = AutoModelForImageClassification.from_pretrained(name)
    check_channels(model.config, name)
    return model.eval(), AutoImageProcessor.from_pretrained(name)


def match_labels(labels: list[str] | None, names: list[str], config: EvaluationConfig) -> list[int]:
    """The class of the model that each label of the images is.

    Args:
        labels: what the images' classes are called, None where they are bare numbers.
        names: what the model's are called.

    Raises:
        ValueError: they are not the same classes; the message names the first that one side has not.
    """
    model, numbered = config.model_name_or_path, config.labels_by_number or labels is None
    if labels is not None and len(labels) != len(names) and numbered:
        raise ValueError(f"{config.source} has {len(labels)} class(es), {model} has {len(names)}")
    if numbered or labels == names:
        return list(range(len(names)))
    hint = "; --labels_by_number takes them in their order"
    for (one, here), (other, there) in (
        ((config.source, labels), (model, names)),
        ((model, names), (config.source, labels)),
    ):
        for label in here:
            if label not in there:
                raise ValueError(f"{one} has the class {label!r}, {other} has not{nearest(label, there)}{hint}")
            if here.count(label) > 1:
                raise ValueError(f"{one} has {here.count(label)} classes with the name {label!r}{hint}")
    return [names.index(label) for label in labels]


def measure_accuracy(
    accelerator: Accelerator, model: PreTrainedModel, loader: DataLoader, order: list[int]
) -> tuple[dict, np.ndarray]:
    """Results over all images, and the confusion matrix: a row for each true class, a column for each predicted one.

    Args:
        order: the class of the model that each label of the images is.
    """
    accuracy, calibration, confusion = map(load_metric, ("top_k_accuracy", "calibration_error", "confusion_matrix"))
    losses = []
    for logits, labels in predict(accelerator, model, loader):
        logits = logits[:, order]
        losses += F.cross_entropy(logits, labels, reduction="none").tolist()
        ranked, true = logits.topk(min(5, len(order))).indices, labels.tolist()
        confidences, predicted = logits.softmax(1).max(1)
        accuracy.add_batch(predictions=ranked.tolist(), references=true)
        calibration.add_batch(predictions=predicted.tolist(), confidences=confidences.tolist(), references=true)
        confusion.add_batch(predictions=predicted.tolist(), references=true)
    results = {f"eval_{name}": value for name, value in (accuracy.compute() | calibration.compute()).items()}
    results |= {"eval_loss": statistics.fmean(losses), "eval_samples": len(losses)}
    return results, confusion.compute(num_classes=len(order))["confusion_matrix"]


@torch.no_grad()
def measure_cost(accelerator: Accelerator, model: PreTrainedModel, size: tuple[int, int], batch_size: int) -> dict:
    """Size and operations; on this device, median times of REPEATS passes over noise, after two that warm up, without
    loading of pictures, and the most memory that a batch needs beyond weights and pictures."""
    device, channels = model.device.type, getattr(model.config, "num_channels", 3)
    one, batch = (
        torch.randn(n, channels, *size, device=device).contiguous(memory_format=torch.channels_last)
        for n in (1, batch_size)
    )
    counted = {"parameters": rednet.count_parameters(model), "macs": rednet.count_macs(model, *size)}
    with accelerator.autocast():
        return counted | {
            "image_size": list(size),
            "latency_ms": round(1000 * seconds(model, one), 3),
            "batch_size": batch_size,
            "images_per_second": round(batch_size / seconds(model, batch), 2),
            "peak_memory_bytes": peak_bytes(lambda: model(batch), device),
        }


def seconds(model: PreTrainedModel, images: Tensor) -> float:
    times = []
    for _ in range(REPEATS + 2):
        start = time.perf_counter()
        model(images).logits.sum().item()  # waits for a GPU
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def circumstances(config: EvaluationConfig, device: torch.device) -> dict:
    cpu = f"cpu, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "model": config.model_name_or_path,
        "dataset": config.source,
        "split": config.validation_split,
        "mixed_precision": config.mixed_precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": str(datetime.date.today()),
    }


def write(config: EvaluationConfig, results: dict, matrix: np.ndarray, names: list[str]) -> None:
    """The files of `output_dir`, the card, and what is worth reading at once."""
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "options.json", asdict(config))
    write_json(folder / "results.json", results)
    images, hits = matrix.sum(1), matrix.diagonal()
    accuracies = [hit / number if number else "" for hit, number in zip(hits, images)]
    write_table(folder / "per_class.csv", ["class", "images", "accuracy"], zip(names, images, accuracies))
    rows = ([name, *row] for name, row in zip(names, matrix))
    write_table(folder / "confusion_matrix.csv", ["true / predicted", *names], rows)
    if len(names) <= MAX_DRAWN_CLASSES:
        save(draw_confusion_matrix(matrix, names), folder, "confusion_matrix")
    if config.update_card:
        update_card(config, results, len(names))

    print(
        f"top-1 {100 * results['eval_accuracy']:.2f} %, top-5 {100 * results['eval_top_5_accuracy']:.2f} %, ", end=""
    )
    print(f"calibration error {results['eval_calibration_error']:.4f} on {results['eval_samples']:,} images")
    print(f"{results['parameters']:,} parameters, {results['macs'] / 1e9:.3f} G multiply-accumulates, ", end="")
    print(f"{results['latency_ms']} ms for an image, {results['images_per_second']} images/s in batches of ", end="")
    print(f"{results['batch_size']} with {results['peak_memory_bytes'] / 2**20:.1f} MiB")
    for true, predicted in confused_pairs(matrix):
        part = f"{matrix[true, predicted]} of {images[true]} times"
        print(f"  {names[true]} taken for {names[predicted]}: {part}")
    print(f"-> {folder}/results.json")


def confused_pairs(matrix: np.ndarray) -> list[tuple[int, int]]:
    """The most frequent (true, predicted) pairs of different classes, the most frequent first."""
    mistakes = matrix * ~np.eye(len(matrix), dtype=bool)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:PRINTED_PAIRS]
    return [(int(n // len(matrix)), int(n % len(matrix))) for n in order if mistakes.flat[n]]


def write_table(path: Path, head: list[str], rows: Iterable) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    write_text(path, text.getvalue())


def update_card(config: EvaluationConfig, results: dict, num_labels: int) -> None:
    path = Path(config.model_name_or_path, "README.md")
    card = ModelCard.load(path)
    card.data.model_name = card.data.model_name or path.resolve().parent.name
    add_results(card, measured(config, accuracies(results, num_labels)))
    write_text(path, str(card))


if __name__ == "__main__":
    main()
