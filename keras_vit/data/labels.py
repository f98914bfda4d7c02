"""Labels of images: one class each, or any number of classes (multi-label).

Shapes: N images, K classes. Single labels are integers (N,), multi-hot labels are zeros and ones (N, K). -1 marks an image that
cannot be read.
"""

import dataclasses

import numpy as np

from keras_vit.machine import memory_limit

KINDS = ("auto", "single", "multi")  # of labels, as a recipe asks for them
NONE = "none"  # in their place for pre-training, which needs no labels


def is_multi(labels: np.ndarray) -> bool:
    """Whether an image may have any number of classes."""
    return labels.ndim == 2


def is_known(labels: np.ndarray) -> np.ndarray:
    """Whether each image (N,) has labels: -1 stands for an image that cannot be read."""
    return labels[:, 0] >= 0 if is_multi(labels) else labels >= 0


def check_memory(received: str, size: int) -> None:
    """Raises a ValueError that begins with `received` if `size` bytes are more than `memory_limit` allows."""
    if size > (limit := memory_limit()):
        raise ValueError(f"{received} of {size:,} bytes; allowed: a third of the free memory, {limit:,}")


def multi_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Single labels (N,) as int8 (N, K); multi-hot labels as they are."""
    if is_multi(labels):
        return labels
    return np.where(is_known(labels)[:, None], np.arange(num_classes) == labels[:, None], -1).astype(np.int8)


def targets_of(labels: np.ndarray, num_classes: int, smoothing: float = 0.0) -> np.ndarray:
    """What a training aims at: float32 (N, K).

    Label smoothing (arXiv 1512.00567) spreads a share s of a single label over all classes: 1 becomes 1 - s + s / K, 0 becomes
    s / K. Of multi-hot labels, each a decision between two, 1 becomes 1 - s / 2 and 0 becomes s / 2.
    """
    floor = smoothing / (2 if is_multi(labels) else max(num_classes, 1))
    return np.float32(floor) + multi_hot(labels, num_classes).astype(np.float32) * np.float32(1 - smoothing)


def class_counts(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Images of each class (K,); an image with several labels counts for each."""
    return labels.sum(axis=0, dtype=np.int64) if is_multi(labels) else np.bincount(labels, minlength=num_classes)


@dataclasses.dataclass(frozen=True, eq=False)
class Members:
    """The images of each class that has some; those of multi-hot labels without any class are a class more.

    Attributes:
        rows: Indices of images, an array a class.
    """

    rows: list[np.ndarray]


def members_of(labels: np.ndarray) -> Members:
    if is_multi(labels):
        groups = [np.flatnonzero(column) for column in (*labels.T, ~labels.any(axis=1))]
    else:
        groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return Members([rows for rows in groups if len(rows)])


def choose(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Chooses `count` of N images of single labels, each class in proportion, never a whole class: bool (N,)."""
    classes, sizes = np.unique(labels, return_counts=True)
    wanted = sizes * count / len(labels)
    quota = np.minimum(np.floor(wanted).astype(int), sizes - 1)
    for _ in range(count - quota.sum()):  # the largest remainders get one more
        quota[np.argmax(np.where(quota < sizes - 1, wanted - quota, -np.inf))] += 1
    chosen = np.zeros(len(labels), bool)
    for label, number in zip(classes, quota, strict=True):
        chosen[rng.permutation(np.flatnonzero(labels == label))[:number]] = True
    return chosen


def choose_multi(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """As `choose`, of multi-hot labels: iterative stratification, the rarest class first (Sechidis et al. 2011, algorithm 1).

    There may be fewer than `count` images: the last image of a class is never chosen.
    """
    labels, total = labels.astype(bool), len(labels)
    left, chosen = np.ones(total, bool), np.zeros(total, bool)
    remaining, sizes = count, labels.sum(axis=0)
    # Of each class: images still to be chosen, images not chosen, images not yet decided.
    wanted, kept, open_sizes = sizes * count / total, sizes.copy(), sizes.copy()
    while left.any():
        if open_sizes.any():
            rarest = np.argmin(np.where(open_sizes > 0, open_sizes, total + 1))
            rows = np.flatnonzero(left & labels[:, rarest])
        else:
            rarest, rows = None, np.flatnonzero(left)
        for row in rng.permutation(rows):
            left[row] = False
            open_sizes -= labels[row]
            share = wanted[rarest] >= 0.5 if rarest is not None else remaining > 0
            if share and remaining and (kept[labels[row]] > 1).all():
                chosen[row] = True
                remaining -= 1
                wanted[labels[row]] -= 1
                kept[labels[row]] -= 1
    for row in rng.permutation(np.flatnonzero(~chosen)):  # what rounding has left
        if remaining and (kept[labels[row]] > 1).all():
            chosen[row] = True
            remaining -= 1
            kept[labels[row]] -= 1
    return chosen
