"""Encoded pictures that stay where they are: checked once, decoded when a batch asks for them.

Shapes: M pictures, B of a batch, H height, W width, C channels.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_vit.data.decode import inspect_image, one_line, parallel, read_crop, read_image
from keras_vit.data.store import memory_limit
from keras_vit.files import atomic_path

CHECKED = Path("~/.cache/keras_vit/checked")  # what is known of files that have not changed since


class Photos:
    """Picture files as an array of decoded images: `photos[rows]` decodes them.

    Decoded images are kept if all of them fit in memory (`memory_limit`). Crops are decoded anew each time.

    Args:
        files: M paths.
        shape: (H, W, C) of a decoded image.

    Attributes:
        shape: (M, H, W, C).
        sizes: int32 (M, 2), height and width of each picture once it is upright; 0 if it cannot be read.
        digests: uint8 (M, 16), a hash of each file's bytes.
    """

    def __init__(self, files: Sequence[Path], shape: tuple[int, int, int]):
        self.files, self.shape = files, (len(files), *shape)
        self.sizes, self.digests = check_files(files)
        self._kept = np.empty(self.shape, np.uint8) if math.prod(self.shape) <= memory_limit() else None  # takes no memory yet
        self._known = np.zeros(len(files), bool)

    @property
    def in_memory(self) -> bool:
        """Whether decoded images are kept."""
        return self._kept is not None

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, C): the pictures at `rows` (B,), resized to cover H x W and cut to their middle."""
        if self._kept is None:
            return np.stack([self._read(read_image, row, self.shape[1:]) for row in rows])
        for row in rows[~self._known[rows]]:
            self._kept[row] = self._read(read_image, row, self.shape[1:])
            self._known[row] = True
        return self._kept[rows]

    def crops(self, rows: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """uint8 (B, *size, C): a part of each picture, decoded no larger than needed. `boxes` as of `random_boxes`."""
        shape = (*size, self.shape[-1])
        return np.stack([self._read(read_crop, row, shape, box) for row, box in zip(rows, boxes, strict=True)])

    def _read(self, reader, row, *arguments):
        try:
            return reader(self.files[row], *arguments)
        except Exception as error:  # Pillow's parsers raise whatever a broken file leads them to
            raise ValueError(f"data: {str(self.files[row])!r} was readable and is no longer: {one_line(error)}") from error


def check_files(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """`sizes` and `digests` of `Photos`: reads every file once, and again only if the files have changed."""
    state = hashlib.sha256("\n".join(map(state_of, files)).encode("utf-8", "surrogateescape")).hexdigest()
    known = CHECKED.expanduser() / f"{state[:32]}.npz"
    try:
        with np.load(known, allow_pickle=False) as arrays:
            return arrays["sizes"], arrays["digests"]
    except (OSError, ValueError, KeyError, EOFError):
        pass
    found = parallel(examine, files)
    sizes = np.array([size for size, _ in found], np.int32).reshape(-1, 2)
    digests = np.frombuffer(b"".join(digest for _, digest in found), np.uint8).reshape(-1, 16)
    try:
        known.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(known) as temporary, open(temporary, "wb") as out:
            np.savez(out, sizes=sizes, digests=digests)
    except OSError:
        pass  # no home, or a full one: the next run reads the files again
    return sizes, digests


def state_of(file):
    try:
        found = os.stat(file)
    except OSError:  # a link that leads nowhere
        return str(file)
    return f"{file} {found.st_size} {found.st_mtime_ns}"


def examine(file):
    try:
        return inspect_image(file)
    except Exception:  # Pillow's parsers raise whatever a broken file leads them to; `problem` says what is wrong
        return (0, 0), bytes(16)
