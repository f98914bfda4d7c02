"""Arithmetic of pixels that data, weights and exports share: normalisation, and a bicubic resize as small matrices."""

import numpy as np


def resize_matrix(old: int, new: int, antialias: bool = True) -> np.ndarray:
    """The matrix (new, old) of a bicubic resize along one axis, pixel centres aligned as PyTorch's `align_corners=False`.

    Args:
        old: Samples before.
        new: Samples after.
        antialias: Whether the kernel is stretched where the axis shrinks. As in PyTorch its parameter is -0.5 with this and
            -0.75 without, and samples beyond the border are left out with this and repeat the border without.
    """
    scale = old / new
    stretch = max(scale, 1.0) if antialias else 1.0
    centres = (np.arange(new) + 0.5) * scale - 0.5
    reach = int(np.ceil(2 * stretch)) + 1
    taps = np.floor(centres)[:, None] + np.arange(-reach, reach + 1)  # (new, taps)
    weights = cubic((taps - centres[:, None]) / stretch, -0.5 if antialias else -0.75)
    if antialias:
        weights[(taps < 0) | (taps >= old)] = 0
    weights /= weights.sum(1, keepdims=True)
    matrix = np.zeros((new, old))
    np.add.at(matrix, (np.arange(new)[:, None], np.clip(taps, 0, old - 1).astype(int)), weights)
    return matrix


def cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys's cubic convolution kernel with parameter `a` (IEEE ASSP 29, 1981)."""
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def normalize(images: np.ndarray, mean: float | list[float], std: float | list[float]) -> np.ndarray:
    """(images / 255 - mean) / std: uint8 (B, H, W, C) -> float32 (B, H, W, C); `mean` and `std` are numbers or have C."""
    _, _, width, channels = images.shape
    mean, std = (np.broadcast_to(np.asarray(value, np.float64), channels) for value in (mean, std))
    # Rows of W·C values and not (…, C): NumPy's inner loop is the last axis, and three elements are too short for it.
    scale, shift = (np.tile(value.astype(np.float32), width) for value in (1 / (255 * std), -mean / std))
    values = np.multiply(images.reshape(-1, width * channels), scale, dtype=np.float32)
    values += shift
    return values.reshape(images.shape)


def resize(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Images of another size, bicubic and antialiased: float (B, H, W, C) -> (B, *size, C), of the same type."""
    if images.shape[1:3] == tuple(size):
        return images
    batch, height, width, channels = images.shape
    rows, columns = (resize_matrix(old, new).astype(images.dtype) for old, new in zip((height, width), size, strict=True))
    # Two products an image, over the rows, then over columns and channels at once. One of a whole batch would be larger, and for
    # that BLAS starts threads, which stand in the way of the training's: at 32 pixels a step took more than twice as long.
    images = rows @ images.reshape(batch, height, width * channels) @ np.kron(columns.T, np.eye(channels, dtype=images.dtype))
    return images.reshape(batch, *size, channels)
