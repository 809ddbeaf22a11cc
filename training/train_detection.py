"""Trains torchvision's Faster R-CNN, Mask R-CNN or RetinaNet on a RedNet FPN with Accelerate, on data in COCO's format.

    accelerate launch training/train_detection.py --config configs/training/coco_fasterrcnn_rednet50.yaml \\
      --train_dir train2017 --train_annotations annotations/instances_train2017.json \\
      --validation_dir val2017 --validation_annotations annotations/instances_val2017.json

The command line takes every option of the file as well (`--help`). --model_name_or_path is a RedNet, such as a
classifier, or a detector that this script saved. `rednet.detection.load_detector` loads the folders `best` and `last` of
`output_dir`. The other files are those of train.py, and runs resume in the same way.
"""

from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from rednet import RedNetBackbone, RedNetConfig
from rednet.detection import DETECTORS, STAGES, read_detector_config, read_detector_weights, save_detector
from rednet.loading import naming_damaged_weights
from rednet.training.data.coco import categories_of, check_annotations, load_annotations, make_index
from rednet.training.data.detection import check_pictures, detection_loaders
from rednet.training.engine.loop import Task, run_training
from rednet.training.metrics.detection import evaluate_detection
from rednet.training.options.models import check_model_name, read_config
from rednet.training.options.packaged import find_architecture
from rednet.training.options.parser import MODELS, REPLACED, check_optimization_options, parse_options
from rednet.training.options.scripts import DetectionConfig
from rednet.training.utils.distributed import check_on_main_process
from torch import nn
from torch.utils.data import DataLoader


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(arguments)
    run_training(config, partial(build, config))


def build(config: DetectionConfig, accelerator: Accelerator) -> tuple[nn.Module, Task, DataLoader]:
    """The detector, what it is trained for, and the batches that it is trained on."""
    if accelerator.distributed_type == DistributedType.FSDP:
        raise ValueError("FSDP is not supported for the detectors of torchvision: use DDP")
    contents = [load_annotations(path) for path in (config.train_annotations, config.validation_annotations)]
    check_on_main_process(accelerator, check_annotations, *contents, config)
    annotations, truth = map(make_index, contents)
    rank = (accelerator.process_index, accelerator.num_processes)
    train_loader, eval_loader = detection_loaders(annotations, truth, config, *rank)
    del contents, annotations  # large, and the loader has its own copy
    images = [loader.dataset.images for loader in (train_loader, eval_loader)]  # type: ignore[attr-defined]
    check_on_main_process(accelerator, check_pictures, *images)

    categories = categories_of(truth)
    options = detector_options(config, len(categories))
    kinds = ["bbox", "segm"] if config.detector == "maskrcnn" else ["bbox"]
    task = Task(
        loss=compute_loss,
        evaluate=lambda model: evaluate_detection(accelerator, model, eval_loader, truth, kinds),
        save=lambda folder, model, _: save_detector(folder, model, config.detector, options, categories),
        metric="eval_box_ap",
        metric_name="box AP",
    )
    return make_model(config, options, categories), task, train_loader


def parse_config(arguments: list[str] | None = None) -> DetectionConfig:
    """
    Raises:
        SystemExit: an argument is unknown, missing, invalid or contradicts another one. The message names it.
    """
    config, parser = parse_options(DetectionConfig, arguments, __doc__, REPLACED | MODELS)
    if (config.model_name_or_path is None) == (config.config_name is None):
        parser.error("give one of --model_name_or_path (weights to start from) and --config_name (from scratch)")
    if config.config_name is not None and config.trainable_layers < len(STAGES) + 1:
        parser.error("--config_name starts from random weights, which must not be frozen: give --trainable_layers 5")
    for name in ("train", "validation"):
        for option, exists in ((f"{name}_dir", Path.is_dir), (f"{name}_annotations", Path.is_file)):
            value = getattr(config, option)
            if not value:
                parser.error(f"give --{option}")
            if not exists(Path(value)):
                parser.error(f"--{option} {value}: no such {'folder' if exists is Path.is_dir else 'file'}")
    if config.detector == "retinanet" and config.head != "convolution":
        parser.error("--head involution is for the RPN and the mask head, which RetinaNet does not have")
    check_optimization_options(config, parser)
    if config.torch_compile:
        parser.error("--torch_compile is not supported for detectors: their shapes depend on what they detect")
    return config


def detector_options(config: DetectionConfig, num_categories: int) -> dict:
    """The arguments of the functions of `rednet.detection`, without the backbone.

    The style is that of the detector whose weights the training starts from.
    """
    names = ["neck", "head", "channels", "trainable_layers", "min_size", "max_size"]
    if config.detector == "retinanet":
        names.remove("head")
    saved = saved_config(config)
    style = "torchvision" if saved is None else saved["options"].get("style", "torchvision")
    return {"num_classes": num_categories + 1, "style": style, **{name: getattr(config, name) for name in names}}


def saved_config(config: DetectionConfig) -> dict | None:
    """The configuration of `model_name_or_path`, or None if this is not a detector, or not given."""
    if config.model_name_or_path is None:
        return None
    check_model_name(config.model_name_or_path)
    return read_detector_config(config.model_name_or_path)


def make_model(config: DetectionConfig, options: dict, categories: list[dict]) -> nn.Module:
    """A detector with new weights, with the backbone of `model_name_or_path`, or with all its weights if it is a
    detector.

    Raises:
        ValueError: the weights belong to another detector, and `ignore_mismatched_sizes` is false; or they are damaged.
    """
    stages = STAGES[1:] if config.detector == "retinanet" else STAGES
    if config.config_name is not None:
        architecture = read_config(find_architecture(config.config_name), out_features=stages, **config.changes)
        backbone = RedNetBackbone(architecture)
        return DETECTORS[config.detector](backbone, **options)
    name = config.model_name_or_path
    assert name is not None  # parse_config requires one of the two
    saved = saved_config(config)
    if saved is None:
        read_config(name)
        with naming_damaged_weights(name):
            backbone = RedNetBackbone.from_pretrained(name, out_features=stages, **config.changes)
        return DETECTORS[config.detector](backbone, **options)
    model = DETECTORS[config.detector](
        RedNetBackbone(RedNetConfig.from_dict({**saved["backbone"], "out_features": stages, **config.changes})),
        **options,
    )
    load_weights(model, name, saved["categories"] == categories, config.ignore_mismatched_sizes)
    return model


def load_weights(model: nn.Module, name: str, same_categories: bool, ignore_mismatched_sizes: bool) -> None:
    """Loads the weights of the detector `name` that have the shapes of `model`. Raises ValueError as `make_model` does."""
    weights, own = read_detector_weights(name), model.state_dict()
    fit = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    new = sorted(own.keys() - fit.keys())
    if (new or not same_categories) and not ignore_mismatched_sizes:
        raise ValueError(
            f"{name} is a detector with other categories or layers "
            f"({f'{new[:2]} do not fit' if new else 'all weights fit, but the names differ'}): "
            "use --ignore_mismatched_sizes to load the weights that fit"
        )
    model.load_state_dict(fit, strict=False)


def compute_loss(model: nn.Module, batch: dict[str, list]) -> torch.Tensor:
    """The sum of all losses of the detector, for a batch of `TrainingPictures`."""
    return sum(model([image / 255 for image in batch["images"]], batch["targets"]).values())


if __name__ == "__main__":
    main()
