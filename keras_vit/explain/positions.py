"""What a trained model has learned, as NumPy arrays; `plots` draws them."""

import numpy as np
from keras import ops

from keras_vit.model.vit import ViT


def position_similarity(model: ViT) -> np.ndarray:
    """Cosine similarity of every patch's position embedding to every other's, learned or fixed.

    Of a model with rotary positions alone, the mean cosine of the angles between two patches. The positions of class token and
    registers are left out.

    Args:
        model: A `ViT`.

    Returns:
        float64 (rows, columns, rows, columns): `similarity[r, c]` is the map of position (r, c) against the whole grid.

    Raises:
        ValueError: If the model has no position embeddings.

    Source: figure 7 (centre) of 'An image is worth 16x16 words' (arXiv 2010.11929).
    """
    config = model.config
    if config.position == "none" and config.rotary == "none":
        raise ValueError("position: received 'none'; a similarity of positions needs learned, sincos2d, sincos1d or rotary ones")
    if config.position == "none":
        table = model.get_layer("rotary").table  # rows of cosines and sines: their products are cosines of differences
    else:
        table = ops.convert_to_tensor(model.get_layer("encoder").position_embedding)[0]
        table = ops.convert_to_numpy(ops.cast(table, "float32"))
    position = table[-config.num_patches :].astype(np.float64)  # (N', D)
    norm = np.linalg.norm(position, axis=1, keepdims=True)
    direction = position / np.maximum(norm, np.finfo(np.float64).tiny)  # a zero vector is similar to nothing
    return (direction @ direction.T).reshape(model.config.grid_size * 2)
