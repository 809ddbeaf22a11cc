"""Decoding on the GPU, compared with what the workers decode. On the CPU, torchvision decodes with libjpeg."""

import io

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from rednet import RedNetConfig, RedNetForImageClassification
from rednet.training.data.batches import TrainingBatches, training_loader
from rednet.training.data.gpu_decoding import CroppedFile, FileTransform, decode_files
from rednet.training.data.transforms import TrainingTransform
from rednet.training.options.scripts import TrainingConfig
from rednet.training.train import compute_loss, main


pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")
CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def waves(size: tuple[int, int]) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 8, size[0]), np.linspace(0, 6, size[1]))
    pixels = np.stack([np.sin(x * y), np.cos(3 * x + y), np.sin(2 * y - x)], axis=-1)
    return Image.fromarray((127 + 120 * pixels).astype(np.uint8))


def saved(image: Image.Image, format: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


FILES = {
    "color.jpg": saved(waves((300, 200)), quality=95),
    "progressive.jpg": saved(waves((200, 300)), quality=95, progressive=True),
    "gray.jpg": saved(waves((260, 180)).convert("L"), quality=95),
    "small.jpg": saved(waves((40, 30)), quality=95, subsampling=0),
}
OTHERS = {
    "lossless.png": saved(waves((300, 200)), "PNG"),
    "cmyk.jpg": saved(waves((300, 200)).convert("CMYK")),
    "turned.jpg": saved(waves((300, 200)), exif=turned()),
}


def data_set(files: dict[str, bytes]) -> Dataset:
    rows = [{"image": {"bytes": content, "path": name}, "label": 0} for name, content in files.items()]
    features = Features({"image": ImageFeature(decode=False), "label": Value("int64")})
    return Dataset.from_list(rows, features=features)


def images_of(kind: type[TrainingTransform], files: dict[str, bytes], key: int, **options):
    config = TrainingConfig(**options)
    batches = TrainingBatches(data_set(files), kind(config, config.image_mean), 1, lambda epoch: 64)
    return batches.__getitems__([((key, 0, n), n) for n in range(len(files))])["pixel_values"]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize(
    "options",
    [
        {"random_crop_min_scale": 0.3},
        {"interpolation": "bicubic"},
        {"interpolation": "random", "random_crop_min_scale": 0.08},
        {"random_crop_min_scale": None},
    ],
)
def test_crops_are_those_of_the_workers(options, device):
    flips = set()
    for key in range(4):
        files = images_of(FileTransform, FILES, key, **options)
        assert all(isinstance(file, CroppedFile) for file in files)
        ours = decode_files(files, torch.device(device))
        expected = images_of(TrainingTransform, FILES, key, **options)
        assert ours.dtype == torch.uint8 and ours.device.type == device
        for image, reference in zip(ours.cpu().float(), expected.float(), strict=True):
            assert (image - reference).abs().mean() < 2.5 < reference.std() / 10
        flips |= {file.flipped for file in files}
    assert flips == {True, False}


def test_workers_decode_other_pictures():
    """In the order of the batch, among JPEG files."""
    files = {name: content for pair in zip(FILES.items(), OTHERS.items()) for name, content in pair}
    images = images_of(FileTransform, files, 0)
    decoded = [torch.as_tensor(image) if isinstance(image, np.ndarray) else image for image in images]
    assert [isinstance(image, torch.Tensor) for image in decoded] == [name in OTHERS for name in files]
    ours, expected = decode_files(decoded, CPU), images_of(TrainingTransform, files, 0)
    for name, image, reference in zip(files, ours, expected, strict=True):
        assert torch.equal(image, reference) if name in OTHERS else (image.float() - reference).abs().mean() < 2.5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_on_the_batches_of_a_loader(workers):
    """The loss is that of the images that the workers decode, up to the difference of the decoders."""
    losses, images = [], data_set(FILES | OTHERS)
    model = RedNetForImageClassification(
        RedNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], group_channels=4, num_labels=5)
    ).eval()
    for decode_on_gpu in (False, True):
        config = TrainingConfig(
            image_size=64,
            per_device_train_batch_size=7,
            dataloader_num_workers=workers,
            decode_on_gpu=decode_on_gpu,
        )
        (batch,) = training_loader(images, config, 5, 0, 1)
        assert all(isinstance(image, CroppedFile | torch.Tensor) for image in batch["pixel_values"])
        with torch.no_grad():
            losses.append(compute_loss(model, batch, config))
    assert torch.isclose(*losses, rtol=0.02)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_a_damaged_file_is_named(device):
    files = images_of(FileTransform, FILES | {"cut.jpg": FILES["color.jpg"][:700]}, 0)
    with pytest.raises(ValueError, match=f"the image cut.jpg cannot be decoded on {device}"):
        decode_files(files, torch.device(device))


@pytest.mark.parametrize(
    "options, words",
    [
        (["--color_jitter", "0.4"], "--color_jitter is 0.4"),
        (["--auto_augment", "trivial"], "--auto_augment is trivial"),
    ],
)
def test_augmentations_that_need_the_picture_are_refused(options, words, capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["--config_name", "rednet-26", "--train_dir", str(tmp_path), "--decode_on_gpu", *options])
    assert words in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is available")
def test_a_machine_without_gpu_is_refused(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["--config_name", "rednet-26", "--train_dir", str(tmp_path), "--decode_on_gpu"])
    assert "--decode_on_gpu needs an NVIDIA GPU, and torch finds none" in capsys.readouterr().err
