"""A data set's name, folder or file -> train, validation and test images of one size, uint8, in memory or decoded when needed.

Shapes: M images of a part, N of a split, B of a batch, H height, W width, C channels, K classes.
"""

import dataclasses
import functools
import hashlib
import re
from pathlib import Path

import numpy as np

from keras_vit.checks import as_pair, check_choice, check_int, check_number, check_seed, visible
from keras_vit.data.arrays import read_arrays
from keras_vit.data.decode import crop, picture
from keras_vit.data.digits import read_digits
from keras_vit.data.folder import read_folder, read_pictures
from keras_vit.data.labels import (
    KINDS,
    NONE,
    Members,
    check_memory,
    choose,
    choose_multi,
    is_known,
    is_multi,
    members_of,
    multi_hot,
)
from keras_vit.data.photos import Photos
from keras_vit.data.seeds import SPLIT, generator
from keras_vit.data.table import read_csv
from keras_vit.data.tfds import Unavailable, read_tfds

TEST_SHARE = 0.2  # of a data set that has no test images of its own
VALIDATION_SHARE, VALIDATION_COUNT = 0.1, 5000  # carved out of train by default: a share, but at most this number
FINGERPRINTED = 1000  # images of each part that the fingerprint depends on


class Split:
    """Labelled images in a fixed order, with random access.

    Args:
        images: uint8 (M, H, W, C), an array or `Photos`.
        labels: integers (M,), or zeros and ones (M, K) where an image may have any number of classes.
        rows: integers (N,), which of the M belong to this split, in order; None = all whose label is not negative.

    Attributes:
        labels: int64 (N,), or int8 (N, K).
        shape: (H, W, C).
    """

    def __init__(self, images: np.ndarray | Photos, labels: np.ndarray, rows: np.ndarray | None = None):
        self._images, self._labels = images, labels
        self._rows = np.flatnonzero(is_known(labels)) if rows is None else rows
        self.labels = labels[self._rows].astype(np.int8 if is_multi(labels) else np.int64)
        self.shape = images.shape[1:]

    def __len__(self):
        return len(self.labels)

    @functools.cached_property
    def members(self) -> Members:
        """The images of each class."""
        return members_of(self.labels)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, C): a copy of the images at `indices` (B,)."""
        return np.asarray(self._images[self._rows[indices]])

    def sizes(self, indices: np.ndarray) -> np.ndarray:
        """Height and width (B, 2) of the pictures at `indices` (B,), before they were resized if they are `Photos`."""
        if isinstance(self._images, Photos):
            return self._images.sizes[self._rows[indices]]
        return np.broadcast_to(self.shape[:2], (len(indices), 2))

    def crops(self, indices: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """uint8 (B, *size, C): a part of each picture, resized; `Photos` decode anew. `boxes` (B, 4) as of `read_crop`."""
        if isinstance(self._images, Photos):
            return self._images.crops(self._rows[indices], boxes, size)
        shape = (*size, self.shape[-1])
        pairs = zip(self.images(indices), boxes, strict=True)
        return np.stack([crop(picture(image, self.shape[-1]), shape, box) for image, box in pairs])

    def digests(self, indices: np.ndarray) -> list[bytes]:
        """A hash of each image at `indices` (B,): of `Photos` of the encoded bytes, else of the pixels."""
        if isinstance(self._images, Photos):
            return [digest.tobytes() for digest in self._images.digests[self._rows[indices]]]
        return [hashlib.blake2b(image, digest_size=16).digest() for image in self.images(indices)]

    def without_labels(self) -> "Split":
        """The same images, each with label 0."""
        return Split(self._images, np.zeros(len(self._labels), np.int64), self._rows)

    def take(self, indices: np.ndarray) -> "Split":
        """The split of the examples at `indices`, in that order; the pixels are shared."""
        return Split(self._images, self._labels, self._rows[indices])


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Train, validation and test images of one size.

    Attributes:
        name: The name asked for; for `auto` the data set that was found, `cifar10` or `digits`.
        train: Fits the weights.
        validation: Decides choices; None if there is none.
        test: Read once, at the end.
        class_names: K names, in the order of the labels.
        fingerprint: SHA-256 (hex) of names, labels and up to 1,000 evenly spaced images of each part, before validation is carved
            out of train. It depends on the image size, and for `Photos` on the encoded bytes, but not on the seed.
        notes: Lines for the user: where images are kept, what was skipped, how the parts were made.
        fallback: Why `auto` did not get CIFAR-10; empty when the data set is the one asked for.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split | None
    class_names: list[str]
    fingerprint: str
    notes: list[str]
    fallback: str = ""

    @property
    def parts(self) -> dict[str, Split]:
        """The splits that there are, by their names."""
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of classes."""
        return is_multi(self.train.labels)


def load_data(
    name: str,
    *,
    data_dir: str | None = None,
    image_size: int | tuple[int, int],
    channels: int = 3,
    validation: int | float | None = None,
    subset: int | float | None = None,
    seed: int = 0,
    labels: str = "auto",
    center_crop: float = 1.0,
) -> DataSet:
    """Loads a data set as uint8 images of one size.

    Args:
        name: `auto` (CIFAR-10 if prepared or downloadable, otherwise digits); `digits` (scikit-learn's 1,797 of 8x8 pixels);
            `arrays:FILE.npz` (see `read_arrays`); `folder:PATH` (a folder of images for each class, or train/, test/ and
            validation/ with such folders); `csv:FILE` (a row an image, see `read_csv`); or the name of a TensorFlow data set with
            `image` and `label`: `cifar10`, `cifar100`, `mnist`, `fashion_mnist`...
        data_dir: Where prepared TensorFlow data sets lie; None = TFDS_DATA_DIR, then TFDS's own default.
        image_size: Pixels, one number or (height, width). Images of another size are resized (bicubic, antialiased) to cover it,
            and cut to their middle.
        channels: 1 (grey), 3 (RGB), or another number for arrays and files with just as many.
        validation: Images carved out of train: a share (float below 1), a number (int), 0 = none, None = the data set's own
            validation images if it has test images too, else a tenth, at most 5,000.
        subset: Training images that are left after that: a share (float below 1), a number (int), None = all; each class in
            proportion.
        seed: Decides which training images become validation images, and the subset; the test images do not depend on it.
        labels: `single` (one class an image), `multi` (any number), `auto`: the data decides, or `none`: they are not needed. The
            parts are those of the same data with labels, if it has some; the data set has no classes, and each label is 0. Data
            without labels has no test images unless it is split already.
        center_crop: Share of a picture's height and width that its image shows, from the middle, above 0 to 1; for `Photos`.

    Raises:
        ValueError: If name, path or contents are not usable.
    """
    height, width = as_pair("image_size", image_size)
    check_int("channels", channels, at_least=1)
    check_choice("labels", labels, (*KINDS, NONE))
    check_number("center_crop", center_crop, above=0, at_most=1)
    check_seed(seed)
    shape, notes, fallback = (height, width, channels), [], ""
    if name == "auto":
        try:
            name, (parts, class_names) = "cifar10", read_source("cifar10", data_dir, shape, notes, labels)
        except Unavailable as error:
            fallback, notes = error.reason, []
            name, (parts, class_names) = "digits", read_source("digits", data_dir, shape, notes, labels)
    else:
        parts, class_names = read_source(name, data_dir, shape, notes, labels)
    class_names = [visible(class_name) for class_name in class_names]
    if len(set(class_names)) < len(class_names):
        twice = next(class_name for class_name in class_names if class_names.count(class_name) > 1)
        raise ValueError(f"data: received {name!r} with two classes {twice!r}; allowed: names that differ as they are shown")
    if center_crop != 1:
        parts = {part: (with_center_crop(images, center_crop), given) for part, (images, given) in parts.items()}
    parts = {part: Split(*arrays) for part, arrays in parts.items() if is_known(arrays[1]).any()}
    if labels != NONE:
        check_labels(name, parts, class_names)
    elif "train" not in parts:
        raise ValueError(f"data: received {name!r} without readable training images; allowed: a data set with some")
    fingerprint = fingerprint_of(name, parts, class_names)

    if "test" not in parts and "validation" in parts and class_names:
        parts["test"] = parts.pop("validation")
        notes.append("its validation images are used as test images, as it has no labelled ones of its own")
    if "test" not in parts and class_names:
        count = round(TEST_SHARE * len(parts["train"]))
        if count:
            parts["train"], parts["test"] = carve(parts["train"], count, "test", seed=0)
            notes.append(f"{count:,} of its images (stratified, the same for every seed) are the test images")
    if validation is not None or "validation" not in parts:
        parts.pop("validation", None)
        count = validation_count(validation, len(parts["train"]))
        if count:
            parts["train"], parts["validation"] = carve(parts["train"], count, "validation", seed)
    if subset is not None:
        count = part_of("subset", subset, len(parts["train"]))
        parts["train"] = carve(parts["train"], len(parts["train"]) - count, "subset", seed)[0]
    if labels == NONE:
        parts, class_names = {part: split.without_labels() for part, split in parts.items()}, []
    for part in ("validation", "test"):
        if part in parts and (count := repeated(parts["train"], parts[part])):
            notes.append(f"{part}: {count:,} of {len(parts[part]):,} images are also among the training images")
    sizes = ", ".join(f"{len(parts[part]):,} {part}" for part in ("train", "validation", "test") if part in parts)
    several = ", any number an image" if is_multi(parts["train"].labels) else ""
    classes = f"{len(class_names)} classes{several}" if labels != NONE else "no labels"
    notes.insert(0, f"{name}: {sizes}; {classes}; {height}x{width}x{channels}")
    return DataSet(name, parts["train"], parts.get("validation"), parts.get("test"), class_names, fingerprint, notes, fallback)


def with_center_crop(images, share):
    if not isinstance(images, Photos):
        raise ValueError(f"center_crop: received {share:g}; allowed: 1, for images that are kept in memory in one size")
    return Photos(images.source, images.shape[1:], share)


def short_name(name: str) -> str:
    """The name of a data set as a part of a file's name: `photos` for folder:my/photos, `a` for arrays:a.npz or csv:a.csv."""
    kind, _, path = name.partition(":")
    name = Path(path).resolve().stem if kind in ("folder", "arrays", "csv") else name
    return re.sub(r"[^\w.-]+", "-", name).strip("-") or kind


def read_source(
    name: str, data_dir: str | None, shape: tuple[int, int, int], notes: list[str], labels: str = "auto"
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], list[str]]:
    """Reads the images of a data set in one shape (H, W, C).

    Returns:
        {part: (images uint8 (M, H, W, C), labels integers (M,) or (M, K))} with parts `train`, `validation` and `test`, and K class
        names; none, and labels of 0, for data without labels. Labels of -1 mark an image that could not be read. `notes` gets lines
        for the user.
    """
    kind, _, path = name.partition(":")
    if labels == NONE and kind in ("csv", "arrays"):
        try:
            known = []
            found = read_source(name, data_dir, shape, known, "auto")  # labels that there are decide the parts, as in training
            notes += known
            return found
        except ValueError:  # of the labels, or of what is read below too
            return read_csv(path, shape, notes, NONE) if kind == "csv" else read_arrays(path, shape, labelled=False)
    if name == "digits":
        parts, names = read_digits(shape)
    elif kind == "folder":
        parts, names = (read_pictures if labels == NONE else read_folder)(path, shape, notes)
    elif kind == "csv":
        parts, names = read_csv(path, shape, notes, labels)
    elif kind == "arrays":
        parts, names = read_arrays(path, shape)
    else:
        parts, names = read_tfds(name, data_dir, shape, notes)
    if labels == "single" and is_multi(parts["train"][1]):
        raise ValueError(f"labels: received 'single'; allowed: multi or auto, for the labels (N, K) of {name}")
    if labels == "multi" and not is_multi(parts["train"][1]):
        count = sum(len(given) for _, given in parts.values())
        check_memory(f"labels: received 'multi', for {count:,} images of {len(names):,} classes,", count * len(names))
        parts = {part: (images, multi_hot(given, len(names))) for part, (images, given) in parts.items()}
    return parts, names


def carve(split: Split, count: int, name: str, seed: int) -> tuple[Split, Split]:
    """Splits off `count` examples, each class in proportion, never a whole class; returns (rest, split off), in order."""
    labels, rng = split.labels, generator(SPLIT, seed)
    if is_multi(labels):
        carved = choose_multi(labels, count, rng)
        most, classes = carved.sum(), int(labels.any(axis=0).sum())
    else:
        classes = len(np.unique(labels))
        most = min(count, len(split) - classes)
        carved = choose(labels, most, rng)
    if count > most:
        raise ValueError(
            f"{name}: received {count:,} of {len(split):,} images; allowed: at most {most:,}, so that each of {classes} classes "
            "keeps one"
        )
    return split.take(np.flatnonzero(~carved)), split.take(np.flatnonzero(carved))


def validation_count(value, total: int) -> int:
    """A share (float), a number (int) or the default (None) of `total` images, as a number."""
    return min(round(VALIDATION_SHARE * total), VALIDATION_COUNT) if value is None else part_of("validation", value, total)


def part_of(name: str, value: int | float, total: int) -> int:
    """A share (float) or a number (int) of `total` images, as a number."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < (1 if isinstance(value, float) else total):
        raise ValueError(f"{name}: received {value!r}; allowed: a share from 0 to below 1, or a number below {total:,}")
    return round(value * total) if isinstance(value, float) else value


def repeated(train: Split, other: Split) -> int:
    """Images of one split that are, pixel by pixel or file by file, those of another."""
    known = set(digests(train))
    return sum(digest in known for digest in digests(other))


def digests(split):
    for start in range(0, len(split), FINGERPRINTED):
        yield from split.digests(np.arange(start, min(start + FINGERPRINTED, len(split))))


def fingerprint_of(name: str, parts: dict[str, Split], class_names: list[str]) -> str:
    digest = hashlib.sha256("\n".join([name.partition(":")[0], *class_names]).encode())
    for part in sorted(parts):
        split = parts[part]
        digest.update(f"{part} {len(split)} {split.shape}".encode())
        digest.update(split.labels.astype("<i8").tobytes() if split.labels.ndim == 1 else np.packbits(split.labels).tobytes())
        evenly = np.linspace(0, len(split) - 1, min(len(split), FINGERPRINTED)).astype(int)
        for each in split.digests(evenly):
            digest.update(each)
    return digest.hexdigest()


def check_labels(name: str, parts: dict[str, Split], class_names: list[str]) -> None:
    if "train" not in parts:
        raise ValueError(f"data: received {name!r} without training images; allowed: a data set with some")
    if is_multi(parts["train"].labels):
        return
    for part, split in parts.items():
        if split.labels.max() >= len(class_names):
            raise ValueError(
                f"data: received label {split.labels.max()} in {part} of {name!r}; allowed: 0 to {len(class_names) - 1}"
            )
    present = np.unique(parts["train"].labels)
    if len(present) < 2:
        raise ValueError(f"data: received {name!r} with class {class_names[present[0]]!r} alone; allowed: two classes or more")
