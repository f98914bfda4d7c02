"""Where decoded images are kept: in memory if they fit, else in a file that later runs reuse."""

import contextlib
import hashlib
import math
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import psutil

from keras_vit.data.decode import one_line
from keras_vit.files import atomic_path, remove_abandoned


def keep(
    chunks: Iterable[tuple[np.ndarray, np.ndarray]],
    count: int,
    shape: tuple[int, int, int],
    cache: tuple[Path, str],
    part: str,
    notes: list[str],
) -> tuple[np.ndarray, np.ndarray]:
    """Collects chunks of images (n, H, W, C) and labels (n,).

    Args:
        chunks: An iterable that decodes lazily.
        count: Number of images M in all chunks.
        shape: (H, W, C).
        cache: Folder and name of the file.
        part: `train`, `validation` or `test`.
        notes: Gets a line that says where the images are.

    Returns:
        uint8 (M, H, W, C), an array or a memory map, and labels (M,).

    Raises:
        ValueError: If the number of images is not `count`, or the file cannot be written.
    """
    size, what = count * math.prod(shape), f"{part}: {count:,} images"
    if size <= memory_limit():
        images, labels, done = np.empty((count, *shape), np.uint8), np.full(count, -1, np.int64), 0
        for chunk, chunk_labels in chunks:
            images[done : done + len(chunk)], labels[done : done + len(chunk)] = chunk, chunk_labels
            done += len(chunk)
        check_complete(done, count, part)
        notes.append(f"{what} in memory ({size / 1e6:,.0f} MB)")
        return images, labels
    folder, name = cache
    if os.access(folder, os.W_OK):
        folder = folder / ".keras_vit"
    else:
        source = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]  # the last part alone may be a version
        folder = Path("~/.cache/keras_vit").expanduser() / source
    suffix = f"-{'x'.join(map(str, shape))}.npy"
    file = folder / f"{name}{suffix}"
    labels_file = labels_of(file)
    try:
        if not (file.is_file() and labels_file.is_file() and len(np.load(labels_file)) == count):
            folder.mkdir(parents=True, exist_ok=True)
            remove_abandoned(folder)
            for old in folder.glob(f"{part}*{suffix}"):  # an earlier state of the same part
                old.unlink(missing_ok=True)
                labels_of(old).unlink(missing_ok=True)
            write(chunks, count, shape, file, part)
    except OSError as error:
        raise ValueError(f"data: {what} need {size / 1e6:,.0f} MB in {str(folder)!r}: {one_line(error)}") from error
    notes.append(f"{what} on disk ({size / 1e6:,.0f} MB), as they do not fit in a third of the free memory: {file}")
    return np.load(file, mmap_mode="r"), np.load(labels_file)


def labels_of(file):
    return file.with_suffix(".labels.npy")


def write(chunks, count, shape, file, part):
    # Written in order, not through a memory map: a full disk then raises an error instead of killing the process.
    labels = []
    with atomic_path(file) as temporary:
        with open(temporary, "wb") as out:
            header = {"shape": (count, *shape), "fortran_order": False, "descr": "|u1"}
            np.lib.format.write_array_header_1_0(out, header)
            for chunk, chunk_labels in chunks:
                out.write(np.ascontiguousarray(chunk))
                labels.append(chunk_labels)
        check_complete(sum(map(len, labels)), count, part)
        np.save(labels_of(file), np.concatenate(labels))  # before the images: if they exist, the labels do too


def check_complete(found, count, part):
    if found != count:
        raise ValueError(f"data: received {found:,} {part} images; allowed: {count:,}; prepare the data set again")


def memory_limit() -> int:
    """Bytes that the images of one part may take: a third of what is free now, within the container's limit."""
    available = [psutil.virtual_memory().available]
    with contextlib.suppress(OSError, ValueError):  # no container, or no limit ("max")
        limit, used = (int(Path("/sys/fs/cgroup", file).read_text()) for file in ("memory.max", "memory.current"))
        available.append(max(limit - used, 0))
    return min(available) // 3
