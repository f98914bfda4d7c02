"""Random streams: one for each purpose, seed and number, independent of each other."""

import numpy as np

BATCH, ORDER, SPLIT, MIX, START, FLIP, MASK, FIXED_MASK, VIEW = range(9)  # purposes


def generator(purpose: int, seed: int, number: int = 0) -> np.random.Generator:
    """The random stream of (purpose, seed, number). They key a Philox generator: any stream is reached at no cost."""
    key, counter = np.array([seed, number], np.uint64), np.array([0, 0, 0, purpose], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


class Draws:
    """Draws a number for each image of a batch and gives those of some rows: parts of a batch have the numbers of the whole.

    Args:
        rng: The generator.
        count: Images of the batch.
        rows: The rows (n,) whose numbers are wanted; None = all.
    """

    def __init__(self, rng: np.random.Generator, count: int, rows: np.ndarray | None = None):
        self.rng, self.count = rng, count
        self.rows = np.arange(count) if rows is None else rows

    def random(self) -> np.ndarray:
        return self.rng.random(self.count)[self.rows]

    def uniform(self, low: float, high: float, *lead: int) -> np.ndarray:
        """Floats (*lead, n) from low to high."""
        return self.rng.uniform(low, high, size=(*lead, self.count))[..., self.rows]

    def integers(self, low: int, high: int, *lead: int) -> np.ndarray:
        """Integers (*lead, n) from low to high - 1."""
        return self.rng.integers(low, high, size=(*lead, self.count))[..., self.rows]

    def choice(self, values: list) -> np.ndarray:
        return self.rng.choice(values, size=self.count)[self.rows]
