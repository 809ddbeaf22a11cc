"""Parameter groups and learning rates against their definitions."""

import math

from rednet.training import train
from rednet.training.engine.optimization import learning_rate_factor, parameter_groups
from rednet.training.options.groups import TrainingConfig
from torch import nn


def test_groups_without_weight_decay(options):
    """Off as in the paper: everything decays. On: neither BatchNorm nor biases."""
    model = train.make_model(TrainingConfig(**options[1]), None)
    (everything,) = parameter_groups(model, 1e-4, no_decay_on_norm_and_bias=False)
    assert len(everything["params"]) == len(list(model.parameters())) and everything["weight_decay"] == 1e-4
    decayed, excluded = parameter_groups(model, 1e-4, no_decay_on_norm_and_bias=True)
    assert decayed["weight_decay"] == 1e-4 and excluded["weight_decay"] == 0
    expected = {id(module.weight) for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    assert {id(parameter) for parameter in decayed["params"]} == expected
    assert len(decayed["params"]) + len(excluded["params"]) == len(list(model.parameters()))


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
