"""MixUp and CutMix: each image of a batch with a partner. Only NumPy is needed."""

import numpy as np


def mix(
    images: np.ndarray, targets: np.ndarray, rng: np.random.Generator, *, mixup: float, cutmix: float, probability: float
) -> tuple[np.ndarray, np.ndarray]:
    """MixUp (https://arxiv.org/abs/1710.09412) or CutMix (https://arxiv.org/abs/1905.04899), each image with a partner.

    The partner is another image of the batch, `shift` places on; each image draws its own weight or box. The targets' weights are
    exactly the pixels' weights: MixUp's are multiples of 1/256, CutMix's count the pixels of the clipped box.

    Args:
        images: uint8 (B, H, W, C). Not modified.
        targets: float32 (B, K).
        rng: Draws every random parameter.
        mixup, cutmix: alpha of each one's Beta(alpha, alpha); 0 = off. With both on, an image takes either with equal probability.
        probability: Share of the images that are mixed.

    Returns:
        uint8 images (B, H, W, C), float32 targets (B, K).
    """
    count, height, width, _ = images.shape
    if count < 2:
        return images, targets
    mixed = rng.random(count) < probability
    cut = rng.random(count) < (0.5 if mixup and cutmix else float(cutmix > 0))
    weight = np.round(256 * beta(mixup, count, rng)).astype(np.uint16)  # of the image itself, of 256
    share = np.sqrt(1 - beta(cutmix, count, rng))  # of the box's sides
    centre_y, centre_x = rng.integers(height, size=count), rng.integers(width, size=count)
    shift = rng.integers(1, count)
    partner, partner_targets = np.roll(images, shift, axis=0), np.roll(targets, shift, axis=0)

    own = np.ones(count, np.float32)
    images = images.copy()
    blended = np.flatnonzero(mixed & ~cut)
    w = weight[blended][:, None, None, None]
    images[blended] = (images[blended] * w + partner[blended] * (256 - w) + 128) >> 8  # 255 * 256 + 128 fits 16 bits
    own[blended] = weight[blended] / 256
    rows, columns = np.round(height * share).astype(int), np.round(width * share).astype(int)
    top, left = centre_y - rows // 2, centre_x - columns // 2
    bottom, right = np.minimum(top + rows, height), np.minimum(left + columns, width)
    top, left = np.maximum(top, 0), np.maximum(left, 0)
    for i in np.flatnonzero(mixed & cut):
        images[i, top[i] : bottom[i], left[i] : right[i]] = partner[i, top[i] : bottom[i], left[i] : right[i]]
        own[i] = 1 - (bottom[i] - top[i]) * (right[i] - left[i]) / (height * width)
    return images, own[:, None] * targets + (1 - own)[:, None] * partner_targets


def beta(alpha, count, rng):
    return rng.beta(alpha, alpha, size=count) if alpha else np.ones(count)
