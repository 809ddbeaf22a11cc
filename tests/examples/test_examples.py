"""The examples, with few steps, and the results that the page shows."""

import json
import re

import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

import guided_filter
import resnet18
import volume
from involution import Involution2d


@pytest.fixture
def run(tmp_path):
    """Runs an example with few steps, and returns the numbers that it wrote."""

    def run_example(example, *options: str) -> dict:
        example.main([*options, "--output_dir", str(tmp_path)])
        with Image.open(tmp_path / f"{example.__name__}.webp") as picture:
            assert min(picture.size) > 300
        files = {f"{example.__name__}.{suffix}" for suffix in ("json", "webp")}
        assert {path.name for path in tmp_path.iterdir()} == files  # and no temporary ones
        return json.loads((tmp_path / f"{example.__name__}.json").read_text())

    return run_example


def test_every_3x3_convolution_of_resnet18_is_replaced():
    original, network = (torchvision.models.resnet18(num_classes=10) for _ in range(2))
    resnet18.replace_3x3_convolutions(network)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.kernel_size != (3, 3) for m in convolutions)
    assert sum(isinstance(m, Involution2d) for m in network.modules()) == 16
    images, features = torch.randn(2, 3, 64, 64), {}
    for name, one in (("original", original), ("replaced", network)):
        one.layer4.register_forward_hook(lambda *arguments, name=name: features.update({name: arguments[2]}))
        assert one(images).shape == (2, 10)
    assert features["original"].shape == features["replaced"].shape


def test_the_replaced_network_learns():
    torch.manual_seed(0)
    network = resnet18.replace_3x3_convolutions(torchvision.models.resnet18(num_classes=10))
    images, labels, *_ = resnet18.load_pictures()
    few = [images[:128], labels[:128]]
    first, *_, last = resnet18.train(network, [*few, *few], epochs=6)["loss"]
    assert last < first / 2


def test_resnet18(run):
    results = run(resnet18, "--epochs", "1", "--train_pictures", "256")
    original, involution = results["ResNet-18"], results["with involution"]
    assert original["parameters"] == 11_181_642  # torchvision's 11,689,512 with 10 classes in place of 1,000
    assert involution["parameters"] < original["parameters"]
    assert involution["multiply_accumulates"] < original["multiply_accumulates"]


def test_guided_filter(run):
    for psnr in run(guided_filter, "--steps", "20")["psnr"].values():
        assert psnr["involution, guided"] > psnr["non-local means"] > psnr["noisy colors"]


def test_volume(run):
    psnr = run(volume, "--steps", "40")["psnr"]
    assert psnr["involution"] > psnr["noisy"] + 1


@pytest.mark.parametrize("name", ["resnet18", "guided_filter", "volume"])
def test_the_page_has_the_numbers_of_the_record(root, name):
    record = json.loads((root / f"docs/examples/{name}.json").read_text())
    page = (root / "docs/examples.md").read_text()
    section = page.split(f"python examples/{name}.py")[1].split("\n## ")[0]
    assert (root / f"docs/examples/{name}.webp").stat().st_size < 100_000
    assert f"(examples/{name}.webp)" in section
    cells = {cell.strip() for line in section.splitlines() if line.startswith("|") for cell in line.split("|")}
    if name == "resnet18":
        for row in record.values():
            expected = [f"{row['parameters']:,}", f"{row['multiply_accumulates'] / 1e6:.1f} M"]
            assert {*expected, f"{row['accuracy'][-1]:.1f} %", f"{row['cpu_seconds']} s"} <= cells
    else:
        scenes = record["psnr"].values() if name == "guided_filter" else [record["psnr"]]
        assert {f"{psnr:.2f}" for scene in scenes for psnr in scene.values()} <= cells
        assert re.search(rf"\b{record['cpu_seconds']} seconds of CPU time", section)
