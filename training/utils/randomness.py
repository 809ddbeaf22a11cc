"""Random numbers that depend on a key alone."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_from(*key: int) -> int:
    """
    A seed of 64 bits. Two keys of the same length have independent seeds, even if they are neighbors. A key of up to three
    numbers has the same seed as this key with a zero behind it.
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seeds torch's global generators, which torchvision uses, with `key` inside the block, and restores them after:
    that of the CPU, and that of the current GPU if this process uses one."""
    generators = [torch.default_generator]
    if torch.cuda.is_initialized():
        generators.append(torch.cuda.default_generators[torch.cuda.current_device()])
    states = [generator.get_state() for generator in generators]
    seed = seed_from(*key)
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states):
            generator.set_state(state)


@contextmanager
def python_seeded() -> Iterator[None]:
    """Seeds the global generators of Python and NumPy, which timm uses, from torch's inside the block, and restores
    them after. Inside of `seeded`, their numbers depend on its key alone."""
    # Another generator is cheaper than another state. NumPy does not export these functions to type checkers.
    state, generator = random.getstate(), np.random.get_bit_generator()  # type: ignore[attr-defined]
    seed = int(torch.randint(2**63 - 1, ()))
    random.seed(seed)
    np.random.set_bit_generator(np.random.PCG64(seed))  # type: ignore[attr-defined]
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_bit_generator(generator)  # type: ignore[attr-defined]
