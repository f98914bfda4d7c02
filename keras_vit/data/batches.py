"""Splits -> normalized batches for `model.fit`, on every backend.

A training batch is a pure function of (seed, step), `training_batch`; a stream only calls it. So the numbers are the same on
every backend, and resuming at a step skips nothing.

Shapes: N images of a split, B of a batch, H height, W width, C channels, K classes.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from keras_vit.checks import as_moments, check_choice, check_int, check_seed
from keras_vit.data.augment import ALTERNATING, AugmentConfig, augment, mixing, random_boxes
from keras_vit.data.dataset import Split
from keras_vit.data.labels import Members, targets_of
from keras_vit.data.masking import Masking
from keras_vit.data.seeds import BATCH, FIXED_MASK, FLIP, MASK, MIX, ORDER, Draws, generator
from keras_vit.data.stream import stream
from keras_vit.data.teaching import Teaching
from keras_vit.images import normalize, resize

SAMPLING = ("uniform", "balanced")
Part = tuple[int, int]  # which part, from 0, and the number of parts
WHOLE = (0, 1)


def training_batch(
    split: Split,
    config: AugmentConfig,
    step: int,
    *,
    num_classes: int,
    batch_size: int,
    seed: int,
    mix_steps: float = math.inf,
    image_size: tuple[int, int] | None = None,
    sampling: str = "uniform",
    part: Part = WHOLE,
    teaching: Teaching | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The augmented batch of one training step: a pure function of its arguments.

    Epoch e is steps e·(N // B) to (e + 1)·(N // B) - 1 and visits the examples in an order that (seed, e) decides. Each epoch
    leaves out N % B examples, different ones each time. See `balanced_order` for balanced sampling.

    Args:
        split: The training `Split`.
        config: The `AugmentConfig`.
        step: Training step from 0, over all epochs.
        num_classes: K.
        batch_size: B.
        seed: Integer from 0 to 2^32 - 1.
        mix_steps: Steps of the training, from its first one on, in which MixUp and CutMix mix.
        image_size: Height and width of what `augment.resized_crop` takes; None = as the split's images.
        sampling: `uniform` (each example once an epoch) or `balanced` (each class equally often).
        part: Which equal part of the batch to make, and of how many: that of a process among several.
        teaching: Gives the targets of a teacher, which follow those of the labels.

    Returns:
        uint8 images (B, H, W, C) and float32 targets (B, K), with `teaching` (B, 2K); B / parts of them.
    """
    if teaching is not None:
        step = teaching.stored_step(int(step), len(split) // batch_size, seed)
    epoch, position = divmod(int(step), len(split) // batch_size)
    members, places = None if sampling == "uniform" else split.members, slice(position * batch_size, (position + 1) * batch_size)
    indices = order_of(members, len(split), seed, epoch)[places]
    size = image_size or split.shape[:2] if config.resized_crop else split.shape[:2]
    mixed = mixing(config, generator(MIX, seed, int(step)), batch_size, size, step >= mix_steps)
    kept = rows_of(part, batch_size)
    rows = kept if mixed is None else np.union1d(kept, mixed.partner[kept])
    draws, chosen = Draws(generator(BATCH, seed, int(step)), batch_size, rows), indices[rows]
    if config.resized_crop:
        boxes = random_boxes(split.sizes(chosen), config.resized_crop, config.crop_ratio, draws)
        images = split.crops(chosen, boxes, size)
    else:
        images = split.images(chosen)
    mirrored = mirrored_of(members, len(split), seed, epoch)[places][rows] if config.flip == ALTERNATING else None
    further = None if teaching is None or teaching.known is None else teaching.known[chosen]
    settings = {"num_classes": num_classes, "draws": draws, "mixed": mixed, "kept": kept, "mirrored": mirrored, "further": further}
    images, targets = augment(images, split.labels[chosen], config, **settings)
    if teaching is not None and teaching.answer:
        targets = np.concatenate([targets, teaching.answer(images, int(step), kept)], axis=1)
    return images, targets


def rows_of(part: Part, batch_size: int) -> np.ndarray:
    """The rows of a batch that make an equal part of it; the parts divide `batch_size`."""
    index, parts = part
    return np.arange(batch_size).reshape(parts, -1)[index]


def order_of(members: Members | None, count: int, seed: int, epoch: int) -> np.ndarray:
    """The examples of an epoch (count,) in their order, balanced if the `members` of the classes are given."""
    return order(count, seed, epoch) if members is None else balanced_order(members, count, seed, epoch)


@functools.lru_cache(maxsize=4)
def mirrored_of(members: Members | None, count: int, seed: int, epoch: int) -> np.ndarray:
    """Whether `flip: alternating` mirrors each example of an epoch, in the epoch's order: booleans (count,).

    Each example is mirrored in the first epoch with probability 0.5, then in every second one. Where balanced sampling shows an
    example several times an epoch, each other time too.
    """
    drawn = order_of(members, count, seed, epoch)
    sort = np.argsort(drawn, kind="stable")
    first = np.searchsorted(drawn[sort], drawn[sort])
    turn = np.empty(count, np.int64)
    turn[sort] = np.arange(count) - first  # how often the epoch has shown the example before
    return (generator(FLIP, seed).random(count)[drawn] < 0.5) ^ ((epoch + turn) % 2 == 1)


@functools.lru_cache(maxsize=4)  # drawn once an epoch, not once a batch; two epochs overlap where batches are made ahead
def order(count: int, seed: int, epoch: int) -> np.ndarray:
    return generator(ORDER, seed, epoch).permutation(count)


@functools.lru_cache(maxsize=4)
def balanced_order(members: Members, count: int, seed: int, epoch: int) -> np.ndarray:
    """The examples of an epoch (count,) in which each class comes equally often, up to one.

    Of a small class the examples come repeatedly, each equally often, up to one; of a large one those of an epoch are drawn anew.
    """
    rng, groups = generator(ORDER, seed, epoch), members.rows
    quotas = np.full(len(groups), count // len(groups))
    quotas[rng.permutation(len(groups))[: count % len(groups)]] += 1
    drawn = []
    for rows, quota in zip(groups, quotas, strict=True):
        rounds = [rng.permutation(rows) for _ in range(-(-quota // len(rows)))]
        drawn.append(np.concatenate(rounds)[:quota] if rounds else rows[:0])
    return rng.permutation(np.concatenate(drawn))


def training_batches(
    split: Split,
    config: AugmentConfig,
    *,
    num_classes: int,
    batch_size: int,
    seed: int,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    start_step: int = 0,
    mix_steps: float = math.inf,
    image_size: tuple[int, int] | None = None,
    sampling: str = "uniform",
    part: Part = WHOLE,
    masking: Masking | None = None,
    teaching: Teaching | None = None,
    pipeline: str | None = None,
) -> Iterable:
    """The endless stream of augmented, normalized training batches from `start_step` on, for `model.fit(steps_per_epoch=...)`.

    Args:
        split: The training `Split`.
        config: The `AugmentConfig`.
        num_classes: K.
        batch_size: B.
        seed: As in `training_batch`.
        mix_steps: As in `training_batch`.
        mean: Mean of pixels scaled to 0..1, one number or one for each channel.
        std: Their standard deviation, likewise.
        start_step: Step of the first batch: the number of steps already trained.
        image_size: Height and width that images are resized to after the augmentation, or by `resized_crop` before it;
            None = as they are.
        sampling: As in `training_batch`.
        part: As in `training_batch`.
        masking: Hides patches of the images, others in each step: what `Masking.apply` returns takes the place of images and
            targets.
        teaching: As in `training_batch`.
        pipeline: See `stream`.

    Returns:
        A `tf.data.Dataset` or `keras.utils.PyDataset` of float32 images (B, *image_size, C) and float32 targets (B, K), with
        `teaching` (B, 2K); B / parts of them.

    Raises:
        ValueError: If batch_size exceeds the split or is not divisible by the parts, or seed, mean or std is out of range.
    """
    check_int("batch_size", batch_size, at_least=1)
    if batch_size > len(split):
        raise ValueError(f"batch_size: received {batch_size}; allowed: at most {len(split):,}, the training images")
    if batch_size % part[1]:
        raise ValueError(f"batch_size: received {batch_size}; allowed: multiples of {part[1]}, the parts of a batch")
    check_seed(seed)
    check_choice("sampling", sampling, SAMPLING)
    mean, std = as_moments(mean, std, split.shape[-1])
    size = split.shape[:2] if image_size is None else tuple(image_size)

    def batch(step):
        settings = {"num_classes": num_classes, "batch_size": batch_size, "seed": seed, "mix_steps": mix_steps}
        settings |= {"image_size": size, "sampling": sampling, "part": part, "teaching": teaching}
        images, targets = training_batch(split, config, step, **settings)
        images = resize(normalize(images, mean, std), size)
        if masking is None:
            return images, targets
        return masking.apply(images, masking.orders(batch_size, size, MASK, seed, int(step))[rows_of(part, batch_size)])

    count, width = batch_size // part[1], num_classes * (1 if teaching is None else 2)
    return stream(batch, start_step, None, **shapes(masking, count, size, split.shape[-1], width), pipeline=pipeline)


def shapes(masking, count, size, channels, width):
    """The shapes of a batch, for `stream`; targets have a width, unless they are hidden pixels."""
    found = {"image_shape": (count, *size, channels), "target_shape": (count, width)}
    if masking is not None:
        found["order_shape"], found["target_shape"] = masking.shapes(count, size, channels)
    return found


def evaluation_batches(
    split: Split,
    *,
    num_classes: int,
    batch_size: int,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    views: Sequence[Callable[[np.ndarray], np.ndarray]] = (),
    masking: Masking | None = None,
    seed: int = 0,
    places: np.ndarray | None = None,
    pipeline: str | None = None,
) -> Iterable:
    """Every example once, in order, not augmented; the last batch may be smaller.

    Arguments, result and errors are those of `training_batches`; targets are one-hot or multi-hot. With `views`, functions of uint8
    images (B, H, W, C), each example comes once through each view, one after the other; a batch has whole examples, at least one.
    What `masking` hides of an image depends on `seed` and on its place, not on the batch size. `places` (N,) are the images' places
    in a larger split, of which this one is a part.
    """
    check_int("batch_size", batch_size, at_least=1)
    mean, std = as_moments(mean, std, split.shape[-1])
    batch_size = max(1, batch_size // max(1, len(views)))

    def batch(step):
        indices = np.arange(step * batch_size, min((step + 1) * batch_size, len(split)))
        images = split.images(indices)
        if views:
            images = np.stack([view(images) for view in views], axis=1).reshape(-1, *split.shape)  # (B V, H, W, C)
            indices = indices.repeat(len(views))
        images = normalize(images, mean, std)
        if masking is None:
            return images, targets_of(split.labels[indices], num_classes)
        return masking.apply(images, orders[indices])

    size, orders = split.shape[:2], None
    if masking is not None:
        places = np.arange(len(split)) if places is None else places
        orders = masking.orders(places.max() + 1, size, FIXED_MASK, seed, 0)[places]
    count = math.ceil(len(split) / batch_size)
    return stream(batch, 0, count, **shapes(masking, None, size, split.shape[-1], num_classes), pipeline=pipeline)
