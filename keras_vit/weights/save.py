"""Writes the weights of a model in another library's format."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_vit.checks import check_choice, check_number
from keras_vit.weights.keras import float_weights


def save_weights(
    model,
    path: str | os.PathLike,
    target: str,
    *,
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.5,
    class_names: Sequence[str] | None = None,
) -> None:
    """Writes the weights of a model in another library's format, so that its own strict loader gives the same numbers.

    Args:
        model: A `ViT`; adapters of LoRA are merged.
        path: What is written: for `timm` a folder for `timm.create_model("local-dir:PATH", pretrained=True)`, or a file that
            ends in .safetensors; for `huggingface` a folder for `from_pretrained`; for `jax` a file that ends in .npz.
        target: `timm`, `huggingface` or `jax`.
        mean: Of the pixels scaled to 0..1, one number a channel or one for all.
        std: Their standard deviation, likewise.
        class_names: The classes by index.

    Raises:
        ValueError: For what the format cannot hold, naming the field of `ViTConfig`; if there is something at `path`, or it
            cannot be written.
    """
    check_choice("target", target, TARGETS)
    config, path = model.config, Path(path)
    if config.merge_tokens:
        raise ValueError(f"merge_tokens: received {config.merge_tokens}; allowed: 0, as no other library's format knows of it")
    if class_names is not None and len(class_names) != config.num_classes:
        raise ValueError(f"class_names: received {len(class_names)}; allowed: {config.num_classes}, the classes of the model")
    mean, std = (as_channels(name, value, config.channels) for name, value in (("mean", mean), ("std", std)))
    weights = float_weights(model, "model")
    if config.position in ("sincos1d", "sincos2d"):
        weights["encoder/position"] = np.asarray(model.get_layer("encoder").position_embedding, "float32")
    class_names = None if class_names is None else [str(name) for name in class_names]
    if target == "timm":
        from keras_vit.weights.timm import save_timm as save
    elif target == "huggingface":
        from keras_vit.weights.huggingface import save_huggingface as save
    else:
        from keras_vit.weights.jax import save_jax as save
    try:
        save(config, weights, path, mean, std, class_names)
    except OSError as error:
        raise ValueError(f"path: {str(path)!r} cannot be written ({error.strerror or error})") from None


TARGETS = ("timm", "huggingface", "jax")


def as_channels(name, value, channels):
    """One number a channel."""
    values = [float(v) for v in value] if isinstance(value, Sequence) else [value] * channels
    if len(values) not in (1, channels):
        raise ValueError(f"{name}: received {len(values)} numbers; allowed: one, or one for each of {channels} channels")
    for number in values:
        check_number(name, number)
    return [float(v) for v in (values * channels if len(values) == 1 else values)]
