"""MixUp and CutMix: each image of a batch with a partner. Only NumPy is needed."""

import dataclasses
import typing

import numpy as np


@dataclasses.dataclass(frozen=True)
class Mixing:
    """MixUp (https://arxiv.org/abs/1710.09412) or CutMix (https://arxiv.org/abs/1905.04899), each image with a partner.

    The partner is another image of the batch, `shift` places before; each image has its own weight or box. The targets' weights are
    exactly the pixels' weights: MixUp's are multiples of 1/256, CutMix's count the pixels of the clipped box.

    Attributes:
        mixed: Whether an image is mixed at all (B,).
        cut: Whether by CutMix (B,).
        weight: MixUp's weight of the image itself, of 256 (B,).
        box: Top, left, bottom and right of the partner's box (B, 4).
        partner: The row of each image's partner (B,).
    """

    mixed: np.ndarray
    cut: np.ndarray
    weight: np.ndarray
    box: np.ndarray
    partner: np.ndarray

    @classmethod
    def draw(
        cls, rng: np.random.Generator, count: int, size: tuple[int, int], *, mixup: float, cutmix: float, probability: float
    ) -> typing.Self:
        """Draws what is mixed in a batch.

        Args:
            rng: Draws every random parameter.
            count: Images of the batch; a single image has no partner and stays as it is.
            size: Their height and width.
            mixup, cutmix: alpha of each one's Beta(alpha, alpha); 0 = off. With both on, an image takes either with equal
                probability.
            probability: Share of the images that are mixed.
        """
        height, width = size
        mixed = (rng.random(count) < probability) & (count > 1)
        cut = rng.random(count) < (0.5 if mixup and cutmix else float(cutmix > 0))
        weight = np.round(256 * beta(mixup, count, rng)).astype(np.uint16)
        share = np.sqrt(1 - beta(cutmix, count, rng))  # of the box's sides
        centre_y, centre_x = rng.integers(height, size=count), rng.integers(width, size=count)
        partner = np.roll(np.arange(count), rng.integers(1, max(count, 2)))
        rows, columns = np.round(height * share).astype(int), np.round(width * share).astype(int)
        top, left = centre_y - rows // 2, centre_x - columns // 2
        bottom, right = np.minimum(top + rows, height), np.minimum(left + columns, width)
        return cls(mixed, cut, weight, np.stack([np.maximum(top, 0), np.maximum(left, 0), bottom, right], axis=1), partner)

    def apply(self, images: np.ndarray, targets: np.ndarray, rows: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mixes some images of the batch.

        Args:
            images: uint8 (n, H, W, C), those of `rows`. Not modified.
            targets: float32 (n, K).
            rows: Their rows in the batch (n,), ascending, with the partners of those that are kept.
            kept: The rows that the result has (m,).

        Returns:
            uint8 images (m, H, W, C), float32 targets (m, K).
        """
        _, height, width, _ = images.shape
        own, other = np.searchsorted(rows, kept), np.searchsorted(rows, self.partner[kept])
        mixed, cut, weight, box = self.mixed[kept], self.cut[kept], self.weight[kept], self.box[kept]
        share = np.ones(len(kept), np.float32)  # of the image itself
        result = images[own]
        blended = np.flatnonzero(mixed & ~cut)
        w = weight[blended][:, None, None, None]
        # 255 * 256 + 128 fits 16 bits.
        result[blended] = (result[blended] * w + images[other[blended]] * (256 - w) + 128) >> 8
        share[blended] = weight[blended] / 256
        for i in np.flatnonzero(mixed & cut):
            top, left, bottom, right = box[i]
            result[i, top:bottom, left:right] = images[other[i], top:bottom, left:right]
            share[i] = 1 - (bottom - top) * (right - left) / (height * width)
        return result, share[:, None] * targets[own] + (1 - share)[:, None] * targets[other]


def beta(alpha, count, rng):
    return rng.beta(alpha, alpha, size=count) if alpha else np.ones(count)
