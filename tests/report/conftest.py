"""Run folders of made numbers: most tests here train nothing."""

import dataclasses

import pytest
from helpers import SMALL
from made import FINGERPRINT, NAMES

from keras_vit import load_recipe
from keras_vit.runs.folder import RunFolder


@pytest.fixture
def make_run(tmp_path):
    """Writes a run folder without a model; the settings are those of `train`."""

    def make(name="run", *, finished=True, epochs=3, seed=0, labels="single", summary=(), **settings):
        model = {**SMALL, "stem": "patch"}
        settings = {"epochs": epochs, "warmup_epochs": 0, "precision": "float32", **settings}
        recipe = load_recipe("digits", data="made", labels=labels, model=model, seed=seed, train=settings)
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, num_classes=3))
        run = RunFolder.create(tmp_path / name, recipe)
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

    return make
