"""One optimizer step: learning rate, gradients accumulated over batches and processes, clipping, averaged weights."""

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import send_to_device
from rednet.training.options.optimization import OptimizationOptions
from rednet.training.utils.randomness import seeded
from timm.models import model_parameters
from timm.utils import adaptive_clip_grad
from torch.optim.swa_utils import get_ema_multi_avg_fn


logger = get_logger(__name__)


def learning_rate_factor(step: int, total_steps: int, config: OptimizationOptions) -> float:
    """The factor of the configured learning rate at a step: the schedule, with a linear warm-up at the start."""
    warmup, ramp = config.num_warmup_steps, 1.0
    if step < warmup:
        ramp = config.warmup_start_factor + (1 - config.warmup_start_factor) * step / warmup
        if config.warmup_type != "scaled":
            return ramp
    if config.lr_scheduler_type == "step":
        return ramp * 0.1 ** sum(step * config.num_train_epochs >= epoch * total_steps for epoch in config.lr_steps)
    first = warmup if config.warmup_type == "prefix" else 0
    progress = min((step - first) / max(total_steps - first, 1), 1)
    if config.lr_scheduler_type == "cosine":
        decay = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        decay = (1 - progress) ** config.lr_power
    last = config.min_learning_rate / config.learning_rate
    return ramp * (last + (1 - last) * decay)


def check_warmup(config: OptimizationOptions, total_steps: int) -> None:
    """Warns if the warm-up takes the whole run, as that of ImageNet does on a small data set."""
    if config.num_warmup_steps >= total_steps:
        logger.warning(
            f"--num_warmup_steps is {config.num_warmup_steps}, but the run has {total_steps} steps: its learning rate "
            "never reaches --learning_rate"
        )


def average_function(decay: float, warmup: bool) -> Callable:
    """How `AveragedModel` averages weights: with a constant decay, or with one that grows over the first steps."""
    if not warmup:
        return get_ema_multi_avg_fn(decay)

    def update(averages: list[torch.Tensor], weights: list[torch.Tensor], steps: torch.Tensor) -> None:
        grown = 1 - (1 + int(steps)) ** (-2 / 3)
        get_ema_multi_avg_fn(min(grown, decay))(averages, weights, steps)

    return update


def train_step(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[dict],
    count: int,
    config: OptimizationOptions,
    compute_loss: Callable[[torch.nn.Module, dict], torch.Tensor],
    step: int = 0,
    count_items: Callable[[dict], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    One optimizer step on the mean loss of `batches` over all processes. Apart from BatchNorm, its gradient is that of one
    batch with all their images.

    Args:
        batches: read one after the other, so that a loader prepares the next ones meanwhile, or with `count_items` all at
            first.
        count: the number of batches.
        compute_loss: the mean loss of a batch, over its images, or over what `count_items` counts.
        count_items: the number of items in a batch, if batches have different numbers of them.

    Returns:
        The loss of this process (the mean over the processes is the mean loss), and what `clip_gradients` returns.
    """
    losses = []
    shares: Iterable[float | torch.Tensor] = [1 / count] * count
    if count_items is not None:
        batches = list(batches)
        shares = item_shares(accelerator, batches, count_items)
    for number, (batch, share) in enumerate(zip(batches, shares)):
        batch = send_to_device(batch, accelerator.device, non_blocking=True)
        with nullcontext() if number == count - 1 else accelerator.no_sync(model):
            # A resumed run repeats the random numbers of the loss and the model.
            with seeded(config.seed, step, accelerator.process_index, number):
                loss = compute_loss(model, batch)
            accelerator.backward(loss * share)
        losses.append(loss.detach() * share)
    grad_norm = clip_gradients(accelerator, model, config)
    optimizer.step()
    optimizer.zero_grad()
    return torch.stack(losses).sum(), grad_norm


def clip_gradients(
    accelerator: Accelerator, model: torch.nn.Module, config: OptimizationOptions
) -> torch.Tensor | None:
    """Limits the gradients as the options say. Returns the norm of all gradients before, if it is limited."""
    if config.max_grad_norm is None:
        return None
    if config.clip_mode == "norm":
        return accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    accelerator.unscale_gradients()  # of float16
    adaptive_clip_grad(model_parameters(model, exclude_head=True), config.max_grad_norm)
    return None


def item_shares(
    accelerator: Accelerator, batches: list[dict], count_items: Callable[[dict], torch.Tensor]
) -> torch.Tensor:
    """The factors of the losses of `batches` on this process. DDP averages the gradients over the processes."""
    counts = torch.stack([count_items(batch) for batch in batches]).to(accelerator.device)
    return counts * accelerator.num_processes / accelerator.reduce(counts.sum(), "sum").clamp(min=1)
