"""A file of a teacher's logits of the training images, in their order.

Shapes: N training images, K classes.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from keras_vit.archives import open_arrays
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
    check(logits, "logits: received", data)
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
    try:
        logits, known = read(path)
    except (OSError, ValueError, KeyError, SafetensorError, EOFError) as error:
        raise refused(f"logits:{path}", f"which is damaged ({' '.join(str(error).split())[:200]})", "one array of logits") from None
    if "classes" in known and plain_json(known["classes"]) != data.class_names:
        raise refused(f"logits:{path}", "logits of other classes", f"those of {data.name}, in their order")
    check(logits, f"distill.teacher: received 'logits:{path}' with", data)
    if "images" not in known:
        notes.append("teacher: the file does not say of which images its logits are; keras_vit.save_logits writes one that does")
    elif known["images"] != order_of(data):
        raise refused(
            f"logits:{path}", "logits of other images, or in another order", f"those of the training images of {data.name}"
        )
    return np.asarray(logits, np.float32)


def read(path):
    if path.suffix == ".safetensors":
        with safe_open(path, "np") as file:
            return file.get_tensor(NAME), file.metadata() or {}
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False), {}
    archive = open_arrays(path)
    if len(archive.shapes) != 1:
        raise ValueError(f"received {len(archive.shapes)} arrays; allowed: one")
    return archive.read(next(iter(archive.shapes))), {}


def check(logits, received, data):
    """Raises a ValueError, which begins with `received`, for logits that cannot be those of the training images."""
    shape = (len(data.train), len(data.class_names))
    if logits.shape != shape or logits.dtype.kind not in "fiu":
        allowed = f"{shape}, a row for each training image of {data.name} and a column for each class"
        raise ValueError(f"{received} {logits.dtype} {logits.shape}; allowed: {allowed}")
    if not np.isfinite(logits).all():
        raise ValueError(f"{received} logits that are not finite: the teacher has diverged; allowed: finite logits")


def order_of(data: DataSet) -> str:
    """SHA-256 (hex) of the training images and their order."""
    digest = hashlib.sha256()
    for each in digests(data.train):
        digest.update(each)
    return digest.hexdigest()
