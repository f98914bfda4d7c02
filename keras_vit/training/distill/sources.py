"""Opens a teacher: a run, a Keras model, or a checkpoint of timm, transformers or JAX. Other kinds have files of their own.

Shapes: b images, H height, W width, C channels, K the teacher's classes.
"""

import dataclasses
import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import keras
import numpy as np

from keras_vit.model.saved import load_any_keras
from keras_vit.model.vit import ViT
from keras_vit.recipes.distill import TIMM
from keras_vit.runs.folder import RunFolder
from keras_vit.weights.load import load_model, open_checkpoint

FIELD = "distill.teacher"  # begins every error


@dataclasses.dataclass(frozen=True)
class Source:
    """A teacher as it is.

    Attributes:
        logits: Float32 logits (b, K) of normalised float32 images (b, H, W, C). One thread at a time calls it.
        shape: (H, W, C) of the images that it takes; None where any will do.
        num_classes: K.
        fingerprint: SHA-256 (hex) of what its logits depend on.
        class_names: Its classes in order; None if it does not say.
        mean, std: Of the pixels scaled to 0..1, a number or one a channel; None if it does not say.
        multi_label: Whether an image may have several classes; None if it does not say.
        notes: Lines for the user.
        takes_pixels: Whether it takes pixels from 0 to 255, by its `mean` and `std`, and scales them itself.
    """

    logits: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int | None, int | None, int | None]
    num_classes: int
    fingerprint: str
    class_names: list[str] | None = None
    mean: float | list[float] | None = None
    std: float | list[float] | None = None
    multi_label: bool | None = None
    notes: tuple[str, ...] = ()
    takes_pixels: bool = False


def refused(name: str, why: str, allowed: str) -> ValueError:
    return ValueError(f"{FIELD}: received {name!r}, {why}; allowed: {allowed}")


def open_source(name: str) -> Source:
    """The teacher of a name, as `DistillConfig.teacher` explains it; not `small-cnn` and no file of logits.

    Raises:
        ValueError: In one line, if there is none, or it is no classifier.
    """
    if name.startswith(TIMM):
        from keras_vit.training.distill.timm import open_timm

        return open_timm(name.removeprefix(TIMM))
    path = Path(name).expanduser()
    if path.suffix == ".onnx":
        from keras_vit.training.distill.onnx import open_onnx

        return open_onnx(path)
    if path.suffix == ".npy":
        raise refused(name, "an array", f"logits:{name}, if it holds logits")
    if path.suffix == ".keras":
        return open_keras(path)
    try:
        checkpoint = open_checkpoint(name)
    except ValueError as error:
        raise ValueError(f"{FIELD}: {error}") from None
    model = load_model(checkpoint, dtype="float32", data_format="channels_last")
    multi = RunFolder(checkpoint.path).multi_label if (checkpoint.path / "recipe.yaml").is_file() else None
    known = {"class_names": checkpoint.class_names, "mean": checkpoint.mean, "std": checkpoint.std, "multi_label": multi}
    return keras_source(model, str(checkpoint.path), notes=checkpoint.notes, **known)


def open_keras(path: Path) -> Source:
    """A `.keras` file of any classifier; if it is a run's, the run knows classes, mean and std."""
    if not path.is_file():
        raise refused(str(path), "which is no file", "a .keras file")
    model = load_any_keras(path, FIELD)
    if not (path.parent / "recipe.yaml").is_file():
        return keras_source(model, str(path))
    run = RunFolder(path.parent)
    known = {"mean": run.recipe.mean, "std": run.recipe.std, "multi_label": run.multi_label}
    return keras_source(model, str(path), class_names=run.class_names, **known)


def keras_source(model: keras.Model, name: str, **known) -> Source:
    """A Keras model as a teacher; `known` are further fields of `Source`."""
    if len(model.inputs) != 1 or len(model.inputs[0].shape) != 4 or len(model.outputs) != 1 or len(model.outputs[0].shape) != 2:
        raise refused(name, "which is no classifier", "a model of images (B, H, W, C) with logits (B, K)")
    first = isinstance(model, ViT) and model.config.data_format == "channels_first"
    shape, run = tuple(model.inputs[0].shape[1:]), keras_logits(model)
    if first:
        shape = (*shape[1:], shape[0])
    arrays = ((weight.path, keras.ops.convert_to_numpy(weight)) for weight in model.weights)
    return Source(
        logits=(lambda images: run(np.ascontiguousarray(np.moveaxis(images, -1, 1)))) if first else run,
        shape=shape,
        num_classes=model.outputs[0].shape[-1],
        fingerprint=fingerprint_of(arrays, model.to_json()),
        **known,
    )


def keras_logits(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """The outputs of a Keras model as a function of arrays, for any thread, one after the other."""
    # Under TensorFlow without a graph: its operations then run in the thread that calls. A graph waits for threads that tf.data's
    # calls of Python hold, for ever where there are few.
    model.run_eagerly = keras.backend.backend() == "tensorflow"
    model.jit_compile = keras.backend.backend() == "jax"
    lock = threading.Lock()

    def logits(images):
        with lock:
            return np.asarray(model.predict_on_batch(images), np.float32)

    return logits


def fingerprint_of(arrays: Iterable[tuple[str, np.ndarray]], more: str = "") -> str:
    digest = hashlib.sha256(more.encode())
    for name, array in arrays:
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def digest_of_file(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
