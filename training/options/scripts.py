"""The options of each training script, as a combination of groups."""

from dataclasses import dataclass
from typing import Literal

from rednet.training.options.augmentation import AugmentationOptions, DenseAugmentationOptions
from rednet.training.options.groups import (
    ComputeOptions,
    HubOptions,
    ModelOptions,
    NormalizationOptions,
    PictureOptions,
    SeedOptions,
    StreamOptions,
    TrainingDataOptions,
    option,
    with_default,
)
from rednet.training.options.optimization import (
    DistillationOptions,
    FreezingOptions,
    LoopOptions,
    LossOptions,
    OptimizationOptions,
    Schedule,
)
from rednet.training.options.types import (
    Count,
    Folder,
    Natural,
    NotNegative,
    NumTrained,
    Positive,
    Probability,
    Quality,
    Scales,
    Size,
)
from rednet.training.utils.cpus import available_cpus


Layers = Literal["convolution", "involution"]


@dataclass
class PackOptions(TrainingDataOptions):
    """Options of `pack.py`."""

    shortest_edge: Count = option(
        500, "Length to which the shorter edge of a larger picture is resized, in pixels. None is enlarged."
    )
    jpeg_quality: Quality = option(90, "Quality of the JPEG files, from 1 to 95.")
    shuffle: bool = option(
        False,
        "Pack the training images in a random order, by seed. A stream of the packed images needs it if those of a "
        "class follow each other, as in class folders.",
    )
    pictures_per_shard: Count = option(1000, "Maximum number of pictures of a parquet file.")
    preprocessing_num_workers: Natural = option(
        available_cpus(), "Number of worker processes that resize pictures. The files do not depend on it."
    )
    output_dir: Folder = option(
        "outputs/packed", "Folder for the packed data set. A run that finds its own files there resumes."
    )


@dataclass
class TrainingConfig(
    HubOptions,
    LoopOptions,
    FreezingOptions,
    LossOptions,
    DistillationOptions,
    AugmentationOptions,
    PictureOptions,
    StreamOptions,
    TrainingDataOptions,
    ModelOptions,
):
    """Options of `train.py`."""

    repeated_augmentation: Count = option(
        1,
        "Number of times that an image occurs in an epoch, each time with other random changes. With at least as many "
        "processes, its copies in a batch are on different ones. The epoch keeps its length, with fewer different images.",
    )
    decode_on_gpu: bool = option(
        False,
        "Decode, crop and flip JPEG files on the GPU, by nvJPEG; worker processes then only read them. They decode all "
        "other files. Not for color_jitter and auto_augment.",
    )


@dataclass
class MaskOptions(TrainingDataOptions):
    train_dir: str | None = option(
        None,
        "Training images, instead of dataset_name: a folder that contains the folders images and annotations, in which "
        "an image and its mask have the same name.",
    )
    label_column_name: str = option(
        "annotation", "Name of the column that contains the masks: the class of each pixel."
    )
    do_reduce_labels: bool = option(False, "In the masks, 0 means unlabeled and classes start at 1, as in ADE20K.")


@dataclass
class CropOptions(DenseAugmentationOptions, NormalizationOptions):
    random_scale: Scales = option(
        [0.5, 2.0], "Minimum and maximum factor by which a training image is resized at random."
    )
    crop_size: Size = option([512, 1024], "Height and width of the random crop to train on.")


@dataclass
class SegmentationConfig(
    HubOptions, LoopOptions, FreezingOptions, CropOptions, StreamOptions, MaskOptions, ModelOptions
):
    """
    Options of `train_segmentation.py`. The defaults are the schedule of mmsegmentation, except for its length and for its
    last learning rate, 1e-4.
    """

    photometric_distortion: bool = with_default(DenseAugmentationOptions, "photometric_distortion", True)
    per_device_train_batch_size: Count = option(2, "Training batch size of each process, in crops.")
    per_device_eval_batch_size: Count = option(1, "Number of images that each process loads together for evaluation.")
    learning_rate: Positive = with_default(OptimizationOptions, "learning_rate", 0.01)
    lr_scheduler_type: Schedule = with_default(OptimizationOptions, "lr_scheduler_type", "polynomial")
    weight_decay: NotNegative = with_default(OptimizationOptions, "weight_decay", 5e-4)
    nesterov: bool = with_default(OptimizationOptions, "nesterov", False)
    num_warmup_steps: Natural = with_default(OptimizationOptions, "num_warmup_steps", 0)


@dataclass
class CocoOptions(SeedOptions):
    train_dir: str = option("", "Folder of the training images.")
    train_annotations: str = option("", "Annotations of the training images, a COCO file: instances_train2017.json.")
    validation_dir: str = option("", "Folder of the images to evaluate on.")
    validation_annotations: str = option("", "Annotations of the images to evaluate on, a COCO file.")
    max_train_samples: Count | None = option(None, "Maximum number of images to train on: a random sample.")
    max_eval_samples: Count | None = option(None, "Maximum number of images to evaluate on: a random sample.")


@dataclass
class DetectorOptions:
    detector: Literal["fasterrcnn", "maskrcnn", "retinanet"] = option("fasterrcnn", "Detector of torchvision.")
    neck: Layers = option("convolution", "Type of the output layers of the feature pyramid.")
    head: Layers = option("convolution", "Type of the layers of RPN and mask head. RetinaNet has neither.")
    channels: Count = option(256, "Number of channels of the feature pyramid.")
    trainable_layers: NumTrained = option(
        3, "Number of trainable layers of the backbone (the stem and four stages), counted from the last stage."
    )
    min_size: Count = option(800, "Length to which the shorter side of an image is resized, in pixels.")
    max_size: Count = option(1333, "Maximum length of the longer side after resizing, in pixels.")


@dataclass
class DetectionConfig(LoopOptions, DenseAugmentationOptions, DetectorOptions, CocoOptions, ModelOptions):
    """Options of `train_detection.py`. The defaults are the paper's schedule."""

    per_device_train_batch_size: Count = with_default(OptimizationOptions, "per_device_train_batch_size", 2)
    per_device_eval_batch_size: Count = with_default(ComputeOptions, "per_device_eval_batch_size", 2)
    num_train_epochs: Count = with_default(OptimizationOptions, "num_train_epochs", 12)
    learning_rate: Positive = with_default(OptimizationOptions, "learning_rate", 0.02)
    lr_scheduler_type: Schedule = with_default(OptimizationOptions, "lr_scheduler_type", "step")
    nesterov: bool = with_default(OptimizationOptions, "nesterov", False)
    num_warmup_steps: Natural = with_default(OptimizationOptions, "num_warmup_steps", 2000)
    warmup_start_factor: Probability = with_default(OptimizationOptions, "warmup_start_factor", 0.001)
