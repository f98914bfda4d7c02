"""A convolutional net for CIFAR-10, wider than `small-cnn`: a teacher that is trained beforehand.

    KERAS_BACKEND=torch python benchmarks/teacher.py teacher.keras --epochs 20 --json teacher.json
    keras-vit train --recipe standard --data cifar10 --distill.teacher teacher.keras --distill.views 4 --augment.mix_until 1

The net of `small-cnn`, with the widths and the resolution of a ResNet-9 (airbench94, arXiv 2404.00498). It sees the training images
of `standard`, flipped and cropped, normalised as there, and never the validation images. The test images are read once, at the end.
"""

import argparse
import pathlib
import time

from record import write_record

from keras_vit.processes import run_command

STEM, WIDTHS, SIDE = 32, (64, 256, 256), 32
BATCH = 128
CHUNK = 1000  # images that are predicted at a time


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path, help="the .keras file to write")
    parser.add_argument("--epochs", type=float, default=20, help="passes over the training images (default: 20)")
    parser.add_argument("--precision", default="float32", help="float32 (default) or bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path, help="file to write")
    options = parser.parse_args()

    import keras
    import numpy as np

    import keras_vit
    from keras_vit.training.distill.small_cnn import build, fit, own_recipe
    from keras_vit.training.models import POLICIES

    recipe = keras_vit.load_recipe("standard", data="cifar10", seed=options.seed, train={"precision": options.precision})
    data = recipe.load_data()
    recipe = own_recipe(recipe.for_data(data), BATCH)
    keras.utils.set_random_seed(recipe.seed)
    shape = ((*recipe.model.image_size, recipe.model.channels), len(data.class_names))
    model = build(*shape, POLICIES[recipe.train.precision], STEM, WIDTHS, SIDE)
    before = time.perf_counter()
    fit(model, recipe, data, options.epochs, verbose=2)
    seconds = time.perf_counter() - before
    trained = build(*shape, "float32", STEM, WIDTHS, SIDE)
    trained.set_weights(model.get_weights())
    trained.save(options.model)
    found = {"epochs": options.epochs, "precision": options.precision, "seconds": seconds, "parameters": trained.count_params()}
    for name, split in (("val", data.validation), ("test", data.test)):
        right = 0
        for start in range(0, len(split), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(split)))
            images = ((split.images(rows) / 255 - recipe.mean) / recipe.std).astype("float32")
            right += int((trained.predict_on_batch(images).argmax(axis=1) == split.labels[rows]).sum())
        found[f"{name}_accuracy"] = right / len(split)
    print(found)
    if options.json:
        write_record(options.json, **found)


if __name__ == "__main__":
    run_command(main)
