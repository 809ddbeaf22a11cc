"""Learning rates, averaged weights and clipping against their definitions, and against timm."""

import math

import pytest
import torch
from accelerate import Accelerator
from rednet.training.engine.optimization import (
    average_function,
    check_warmup,
    clip_gradients,
    learning_rate_factor,
    train_step,
)
from rednet.training.options.scripts import TrainingConfig
from timm.scheduler import CosineLRScheduler, PolyLRScheduler
from timm.utils import ModelEmaV3
from torch.optim.swa_utils import AveragedModel

from small_models import small_model


def test_schedule_of_the_paper():
    """Linear warm-up from a quarter over 3,130 steps, cosine to 0 over 130 epochs of 626 steps."""
    config, total = TrainingConfig(), 130 * 626
    assert learning_rate_factor(0, total, config) == 0.25
    assert math.isclose(learning_rate_factor(1565, total, config), 0.625 * (1 + math.cos(math.pi * 1565 / total)) / 2)
    assert (
        math.isclose(learning_rate_factor(total // 2, total, config), 0.5)
        and learning_rate_factor(total, total, config) == 0
    )
    assert (
        learning_rate_factor(3129, total, config)
        < learning_rate_factor(3130, total, config)
        > learning_rate_factor(3131, total, config)
    )


def test_schedules_of_segmentation_and_detection():
    """Polynomial of power 0.9; a tenth after the eighth and again after the eleventh of twelve epochs."""
    polynomial = TrainingConfig(lr_scheduler_type="polynomial", num_warmup_steps=0)
    assert learning_rate_factor(0, 80_000, polynomial) == 1 and learning_rate_factor(80_000, 80_000, polynomial) == 0
    assert math.isclose(learning_rate_factor(20_000, 80_000, polynomial), 0.75**0.9)
    steps = TrainingConfig(
        lr_scheduler_type="step", num_train_epochs=12, num_warmup_steps=10, warmup_start_factor=0.001
    )
    assert (
        learning_rate_factor(0, 1200, steps) == 0.001
        and learning_rate_factor(10, 1200, steps) == learning_rate_factor(799, 1200, steps) == 1
    )
    assert math.isclose(learning_rate_factor(800, 1200, steps), 0.1) and math.isclose(
        learning_rate_factor(1099, 1200, steps), 0.1
    )
    assert math.isclose(learning_rate_factor(1100, 1200, steps), 0.01) and math.isclose(
        learning_rate_factor(1200, 1200, steps), 0.01
    )


def test_a_warmup_of_the_whole_run_is_a_warning(caplog):
    Accelerator(cpu=True)  # its logger needs it
    check_warmup(TrainingConfig(num_warmup_steps=9), 10)
    assert not caplog.records
    check_warmup(TrainingConfig(num_warmup_steps=10), 10)
    assert "--num_warmup_steps is 10, but the run has 10 steps" in caplog.text


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("kind", [CosineLRScheduler, PolyLRScheduler])
def test_schedules_of_timm(kind, prefix):
    """With a warm-up and a minimum, for two parts of a model with layer decay. With `warmup_prefix`, timm adds the warm-up
    to the length of the schedule."""
    config = TrainingConfig(
        learning_rate=5e-3,
        min_learning_rate=1e-6,
        num_warmup_steps=50,
        warmup_start_factor=2e-4,
        warmup_type="prefix" if prefix else "linear",
        lr_scheduler_type="cosine" if kind is CosineLRScheduler else "polynomial",
    )
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr_scale": scale} for scale in (1.0, 0.65)]
    optimizer = torch.optim.SGD(groups, config.learning_rate)
    settings = {"lr_min": 1e-6, "warmup_t": 50, "warmup_lr_init": 1e-6, "warmup_prefix": prefix, "t_in_epochs": False}
    settings |= {} if kind is CosineLRScheduler else {"power": config.lr_power}
    schedule = kind(optimizer, 300 - 50 * prefix, **settings)
    for step in range(301):
        schedule.step_update(step)
        factor = learning_rate_factor(step, 300, config)
        for group in optimizer.param_groups:
            expected = pytest.approx(group["lr"], rel=1e-9)
            assert config.learning_rate * group["lr_scale"] * factor == expected, step


@pytest.mark.parametrize("decay", [0.5, 0.9999])
@pytest.mark.parametrize("warmup", [False, True])
def test_averages_are_those_of_timm(warmup, decay):
    """Of weights and BatchNorm statistics, over eight steps. With 0.5, the warm-up ends within them."""
    model = small_model(hidden_sizes=[64], depths=[1])
    ours = AveragedModel(model, multi_avg_fn=average_function(decay, warmup), use_buffers=True)
    theirs = ModelEmaV3(model, decay=decay, use_warmup=warmup)
    for step in range(1, 9):
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data += torch.rand_like(tensor, dtype=torch.float32).to(tensor.dtype)
        ours.update_parameters(model)
        theirs.update(model, step=step)
    expected = theirs.module.state_dict()
    for name, value in ours.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)
            assert not torch.equal(value, model.state_dict()[name])


def test_adaptive_clipping_by_its_definition():
    """No output channel's gradient is longer than 0.01 times its weights, whose norm counts as at least 0.001. The last
    layer keeps its gradient."""
    model = small_model(hidden_sizes=[64], depths=[1])
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * torch.logspace(-6, 1, len(parameter)).view(
            -1, *[1] * (parameter.ndim - 1)
        )
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    config = TrainingConfig(max_grad_norm=0.01, clip_mode="agc")
    assert clip_gradients(Accelerator(cpu=True), model, config) is None
    clipped = 0
    for name, parameter in model.named_parameters():
        if name.startswith("classifier."):
            assert torch.equal(parameter.grad, before[name])
            continue
        rows = (lambda tensor: tensor.flatten(1)) if parameter.ndim > 1 else (lambda tensor: tensor[None])
        weights, gradients, result = rows(parameter.detach()), rows(before[name]), rows(parameter.grad)
        limit = 0.01 * weights.norm(dim=1, keepdim=True).clamp(min=1e-3)
        norm = gradients.norm(dim=1, keepdim=True)
        torch.testing.assert_close(result, gradients * (limit / norm).clamp(max=1), msg=name)
        clipped += (norm > limit).sum()
    assert clipped > 100


def test_a_batch_is_read_after_the_loss_of_the_one_before():
    """Otherwise the model would wait until a loader has prepared all batches of a step."""
    model, events = torch.nn.Linear(2, 1), []

    def batches():
        for number in range(3):
            events.append(f"read {number}")
            yield {"number": number, "pixel_values": torch.full((1, 2), float(number))}

    def loss(model, batch):
        events.append(f"loss {batch['number']}")
        return model(batch["pixel_values"]).mean()

    weight = model.weight.detach().clone()
    accelerator, optimizer = Accelerator(cpu=True), torch.optim.SGD(model.parameters(), 1.0)
    train_step(accelerator, model, optimizer, batches(), 3, TrainingConfig(max_grad_norm=None), loss)
    assert events == ["read 0", "loss 0", "read 1", "loss 1", "read 2", "loss 2"]
    torch.testing.assert_close(model.weight, weight - 1)  # the mean of the gradients 0, 1 and 2
