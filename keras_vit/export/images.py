"""The images of exports: random and real ones that verify an artifact, and real ones that calibrate int8.

Shapes: N images of H x W pixels and C channels.
"""

import itertools

import numpy as np

from keras_vit.export.formats import BATCHES
from keras_vit.export.models import interface
from keras_vit.images import normalize


def verification_images(model, run, images, batch_size) -> list[tuple[str, np.ndarray]]:
    """Named uint8 images (N, H, W, C) to compare an artifact on: random ones and, where there are any, real ones."""
    count = max((batch_size,) if batch_size else BATCHES)
    shape = interface(model).pictures
    cases = [("random", np.random.default_rng(0).integers(256, size=(count, *shape)).astype("uint8"))]
    if images is None:
        images = test_images(run) if run else None
        images = photographs(count, shape) if images is None else images
    if images is not None:
        images = check_images(images, shape)[:count]
        cases.append(("real", np.resize(images, (count, *shape))))
    return cases


def calibration_images(model, run, images, precision) -> np.ndarray:
    """Real uint8 images (N, H, W, C) for the ranges of activations: the user's, or the run's training images."""
    if images is None and run is None:
        raise ValueError(
            f"images: received none; allowed: uint8 images (N, H, W, C), or a run, as {precision} is calibrated on real images"
        )
    if images is None:
        images = run_images(run, "train", count=256)
    return check_images(images, interface(model).pictures)


def check_images(images, shape):
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        allowed = ", ".join(map(str, ("N", *shape)))
        raise ValueError(f"images: received {images.dtype} of shape {images.shape}; allowed: uint8 of shape ({allowed})")
    return images


def run_images(run, split: str, count: int = 64) -> np.ndarray:
    """Images of a run: its first test images (validation images if it has no test split), or random training images."""
    data = run.recipe.load_data()
    part = data.test if split == "test" else data.train
    if part is None:
        part = data.validation or data.train
    picked = np.arange(min(count, len(part)))
    if split == "train":
        picked = np.random.default_rng(0).choice(len(part), len(picked), replace=False)
    return part.images(picked)


def test_images(run):
    """The first test images of a run; None if its data set is missing, as on another machine."""
    try:
        return run_images(run, "test")
    except ValueError:
        return None


def photographs(count, shape):
    """Crops (N, H, W, C) of scikit-learn's two photographs; None unless C is 1 or 3."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    height, width, channels = shape
    if channels not in (1, 3):
        return None
    rng, crops = np.random.default_rng(0), []
    for picture in itertools.islice(itertools.cycle(load_sample_images().images), count):
        side = int(rng.integers(min(picture.shape[:2]) // 3, min(picture.shape[:2])))
        top, left = (int(rng.integers(full - side + 1)) for full in picture.shape[:2])
        crop = Image.fromarray(picture[top : top + side, left : left + side]).convert("L" if channels == 1 else "RGB")
        crops.append(np.asarray(crop.resize((width, height), Image.Resampling.BICUBIC)).reshape(shape))
    return np.stack(crops)


def to_model(images: np.ndarray, report: dict) -> np.ndarray:
    """uint8 images (N, H, W, C) as the Keras model takes them."""
    mean, std = (report["mean"], report["std"]) if report["mean"] else (0.5, 0.5)
    images = normalize(images, mean, std)
    return images.transpose(0, 3, 1, 2) if report["data_format"] == "channels_first" else images
