"""Augmentations: what they do, compared with timm's, and that their random numbers follow from keys."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from rednet.training.data.mixing import BatchAugmentation
from rednet.training.data.transforms import TrainingTransform
from rednet.training.options.scripts import TrainingConfig
from rednet.training.utils.randomness import python_seeded, seeded
from sklearn.datasets import load_sample_image
from timm.data import Mixup, create_transform
from timm.data.random_erasing import RandomErasing


QUANTILES = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(load_sample_image("flower.jpg")).resize((96, 64))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "random"])
@pytest.mark.parametrize("policy", ["rand-m7-mstd0.5-inc1", "rand-m9-n3-p0.8-mmax12", "rand-mstd101"])
def test_randaugment_is_that_of_timm(policy, interpolation):
    """The same operations, probabilities, magnitudes and colors as in timm's whole chain of transforms."""
    config = TrainingConfig(auto_augment=policy, interpolation=interpolation)
    ours = TrainingTransform(config, config.image_mean).augment.transforms[-1].transform
    chain = create_transform(
        224, is_training=True, auto_augment=policy, interpolation=interpolation, mean=config.image_mean
    )
    theirs = next(step for step in chain.transforms if type(step) is type(ours))
    assert repr(ours) == repr(theirs) and ours.num_layers == theirs.num_layers and ours.choice_weights is None
    for one, other in zip(ours.ops, theirs.ops, strict=True):
        assert (one.kwargs, one.magnitude_std, one.level_fn) == (other.kwargs, other.magnitude_std, other.level_fn)


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "trivial"])
def test_an_image_follows_from_its_key(policy, picture):
    """And leaves the random numbers of Python, NumPy and torch alone."""
    config = TrainingConfig(auto_augment=policy, interpolation="random")
    transform = TrainingTransform(config, config.image_mean)
    expected = [transform(picture, (1, 2, n), 48) for n in range(12)]
    for seed in range(2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        following = [random.random(), np.random.rand(), torch.rand(())]
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        again = [transform(picture, (1, 2, n), 48) for n in range(12)]
        assert all(np.array_equal(one, other) for one, other in zip(again, expected))
        assert [random.random(), np.random.rand(), torch.rand(())] == following
    assert len({pixels.tobytes() for pixels in expected}) == 12


def test_python_and_numpy_follow_torch():
    def draw(key: int) -> tuple:
        with seeded(key), python_seeded():
            return random.random(), np.random.rand(), np.random.choice([1, 2, 3], 4).tolist()

    assert draw(1) == draw(1) and draw(1)[0] != draw(2)[0] and draw(1)[1] != draw(2)[1]


def test_interpolation(picture):
    """Without random changes, the result is that of Pillow; `random` takes both."""
    results = {}
    for interpolation in ("bilinear", "bicubic", "random"):
        config = TrainingConfig(interpolation=interpolation, random_crop_min_scale=None, random_flip=0)
        transform = TrainingTransform(config, config.image_mean)
        results[interpolation] = [transform(picture, (n,), 40).tobytes() for n in range(8)]
    for name, resample in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        assert set(results[name]) == {np.array(picture.resize((40, 40), resample)).tobytes()}
    assert set(results["random"]) == {results["bilinear"][0], results["bicubic"][0]}


def erased_shares(erase) -> torch.Tensor:
    """The part of each of 3,000 images that `erase` changes."""
    images = torch.full((3000, 3, 24, 32), 99.0)
    return (erase(images) != 99).all(dim=1).float().mean(dim=(1, 2))


@pytest.mark.parametrize("mode, count", [("pixel", 1), ("rand", 3), ("const", 1)])
def test_random_erasing_is_that_of_timm(mode, count):
    """How many images, and how much of them."""
    config = TrainingConfig(random_erase_prob=0.25, random_erase_mode=mode, random_erase_count=count)
    augment, labels = BatchAugmentation(config, 10, CPU), torch.zeros(3000, dtype=torch.int64)
    with seeded(1):
        ours = erased_shares(lambda images: augment(images, labels, 0)[0])
    with seeded(1):
        assert torch.equal(ours, erased_shares(lambda images: augment(images, labels, 0)[0]))
    random.seed(0)
    theirs = erased_shares(RandomErasing(0.25, mode=mode, max_count=count, device="cpu"))
    for shares in (ours, theirs):  # three standard deviations of 3,000 draws are 0.024
        assert (shares > 0).float().mean() == pytest.approx(0.25, abs=0.024)
        assert 0.01 < shares[shares > 0].min() < 0.05 and 0.28 < shares.max() < 0.36
    pairs = [torch.quantile(shares[shares > 0], QUANTILES) for shares in (ours, theirs)]
    assert torch.allclose(*pairs, atol=0.03)


def test_what_random_erasing_leaves():
    values = {}
    for mode in ("const", "rand", "pixel"):
        config = TrainingConfig(random_erase_prob=1.0, random_erase_mode=mode)
        with seeded(3):
            image = BatchAugmentation(config, 10, CPU)(torch.full((1, 3, 64, 64), 99.0), torch.tensor([0]), 0)[0][0]
        values[mode] = [channel[channel != 99] for channel in image]
    assert all((channel == 0).all() for channel in values["const"])  # the mean color, after normalization
    assert len({float(channel.unique()) for channel in values["rand"]}) == 3
    noise = torch.cat(values["pixel"])
    assert abs(noise.mean()) < 0.2 and abs(noise.std() - 1) < 0.2


def own_shares(mix, batches: int = 1500) -> torch.Tensor:
    """Of each batch, the share of its own label that the first image keeps."""
    images, labels = torch.zeros(4, 3, 32, 32), torch.arange(4)
    shares = []
    for _ in range(batches):
        mixed = mix(images.clone(), labels)[1]
        shares.append(mixed[0, 0] if mixed.ndim == 2 else torch.tensor(1.0))
    return torch.stack(shares)


@pytest.mark.parametrize("mixup, cutmix", [(0.2, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixing_is_that_of_timm(mixup, cutmix):
    """The distribution of the shares, and how many batches are not mixed."""
    config = TrainingConfig(mixup_alpha=mixup, cutmix_alpha=cutmix, mixup_prob=0.75, mixup_switch_prob=0.7)
    augment = BatchAugmentation(config, 4, CPU)
    with seeded(5):
        ours = own_shares(lambda *batch: augment(*batch, epoch=0))
    np.random.seed(5)
    theirs = own_shares(Mixup(mixup, cutmix, prob=0.75, switch_prob=0.7, label_smoothing=0.0, num_classes=4))
    for shares in (ours, theirs):  # some mixed batches keep all of their own label
        assert 0.25 - 0.034 < (shares == 1).float().mean() < 0.35
    pairs = [torch.quantile(shares[shares < 1], QUANTILES) for shares in (ours, theirs)]
    assert torch.allclose(*pairs, atol=0.07), pairs


def kinds(config: TrainingConfig, epoch: int, batches: int = 400) -> dict[str, float]:
    """How often `config` chooses MixUp, CutMix or neither."""
    augment = BatchAugmentation(config, 4, CPU)
    with seeded(7):
        names = [type(augment.choose_mixing(epoch)).__name__ for _ in range(batches)]
    return {name: names.count(name) / batches for name in ("MixUp", "CutMix", "NoneType")}


def test_probabilities_and_end_of_mixing():
    config = TrainingConfig(
        mixup_alpha=0.2, cutmix_alpha=1.0, mixup_prob=0.75, mixup_switch_prob=0.7, mixup_off_epoch=3
    )
    expected = {"MixUp": 0.225, "CutMix": 0.525, "NoneType": 0.25}
    assert kinds(config, 0) == pytest.approx(expected, abs=0.075)
    assert kinds(config, 2) == kinds(config, 0)
    assert kinds(config, 3) == kinds(config, 9) == {"MixUp": 0, "CutMix": 0, "NoneType": 1}
    assert kinds(TrainingConfig(), 0)["NoneType"] == 1
    assert kinds(TrainingConfig(cutmix_alpha=1.0, mixup_switch_prob=0.0), 0)["CutMix"] == 1
