"""Groups of options, and the options of each training script as a combination of groups.

An option has the name that it has in run_image_classification_no_trainer.py of Transformers, if it exists there.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from rednet.training.options.types import (
    AutoAugment,
    BelowOne,
    Betas,
    Count,
    Deviations,
    Epochs,
    Fraction,
    Means,
    Natural,
    NotNegative,
    NumTrained,
    Positive,
    Probability,
    Quality,
    Scale,
    Scales,
    Seed,
    Size,
    Sizes,
    StepsOrEpoch,
)
from rednet.training.utils.cpus import available_cpus


WORKERS = min(4, available_cpus())

Schedule = Literal["cosine", "polynomial", "step"]
Layers = Literal["convolution", "involution"]
Optimizer = Literal["sgd", "adamw", "lamb", "muon"]
Warmup = Literal["scaled", "linear", "prefix"]
Interpolation = Literal["bilinear", "bicubic", "random"]
EraseMode = Literal["const", "rand", "pixel"]


def option(default: Any, help: str) -> Any:
    """A field of a dataclass of options, with its help text."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def with_default(group: type, name: str, default: Any) -> Any:
    """The option `name` of a group with another default and the same help text."""
    return option(default, next(field.metadata["help"] for field in fields(group) if field.name == name))


@dataclass
class ModelOptions:
    model_name_or_path: str | None = option(None, "Pretrained weights to start from: a folder or a Hub id.")
    config_name: str | None = option(
        None, "Architecture to train from scratch: a packaged name (rednet-50), a config.json, a folder or a Hub id."
    )
    ignore_mismatched_sizes: bool = option(
        False,
        "Load pretrained weights of a model with other classes. Layers whose shapes differ are initialized randomly.",
    )
    drop_path_rate: BelowOne | None = option(
        None,
        "Stochastic depth: the probability to leave out the last bottleneck for an image; it grows linearly from 0 in the "
        "first one. By default that of the architecture.",
    )

    @property
    def changes(self) -> dict[str, float]:
        """The values of the model's configuration that the options replace."""
        return {} if self.drop_path_rate is None else {"drop_path_rate": self.drop_path_rate}


@dataclass
class SeedOptions:
    seed: Seed = option(42, "Seed of all random numbers.")


@dataclass
class DataOptions(SeedOptions):
    dataset_name: str = option("", "Data set to load with the library datasets: a Hub id or a local folder.")
    dataset_config_name: str | None = option(None, "Configuration of the data set, if it has several.")
    train_dir: str | None = option(
        None, "Training images, instead of dataset_name: a folder that contains one folder of images for each class."
    )
    validation_dir: str | None = option(None, "Validation images, in folders as in train_dir.")
    train_split: str = option("train", "Name of the training split.")
    validation_split: str = option("validation", "Name of the split to evaluate on.")
    train_val_split: Fraction | None = option(
        None, "Fraction of the training images to use for validation, if there is no validation split."
    )
    image_column_name: str = option("image", "Name of the column that contains the images.")
    label_column_name: str = option("label", "Name of the column that contains the labels.")
    max_eval_samples: Count | None = option(
        None, "Maximum number of images to evaluate on: a random sample, or the first ones of a stream."
    )
    streaming: bool = option(False, "Stream the images from the Hub or from files, without storing them on disk.")

    @property
    def source(self) -> str:
        """The Hub id or the folder that the images come from."""
        return self.dataset_name or self.train_dir or self.validation_dir or ""


@dataclass
class TrainingDataOptions(DataOptions):
    max_train_samples: Count | None = option(
        None, "Maximum number of images to train on: a random sample, or the length of an epoch of a stream."
    )


@dataclass
class StreamOptions:
    shuffle_buffer_size: Count = option(
        10_000, "Number of streamed images to shuffle in memory, undecoded (about 0.1 MB each for ImageNet)."
    )


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
    output_dir: str = option(
        "outputs/packed", "Folder for the packed data set. A run that finds its own files there resumes."
    )


@dataclass
class ComputeOptions(SeedOptions):
    per_device_eval_batch_size: Count = option(64, "Evaluation batch size of each process.")
    dataloader_num_workers: Natural = option(WORKERS, "Number of worker processes that decode and augment images.")
    mixed_precision: Literal["no", "bf16", "fp16"] = option("no", "Data type of mixed precision.")


@dataclass
class NormalizationOptions:
    image_mean: Means = option([0.485, 0.456, 0.406], "Mean of each channel, for pixel values from 0 to 1.")
    image_std: Deviations = option(
        [0.229, 0.224, 0.225], "Standard deviation of each channel, for pixel values from 0 to 1."
    )


@dataclass
class PictureOptions(NormalizationOptions):
    image_size: Count = option(224, "Height and width of the model's input, in pixels.")
    train_image_size: Sizes | None = option(
        None,
        "Height and width of the training images; by default image_size. Several sizes, such as 128 160 192 224, are for "
        "progressive resizing: each is used for an equal share of num_train_epochs, in this order.",
    )
    eval_image_size: Count | None = option(
        None, "Height and width of the images in evaluation and of the saved image processor; by default image_size."
    )
    crop_pct: Scale = option(
        0.875,
        "For evaluation, an image is resized to eval_image_size / crop_pct, and its center is cropped to "
        "eval_image_size. From 384 on, it is resized to eval_image_size without a crop.",
    )

    @property
    def train_sizes(self) -> list[int]:
        return self.train_image_size or [self.image_size]

    @property
    def eval_size(self) -> int:
        return self.eval_image_size or self.image_size


@dataclass
class AugmentationOptions:
    random_crop_min_scale: Scale | None = option(
        0.08,
        "Minimum fraction of the image area that a random crop keeps. null resizes the whole image to a square instead.",
    )
    interpolation: Interpolation = option(
        "bilinear",
        "Interpolation that resizes the training images: bilinear, bicubic, or random for one of both for each image.",
    )
    random_flip: Probability = option(0.5, "Probability of a horizontal flip.")
    color_jitter: Probability = option(0.0, "Maximum relative change of brightness, contrast and saturation.")
    auto_augment: AutoAugment | None = option(
        None,
        "trivial for TrivialAugment, or RandAugment as timm writes it: rand, then m (magnitude, 10), mstd (standard "
        "deviation of the magnitude, 0), mmax (its maximum, 10), n (operations for each image, 2), p (probability of "
        "each, 0.5) and inc1 (severity that increases with the magnitude), as in rand-m7-mstd0.5-inc1.",
    )
    random_erase_prob: Probability = option(
        0.0, "Probability of erasing a rectangle of an image, from 2 to 33 % of its area."
    )
    random_erase_mode: EraseMode = option(
        "pixel", "What replaces it: const, the mean color; rand, one random color; pixel, random pixels."
    )
    random_erase_count: Count = option(
        1, "Maximum number of rectangles of one image: the number is random, and they share the area."
    )
    mixup_alpha: NotNegative = option(
        0.0, "Alpha of MixUp; 0 disables it. If CutMix is enabled as well, each batch gets one of the two at random."
    )
    cutmix_alpha: NotNegative = option(0.0, "Alpha of CutMix; 0 disables it.")
    mixup_prob: Probability = option(1.0, "Probability that a batch is mixed, if MixUp or CutMix is enabled.")
    mixup_switch_prob: Probability = option(
        0.5, "Probability that a batch is mixed by CutMix and not by MixUp, if both are enabled."
    )
    mixup_off_epoch: Natural = option(
        0, "Epoch, counted from 0, from which on MixUp and CutMix are disabled; 0 never disables them."
    )


@dataclass
class FreezingOptions:
    frozen_stages: int = option(
        -1,
        "Parts that are frozen, with their BatchNorm statistics: 0 the stem, n the stem and stages 1 to n; -1 nothing.",
    )


@dataclass
class LayerOptions:
    """What differs between the layers of a model in training."""

    layer_decay: Scale = option(
        1.0, "Factor of the learning rate from each stage to the one before it; the head has the full rate."
    )
    no_decay_on_norm_and_bias: bool = option(False, "Exclude BatchNorm parameters and biases from weight decay.")


@dataclass
class OptimizationOptions(LayerOptions, ComputeOptions):
    """An optimizer, and a learning rate schedule with a linear warm-up."""

    per_device_train_batch_size: Count = option(32, "Training batch size of each process.")
    gradient_accumulation_steps: Count = option(1, "Number of batches whose gradients are averaged for one step.")
    num_train_epochs: Count = option(130, "Number of passes over the training images.")
    max_train_steps: Count | None = option(None, "Total number of optimizer steps; overrides num_train_epochs.")
    optimizer: Optimizer = option("sgd", "Optimizer: SGD and AdamW of torch, LAMB and Muon of timm.")
    opt_betas: Betas | None = option(
        None, "Decay of the two averages of adamw, lamb and muon; by default that of the optimizer."
    )
    opt_eps: Positive | None = option(
        None, "Epsilon of adamw, lamb and muon, for numerical stability; by default that of the optimizer."
    )
    learning_rate: Positive = option(
        0.8, "Learning rate after the warm-up. It is not scaled by the batch size or the number of processes."
    )
    lr_scheduler_type: Schedule = option(
        "cosine",
        "Learning rate schedule: cosine or polynomial decay to min_learning_rate, or step, a division by 10 after each "
        "of lr_steps.",
    )
    min_learning_rate: NotNegative = option(
        0.0, "Learning rate at the end of the cosine and the polynomial schedule. Layer decay applies to it, too."
    )
    lr_power: Positive = option(0.9, "Power of the polynomial schedule.")
    lr_steps: Epochs = option(
        [8, 11], "Epochs, of num_train_epochs, after which the step schedule divides the learning rate by 10."
    )
    momentum: BelowOne = option(0.9, "Momentum of sgd and muon.")
    nesterov: bool = option(True, "Use Nesterov momentum in sgd and muon.")
    weight_decay: NotNegative = option(1e-4, "Weight decay.")
    num_warmup_steps: Natural = option(3130, "Number of steps of the linear warm-up.")
    warmup_start_factor: Probability = option(0.25, "Fraction of the learning rate at which the warm-up starts.")
    warmup_type: Warmup = option(
        "scaled",
        "Learning rate of the warm-up. scaled: the schedule times a linear factor, as in the paper; linear: a line to "
        "learning_rate, then the schedule from its step on, as in timm; prefix: the same line, then the whole schedule.",
    )
    max_grad_norm: Positive | None = option(None, "Maximum norm of the gradients; null disables clipping.")
    clip_mode: Literal["norm", "agc"] = option(
        "norm",
        "What max_grad_norm limits. norm: the norm of all gradients; agc: that of each output channel's gradient, as a "
        "fraction of the norm of its weights, in all layers but the last (adaptive gradient clipping).",
    )
    ema_decay: BelowOne | None = option(
        None, "Decay of an exponential moving average of the weights, which is then evaluated and saved."
    )
    ema_warmup: bool = option(
        False,
        "Let ema_decay grow from 0 in the first steps: 1 - (1 + step)^(-2/3), as in timm, and at most ema_decay.",
    )
    sync_batch_norm: bool = option(
        False,
        "Compute BatchNorm statistics over the batches of all processes (GPUs only). It takes more memory, because "
        "involutions then keep their kernels for the backward pass.",
    )
    torch_compile: bool = option(False, "Compile the model with torch.compile.")
    gradient_checkpointing: bool = option(
        False, "Compute the activations of each bottleneck again in the backward pass: less memory, more time."
    )
    tf32: bool | None = option(
        None, "Use TF32 in multiplications and convolutions of float32 on GPUs; by default as torch does."
    )
    cudnn_benchmark: bool = option(
        False, "Let cuDNN time its algorithms. A resumed run may then choose others and end with other weights."
    )


@dataclass
class RunOptions:
    output_dir: str = option(
        "outputs/train", "Folder for all results. A run that finds its own checkpoints there resumes."
    )
    checkpointing_steps: StepsOrEpoch = option(
        "epoch", "Number of steps between two checkpoints, or epoch for one after each epoch."
    )
    checkpoints_total_limit: Count = option(2, "Number of checkpoints to keep: the newest ones.")
    logging_steps: Count = option(50, "Number of steps between two lines of the log.")
    eval_epochs: Count = option(1, "Number of epochs between two evaluations. The final model is always evaluated.")
    report_to: str | None = option(
        None, "Experiment trackers of Accelerate, separated by commas: tensorboard, wandb, trackio."
    )


@dataclass
class LoopOptions(RunOptions, OptimizationOptions):
    """Options that all training scripts of this package have."""


@dataclass
class HubOptions:
    push_to_hub: bool = option(
        False, "Push the folder last to the Hub at the end of the run. Run hf auth login first."
    )
    hub_model_id: str | None = option(None, "Hub repository to push to; by default, one named like output_dir.")
    hub_private_repo: bool | None = option(
        None, "Create the repository as a private one. A repository that exists stays as it is."
    )
    hub_revision: str | None = option(
        None, "Branch to push to, created if it does not exist, or refs/pr/N for pull request N; by default main."
    )
    hub_create_pr: bool = option(False, "Open a pull request, for which access to read is enough.")


@dataclass
class LossOptions:
    loss: Literal["cross_entropy", "bce"] = option(
        "cross_entropy", "Loss: cross-entropy, or binary cross-entropy of each class (bce), a mean over the classes."
    )
    label_smoothing: BelowOne = option(0.1, "Label smoothing: the part of each target that all classes share.")
    bce_target_thresh: BelowOne | None = option(
        None, "Threshold of bce: after smoothing and mixing, targets above it are 1 and others 0."
    )


@dataclass
class DistillationOptions:
    teacher_model_name_or_path: str | None = option(
        None,
        "Classifier to learn from: a folder or a Hub id of Transformers or timm (timm/resnet50.a1_in1k), with the same "
        "classes in the same order.",
    )
    distillation_type: Literal["soft", "hard"] = option(
        "soft", "What to learn: all probabilities of the teacher (soft), or the class that it predicts (hard)."
    )
    distillation_alpha: Probability = option(
        0.5, "Weight of the distillation in the loss; the labels have the weight 1 - distillation_alpha."
    )
    distillation_temperature: Positive = option(1.0, "Temperature of soft distillation, which divides the logits.")


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


@dataclass
class DenseAugmentationOptions:
    random_flip: Probability = option(0.5, "Probability of a horizontal flip.")
    photometric_distortion: bool = option(
        False, "Change brightness, contrast, saturation and hue at random, as in SSD."
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
    """Options of `train_segmentation.py`. The defaults are the schedule of mmsegmentation, except for its length."""

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
