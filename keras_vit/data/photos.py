"""Encoded pictures that stay where they are, in files or records: checked once, decoded when a batch asks for them.

Shapes: M pictures, B of a batch, H height, W width, C channels.
"""

import math
import os
import re
import typing
import warnings
from collections.abc import Callable, Iterable

import numpy as np

from keras_vit.data.decode import inspect_image, one_line, parallel, read_crop, read_image
from keras_vit.machine import memory_limit

SHOWN = 3  # pictures named in a note
NAMED_FILE = re.compile(r" (<_io\..*>|'.*')$")  # by which Pillow's errors end: a path, or an object and its address


class Source(typing.Protocol):
    """Where `Photos` finds encoded pictures.

    Attributes:
        labels: int64 (M,), or int8 (M, K) where a picture may have any number of classes.
        sizes: int32 (M, 2), height and width of each picture once it is upright; 0 if it cannot be read.
        digests: uint8 (M, 16), a hash of each picture's bytes.
    """

    labels: np.ndarray
    sizes: np.ndarray
    digests: np.ndarray

    def open(self, row: int) -> str | os.PathLike | typing.BinaryIO:
        """An encoded picture, as a path or as a file in memory."""

    def name(self, row: int) -> str:
        """What the user is told of a picture."""


class Photos:
    """Encoded pictures as an array of decoded images: `photos[rows]` decodes them.

    Decoded images are kept if all of them fit in memory (`memory_limit`). Crops are decoded anew each time.

    Args:
        source: The `Source`.
        shape: (H, W, C) of a decoded image.
        center_crop: As of `read_image`.

    Attributes:
        shape: (M, H, W, C).
        sizes, digests: As of the source.
        labels: As of the source; -1 for a picture that cannot be read.
    """

    def __init__(self, source: Source, shape: tuple[int, int, int], center_crop: float = 1.0):
        self.center_crop = center_crop
        self.source, self.sizes, self.digests = source, source.sizes, source.digests
        self.labels = np.array(source.labels)
        self.labels[~(self.sizes > 0).all(axis=1)] = -1
        self.shape = (len(self.labels), *shape)
        self._kept = np.empty(self.shape, np.uint8) if math.prod(self.shape) <= memory_limit() else None  # takes no memory yet
        self._known = np.zeros(len(self.labels), bool)

    @property
    def in_memory(self) -> bool:
        """Whether decoded images are kept."""
        return self._kept is not None

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, C): the pictures at `rows` (B,), resized to cover H x W and cut to their middle."""
        if self._kept is None:
            return np.stack([self._read(read_image, row, self.shape[1:], self.center_crop) for row in rows])
        for row in rows[~self._known[rows]]:
            self._kept[row] = self._read(read_image, row, self.shape[1:], self.center_crop)
            self._known[row] = True
        return self._kept[rows]

    def crops(self, rows: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """uint8 (B, *size, C): a part of each picture, decoded no larger than needed. `boxes` as of `random_boxes`."""
        shape = (*size, self.shape[-1])
        return np.stack([self._read(read_crop, row, shape, box) for row, box in zip(rows, boxes, strict=True)])

    def _read(self, reader, row, *arguments):
        try:
            return reader(self.source.open(row), *arguments)
        except Exception as error:  # Pillow's parsers raise whatever a broken file leads them to
            file = str(getattr(error, "filename", None) or self.source.name(row))
            raise ValueError(f"data: {file!r} was readable and is no longer: {reason(error)}") from error


def collect(source: Source, part: str, shape: tuple[int, int, int], notes: list[str]) -> tuple[Photos, np.ndarray]:
    """The `Photos` and labels of a part; pictures that cannot be read have label -1, and are named in a note and a warning."""
    photos = Photos(source, shape)
    size = f"{math.prod(photos.shape) / 1e6:,.0f} MB"
    where = f"kept in memory ({size})" if photos.in_memory else f"decoded as they are needed (all of them would take {size})"
    notes.append(f"{part}: {len(photos.labels):,} images, {where}")
    skipped = np.flatnonzero((photos.sizes == 0).any(axis=1))
    if len(skipped):
        reasons = parallel(lambda row: problem(source, row, shape[-1]), skipped[:SHOWN])
        named = "; ".join(f"{source.name(row)}: {reason}" for row, reason in zip(skipped[:SHOWN], reasons, strict=True))
        more = "; ..." * (len(skipped) > SHOWN)
        notes.append(f"{part}: skipped {len(skipped)} of {len(photos.labels)} images ({named}{more})")
        warnings.warn(notes[-1], stacklevel=5)
    return photos, photos.labels


def examine_all(open_picture: Callable, rows: Iterable, channels: int = 3) -> dict[str, np.ndarray]:
    """`sizes` and `digests` of a source: reads every picture once. `open_picture(row)` is what `Source.open` returns."""

    def examine(row):
        try:
            return inspect_image(open_picture(row), channels)
        except Exception:  # Pillow's parsers raise whatever a broken file leads them to; `problem` says what is wrong
            return (0, 0), bytes(16)

    found = parallel(examine, rows)
    sizes = np.array([size for size, _ in found], np.int32).reshape(-1, 2)
    return {"sizes": sizes, "digests": np.frombuffer(b"".join(digest for _, digest in found), np.uint8).reshape(-1, 16)}


def problem(source, row, channels):
    try:
        inspect_image(source.open(row), channels)
    except Exception as error:
        return reason(error)
    return "could not be read before"


def reason(error):
    """Why a picture cannot be read, in one line; its name stands beside it."""
    return getattr(error, "strerror", None) or NAMED_FILE.sub("", one_line(error)).removeprefix("image: ")
