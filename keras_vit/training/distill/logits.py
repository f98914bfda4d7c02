"""A file of a teacher's logits of the training images, in their order.

Shapes: N training images, K classes.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from keras_vit.archives import DAMAGED, open_arrays, reason
from keras_vit.data.dataset import DataSet, digests
from keras_vit.files import atomic_path, plain_json
from keras_vit.runs.arrays import write_arrays
from keras_vit.training.distill.sources import refused

NAME = "logits"  # of the array
SUFFIXES = (".safetensors", ".npz", ".npy")


def save_logits(path: str | os.PathLike, logits: np.ndarray, data: DataSet) -> None:
    """Writes a teacher's logits for `distill.teacher: logits:FILE`, with what tells whose images and classes they are.

    Args:
        path: A file whose name ends in .safetensors.
        logits: (N, K), of `data.train.images(...)` in their order.
        data: The `DataSet` of the student's recipe, `recipe.load_data()`.

    Raises:
        ValueError: For another name, logits of another shape, and logits that are not finite.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"path: received {str(path)!r}; allowed: a name that ends in .safetensors")
    logits = np.ascontiguousarray(logits, np.float32)
    check_shape(logits.shape, "logits: received", data)
    check(logits, "logits: received")
    known = {"images": order_of(data), "classes": json.dumps(data.class_names, ensure_ascii=False)}
    with atomic_path(path) as temporary:
        write_arrays(temporary, {NAME: logits}, known)


def read_logits(path: Path, data: DataSet, notes: list[str]) -> np.ndarray:
    """The logits (N, K) in a file, which must be those of a data set's training images; `notes` gets lines for the user.

    Raises:
        ValueError: In one line, for a file that cannot be read, logits of another number of images, of other images or classes.
    """
    if path.suffix not in SUFFIXES or not path.is_file():
        raise refused(f"logits:{path}", "which is no such file", f"a file ({', '.join(SUFFIXES)})")
    with intact(path):
        shape, known, load = opened(path)
        classes = plain_json(known["classes"]) if "classes" in known else data.class_names
    received = f"distill.teacher: received 'logits:{path}' with"
    check_shape(shape, received, data)  # before they are in memory
    with intact(path):
        logits = load()
    if classes != data.class_names:
        raise refused(f"logits:{path}", "logits of other classes", f"those of {data.name}, in their order")
    check(logits, received)
    if "images" not in known:
        notes.append("teacher: the file does not say of which images its logits are; keras_vit.save_logits writes one that does")
    elif known["images"] != order_of(data):
        raise refused(
            f"logits:{path}", "logits of other images, or in another order", f"those of the training images of {data.name}"
        )
    return np.asarray(logits, np.float32)


@contextlib.contextmanager
def intact(path):
    """Within it, what damaged files raise is an error of one line."""
    try:
        yield
    except (*DAMAGED, SafetensorError) as error:
        raise refused(f"logits:{path}", f"which is damaged ({reason(error)})", "one array of logits") from None


def opened(path):
    """Shape of the array in a file, the file's metadata, and a function that reads the array."""
    if path.suffix == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return array.shape, {}, lambda: array
    if path.suffix == ".npz":
        archive = open_arrays(path)
        if len(archive.shapes) != 1:
            raise ValueError(f"received {len(archive.shapes)} arrays; allowed: one")
        ((name, shape),) = archive.shapes.items()
        return shape, {}, lambda: archive.read(name)
    file = safe_open(path, "np")
    return tuple(file.get_slice(NAME).get_shape()), file.metadata() or {}, lambda: file.get_tensor(NAME)


def check_shape(shape, received, data):
    """Raises a ValueError, which begins with `received`, for logits of another number of images or classes."""
    expected = (len(data.train), len(data.class_names))
    if shape != expected:
        allowed = f"{expected}, a row for each training image of {data.name} and a column for each class"
        raise ValueError(f"{received} shape {shape}; allowed: {allowed}")


def check(logits, received):
    """Likewise, for what are no logits, and for those that are not finite."""
    if logits.dtype.kind not in "fiu":
        raise ValueError(f"{received} type {logits.dtype}; allowed: numbers")
    if not np.isfinite(logits).all():
        raise ValueError(f"{received} logits that are not finite: the teacher has diverged; allowed: finite logits")


def order_of(data: DataSet) -> str:
    """SHA-256 (hex) of the training images and their order."""
    digest = hashlib.sha256()
    for each in digests(data.train):
        digest.update(each)
    return digest.hexdigest()
