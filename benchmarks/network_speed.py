"""Speed and memory of RedNet-50 against ResNet-50 of transformers and timm, and against RedNet-50 in plain PyTorch.

    python benchmarks/network_speed.py --output benchmarks/results/network-DEVICE-DATE

Inference and training at 224 x 224 in channels-last: images per second, and peak memory. Each row compares with the
better of the two ResNets in the same mode, or with RedNet-50 by unfold.
"""

import copy

import torch
from rednet.profile import peak_bytes
from torch import nn
from torch._inductor import config as inductor_config
from torch.fx.experimental import optimization
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

from involution.timing import median_seconds
from measure import arguments, infer, report, train
from networks import OURS, PEERS, UNFOLD, networks


def folded(name: str, model: nn.Module) -> nn.Module:
    """A copy with BatchNorm folded into the convolutions, by the function of each library."""
    model = copy.deepcopy(model)
    if name == OURS:
        return model.fuse()
    if name == PEERS[1]:
        return optimization.fuse(model)
    for module in model.modules():
        if hasattr(module, "convolution") and hasattr(module, "normalization"):
            module.convolution = fuse_conv_bn_eval(module.convolution, module.normalization)
            module.normalization = nn.Identity()
    return model


class Benchmark:
    def __init__(self, options):
        self.options, self.device, self.rows = options, options.device, []
        self.models = networks(self.device)

    def images(self, batch: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        images = torch.randn(batch, 3, 224, 224, device=self.device, dtype=dtype)
        return images.contiguous(memory_format=torch.channels_last)

    def row(self, what: str, batch: int, times: dict[str, float], peers=PEERS) -> None:
        peer = min(peers, key=times.get)
        sides = [f"{batch / times[name]:.1f} images/s" for name in (OURS, peer)]
        self.add(what, batch, peer, sides, f"{times[peer] / times[OURS]:.2f} x as fast")

    def memory_row(self, what: str, make, training: bool) -> None:
        batch = self.options.batch_size
        images, peaks = self.images(batch), {}
        for name in (OURS, *PEERS):
            model = self.models[name].train(training)
            state = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
            state += sum(p.nbytes for p in model.parameters()) if training else 0  # momentum
            peaks[name] = state + images.nbytes + peak_bytes(make(model, images), self.device)
            model.zero_grad()
        peer = min(PEERS, key=peaks.get)
        sides = [f"{peaks[name] / 2**20:.0f} MiB" for name in (OURS, peer)]
        self.add(what, batch, peer, sides, f"{peaks[OURS] / peaks[peer]:.2f} x the memory")

    def add(self, what: str, batch: int, peer: str, sides: list[str], ratio: str) -> None:
        row = {"what": what, "batch": batch, OURS: sides[0], "peer": peer, "of the peer": sides[1]}
        self.rows.append({**row, "against the peer": ratio})

    def repeats(self, batch: int) -> int:
        return 3 * self.options.repeats if batch == 1 else self.options.repeats

    def inference(self, batch: int) -> None:
        images = self.images(batch)
        for model in self.models.values():
            model.eval()
        main = {name: self.models[name] for name in (OURS, *PEERS)}
        modes = {
            "eager": main,
            "folded": {name: folded(name, model) for name, model in main.items()},
            "compiled": {name: torch.compile(model, dynamic=False) for name, model in self.models.items()},
        }
        sides = {(t, n): infer(m, images) for t, models in modes.items() for n, m in models.items()}
        times = median_seconds(sides, self.repeats(batch))
        by = {t: {n: times[t, n] for n in models} for t, models in modes.items()}
        self.row("inference, eager", batch, by["eager"])
        self.row("inference, folded", batch, by["folded"])
        self.row("inference, compiled with freezing", batch, by["compiled"])
        best = {name: min(models[name] for models in by.values()) for name in (OURS, *PEERS)}
        self.row("inference, best of each", batch, best)
        plain = infer(self.models[UNFOLD], images)
        slow = median_seconds({OURS: infer(self.models[OURS], images), UNFOLD: plain}, 3)
        self.row("inference, eager", batch, slow, (UNFOLD,))
        self.row("inference, both compiled with freezing", batch, by["compiled"], (UNFOLD,))
        torch._dynamo.reset()

    def low_precision(self) -> None:
        batch = self.options.batch_size
        models = networks(self.device, torch.bfloat16)
        images = self.images(batch, torch.bfloat16)
        for some in (images[:1], images):
            sides = {name: infer(models[name].eval(), some) for name in (OURS, *PEERS)}
            self.row("inference, eager, bfloat16", len(some), median_seconds(sides, self.repeats(len(some))))
        if self.device == "cuda":
            sides = {name: infer(torch.compile(models[name], dynamic=False), images) for name in (OURS, *PEERS)}
            self.row("inference, compiled, bfloat16", batch, median_seconds(sides, self.options.repeats))
            sides = {name: train(models[name].train(), images) for name in (OURS, *PEERS)}
            self.row("training step, eager, bfloat16", batch, median_seconds(sides, self.options.repeats))

    def training(self) -> None:
        batch = self.options.batch_size
        images = self.images(batch)
        sides = {name: train(self.models[name].train(), images) for name in (OURS, *PEERS)}
        self.row("training step, eager", batch, median_seconds(sides, self.options.repeats))
        slow = {OURS: sides[OURS], UNFOLD: train(self.models[UNFOLD].train(), images)}
        self.row("training step, eager", batch, median_seconds(slow, 2), (UNFOLD,))


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    inductor_config.freezing = True
    benchmark = Benchmark(options)
    batch = options.batch_size
    with tqdm(total=6) as progress:
        for step in (
            lambda: benchmark.memory_row("peak memory, inference", infer, False),
            lambda: benchmark.memory_row("peak memory, training step", train, True),
            benchmark.low_precision,
            benchmark.training,
            lambda: benchmark.inference(1),
            lambda: benchmark.inference(batch),
        ):
            step()
            progress.update()
    report("RedNet-50 against ResNet-50, 224 x 224, channels-last", benchmark.rows, options, ("timm",))


if __name__ == "__main__":
    main()
