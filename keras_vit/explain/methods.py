"""The methods that give a heat map of an image, by name."""

import numpy as np

from keras_vit.checks import check_choice
from keras_vit.explain.attention import attention, attention_rollout
from keras_vit.explain.attribution import grad_cam, gradient_attention, legrad, occlusion
from keras_vit.model.vit import ViT

WITHOUT_CLASS = {"attention": attention, "rollout": attention_rollout}
OF_A_CLASS = {"gradient-attention": gradient_attention, "legrad": legrad, "grad-cam": grad_cam, "occlusion": occlusion}
METHODS = (*WITHOUT_CLASS, *OF_A_CLASS)
FIRST_CHOICE = "gradient-attention"  # the most faithful one of those that take milliseconds: docs/guides/explain.md


def heat_maps(model: ViT, images: np.ndarray, method: str, classes: int | np.ndarray | None = None) -> np.ndarray:
    """Where the model looks, by one of `METHODS`.

    Args:
        model: A `ViT` with a head.
        images: (B, H, W, C), normalised, as the model takes them.
        method: `attention` (of the last block), `rollout`, `gradient-attention`, `legrad`, `grad-cam` or `occlusion`.
        classes: The class to explain, by index: one for all images, or (B,); None = the predicted ones. The first two methods
            know no class.

    Returns:
        float32 (B, rows, columns) of patches, at least 0.

    Raises:
        ValueError: For another method, images of another shape, or a class that there is not.
    """
    check_choice("method", method, METHODS)
    if method in WITHOUT_CLASS:
        return WITHOUT_CLASS[method](model, images)
    return OF_A_CLASS[method](model, images, classes)
