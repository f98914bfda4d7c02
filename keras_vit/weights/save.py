"""Writes the weights of a model in another library's format."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_vit.checks import as_moments, check_choice
from keras_vit.model.vit import ViT
from keras_vit.weights.huggingface import save_huggingface
from keras_vit.weights.jax import save_jax
from keras_vit.weights.keras import float_weights
from keras_vit.weights.timm import save_timm

SAVERS = {"timm": save_timm, "huggingface": save_huggingface, "jax": save_jax}


def save_weights(
    model: ViT,
    path: str | os.PathLike,
    target: str,
    *,
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.5,
    class_names: Sequence[str] | None = None,
) -> None:
    """Writes the weights of a model in another library's format; that library's strict loader then gives the same numbers.

    Args:
        model: A `ViT`; LoRA adapters are merged.
        path: For `timm` a folder for `timm.create_model("local-dir:PATH", pretrained=True)`, or a file that ends in
            .safetensors; for `huggingface` a folder for `from_pretrained`; for `jax` a file that ends in .npz.
        target: `timm`, `huggingface` or `jax`.
        mean: Mean of the pixels scaled to 0..1, one number, or one for each channel.
        std: Their standard deviation, likewise.
        class_names: The classes by index.

    Raises:
        ValueError: For a field of `ViTConfig` that the format cannot hold, and a path that exists or cannot be written.
    """
    check_choice("target", target, tuple(SAVERS))
    config, path = model.config, Path(path)
    if config.merge_tokens:
        raise ValueError(f"merge_tokens: received {config.merge_tokens}; allowed: 0, as no other library's format has merging")
    if class_names is not None:
        class_names = [str(name) for name in class_names]
        if len(class_names) != config.num_classes:
            raise ValueError(f"class_names: received {len(class_names)}; allowed: {config.num_classes}, the classes of the model")
    moments = [np.broadcast_to(value, config.channels).tolist() for value in as_moments(mean, std, config.channels)]
    if (path.exists() or path.is_symlink()) and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"path: received {str(path)!r}, which exists; allowed: a new path, or an empty folder")
    weights = float_weights(model, "model")
    if config.position in ("sincos1d", "sincos2d"):
        weights["encoder/position"] = np.asarray(model.get_layer("encoder").position_embedding, "float32")
    try:
        SAVERS[target](config, weights, path, *moments, class_names)
    except OSError as error:
        raise ValueError(f"path: {str(path)!r} cannot be written ({error.strerror or error})") from None
