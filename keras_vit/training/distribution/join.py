"""The choice of a distribution: what a recipe asks for, on what this process sees."""

import importlib

import keras

from keras_vit.checks import check_choice
from keras_vit.recipes.schema import DISTRIBUTIONS
from keras_vit.training.distribution.base import Distribution

# Variables that somebody sets to train in several processes. A scheduler's stand in every process that it starts, also in several
# that have nothing to do with each other.
EXPLICIT = ("KERAS_DISTRIBUTION_NUM_PROCESSES", "TF_CONFIG", "WORLD_SIZE")


JOINED = {}  # distributions by their kind: a process joins once


def join(kind: str, seconds: int) -> Distribution:
    """Joins the devices and processes of a training; before anything else touches a device, where there are several processes.

    Args:
        kind: `none`, `data` or `model`.
        seconds: How long to wait for other processes, at the start and in a step. The first call of a process decides it.

    Raises:
        ValueError: If the backend cannot distribute so, the environment says otherwise, or a process has not come.
    """
    if kind not in JOINED:
        JOINED[kind] = joined(kind, seconds)
    return JOINED[kind]


def joined(kind, seconds):
    check_choice("distribute", kind, DISTRIBUTIONS)
    backend = keras.backend.backend()
    engine = importlib.import_module(f"keras_vit.training.distribution.{backend}")
    named, several = engine.cluster(), ["data"] if backend == "tensorflow" else ["data", "model"]
    if kind == "none":
        if named in EXPLICIT:
            raise ValueError(f"distribute: received none in one of several processes ({named}); allowed: {', '.join(several)}")
        return Distribution()
    if kind not in several:
        raise ValueError("distribute: received model; allowed under TensorFlow: none, data (model needs JAX or PyTorch)")
    return engine.join(kind, seconds)
