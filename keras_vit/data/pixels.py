"""Operations on a uint8 batch; each image has its own parameters. Only NumPy is needed.

Shapes: n images, H height, W width, C channels (1 or 3).
"""

import math

import numpy as np


def to_uint8(values):
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


def grey(images):
    """Luma of ITU-R 601, as Pillow's mode "L": float32 (n, H, W, 1)."""
    if images.shape[-1] == 1:
        return images.astype(np.float32)
    red, green, blue = (images[..., channel].astype(np.float32) for channel in range(3))
    return (0.299 * red + 0.587 * green + 0.114 * blue)[..., None]


def saturate(images, factor):
    """Factor 0 gives grey, 1 the image, above 1 more colour; `factor` (n,). Grey images stay as they are."""
    luma = np.floor(grey(images) + 0.5)
    return to_uint8(luma + np.asarray(factor, np.float32)[:, None, None, None] * (images - luma))


def reflect(index, size):
    """Folds any integer index into 0..size - 1 by mirroring at the edge pixels, as `np.pad(mode="reflect")`."""
    period = max(2 * (size - 1), 1)
    index = index % period
    return np.minimum(index, period - index) if size > 1 else index


def gather(images, rows, columns):
    """images[b, rows[b, y, x], columns[b, y, x]] for every pixel; `rows` and `columns` broadcast to (n, H, W)."""
    count, height, width, channels = images.shape
    first = (np.arange(count) * height)[:, None, None]
    return images.reshape(-1, channels).take((first + rows) * width + columns, axis=0)  # (n, H, W, C)


def look_up(images, tables):
    """tables[b, c, images[b, y, x, c]]; `tables` uint8 (n, C, 256) or (n, 1, 256)."""
    count, height, width, channels = images.shape
    tables = np.broadcast_to(tables, (count, channels, 256))
    # Rows of H·W·C values, not (…, C): NumPy loops over the last axis, and three elements are too short for it.
    table_of = 256 * np.tile(np.arange(channels), height * width) + 256 * channels * np.arange(count)[:, None]
    return tables.ravel().take(images.reshape(count, -1) + table_of).reshape(images.shape)


def affine(images, matrices):
    """Reads every output pixel, bilinearly, at x' = a x + b y + c, y' = d x + e y + f, in pixels from the centre.

    Beyond its border the image continues as its reflection. A constant border would reveal the operation by its edge, and the
    right constant depends on the data (mean grey for photographs, black for digits).

    Args:
        images: uint8 (n, H, W, C).
        matrices: float32 (n, 6), the numbers a to f.
    """
    count, height, width, _ = images.shape
    a, b, c, d, e, f = matrices.T[:, :, None, None]  # each (n, 1, 1)
    c, f = c + np.float32((width - 1) / 2), f + np.float32((height - 1) / 2)
    x = np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2)
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32((height - 1) / 2)
    (x, left), (y, top) = fold(a * x + (b * y + c), width), fold(d * x + (e * y + f), height)  # each (n, H, W)
    upper_left = (np.arange(count)[:, None, None] * height + top) * width + left
    down, right = width * (height > 1), int(width > 1)
    result = np.empty_like(images)
    for channel in range(images.shape[-1]):  # a plane at a time: NumPy is slow on a last axis of three
        plane = images[..., channel].astype(np.float32).ravel()
        upper, lower = plane.take(upper_left), plane[down:].take(upper_left)
        upper += x * (plane[right:].take(upper_left) - upper)
        lower += x * (plane[down + right :].take(upper_left) - lower)
        upper += y * (lower - upper)
        upper += np.float32(0.5)
        result[..., channel] = upper
    return result


def fold(position, size):
    """Mirrors float positions into 0..size - 1; returns the fraction, 0 to 1, past a pixel, and the index of that pixel."""
    if size == 1:
        return np.zeros_like(position), np.zeros(position.shape, np.intp)
    position *= np.float32(0.5 / (size - 1))
    position -= np.rint(position)
    np.abs(position, out=position)
    position *= np.float32(2 * (size - 1))
    pixel = np.minimum(position.astype(np.intp), size - 2)
    position -= pixel
    return position, pixel


def blur(images: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Gaussian blur of uint8 (n, H, W, C) with a reflected border; `sigma` (n,) in pixels, one for each image."""
    if not len(images):
        return images
    _, height, width, _ = images.shape
    radius = math.ceil(3 * sigma.max())
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)[:, :, None, None, None]  # (n, T, 1, 1, 1)
    values = images.astype(np.float32)
    for axis, size in ((1, height), (2, width)):
        shifted = (values.take(reflect(np.arange(size) + offset, size), axis=axis) for offset in offsets)
        values = sum(weights[:, tap] * value for tap, value in enumerate(shifted))
    return to_uint8(values)
