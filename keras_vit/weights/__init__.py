"""Weights of timm, transformers and JAX, read and written: one table of correspondence a format, strict both ways."""

import logging
import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import keras
import numpy as np

from keras_vit.config import ViTConfig, as_pair, check_choice, check_fields, check_number
from keras_vit.finetune import merged_weights
from keras_vit.weights.checkpoint import PICKLES, SHOWN, Checkpoint, read_json, refuse_pickle
from keras_vit.weights.resample import resample_weight

__all__ = ["Checkpoint", "load_model", "load_weights", "open_checkpoint", "save_weights"]

SOURCES = ("auto", "keras", "timm", "huggingface", "jax")
TARGETS = ("timm", "huggingface", "jax")
# Fields that no tensor contradicts, beside image and patch size, for which tensors are resampled, and the number of classes.
FREE = ("dropout", "attention_dropout", "drop_path", "patch_dropout", "merge_tokens", "data_format", "norm_epsilon")
HUB_FILES = ["config.json", "preprocessor_config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]

logger = logging.getLogger("keras_vit")


def open_checkpoint(path: str | os.PathLike | Checkpoint, source: str = "auto", *, architecture: str | None = None) -> Checkpoint:
    """Opens a checkpoint: reads its configuration and checks that its tensors are those, without reading them.

    Args:
        path: A run folder or `.keras` file of this library; a folder or `.safetensors` file of timm; a folder of transformers; a
            `.npz` file of vision_transformer or big_vision; or, where nothing of that name is there, a repository of the
            Hugging Face hub ("org/name"), which is downloaded. One that is open is given back.
        source: `keras`, `timm`, `huggingface`, `jax`, or `auto`, which goes by the files.
        architecture: Name of timm's architecture, such as `vit_base_patch16_224`, where a file does not say it.

    Raises:
        ValueError: If there is nothing, or it is damaged, a pickle, of another architecture or contradicts itself.
    """
    check_choice("source", source, SOURCES)
    if isinstance(path, Checkpoint):
        return path
    local = find(path)
    source = detect(local) if source == "auto" else source
    if source == "keras":
        return open_keras(local)
    if source == "jax":
        from keras_vit.weights.jax_npz import open_jax

        return open_jax(check_kind(local, source, local.is_file(), "a .npz file"))
    if source == "timm":
        from keras_vit.weights.timm import open_timm

        return open_timm(local, architecture)
    from keras_vit.weights.huggingface import open_huggingface

    return open_huggingface(check_kind(local, source, local.is_dir(), "a folder"))


def load_model(
    path: str | os.PathLike | Checkpoint,
    source: str = "auto",
    *,
    architecture: str | None = None,
    dtype: str | keras.DTypePolicy | None = None,
    name: str = "vit",
    **overrides,
):
    """A model with the configuration and the weights of a checkpoint.

    What had to be done is logged as warnings of the logger "keras_vit".

    Args:
        path: See `open_checkpoint`.
        source: See `open_checkpoint`.
        architecture: See `open_checkpoint`.
        dtype: Keras dtype policy; None = the global one.
        name: Name of the model.
        **overrides: Fields of `ViTConfig`: `image_size` and `patch_size` resample positions and projection; another
            `num_classes` gives a new head, at zero, and 0 none; `dropout`, `attention_dropout`, `drop_path`, `patch_dropout`,
            `merge_tokens`, `data_format` and `norm_epsilon` are free. Others may only repeat what the checkpoint has.

    Returns:
        A `ViT`.

    Raises:
        ValueError: See `open_checkpoint`; and for an override that contradicts the checkpoint.
    """
    from keras_vit.model import build_vit

    checkpoint = open_checkpoint(path, source, architecture=architecture)
    check_fields(ViTConfig, overrides)
    for field, value in overrides.items():
        theirs = getattr(checkpoint.config, field)
        if field in ("image_size", "patch_size"):
            overrides[field] = as_pair(field, value)
        elif field not in (*FREE, "num_classes") and value != theirs:
            raise ValueError(f"{field}: received {value!r}; allowed: {theirs!r}, as the checkpoint has it")
    model = build_vit(replace(checkpoint.config, **overrides), name=name, dtype=dtype)
    for note in transfer(model, checkpoint, new_head="num_classes" in overrides, resize=True):
        logger.warning("%s: %s", checkpoint.path, note)
    return model


def load_weights(
    model,
    path: str | os.PathLike | Checkpoint,
    source: str = "auto",
    *,
    architecture: str | None = None,
    new_head: bool = False,
    resize: bool = False,
) -> list[str]:
    """Gives a model the weights of a checkpoint of the same architecture.

    Args:
        model: A `ViT`; unchanged where this raises.
        path: See `open_checkpoint`.
        source: See `open_checkpoint`.
        architecture: See `open_checkpoint`.
        new_head: Whether a head for another number of classes is allowed; the model's stays as it is.
        resize: Whether another image or patch size is allowed; positions and the projection of patches are then resampled.

    Returns:
        What was done beyond copying, as lines for the user.

    Raises:
        ValueError: See `open_checkpoint`; and listing what is missing (-), extra (+) and of another shape (!) in the checkpoint.
    """
    return transfer(model, open_checkpoint(path, source, architecture=architecture), new_head, resize)


def transfer(model, checkpoint: Checkpoint, new_head: bool, resize: bool) -> list[str]:
    ours, theirs = model.config, checkpoint.config
    notes, arrays = list(checkpoint.notes), {}
    adapted = replace(theirs, **{name: getattr(ours, name) for name in FREE})
    if ours.num_classes != theirs.num_classes and new_head:
        adapted = replace(adapted, num_classes=ours.num_classes)
        was, now = (f"{count} classes" if count else "no head" for count in (theirs.num_classes, ours.num_classes))
        notes.append(f"head: {was} there, {now} here{': a new head' if ours.num_classes else ''}")
    if resize:
        adapted = replace(adapted, image_size=ours.image_size, patch_size=ours.patch_size)
    check_same(checkpoint, adapted, ours)
    heads = ("head/", "head_dist/")
    for path in ours.weight_shapes:
        if path.startswith(heads) and ours.num_classes != theirs.num_classes:
            continue
        arrays[path] = resample_weight(path, checkpoint.read(path), theirs, ours, checkpoint.antialias)
        if path == "encoder/position" and ours.grid_size != theirs.grid_size:
            was, now = (f"{rows}x{columns}" for rows, columns in (theirs.grid_size, ours.grid_size))
            notes.append(f"positions: {was} there, {now} here: interpolated")
        if path == "encoder/projection/kernel" and ours.patch_size != theirs.patch_size:
            was, now = (f"{rows}x{columns}" for rows, columns in (theirs.patch_size, ours.patch_size))
            notes.append(f"patches: {was} pixels there, {now} here: the projection is resampled")
    for weight in model.weights:
        if weight.path in arrays:
            weight.assign(arrays[weight.path])
    return notes


def check_same(checkpoint, theirs, ours):
    """Raises a ValueError unless two configurations are the same model: first for other weights, then for other arithmetic."""
    where = f"checkpoint: {str(checkpoint.path)!r}"
    wanted, held = ours.weight_shapes, theirs.weight_shapes
    listed = [f"- {path}" for path in wanted if path not in held]
    listed += [f"+ {path}" for path in held if path not in wanted]
    listed += [f"! {path} {held[path]}, expected {wanted[path]}" for path in wanted if path in held and held[path] != wanted[path]]
    if listed:
        more = f"; and {len(listed) - 3 * SHOWN} more" if len(listed) > 3 * SHOWN else ""
        hint = "; another number of classes is allowed with new_head=True" if theirs.num_classes != ours.num_classes else ""
        if (theirs.image_size, theirs.patch_size) != (ours.image_size, ours.patch_size):
            hint += "; another image or patch size is allowed with resize=True"
        text = "; ".join(listed[: 3 * SHOWN])
        raise ValueError(f"{where} has another architecture than the model (- missing, + extra, ! shape): {text}{more}{hint}")
    for field in fields(ViTConfig):
        a, b = getattr(theirs, field.name), getattr(ours, field.name)
        alike = field.name in ("class_token", "layer_scale", "image_size") or a == b
        if field.name == "prefix_positions":
            alike = theirs.num_prefix_positions == ours.num_prefix_positions
        if not alike:
            raise ValueError(f"{where} has another {field.name} than the model: {a!r} there, {b!r} here")


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
        from keras_vit.weights.jax_npz import save_jax as save
    try:
        save(config, weights, path, mean, std, class_names)
    except OSError as error:
        raise ValueError(f"path: {str(path)!r} cannot be written ({error.strerror or error})") from None


def as_channels(name, value, channels):
    """One number a channel."""
    values = [float(v) for v in value] if isinstance(value, Sequence) else [value] * channels
    if len(values) not in (1, channels):
        raise ValueError(f"{name}: received {len(values)} numbers; allowed: one, or one for each of {channels} channels")
    for number in values:
        check_number(name, number)
    return [float(v) for v in (values * channels if len(values) == 1 else values)]


# Where a checkpoint is, and whose


def find(path) -> Path:
    """The local path of a checkpoint, downloaded where it is the name of a hub repository and nothing local."""
    text = os.fspath(path)
    local = Path(text).expanduser()
    if local.suffix in PICKLES and not local.is_dir():
        refuse_pickle(local)
    if local.exists():
        return local
    name = text.removeprefix("hf-hub:")
    if not re.fullmatch(r"[\w][\w.-]*/[\w.-]+", name):
        raise ValueError(f"checkpoint: there is no file or folder {text!r}, and it is no name on the Hugging Face hub (org/name)")
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(
            f"checkpoint: there is no file or folder {text!r}, and a download from the Hugging Face hub needs huggingface_hub: "
            "pip install huggingface_hub"
        ) from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # of several packages below it, none of which it wraps
        reason = " ".join(str(error).split())
        raise ValueError(
            f"checkpoint: there is no file or folder {text!r}, and it cannot be downloaded from the Hugging Face hub "
            f"({type(error).__name__}: {reason[:200]})"
        ) from None


def detect(path: Path) -> str:
    """Whose checkpoint a local path is."""
    if path.is_file():
        kinds = {".npz": "jax", ".keras": "keras", ".safetensors": "timm"}
        if path.suffix in kinds:
            return kinds[path.suffix]
        raise ValueError(f"checkpoint: {str(path)!r} has the suffix {path.suffix!r}; allowed: {', '.join(kinds)}, or a folder")
    if (path / "recipe.yaml").is_file():
        return "keras"
    if (path / "config.json").is_file():
        settings = read_json(path / "config.json")
        if "model_type" in settings:
            return "huggingface"
        if "architecture" in settings:
            return "timm"
        raise ValueError(
            f"checkpoint: {str(path / 'config.json')!r} has neither architecture (timm) nor model_type (transformers); "
            "give the source and the architecture"
        )
    raise ValueError(f"checkpoint: {str(path)!r} holds neither recipe.yaml (a run folder) nor config.json (timm, transformers)")


def check_kind(path, source, right, allowed):
    if not right:
        raise ValueError(f"source: received {source!r}, but {str(path)!r} is no such thing; allowed: {allowed}")
    return path


def open_keras(path: Path) -> Checkpoint:
    """Opens a run folder or a .keras file of this library."""
    from keras_vit.model import ViT
    from keras_vit.run import RunFolder

    mean, std, names, notes = [0.5], [0.5], None, ()
    if path.is_dir():
        run = RunFolder(path)
        recipe = run.recipe
        mean, std = (value if isinstance(value, list) else [value] for value in (recipe.mean, recipe.std))
        names = run.summary.get("class_names") if run.is_finished else None
        if not run.model_path.is_file():
            run.model()  # says what is missing
        path, file = run.path, run.model_path
    else:
        file, notes = path, ("mean and std: not in a .keras file; taken: 0.5, 0.5",)
    if not zipfile.is_zipfile(file):
        raise ValueError(f"checkpoint: {str(file)!r} is damaged or no .keras file")
    try:
        model = keras.saving.load_model(file, compile=False, safe_mode=True)
    except (ValueError, TypeError, KeyError, OSError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"checkpoint: {str(file)!r} cannot be loaded ({reason[:300]})") from None
    if not isinstance(model, ViT):
        raise ValueError(f"checkpoint: {str(file)!r} holds a {type(model).__name__}; allowed: a ViT of this library")
    weights = float_weights(model, f"checkpoint: {str(file)!r}")
    return Checkpoint("keras", path, model.config, mean, std, names, weights.__getitem__, notes=notes)


def float_weights(model, where):
    """The weights of a `ViT` by path, in float32, adapters merged; a ValueError if it is quantised."""
    weights = merged_weights(model)
    if {path: value.shape for path, value in weights.items()} != model.config.weight_shapes:
        raise ValueError(f"{where}: received a quantised model; allowed: one whose weights are floats")
    return weights
