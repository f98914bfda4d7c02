"""`export_model`: writes a model in a format of another runtime, from any backend, and verifies it there.

The best installed backend writes the format, in a process of its own; the model travels there as a `.keras` file, which gives the
same numbers under every backend. A second process, with the format's runtime and without Keras, then runs the artifact on random
and real images in batches of 1, 3 and 64. If its logits differ from the Keras model's by more than a threshold, the export is an
error and leaves nothing on disk.

Shapes: B batch, h x w a picture, H x W the model's image, C channels, K classes.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from keras_vit.checks import check_choice, check_int
from keras_vit.export.formats import EVERY, INPUTS, check_precision, choose_writer
from keras_vit.export.images import calibration_images, verification_images
from keras_vit.export.models import check_model, float32_model
from keras_vit.export.report import bytes_of, describe
from keras_vit.export.verify import verify
from keras_vit.files import atomic_folder, write_json
from keras_vit.model.vit import ViT, merging_model
from keras_vit.processes import ON_PROCESSOR, run_python
from keras_vit.runs.folder import RunFolder


def export_model(
    model_or_run: keras.Model | RunFolder,
    path: str | os.PathLike,
    format: str,
    *,
    precision: str = "float32",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    multi_label: bool | None = None,
    center_crop: float | None = None,
    temperature: float | None = None,
    input: str = "auto",
    images: np.ndarray | None = None,
    batch_size: int | None = None,
    merge_tokens: int | None = None,
    overwrite: bool = False,
    threshold: float | None = None,
) -> dict:
    """Writes a model in a format, loads it in that format's own runtime in a fresh process, and compares the logits.

    The artifact normalises its images itself: uint8 images (B, H, W, C) go in, logits (B, K) come out, for any B.

    A SavedModel has three signatures. `serving_default` takes uint8 images of any size (B, h, w, C) and gives `labels` and
    `probabilities` (B, K), the likeliest class first. `serving_bytes` takes encoded JPEG or PNG files (B,) and gives the same.
    `serve` takes normalised float32 images, as the Keras model, and gives `logits`. The first two read pictures as training does:
    turned upright by a JPEG's EXIF, on a white background, resized to cover H x W and cropped at the centre.

    Args:
        model_or_run: A `ViT`; a functional model of your own from float32 images of one size to logits or features, of Keras's
            layers and this library's, such as a ViT with layers around it; or a `RunFolder`, which also gives mean, std, class
            names and images.
        path: The folder to write. It gets `export.json` (the report) and the artifact: `saved_model.pb` and its folders,
            `model.onnx`, `model.tflite`, `model.xml` and `model.bin`, `model.pt2` or `model.keras`.
        format: A name of `FORMATS`, or `keras`.
        precision: Precision of the weights, and of the activations if the format computes in it; see `Format`. `int8` is the
            fastest on processors, accelerators need `int8_static` (LiteRT); see `keras_vit.export.quantize`.
        mean: Mean of the pixels scaled to 0..1, one number or one for each channel. A model that scales pixels of 0 to 255 itself
            takes `mean=0, std=1 / 255`.
        std: Their standard deviation, likewise.
        class_names: K names; None = the class numbers.
        multi_label: Whether an image may have any number of classes: probabilities are then sigmoids, not a softmax. None = as the
            run's data has it; False without a run.
        center_crop: Share of a picture's height and width that the model is to see, from the middle. A SavedModel cuts pictures,
            to others the report tells it. None = the run's; 1 without a run.
        temperature: What logits are divided by before they become probabilities. A SavedModel's probabilities are divided so;
            logits are the model's own in every format, and the report and the artifact's metadata tell the temperature. None =
            the run's; 1 without a run.
        input: `uint8` (normalised inside; needs mean and std), `float32` (as the Keras model takes images), or `auto`: uint8 if
            mean and std are known.
        images: Real uint8 images (N, H, W, C). The first 64 verify the artifact; all calibrate the ranges of int8 activations.
            None = the run's test images to verify and 256 of its training images to calibrate; without a run or its data, crops
            of two photographs to verify, and no calibration.
        batch_size: The only B of the artifact; None = any.
        merge_tokens: Tokens that each block merges, as `ViTConfig.merge_tokens`: faster, slightly less accurate. The artifact is
            compared with the Keras model with the same merging. None = as the model has it.
        overwrite: Whether to replace an export that is already at `path`.
        threshold: Largest difference of logits allowed; None = that of `THRESHOLDS`.

    Returns:
        The report: `format`, `precision`, `input`, `written_by` (a backend), `bytes`, `difference` (largest of the logits),
        `agreement` (share of images with the same likeliest class), `threshold`, `cases` and more.

    Raises:
        ValueError: For settings that do not fit together, a missing package, an existing target, a failed conversion, and an
            artifact that differs by more than the threshold.
    """
    start = time.perf_counter()
    check_choice("format", format, tuple(EVERY))
    check_precision(format, precision)
    check_choice("input", input, INPUTS)
    if batch_size is not None:
        check_int("batch_size", batch_size, at_least=1)
        if not EVERY[format].fixed_batch:
            raise ValueError(f"batch_size: received {batch_size}; allowed for {format}: None, which takes batches of any size")
    path = Path(path)
    check_target(path, overwrite)
    writer = choose_writer(format)
    run = model_or_run if isinstance(model_or_run, RunFolder) else None
    if run:
        run.check_classes()
    model = run.model() if run else model_or_run
    check_model(model)
    if merge_tokens is not None:
        if not isinstance(model, ViT):
            raise ValueError(f"merge_tokens: received {merge_tokens} for a {type(model).__name__}; allowed: None, except for a ViT")
        model = merging_model(model, merge_tokens)
    if run:
        recipe = run.recipe
        mean, std = (recipe.mean if mean is None else mean), (recipe.std if std is None else std)
        class_names = run.class_names if class_names is None else class_names
        multi_label = run.multi_label if multi_label is None else multi_label
        center_crop = recipe.center_crop if center_crop is None else center_crop
        temperature = run.temperature if temperature is None else temperature
    shown = bool(multi_label), 1.0 if center_crop is None else center_crop, 1.0 if temperature is None else temperature
    report = describe(model, format, precision, input, mean, std, class_names, batch_size, *shown)
    calibrated = precision in EVERY[format].calibrated
    calibration = calibration_images(model, run, images, precision) if calibrated else None
    cases = verification_images(model, run, images, batch_size)

    try:
        with atomic_folder(path, overwrite) as folder:
            reference = float32_model(model)
            reference.save(folder.parent / "model.keras")
            if calibrated:
                np.save(folder.parent / "calibration.npy", calibration)
            report["written_by"] = writer
            write_json(folder / "export.json", report)
            convert(folder, format, writer)
            report |= verify(reference, report, folder, cases, threshold)
            report["bytes"] = bytes_of(folder)
            report["seconds"] = time.perf_counter() - start
            write_json(folder / "export.json", report)
    except OSError as error:
        raise ValueError(f"path: {str(path)!r} cannot be written ({error.strerror or error})") from None
    return report


def check_target(path, overwrite):
    """Raises a ValueError unless an export can be written to a path."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        if not (path / "export.json").is_file():
            raise ValueError(f"path: received {str(path)!r}, which exists and is no export; allowed: a new path, or an export's")
        if not overwrite:
            raise ValueError(f"path: received {str(path)!r}, which exists; allowed: a new path, or overwrite=True (--overwrite)")
    parent = next(folder for folder in path.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"path: received {str(path)!r}; allowed: a path in a writable folder, which {str(parent)!r} is not")


def convert(folder, format, backend):
    """Writes the artifact in a process of a backend; see `keras_vit.export.writers.write`."""
    code = "import sys; from keras_vit.export.writers import write; write(sys.argv[1])"
    try:
        run_python(["-c", code, str(folder)], backend, **ON_PROCESSOR)  # a graph traced on an accelerator may hold its kernels
    except ValueError as error:
        raise ValueError(f"{format}: the conversion failed: {error}") from None
