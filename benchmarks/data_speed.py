"""Speed of one loader worker (`--dataloader_num_workers`): training images from file to batch, stage by stage.

    python benchmarks/data_speed.py --output benchmarks/results/data-DEVICE-DATE

On one thread: a photograph in two sizes, as files, and packed by training/pack.py with two sizes of the shorter edge. A
whole batch is compared with `RandomResizedCrop` of the images that are decoded in full.
"""

import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from matplotlib import cbook
from PIL import Image
from rednet import RedNetConfig
from rednet.training.data.batches import TrainingBatches, fetch, training_order
from rednet.training.data.gpu_decoding import FileTransform, decode_files
from rednet.training.data.packing import fitted, pack_picture
from rednet.training.data.segmentation import PairReader, PairTransform
from rednet.training.data.transforms import TrainingTransform, open_image, read_file
from rednet.training.options.scripts import SegmentationConfig, TrainingConfig
from rednet.training.utils.randomness import seed_from, seeded
from torchvision.transforms import v2

from involution.timing import median_seconds
from measure import arguments, report


IMAGES = 20  # of one measurement
STREAMED = 2000
SIZE = 224
NEEDED = 24_000  # images/s: eight GPUs at 3,000 each
BATCH = "read, decode, crop, flip, collate"
FOR_GPU = "read, choose crop and flip, for --decode_on_gpu"


def photograph(width: int, height: int, format: str, **options) -> bytes:
    file = io.BytesIO()
    with cbook.get_sample_data("grace_hopper.jpg") as sample:
        Image.open(sample).convert("RGB").resize((width, height)).save(file, format, **options)
    return file.getvalue()


def stored_images(stored: dict) -> Dataset:
    """The same picture in each row: a file, `{"bytes": None, "path": ...}`, or the bytes of one."""
    features = Features({"image": ImageFeature(decode=False), "label": Value("int64")})
    return Dataset.from_dict({"image": [stored] * IMAGES, "label": [0] * IMAGES}, features)


def stages(images: Dataset) -> dict[str, Callable]:
    """What a worker does for a batch, in its order. Each stage starts from the result of the one before it."""
    rows, keys = range(IMAGES), [(0, 0, n) for n in range(IMAGES)]
    config = TrainingConfig()
    transform = TrainingTransform(TrainingConfig(auto_augment="rand-m9"), config.image_mean)
    plain, undecoded = (
        TrainingBatches(images, kind(config, config.image_mean), 1, lambda epoch: SIZE)
        for kind in (TrainingTransform, FileTransform)
    )
    batch = list(zip(keys, rows))
    content = read_file(images[0]["image"])
    decoded = opened(content).convert("RGB")
    cropped = transform.crop(decoded, SIZE)
    pixels = np.array(cropped)

    def decode_reduced() -> None:
        for _ in rows:
            image = opened(content)
            image.draft("RGB", fitted(image.size, SIZE))
            image.convert("RGB")

    def crop() -> None:
        for key in keys:
            with seeded(*key):
                transform.crop(decoded, SIZE)

    def augment() -> None:
        for key in keys:
            with seeded(*key):
                np.array(transform.augment(cropped))

    def decode_on_gpu() -> None:
        decode_files(files, torch.device("cuda"))
        torch.cuda.synchronize()

    files = undecoded.__getitems__(batch)["pixel_values"]
    on_gpu = {"decode, crop, flip on the GPU": decode_on_gpu} if torch.cuda.is_available() else {}
    return {
        "read": lambda: [read_file(row["image"]) for row in fetch(images, rows)],
        "decode in full": lambda: [opened(content).convert("RGB") for _ in rows],
        "decode at the reduced scale of the largest crop": decode_reduced,
        "crop and resize": crop,
        "augment: flip, RandAugment": augment,
        "collate": lambda: torch.from_numpy(np.stack([pixels] * IMAGES)).permute(0, 3, 1, 2),
        BATCH: lambda: plain.__getitems__(batch),
        FOR_GPU: lambda: undecoded.__getitems__(batch),
        **on_gpu,
    }


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def plain_crops(images: Dataset) -> Callable:
    """torchvision's crops of the images that are decoded in full. They are the same crops as in `stages`, because the
    time depends on them."""
    change = v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip()])
    seeds = [seed_from(0, 0, n) for n in range(IMAGES)]

    def read(row: dict, seed: int) -> np.ndarray:
        torch.default_generator.manual_seed(seed)
        return np.array(change(open_image(row["image"]).convert("RGB")))

    return lambda: np.stack([read(*pair) for pair in zip(fetch(images, range(IMAGES)), seeds)])


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
    with tempfile.TemporaryDirectory() as folder:
        files = {"500 x 375": small, "1600 x 1200": large}
        pictures = {f"JPEG of {name}": stored_images(write(Path(folder, name), files[name])) for name in files}
        for edge in (500, 256):
            packed = pack_picture(large, edge, 90)
            width, height = opened(packed).size
            pictures[f"packed, {width} x {height}"] = stored_images({"bytes": packed, "path": None})
        for name, images in pictures.items():
            sides |= {(name, what): function for what, function in stages(images).items()}
            sides[name, BATCH, "peer"] = plain_crops(images)
        sides["PNG of 2048 x 1024 with mask", "read, decode, crop to 1024 x 512"] = segmentation_crops(street)
        sides["streamed JPEG of 500 x 375", "distribute undecoded, in the main process"] = stream(small)
        times = median_seconds(sides, options.repeats)
    rows = []
    for name, time in times.items():
        if len(name) == 2:
            each = time / (STREAMED if "streamed" in name[0] else IMAGES)
            peer = times.get((*name, "peer"))
            rows.append({
                "picture": name[0],
                "what one core does": name[1],
                "ms": f"{1000 * each:.2f}",
                "images/s": f"{1 / each:.0f}",
                f"cores for {NEEDED:,} images/s": f"{NEEDED * each:.0f}" if name[1] in (BATCH, FOR_GPU) else "",
                "against RandomResizedCrop": "" if peer is None else f"{peer / time:.2f} x as fast",
            })  # fmt: skip
    report("Training images, from file to batch, on one thread", rows, options, ("pillow", "torchvision", "datasets"))


def write(path: Path, content: bytes) -> dict:
    path.write_bytes(content)
    return {"bytes": None, "path": str(path)}


if __name__ == "__main__":
    main()
