"""What the first layer has learned to look for."""

import numpy as np
from keras import ops

from keras_vit.checks import check_int
from keras_vit.model.vit import ViT

COUNT = 28  # as in the paper


def patch_filters(model: ViT, count: int = COUNT) -> np.ndarray:
    """The principal components of the filters that embed a patch; of a convolutional stem, those of its first convolution.

    Args:
        model: A `ViT`.
        count: How many components, the strongest first; fewer where a filter has fewer values.

    Returns:
        float64 (count, height, width, channels), each of length 1, its largest value positive.

    Raises:
        ValueError: If `count` is below 1.

    Source: figure 7 (left) of 'An image is worth 16x16 words' (arXiv 2010.11929).
    """
    check_int("count", count, at_least=1)
    config = model.config
    if config.stem == "conv":
        kernel = model.get_layer("stem").convolutions[0].kernel  # (3, 3, C, F)
        shape = tuple(kernel.shape[:3])
    else:
        kernel = model.get_layer("encoder").projection.kernel  # (P·P·C, D)
        shape = (*config.patch_size, config.channels)
    filters = ops.convert_to_numpy(ops.cast(kernel, "float32")).astype(np.float64).reshape(np.prod(shape), -1).T  # (D, P·P·C)
    filters = filters - filters.mean(axis=0)
    _, _, found = np.linalg.svd(filters, full_matrices=False)
    found = found[:count]
    largest = np.take_along_axis(found, np.abs(found).argmax(axis=1, keepdims=True), axis=1)
    return (found * np.sign(largest)).reshape(-1, *shape)
