"""The options of optimizer, schedule, loss and distillation."""

from dataclasses import dataclass
from typing import Literal

from rednet.training.options.groups import ComputeOptions, RunOptions, SeedOptions, option
from rednet.training.options.types import (
    BelowOne,
    Betas,
    Count,
    Epochs,
    Natural,
    NotNegative,
    Positive,
    Probability,
    Scale,
)


Schedule = Literal["cosine", "polynomial", "step"]
Optimizer = Literal["sgd", "adamw", "lamb", "muon"]
Warmup = Literal["scaled", "linear", "prefix"]


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
class OptimizationOptions(LayerOptions, ComputeOptions, SeedOptions):
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
        0.8,
        "Learning rate after the warm-up. It is not scaled by the batch size or the number of processes: the default is for "
        "2,048 images per step in classification, 8 in segmentation and 16 in detection.",
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
class LoopOptions(RunOptions, OptimizationOptions):
    """Options that all training scripts of this package have."""


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
