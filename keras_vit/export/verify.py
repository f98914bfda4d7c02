"""Verification: an artifact's logits, in its own runtime, against the Keras model's.

Shapes: N images, K classes.
"""

import tempfile
from pathlib import Path

import keras
import numpy as np

from keras_vit.data.decode import fit, picture, read_image
from keras_vit.export.formats import BATCHES, THRESHOLDS
from keras_vit.export.images import to_model
from keras_vit.export.models import interface
from keras_vit.export.runtimes import Runtime
from keras_vit.machine import full_float32
from keras_vit.runs.calibration import probabilities_of

SURE = 1e-3  # largest difference of probabilities


def verify(model, report: dict, folder: Path, cases: list, threshold: float | None = None) -> dict:
    """Compares an artifact in its runtime with the Keras model.

    Args:
        model: The Keras model in float32.
        report: The settings of the export.
        folder: The export.
        cases: As of `verification_images`.
        threshold: Largest difference allowed; None = that of `THRESHOLDS`.

    Returns:
        `difference`, `agreement`, `threshold` and `cases`, for the report. Of OpenVINO also `runtime_settings`, for which they
        hold, and `default_precision`, which this machine would have taken without.

    Raises:
        ValueError: If the artifact cannot be loaded or run, or differs by more than the threshold.
    """
    format, precision = report["format"], report["precision"]
    limit = THRESHOLDS[precision] if threshold is None else threshold
    sizes = (report["batch_size"],) if report["batch_size"] else BATCHES
    rows, worst = [], 0.0
    with tempfile.TemporaryDirectory() as files, Runtime(format, folder) as runtime:
        if format != "keras" and runtime.description["keras"]:
            raise ValueError(f"{format}: verification aborted: the runtime imported Keras")
        for name, images in cases:
            inputs = to_model(images, report)
            expected = logits_of(model, inputs)
            scale = expected.std() if precision != "float32" else max(1.0, float(np.abs(expected).max()))
            for size in sizes:
                given = images[:size] if report["input"] == "uint8" else inputs[:size]
                ours, theirs = runtime.predict(given, files), expected[:size]
                if ours.shape != theirs.shape:
                    raise ValueError(f"{format}: received logits of shape {ours.shape}; allowed: {theirs.shape}")
                difference = float(np.abs(ours - theirs).max())
                difference = difference if np.isfinite(difference) else float("inf")
                agreement = float(np.mean(ours.argmax(-1) == theirs.argmax(-1)))
                rows.append({"images": name, "batch": size, "difference": difference, "agreement": agreement})
                worst = max(worst, difference / scale)
        if format == "tf_saved_model" and report["class_names"] and report["mean"]:
            check_signatures(runtime, model, report, cases[-1][1][:8], files)
    if not worst <= limit:
        raise ValueError(
            f"{format}: not exported: logits differ from the Keras model's by {worst:.1e} of their scale; "
            f"allowed in {precision}: {limit:.1e}"
        )
    count = sum(row["batch"] for row in rows)
    return {
        **runtime.description["facts"],
        "difference": max(row["difference"] for row in rows),
        "agreement": sum(row["agreement"] * row["batch"] for row in rows) / count,
        "threshold": limit,
        "cases": rows,
    }


def logits_of(model, inputs: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Logits (N, K) of images as the Keras model takes them."""
    with full_float32():
        parts = [model(inputs[start : start + batch_size], training=False) for start in range(0, len(inputs), batch_size)]
    return np.concatenate([keras.ops.convert_to_numpy(part) for part in parts])


def check_signatures(runtime, model, report, images, files):
    """Raises a ValueError unless the classifying signatures of a SavedModel agree with the model on images and on files.

    Args:
        runtime: The `Runtime` of the SavedModel.
        model: The Keras model.
        report: The settings of the export.
        images: uint8 (N, H, W, C).
        files: A folder for files.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    def classes(images):
        """Labels and probabilities of the likeliest classes."""
        logits = logits_of(model, to_model(images, report))
        probabilities = probabilities_of(logits, report["multi_label"], report["temperature"])
        return [report["class_names"][index] for index in logits.argmax(-1)], probabilities.max(-1)

    np.save(Path(files, "images.npy"), images)
    shape, share = interface(model).pictures, report["center_crop"]
    seen = np.stack([fit(picture(image, shape[-1]), shape, share) for image in images])
    answers = [(runtime.ask(do="classify", images=str(Path(files, "images.npy"))), classes(seen))]
    if shape[-1] in (1, 3):
        paths = [str(Path(files, f"{index}.{suffix}")) for index, suffix in enumerate(("jpg", "png", "png", "jpg"))]
        for path, sample in zip(paths, load_sample_images().images * 2, strict=True):
            Image.fromarray(sample).save(path, **({"quality": 95} if path.endswith("jpg") else {}))
        expected = classes(np.stack([read_image(path, shape, share) for path in paths]))
        answers.append((runtime.ask(do="classify", files=paths), expected))
    for answer, (labels, _) in answers:
        if answer["labels"] != labels and report["precision"] == "float32":
            raise ValueError(f"tf_saved_model: not exported: classifies as {answer['labels']}, the Keras model as {labels}")
    answer, (_, probabilities) = answers[0]
    difference = float(np.abs(probabilities - answer["probabilities"]).max())
    limit = SURE * max(1, 1 / report["temperature"])
    if share == 1 and report["precision"] == "float32" and difference > limit:  # the same pixels, as nothing was cut or decoded
        raise ValueError(f"tf_saved_model: not exported: probabilities differ by {difference:.1e}; allowed: {limit:.1e}")
