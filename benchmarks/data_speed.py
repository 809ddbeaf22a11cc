"""Speed of one loader worker (`--dataloader_num_workers`): training images from file to crop.

    python benchmarks/data_speed.py --output benchmarks/results/data-DEVICE-DATE

A photograph in the sizes of common data sets, on one thread, against `RandomResizedCrop` of the whole decoded image.
"""

import io
import sys
from collections.abc import Callable

import numpy as np
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from matplotlib import cbook
from PIL import Image
from rednet import RedNetConfig
from rednet.profile import median_seconds
from rednet.training.data.batches import training_order
from rednet.training.data.segmentation import PairReader, PairTransform
from rednet.training.data.transforms import TrainingTransform, open_image
from rednet.training.options.groups import SegmentationConfig, TrainingConfig
from torchvision.transforms import v2

from measure import arguments, report


IMAGES = 20  # of one measurement
STREAMED = 2000


def photograph(width: int, height: int, format: str, **options) -> bytes:
    file = io.BytesIO()
    with cbook.get_sample_data("grace_hopper.jpg") as sample:
        Image.open(sample).convert("RGB").resize((width, height)).save(file, format, **options)
    return file.getvalue()


def crops(content: bytes) -> tuple[Callable, Callable]:
    """Our transform and torchvision's, on the same images."""
    ours, stored = TrainingTransform(TrainingConfig(), 224), {"bytes": content, "path": None}
    theirs = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()])
    return (
        lambda: [ours(open_image(stored), (0, 0, n)) for n in range(IMAGES)],
        lambda: [np.array(theirs(open_image(stored).convert("RGB"))) for _ in range(IMAGES)],
    )


def segmentation_crops(content: bytes) -> Callable:
    mask = io.BytesIO()
    Image.fromarray(np.zeros((1024, 2048), np.uint8)).save(mask, "PNG")
    read = PairReader(RedNetConfig(num_labels=19), config := SegmentationConfig())
    change = PairTransform(config, read.ignored)
    row = {"image": {"bytes": content, "path": None}, "label": {"bytes": mask.getvalue(), "path": None}}
    return lambda: [change(*read(row), (0, 0, n)) for n in range(IMAGES)]


def stream(content: bytes) -> Callable:
    """What the main process does for every image of a stream."""
    features = Features({"image": ImageFeature(decode=False), "label": Value("int64")})
    rows = {"image": [{"bytes": content, "path": None}] * STREAMED, "label": [0] * STREAMED}
    images = Dataset.from_dict(rows, features).to_iterable_dataset(num_shards=8)
    config = TrainingConfig(max_train_samples=STREAMED, shuffle_buffer_size=STREAMED // 4)
    return lambda: list(training_order(images, config, 0, 1))


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    if options.device != "cpu":
        sys.exit(f"error: device is {options.device!r}, expected 'cpu': add --device cpu")
    torch.set_num_threads(1)
    small, large = (photograph(*size, "JPEG", quality=90) for size in ((500, 375), (1600, 1200)))
    street = photograph(2048, 1024, "PNG")
    sides = {}
    for name, content in (("JPEG of 500 x 375 to 224 x 224", small), ("JPEG of 1600 x 1200 to 224 x 224", large)):
        sides[name], sides[name, "peer"] = crops(content)
    sides["PNG of 2048 x 1024 with mask to 1024 x 512"] = segmentation_crops(street)
    sides["a streamed JPEG of 500 x 375, distributed undecoded"] = stream(small)
    times = median_seconds(sides, options.repeats)
    rows = []
    for name, time in times.items():
        if isinstance(name, str):
            each = time / (STREAMED if "streamed" in name else IMAGES)
            peer = times.get((name, "peer"))
            rows.append({
                "what": name,
                "ms": f"{1000 * each:.2f}",
                "images/s": f"{1 / each:.0f}",
                "against RandomResizedCrop": "" if peer is None else f"{peer / time:.2f} x as fast",
            })  # fmt: skip
    report("Training images, from file to crop, on one thread", rows, options, ("pillow", "torchvision", "datasets"))


if __name__ == "__main__":
    main()
