"""Images with hidden patches, and what was hidden: the input and the target of masked autoencoding. Only NumPy is needed.

Shapes: B images of a batch, H height, W width, C channels, N patches, K visible ones, F = P·P·C values of a patch.
"""

import dataclasses

import numpy as np

from keras_vit.data.seeds import generator
from keras_vit.model.counts import kept_patches

EPSILON = 1e-6  # added to the variance of a patch
GREY = np.float32(0)  # a hidden pixel of a normalised image: the mean of the data


@dataclasses.dataclass(frozen=True)
class Masking:
    """Hides patches of normalised images (masked autoencoding, arXiv 2111.06377).

    Attributes:
        patch_size: Height and width of a patch.
        mask_ratio: Share of the patches that is hidden.
        normalize: Whether each hidden patch is a target with mean 0 and variance 1, or as it is in the normalised image.
    """

    patch_size: tuple[int, int]
    mask_ratio: float
    normalize: bool = True

    def count(self, size: tuple[int, int]) -> tuple[int, int]:
        """N and K of images of a size (H, W)."""
        patches = (size[0] // self.patch_size[0]) * (size[1] // self.patch_size[1])
        return patches, kept_patches(patches, self.mask_ratio)

    def orders(self, count: int, size: tuple[int, int], purpose: int, seed: int, step: int) -> np.ndarray:
        """int32 (count, N): for each image of a batch its patches in random order, the K visible ones first."""
        noise = generator(purpose, seed, step).random((count, self.count(size)[0]))
        return np.argsort(noise, axis=1, kind="stable").astype(np.int32)

    def apply(self, images: np.ndarray, orders: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        """((images without their hidden patches, orders), targets).

        What is hidden does not reach the model, whatever its stem sees of an image.

        Args:
            images: float32 (B, H, W, C), normalised. Not modified.
            orders: As of `orders`, (B, N).

        Returns:
            float32 (B, H, W, C), int32 (B, N), and the hidden patches in their order, float32 (B, N - K, F).
        """
        (rows, columns), (_, kept) = self.patch_size, self.count(images.shape[1:3])
        patches = to_patches(images, self.patch_size)  # (B, N, F), a copy
        image, hidden = np.arange(len(images))[:, None], orders[:, kept:]
        targets = patches[image, hidden]
        if self.normalize:
            targets = (targets - targets.mean(axis=2, keepdims=True)) / np.sqrt(targets.var(axis=2, keepdims=True) + EPSILON)
        patches[image, hidden] = GREY
        return (to_images(patches, images.shape[1:3], (rows, columns)), orders), targets

    def paint(self, images: np.ndarray, orders: np.ndarray, predictions: np.ndarray) -> np.ndarray:
        """The images with predictions in the place of their hidden patches: float32 (B, H, W, C).

        Args:
            images: As of `apply`. Where targets are normalised, a hidden patch's own mean and deviation scale its prediction.
            orders: As of `apply`.
            predictions: (B, N - K, F), in the order of the targets.
        """
        patches = to_patches(images, self.patch_size)
        image, hidden = np.arange(len(images))[:, None], orders[:, self.count(images.shape[1:3])[1] :]
        if self.normalize:
            originals = patches[image, hidden]
            deviation = np.sqrt(originals.var(axis=2, keepdims=True) + EPSILON)
            predictions = predictions * deviation + originals.mean(axis=2, keepdims=True)
        patches[image, hidden] = predictions
        return to_images(patches, images.shape[1:3], self.patch_size)

    def shapes(self, batch: int | None, size: tuple[int, int], channels: int) -> tuple[tuple, tuple]:
        """Shapes of the orders and of the targets."""
        patches, kept = self.count(size)
        return (batch, patches), (batch, patches - kept, self.patch_size[0] * self.patch_size[1] * channels)


def to_patches(images: np.ndarray, patch_size: tuple[int, int]) -> np.ndarray:
    """(B, H, W, C) -> (B, N, F), as the layer `Patches`: row by row, each as (row, column, channel)."""
    (batch, height, width, channels), (rows, columns) = images.shape, patch_size
    grid = images.reshape(batch, height // rows, rows, width // columns, columns, channels)
    return np.array(grid.transpose(0, 1, 3, 2, 4, 5)).reshape(batch, -1, rows * columns * channels)


def to_images(patches: np.ndarray, size: tuple[int, int], patch_size: tuple[int, int]) -> np.ndarray:
    """(B, N, F) -> (B, *size, C): undoes `to_patches`."""
    (height, width), (rows, columns) = size, patch_size
    grid = patches.reshape(len(patches), height // rows, width // columns, rows, columns, -1)
    return np.ascontiguousarray(grid.transpose(0, 1, 3, 2, 4, 5)).reshape(len(patches), height, width, -1)
