"""The formats of exports: who writes each one, what loads it, which precisions it has, and how far its logits may deviate."""

import dataclasses
from importlib.util import find_spec

import keras

from keras_vit.backend import BACKENDS, installed_backends

PRECISIONS = ("float32", "float16", "bfloat16", "int8", "int8_static")
INPUTS = ("auto", "uint8", "float32")
BATCHES = (1, 3, 64)  # batch sizes in which an artifact is verified
# Largest difference of logits to the float32 Keras model. In float32 it is absolute, or relative to the largest logit if that is
# above 1; otherwise it is a share of the logits' standard deviation. Reduced precision has an unavoidable error: these limits only
# catch faults.
THRESHOLDS = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 0.2, "int8": 1.0, "int8_static": 1.0}


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of exported models.

    Attributes:
        writers: The packages that each backend needs to write it, the best writer first. Backends that cannot write it are absent.
        runtime: Packages that load it; any one of them will do.
        precisions: The precisions that it can have.
        fixed_batch: Whether it can also be written for one fixed batch size; every format can take batches of any size.
        calibrated: The precisions that fix the ranges of activations, from real images.
    """

    writers: dict[str, tuple[str, ...]]
    runtime: tuple[str, ...]
    precisions: tuple[str, ...]
    fixed_batch: bool = True
    calibrated: tuple[str, ...] = ()


# PyTorch's exporter writes a norm and a GELU as one operation each, which ONNX Runtime runs faster than their parts.
ONNX_WRITERS = {"torch": ("onnx", "onnxscript"), "jax": ("onnx", "jax2onnx"), "tensorflow": ("onnx", "tf2onnx")}
FORMATS = {
    "tf_saved_model": Format({"tensorflow": ()}, ("tensorflow",), ("float32", "float16", "bfloat16"), fixed_batch=False),
    "onnx": Format(ONNX_WRITERS, ("onnxruntime",), ("float32", "float16", "int8"), calibrated=("int8",)),
    "litert": Format(
        {"tensorflow": ()},
        ("ai_edge_litert", "tensorflow"),
        ("float32", "float16", "int8", "int8_static"),
        calibrated=("int8_static",),
    ),
    "openvino": Format(
        {backend: (*packages, "openvino") for backend, packages in ONNX_WRITERS.items()},
        ("openvino",),
        ("float32", "float16", "int8"),
        calibrated=("int8",),
    ),
    "torch": Format({"torch": ()}, ("torch",), ("float32", "float16", "bfloat16")),
}
# The Keras model itself in a lower precision: no foreign format, but written, verified and compared like one.
KERAS = Format({backend: () for backend in BACKENDS}, ("keras",), PRECISIONS[:4], fixed_batch=False)
EVERY = {**FORMATS, "keras": KERAS}
WHY_NOT = {
    ("tf_saved_model", "int8"): "TensorFlow's int8 format is litert",
    ("torch", "int8"): "PyTorch's quantiser of exported programs moved to another package, torchao",
}


def check_precision(format: str, precision: str) -> None:
    """Raises a ValueError unless a format has a precision."""
    precisions = EVERY[format].precisions
    if precision not in precisions:
        why = WHY_NOT.get((format, precision))
        reason = f" ({why})" if why else ""
        raise ValueError(f"precision: received {precision!r}; allowed for {format}: {', '.join(precisions)}{reason}")


def choose_writer(format: str) -> str:
    """The backend that writes a format: the best one that is installed together with the packages that it needs.

    Raises:
        ValueError: If no backend can write it or no runtime verify it, with the pip command for what is missing.
    """
    kind, current, installed = EVERY[format], keras.backend.backend(), installed_backends()
    if format == "keras":
        return current
    ready = [b for b in kind.writers if b in installed and all(find_spec(package) for package in kind.writers[b])]
    backend = next(b for b in (*ready, current, *installed, *kind.writers) if b in kind.writers)
    missing = [package for package in (backend, *kind.writers[backend]) if not find_spec(package)]
    if not any(find_spec(package) or package in missing for package in kind.runtime):
        missing.append(kind.runtime[0])
    if missing:
        packages = " ".join(package.replace("_", "-") for package in missing)
        raise ValueError(f"{format}: written by {backend} and verified by its own runtime, needs: pip install {packages}")
    return backend
