"""An ONNX file as a teacher, in onnxruntime."""

import threading
from pathlib import Path

import numpy as np

from keras_vit.files import read_json_or_none, sha256
from keras_vit.training.distill.sources import Source, digest_of_file, refused

TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
ALLOWED = "a classifier: one input of images, float32 or uint8 (B, C, H, W) or (B, H, W, C), and logits (B, K)"
REPORT = "export.json"  # beside a file that `keras-vit export` wrote


def open_onnx(path: Path) -> Source:
    """An ONNX file of a classifier; the report of an export beside it knows classes, mean and std.

    Raises:
        ValueError: In one line, without onnxruntime, and for a file that it cannot read or that is no classifier.
    """
    if not path.is_file():
        raise refused(str(path), "which is no file", "an .onnx file")
    try:
        import onnxruntime
    except ImportError:
        raise refused(str(path), "without onnxruntime", "after pip install onnxruntime") from None
    try:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), settings, providers=onnxruntime.get_available_providers())
    except Exception as error:  # of its own, that has no common class
        raise refused(str(path), f"which onnxruntime cannot read ({' '.join(str(error).split())[:200]})", ALLOWED) from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in TYPES or len(outputs[0].shape) != 2:
        raise refused(str(path), "which is no classifier", ALLOWED)
    batch, *shape = (side if isinstance(side, int) else None for side in inputs[0].shape)
    report = read_json_or_none(path.parent / REPORT)
    report = report if isinstance(report, dict) else {}
    pixels = inputs[0].type == "tensor(uint8)"
    first = shape[0] is not None and shape[0] < 8  # as many channels as rows are no image
    if "data_format" in report:
        first = report["data_format"] == "channels_first" and not pixels
    if first:
        shape = [*shape[1:], shape[0]]
    name, output, lock = inputs[0].name, outputs[0].name, threading.Lock()

    def run(images):
        if batch is None or batch == len(images):
            return session.run([output], {name: images})[0]
        padded = np.concatenate([images, np.zeros((-len(images) % batch, *images.shape[1:]), images.dtype)])
        parts = [session.run([output], {name: part})[0] for part in np.split(padded, len(padded) // batch)]
        return np.concatenate(parts)[: len(images)]

    def logits(images):
        images = np.clip(np.rint(images), 0, 255).astype(np.uint8) if pixels else images  # resizing overshoots
        with lock:
            return np.asarray(run(np.ascontiguousarray(np.moveaxis(images, -1, 1)) if first else images), np.float32)

    size = tuple(side or 32 for side in shape[:2])
    try:
        answer = logits(np.zeros((batch or 2, *size, shape[2] or 3), np.float32))
    except Exception as error:
        raise refused(str(path), f"which fails on images ({' '.join(str(error).split())[:200]})", ALLOWED) from None
    if answer.ndim != 2 or answer.shape[0] != (batch or 2) or answer.shape[1] < 2:
        raise refused(str(path), f"whose output is {answer.shape}", ALLOWED)
    return Source(
        logits,
        tuple(shape),
        answer.shape[1],
        fingerprint_of_file(path),
        report.get("class_names"),
        0.0 if pixels else report.get("mean"),
        1 / 255 if pixels else report.get("std"),
        report.get("multi_label"),
        takes_pixels=pixels,
    )


def fingerprint_of_file(path: Path) -> str:
    """SHA-256 (hex) of a file, with its weights where they lie beside it: `NAME.onnx.data`, `NAME.onnx_data`. Not of its name."""
    weights = (each for each in path.parent.iterdir() if each.name.startswith((f"{path.name}.data", f"{path.name}_data")))
    digests = [digest_of_file(each) for each in (path, *sorted(weights))]
    return digests[0] if len(digests) == 1 else sha256(" ".join(digests))
