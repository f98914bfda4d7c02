"""One backend's part of test_backends.py: saves its models, loads those of some backends and writes the numbers.

KERAS_BACKEND=jax python backend_worker.py FOLDER jax,tensorflow
"""

import pathlib
import sys
import time

import keras
import numpy as np
from helpers import COMMON
from reference import random_images

import keras_vit
from keras_vit.explain.attention import attention_distance, attention_maps
from keras_vit.explain.filters import patch_filters
from keras_vit.explain.methods import METHODS, heat_maps
from keras_vit.explain.positions import position_similarity
from keras_vit.parity import measure, randomise

PATIENCE = 240  # seconds for a slower backend to save its models
# One block each: XLA compiles every step of every model.
CONFIGS = {
    "cls": {"registers": 2, "prefix_positions": "all", "qk_norm": True, "layer_scale": 0.1},
    "map": {"pool": "map", "mlp": "swiglu", "position": "sincos2d", "pre_logits_dim": 10},
    "conv": {"image_size": (16, 12), "patch_size": 4, "stem": "conv", "pool": "gap", "position": "sincos1d"},
}
CONFIGS = {name: {**COMMON, "image_size": (12, 18), "patch_size": (3, 6), "depth": 1, **own} for name, own in CONFIGS.items()}

# Explained: the recipe `quick`, with its stem and its mean of patches; merged tokens, read by attention; twins, two tokens read.
EXPLAINED = {
    "quick": vars(keras_vit.load_recipe("quick").model),
    "merged": {**CONFIGS["map"], "depth": 2, "merge_tokens": 2, "registers": 1},
    "twins": {**CONFIGS["cls"], "block": "twin", "distillation": True},
}
EXPLAINED["quick"] |= {"num_classes": 10}


def main(folder, backends):
    backend, numbers = keras.backend.backend(), {}
    for name, options in CONFIGS.items():
        model = randomise(keras_vit.build_vit(keras_vit.ViTConfig(**options)))
        path = folder / f"{backend}-{name}.keras"
        model.save(path.with_suffix(".part.keras"))
        path.with_suffix(".part.keras").replace(path)
    for source in backends:
        for name in CONFIGS:
            path = folder / f"{source}-{name}.keras"
            deadline = time.monotonic() + PATIENCE
            while not path.exists():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{path.name} never came")
                time.sleep(0.1)
            model = keras.saving.load_model(path)
            images = random_images(model.config)
            numbers[f"{source}/{name}/logits"] = model.predict(images, verbose=0)
            if source == backend:
                for key, value in measure(model, 2, timed_seconds=0).items():
                    numbers[f"parity/{name}/{key}"] = value
    for name, options in EXPLAINED.items():
        model = randomise(keras_vit.build_vit(keras_vit.ViTConfig(**options)))
        images = random_images(model.config)
        found = {method: heat_maps(model, images, method) for method in METHODS}
        found |= {"maps": attention_maps(model, images), "distance": attention_distance(model, images)}
        found |= {"filters": patch_filters(model), "positions": position_similarity(model)}
        numbers |= {f"explained/{name}/{key}": value for key, value in found.items()}
    np.savez(folder / f"{backend}.npz", **numbers)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2].split(","))
