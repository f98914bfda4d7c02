"""The choice of a distribution: what a recipe asks for, on what this process sees."""

import importlib

import keras

from keras_vit.checks import check_choice
from keras_vit.recipes.schema import DISTRIBUTIONS
from keras_vit.training.distribution.base import Distribution

SECONDS = 120  # to wait for other processes, at the start and in a step


def join(kind: str, seconds: int = SECONDS) -> Distribution:
    """Joins the devices and processes of a training.

    Args:
        kind: `none`, `data` or `model`.
        seconds: How long to wait for other processes.

    Raises:
        ValueError: If the backend cannot distribute so, or a process has not come.
    """
    check_choice("distribute", kind, DISTRIBUTIONS)
    if kind == "none":
        return Distribution()
    backend = keras.backend.backend()
    if kind == "model" and backend != "jax":
        raise ValueError(f"distribute: received model; allowed under {backend}: none, data (model needs JAX)")
    engine = importlib.import_module(f"keras_vit.training.distribution.{backend}")
    return engine.join(kind, seconds) if backend == "jax" else engine.join(seconds)
