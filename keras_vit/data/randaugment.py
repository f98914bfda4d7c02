"""RandAugment's fourteen operations (https://arxiv.org/abs/1909.13719); each image of a batch draws its own.

Each operation takes `level` (n,) from -1 to 1; 0 leaves the image as it is. Brightness, contrast, saturation and sharpness follow
Pillow's `ImageEnhance` with factors 1 - 0.9 to 1 + 0.9; autocontrast and equalize follow `ImageOps` and have no level.

Operations on single pixels are tables of 256 entries a channel, geometric operations are affine matrices. Images that drew
different operations of one kind thus share a single gather.

Shapes: B images of a batch, n images that share an operation, H height, W width, C channels (1 or 3).
"""

import math

import numpy as np

from keras_vit.data.pixels import affine, grey, look_up, saturate, to_uint8

VALUES = np.arange(256, dtype=np.float32)


def enhancement(level):
    return (1 + 0.9 * np.asarray(level, np.float32))[:, None, None]  # (n, 1, 1)


def brightness(images, level):
    return to_uint8(VALUES * enhancement(level))  # (n, 1, 256)


def contrast(images, level):
    mean = np.floor(grey(images).mean(axis=(1, 2)) + 0.5)[:, None]  # (n, 1, 1)
    return to_uint8(mean + enhancement(level) * (VALUES - mean))  # (n, 1, 256)


def posterize(images, level):
    """Keeps 8 (level 0) to 4 (level 1) bits a value."""
    dropped = np.round(4 * np.abs(level)).astype(np.uint8)[:, None, None]
    return VALUES.astype(np.uint8) >> dropped << dropped  # (n, 1, 256)


def solarize(images, level):
    """Inverts all values from a threshold up; the threshold falls from 256 (level 0: none) to 0 (level 1: all)."""
    threshold = 256 * (1 - np.abs(level))[:, None, None]
    return np.where(threshold > VALUES, VALUES, 255 - VALUES).astype(np.uint8)  # (n, 1, 256)


def autocontrast(images, level):
    low, high = (f(images, axis=(1, 2)).astype(np.float32)[..., None] for f in (np.min, np.max))  # (n, C, 1)
    stretched = (VALUES - low) * (255 / np.maximum(high - low, 1))
    return np.clip(np.where(high > low, stretched, VALUES), 0, 255).astype(np.uint8)  # (n, C, 256)


def equalize(images, level):
    count, height, width, channels = images.shape
    histogram_of = 256 * np.arange(count * channels).reshape(count, 1, 1, channels)
    histogram = np.bincount((images + histogram_of).ravel(), minlength=count * channels * 256).reshape(count, channels, 256)
    brightest = images.max(axis=(1, 2))[..., None].astype(np.int64)  # (n, C, 1)
    step = (height * width - np.take_along_axis(histogram, brightest, axis=-1)) // 255
    darker = np.cumsum(histogram, axis=-1) - histogram
    equalized = np.minimum((darker + step // 2) // np.maximum(step, 1), 255)
    return np.where(step > 0, equalized, VALUES).astype(np.uint8)  # (n, C, 256)


def matrix(height, width, level, a=1.0, b=0.0, c=0.0, d=0.0, e=1.0, f=0.0):
    """The matrices of `affine`, float32 (n, 6)."""
    return np.stack([np.broadcast_to(value, level.shape) for value in (a, b, c, d, e, f)], axis=1).astype(np.float32)


def rotate(height, width, level):
    """By up to 30 degrees, either way."""
    cos, sin = np.cos(level * math.radians(30)), np.sin(level * math.radians(30))
    return matrix(height, width, level, a=cos, b=-sin, d=sin, e=cos)


def shear_x(height, width, level):
    return matrix(height, width, level, b=0.3 * level)


def shear_y(height, width, level):
    return matrix(height, width, level, d=0.3 * level)


def translate_x(height, width, level):
    """By up to 10/32 of the width, either way."""
    return matrix(height, width, level, c=width * 10 / 32 * level)


def translate_y(height, width, level):
    return matrix(height, width, level, f=height * 10 / 32 * level)


def saturation(images, level):
    return saturate(images, 1 + 0.9 * level)


def sharpness(images, level):
    """Blends with a 3x3 smoothing (centre 5, neighbours 1, over 13); the outermost pixels stay, as in Pillow."""
    if min(images.shape[1:3]) < 3:
        return images
    rows = images.astype(np.float32)
    rows = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    centre = images[:, 1:-1, 1:-1].astype(np.float32)
    smooth = np.floor((rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * centre) / 13 + 0.5)
    sharp = images.copy()
    sharp[:, 1:-1, 1:-1] = to_uint8(smooth + enhancement(level)[..., None] * (centre - smooth))
    return sharp


TABLES = {f.__name__: f for f in (brightness, contrast, posterize, solarize, autocontrast, equalize)}
MATRICES = {f.__name__: f for f in (rotate, shear_x, shear_y, translate_x, translate_y)}
FILTERS = {f.__name__: f for f in (saturation, sharpness)}
RANDAUGMENT = ("identity", *TABLES, *MATRICES, *FILTERS)


def apply_operations(images: np.ndarray, operation: np.ndarray, level: np.ndarray) -> None:
    """Applies RANDAUGMENT[operation[b]] with strength level[b] to image b, in place.

    Args:
        images: uint8 (B, H, W, C).
        operation: integers (B,), indices into `RANDAUGMENT`.
        level: floats (B,) from -1 to 1; 0 changes nothing. Autocontrast and equalize ignore it.
    """
    count, height, width, channels = images.shape
    tables, matrices = np.zeros((count, channels, 256), np.uint8), np.zeros((count, 6), np.float32)
    looked_up, moved = np.zeros((2, count), bool)
    for index in np.unique(operation):
        name, chosen = RANDAUGMENT[index], np.flatnonzero(operation == index)
        if name in TABLES:
            tables[chosen], looked_up[chosen] = TABLES[name](images[chosen], level[chosen]), True
        elif name in MATRICES:
            matrices[chosen], moved[chosen] = MATRICES[name](height, width, level[chosen]), True
        elif name in FILTERS:
            images[chosen] = FILTERS[name](images[chosen], level[chosen])
    if looked_up.any():
        images[looked_up] = look_up(images[looked_up], tables[looked_up])
    if moved.any():
        images[moved] = affine(images[moved], matrices[moved])
