"""Random streams: one for each purpose, seed and number, independent of each other."""

import numpy as np

BATCH, ORDER, SPLIT = range(3)  # purposes


def generator(purpose: int, seed: int, number: int = 0) -> np.random.Generator:
    """The random stream of (purpose, seed, number). They key a Philox generator: any stream is reached at no cost."""
    key, counter = np.array([seed, number], np.uint64), np.array([0, 0, 0, purpose], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
