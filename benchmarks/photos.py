"""How fast is the training input from photos? Images/s beside torchvision v2 in a DataLoader and tf.data's own operations.

    python benchmarks/photos.py [--photos FOLDER] [--size 224] [--seconds 8] [--json photos.json]

Each takes a random part of JPEG files of 500 x 375 pixels (RandomResizedCrop, 8% to 100%, bicubic), mirrors half of them and
normalises. They take turns in one process, each with all cores; the median of the turns is printed. What is not installed is left
out.
"""

import argparse
import importlib.util
import io
import os
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np
from PIL import Image

from keras_vit.processes import run_command

TURNS, BATCH, PIXELS, CLASSES = 3, 64, (500, 375), 10
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=pathlib.Path, help="folder with JPEG files; default: scikit-learn's two photographs")
    parser.add_argument("--count", type=int, default=2000, help="files that are read (default: 2000)")
    parser.add_argument("--size", type=int, default=224, help="pixels a side (default: 224)")
    parser.add_argument("--seconds", type=float, default=8, help="length of a turn, of three (default: 8)")
    parser.add_argument("--json", type=pathlib.Path, help="file to write: every turn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        write_files(options.photos, folder, options.count)
        streams = {"keras_vit": keras_vit_stream(folder, options.size)}
        if importlib.util.find_spec("torchvision"):
            streams["torchvision v2, DataLoader"] = torchvision_stream(folder, options.size)
        if importlib.util.find_spec("tensorflow"):
            streams["tf.data"] = tf_data_stream(folder, options.size)
        turns = {name: [] for name in streams}
        for _ in range(TURNS):
            for name, stream in streams.items():
                turns[name].append(rate(stream, options.seconds))
    rates = {name: statistics.median(values) for name, values in turns.items()}
    print(
        f"{os.cpu_count()} cores, {options.size} px from JPEG files of {PIXELS[0]}x{PIXELS[1]}, images/s (median of {TURNS} turns)"
    )
    for name, value in rates.items():
        print(f"  {name:30s}{value:10,.0f}{rates['keras_vit'] / value:8.2f} x")
    if options.json:
        from record import write_record

        write_record(options.json, size=options.size, batch_size=BATCH, count=options.count, images_per_second=rates, turns=turns)


def write_files(source, folder, count):
    """Photos as JPEG files of one size, in a folder for each class; a different part of the source for each."""
    if source:
        pictures = [path.read_bytes() for path in sorted(source.rglob("*.*"))[:: max(1, len(list(source.rglob("*.*"))) // count)]]
        pictures = [Image.open(io.BytesIO(content)).convert("RGB") for content in pictures[:count]]
    else:
        from sklearn.datasets import load_sample_images

        pictures = [Image.fromarray(array) for array in load_sample_images().images]
    rng = np.random.default_rng(0)
    for index in range(count):
        picture = pictures[index % len(pictures)]
        width, height = (round(side * rng.uniform(0.7, 1)) for side in picture.size)
        left, top = (int(rng.integers(0, side - part + 1)) for side, part in zip(picture.size, (width, height), strict=True))
        part = picture.resize(PIXELS, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        target = folder / str(index % CLASSES) / f"{index}.jpg"
        target.parent.mkdir(exist_ok=True)
        part.save(target, quality=90)


def keras_vit_stream(folder, size):
    from keras_vit.data.augment import AugmentConfig
    from keras_vit.data.batches import training_batches
    from keras_vit.data.dataset import load_data

    split = load_data(f"folder:{folder}", image_size=size, validation=0).train
    settings = {"num_classes": CLASSES, "batch_size": BATCH, "mean": MEAN, "std": STD}
    batches = training_batches(split, AugmentConfig(resized_crop=0.08), seed=0, **settings)
    return lambda: iter(batches)


def torchvision_stream(folder, size):
    sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "tests"))
    from peers import torch  # before torchvision, which may lack its compiled operators
    from torchvision import datasets, transforms
    from torchvision.transforms import v2

    steps = [
        v2.RandomResizedCrop(size, interpolation=transforms.InterpolationMode.BICUBIC),
        v2.RandomHorizontalFlip(),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(MEAN, STD),
    ]
    files = datasets.ImageFolder(str(folder), v2.Compose(steps))
    sampler = torch.utils.data.RandomSampler(files, replacement=True, num_samples=10**7)
    loader = torch.utils.data.DataLoader(files, BATCH, sampler=sampler, num_workers=os.cpu_count())
    return lambda: iter(loader)


def tf_data_stream(folder, size):
    import tensorflow as tf

    files = sorted(map(str, folder.rglob("*.jpg")))
    mean, std = (tf.constant(values) * 255 for values in (MEAN, STD))

    def load(file):
        content = tf.io.read_file(file)
        shape = tf.image.extract_jpeg_shape(content)
        whole = tf.zeros((1, 1, 4))
        settings = {"area_range": (0.08, 1.0), "aspect_ratio_range": (3 / 4, 4 / 3), "max_attempts": 10}
        begin, part, _ = tf.image.sample_distorted_bounding_box(shape, whole, use_image_if_no_bounding_boxes=True, **settings)
        window = tf.stack([begin[0], begin[1], part[0], part[1]])
        image = tf.image.decode_and_crop_jpeg(content, window, channels=3)
        image = tf.image.resize(image, (size, size), "bicubic", antialias=True)
        return (tf.image.random_flip_left_right(image) - mean) / std

    data = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).repeat()
    data = data.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)
    return lambda: iter(data)


def rate(stream, seconds):
    """Images a second of a stream, after its first batches; it ends with the turn, and with it its threads and processes."""
    batches = stream()
    for _ in range(3):
        next(batches)
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        next(batches)
        count += BATCH
    return count / elapsed


if __name__ == "__main__":
    run_command(main)
