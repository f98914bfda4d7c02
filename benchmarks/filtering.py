"""Does it pay to leave out the images that a model has learned already? A trial, of what is not in the library.

    KERAS_BACKEND=torch python benchmarks/filtering.py --steps 80 --keep 1 0.6 --seeds 0 1 2 --json filtering.json

Trains `quick` on CIFAR-10 for 12 epochs of a number of steps. After half of them the training images are predicted, not augmented;
from then on only that share of them comes that has the smallest probability of its class, equally often. 1 keeps all and
predicts nothing. Each run is a process of its own, and counts from its start. Choices are made by the validation accuracy.
"""

import argparse
import functools
import json
import pathlib
import subprocess
import sys
import tempfile
import time

from record import write_record
from scipy.special import softmax

from keras_vit.processes import run_command

EPOCHS = 12
AFTER = 6  # epochs
BATCH = 2000  # images that are predicted at a time
NAMES = ("backend", "device", "precision", "seconds", "process_seconds", "val_accuracy", "test_accuracy")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80, help="of an epoch (default: 80)")
    parser.add_argument("--keep", type=float, nargs="+", default=[1, 0.6], help="shares of the images (default: 1 0.6)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=pathlib.Path, help="file to write, anew after each run")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        return run(**json.loads(options.run))
    runs = []
    for seed in options.seeds:
        for keep in options.keep:
            with tempfile.TemporaryDirectory() as folder:
                job = {"folder": folder, "keep": keep, "steps": options.steps, "seed": seed}
                subprocess.run([sys.executable, __file__, "--run", json.dumps(job)], check=True)
                runs.append(json.loads(pathlib.Path(folder, "row.json").read_text(encoding="utf-8")))
            print(json.dumps(runs[-1]), flush=True)
            if options.json:
                write_record(options.json, recipe="quick", data="cifar10", epochs=EPOCHS, steps=options.steps, runs=runs)
    return None


def run(folder, keep, steps, seed):
    """A training, in this process."""
    import keras
    import numpy as np

    import keras_vit
    from keras_vit.data import batches
    from keras_vit.data.seeds import ORDER, generator

    settings = {"epochs": EPOCHS, "steps_per_epoch": steps, "time": None}
    recipe = keras_vit.load_recipe("quick", data="cifar10", seed=seed, train=settings)
    data = recipe.load_data()
    left, spent = None, 0.0

    class Filter(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            nonlocal left, spent
            if epoch + 1 != AFTER or keep == 1:
                return
            before, found = time.perf_counter(), []
            for start in range(0, len(data.train), BATCH):
                indices = np.arange(start, min(start + BATCH, len(data.train)))
                images = (data.train.images(indices) / 255 - recipe.mean) / recipe.std
                chances = softmax(self.model.predict_on_batch(images.astype("float32")), axis=1)
                found.append(chances[np.arange(len(indices)), data.train.labels[indices]])
            left = np.argsort(np.concatenate(found))[: round(keep * len(data.train))]
            batches.order.cache_clear()
            spent = time.perf_counter() - before

    def order(count, seed, epoch):
        rng = generator(ORDER, seed, epoch)
        if left is None:
            return rng.permutation(count)
        return np.concatenate([rng.permutation(left) for _ in range(-(-count // len(left)))])[:count]

    batches.order = functools.lru_cache(maxsize=4)(order)
    result = keras_vit.train(recipe, folder, data=data, overwrite=True, pictures=False, callbacks=[Filter()], verbose=2)
    row = {"keep": keep, "seed": seed, "filter_seconds": round(spent, 1)}
    row |= {name: result.summary.get(name) for name in NAMES}
    row["curve"] = [[round(each["seconds"], 1), each["val_accuracy"]] for each in result.metrics if "val_accuracy" in each]
    pathlib.Path(folder, "row.json").write_text(json.dumps(row), encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
