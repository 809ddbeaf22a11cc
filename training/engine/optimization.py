"""One optimizer step: parameter groups, learning rate schedule, and gradients accumulated over batches and processes."""

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from rednet.training.options.groups import OptimizationOptions
from rednet.training.utils.randomness import seeded


def parameter_groups(model: torch.nn.Module, weight_decay: float, no_decay_on_norm_and_bias: bool) -> list[dict]:
    """Weight decay on all parameters, as in the paper, or only on those with more than one dimension,
    which excludes BatchNorm and biases."""
    excluded = [p for p in model.parameters() if p.ndim <= 1 and no_decay_on_norm_and_bias]
    decayed = [p for p in model.parameters() if p.ndim > 1 or not no_decay_on_norm_and_bias]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": excluded, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def learning_rate_factor(step: int, total_steps: int, config: OptimizationOptions) -> float:
    """The factor of the configured learning rate at a step: the schedule, times a linear warm-up at the start."""
    progress = min(step / total_steps, 1)
    if config.lr_scheduler_type == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * progress))
    elif config.lr_scheduler_type == "polynomial":
        factor = (1 - progress) ** config.lr_power
    else:
        factor = 0.1 ** sum(step * config.num_train_epochs >= epoch * total_steps for epoch in config.lr_steps)
    if step >= config.num_warmup_steps:
        return factor
    return factor * (config.warmup_start_factor + (1 - config.warmup_start_factor) * step / config.num_warmup_steps)


def train_step(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[dict],
    config: OptimizationOptions,
    compute_loss: Callable[[torch.nn.Module, dict], torch.Tensor],
    step: int = 0,
    count_items: Callable[[dict], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    One optimizer step on the mean loss of `batches` over all processes. Its gradient is that of one batch with all
    their images.

    Args:
        compute_loss: the mean loss of a batch, over its images, or over what `count_items` counts.
        count_items: the number of items in a batch, if batches have different numbers of them.

    Returns:
        The loss of this process (the mean over the processes is the mean loss), and the norm of the gradient if it is
        clipped.
    """
    losses, grad_norm = [], None
    shares = batch_shares(accelerator, batches, count_items)
    for number, (batch, share) in enumerate(zip(batches, shares)):
        batch = send_to_device(batch, accelerator.device, non_blocking=True)
        with nullcontext() if number == len(batches) - 1 else accelerator.no_sync(model):
            # A resumed run repeats the random numbers of the loss and the model.
            with seeded(config.seed, step, accelerator.process_index, number):
                loss = compute_loss(model, batch)
            accelerator.backward(loss * share)
        losses.append(loss.detach() * share)
    if config.max_grad_norm is not None:
        grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    return torch.stack(losses).sum(), grad_norm


def batch_shares(
    accelerator: Accelerator, batches: list[dict], count_items: Callable[[dict], torch.Tensor] | None
) -> list[float] | torch.Tensor:
    """The factors of the losses of `batches` on this process. DDP averages the gradients over the processes."""
    if count_items is None:
        return [1 / len(batches)] * len(batches)
    counts = torch.stack([count_items(batch) for batch in batches]).to(accelerator.device)
    return counts * accelerator.num_processes / accelerator.reduce(counts.sum(), "sum").clamp(min=1)
