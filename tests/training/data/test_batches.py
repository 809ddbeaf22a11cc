"""Order, randomness and pixels of the batches."""

import io
import tarfile
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage
from rednet.training.data.batches import (
    EvaluationBatches,
    EvaluationOrder,
    TrainingBatches,
    TrainingOrder,
    evaluation_loader,
    size_of_epoch,
    training_loader,
    training_order,
)
from rednet.training.data.mixing import BatchAugmentation
from rednet.training.data.sources import load_images
from rednet.training.data.transforms import TrainingTransform, normalize, open_image
from rednet.training.options.scripts import TrainingConfig
from rednet.training.train import make_processor, parse_config
from rednet.training.utils.randomness import seeded
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2


def epoch_of(options: dict, processes: int, epoch: int = 1, position: int = 0) -> dict[str, torch.Tensor]:
    """All images of an epoch in their order, from loaders for every process."""
    config = TrainingConfig(**options)
    images, _ = load_images(config)
    loaders = [training_loader(images, config, 10, n, processes) for n in range(processes)]
    for loader in loaders:
        loader.batch_sampler.begin(epoch, position)
    batches = [batch for batches in zip(*loaders, strict=True) for batch in batches]
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_images_depend_on_seed_epoch_and_position_alone(options):
    """Not on workers, processes or where an epoch was taken up again."""
    values = {**options[1], "max_train_samples": 130, "color_jitter": 0.3, "auto_augment": "rand-m9-mstd0.5"}
    expected = epoch_of(values, 1)
    assert len(expected["labels"]) == 120
    assert same(expected, epoch_of({**values, "dataloader_num_workers": 2}, 1))
    assert same(expected, epoch_of({**values, "per_device_train_batch_size": 10}, 2))
    resumed = epoch_of({**values, "per_device_train_batch_size": 10}, 2, position=40)
    assert same({name: value[40:] for name, value in expected.items()}, resumed)
    assert not same(expected, epoch_of(values, 1, epoch=2)) and not same(expected, epoch_of({**values, "seed": 1}, 1))


def test_repeated_images_are_those_of_timm():
    """As many of them as often, and of an image in a batch each copy on another process."""
    images = Dataset.from_dict({"label": range(512 + 17)})
    for processes, repeats in ((4, 3), (3, 3), (2, 2), (1, 3)):
        orders = [TrainingOrder(images, 256 // processes, 0, n, processes, repeats=repeats) for n in range(processes)]
        batches = [list(order) for order in orders]
        ours = [row for own in batches for batch in own for _, row in batch]
        samplers = [RepeatAugSampler(images, processes, n, num_repeats=repeats) for n in range(processes)]
        theirs = [row for sampler in samplers for row in list(sampler)[: len(ours) // processes]]
        copies, expected = Counter(ours).values(), Counter(theirs).values()
        assert sorted(copies) == sorted(expected) and max(copies) == repeats
        if processes >= repeats:
            assert all(len({row for _, row in batch}) == len(batch) for own in batches for batch in own)
        assert len({key for own in batches for batch in own for key, _ in batch}) == len(ours)


def test_images_are_repeated_on_any_number_of_processes(options):
    """The same images at the same positions; copies have other crops."""
    values = {**options[1], "max_train_samples": 130, "repeated_augmentation": 3, "random_crop_min_scale": 0.5}
    expected = epoch_of(values, 1)
    assert len(expected["labels"]) == 120
    assert same(expected, epoch_of({**values, "per_device_train_batch_size": 10}, 2))
    resumed = epoch_of({**values, "per_device_train_batch_size": 5}, 4, position=40)
    assert same({name: value[40:] for name, value in expected.items()}, resumed)
    assert len({image.numpy().tobytes() for image in expected["pixel_values"]}) > 110
    with pytest.raises(SystemExit):
        parse_config(["--config", str(options[0]), "--streaming", "--repeated_augmentation", "2"])


def test_sizes_grow_over_the_epochs(options):
    """Each size has an equal share of the epochs; a batch is the same wherever the epoch was taken up again."""
    values = {**options[1], "max_train_samples": 40, "num_train_epochs": 6, "train_image_size": [4, 6, 8]}
    epochs = [epoch_of(values, 1, epoch) for epoch in range(7)]
    assert [epoch["pixel_values"].shape[-1] for epoch in epochs] == [4, 4, 6, 6, 8, 8, 8]
    resumed = epoch_of({**values, "dataloader_num_workers": 1}, 1, epoch=2, position=20)
    assert same({name: value[20:] for name, value in epochs[2].items()}, resumed)
    processor = make_processor(TrainingConfig(**{**values, "eval_image_size": 12}))
    assert (
        processor.size["shortest_edge"] == 12 and make_processor(TrainingConfig(**values)).size["shortest_edge"] == 8
    )


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 40))
def test_each_size_has_its_share(sizes, extra):
    epochs = len(sizes) + extra
    order = [size_of_epoch(list(range(len(sizes))), epochs, epoch) for epoch in range(epochs)]
    shares = [order.count(index) for index in range(len(sizes))]
    assert order == sorted(order) and max(shares) - min(shares) <= 1
    assert size_of_epoch(sizes, epochs, epochs + 3) == sizes[-1]


def test_a_stream_gives_every_image_once(digit_archives, options):
    """Shuffled by epoch; on one process or two, which deal with whole archives each."""
    values = {**options[1], "dataset_name": str(digit_archives), "streaming": True, "max_train_samples": 240}
    values |= {"image_column_name": "png", "label_column_name": "cls", "shuffle_buffer_size": 50}
    values |= {"random_crop_min_scale": None, "random_flip": 0}
    _, plain = load_images(TrainingConfig(**values))
    assert len(list(plain)) == 60

    def pixels(epoch):
        return sorted(image.numpy().tobytes() for image in epoch["pixel_values"])

    one, other = epoch_of(values, 1), epoch_of(values, 1, epoch=2)
    two = epoch_of({**values, "dataloader_num_workers": 1}, 2)
    assert pixels(one) == pixels(other) == pixels(two) and len(set(pixels(one))) > 230
    assert not same(one, other)
    assert same({name: value[80:] for name, value in one.items()}, epoch_of(values, 1, position=80))


def test_a_stream_deals_out_the_files_themselves(digit_archives, options):
    """Neither decoded nor compressed again on their way to the workers."""
    values = {**options[1], "dataset_name": str(digit_archives), "streaming": True, "max_train_samples": 240}
    config = TrainingConfig(**{**values, "image_column_name": "png", "label_column_name": "cls"})
    rows = [
        row for batch in training_loader(load_images(config)[0], config, 10, 0, 1).batch_sampler for _, row in batch
    ]
    stored = []
    for path in digit_archives.glob("train-*.tar"):
        with tarfile.open(path) as archive:
            stored += [archive.extractfile(entry).read() for entry in archive if entry.name.endswith(".png")]
    assert sorted(row["image"]["bytes"] for row in rows) == sorted(stored)


def test_a_stream_that_is_too_short(digit_archives, options):
    values = {**options[1], "dataset_name": str(digit_archives), "streaming": True, "shuffle_buffer_size": 50}
    values |= {"image_column_name": "png", "label_column_name": "cls"}
    with pytest.raises(ValueError, match="--max_train_samples"):
        epoch_of(values, 1)
    with pytest.raises(ValueError, match="the stream ended after 240 images, expected 300"):
        epoch_of({**values, "max_train_samples": 300}, 1)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("samples", [1, 12, 13, 24])
def test_evaluation_counts_every_image_once(streamed, processes, samples):
    images = Dataset.from_dict({"label": range(samples)})
    images = images.to_iterable_dataset() if streamed else images
    orders = [list(EvaluationOrder(images, 4, n, processes)) for n in range(processes)]
    assert len({len(batches) for batches in orders}) == 1
    rounds = [row for batches in zip(*orders) for batch in batches for row in batch]
    assert {len(batch) for batches in orders for batch in batches} == {4}
    counted = [row["label"] if streamed else row for counts, row in rounds if counts]
    assert counted == list(range(samples))


def jpeg(size: tuple[int, int]) -> bytes:
    """A picture with something in it: smooth waves of several lengths, in colour."""
    x, y = np.meshgrid(np.linspace(0, 8, size[0]), np.linspace(0, 6, size[1]))
    pixels = np.stack([np.sin(x * y), np.cos(3 * x + y), np.sin(2 * y - x)], axis=-1)
    content = io.BytesIO()
    PILImage.fromarray((127 + 120 * pixels).astype(np.uint8)).save(content, "JPEG", quality=95)
    return content.getvalue()


def png(picture: PILImage.Image) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def broken_png() -> bytes:
    """Pillow calls it a SyntaxError: the second part of the pixels has lost its name."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    first, second, *others = png(PILImage.fromarray(noise)).split(b"IDAT")
    return first + b"IDAT" + second + b"\0\0\0\0" + b"IDAT".join(others)


@pytest.mark.parametrize("size", [(1600, 1200), (180, 240)])
def test_crops_are_those_of_torchvision(size):
    """torchvision crops the picture that is decoded in full, with the same random numbers."""
    config = TrainingConfig(image_size=112, random_crop_min_scale=0.3, random_flip=1.0)
    stored = {"bytes": jpeg(size), "path": None}
    for key in range(5):
        image = open_image(stored)
        ours = TrainingTransform(config, config.image_mean)(image, (key,), 112)
        with seeded(key):
            crop = v2.RandomResizedCrop(112, scale=(0.3, 1))
            expected = crop(PILImage.open(io.BytesIO(stored["bytes"])).convert("RGB"))
        difference = np.abs(ours.astype(int) - np.array(expected)[:, ::-1].astype(int))
        assert difference.mean() < 2.5 and ours.std() > 40
        assert (image.size[0] < size[0]) == (size[0] > 1000), "large ones are decoded at a fraction"


def test_pictures_are_upright(tmp_path):
    """A photograph taken with the camera on its side, from a file."""
    exif = PILImage.Exif()
    exif[0x0112] = 6
    PILImage.open(io.BytesIO(jpeg((60, 40)))).save(tmp_path / "photo.jpg", exif=exif)
    assert open_image({"bytes": None, "path": str(tmp_path / "photo.jpg")}).size == (40, 60)


def test_mixing_keeps_the_average_and_follows_its_key():
    config = TrainingConfig(mixup_alpha=0.4, cutmix_alpha=1.0)
    mixing = partial(BatchAugmentation(config, 10, torch.device("cpu")), epoch=0)
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6)
    kinds = set()
    for key in range(20):
        with seeded(key):
            mixed, probabilities = mixing(images, labels)
        with seeded(key):
            again = mixing(images, labels)
        assert torch.equal(mixed, again[0]) and torch.equal(probabilities, again[1])
        assert torch.allclose(probabilities.sum(1), torch.ones(6))
        own = probabilities[0, 0]
        is_mixup = torch.allclose(mixed, own * images + (1 - own) * images.roll(1, 0), atol=1e-5)
        pasted = (mixed == images.roll(1, 0)).float().mean()
        assert is_mixup or torch.isclose(pasted, 1 - own, atol=1e-5)
        kinds.add(is_mixup)
    assert kinds == {True, False}


@pytest.mark.parametrize(
    "row, words",
    [
        ({"image": {"bytes": b"no picture", "path": "broken.png"}, "label": 0}, ["broken.png", "cannot be read"]),
        ({"image": {"bytes": jpeg((50, 50))[:700], "path": "cut.jpg"}, "label": 0}, ["cut.jpg", "cannot be read"]),
        ({"image": {"bytes": b"P6\n8 x8 255\n" + bytes(192), "path": "x.ppm"}, "label": 0}, ["x.ppm", "ValueError"]),
        ({"image": None, "label": 0}, ["a row has no image"]),
        (
            {"image": {"bytes": png(PILImage.new("I;16", (9, 9))), "path": "x-ray.png"}, "label": 0},
            ["x-ray.png", "I;16"],
        ),
        ({"image": {"bytes": broken_png(), "path": "broken.png"}, "label": 0}, ["broken.png", "broken PNG"]),
        ({"image": {"bytes": jpeg((50, 50)), "path": None}, "label": 10}, ["10", "10 classes"]),
        ({"image": {"bytes": jpeg((50, 50)), "path": None}, "label": -1}, ["-1", "10 classes"]),
    ],
)
def test_bad_rows_are_named(row, words):
    images = Dataset.from_list([row], features=Features({"image": Image(), "label": Value("int64")}))
    config = TrainingConfig(image_size=8, per_device_train_batch_size=1, dataloader_num_workers=0)
    loaders = [training_loader(images, config, 10, 0, 1)]
    loaders += [evaluation_loader(images, config, make_processor(config), 10, 0, 1)]
    for loader in loaders:
        with pytest.raises(ValueError) as raised:
            list(loader)
        assert all(word in str(raised.value) for word in words)


def test_the_length_of_an_evaluation_is_known(options):
    """What a progress bar shows; of a stream nobody knows it."""
    images = load_images(TrainingConfig(**options[1]))[1]
    for process in range(2):
        order = EvaluationOrder(images, 64, process, 2)
        assert len(order) == len(list(order)) == 4  # 397 images
    with pytest.raises(TypeError):
        len(EvaluationOrder(images.to_iterable_dataset(), 64, 0, 1))


def test_mean_and_standard_deviation_are_made_once():
    """Each time they would wait for a GPU: after the first step there is no new tensor from a list."""

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(function.__name__)
            return function(*args, **(kwargs or {}))

    config, images = TrainingConfig(image_mean=[0.1, 0.2, 0.3]), torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    expected = -torch.tensor(config.image_mean) / torch.tensor(config.image_std)
    assert torch.allclose(normalize(images, config)[0, :, 1, 0], expected)
    names = []
    with Names():
        normalize(images, config)
    assert names and not any("lift" in name or "_to_copy" in name for name in names), names


def test_too_few_images_for_a_batch(options):
    config = TrainingConfig(**{**options[1], "max_train_samples": 30})
    with pytest.raises(ValueError, match="is 20 on 2 processes, but there are only 30 images"):
        training_order(load_images(config)[0], config, 0, 2)


def test_training_batches_look_like_the_processors(options):
    """Without crop (and up to the flip) a training image becomes what the image processor makes of it."""
    config = TrainingConfig(**{**options[1], "image_size": 8, "random_crop_min_scale": None})
    images = load_images(config)[1].cast_column("image", Image(decode=False))
    transform = TrainingTransform(config, config.image_mean)
    batch = TrainingBatches(images, transform, 10, lambda epoch: 8).__getitems__([((0, 0, n), n) for n in range(6)])
    normalized = normalize(batch["pixel_values"], config)
    assert normalized.is_contiguous(memory_format=torch.channels_last) and batch["pixel_values"].dtype == torch.uint8
    expected = EvaluationBatches(images, make_processor(config), 10).__getitems__([(n != 5, n) for n in range(6)])
    assert torch.equal(batch["labels"][:5], expected["labels"][:5]) and expected["labels"][5] == -1
    flips = 0
    for image, reference in zip(normalized, expected["pixel_values"]):
        flipped = torch.allclose(image, reference.flip(2), atol=1e-5)
        assert flipped or torch.allclose(image, reference, atol=1e-5)
        flips += flipped
    assert 0 < flips < 6
