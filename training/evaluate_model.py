"""Evaluates an image classifier: accuracy, calibration, size, operations, speed and memory.

    python training/evaluate_model.py --model_name_or_path outputs/demo/last \\
      --dataset_name zalando-datasets/fashion_mnist --validation_split test

It takes any image classifier of Transformers, from the Hub or a folder, with its own image processor, so that a RedNet
can be compared with a ResNet. It writes `results.json`, `per_class.csv`, `confusion_matrix.csv` and, for up to 100
classes, `confusion_matrix.svg` and `.png` to `output_dir`. `--update_card` adds the accuracies to the card of a folder.

The classes of the data may be a part of the model's, as those of ImageNet-A and -R are: only their logits are compared
then. `--real_labels` evaluates on ImageNet-ReaL, `--results_csv` collects many models and data sets in one table.

`--runtime onnxruntime --exported_file rednet.onnx` evaluates a file of `python -m rednet.export` on the CPU. Image
processor, names of classes, parameters and operations are those of the model that it was made from.
"""

# The name is not evaluate.py, because every script of this folder would then import it as the library `evaluate`.
import datetime
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import rednet
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from rednet.hub import check_writable
from rednet.hub.cards import add_results, read_card
from rednet.profile import peak_bytes
from rednet.training.data.batches import evaluation_loader
from rednet.training.data.imagenet import RealLabels, match_labels
from rednet.training.data.sources import Images, check_images, class_names, load_validation_images
from rednet.training.engine.exported import ExportedClassifier, check_exported_file, exported_fingerprint
from rednet.training.engine.hub_folder import accuracies, measured
from rednet.training.engine.launch import check_precision, check_processes, set_threads
from rednet.training.engine.models import fingerprint, load_classifier
from rednet.training.engine.results_table import add_row, has_row
from rednet.training.figures.confusion_matrix import draw_confusion_matrix
from rednet.training.figures.style import save
from rednet.training.metrics.classification import image_size, sum_over_images, summarize
from rednet.training.metrics.counts import calibration_error
from rednet.training.options.groups import ComputeOptions, DataOptions, option
from rednet.training.options.parser import check_folders, parse_options
from rednet.training.utils.distributed import check_on_main_process, on_main_process
from rednet.training.utils.errors import clear_errors
from rednet.training.utils.files import write_csv, write_json, write_text
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from involution.timing import median_seconds


Classifier: TypeAlias = PreTrainedModel | ExportedClassifier

MAX_DRAWN_CLASSES = 100
PRINTED_PAIRS = 10
REPEATS, WARMUP = 10, 2


@dataclass
class EvaluationOptions:
    model_name_or_path: str = option("", "The model to evaluate: a folder or the id of a Hub repository.")
    runtime: Literal["pytorch", "onnxruntime", "openvino", "aoti"] = option(
        "pytorch", "What runs the model: PyTorch, or another runtime, on the CPU, with --exported_file."
    )
    exported_file: str = option("", "A file that `python -m rednet.export` made of the model, for --runtime.")
    labels_by_number: bool = option(
        False,
        "Label n of the images is class n of the model, whatever their names are. Labels that are numbers or WordNet ids "
        "(n01440764) are the class of that number, or of the number of that id in ImageNet-1k.",
    )
    real_labels: str | None = option(
        None,
        "ImageNet-ReaL: its file real.json, or timm for the copy in that package. A prediction is right if it is any of "
        "the labels of the picture; pictures without a label are left out.",
    )
    update_card: bool = option(False, "Add the accuracies to the README.md of the model's folder.")
    results_csv: str | None = option(
        None,
        "CSV file to add the results to, one row for each model and data set. What has a row there is not evaluated "
        "again.",
    )
    output_dir: str = option("", "Folder of the results; by default outputs/evaluation and the name of the model.")


@dataclass
class EvaluationConfig(ComputeOptions, DataOptions, EvaluationOptions):
    """The options of `evaluate_model.py`. --train_val_split takes its images from --train_dir."""


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(arguments)
    disable_progress_bar()  # of loading weights: the evaluation has its own
    check_precision(config)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler that measures memory would warn of the missing GPU
    exported = config.runtime != "pytorch"
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=exported)
    check_processes(accelerator.num_processes)
    set_threads(accelerator.device)
    set_seed(config.seed)
    with clear_errors():
        check_writable(Path(config.output_dir))
        if config.results_csv is not None:
            check_writable(Path(config.results_csv).parent)
        model, processor = load_classifier(config.model_name_or_path)
        environment = describe_environment(config, model, accelerator.device)
        if on_main_process(accelerator, is_in_table, config, environment):
            accelerator.end_training()
            return
        with accelerator.main_process_first():
            images = load_validation_images(config)
        names = [model.config.id2label[n] for n in range(model.config.num_labels)]
        labels = class_names(images)
        class_order = match_labels(
            labels, names, config.source, config.model_name_or_path, by_number=config.labels_by_number
        )
        check_on_main_process(accelerator, check_images, {config.validation_split: images}, len(class_order), config)
        real_labels = read_real_labels(config, images, len(class_order))
        size = image_size(processor)
        run = ExportedClassifier(config.exported_file, config.runtime, model, size) if exported else model
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    model.to(accelerator.device, memory_format=torch.channels_last)
    rank = (accelerator.process_index, accelerator.num_processes)
    loader = evaluation_loader(images, config, processor, len(class_order), *rank, real_labels)
    results, matrix = measure_accuracy(accelerator, run, loader, class_order)
    if accelerator.is_main_process:
        counts = {"parameters": rednet.count_parameters(model), "macs": rednet.count_macs(model, *size)}
        results |= counts | measure_cost(accelerator, run, size, config.per_device_eval_batch_size)
        results |= environment | {"classes": len(class_order), "model_classes": len(names)}
        write(config, results, matrix, labels or names)
    accelerator.end_training()


def parse_config(arguments: list[str] | None = None) -> EvaluationConfig:
    """
    Raises:
        SystemExit: an argument is unknown, missing, invalid or contradicts another one. The message names it.
    """
    config, parser = parse_options(EvaluationConfig, arguments, __doc__)
    if not config.model_name_or_path:
        parser.error("give --model_name_or_path, a folder or the id of a Hub repository")
    if bool(config.dataset_name) == bool(config.train_dir or config.validation_dir):
        parser.error(
            "give one of --dataset_name, a Hub id or a local folder, and --validation_dir, a folder of images"
        )
    if config.train_dir and config.validation_dir or config.train_dir and config.train_val_split is None:
        parser.error("--train_dir requires --train_val_split, which held images out, and excludes --validation_dir")
    check_folders(config, parser)
    if (config.runtime != "pytorch") != bool(config.exported_file):
        parser.error("give --runtime, onnxruntime, openvino or aoti, and --exported_file together")
    if config.exported_file:
        if config.mixed_precision != "no":
            parser.error("--mixed_precision excludes --exported_file, which has its own data type")
        try:
            check_exported_file(config.exported_file, config.runtime)
        except (OSError, ValueError, ModuleNotFoundError) as error:
            parser.error(str(error))
    if not config.output_dir:
        name = config.exported_file or config.model_name_or_path
        config.output_dir = "outputs/evaluation/" + name.strip("./").replace("/", "-")
    card = Path(config.model_name_or_path, "README.md")
    if config.update_card and not card.is_file():
        parser.error(f"--update_card: no such file: {card}, expected the card of a local folder")
    if config.update_card:
        try:
            read_card(card)
        except ValueError as error:
            parser.error(f"--update_card: {error}")
    if config.update_card and config.max_eval_samples is not None:
        parser.error("--update_card excludes --max_eval_samples: a card has the accuracy on all images")
    if config.update_card and config.real_labels is not None:
        parser.error("--update_card excludes --real_labels: a card has the accuracy on the labels of the data set")
    return config


def is_in_table(config: EvaluationConfig, environment: dict) -> bool:
    """Whether `results_csv` has the results already."""
    if config.results_csv is None or not has_row(Path(config.results_csv), environment):
        return False
    print(
        f"{config.results_csv} already has a row for {config.model_name_or_path} on {config.source}: remove the row to "
        "evaluate again"
    )
    return True


def read_real_labels(config: EvaluationConfig, images: Images, num_labels: int) -> RealLabels | None:
    """The labels of ImageNet-ReaL, if the options ask for them."""
    if config.real_labels is None:
        return None
    real_labels = RealLabels(config.real_labels)
    real_labels.check(images, num_labels, config.source)
    return real_labels


def measure_accuracy(
    accelerator: Accelerator, model: Classifier, loader: DataLoader, class_order: list[int]
) -> tuple[dict, np.ndarray]:
    """The results over all images, and the confusion matrix: rows are true classes, columns predicted ones."""
    sums = sum_over_images(accelerator, model, loader, class_order)
    results = summarize(sums)
    results["eval_calibration_error"] = calibration_error(sums["calibration"], results["eval_samples"])
    return results, sums["confusion"].cpu().numpy()


@torch.no_grad()
def measure_cost(accelerator: Accelerator, model: Classifier, size: tuple[int, int], batch_size: int) -> dict:
    """Speed and memory of inference on this device.

    Times are medians over random images, without the loading of images. Memory is the peak of a batch in addition to
    weights and images; PyTorch cannot see that of other runtimes.
    """
    device, channels = accelerator.device.type, getattr(model.config, "num_channels", 3)
    one, batch = (
        torch.randn(n, channels, *size, device=device).contiguous(memory_format=torch.channels_last)
        for n in (1, batch_size)
    )
    with accelerator.autocast():
        seconds = median_seconds({"one": lambda: model(one), "batch": lambda: model(batch)}, REPEATS, WARMUP)
        cost = {
            "image_size": list(size),
            "latency_ms": round(1000 * seconds["one"], 3),
            "batch_size": batch_size,
            "images_per_second": round(batch_size / seconds["batch"], 2),
        }
        if isinstance(model, PreTrainedModel):
            cost["peak_memory_bytes"] = peak_bytes(lambda: model(batch), device)
    return cost


def describe_environment(config: EvaluationConfig, model: PreTrainedModel, device: torch.device) -> dict:
    """The model, the data, the device and the versions that the results hold for."""
    exported = config.runtime != "pytorch"
    weights = exported_fingerprint(config.exported_file, config.runtime) if exported else fingerprint(model)
    cpu = f"cpu, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "model": config.model_name_or_path,
        "weights": weights,
        "runtime": config.runtime,
        "exported_file": config.exported_file,
        "dataset": config.source,
        "dataset_config_name": config.dataset_config_name,
        "split": config.validation_split,
        "train_val_split": config.train_val_split,
        "real_labels": config.real_labels,
        "labels_by_number": config.labels_by_number,
        "max_eval_samples": config.max_eval_samples,
        "seed": config.seed,
        "mixed_precision": config.mixed_precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": str(datetime.date.today()),
    }


def write(config: EvaluationConfig, results: dict, matrix: np.ndarray, names: list[str]) -> None:
    """Writes the files of `output_dir` and the card, and prints a summary."""
    folder = Path(config.output_dir)
    write_json(folder / "options.json", asdict(config))
    write_json(folder / "results.json", results)
    names = unique(names)
    images, hits = matrix.sum(1), matrix.diagonal()
    write_csv(
        folder / "per_class.csv",
        [
            {"class": name, "images": number, "accuracy": hit / number if number else ""}
            for name, number, hit in zip(names, images, hits)
        ],
    )
    rows = [{"true / predicted": name, **dict(zip(names, row))} for name, row in zip(names, matrix)]
    write_csv(folder / "confusion_matrix.csv", rows)
    if len(names) <= MAX_DRAWN_CLASSES:
        save(draw_confusion_matrix(matrix, names), folder, "confusion_matrix")
    if config.update_card:
        update_card(config, results, len(names))
    if config.results_csv is not None:
        add_row(Path(config.results_csv), results)

    part = f" in {len(names)} of the model's {results['model_classes']} classes"
    memory = f" with {results['peak_memory_bytes'] / 2**20:.1f} MiB" if "peak_memory_bytes" in results else ""
    print(
        f"top-1 {100 * results['eval_accuracy']:.2f} %, top-5 {100 * results['eval_top_5_accuracy']:.2f} %, calibration "
        f"error {results['eval_calibration_error']:.4f} on {results['eval_samples']:,} images"
        f"{part if len(names) < results['model_classes'] else ''}\n"
        f"{results['parameters']:,} parameters, {results['macs'] / 1e9:.3f} G multiply-accumulates, "
        f"{results['latency_ms']} ms for an image, {results['images_per_second']} images/s in batches of "
        f"{results['batch_size']}{memory}"
    )
    for true, predicted in confused_pairs(matrix):
        part = f"{matrix[true, predicted]} of {images[true]} times"
        print(f"  {names[true]} taken for {names[predicted]}: {part}")
    print(f"-> {folder}/results.json")


def unique(names: list[str]) -> list[str]:
    """The names, with their numbers if two classes have the same name, as two of ImageNet do."""
    return names if len(set(names)) == len(names) else [f"{name} ({n})" for n, name in enumerate(names)]


def confused_pairs(matrix: np.ndarray) -> list[tuple[int, int]]:
    """The most frequent (true, predicted) pairs of different classes, the most frequent first."""
    mistakes = matrix * ~np.eye(len(matrix), dtype=bool)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:PRINTED_PAIRS]
    return [(int(n // len(matrix)), int(n % len(matrix))) for n in order if mistakes.flat[n]]


def update_card(config: EvaluationConfig, results: dict, num_labels: int) -> None:
    path = Path(config.model_name_or_path, "README.md")
    card = read_card(path)
    card.data.model_name = card.data.model_name or path.resolve().parent.name
    add_results(card, measured(config, accuracies(results, num_labels)))
    write_text(path, str(card))


if __name__ == "__main__":
    main()
