"""Recipes and launch files of the repository."""

import json
import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from rednet.training import ablate, finetune, train, train_detection, train_segmentation
from rednet.training.options.packaged import find_architecture, find_recipe
from rednet.training.options.parser import parse_options
from rednet.training.train import parse_config

from processes import Training


def test_every_recipe_in_the_repository_is_valid(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "validation"):
        Path("outputs/data/open_clip_art", split).mkdir(parents=True)
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


# Of "ResNet strikes back", table 2. The last column is the length of the warm-up in epochs.
PROCEDURES = {
    "a1": (600, 5e-3, 0.01, 224, "rand-m7-mstd0.5-inc1", 0.2, 3, 0.05, 0.1, 5),
    "a2": (300, 5e-3, 0.02, 224, "rand-m7-mstd0.5-inc1", 0.1, 3, 0.05, 0.0, 5),
    "a3": (100, 8e-3, 0.02, 160, "rand-m6-mstd0.5-inc1", 0.1, 1, None, 0.0, 5),
}


@pytest.mark.parametrize("depth", [26, 50])
@pytest.mark.parametrize("name", PROCEDURES)
def test_procedures_of_resnet_strikes_back(root, depth, name):
    config = parse_config(["--config", f"imagenet_rednet{depth}_{name}"])
    with_8_gpus = 8 * config.per_device_train_batch_size * config.gradient_accumulation_steps
    values = (config.num_train_epochs, config.learning_rate, config.weight_decay, *config.train_sizes)
    values += (config.auto_augment, config.mixup_alpha, config.repeated_augmentation, config.drop_path_rate)
    assert (*values, config.label_smoothing, config.num_warmup_steps / (1281167 // 2048)) == PROCEDURES[name]
    assert (with_8_gpus, config.optimizer, config.loss, config.eval_size) == (2048, "lamb", "bce", 224)
    assert (config.cutmix_alpha, config.mixup_prob, config.mixup_switch_prob, config.crop_pct) == (1, 1, 0.5, 0.95)
    assert config.learning_rate * config.warmup_start_factor == pytest.approx(1e-4)
    assert config.no_decay_on_norm_and_bias and config.warmup_type == "linear" and config.max_grad_norm is None
    assert (config.random_erase_prob, config.color_jitter, config.ema_decay) == (0, 0, None)


@pytest.mark.parametrize("recipe", ["imagenet_rednet50_a1", "imagenet_rednet26_a3", "imagenet_rednet50_convnext"])
def test_a_recipe_starts(recipe, root, options, tmp_path):
    """Two steps on digits, with a small model; all other values are those of the recipe."""
    small = {name: options[1][name] for name in ("config_name", "dataset_name", "validation_split")}
    small |= {name: options[1][name] for name in ("image_column_name", "label_column_name")}
    small |= {"image_size": 8, "train_image_size": "null", "eval_image_size": "null", "dataloader_num_workers": 0}
    small |= {"per_device_train_batch_size": 20, "max_train_steps": 2, "max_eval_samples": 20, "logging_steps": 1}
    words = [f"--{name}={value}" for name, value in small.items()]
    training = Training(
        root, tmp_path / "run.txt", ["--config", recipe, *words, "--output_dir", str(tmp_path / "run")]
    )
    assert training.wait() == 0, training.text()
    results = json.loads((tmp_path / "run/results.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert results["steps"] == 2 and [line["step"] for line in lines if "loss" in line] == [1, 2]


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
    clip_art = ("outputs/data/open_clip_art/train", "outputs/data/open_clip_art/validation")
    for folder in (*clip_art, "pictures", "cityscapes/train", "cityscapes/val", "coco/train2017", "coco/val2017"):
        Path(folder).mkdir(parents=True)
    Path("coco/annotations").mkdir()
    for split in ("train", "val"):
        Path(f"coco/annotations/instances_{split}2017.json").touch()
    recipes = [*(root / "configs/training").glob("*.yaml"), *(root / "configs/ablations").glob("*.yaml")]
    assert len(recipes) > 20  # the patterns find them
    for recipe in recipes:
        commands = [found.replace("\\\n#", "") for found in COMMANDS.findall(recipe.read_text())]
        commands = [words for command in commands if set(words := command.split()) & PARSERS.keys()]
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
