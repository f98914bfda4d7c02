"""The writers of artifacts, one file for each format; only the writing process, which has its packages, imports it.

Every writer is a function `write(model, folder, report, calibration)`:

    model        the Keras model, in the precision to write
    folder       the folder of the artifact
    report       the settings, as `export.json`
    calibration  images as the artifact takes them, or None if the precision needs none
"""

import importlib
import json
from pathlib import Path

import keras
import numpy as np

from keras_vit.export.formats import EVERY
from keras_vit.export.images import to_model
from keras_vit.export.models import with_dtype
from keras_vit.kernels.ops import portable


def write(folder: str) -> None:
    """Writes the artifact into a folder that holds its export.json, from `model.keras` and `calibration.npy` beside the folder."""
    folder = Path(folder)
    report = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    format, precision = report["format"], report["precision"]
    model = keras.saving.load_model(folder.parent / "model.keras", compile=False)
    if precision in ("float16", "bfloat16") and format in ("tf_saved_model", "torch", "keras"):
        model = with_dtype(model, precision)
    calibration = None
    if precision in EVERY[format].calibrated:
        calibration = np.load(folder.parent / "calibration.npy")
        if report["input"] == "float32":
            calibration = to_model(calibration, report)
    writer = importlib.import_module(f"keras_vit.export.writers.{format}")
    with portable():
        writer.write(model, folder, report, calibration)
