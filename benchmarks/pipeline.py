"""Does the input pipeline keep up? Its images/s for several augmentations, beside the training rate of a recipe's model.

    python benchmarks/pipeline.py [--recipe standard] [--seconds 5] [--json pipeline.json]

The pipeline and the training take turns in one process, so that other work on the machine hits both alike; the median of the turns
is printed. Training is measured on one fixed batch: it does not wait for data.
"""

import argparse
import dataclasses
import os
import pathlib
import statistics
import time

import numpy as np

from keras_vit.processes import run_command

WARM_UP, TURNS, CLASSES = 3, 3, 10  # steps, repetitions, classes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="standard", help="name or file of the recipe (default: standard)")
    parser.add_argument("--seconds", type=float, default=5, help="length of a turn, of three (default: 5)")
    parser.add_argument("--pipeline", choices=("tf.data", "PyDataset"), help="default: what the backend uses")
    parser.add_argument("--images", type=int, default=50_000, help="random images that are read (default: 50000)")
    parser.add_argument("--json", type=pathlib.Path, help="file to write: every turn")
    options = parser.parse_args()
    import keras

    from keras_vit.data.augment import AugmentConfig
    from keras_vit.recipes.parse import load_recipe

    recipe = load_recipe(options.recipe)
    batch_size = recipe.train.batch_size

    augmentations = {
        "off": AugmentConfig(flip=False, crop=0),
        "flip + crop": AugmentConfig(),
        "flip + crop, CutMix, MixUp": AugmentConfig(mixup=0.8, cutmix=1.0),
        "the same, 2 x RandAugment": AugmentConfig(mixup=0.8, cutmix=1.0, randaugment_layers=2),
        f"recipe {options.recipe}": recipe.augment,
    }
    split = random_split(recipe.model, options.images)
    steps = {name: pipeline_step(recipe, split, augment, options.pipeline) for name, augment in augmentations.items()}
    steps["training"] = training_step(recipe, split)
    turns = {name: [] for name in steps}
    for _ in range(TURNS):
        for name, step in steps.items():
            turns[name].append(batch_size * rate(step, options.seconds))
    rates = {name: statistics.median(values) for name, values in turns.items()}

    backend = keras.backend.backend()
    print(f"\n{backend}, {os.cpu_count()} cores, batches of {batch_size}, images/s (median of {TURNS} turns)")
    for name, value in rates.items():
        print(f"  {name:30s}{value:10,.0f}{value / rates['training']:10.1f} x training")
    if options.json:
        from record import write_record

        settings = {"recipe": options.recipe, "augment": dataclasses.asdict(recipe.augment), "batch_size": batch_size}
        write_record(options.json, **settings, images_per_second=rates, turns=turns)


def random_split(model, count):
    from keras_vit.data.dataset import Split

    height, width = np.broadcast_to(model.image_size, 2)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, height, width, model.channels), dtype=np.uint8)
    return Split(images, rng.integers(0, CLASSES, count))


def pipeline_step(recipe, split, augment, pipeline):
    from keras_vit.data.batches import training_batches

    settings = {"num_classes": CLASSES, "batch_size": recipe.train.batch_size, "mean": recipe.mean, "std": recipe.std}
    batches = training_batches(split, augment, seed=recipe.seed, pipeline=pipeline, **settings)
    return lambda: iter(batches).__next__


def training_step(recipe, split):
    from keras_vit.images import normalize
    from keras_vit.model.vit import build_vit
    from keras_vit.training.models import POLICIES, compile_model
    from keras_vit.training.optimizer import make_optimizer

    config = dataclasses.replace(recipe.model, num_classes=CLASSES)
    model = build_vit(config, dtype=POLICIES[recipe.train.precision])
    compile_model(model, make_optimizer(recipe.train, 10**6), recipe.train.jit)
    indices = np.arange(recipe.train.batch_size)
    images, targets = normalize(split.images(indices), recipe.mean, recipe.std), np.eye(CLASSES)[split.labels[indices]]
    return lambda: lambda: model.train_on_batch(images, targets)


def rate(start, seconds):
    """Steps a second of the step that `start` returns. It starts here: a pipeline that waits in the background works on."""
    step = start()
    for _ in range(WARM_UP):
        step()
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        step()
        count += 1
    return count / elapsed


if __name__ == "__main__":
    run_command(main)
