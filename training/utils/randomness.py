"""Random numbers that follow from a key."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_from(*key: int) -> int:
    """64 bits without likeness for any two keys, also for neighbouring ones."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """A block in which torch's global generator, which torchvision draws from, starts from `key`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_from(*key))
        yield
