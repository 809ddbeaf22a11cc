"""Speed of RedNet-50 in plain PyTorch, as remote code where only torch and transformers are installed.

    python benchmarks/plain_speed.py --batch_size 8 --output benchmarks/results/plain-DEVICE-DATE

Inference and a step of training at 224 x 224 in channels-last, float32, in eager mode and under `torch.compile`: images
per second. Each row compares with the faster ResNet-50, of transformers or timm, or with a RedNet-50 that unfolds.
"""

import sys

import involution.taps
import involution.timing  # noqa: F401, the modules that scripts import from stay


sys.modules["involution"] = None  # type: ignore[assignment]  # cannot be imported, as if it was not installed

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from involution.timing import median_seconds  # noqa: E402
from measure import arguments, infer, report, train  # noqa: E402
from networks import OURS, PEERS, UNFOLD, networks  # noqa: E402


def compare(what: str, models: dict, make, images: torch.Tensor, repeats: int) -> list[dict]:
    """One row with the faster ResNet-50 and one with the RedNet-50 that unfolds, which is timed less often."""
    times = median_seconds({name: make(models[name], images) for name in (OURS, *PEERS)}, repeats)
    slow = median_seconds({name: make(models[name], images) for name in (OURS, UNFOLD)}, 2)
    rows = []
    for seconds, peers in ((times, PEERS), (slow, (UNFOLD,))):
        peer = min(peers, key=seconds.__getitem__)
        rows.append(
            {
                "what": what,
                "batch": len(images),
                OURS: f"{len(images) / seconds[OURS]:.1f} images/s",
                "peer": peer,
                "of the peer": f"{len(images) / seconds[peer]:.1f} images/s",
                "against the peer": f"{seconds[peer] / seconds[OURS]:.2f} x as fast",
            }
        )
    return rows


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    models = networks(options.device)
    rows = []
    with tqdm(total=6) as progress:
        for training, batches in ((False, (1, options.batch_size)), (True, (options.batch_size,))):
            for model in models.values():
                model.train(training)
            for batch in batches:
                images = torch.randn(batch, 3, 224, 224, device=options.device)
                images = images.contiguous(memory_format=torch.channels_last)
                for mode in ("eager", "compiled"):
                    torch._dynamo.reset()
                    sides = models
                    if mode == "compiled":
                        sides = {name: torch.compile(model, dynamic=False) for name, model in models.items()}
                    what = f"{'training step' if training else 'inference'}, {mode}"
                    rows += compare(what, sides, train if training else infer, images, options.repeats)
                    progress.update()
    report("RedNet-50 in plain PyTorch against ResNet-50, 224 x 224, channels-last", rows, options, ("timm",))


if __name__ == "__main__":
    main()
