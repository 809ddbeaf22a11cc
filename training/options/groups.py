"""What the scripts can be told: groups of options, and what each script takes of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from rednet.training.utils.cpus import available_cpus


WORKERS = min(4, available_cpus())


@dataclass(frozen=True)
class Valid:
    """Which values of its type an option takes; `parse_options` checks them, whatever the source."""

    words: str
    holds: Callable[[Any], bool]


def _each(holds: Callable[[Any], bool]) -> Callable[[list], bool]:
    return lambda values: len(values) > 0 and all(map(holds, values))


Natural = Annotated[int, Valid("at least 0", lambda value: value >= 0)]
Count = Annotated[int, Valid("at least 1", lambda value: value >= 1)]
Seed = Annotated[int, Valid("a number from 0 to 2**32 - 1", lambda value: 0 <= value < 2**32)]  # as NumPy has them
NotNegative = Annotated[float, Valid("a finite number of at least 0", lambda value: value >= 0)]
Positive = Annotated[float, Valid("a finite number above 0", lambda value: value > 0)]
Probability = Annotated[float, Valid("a number from 0 to 1", lambda value: 0 <= value <= 1)]  # or a part
BelowOne = Annotated[float, Valid("a number from 0 to below 1", lambda value: 0 <= value < 1)]
Fraction = Annotated[float, Valid("a part between 0 and 1", lambda value: 0 < value < 1)]
Scale = Annotated[float, Valid("a part between 0 and 1, above 0", lambda value: 0 < value <= 1)]
Magnitude = Annotated[int, Valid("a number from 0 to 30", lambda value: 0 <= value <= 30)]
Epochs = Annotated[list[int], Valid("one or more epochs, from 1 on", _each(lambda value: value >= 1))]
Seeds = Annotated[list[int], Valid("one or more numbers of at least 0", _each(lambda value: value >= 0))]
Size = Annotated[
    list[int], Valid("a height and a width, each at least 1", lambda v: len(v) == 2 and _each(lambda n: n >= 1)(v))
]
Scales = Annotated[
    list[float], Valid("a least and a greatest factor, above 0", lambda v: len(v) == 2 and 0 < v[0] <= v[1])
]
Means = Annotated[list[float], Valid("3 finite numbers, one for each channel", lambda v: len(v) == 3)]
Deviations = Annotated[
    list[float],
    Valid("3 finite numbers above 0, one for each channel", lambda v: len(v) == 3 and _each(lambda n: n > 0)(v)),
]


def _steps(value: str) -> bool:
    return value == "epoch" or (value.isdecimal() and int(value) > 0)


def option(default, help: str, **kwargs) -> Any:
    """A field of a dataclass of options, with what `--help` says of it."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help, **kwargs})
    return field(default=default, metadata={"help": help, **kwargs})


# Names are those of Transformers' run_image_classification_no_trainer.py wherever it has them.


@dataclass
class ModelOptions:
    model_name_or_path: str | None = option(None, "Weights to start from: a folder or the id of a Hub repository.")
    config_name: str | None = option(
        None, "Architecture to start from scratch: a packaged name (rednet-50), a config.json, a folder or a Hub id."
    )
    ignore_mismatched_sizes: bool = option(
        False, "Take weights of a model for other classes; a classifier of another size starts from scratch."
    )


@dataclass
class DataOptions:
    dataset_name: str = option(
        "", "Data set: a Hub id or a local folder (parquet, webdataset, images) for `datasets`."
    )
    dataset_config_name: str | None = option(None, "Configuration of the data set, where it has several.")
    train_dir: str | None = option(None, "Instead of dataset_name, a folder with one folder of images per class.")
    validation_dir: str | None = option(None, "The same for the images to evaluate on.")
    train_split: str = option("train", "Split to train on.")
    validation_split: str = option("validation", "Split to evaluate on.")
    train_val_split: Fraction | None = option(
        None, "Where there is no validation split, this part of the training images becomes one."
    )
    image_column_name: str = option("image", "Column with the images.")
    label_column_name: str = option("label", "Column with the labels.")
    max_eval_samples: Count | None = option(
        None, "Evaluate on so many images only, drawn by the seed. Streamed: the first."
    )
    streaming: bool = option(False, "Read the images in passing, from the Hub or from files, and store nothing.")

    @property
    def source(self) -> str:
        """Where the images come from, as the user gave it."""
        return self.dataset_name or self.train_dir or self.validation_dir or ""


@dataclass
class TrainingDataOptions(DataOptions):
    max_train_samples: Count | None = option(
        None, "Train on so many images only, drawn by the seed. Streamed: so many images are an epoch."
    )


@dataclass
class StreamOptions:
    shuffle_buffer_size: Count = option(
        10_000,
        "Streamed training images that are shuffled among each other, undecoded in memory (ImageNet: 0.1 MB each).",
    )


@dataclass
class ComputeOptions:
    per_device_eval_batch_size: Count = option(64, "Images in an evaluation batch of one process.")
    dataloader_num_workers: Natural = option(WORKERS, "Processes that decode and augment images.")
    mixed_precision: str = option("no", "no, bf16 or fp16.", choices=["no", "bf16", "fp16"])
    seed: Seed = option(42, "Seed of everything random.")


@dataclass
class NormalizationOptions:
    image_mean: Means = option([0.485, 0.456, 0.406], "Mean of each channel, of values in 0 ... 1.")
    image_std: Deviations = option([0.229, 0.224, 0.225], "Standard deviation of each channel.")


@dataclass
class PictureOptions(NormalizationOptions):
    image_size: Count = option(224, "Height and width that the model sees, in pixels.")
    crop_pct: Scale = option(
        0.875, "In evaluation the image is resized to image_size / crop_pct, then cropped (below 384)."
    )


@dataclass
class AugmentationOptions:
    random_crop_min_scale: Scale | None = option(
        0.08,
        "The least part of its area that a random crop of a training image keeps; null in a file for none, which squeezes the whole image into a square.",
    )
    random_flip: Probability = option(0.5, "Probability that a training image is mirrored.")
    color_jitter: Probability = option(0.0, "Brightness, contrast and saturation change by up to this part.")
    rand_augment_magnitude: Magnitude | None = option(None, "RandAugment: two operations of this strength, 0 ... 30.")
    mixup_alpha: NotNegative = option(
        0.0, "MixUp: how evenly two images are mixed. With CutMix, one of both by chance."
    )
    cutmix_alpha: NotNegative = option(0.0, "CutMix: how evenly two images share the area.")


@dataclass
class OptimizationOptions(ComputeOptions):
    """SGD, and a schedule under a linear warm-up."""

    per_device_train_batch_size: Count = option(32, "Images in a training batch of one process.")
    gradient_accumulation_steps: Count = option(1, "Batches whose gradients are averaged for one step.")
    num_train_epochs: Count = option(130, "Passes over the training images.")
    max_train_steps: Count | None = option(None, "Stop after so many steps; the schedule ends there as well.")
    learning_rate: Positive = option(0.8, "Learning rate after the warm-up, for the whole batch of all processes.")
    lr_scheduler_type: str = option(
        "cosine",
        "Cosine or polynomial to 0 at the last step, or step: a tenth after each epoch of lr_steps.",
        choices=["cosine", "polynomial", "step"],
    )
    lr_power: Positive = option(0.9, "Power of the polynomial.")
    lr_steps: Epochs = option([8, 11], "Epochs of num_train_epochs after which the step schedule goes down.")
    momentum: BelowOne = option(0.9, "Momentum.")
    nesterov: bool = option(True, "Nesterov's momentum.")
    weight_decay: NotNegative = option(1e-4, "Weight decay.")
    no_decay_on_norm_and_bias: bool = option(False, "No weight decay on BatchNorm and biases.")
    num_warmup_steps: Natural = option(3130, "Steps of linear warm-up.")
    warmup_start_factor: Probability = option(0.25, "Part of the learning rate that the warm-up starts from.")
    max_grad_norm: Positive | None = option(None, "Gradients are scaled down to this norm.")
    ema_decay: BelowOne | None = option(None, "Evaluate and save an exponential moving average of the weights.")
    sync_batch_norm: bool = option(
        False,
        "Statistics of BatchNorm over the batches of all processes (GPUs only); involutions then keep their kernels "
        "for the backward pass, which takes more memory.",
    )
    torch_compile: bool = option(False, "Compile the model.")


@dataclass
class RunOptions:
    output_dir: str = option("outputs/train", "Everything goes here; a run that finds its own checkpoints resumes.")
    checkpointing_steps: Annotated[str, Valid("a positive number or epoch", _steps)] = option(
        "epoch", "How often the state is saved: a number of steps, or epoch."
    )
    checkpoints_total_limit: Count = option(2, "How many of the newest checkpoints stay.")
    logging_steps: Count = option(50, "Steps between two lines of the log.")
    eval_epochs: Count = option(1, "Epochs between two evaluations; there is one at the end in any case.")
    report_to: str | None = option(None, "Trackers of Accelerate, separated by commas: tensorboard, wandb, trackio.")


@dataclass
class LoopOptions(RunOptions, OptimizationOptions):
    """What all training scripts can be told."""


@dataclass
class HubOptions:
    push_to_hub: bool = option(False, "Push the Hub folder `last` when the run ends; needs `hf auth login`.")
    hub_model_id: str | None = option(None, "Repository to push to; by default one with the name of output_dir.")


@dataclass
class TrainingConfig(
    HubOptions, LoopOptions, AugmentationOptions, PictureOptions, StreamOptions, TrainingDataOptions, ModelOptions
):
    """Everything that `train.py` can be told; the other scripts combine the groups that they need."""

    label_smoothing: BelowOne = option(0.1, "Part of the target that is spread over all classes.")


@dataclass
class DenseAugmentationOptions:
    random_flip: Probability = option(0.5, "Probability that a training picture is mirrored.")
    photometric_distortion: bool = option(
        False, "Brightness, contrast, saturation and hue change at random, as in SSD."
    )


@dataclass
class MaskOptions(TrainingDataOptions):
    train_dir: str | None = option(
        None, "Instead of dataset_name, a folder with the folders images and annotations: masks of the same names."
    )
    label_column_name: str = option("annotation", "Column with the masks: pictures of the class of every pixel.")
    do_reduce_labels: bool = option(False, "In the masks, classes count from 1, and 0 is not labelled (ADE20K).")


@dataclass
class CropOptions(DenseAugmentationOptions, NormalizationOptions):
    random_scale: Scales = option([0.5, 2.0], "Least and greatest factor that a training picture is scaled by.")
    crop_size: Size = option([512, 1024], "Height and width of the crop that is trained on.")


@dataclass
class SegmentationConfig(HubOptions, LoopOptions, CropOptions, StreamOptions, MaskOptions, ModelOptions):
    """Everything that `train_segmentation.py` can be told. The defaults are the schedule of mmsegmentation's models,
    without its length."""

    photometric_distortion: bool = option(True, "Brightness, contrast, saturation and hue change at random.")
    per_device_train_batch_size: Count = option(2, "Crops in a training batch of one process.")
    per_device_eval_batch_size: Count = option(1, "Pictures that one process loads together to evaluate on.")
    learning_rate: Positive = option(0.01, "Learning rate after the warm-up, for the whole batch of all processes.")
    lr_scheduler_type: str = option("polynomial", "As for train.py.", choices=["cosine", "polynomial", "step"])
    weight_decay: NotNegative = option(5e-4, "Weight decay.")
    nesterov: bool = option(False, "Nesterov's momentum.")
    num_warmup_steps: Natural = option(0, "Steps of linear warm-up.")


@dataclass
class CocoOptions:
    train_dir: str = option("", "Folder with the pictures to train on.")
    train_annotations: str = option("", "Their objects: a file in COCO's format, instances_train2017.json say.")
    validation_dir: str = option("", "Folder with the pictures to evaluate on.")
    validation_annotations: str = option("", "Their objects.")
    max_train_samples: Count | None = option(None, "Train on so many pictures only, drawn by the seed.")
    max_eval_samples: Count | None = option(None, "Evaluate on so many pictures only, drawn likewise.")


@dataclass
class DetectorOptions:
    detector: str = option("fasterrcnn", "Detector of torchvision.", choices=["fasterrcnn", "maskrcnn", "retinanet"])
    neck: str = option("convolution", "Output layers of the feature pyramid.", choices=["convolution", "involution"])
    head: str = option(
        "convolution", "Layers of RPN and mask head (not RetinaNet).", choices=["convolution", "involution"]
    )
    channels: Count = option(256, "Channels of the feature pyramid.")
    trainable_layers: Annotated[int, Valid("a number from 0 to 5", lambda value: 0 <= value <= 5)] = option(
        3, "Of stem and four stages, so many are trained, counted from the last."
    )
    min_size: Count = option(800, "The shorter side of a picture is resized to this ...")
    max_size: Count = option(1333, "... but the longer one to this at most.")


@dataclass
class DetectionConfig(LoopOptions, DenseAugmentationOptions, DetectorOptions, CocoOptions, ModelOptions):
    """Everything that `train_detection.py` can be told. The defaults are the paper's schedule."""

    per_device_train_batch_size: Count = option(2, "Pictures in a training batch of one process.")
    per_device_eval_batch_size: Count = option(2, "Pictures in an evaluation batch of one process.")
    num_train_epochs: Count = option(12, "Passes over the training pictures.")
    learning_rate: Positive = option(0.02, "Learning rate after the warm-up, for the whole batch of all processes.")
    lr_scheduler_type: str = option("step", "As for train.py.", choices=["cosine", "polynomial", "step"])
    nesterov: bool = option(False, "Nesterov's momentum.")
    num_warmup_steps: Natural = option(2000, "Steps of linear warm-up.")
    warmup_start_factor: Probability = option(0.001, "Part of the learning rate that the warm-up starts from.")
