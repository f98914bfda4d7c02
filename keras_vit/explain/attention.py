"""Where a model's attention goes. No gradients, no classes.

Shapes: B images, H height, W width, C channels, L blocks, h heads, N tokens, N0 tokens after the embedding.
"""

import numpy as np

from keras_vit.explain.batches import check_images, in_batches
from keras_vit.explain.forward import see
from keras_vit.explain.grids import reading, shares, to_grid
from keras_vit.model.vit import ViT


def attention_maps(model: ViT, images: np.ndarray) -> np.ndarray:
    """The attention of what the model reads to every patch, in each block and head.

    That is the class token where the model reads it, otherwise the mean over the patch tokens; with `cls_gap`, the mean of both.
    A token that stands for several merged patches shares its weight among them.

    Args:
        model: A `ViT`.
        images: (B, H, W, C), normalised, as the model takes them.

    Returns:
        float32 (B, L, h, rows, columns). A map sums to 1 less what goes to class token and registers. Of blocks with a twin, 2h
        heads.

    Raises:
        ValueError: If the images have another shape.
    """
    return in_batches(maps_of, model, check_images(model, images))


def maps_of(model, images):
    seen, maps = see(model, images), []
    for weights, share in zip(seen.weights, shares(seen), strict=False):
        rows = np.einsum("bn,bhnm->bhm", reading(model.config, share), weights)  # (B, h, N)
        maps.append(to_grid(model.config, rows @ share))
    return np.stack(maps, axis=1)


def attention(model: ViT, images: np.ndarray) -> np.ndarray:
    """The last block's attention, as a mean over its heads: `attention_maps` -> float32 (B, rows, columns)."""
    return attention_maps(model, images)[:, -1].mean(axis=1)


def attention_rollout(model: ViT, images: np.ndarray) -> np.ndarray:
    """Attention rollout: how much of each patch reaches what the model reads, if attention and residual count half each.

    The blocks' mean attention over the heads, half of it replaced by the identity, is multiplied through all blocks.

    Args:
        model: A `ViT`.
        images: (B, H, W, C), normalised, as the model takes them.

    Returns:
        float32 (B, rows, columns). A map sums to 1 less what comes from class token and registers.

    Raises:
        ValueError: If the images have another shape.

    Source: 'Quantifying attention flow in transformers' (arXiv 2005.00928).
    """
    return in_batches(rollout_of, model, check_images(model, images))


def rollout_of(model, images):
    seen = see(model, images)
    flow = shares(seen)[0]  # (B, N0, N0)
    for weights, merge in zip(seen.weights, seen.merges, strict=True):
        flow = (flow + weights.mean(axis=1) @ flow) / 2  # (B, N, N0)
        flow = flow if merge is None else merge @ flow
    return to_grid(model.config, read(model, seen, flow))


def read(model, seen, flow):
    """What the model reads of (B, N, N0): (B, N0)."""
    return np.einsum("bn,bnm->bm", reading(model.config, shares(seen)[-1], seen.pools[-1]), flow)


def attention_distance(model: ViT, images: np.ndarray) -> np.ndarray:
    """The mean distance over which each head attends, in pixels: of a small value the head looks at neighbours.

    The distance between the centres of two patches, weighted by the attention of one to the other; class token and registers
    are left out, and the weights of the patches are made to sum to 1.

    Args:
        model: A `ViT`.
        images: (B, H, W, C), normalised, as the model takes them.

    Returns:
        float64 (L, h), a mean over queries and images.

    Raises:
        ValueError: If the images have another shape.

    Source: figure 11 of 'An image is worth 16x16 words' (arXiv 2010.11929).
    """
    return in_batches(distances_of, model, check_images(model, images)).mean(axis=0)


def distances_of(model, images):
    """The mean distances of each image, (B, L, h)."""
    config = model.config
    rows, columns = config.grid_size
    pitch = np.array(config.image_size) / config.grid_size  # pixels from a patch to the next one
    places = np.stack(np.indices((rows, columns)), axis=-1).reshape(-1, 2) * pitch  # (N', 2)
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)  # (N', N')
    seen = see(model, images)
    found, first = [], config.num_prefix_tokens
    for weights, share in zip(seen.weights, shares(seen), strict=False):
        member = (share > 0).astype(np.float32)  # (B, N, N0): each query patch is in one token
        patches = np.einsum("bnq,bhnm,bmk->bhqk", member, weights, share, optimize=True)[:, :, first:, first:]
        patches = patches / patches.sum(axis=-1, keepdims=True)
        found.append((patches * apart).sum(axis=-1).mean(axis=-1))  # (B, h)
    return np.stack(found, axis=1)
