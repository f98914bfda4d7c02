"""Outputs of a small model with made logits, for tests of reports."""

import keras
import numpy as np

from keras_vit import build_vit
from keras_vit.data.dataset import Split
from keras_vit.runs.evaluation import Outputs

NAMES = ["<b>cat</b>", "dog, \u202ebig", "blue\nbird"]  # what a page and a terminal must not obey
FINGERPRINT = "f" * 64


def outputs_of(run, logits, labels):
    """Outputs with these logits; image number i is grey of brightness 20 i."""
    images = np.broadcast_to(20 * np.arange(len(labels))[:, None, None, None], (len(labels), 8, 12, 1)).astype(np.uint8)
    keras.utils.set_random_seed(0)
    model = build_vit(run.recipe.model)
    return Outputs(model, Split(images, np.asarray(labels)), np.asarray(labels), np.asarray(logits), NAMES, "made", FINGERPRINT)


def single(run):
    """Ten images, of which 2, 5 and 7 are wrong; the model is surest of 7, then of 2, then of 5."""
    labels = np.arange(10) % 3
    logits = 3.0 * np.eye(3)[labels]
    logits[2] = [0, 4, 0]  # an image of class 2
    logits[5] = [1, 0, 0]
    logits[7] = [0, 0, 9]  # an image of class 1
    return outputs_of(run, logits, labels)


def looks_right(model, images):
    """Stands for attention: the last column of patches has all of it."""
    maps = np.zeros((len(images), *model.config.grid_size), np.float32)
    maps[:, :, -1] = 1
    return maps
