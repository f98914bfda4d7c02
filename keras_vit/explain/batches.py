"""Explanations of many images, some at a time."""

import numpy as np

from keras_vit.checks import check_int
from keras_vit.explain.gradients import evaluate
from keras_vit.model.vit import ViT

BATCH_SIZE = 32  # images at a time: the attention weights of a batch are B·L·h·N² numbers


def in_batches(function, model: ViT, *arrays: np.ndarray) -> np.ndarray:
    """The results of `function(model, *parts)`, joined; the arrays have a row an image.

    The last part of several is filled up: JAX would compile another size again.
    """
    count, found = len(arrays[0]), []
    size = min(count, BATCH_SIZE)
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        found.append(function(model, *(each[rows] for each in arrays)))
    return np.concatenate(found)[:count]


def check_images(model: ViT, images: np.ndarray) -> np.ndarray:
    """The images as float32; a ValueError if they do not fit the model."""
    images, shape = np.asarray(images), tuple(model.input.shape[1:])
    if images.shape[1:] != shape or not len(images) or images.dtype.kind != "f":
        received = f"{images.dtype} of shape {images.shape}"
        raise ValueError(f"images: received {received}; allowed: floats (B, {', '.join(map(str, shape))}), normalised")
    return images.astype(np.float32)


def check_classes(model: ViT, classes, images: np.ndarray) -> np.ndarray:
    """A class for each image: the predicted one for None, one for all, or one for each; a ValueError for others."""
    if not model.config.num_classes:
        raise ValueError("num_classes: received 0, a model without a head; allowed: a classifier")
    if classes is None:
        return np.argmax(in_batches(logits, model, images), axis=1)
    classes = np.asarray(classes)
    if classes.dtype.kind not in "iu" or classes.shape not in ((), (len(images),)):
        received = f"{classes.dtype} of shape {classes.shape}"
        raise ValueError(f"classes: received {received}; allowed: an index, or one for each of the {len(images)} images")
    for index in np.unique(classes):
        check_int("classes", int(index), at_least=0, at_most=model.config.num_classes - 1)
    return np.broadcast_to(classes, len(images))


def logits(model: ViT, images: np.ndarray) -> np.ndarray:
    """(B, H, W, C) -> (B, K)."""
    return evaluate(type(model).call, model, images)
