"""Recipes and launch files of the repository."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from rednet.training.options.packaged import find_architecture
from rednet.training.train import parse_config


def test_every_recipe_in_the_repository_is_valid(root):
    for path in (root / "configs/training").glob("[!cf]*.yaml"):  # not cityscapes, coco, finetune
        config = parse_config(["--config", str(path)])
        assert Path(find_architecture(config.config_name)).is_file()


@pytest.mark.parametrize("depth", [26, 38, 50, 101, 152])
def test_imagenet_recipes_are_the_papers(root, depth):
    config = parse_config(["--config", str(root / f"configs/training/imagenet_rednet{depth}.yaml")])
    with_64_gpus = 64 * config.per_device_train_batch_size * config.gradient_accumulation_steps
    assert (with_64_gpus, config.learning_rate, config.momentum, config.weight_decay) == (2048, 0.8, 0.9, 1e-4)
    assert (config.num_train_epochs, config.num_warmup_steps, config.warmup_start_factor) == (130, 3130, 0.25)
    assert (config.label_smoothing, config.image_size, round(config.image_size / config.crop_pct)) == (0.1, 224, 256)
    beyond = (config.color_jitter, config.rand_augment_magnitude, config.mixup_alpha, config.cutmix_alpha)
    assert beyond == (0, None, 0, 0) and not config.no_decay_on_norm_and_bias and config.max_grad_norm is None
    assert config.config_name == f"rednet-{depth}"


def test_launch_files_are_understood(root):
    files = {path.stem: load_config_from_file(str(path)) for path in (root / "configs/accelerate").glob("*.yaml")}
    processes = {name: (file.num_machines, file.num_processes) for name, file in files.items()}
    assert processes == {"1_gpu": (1, 1), "8_gpus": (1, 8), "8x8_gpus": (8, 64), "fsdp_8_gpus": (1, 8)}
