"""What a trained model has learned, as NumPy arrays; `plots` draws them."""

import numpy as np
from keras import ops

from keras_vit.model.vit import ViT


def position_similarity(model: ViT) -> np.ndarray:
    """Cosine similarity of every patch's position embedding to every other's, learned or fixed.

    The positions of class token and registers are left out.

    Args:
        model: A `ViT`.

    Returns:
        float64 (rows, columns, rows, columns): `similarity[r, c]` is the map of position (r, c) against the whole grid.

    Raises:
        ValueError: If the model has no position embeddings.

    Source: figure 7 (centre) of 'An image is worth 16x16 words' (arXiv 2010.11929).
    """
    if model.config.position == "none":
        raise ValueError("position: received 'none'; a similarity of positions needs learned, sincos2d or sincos1d ones")
    encoder = model.get_layer("encoder")
    table = ops.convert_to_tensor(encoder.position_embedding)[0]
    table = ops.convert_to_numpy(ops.cast(table, "float32"))
    position = table[model.config.num_prefix_positions :].astype(np.float64)  # (N', D)
    norm = np.linalg.norm(position, axis=1, keepdims=True)
    direction = position / np.maximum(norm, np.finfo(np.float64).tiny)  # a zero vector is similar to nothing
    return (direction @ direction.T).reshape(model.config.grid_size * 2)
