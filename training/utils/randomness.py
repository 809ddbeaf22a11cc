"""Random numbers that depend on a key alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_from(*key: int) -> int:
    """A seed of 64 bits. The seeds of two keys are independent, even if the keys are neighbors."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seeds torch's global generator, which torchvision uses, with `key` inside the block, and restores it after."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_from(*key))
        yield
