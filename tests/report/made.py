"""Run folders of made numbers, and outputs of a small model with made logits, for tests of reports."""

import dataclasses

import keras
import numpy as np
from helpers import SMALL

from keras_vit import build_vit, load_recipe
from keras_vit.data.dataset import Split
from keras_vit.runs.evaluation import Outputs
from keras_vit.runs.folder import RunFolder

NAMES = ["<b>cat</b>", "dog, \u202ebig", "blue\nbird"]  # what a page and a terminal must not obey
FINGERPRINT = "f" * 64


def write_run(folder, name="run", *, finished=True, epochs=3, seed=0, labels="single", summary=(), **settings):
    """A run folder of made numbers, without a model; the settings are those of `train`."""
    model = {**SMALL, "stem": "patch", "stem_depth": 0}
    settings = {"epochs": epochs, "warmup_epochs": 0, "precision": "float32", **settings}
    recipe = load_recipe("digits", data="made", labels=labels, model=model, seed=seed, train=settings)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, num_classes=3))
    run = RunFolder.create(folder / name, recipe)
    word = "map" if labels == "multi" else "accuracy"
    rows = [
        {
            "epoch": epoch,
            "seconds": 2.0 * epoch,
            "epoch_seconds": 1.5,
            "images_per_second": 1000.0 + epoch,
            "learning_rate": 0.1,
            "loss": 1 / epoch,
            word: 0.1 * epoch,
            "val_loss": 2 / epoch,
            f"val_{word}": 0.2 * epoch,
        }
        for epoch in range(1, (epochs if finished else 2) + 1)
    ]
    run.write_metrics(rows)
    if finished:
        known = {"data": "made", "data_notes": [], "class_names": NAMES, "multi_label": labels == "multi"}
        known |= {"fingerprint": FINGERPRINT, "images": {"train": 48, "test": 10}, f"test_{word}": 0.8, "epochs": epochs}
        known |= {"parameters": 1234, "flops": 5_600_000, "seconds": 6.0, "process_seconds": 75.0, "peak_memory_mb": 512.0}
        known |= {"backend": "jax", "device": "a processor", "versions": {"python": "3.12", "keras": "3.15"}}
        known |= {"commit": "abc", "date": "2026-11-30T12:00:00+00:00", "command": "keras-vit train --recipe digits"}
        run.write_summary(known | dict(summary))
    return run


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
