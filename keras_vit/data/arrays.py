"""A .npz file of arrays as a data set."""

import math
from pathlib import Path

import numpy as np

from keras_vit.archives import open_arrays
from keras_vit.checks import visible
from keras_vit.data.decode import CONVERTED, to_shape
from keras_vit.data.labels import check_memory, is_multi

SUFFIXES = {"train": "train", "validation": "val", "test": "test"}  # arrays x_train, y_train and so on
MAX_LABEL = 2**20 - 1


def read_arrays(path: str, shape: tuple[int, int, int], labelled: bool = True) -> tuple[dict, list[str]]:
    """Images and labels by part, and the class names; see `dataset.read_source`.

    Args:
        path: A .npz file with x_train, y_train and, if it has them, x_val, y_val, x_test, y_test: images (N, H, W) or
            (N, H, W, C), uint8 or float from 0 to 1, and whole numbers (N,) from 0 on. Each number in y_train is a class, and its
            name: {0, 255} are two classes. Labels of zeros and ones (N, K), K of at least 2, are multi-hot: any number of classes
            an image, and at least one training image for each class.
        shape: (H, W, C) wanted.
        labelled: Whether labels are read; otherwise y_train and so on may be missing, and there are no classes.

    Raises:
        ValueError: If there is no such file, or its arrays do not fit.
    """
    arrays, parts = load(path), {}
    for part, suffix in SUFFIXES.items():
        x, y = f"x_{suffix}", f"y_{suffix}"
        if part != "train" and x not in arrays.shapes and (y not in arrays.shapes or not labelled):
            continue
        for key in (x, y) if labelled else (x,):
            if key not in arrays.shapes:
                held = visible(", ".join(sorted(arrays.shapes)[:10]))
                raise ValueError(f"{key}: received none in {path!r}, which has {held}; allowed: an array")
        try:
            images, labels = arrays.read(x), arrays.read(y) if labelled else None
        except ValueError as error:
            raise ValueError(f"data: received {f'arrays:{path}'!r}, which is damaged ({error}); allowed: intact arrays") from None
        images = pixels(images, x, shape[-1])
        labels = read_labels(labels, y) if labelled else np.zeros(len(images), np.int64)
        if len(images) != len(labels):
            raise ValueError(f"{y}: received {len(labels):,} labels; allowed: {len(images):,}, the images of {x}")
        check_memory(f"{x}: received {len(images):,} images, in {shape[0]}x{shape[1]}x{shape[2]}", len(images) * math.prod(shape))
        parts[part] = (to_shape(images, shape), labels)
    if not labelled:
        return parts, []
    trained = parts["train"][1]
    for part, (_, labels) in parts.items():
        if labels.shape[1:] != trained.shape[1:]:
            raise ValueError(f"y_{SUFFIXES[part]}: received shape {labels.shape}; allowed: {('N', *trained.shape[1:])}, as y_train")
    if is_multi(trained):
        for label in np.flatnonzero(~trained.any(axis=0)):
            raise ValueError(f"y_train: received no image of class {label}, of {trained.shape[1]:,}; allowed: one or more of each")
        return parts, [str(label) for label in range(trained.shape[1])]
    values = np.unique(trained)
    for part, (_, labels) in parts.items():
        unknown = np.setdiff1d(labels, values)
        if len(unknown):
            known = ", ".join(map(str, values[:10])) + ", ..." * (len(values) > 10)
            raise ValueError(f"y_{SUFFIXES[part]}: received label {unknown[0]}; allowed, as in y_train: {known}")
    parts = {part: (images, np.searchsorted(values, labels)) for part, (images, labels) in parts.items()}
    return parts, [str(value) for value in values]


def load(path):
    """The archive, opened."""
    file, received = Path(path).expanduser(), f"data: received {f'arrays:{path}'!r}"
    if not file.is_file():
        raise ValueError(f"{received}: there is no such file; allowed: arrays:FILE.npz")
    try:
        arrays = open_arrays(file)
    except ValueError as error:
        raise ValueError(f"{received}, which cannot be read ({error}); allowed: a .npz file of numbers") from None
    check_memory(received, arrays.bytes)
    return arrays


def pixels(images, key, channels):
    """(N, H, W) or (N, H, W, C), uint8 or float 0..1 -> uint8 (N, H, W, C)."""
    if images.ndim == 3:
        images = images[..., None]
    wanted = CONVERTED if channels in CONVERTED else (channels,)
    if images.ndim != 4 or images.shape[-1] not in wanted or 0 in images.shape:
        shapes = ["(N, H, W)"] * (1 in wanted) + [f"(N, H, W, {count})" for count in wanted]
        hint = f", or with --model.channels {images.shape[-1]} these" if images.ndim == 4 and 0 not in images.shape else ""
        raise ValueError(f"{key}: received shape {images.shape}; allowed: {', '.join(shapes)}{hint}")
    if images.dtype == np.uint8:
        return images
    received, allowed = f"{key}: received {images.dtype}", "allowed: uint8, or float from 0 to 1"
    if images.dtype.kind != "f":
        raise ValueError(f"{received}; {allowed}")
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"{received} from {images.min()} to {images.max()}; {allowed}")
    return np.round(images * 255).astype(np.uint8)


def read_labels(labels, key):
    """Labels (N,) or (N, 1) -> int64 (N,); zeros and ones (N, K) -> int8 (N, K)."""
    if labels.ndim == 2 and labels.shape[1] > 1:
        if not len(labels) or not np.isin(labels, (0, 1)).all():
            raise ValueError(
                f"{key}: received {labels.dtype} of shape {labels.shape}; allowed: whole numbers (N,), or 0 and 1 (N, K)"
            )
        return labels.astype(np.int8)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels) or labels.min() < 0 or labels.max() > MAX_LABEL:
        allowed = f"whole numbers (N,) from 0 to {MAX_LABEL}"
        raise ValueError(f"{key}: received {labels.dtype} of shape {labels.shape}; allowed: {allowed}")
    return labels.astype(np.int64)
