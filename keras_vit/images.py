"""Arithmetic of pixels, shared by data, weights and exports: normalisation, and a bicubic resize as small matrices."""

from collections.abc import Sequence

import numpy as np


def resize_matrix(old: int, new: int, antialias: bool = True) -> np.ndarray:
    """The matrix (new, old) of a bicubic resize along one axis, pixel centres aligned as PyTorch's `align_corners=False`.

    Args:
        old: Samples before.
        new: Samples after.
        antialias: Whether the kernel is stretched where the axis shrinks. As in PyTorch: if True, the kernel's parameter is -0.5
            and samples beyond the border are left out; if False, the parameter is -0.75 and the border is repeated.
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


def scale_and_shift(mean: float | Sequence[float], std: float | Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Normalisation as pixels * scale + shift = (pixels / 255 - mean) / std: float64 arrays of one number, or one a channel."""
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    return 1 / (255 * std), -mean / std


def normalize(images: np.ndarray, mean: float | Sequence[float], std: float | Sequence[float]) -> np.ndarray:
    """(images / 255 - mean) / std: uint8 (B, H, W, C) -> float32 (B, H, W, C); `mean` and `std` are one number or one a channel."""
    _, _, width, channels = images.shape
    # Rows of W·C values, not (…, C): NumPy loops over the last axis, and three elements are too short for it.
    scale, shift = (np.tile(np.broadcast_to(v, channels).astype(np.float32), width) for v in scale_and_shift(mean, std))
    values = np.multiply(images.reshape(-1, width * channels), scale, dtype=np.float32)
    values += shift
    return values.reshape(images.shape)


def resize(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Images of another size, bicubic and antialiased: float (B, H, W, C) -> (B, *size, C), of the same type."""
    if images.shape[1:3] == tuple(size):
        return images
    batch, height, width, channels = images.shape
    rows, columns = (resize_matrix(old, new).astype(images.dtype) for old, new in zip((height, width), size, strict=True))
    # Two matmuls for each image: over the rows, then over columns and channels at once. For a matmul over the whole batch, BLAS
    # starts threads that disturb the training's.
    images = rows @ images.reshape(batch, height, width * channels) @ np.kron(columns.T, np.eye(channels, dtype=images.dtype))
    return images.reshape(batch, *size, channels)
