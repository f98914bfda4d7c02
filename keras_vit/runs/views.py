"""Test-time augmentation (TTA): logits averaged over several views of each image.

The views are the image itself, its mirror image (`flip`), and both shifted along the diagonal, with reflected borders (`shift`).
Logits are averaged, not probabilities, as in timm and airbench94 (arXiv 2404.00498); the accuracies of both are nearly the same.

Shapes: B images of a batch, H height, W width, C channels, K classes, V views.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from keras_vit.checks import shown, unknown
from keras_vit.data.augment import AugmentConfig
from keras_vit.data.pixels import reflect

KINDS = ("flip", "shift")
AUTO = "auto"  # those that the training used
SHIFT = 1 / 32  # of a side, at least a pixel
PLACES = ((0, 0), (-1, -1), (1, 1))  # down and right, in shifts; the four neighbours gain no more (benchmarks/LOG.md)


@dataclasses.dataclass(frozen=True)
class View:
    """What is done to each image.

    Attributes:
        flip: Whether it is mirrored left to right.
        down, right: Where it is moved, in shares `SHIFT` of its height and width.
    """

    flip: bool = False
    down: int = 0
    right: int = 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, C) -> the same."""
        height, width = images.shape[1:3]
        rows, columns = (
            reflect(np.arange(side) - place * max(1, round(SHIFT * side)), side)
            for side, place in ((height, self.down), (width, self.right))
        )
        return images[:, rows][:, :, columns[::-1] if self.flip else columns]


def choose_views(tta: str | Sequence[View] | None, augment: AugmentConfig | None = None) -> tuple[list[View], str]:
    """The views, the image itself first, and a note for the user, which may be empty.

    Args:
        tta: `flip`, `shift` or `flip,shift`; `auto`: of the two those that the training used; or the views; None = the image alone.
        augment: The augmentation of the training; None = not known.

    Raises:
        ValueError: For another name, and for `auto` where the training is not known or used none of the two.
    """
    if tta is None:
        return [View()], ""
    if isinstance(tta, (list, tuple)) and tta and all(isinstance(view, View) for view in tta):
        return [*tta], ""
    if not isinstance(tta, str):
        raise ValueError(f"tta: received {shown(tta)}; allowed: flip, shift, flip,shift or auto")
    names, note = [name.strip() for name in tta.split(",")], ""
    if names == [AUTO]:
        used = {} if augment is None else {"flip": augment.flip, "shift": augment.crop or augment.resized_crop}
        names = [name for name in KINDS if used.get(name)]
        if not names:
            why = "as the training of this model is not known" if augment is None else "as the training used none of them"
            raise ValueError(f"tta: received 'auto'; allowed: flip, shift or flip,shift, {why}")
    for name in names:
        if name not in KINDS:
            raise ValueError(unknown("tta", name, [*KINDS, "flip,shift", *[AUTO] * (len(names) == 1)]))
    if "flip" in names and augment is not None and not augment.flip:
        note = "tta: flip mirrors images, which the training did not (augment.flip): digits, say, become others"
    places = PLACES if "shift" in names else PLACES[:1]
    return [View(flip, *place) for flip in ((False, True) if "flip" in names else (False,)) for place in places], note


def described(views: list[View]) -> str:
    """Views in words, such as "flip, shift: 6 views"."""
    kinds = ["flip"] * any(view.flip for view in views) + ["shift"] * any(view.down or view.right for view in views)
    return f"{', '.join(kinds)}: {len(views)} views"


def over_views(logits: Callable[[np.ndarray], np.ndarray], views: Sequence[View]) -> Callable[[np.ndarray], np.ndarray]:
    """A function from images (B, H, W, C) to logits (B, K), averaged over views."""
    if list(views) == [View()]:
        return logits
    return lambda images: np.mean([logits(view(images)) for view in views], axis=0, dtype=np.float64)
