"""Trains torchvision's Faster R-CNN, Mask R-CNN or RetinaNet on a RedNet FPN with Accelerate, on data in COCO's format.

    accelerate launch training/train_detection.py --config configs/training/coco_fasterrcnn_rednet50.yaml \\
      --train_dir train2017 --train_annotations annotations/instances_train2017.json \\
      --validation_dir val2017 --validation_annotations annotations/instances_val2017.json

Every option of the file can be given on the command line as well (`--help`). --model_name_or_path is a RedNet, a
classifier for instance, or a folder that this script left. In `output_dir` appear `best` and `last`, which
`rednet.detection.load_detector` loads; all else, and what happens after an interruption, is as with train.py.
"""

from dataclasses import asdict
from pathlib import Path

import torch
from accelerate.utils import DistributedType, set_seed
from rednet import RedNetBackbone, RedNetConfig
from rednet.detection import DETECTORS, STAGES, read_detector_config, read_detector_weights, save_detector
from rednet.training.data.detection import (
    categories_of,
    check_annotations,
    check_pictures,
    detection_loaders,
    load_annotations,
    make_index,
)
from rednet.training.engine.loop import Task, make_accelerator, prepare, train
from rednet.training.engine.run_folder import check_options
from rednet.training.metrics.detection import evaluate_detection
from rednet.training.options.groups import DetectionConfig
from rednet.training.options.models import check_model_name, read_config
from rednet.training.options.packaged import find_architecture
from rednet.training.options.parser import MODELS, REPLACED, parse_options
from rednet.training.utils.distributed import check_on_main_process
from rednet.training.utils.errors import clear_errors
from transformers.utils.logging import disable_progress_bar


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(arguments)
    disable_progress_bar()
    accelerator = make_accelerator(config)
    if accelerator.distributed_type == DistributedType.FSDP:
        raise SystemExit("error: detectors of torchvision are trained by DDP: not with FSDP")
    check_options(config.output_dir, asdict(config))
    set_seed(config.seed)

    places = {"process": accelerator.process_index, "num_processes": accelerator.num_processes}
    with clear_errors():
        contents = [load_annotations(path) for path in (config.train_annotations, config.validation_annotations)]
        check_on_main_process(accelerator, check_annotations, *contents, config)
        annotations, truth = map(make_index, contents)
        train_loader, eval_loader = detection_loaders(annotations, truth, config, **places)
        del contents, annotations  # large, and now in the loader
        images = [loader.dataset.images for loader in (train_loader, eval_loader)]
        check_on_main_process(accelerator, check_pictures, *images)
        categories = categories_of(truth)
        options = detector_options(config, len(categories))
        model = make_model(config, options, categories)
    kinds = ["bbox", "segm"] if config.detector == "maskrcnn" else ["bbox"]
    task = Task(
        loss=compute_loss,
        evaluate=lambda model: evaluate_detection(accelerator, model, eval_loader, truth, kinds),
        save=lambda folder, model, _: save_detector(folder, model, config.detector, options, categories),
        metric="eval_box_ap",
        metric_name="box AP",
    )
    train(prepare(config, accelerator, model, train_loader, task), train_loader)
    accelerator.end_training()


def parse_config(arguments: list[str] | None = None) -> DetectionConfig:
    """
    Raises:
        SystemExit: an argument is unknown, missing, of the wrong type or of no use; the message names it.
    """
    config, parser = parse_options(DetectionConfig, arguments, __doc__, REPLACED | MODELS)
    if (config.model_name_or_path is None) == (config.config_name is None):
        parser.error("give one of --model_name_or_path (weights to start from) and --config_name (from scratch)")
    if config.config_name is not None and config.trainable_layers < len(STAGES) + 1:
        parser.error("--config_name starts from random weights, which must not be frozen: give --trainable_layers 5")
    for name in ("train", "validation"):
        for option, there in ((f"{name}_dir", Path.is_dir), (f"{name}_annotations", Path.is_file)):
            value = getattr(config, option)
            if not value:
                parser.error(f"give --{option}")
            if not there(Path(value)):
                parser.error(f"--{option} {value}: there is no such {'folder' if there is Path.is_dir else 'file'}")
    if config.detector == "retinanet" and config.head != "convolution":
        parser.error("--head involution is for RPN and mask head, which RetinaNet does not have")
    if config.torch_compile:
        parser.error("--torch_compile is not for detectors: their shapes follow what they find")
    return config


def detector_options(config: DetectionConfig, num_categories: int) -> dict:
    """What the functions of `rednet.detection` are called with, beside the backbone."""
    names = ["neck", "head", "channels", "trainable_layers", "min_size", "max_size"]
    if config.detector == "retinanet":
        names.remove("head")
    return {"num_classes": num_categories + 1, **{name: getattr(config, name) for name in names}}


def make_model(config: DetectionConfig, options: dict, categories: list[dict]) -> torch.nn.Module:
    """From scratch, on the backbone of `model_name_or_path`, or with all weights of a detector.

    Raises:
        ValueError: the weights are of another detector, and `ignore_mismatched_sizes` does not allow it.
    """
    stages = STAGES[1:] if config.detector == "retinanet" else STAGES
    if config.config_name is not None:
        backbone = RedNetBackbone(read_config(find_architecture(config.config_name), out_features=stages))
        return DETECTORS[config.detector](backbone, **options)
    check_model_name(config.model_name_or_path)
    saved = read_detector_config(config.model_name_or_path)
    if saved is None:
        read_config(config.model_name_or_path)
        backbone = RedNetBackbone.from_pretrained(config.model_name_or_path, out_features=stages)
        return DETECTORS[config.detector](backbone, **options)
    model = DETECTORS[config.detector](
        RedNetBackbone(RedNetConfig.from_dict({**saved["backbone"], "out_features": stages})), **options
    )
    load_weights(model, config, same_categories=saved["categories"] == categories)
    return model


def load_weights(model: torch.nn.Module, config: DetectionConfig, same_categories: bool) -> None:
    weights, own = read_detector_weights(config.model_name_or_path), model.state_dict()
    fit = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    new = sorted(own.keys() - fit.keys())
    if (new or not same_categories) and not config.ignore_mismatched_sizes:
        raise ValueError(
            f"{config.model_name_or_path} is a detector of other categories or layers "
            f"({f'{new[:2]} do not fit' if new else 'all weights fit, the names do not'}): "
            "--ignore_mismatched_sizes takes its weights as far as they fit"
        )
    model.load_state_dict(fit, strict=False)


def compute_loss(model: torch.nn.Module, batch: dict[str, list]) -> torch.Tensor:
    """The sum of all losses of the detector, for a batch of `TrainingPictures`."""
    return sum(model([image / 255 for image in batch["images"]], batch["targets"]).values())


if __name__ == "__main__":
    main()
