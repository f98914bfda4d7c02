"""Loads the weights of a checkpoint of any format into a model, or makes the model too."""

import logging
import os
from dataclasses import fields, replace

import keras

from keras_vit.checks import as_pair, check_choice, check_fields
from keras_vit.model.config import ViTConfig
from keras_vit.model.resample import resample_weight
from keras_vit.model.vit import ViT, build_vit
from keras_vit.recipes.schema import SOURCES
from keras_vit.weights.checkpoint import Checkpoint
from keras_vit.weights.find import detect, find
from keras_vit.weights.huggingface import open_huggingface
from keras_vit.weights.jax import open_jax
from keras_vit.weights.keras import open_keras
from keras_vit.weights.rows import SHOWN
from keras_vit.weights.timm import open_timm

# Fields that change no weight, and so may differ from the checkpoint's.
FREE = ("dropout", "attention_dropout", "drop_path", "patch_dropout", "merge_tokens", "data_format", "norm_epsilon")

logger = logging.getLogger("keras_vit")


def open_checkpoint(path: str | os.PathLike | Checkpoint, source: str = "auto", *, architecture: str | None = None) -> Checkpoint:
    """Opens a checkpoint: reads its configuration and checks that its tensors fit, without reading the tensors.

    Args:
        path: A run folder or `.keras` file of this library; a folder or `.safetensors` file of timm; a folder of transformers; a
            `.npz` file of vision_transformer or big_vision. A name without a local file is a repository of the Hugging Face hub
            ("org/name"), which is downloaded. An open checkpoint is returned as it is.
        source: `keras`, `timm`, `huggingface`, `jax`, or `auto`: the files tell.
        architecture: Name of timm's architecture, such as `vit_base_patch16_224`, for a file that does not state it.

    Raises:
        ValueError: If there is no checkpoint, or it is damaged, a pickle, inconsistent or of another architecture.
    """
    check_choice("source", source, SOURCES)
    if isinstance(path, Checkpoint):
        return path
    local = find(path)
    source = detect(local) if source == "auto" else source
    if source == "keras":
        return open_keras(local)
    if source == "timm":
        return open_timm(local, architecture)
    if local.is_file() != (source == "jax"):
        allowed = "a .npz file" if source == "jax" else "a folder"
        raise ValueError(f"source: received {source!r} for {str(local)!r}; allowed with it: {allowed}")
    return open_jax(local) if source == "jax" else open_huggingface(local)


def load_model(
    path: str | os.PathLike | Checkpoint,
    source: str = "auto",
    *,
    architecture: str | None = None,
    dtype: str | keras.DTypePolicy | None = None,
    name: str = "vit",
    **overrides,
) -> ViT:
    """A model with the configuration and the weights of a checkpoint.

    The logger "keras_vit" warns of everything that goes beyond copying the weights.

    Args:
        path: See `open_checkpoint`.
        source: See `open_checkpoint`.
        architecture: See `open_checkpoint`.
        dtype: Keras dtype policy; None = the global one.
        name: Name of the model.
        **overrides: Fields of `ViTConfig`. `image_size` and `patch_size` resample positions and projection; `channels` adapts the
            first layer (`keras_vit.model.resample.adapt_channels`). Another `num_classes`
            makes a new head, which starts at zero; 0 makes none. `dropout`, `attention_dropout`, `drop_path`, `patch_dropout`,
            `merge_tokens`, `data_format` and `norm_epsilon` may differ. All other fields must equal the checkpoint's.

    Returns:
        A `ViT`.

    Raises:
        ValueError: See `open_checkpoint`; and for an override that contradicts the checkpoint.
    """
    checkpoint = open_checkpoint(path, source, architecture=architecture)
    check_fields(ViTConfig, overrides)
    for field, value in overrides.items():
        theirs = getattr(checkpoint.config, field)
        if field in ("image_size", "patch_size"):
            overrides[field] = as_pair(field, value)
        elif field not in (*FREE, "num_classes", "channels") and value != theirs:
            raise ValueError(f"{field}: received {value!r}; allowed: {theirs!r}, as in the checkpoint")
    model = build_vit(replace(checkpoint.config, **overrides), name=name, dtype=dtype)
    for note in transfer(model, checkpoint, new_head="num_classes" in overrides, resize=True):
        logger.warning("%s: %s", checkpoint.path, note)
    return model


def load_weights(
    model: ViT,
    path: str | os.PathLike | Checkpoint,
    source: str = "auto",
    *,
    architecture: str | None = None,
    new_head: bool = False,
    resize: bool = False,
) -> list[str]:
    """Loads the weights of a checkpoint into a model of the same architecture.

    Args:
        model: A `ViT`; on an error it stays unchanged.
        path: See `open_checkpoint`.
        source: See `open_checkpoint`.
        architecture: See `open_checkpoint`.
        new_head: Whether the number of classes may differ; the model then keeps its head.
        resize: Whether image size, patch size and channels may differ; positions are then resampled and the first layer is adapted.

    Returns:
        Lines for the user about everything that goes beyond copying the weights.

    Raises:
        ValueError: See `open_checkpoint`; and for another architecture, with the weights that the checkpoint lacks (-), has in
            addition (+) or has in another shape (!).
    """
    return transfer(model, open_checkpoint(path, source, architecture=architecture), new_head, resize)


def transfer(model: ViT, checkpoint: Checkpoint, new_head: bool, resize: bool) -> list[str]:
    """`load_weights` for an open checkpoint."""
    ours, theirs = model.config, checkpoint.config
    notes, arrays = list(checkpoint.notes), {}
    adapted = replace(theirs, **{name: getattr(ours, name) for name in FREE})
    if ours.num_classes != theirs.num_classes and new_head:
        adapted = replace(adapted, num_classes=ours.num_classes)
        was, now = (f"{count} classes" if count else "no head" for count in (theirs.num_classes, ours.num_classes))
        notes.append(f"head: {was} in the checkpoint, {now} here{': a new head' if ours.num_classes else ''}")
    if resize:
        adapted = replace(adapted, image_size=ours.image_size, patch_size=ours.patch_size, channels=ours.channels)
    check_same(checkpoint, adapted, ours)
    heads = ("head/", "head_dist/")
    for path in ours.weight_shapes:
        if path.startswith(heads) and ours.num_classes != theirs.num_classes:
            continue
        arrays[path] = resample_weight(path, checkpoint.read(path), theirs, ours, checkpoint.antialias)
        if path == "encoder/position" and ours.grid_size != theirs.grid_size:
            was, now = (f"{rows}x{columns}" for rows, columns in (theirs.grid_size, ours.grid_size))
            notes.append(f"positions: {was} in the checkpoint, {now} here: interpolated")
        if path == "encoder/projection/kernel" and ours.patch_size != theirs.patch_size:
            was, now = (f"{rows}x{columns}" for rows, columns in (theirs.patch_size, ours.patch_size))
            notes.append(f"patches: {was} pixels in the checkpoint, {now} here: the projection is resampled")
    if ours.channels != theirs.channels:
        how = "the sum of its kernels" if ours.channels == 1 else "its kernels in turn, scaled"
        notes.append(f"channels: {theirs.channels} in the checkpoint, {ours.channels} here: the first layer takes {how}")
    for weight in model.weights:
        if weight.path in arrays:
            weight.assign(arrays[weight.path])
    return notes


def check_same(checkpoint, theirs, ours):
    """Raises a ValueError unless two configurations describe one model; compares weights first, then arithmetic."""
    where = f"checkpoint: received {str(checkpoint.path)!r}"
    wanted, held = ours.weight_shapes, theirs.weight_shapes
    listed = [f"- {path}" for path in wanted if path not in held]
    listed += [f"+ {path}" for path in held if path not in wanted]
    listed += [f"! {path} {held[path]}, expected {wanted[path]}" for path in wanted if path in held and held[path] != wanted[path]]
    if listed:
        more = f"; and {len(listed) - 3 * SHOWN} more" if len(listed) > 3 * SHOWN else ""
        hint = "; new_head=True allows another number of classes" if theirs.num_classes != ours.num_classes else ""
        names = ("image_size", "patch_size", "channels")
        if any(getattr(theirs, name) != getattr(ours, name) for name in names):
            hint += "; resize=True allows another image or patch size, or channels"
        text = "; ".join(listed[: 3 * SHOWN])
        raise ValueError(f"{where}; allowed: the model's architecture (- missing, + extra, ! shape): {text}{more}{hint}")
    for field in fields(ViTConfig):
        a, b = getattr(theirs, field.name), getattr(ours, field.name)
        alike = field.name in ("class_token", "layer_scale", "image_size") or a == b
        if field.name == "prefix_positions":
            alike = theirs.num_prefix_positions == ours.num_prefix_positions
        if not alike:
            raise ValueError(f"{where}, with {field.name} {a!r}; allowed: {b!r}, as in the model")
