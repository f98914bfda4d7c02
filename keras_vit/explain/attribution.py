"""Which patches speak for a class: by the gradients of its logit, or by what happens without them.

Shapes: B images, H height, W width, C channels, L blocks, h heads, N tokens of a block, N0 tokens after the embedding, D width.
"""

import numpy as np
from keras import ops

from keras_vit.explain.attention import read
from keras_vit.explain.batches import check_classes, check_images, in_batches, logits
from keras_vit.explain.forward import run, see
from keras_vit.explain.gradients import gradients
from keras_vit.explain.grids import shares, to_grid, to_pixels
from keras_vit.model.vit import ViT


def gradient_attention(model: ViT, images: np.ndarray, classes: int | np.ndarray | None = None) -> np.ndarray:
    """Gradient-weighted attention: rollout of the attention that raises the class.

    Each block's attention times its gradient, without what is negative, as a mean over the heads, is added to the identity and
    multiplied through all blocks.

    Args:
        model: A `ViT` with a head.
        images: (B, H, W, C), normalised, as the model takes them.
        classes: The class to explain, by index: one for all images, or (B,); None = the predicted ones.

    Returns:
        float32 (B, rows, columns), at least 0.

    Raises:
        ValueError: If the images have another shape, or there is no such class.

    Source: 'Generic attention-model explainability' (arXiv 2103.15679), equations 5 and 6.
    """
    return by_class(gradient_attention_of, model, images, classes)


def gradient_attention_of(model, images, classes):
    found, pools, seen = attention_gradients(model, images, classes)
    flow = shares(seen)[0]  # (B, N0, N0)
    for weights, gradient, merge in zip(seen.weights, found, seen.merges, strict=True):
        flow = flow + np.maximum(weights * gradient, 0).mean(axis=1) @ flow  # (B, N, N0)
        flow = flow if merge is None else merge @ flow
    if pools:
        seen.pools[-1] = np.maximum(seen.pools[-1] * pools[-1], 0)
    return to_grid(model.config, read(model, seen, flow))


def legrad(model: ViT, images: np.ndarray, classes: int | np.ndarray | None = None) -> np.ndarray:
    """LeGrad: how the class, as the head reads it from each block's tokens, reacts to that block's attention to each patch.

    The gradient of that logit to the block's attention weights, without what is negative, as a mean over heads and queries and a
    sum over blocks. With a pooling by attention, the pooling's weights take the place of the block's.

    Args:
        model: A `ViT` with a head.
        images: (B, H, W, C), normalised, as the model takes them.
        classes: As for `gradient_attention`.

    Returns:
        float32 (B, rows, columns), at least 0.

    Raises:
        ValueError: If the images have another shape, or there is no such class.

    Source: 'LeGrad: an explainability method for vision transformers via feature formation sensitivity' (arXiv 2404.03214).
    """
    return by_class(legrad_of, model, images, classes)


def legrad_of(model, images, classes):
    found, pools, seen = attention_gradients(model, images, classes, every_block=True)
    each = shares(seen)
    if pools:
        each = each[1:]  # it reads what a block gives, and may leave out tokens at the front
        fronts = [share.shape[1] - pool.shape[3] for pool, share in zip(pools, each, strict=True)]
        found = [np.pad(pool, ((0, 0), (0, 0), (0, 0), (front, 0))) for pool, front in zip(pools, fronts, strict=True)]
    keys = [np.maximum(gradient, 0).mean(axis=(1, 2)) for gradient in found]  # L of (B, N)
    return to_grid(model.config, sum((key[:, None] @ share)[:, 0] for key, share in zip(keys, each, strict=False)))


def grad_cam(model: ViT, images: np.ndarray, classes: int | np.ndarray | None = None) -> np.ndarray:
    """Grad-CAM on the tokens that the last block gets: each channel weighted by its mean gradient, without what is negative.

    Args:
        model: A `ViT` with a head.
        images: (B, H, W, C), normalised, as the model takes them.
        classes: As for `gradient_attention`.

    Returns:
        float32 (B, rows, columns), at least 0.

    Raises:
        ValueError: If the images have another shape, or there is no such class.

    Source: 'Grad-CAM' (arXiv 1610.02391), equations 1 and 2.
    """
    return by_class(grad_cam_of, model, images, classes)


def grad_cam_of(model, images, classes):
    seen = see(model, images)
    (gradient,) = gradients(score_by_tokens, model, [np.zeros_like(seen.tokens[-1])], images, classes)
    prefix = model.config.num_prefix_tokens
    weights = gradient[:, prefix:].mean(axis=1)  # (B, D)
    values = np.maximum(np.einsum("bnd,bd->bn", seen.tokens[-1], weights), 0)  # (B, N)
    return to_grid(model.config, (values[:, None] @ shares(seen)[-2])[:, 0])


def occlusion(model: ViT, images: np.ndarray, classes: int | np.ndarray | None = None) -> np.ndarray:
    """Occlusion: how far the class's logit falls when a patch alone is replaced by the mean of the normalised images, 0.

    Without gradients; one pass through the model for each patch.

    Args:
        model: A `ViT` with a head.
        images: (B, H, W, C), normalised, as the model takes them.
        classes: As for `gradient_attention`.

    Returns:
        float32 (B, rows, columns), at least 0: patches that speak against the class have 0.

    Raises:
        ValueError: If the images have another shape, or there is no such class.

    Source: 'Visualizing and understanding convolutional networks' (arXiv 1311.2901), section 4.2.
    """
    return by_class(occlusion_of, model, images, classes)


def occlusion_of(model, images, classes):
    everyone, (rows, columns) = np.arange(len(images)), model.config.grid_size
    before, falls = logits(model, images)[everyone, classes], []
    for mask in np.eye(rows * columns, dtype=bool).reshape(-1, 1, rows, columns):
        falls.append(before - logits(model, images * ~to_pixels(model.config, mask))[everyone, classes])
    return np.maximum(np.stack(falls, axis=1), 0).reshape(-1, rows, columns)


def by_class(function, model, images, classes):
    images = check_images(model, images)
    return in_batches(function, model, images, check_classes(model, classes, images))


def attention_gradients(model, images, classes, every_block=False):
    """Gradients of the class's logit to every attention weight, L of (B, h, N, N), and to a pooling's; and what the pass leaves."""
    seen = see(model, images, every_block)
    weights, pools = seen.weights, [pool for pool in seen.pools if pool is not None]
    shifts = [np.zeros_like(each) for each in (*weights, *pools)]
    found = gradients(score_by_weights, model, shifts, images, classes, every_block=every_block)
    return found[: len(weights)], found[len(weights) :], seen


def score_by_weights(model, shifts, images, classes, every_block):
    depth = model.config.depth
    return score(run(model, images, shifts[:depth], pool_shifts=shifts[depth:], every_block=every_block), classes)


def score_by_tokens(model, shifts, images, classes):
    return score(run(model, images, token_shift=shifts[0]), classes)


def score(seen, classes):
    """The sum of the images' logits of their classes: an image's gradient is its own."""
    chosen = ops.one_hot(classes, seen.logits[0].shape[1])
    return sum(ops.sum(logits * ops.cast(chosen, logits.dtype)) for logits in seen.logits)
