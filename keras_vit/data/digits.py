"""scikit-learn's digits: 1,797 images of 8x8 pixels that need no download."""

import numpy as np

from keras_vit.data.decode import to_shape


def read_digits(shape: tuple[int, int, int]) -> tuple[dict, list[str]]:
    """Images and labels of part `train`, and the class names; see `dataset.read_source`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # values are 0..16
    return {"train": (to_shape(images, shape), digits.target)}, [str(digit) for digit in range(10)]
