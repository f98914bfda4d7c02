"""The recipe for a data set where the user names none."""

import dataclasses

import numpy as np

from keras_vit.data.dataset import DataSet
from keras_vit.recipes.parse import load_recipe

PHOTO_SIDE = 64  # pixels: larger pictures are photos, smaller ones are like CIFAR's
MANY = 50_000  # photos that train a large model from scratch
EPOCHS_FOR = 8_500  # images: what the epochs of photos-scratch are for
FEWEST, MOST = 10, 300  # epochs


@dataclasses.dataclass(frozen=True)
class Choice:
    """A recipe that suits a data set.

    Attributes:
        recipe: Its name.
        options: Settings on top of it, as on a command line.
        reason: A line for the user.
    """

    recipe: str
    options: list[str]
    reason: str


def choose_recipe(side: int, images: int, accelerator: str) -> Choice:
    """The recipe that trains from scratch.

    `photos-scratch` gets as many epochs as take its usual time, whatever the number of images.

    Args:
        side: As of `picture_side`.
        images: Number of training images.
        accelerator: Name of the device, empty for a processor.
    """
    found = f"{images:,} training pictures of {side} pixels a side, {accelerator or 'no accelerator'}, no checkpoint"
    if side < PHOTO_SIDE:
        name, options = "standard" if accelerator else "quick", []
    elif accelerator and images >= MANY:
        name, options = "photos-gpu", []
    else:
        name = "photos-scratch"
        usual = load_recipe(name).train.epochs
        epochs = min(max(round(usual * EPOCHS_FOR / images), FEWEST), MOST)
        options = [f"--train.epochs={epochs}"]
        if epochs != usual:
            found += f"; {epochs} epochs for its {usual}, which are for {EPOCHS_FOR:,} images"
    return Choice(name, options, f"recipe {name}: {found}")


def choose_pretraining(side: int) -> Choice:
    """The recipe for pre-training on pictures of a side, as of `picture_side`."""
    name = "pretrain" if side < PHOTO_SIDE else "pretrain-photos"
    return Choice(name, [], f"recipe {name}: training pictures of {side} pixels a side")


def picture_side(data: DataSet) -> int:
    """Median of the shorter sides of the training pictures in pixels, before they were resized if their files are at hand."""
    return int(np.median(data.train.sizes(np.arange(len(data.train))).min(axis=1)))
