"""From tokens to the patches that they stand for.

Shapes: B images, L blocks, N tokens of a block, N0 tokens after the embedding, N' patches, h heads.
"""

import numpy as np

from keras_vit.explain.forward import Pass
from keras_vit.model.config import ViTConfig


def shares(seen: Pass) -> list[np.ndarray]:
    """How much of each token after the embedding is in each token of a block: L + 1 of (B, N, N0), rows summing to 1.

    The last one is of the last block's output. Without merging each is the identity.
    """
    batch, tokens, _ = seen.tokens[0].shape
    found = [np.broadcast_to(np.eye(tokens, dtype=np.float32), (batch, tokens, tokens))]
    for merge in seen.merges:
        found.append(found[-1] if merge is None else merge @ found[-1])
    return found


def reading(config: ViTConfig, share: np.ndarray, pool: np.ndarray | None = None) -> np.ndarray:
    """The weight with which the pooling takes each token: (B, N), rows summing to 1.

    The class token has 1, or the two tokens of a distilled model a half each; a mean takes the patches, tokens that stand for
    several patches that many times; `cls_gap` is half of each. A pooling by attention has its own weights, as a mean over the
    heads, or is like a mean where there are none.

    Args:
        config: Of the model.
        share: (B, N, N0), of `shares`.
        pool: Attention weights of the pooling, (B, h, 1, N), which may leave out tokens at the front.
    """
    batch, tokens, _ = share.shape
    prefix = config.num_prefix_tokens
    if pool is not None:
        weights = pool.mean(axis=(1, 2))
        return np.pad(weights, ((0, 0), (tokens - weights.shape[1], 0)))
    first = np.zeros((batch, tokens), np.float32)
    first[:, 0] = 1
    if config.distillation:
        first[:, :2] = 0.5
    sizes = (share > 0).sum(axis=2).astype(np.float32)
    sizes[:, :prefix] = 0
    mean = sizes / sizes.sum(axis=1, keepdims=True)
    return {"cls": first, "cls_gap": (first + mean) / 2}.get(config.pool, mean)


def to_grid(config: ViTConfig, values: np.ndarray) -> np.ndarray:
    """Values of the tokens after the embedding, (..., N0), as maps of the patches (..., rows, columns); the prefix is left out."""
    return values[..., config.num_prefix_tokens :].reshape(*values.shape[:-1], *config.grid_size)


def to_pixels(config: ViTConfig, masks: np.ndarray) -> np.ndarray:
    """Masks of patches (B, rows, columns) as masks of pixels (B, H, W, 1), or (B, 1, H, W) where channels come first."""
    height, width = np.array(config.image_size) // config.grid_size
    masks = masks.repeat(height, axis=1).repeat(width, axis=2)
    return masks[:, None] if config.data_format == "channels_first" else masks[..., None]
