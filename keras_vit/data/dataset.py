"""A data set's name, folder or file -> uint8 images in memory (or on disk) -> batches for `model.fit`, on every backend.

A training batch is a pure function of (seed, step): `training_batch`. A tf.data pipeline (TensorFlow backend) or a
`keras.utils.PyDataset` (others, TensorFlow need not be installed) only calls it, so the numbers are the same, and resuming at
a step skips nothing.

Shapes: N images of a split, B of a batch, H height, W width, C channels (1 or 3), K classes.
"""

import atexit
import concurrent.futures
import dataclasses
import functools
import hashlib
import math
import os
import threading
import time
from collections.abc import Iterable

import keras
import numpy as np

from keras_vit.data import sources
from keras_vit.data.augment import AugmentConfig
from keras_vit.data.augment import augment as augment_batch
from keras_vit.images import normalize, resize

TEST_SHARE = 0.2  # of a data set that has no test images of its own

# What a random stream is for: streams of the same seed must not overlap.
_BATCH, _ORDER, _SPLIT = range(3)


class Split:
    """Labelled images in a fixed order, with random access.

    Args:
        images: uint8 (M, H, W, C), an array or a memory map.
        labels: integers (M,).
        rows: integers (N,), which of the M belong to this split, in order; None = all whose label is not negative.

    Attributes:
        labels: int64 (N,).
        shape: (H, W, C).
    """

    def __init__(self, images, labels, rows=None):
        self._images, self._labels = images, labels
        self._rows = np.flatnonzero(labels >= 0) if rows is None else rows
        self.labels = labels[self._rows].astype(np.int64)
        self.shape = images.shape[1:]

    def __len__(self):
        return len(self.labels)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, C): a copy of the images at `indices` (B,)."""
        return np.asarray(self._images[self._rows[indices]])

    def take(self, indices: np.ndarray) -> "Split":
        """The split of the examples at `indices`, in that order; the pixels are shared."""
        return Split(self._images, self._labels, self._rows[indices])


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Train, validation and test images of one size.

    Attributes:
        name: what was loaded: the name asked for, or of what `auto` found ("cifar10" or "digits").
        train: what weights are fitted on.
        validation: what choices are made on; None when none was asked for.
        test: what is read once, at the end.
        class_names: K names, in the order of the labels.
        fingerprint: SHA-256 (hex) of names, labels and up to 1,000 evenly spaced images of each part, before validation is carved
            out of train: the same for every seed, another for another size or another JPEG decoder.
        notes: lines for the user: what is kept where, what was skipped, what was split how.
        fallback: why `auto` did not get CIFAR-10; empty when the data set is the one asked for.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split | None
    class_names: list[str]
    fingerprint: str
    notes: list[str]
    fallback: str = ""


def load_data(
    name: str,
    *,
    data_dir: str | None = None,
    image_size: int | tuple[int, int],
    channels: int = 3,
    validation: int | float | None = None,
    seed: int = 0,
) -> DataSet:
    """Loads a data set as uint8 images of one size.

    Args:
        name: `auto` (CIFAR-10 if prepared or downloadable, otherwise digits); `digits` (scikit-learn's 1,797 of 8x8 pixels);
            `arrays:FILE.npz` (x_train, y_train and, if there, x_test, y_test, x_val, y_val; (N, H, W) or (N, H, W, 1 or 3),
            uint8 or float 0 to 1); `folder:PATH` (a folder of images for each class, or train/, test/ and validation/ of such); or
            the name of a TensorFlow data set with `image` and `label`: `cifar10`, `cifar100`, `mnist`, `fashion_mnist`...
        data_dir: where prepared TensorFlow data sets lie; None = TFDS_DATA_DIR, then TFDS's own default.
        image_size: pixels, one number or (height, width). Images of another size are resized (bicubic, antialiased) so that they
            cover it, and the middle is kept.
        channels: 1 (grey) or 3 (RGB).
        validation: examples carved out of train: a share (float below 1), a number (int), 0 = none, None = a tenth and at most
            5,000; None takes the data set's own if it has one next to its test images.
        seed: decides which examples of train become validation; never which are test.

    Returns:
        A `DataSet`.

    Raises:
        ValueError: name, path or contents are not usable; one line that says what was received and what is possible.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if channels not in (1, 3) or min(height, width) < 1:
        raise ValueError(f"image_size must be positive and channels 1 or 3. Received: {image_size!r}, {channels!r}")
    _check_seed(seed)
    shape, notes, fallback = (height, width, channels), [], ""
    kind, _, path = name.partition(":")
    if kind == "folder":
        parts, class_names = sources.read_folder(path, shape, notes)
    elif kind == "arrays":
        parts, class_names = sources.read_arrays(path, shape, notes)
    elif name == "auto":
        try:
            name = "cifar10"
            parts, class_names = sources.read_tfds(name, data_dir, shape, notes)
        except sources.Unavailable as error:
            name, fallback, notes = "digits", str(error), []
            parts, class_names = sources.read_digits(shape, notes)
    elif name == "digits":
        parts, class_names = sources.read_digits(shape, notes)
    else:
        parts, class_names = sources.read_tfds(name, data_dir, shape, notes)
    parts = {part: Split(*arrays) for part, arrays in parts.items() if (arrays[1] >= 0).any()}
    _check_labels(name, parts, class_names)
    fingerprint = _fingerprint(name, parts, class_names)

    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
        notes.append("its validation images are used as test images, as it has no labelled ones of its own")
    if "test" not in parts:
        count = _count(TEST_SHARE, len(parts["train"]), "test share")
        if count:
            parts["train"], parts["test"] = _carve(parts["train"], count, "test share", seed=0)
            notes.append(f"{count:,} of its images (stratified, the same for every seed) are the test images")
    if validation is not None or "validation" not in parts:
        parts.pop("validation", None)
        total = len(parts["train"])
        count = min(round(0.1 * total), 5000) if validation is None else _count(validation, total, "validation")
        if count:
            parts["train"], parts["validation"] = _carve(parts["train"], count, "validation", seed)
    sizes = ", ".join(f"{len(parts[part]):,} {part}" for part in ("train", "validation", "test") if part in parts)
    notes.insert(0, f"{name}: {sizes}; {len(class_names)} classes; {height}x{width}x{channels}")
    return DataSet(name, parts["train"], parts.get("validation"), parts.get("test"), class_names, fingerprint, notes, fallback)


# Batches


def training_batch(
    split: Split, augment: AugmentConfig, step: int, *, num_classes: int, batch_size: int, seed: int, total_steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """The augmented batch of one training step: a pure function of its arguments.

    Epoch e is steps e·(N // B) to (e + 1)·(N // B) - 1 and visits the examples in the order that (seed, e) gives; the N % B that
    are left over are others in each epoch.

    Args:
        split: the training `Split`.
        augment: the `AugmentConfig`.
        step: training step from 0, over all epochs.
        num_classes: K.
        batch_size: B.
        seed: whole number from 0 to 2^32 - 1.
        total_steps: steps of the whole training, for `augment.mix_until`.

    Returns:
        uint8 images (B, H, W, C) and float32 targets (B, K).
    """
    epoch, position = divmod(int(step), len(split) // batch_size)
    indices = _order(len(split), seed, epoch)[position * batch_size : (position + 1) * batch_size]
    return augment_batch(
        split.images(indices),
        split.labels[indices],
        augment,
        num_classes=num_classes,
        rng=_generator(_BATCH, seed, int(step)),
        progress=step / total_steps,
    )


@functools.lru_cache(maxsize=4)  # drawn once an epoch, not once a batch; two epochs overlap where batches are made ahead
def _order(count, seed, epoch):
    return _generator(_ORDER, seed, epoch).permutation(count)


def _generator(purpose, seed, number=0):
    """The random stream of (purpose, seed, number). Philox is keyed by them: streams are independent and cost nothing to reach."""
    key, counter = np.array([seed, number], np.uint64), np.array([0, 0, 0, purpose], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def training_batches(
    split: Split,
    augment: AugmentConfig,
    *,
    num_classes: int,
    batch_size: int,
    seed: int,
    mean: float | list[float],
    std: float | list[float],
    start_step: int = 0,
    total_steps: int,
    image_size: tuple[int, int] | None = None,
    pipeline: str | None = None,
) -> Iterable:
    """The endless stream of augmented, normalized training batches from `start_step` on, for `model.fit(steps_per_epoch=...)`.

    Args:
        split, augment, num_classes, batch_size, seed, total_steps: as in `training_batch`.
        mean, std: of a pixel scaled to 0..1; a number, or one for each channel.
        start_step: the step of the first batch: the number of steps already trained.
        image_size: height and width that images are resized to behind the augmentation; None = as they are.
        pipeline: "tf.data" or "PyDataset"; None = "tf.data" under the TensorFlow backend, "PyDataset" under the others, which
            then need not import TensorFlow. The numbers are the same.

    Returns:
        A `tf.data.Dataset` or `keras.utils.PyDataset` of float32 images (B, *image_size, C) and float32 targets (B, K).

    Raises:
        ValueError: batch_size is larger than the split; seed, mean or std are out of range.
    """
    if not 0 < batch_size <= len(split):
        raise ValueError(f"batch_size must be from 1 to the {len(split):,} training examples. Received: {batch_size!r}")
    _check_seed(seed)
    _check_moments(mean, std, split.shape[-1])

    def batch(step):
        images, targets = training_batch(
            split, augment, step, num_classes=num_classes, batch_size=batch_size, seed=seed, total_steps=total_steps
        )
        return resize(normalize(images, mean, std), size), targets

    *size, channels = split.shape if image_size is None else (*image_size, split.shape[-1])
    return stream(batch, start_step, None, (batch_size, *size, channels), (batch_size, num_classes), pipeline)


def evaluation_batches(
    split: Split,
    *,
    num_classes: int,
    batch_size: int,
    mean: float | list[float],
    std: float | list[float],
    pipeline: str | None = None,
) -> Iterable:
    """Every example once, in order, not augmented; the last batch may be smaller.

    Arguments, result and errors are those of `training_batches`; targets are one-hot.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more. Received: {batch_size!r}")
    _check_moments(mean, std, split.shape[-1])

    def batch(step):
        indices = np.arange(step * batch_size, min((step + 1) * batch_size, len(split)))
        return normalize(split.images(indices), mean, std), np.eye(num_classes, dtype=np.float32)[split.labels[indices]]

    count = math.ceil(len(split) / batch_size)
    return stream(batch, 0, count, (None, *split.shape), (None, num_classes), pipeline)


def stream(batch, start, count, image_shape, target_shape, pipeline=None):
    """batch(start), batch(start + 1), ...: `count` of them or, with None, without an end; the shapes are for tf.data."""
    if pipeline not in (None, "tf.data", "PyDataset"):
        raise ValueError(f"pipeline must be 'tf.data', 'PyDataset' or None. Received: {pipeline!r}")
    if (pipeline or ("tf.data" if keras.backend.backend() == "tensorflow" else "PyDataset")) == "PyDataset":
        return _Batches(batch, start, count)
    tf = sources.import_tensorflow()

    batch = _until_exit(batch)

    def load(step):
        images, targets = tf.numpy_function(batch, [step], (tf.float32, tf.float32))
        return tf.ensure_shape(images, image_shape), tf.ensure_shape(targets, target_shape)

    steps = tf.data.Dataset.counter(start) if count is None else tf.data.Dataset.range(start, start + count)
    return steps.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


class _Guard:
    """Ends every tf.data stream when Python exits, and lets Python exit only then.

    An iterator that still lives then (an endless one that a module or an exception holds) is destroyed by the interpreter and waits
    for its calls of Python, which wait for the interpreter: the process would hang for ever.
    """

    def __init__(self):
        self._exiting, self._calls, self._last = threading.Event(), set(), 0.0
        atexit.register(self._wait)

    def __call__(self, batch):
        def guarded(step):
            call = object()
            self._calls.add(call)
            try:
                if self._exiting.is_set():
                    raise StopIteration  # for tf.data, the end
                return batch(step)
            finally:
                self._last = time.monotonic()
                self._calls.discard(call)

        return guarded

    def _wait(self):
        self._exiting.set()
        while self._calls or time.monotonic() < self._last + 0.1:  # 0.1 seconds without a call: no more come
            time.sleep(0.01)


_until_exit = _Guard()


class _Batches(keras.utils.PyDataset):
    """batch(start + index) for `model.fit`, made ahead by threads.

    Keras's own workers are not used: they stop and drain at every epoch's end, and the batch that building the model reads would be
    missing from the stream. NumPy releases Python's lock in all that takes long, so threads do run at the same time. They end with
    this object.
    """

    def __init__(self, batch, start, count):
        super().__init__(workers=1)
        self._batch, self._start, self._count = _on_device(batch), start, count
        threads = min(os.cpu_count() or 1, 8)
        self._pool, self._ahead = concurrent.futures.ThreadPoolExecutor(threads, "batches"), 2 * threads
        self._futures, self._lock = {}, threading.Lock()

    @property
    def num_batches(self):
        return self._count

    def __getitem__(self, index):
        end = index + self._ahead if self._count is None else min(index + self._ahead, self._count)
        with self._lock:
            window = range(index, max(end, index + 1))
            self._futures = {i: self._futures.get(i) or self._pool.submit(self._batch, self._start + i) for i in window}
            future = self._futures.pop(index)
        return future.result()


def _on_device(batch):
    """`batch` whose arrays are JAX's where that is the backend: copied to the device here, by the thread that makes them.

    On a processor, a step that has to wait for its images is run by another thread with other memory, a third slower.
    """
    if keras.backend.backend() != "jax":
        return batch
    import jax

    return lambda step: jax.block_until_ready(jax.device_put(batch(step)))


# Splits


def _carve(split, count, name, seed):
    """(the rest, `count` examples): every class in proportion, never all of a class, both in their order."""
    classes, sizes = np.unique(split.labels, return_counts=True)
    if count > len(split) - len(classes):
        raise ValueError(f"{name} leaves no example for some class: {count:,} of {len(split):,} in {len(classes)} classes")
    wanted = sizes * count / len(split)
    quota = np.minimum(np.floor(wanted).astype(int), sizes - 1)
    for _ in range(count - quota.sum()):  # the largest remainders get one more
        quota[np.argmax(np.where(quota < sizes - 1, wanted - quota, -np.inf))] += 1
    rng = _generator(_SPLIT, seed)
    carved = np.zeros(len(split), bool)
    for label, number in zip(classes, quota, strict=True):
        carved[rng.permutation(np.flatnonzero(split.labels == label))[:number]] = True
    return split.take(np.flatnonzero(~carved)), split.take(np.flatnonzero(carved))


def _count(value, total, name):
    """A share (float) or a number (int) of `total` examples as a number, at least one of each class being left."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < (1 if isinstance(value, float) else total):
        raise ValueError(f"{name} must be a share from 0 to below 1 or a number below the {total:,} examples. Received: {value!r}")
    return round(value * total) if isinstance(value, float) else value


def _fingerprint(name, parts, class_names):
    digest = hashlib.sha256("\n".join([name.partition(":")[0], *class_names]).encode())
    for part in sorted(parts):
        split = parts[part]
        digest.update(f"{part} {len(split)} {split.shape}".encode())
        digest.update(split.labels.astype("<i8").tobytes())
        digest.update(split.images(np.linspace(0, len(split) - 1, min(len(split), 1000)).astype(int)).tobytes())
    return digest.hexdigest()


def _check_labels(name, parts, class_names):
    if "train" not in parts:
        raise ValueError(f"data set {name!r} has no training images")
    for part, split in parts.items():
        if split.labels.max() >= len(class_names):
            raise ValueError(f"{name}: {part} has label {split.labels.max()}; allowed are 0 to {len(class_names) - 1}")
    present = np.bincount(parts["train"].labels, minlength=len(class_names)) > 0
    if present.sum() < 2:
        raise ValueError(f"{name}: at least two classes are needed. Received: {class_names[parts['train'].labels[0]]!r} only")


def _check_seed(seed):
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to 2^32 - 1. Received: {seed!r}")


def _check_moments(mean, std, channels):
    for name, value in (("mean", mean), ("std", std)):
        array = np.asarray(value, np.float64)
        if array.shape not in ((), (1,), (channels,)) or not np.isfinite(array).all() or (name == "std" and (array <= 0).any()):
            raise ValueError(f"{name} must be a number, or {channels} of them{', above 0' * (name == 'std')}. Received: {value!r}")
