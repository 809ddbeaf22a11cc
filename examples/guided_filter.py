"""Removes the noise of a color picture, guided by a gray picture of the same scene, with involutions.

Two cameras see a dark scene: one sees colors and much noise, the other has no color filter and sees gray with little
noise. Three involutions, with growing dilation, smooth the difference between colors and gray. A small network looks at
both and generates the kernels, and softmax makes each a weighted mean. The scenes are pictures that come with
scikit-image and scikit-learn. The noise is added here.

    python examples/guided_filter.py
"""

import argparse
import time

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.ndimage import uniform_filter
from skimage import data
from skimage.restoration import denoise_nl_means
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from tqdm import trange

from involution import Involution2d
from results import add_output_dir, look, save


COLOR_NOISE, GRAY_NOISE = 50 / 255, 3 / 255  # standard deviations; pictures have values from 0 to 1


class GuidedFilter(nn.Module):
    def __init__(self, dilations: tuple[int, ...] = (1, 2, 4), kernel_size: int = 5, hidden: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for dilation in dilations:
            # The dilated convolution sees the pixels that the kernel weighs. The colors share a kernel.
            reach = dilation * (kernel_size // 2)
            generator = nn.Sequential(
                nn.Conv2d(4, hidden, kernel_size, padding=reach, dilation=dilation),
                nn.ReLU(),
                nn.Conv2d(hidden, kernel_size**2, 1),
            )
            # The kernels start with more weight at the center.
            nn.init.constant_(generator[-1].bias, 0)
            generator[-1].bias.data[kernel_size**2 // 2] = 2
            options = {"kernel_generator": generator, "kernel_normalization": "softmax"}
            self.layers.append(Involution2d(3, kernel_size, dilation=dilation, group_channels=3, **options))

    def forward(self, colors: Tensor, gray: Tensor) -> Tensor:
        """(B, 3, H, W) and (B, 1, H, W) -> (B, 3, H, W)."""
        difference = colors - gray
        for layer in self.layers:
            difference = layer(difference, guide=8 * torch.cat([gray, difference], 1))
        return gray + difference


def load_scenes() -> tuple[list[Tensor], dict[str, Tensor]]:
    """Four pictures to train on, and two that are held out by name, each (3, H, W)."""
    pictures = [*load_sample_images().images, data.coffee(), data.rocket(), data.astronaut(), data.chelsea()]
    scenes = [torch.from_numpy(picture / 255).float().permute(2, 0, 1) for picture in pictures]
    return scenes[:4], {"astronaut": scenes[4][:, :288, 80:368], "cat": scenes[5][:, 6:294, 80:368]}


def photograph(scene: Tensor) -> tuple[Tensor, Tensor]:
    """The pictures of the two cameras, colors and gray."""
    gray = scene.mean(-3, keepdim=True)
    return scene + COLOR_NOISE * torch.randn_like(scene), gray + GRAY_NOISE * torch.randn_like(gray)


def train(model: nn.Module, scenes: list[Tensor], steps: int, batch: int = 2, size: int = 96) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in trange(steps, unit="step"):
        scene = torch.stack([random_crop(scenes, size) for _ in range(batch)])
        loss = (model(*photograph(scene.to(memory_format=torch.channels_last))) - scene).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def random_crop(scenes: list[Tensor], size: int) -> Tensor:
    scene = scenes[torch.randint(len(scenes), ())]
    y, x = (torch.randint(side - size + 1, ()) for side in scene.shape[1:])
    return scene[:, y : y + size, x : x + size]


def filter_scene(model: nn.Module, scene: Tensor) -> dict[str, np.ndarray]:
    """Pictures (H, W, 3) by what made them. The other filters have the settings that are best for these two scenes."""
    colors, gray = photograph(scene)
    with torch.no_grad():
        learned = model(colors[None], gray[None])[0]
    images = {"noisy colors": colors, "gray guide": gray.expand(3, -1, -1), "involution, guided": learned}
    images = {name: image.permute(1, 2, 0).numpy() for name, image in images.items()}
    noisy, guide = images["noisy colors"], images["gray guide"]
    images["guided filter"] = guided_filter(noisy, guide, radius=8, epsilon=3e-4)
    options = {"patch_size": 5, "patch_distance": 6, "h": 0.5 * COLOR_NOISE, "sigma": COLOR_NOISE}
    images["non-local means"] = denoise_nl_means(noisy, **options, channel_axis=-1)
    images["scene"] = scene.permute(1, 2, 0).numpy()
    return {name: image.clip(0, 1) for name, image in images.items()}


def guided_filter(image: np.ndarray, guide: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """The filter of He, Sun and Tang (ECCV 2010): in every window, the image is a linear function of the guide."""
    side = 2 * radius + 1

    def mean(values: np.ndarray) -> np.ndarray:
        return uniform_filter(values, (side, side, 1))

    slope = (mean(guide * image) - mean(guide) * mean(image)) / (mean(guide**2) - mean(guide) ** 2 + epsilon)
    return mean(slope) * guide + mean(mean(image) - slope * mean(guide))


def psnr(image: np.ndarray, scene: np.ndarray) -> float:
    return round(float(-10 * np.log10(np.mean((image - scene) ** 2))), 2)


@look
def draw(images: dict[str, np.ndarray]) -> Figure:
    order = ["noisy colors", "gray guide", "scene", "non-local means", "guided filter", "involution, guided"]
    figure = Figure(figsize=(9, 6.6))
    for axes, name in zip(figure.subplots(2, 3).flat, order):
        axes.imshow(images[name])
        compared = "" if name in ("gray guide", "scene") else f"\n{psnr(images[name], images['scene']):.1f} dB"
        axes.set_title(name + compared)
        axes.axis("off")
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="training steps (default: %(default)s)")
    add_output_dir(parser)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    scenes, held_out = load_scenes()
    model = GuidedFilter().to(memory_format=torch.channels_last)
    train(model, scenes, options.steps)
    images = {name: filter_scene(model, scene) for name, scene in held_out.items()}
    psnrs = {
        scene: {
            name: psnr(image, of_scene["scene"])
            for name, image in of_scene.items()
            if name not in ("gray guide", "scene")
        }
        for scene, of_scene in images.items()
    }
    results = {"steps": options.steps, "psnr": psnrs, "cpu_seconds": round(time.process_time())}
    save(options.output_dir, "guided_filter", draw(images["astronaut"]), results)


if __name__ == "__main__":
    main()
