"""Recipes and launch files of the repository."""

import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from rednet.training import ablate, finetune, train, train_detection, train_segmentation
from rednet.training.options.packaged import find_architecture, find_recipe
from rednet.training.options.parser import parse_options
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
    beyond = (config.color_jitter, config.auto_augment, config.mixup_alpha, config.cutmix_alpha)
    assert beyond == (0, None, 0, 0) and not config.no_decay_on_norm_and_bias and config.max_grad_norm is None
    assert config.config_name == f"rednet-{depth}"


COMMANDS = re.compile(r"^#   (\S.*(?:\n#     .*)*)", re.M)  # with continuation lines
PARSERS = {
    "training/train.py": train.parse_config,
    "training/train_segmentation.py": train_segmentation.parse_config,
    "training/train_detection.py": train_detection.parse_config,
    "training/finetune.py": finetune.parse_config,
    "training/ablate.py": lambda arguments: parse_options(ablate.Study, arguments, None)[0],
}


def test_the_commands_in_the_recipes_are_valid(root, tmp_path, monkeypatch):
    """Each names its own recipe and a launch file that exists."""
    monkeypatch.chdir(tmp_path)
    for folder in ("pictures", "cityscapes/train", "cityscapes/val", "coco/train2017", "coco/val2017"):
        Path(folder).mkdir(parents=True)
    Path("coco/annotations").mkdir()
    for split in ("train", "val"):
        Path(f"coco/annotations/instances_{split}2017.json").touch()
    recipes = [*(root / "configs/training").glob("*.yaml"), *(root / "configs/ablations").glob("*.yaml")]
    assert len(recipes) == 20
    for recipe in recipes:
        commands = [found.replace("\\\n#", "") for found in COMMANDS.findall(recipe.read_text())]
        commands = [words for command in commands if (words := command.split())[0] in ("accelerate", "python")]
        assert commands, recipe
        for words in commands:
            script = next(word for word in words if word in PARSERS)
            launch, arguments = words[: words.index(script)], words[words.index(script) + 1 :]
            assert find_recipe(arguments[arguments.index("--config") + 1]).samefile(recipe), recipe
            if "--config_file" in launch:
                assert (root / launch[launch.index("--config_file") + 1]).is_file()
            PARSERS[script](arguments)


def test_a_file_wins_over_a_packaged_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = find_recipe("fashion_mnist")
    assert (
        packaged.is_file()
        and packaged.name == "fashion_mnist.yaml"
        and find_recipe("ablations/fashion_mnist").is_file()
    )
    Path("fashion_mnist").touch()
    assert find_recipe("fashion_mnist") == Path("fashion_mnist")
    assert find_recipe("nothing") == Path("nothing") and find_architecture("a/b") == "a/b"


def test_launch_files_are_understood(root):
    files = {path.stem: load_config_from_file(str(path)) for path in (root / "configs/accelerate").glob("*.yaml")}
    processes = {name: (file.num_machines, file.num_processes) for name, file in files.items()}
    assert processes == {"1_gpu": (1, 1), "8_gpus": (1, 8), "8x8_gpus": (8, 64), "fsdp_8_gpus": (1, 8)}
