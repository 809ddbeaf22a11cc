"""Removes the noise of a brain scan with 3-D involutions whose kernels are learned.

The volume is a magnetic resonance image of a head, 128 x 96 x 24 voxels of 2 x 2 x 2.2 mm, which comes with nibabel.
Gaussian noise is added here. The layers learn from the front half of the head and are tested on the back half.

    python examples/volume.py
"""

import argparse
import time
from pathlib import Path

import nibabel
import numpy as np
import torch
from matplotlib.figure import Figure
from nibabel.testing import data_path
from skimage.restoration import denoise_nl_means
from torch import Tensor, nn
from tqdm import trange

from involution import Involution3d
from results import add_output_dir, look, save


NOISE = 0.1  # standard deviation; the median of the head is about 0.8


class Denoiser(nn.Module):
    def __init__(self, dilations: tuple[int, ...] = (1, 1, 2), kernel_size: int = 3, hidden: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for dilation in dilations:
            reach = dilation * (kernel_size // 2)
            generator = nn.Sequential(
                nn.Conv3d(1, hidden, kernel_size, padding=reach, dilation=dilation),
                nn.ReLU(),
                nn.Conv3d(hidden, kernel_size**3, 1),
            )
            # The kernels start with more weight at the center.
            nn.init.constant_(generator[-1].bias, 0)
            generator[-1].bias.data[kernel_size**3 // 2] = 2
            options = {"kernel_generator": generator, "kernel_normalization": "softmax"}
            self.layers.append(Involution3d(2, kernel_size, dilation=dilation, group_channels=2, **options))

    def forward(self, volume: Tensor) -> Tensor:
        """(B, 1, D, H, W) -> (B, 1, D, H, W)."""
        ones = torch.ones_like(volume)
        for layer in self.layers:
            sums = layer(torch.cat([volume, ones], 1), guide=8 * volume - 4)
            volume = sums[:, :1] / sums[:, 1:]  # not 1 near the border, outside of which are zeros
        return volume


def load_volume() -> tuple[Tensor, Tensor]:
    """The front and the back half of the head, each (1, 24, 48, 80), with values from 0 to about 1."""
    volume = nibabel.load(Path(data_path, "example4d.nii.gz")).get_fdata()[..., 0]
    volume = torch.from_numpy(volume / 600).float().permute(2, 1, 0)[None, ..., 24:104]
    return volume[:, :, 48:], volume[:, :, :48]


def train(model: nn.Module, volume: Tensor, steps: int, batch: int = 2, size: int = 20) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in trange(steps, unit="step"):
        clean = torch.stack([random_crop(volume, size) for _ in range(batch)])
        loss = (model(clean + NOISE * torch.randn_like(clean)) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def random_crop(volume: Tensor, size: int) -> Tensor:
    z, y, x = (torch.randint(side - size + 1, ()) for side in volume.shape[1:])
    cube = volume[:, z : z + size, y : y + size, x : x + size]
    return cube.flip(3) if torch.rand(()) < 0.5 else cube


def psnr(volume: Tensor, clean: Tensor) -> float:
    return round(float(-10 * (volume - clean).square().mean().log10()), 2)


@look
def draw(volumes: dict[str, Tensor], clean: Tensor) -> Figure:
    """An axial and a coronal slice of each volume."""
    figure = Figure(figsize=(11, 3.6))
    axial, coronal = figure.subplots(2, len(volumes), height_ratios=(48, 24 * 1.1))
    for name, volume, top, bottom in zip(volumes, volumes.values(), axial, coronal):
        compared = "" if volume is clean else f"\n{psnr(volume, clean):.1f} dB"
        top.set_title(name + compared, fontsize=13)
        for axes, image, aspect in ((top, volume[0, 12], 1), (bottom, volume[0, :, 28], 1.1)):
            axes.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1.2, origin="lower", aspect=aspect)
            axes.axis("off")
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200, help="training steps (default: %(default)s)")
    add_output_dir(parser)
    options = parser.parse_args(arguments)
    front, back = load_volume()
    torch.manual_seed(0)
    noisy = back + NOISE * torch.randn_like(back)
    means = denoise_nl_means(noisy[0].numpy(), patch_size=3, patch_distance=3, h=0.4 * NOISE, sigma=NOISE)
    volumes = {"noisy": noisy, "non-local means": torch.from_numpy(np.asarray(means))[None]}
    model = Denoiser()
    train(model, front, options.steps)
    with torch.no_grad():
        volumes["involution"] = model(noisy[None])[0]
    psnrs = {name: psnr(volume, back) for name, volume in volumes.items()}
    results = {"steps": options.steps, "psnr": psnrs, "cpu_seconds": round(time.process_time())}
    save(options.output_dir, "volume", draw({**volumes, "scan": back}, back), results)


if __name__ == "__main__":
    main()
