"""Positions for another grid of patches, projections for another patch size or other channels: linear maps, in NumPy."""

import numpy as np

from keras_vit.images import resize_matrix

# The kernel that meets the image, by `ViTConfig.stem`.
FIRST_LAYER = {"patch": "encoder/projection/kernel", "conv": "stem/conv0/kernel"}


def resample_positions(
    position: np.ndarray, old_grid: tuple[int, int], new_grid: tuple[int, int], antialias: bool = True
) -> np.ndarray:
    """Learned positions (1, prefix + rows * columns, D) for another grid of patches; rows of prefix tokens are kept.

    Args:
        position: The table. Rows in front, beyond those of `old_grid`, belong to prefix tokens.
        old_grid: Rows and columns of patches that the table was learned for.
        new_grid: Rows and columns wanted.
        antialias: See `resize_matrix`; True equals timm's `resample_abs_pos_embed`.
    """
    if tuple(old_grid) == tuple(new_grid):
        return position
    prefix = position.shape[1] - old_grid[0] * old_grid[1]
    grid = position[0, prefix:].reshape(*old_grid, -1).astype("float64")
    rows, columns = (resize_matrix(old, new, antialias) for old, new in zip(old_grid, new_grid, strict=True))
    grid = np.einsum("ai,bj,ijd->abd", rows, columns, grid, optimize=True).reshape(1, -1, position.shape[2])
    return np.concatenate([position[:, :prefix], grid.astype(position.dtype)], axis=1)


def resample_projection(kernel: np.ndarray, old_patch: tuple[int, int], new_patch: tuple[int, int], channels: int) -> np.ndarray:
    """The projection (P * P * C, D) for patches of another size (FlexiViT, arXiv 2212.08013, section 3.4).

    Let R be the bicubic resize of a patch. The new kernel is the pseudo-inverse of R transposed, times the old kernel. A resized
    patch then gives the old token wherever R loses nothing. As timm's `resample_patch_embed`.

    Args:
        kernel: The projection, its rows in the order of `Patches`: row, column, channel.
        old_patch: Height and width of a patch before, in pixels.
        new_patch: Height and width wanted.
        channels: Channels C of the image.
    """
    if tuple(old_patch) == tuple(new_patch):
        return kernel
    rows, columns = (np.linalg.pinv(resize_matrix(old, new).T) for old, new in zip(old_patch, new_patch, strict=True))
    kernel = kernel.reshape(*old_patch, channels, -1)
    resized = np.einsum("ai,bj,ijcd->abcd", rows, columns, kernel.astype("float64"), optimize=True)
    return resized.reshape(-1, kernel.shape[-1]).astype(kernel.dtype)


def adapt_channels(kernel: np.ndarray, old: int, new: int) -> np.ndarray:
    """A first layer's kernel for images with another number of channels, so that its outputs keep their scale.

    One channel gets the sum of all kernels: a grey image gives what it gave as RGB. More channels repeat the kernels in turn, and
    fewer keep the first ones, times old / new. As timm's `adapt_input_conv`, which knows 3 old channels alone.

    Args:
        kernel: (..., C, D), C = `old`.
        old: C, channels so far.
        new: Channels wanted.
    """
    if old == new:
        return kernel
    if new == 1:
        return kernel.sum(axis=-2, keepdims=True)
    return kernel[..., np.arange(new) % old, :] * np.asarray(old / new, kernel.dtype)


def resample_weight(path: str, array: np.ndarray, old, new, antialias: bool = True) -> np.ndarray:
    """A weight for another configuration's image size, patch size and channels; only positions and the first layer change.

    Args:
        path: Of the weight, as in `ViTConfig.weight_shapes`.
        array: Its value.
        old: The `ViTConfig` that it belongs to.
        new: The `ViTConfig` wanted.
        antialias: Whether positions are resized with antialiasing; see `resize_matrix`.
    """
    if path == "encoder/position":
        return resample_positions(array, old.grid_size, new.grid_size, antialias)
    if path == FIRST_LAYER[old.stem] and old.channels != new.channels:
        sides = old.patch_size if old.stem == "patch" else array.shape[:2]
        kernel = adapt_channels(array.reshape(*sides, old.channels, -1), old.channels, new.channels)
        array = kernel if old.stem == "conv" else kernel.reshape(-1, kernel.shape[-1])
    if path == "encoder/projection/kernel" and old.stem == "patch":
        return resample_projection(array, old.patch_size, new.patch_size, new.channels)
    return array
