"""Speed of involution and RedNet beside their peers, as ratios measured in the same run.

    python benchmarks/speed.py --output benchmarks/results/cpu-NAME-DATE

Both sides of a row take turns, several times; the row gives the median time of each and the ratio of the medians.
float32 in channels-last; versions, threads, processor and shapes are written into the record.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification

import involution
import rednet
from involution import reference
from rednet import modeling_rednet


ROOT = Path(__file__).parent.parent


def channels_last(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


def unfold(input: torch.Tensor, kernel: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """The plain form, through autograd: what runs without the compiled operator."""
    padding = kernel.shape[2] // 2
    return reference.involution2d(input, kernel, (stride, stride), (padding, padding), (1, 1))


@contextlib.contextmanager
def plain_involutions():
    compiled, modeling_rednet.involution2d = modeling_rednet.involution2d, unfold
    try:
        yield
    finally:
        modeling_rednet.involution2d = compiled


def operator_rows() -> list[tuple[str, str, Callable, Callable]]:
    """K = 7, 16 channels a group, one image, at the sizes of RedNet's four stages."""
    rows = []
    for channels, size in ((64, 56), (128, 28), (256, 14), (512, 7)):
        groups = channels // 16
        input = channels_last(1, channels, size, size).requires_grad_()
        kernel = channels_last(1, groups * 49, size, size).unflatten(1, (groups, 7, 7)).requires_grad_()

        def forward(f, input=input, kernel=kernel):
            with torch.no_grad():
                f(input, kernel)

        def forward_backward(f, input=input, kernel=kernel):
            torch.autograd.grad(f(input, kernel).sum(), (input, kernel))

        for what, function in (("forward", forward), ("forward and backward", forward_backward)):
            name = f"involution {what}, {channels} channels, {size} x {size}"
            rows.append((name, "unfold", lambda f=function: f(involution.involution2d), lambda f=function: f(unfold)))
    return rows


def network_rows() -> list[tuple[str, str, Callable, Callable]]:
    config = AutoConfig.from_pretrained(ROOT / "configs/models/rednet-50.json")
    red = AutoModelForImageClassification.from_config(config).to(memory_format=torch.channels_last)
    res = ResNetForImageClassification(ResNetConfig(num_labels=1000)).to(memory_format=torch.channels_last)
    rows = []
    for batch in (1, 16):
        images = channels_last(batch, 3, 224, 224)

        def infer(model, images=images):
            with torch.no_grad():
                model.eval()(images)

        def plain_infer(images=images, infer=infer):
            with plain_involutions():
                infer(red)

        name = f"RedNet-50 inference, batch {batch}"
        rows.append((name, "ResNet-50", lambda f=infer: f(red), lambda f=infer: f(res)))
        rows.append((name, "RedNet-50 by unfold", lambda f=infer: f(red), plain_infer))

    images, labels = channels_last(16, 3, 224, 224), torch.randint(0, 1000, (16,))

    def train(model):
        model.train().zero_grad()
        F.cross_entropy(model(images).logits, labels).backward()

    def plain_train():
        with plain_involutions():
            train(red)

    name = "RedNet-50 training step without optimizer, batch 16"
    rows.append((name, "ResNet-50", lambda: train(red), lambda: train(res)))
    rows.append((name, "RedNet-50 by unfold", lambda: train(red), plain_train))
    return rows


def measure(ours: Callable, peer: Callable, repeats: int) -> tuple[float, float]:
    """Median seconds of both, taken in turns after a warm-up."""
    times = ([], [])
    for turn in range(repeats + 1):
        for function, list_ in zip((ours, peer), times):
            start = time.perf_counter()
            function()
            if turn > 0:
                list_.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def processor_name() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name")).split(":")[1].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, help="writes OUTPUT.json and OUTPUT.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    involution.involution2d(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1, 1))  # compiles where that is to do
    if "cpu: compiled" not in involution.show_config():
        raise SystemExit(f"there is nothing to compare without the compiled operator\n{involution.show_config()}")

    rows = []
    for name, peer_name, ours, peer in tqdm(operator_rows() + network_rows()):
        seconds, peer_seconds = measure(ours, peer, arguments.repeats)
        rows.append({"what": name, "ms": 1e3 * seconds, "peer": peer_name, "peer_ms": 1e3 * peer_seconds})
        rows[-1]["times_faster"] = peer_seconds / seconds

    record = {
        "date": datetime.date.today().isoformat(),
        "processor": f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "rednet": rednet.__version__,
        },
        "dtype": "float32",
        "memory_format": "channels_last",
        "rows": rows,
    }
    table = "| | ms | peer | ms | times as fast |\n|---|---|---|---|---|\n" + "".join(
        f"| {r['what']} | {r['ms']:.2f} | {r['peer']} | {r['peer_ms']:.2f} | {r['times_faster']:.2f} |\n" for r in rows
    )
    print(table)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
        arguments.output.with_suffix(".md").write_text(
            f"# Speed on {record['processor']}\n\n{record['date']}, {record['threads']} threads, float32, "
            f"channels-last, 224 x 224, median of {record['repeats']} interleaved repeats, {record['versions']}\n\n{table}"
        )


if __name__ == "__main__":
    main()
