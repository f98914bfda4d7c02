"""Does an epoch over many photos keep the memory flat? Resident memory of this process while it reads every image once.

    python benchmarks/memory.py [--images 200000] [--size 48] [--json memory.json]

The images are generated as JPEG files in a temporary folder, which needs about 2 KB for each. They are read as in training, with
random parts of the pictures, and are not kept in memory.
"""

import argparse
import os
import pathlib
import tempfile

import numpy as np
import psutil
from PIL import Image

from keras_vit.processes import run_command

BATCH, CLASSES, POINTS = 128, 10, 40


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000, help="files (default: 200000)")
    parser.add_argument("--size", type=int, default=48, help="pixels a side of the files and of the images (default: 48)")
    parser.add_argument("--json", type=pathlib.Path, help="file to write: the curve")
    options = parser.parse_args()
    from keras_vit.data.augment import AugmentConfig
    from keras_vit.data.batches import training_batches
    from keras_vit.data.dataset import load_data

    process, curve = psutil.Process(), []
    with tempfile.TemporaryDirectory() as folder:
        write_files(pathlib.Path(folder), options.images, options.size)
        split = load_data(f"folder:{folder}", image_size=options.size, validation=0).train
        settings = {"num_classes": CLASSES, "batch_size": BATCH, "mean": 0.5, "std": 0.5}
        batches = iter(training_batches(split, AugmentConfig(resized_crop=0.08), seed=0, **settings))
        steps = len(split) // BATCH
        for step in range(steps):
            next(batches)
            if step % max(1, steps // POINTS) == 0:
                curve.append({"images": (step + 1) * BATCH, "memory_mb": process.memory_info().rss / 2**20})
                print(f"{curve[-1]['images']:10,} images {curve[-1]['memory_mb']:8,.0f} MB", flush=True)
    later = [point["memory_mb"] for point in curve[POINTS // 10 :]]
    print(f"{os.cpu_count()} cores; after the first tenth {min(later):,.0f} to {max(later):,.0f} MB")
    if options.json:
        from record import write_record

        write_record(options.json, images=options.images, size=options.size, batch_size=BATCH, curve=curve)


def write_files(folder, count, size):
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / str(label)).mkdir()
    for index in range(count):
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((size, size), Image.Resampling.BICUBIC).save(folder / str(index % CLASSES) / f"{index}.jpg")


if __name__ == "__main__":
    run_command(main)
