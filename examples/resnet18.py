"""Puts involution into torchvision's ResNet-18, and trains both networks on handwritten digits.

One call replaces every 3x3 convolution. The digits come with scikit-learn: 1,797 pictures of 8 x 8 pixels, enlarged to
32 x 32 here.

    python examples/resnet18.py
"""

import argparse
import math
import time

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet18
from tqdm import tqdm

from involution import Involution2d
from results import add_output_dir, look, save


def replace_3x3_convolutions(network: nn.Module, kernel_size: int = 7) -> nn.Module:
    """Replaces every 3x3 convolution of any network by an involution, in place."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            options = {"stride": module.stride, "dilation": module.dilation, "out_channels": module.out_channels}
            layer = Involution2d(module.in_channels, kernel_size, **options)
            start_near_identity(layer)
            network.set_submodule(name, layer)
    return network


@torch.no_grad()
def start_near_identity(layer: Involution2d) -> None:
    """Random kernels of 7 x 7 would mix up feature maps of 8 x 8 pixels, and the network would learn slowly."""
    layer.span.weight.mul_(0.3)
    nn.init.zeros_(layer.span.bias).unflatten(0, (layer.groups, -1))[:, math.prod(layer.kernel_size) // 2] = 1


def load_pictures() -> list[Tensor]:
    """Pictures (N, 3, 32, 32) and labels (N,) to train on, then 360 of each to test on."""
    images, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 8 - 1
    images = F.interpolate(images, size=32, mode="bilinear").expand(-1, 3, -1, -1)
    parts = train_test_split(images, torch.from_numpy(labels), test_size=360, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = parts
    return [train_images, train_labels, test_images, test_labels]


def train(network: nn.Module, pictures: list[Tensor], epochs: int, batch: int = 64) -> dict[str, list[float]]:
    """Returns the mean loss and the accuracy on the test pictures, in %, of each epoch."""
    images, labels, *test = pictures
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    steps = epochs * (len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    curves: dict[str, list[float]] = {"loss": [], "accuracy": []}
    progress = tqdm(total=steps, unit="step")
    for _ in range(epochs):
        losses = []
        for rows in torch.randperm(len(images)).split(batch)[: len(images) // batch]:
            loss = F.cross_entropy(network(images[rows].to(memory_format=torch.channels_last)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            progress.update()
        curves["loss"].append(round(sum(losses) / len(losses), 4))
        curves["accuracy"].append(round(accuracy(network, *test), 2))
    progress.close()
    return curves


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    network.eval()
    correct = (network(images).argmax(1) == labels).float().mean().item()
    network.train()
    return 100 * correct


def count(network: nn.Module) -> dict[str, int]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 3, 32, 32))
    network.train()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"parameters": parameters, "multiply_accumulates": counter.get_total_flops() // 2}


@torch.no_grad()
def first_kernels(network: nn.Module, images: Tensor) -> Tensor:
    """The kernels (B, H, W, K, K) of the first group of the first involution."""
    layer = next(module for module in network.modules() if isinstance(module, Involution2d))
    inputs: list[Tensor] = []
    with layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0])):
        network.eval()(images)
    kernel = layer.span(layer.reduce(inputs[0])).unflatten(1, (layer.groups, *layer.kernel_size))
    return kernel[:, 0].permute(0, 3, 4, 1, 2)


@look
def draw(curves: dict[str, dict], images: Tensor, kernels: Tensor) -> Figure:
    figure = Figure(figsize=(11, 4.6))
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.1))
    axes = left.subplots()
    for (name, curve), style in zip(curves.items(), ("k-o", "C1--s")):
        axes.plot(range(1, len(curve["accuracy"]) + 1), curve["accuracy"], style, label=name)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch", ylabel="accuracy on test digits (%)")
    axes.legend()
    rows = right.subplots(2, len(images))
    right.suptitle("three digits, and the 7 x 7 kernels at 8 x 8 pixels", fontsize=13)
    for column, image, kernel in zip(rows.T, images, kernels):
        height, width, size, _ = kernel.shape
        mosaic = F.pad(kernel, (0, 1, 0, 1), value=float("nan")).permute(0, 2, 1, 3)
        limit = 0.3 * kernel.abs().max().item()  # the center is larger
        column[0].imshow(image[0].numpy(), cmap="gray")
        mosaic = mosaic.reshape(height * (size + 1), width * (size + 1)).numpy()
        column[1].imshow(mosaic, cmap="RdBu", vmin=-limit, vmax=limit)
        for axes in column:
            axes.axis("off")
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4, help="training epochs (default: %(default)s)")
    help = "maximum number of training pictures, at least 64 (default: %(default)s)"
    parser.add_argument("--train_pictures", type=int, default=1437, help=help)
    add_output_dir(parser)
    options = parser.parse_args(arguments)
    if options.train_pictures < 64:
        parser.error(f"--train_pictures is {options.train_pictures}, expected at least 64, the size of a batch")
    images, labels, *test = load_pictures()
    pictures = [images[: options.train_pictures], labels[: options.train_pictures], *test]
    torch.manual_seed(0)
    networks = {
        "ResNet-18": resnet18(num_classes=10),
        "with involution": replace_3x3_convolutions(resnet18(num_classes=10)),
    }
    results = {}
    for name, network in networks.items():
        started = time.process_time()
        counts = count(network.to(memory_format=torch.channels_last))
        curves = train(network, pictures, options.epochs)
        results[name] = {**counts, **curves, "cpu_seconds": round(time.process_time() - started)}
    digits = pictures[2][:3]
    save(options.output_dir, "resnet18", draw(results, digits, first_kernels(network, digits)), results)


if __name__ == "__main__":
    main()
