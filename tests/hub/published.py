"""Small runs that have ended, to publish."""

import dataclasses

import keras_vit
from keras_vit.parity import randomise
from keras_vit.recipes.parse import load_recipe
from keras_vit.runs.folder import RunFolder

NAMES = ["<script>alert(1)</script>", "a, |b| `c`", "line\nbreak", "[x](http://evil.example) $\\frac{1}{2}$ https://evil.example"]
SHAPE = {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32, "channels": 3}
SHAPES = {
    "both": {"pool": "cls", "stem": "patch", "stem_depth": 0, "position": "learned"},
    "neither": {"pool": "gap", "stem": "conv", "patch_size": 2},
}


def make(folder, shape, **settings):
    settings = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "data": "folder:/home/secret/my photos"} | settings
    recipe = load_recipe("digits", model=SHAPE | SHAPES[shape], **settings)
    run = RunFolder.create(folder, recipe)
    run.write_model(1, randomise(keras_vit.build_vit(dataclasses.replace(recipe.model, num_classes=len(NAMES)))))
    run.write_summary(
        {
            "data": "folder my photos",
            "images": {"train": 80, "validation": 20, "test": 100},
            "data_notes": ["/home/secret"],
            "class_names": NAMES,
            "multi_label": False,
            "fingerprint": "00ff",
            "test_loss": 0.5,
            "test_accuracy": 0.83,
            "test_balanced_accuracy": 0.8,
            "test_classes": {name: {"recall": 0.7 + 0.1 * label} for label, name in enumerate(NAMES[:3])},
            "best_epoch": 1,
            "monitor": "accuracy",
            "epochs": 2,
            "parameters": 1234,
            "flops": 5_600_000,
            "process_seconds": 61.0,
            "seed": 0,
            "precision": "float32",
            "device": "a CPU",
            "backend": "torch",
            "versions": {"keras": "3.15.1"},
            "command": "keras-vit train --data folder:/home/secret",
        }
    )
    return run
