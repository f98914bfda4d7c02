"""An opened checkpoint of any format."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from keras_vit.checks import visible
from keras_vit.model.config import ViTConfig


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint with a known configuration and complete tensors; weights are read on demand.

    Attributes:
        source: `keras`, `timm`, `huggingface` or `jax`.
        path: The local file or folder.
        config: The `ViTConfig` of the checkpoint, with its own image size and classes.
        mean: Mean of the pixels scaled to 0..1 in pretraining, one number, or one for each channel.
        std: Their standard deviation, likewise.
        class_names: The classes by index, or None if the checkpoint does not say.
        read: Returns one of this library's weights, by a path such as `block_0/attention/qkv/kernel`, as a float32 array.
        antialias: Whether the checkpoint's own library antialiases when it interpolates positions.
        notes: Assumptions made, as lines for the user.
    """

    source: str
    path: Path
    config: ViTConfig
    mean: list[float]
    std: list[float]
    class_names: list[str] | None
    read: Callable[[str], np.ndarray]
    antialias: bool = True
    notes: tuple[str, ...] = ()


def wrong(path: Path | str, allowed: str, reason: object = "") -> ValueError:
    """The error for a checkpoint, or a file of one, that cannot be used."""
    text = " ".join(str(reason).split())[:300]
    return ValueError(f"checkpoint: received {str(path)!r}; allowed: {visible(allowed)}{f' ({visible(text)})' if text else ''}")
