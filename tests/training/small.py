"""A data set and a recipe of a few thousand weights, for tests of training that are over in a second."""

import numpy as np
from helpers import SMALL

from keras_vit.data.dataset import DataSet, Split
from keras_vit.recipes.parse import load_recipe
from keras_vit.training.loop import train

STEPS = 4  # of an epoch
PLAIN = {"flip": False, "crop": 0}


def small_data():
    rng = np.random.default_rng(0)
    train, rest = (Split(rng.integers(256, size=(n, 8, 12, 1)).astype("uint8"), np.arange(n) % 3) for n in (16 * STEPS, 12))
    return DataSet("made", train, rest, rest, ["a", "b", "c"], "f", [])


def small_recipe(*, model=None, augment=None, **settings):
    """A recipe of 4 epochs without warmup; the settings are those of `train`."""
    settings = {
        "epochs": 4,
        "batch_size": 16,
        "warmup_epochs": 0,
        "learning_rate": 0.01,
        "optimizer": "adamw",
        "ema": 0.0,
        **settings,
    }
    model = {**SMALL, "stem": "patch", "stem_depth": 0, **(model or {})}
    return load_recipe("digits", data="made", model=model, augment={**PLAIN, **(augment or {})}, train=settings)


def trained(recipe, folder, **settings):
    return train(recipe, folder, data=small_data(), **{"verbose": 0, "pictures": False, **settings})


def column(run, name):
    return [row.get(name) for row in run.metrics]
