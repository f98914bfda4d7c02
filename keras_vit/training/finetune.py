"""Fine-tuning: a checkpoint's settings and weights, which weights are trained, and at what share of the learning rate."""

import dataclasses
import itertools
import math
import os
import typing

import jsonargparse
import keras
import numpy as np

from keras_vit.model.adapters import adapted_layers
from keras_vit.model.config import ViTConfig
from keras_vit.recipes.parse import parse_recipe, parse_settings, read_with_overrides
from keras_vit.recipes.schema import FinetuneConfig, Recipe

if typing.TYPE_CHECKING:
    from keras_vit.model.vit import ViT
    from keras_vit.weights.checkpoint import Checkpoint

HEADS = ("head", "head_dist")  # names of the layers that give logits; a model with distillation has both

# Default peak learning rates; the more weights are trained, the smaller the rate.
LEARNING_RATES = {"full": 1e-4, "lora": 1e-3, "probe": 3e-3}

# Fields of a ViTConfig that the recipe decides, not the checkpoint: they change no weight, or only the head.
OWN_FIELDS = ("num_classes", "dropout", "attention_dropout", "drop_path", "data_format")
RESIZED_FIELDS = ("image_size", "channels", "patch_size")  # the checkpoint's by default; other values resample its weights


# Weights of a checkpoint


def open_finetune(config: FinetuneConfig) -> "Checkpoint":
    """The checkpoint of a `FinetuneConfig`, opened.

    Raises:
        ValueError: If there is none, or it cannot be read.
    """
    from keras_vit.weights.load import open_checkpoint

    if not config.checkpoint:
        raise ValueError("checkpoint: received none; allowed: a run folder, a file, a folder or a name on the Hugging Face hub")
    return open_checkpoint(config.checkpoint, config.source, architecture=config.architecture or None)


def checkpoint_settings(checkpoint: "Checkpoint", channels: int | None = None) -> dict:
    """The settings of a recipe that a checkpoint decides, as {"model.depth": 12, ..., "mean": [...], "std": [...]}.

    Args:
        checkpoint: The `Checkpoint`.
        channels: Of the images, to which mean and std are adapted as the first layer is; None = the checkpoint's.
    """
    model = checkpoint.config.to_dict()
    settings = {f"model.{name}": value for name, value in model.items() if name not in OWN_FIELDS}
    mean, std = (moments_for(values, channels or checkpoint.config.channels) for values in (checkpoint.mean, checkpoint.std))
    return {**settings, "mean": mean, "std": std}


def moments_for(values: list[float], channels: int) -> list[float]:
    """Mean or std of each channel for another number of channels: in turn, or the mean of all for one."""
    if len(values) in (1, channels):
        return list(values)
    return [sum(values) / len(values)] if channels == 1 else [values[index % len(values)] for index in range(channels)]


def check_architecture(config: ViTConfig, checkpoint: ViTConfig) -> None:
    """Raises a ValueError that names the first field that must equal the checkpoint's and does not."""
    free = (*OWN_FIELDS, *(RESIZED_FIELDS if checkpoint.stem == "patch" else RESIZED_FIELDS[:2]))
    for field in dataclasses.fields(ViTConfig):
        ours, theirs = getattr(config, field.name), getattr(checkpoint, field.name)
        if field.name not in free and ours != theirs:
            raise ValueError(f"model.{field.name}: received {ours}; allowed: {theirs}, as the checkpoint has it")


def load_finetune(model: "ViT", config: FinetuneConfig, class_names: list[str]) -> list[str]:
    """Gives a model the weights of a checkpoint, resampled to its image and patch size; its head starts at zero or is kept.

    Args:
        model: A `ViT`, not yet prepared by `select_weights`.
        config: The `FinetuneConfig`.
        class_names: The data's classes.

    Returns:
        Lines for the user.

    Raises:
        ValueError: For a checkpoint that cannot be read or has another architecture, or whose head cannot be kept.
    """
    from keras_vit.weights.load import load_weights

    checkpoint = open_finetune(config)
    check_architecture(model.config, checkpoint.config)
    names, count = checkpoint.class_names, checkpoint.config.num_classes
    if config.keep_head:
        if count != len(class_names):
            raise ValueError(
                f"keep_head: received true; allowed: false, for {len(class_names)} classes and a checkpoint of {count}"
            )
        for index, (theirs, ours) in enumerate(zip(names or class_names, class_names, strict=True)):
            if theirs != ours:
                raise ValueError(
                    f"keep_head: received true; allowed: false, as class {index} is {theirs!r} in the checkpoint and {ours!r} here"
                )
    notes = load_weights(model, checkpoint, new_head=not config.keep_head, resize=True)
    if not config.keep_head:
        for variable in head_variables(model):
            variable.assign(np.zeros(variable.shape))
        same = names is not None and list(names) == list(class_names)
        hint = "; --finetune.keep_head true keeps the checkpoint's, whose classes are the same" if same else ""
        notes = [*notes, f"head: starts at zero, for the {len(class_names)} classes of the data{hint}"]
    return notes


def head_variables(model):
    return [variable for layer in model.layers if layer.name in HEADS for variable in layer.weights]


# What is trained


def select_weights(model: "ViT", config: FinetuneConfig) -> None:
    """Freezes what a `FinetuneConfig` does not train, and adds LoRA's adapters, which leave the outputs unchanged at first.

    Call it before the model is compiled. Keras computes no gradient and keeps no optimizer state for a frozen variable.
    """
    trained = HEADS
    if config.method == "full" and config.freeze <= model.config.depth:
        names = [layer.name for layer in model.layers]
        trained = names[names.index(f"block_{config.freeze - 1}") + 1 :] if config.freeze else names
    for layer in model.layers:
        for variable in layer.weights:  # not layer.trainable, which would freeze its adapters too
            variable.trainable = layer.name in trained
    if config.method == "lora":
        for layer in adapted_layers(model, config.freeze):
            layer.enable_lora(config.lora_rank, lora_alpha=config.lora_alpha)


def learning_rate_factors(model: "ViT", layer_decay: float) -> dict[str, float]:
    """The factor on the learning rate of each layer's weights, by the layer's name.

    1 after the last block, layer_decay^1 for the last block to layer_decay^depth for the first, and layer_decay^(depth + 1) for
    the embedding: stem, projection, prefix tokens and positions. This is BEiT's rule (arXiv 2106.08254); in timm the last norm
    has the last block's factor.
    """
    depth, names = model.config.depth, [layer.name for layer in model.layers if layer.weights]  # in forward order
    first = names.index("block_0")
    return {name: layer_decay ** min(max(first + depth - index, 0), depth + 1) for index, name in enumerate(names)}


def trained_parameters(model: keras.Model) -> int:
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


def describe_trained(model: "ViT") -> str:
    """A line that says what is trained: "trained: block_2 to block_3, norm, head: 3,450 of 9,120 parameters in 26 variables"."""
    names = dict.fromkeys(variable.path.split("/")[0] for variable in model.trainable_variables)
    parts = []
    for is_block, group in itertools.groupby(names, lambda name: name.startswith("block_")):
        group = list(group)
        parts += [f"{group[0]} to {group[-1]}"] if is_block and len(group) > 1 else group
    every = model.count_params()
    return (
        f"trained: {', '.join(parts)}: {trained_parameters(model):,} of {every:,} parameters in "
        f"{len(model.trainable_variables)} variables{' (of the blocks, the adapters alone)' if model.has_adapters else ''}"
    )


def finetune_recipe(checkpoint: str | os.PathLike, name: str | os.PathLike = "photos", **overrides) -> Recipe:
    """A `Recipe` that fine-tunes a checkpoint, to be run by `train`.

    Architecture, image and patch size, mean and std are the checkpoint's by default. The architecture cannot be overridden. The
    default peak learning rate depends on the method: `keras_vit.training.finetune.LEARNING_RATES`.

    Args:
        checkpoint: As `FinetuneConfig.checkpoint`.
        name: A recipe's name or a YAML or JSON file.
        **overrides: As in `load_recipe`: `data="folder:photos", finetune={"method": "lora"}, model={"image_size": 384}`.

    Raises:
        ValueError: Naming the setting, what was received and what is allowed, or what is wrong with the checkpoint.
    """
    settings = {**read_with_overrides(name, overrides), "finetune.checkpoint": str(checkpoint)}
    completion = Completion()
    recipe, _ = parse_settings(settings, complete=completion)
    completion.check(recipe)
    return recipe


def parse_finetune(name: str | os.PathLike, arguments: list[str]) -> tuple[Recipe, jsonargparse.Namespace]:
    """As `parse_recipe`; settings that neither file nor command line states come from `finetune.checkpoint`."""
    completion = Completion()
    recipe, namespace = parse_recipe(name, arguments, complete=completion)
    completion.check(recipe)
    return recipe, namespace


class Completion:
    """Gives `parse_settings` the settings that a checkpoint decides, and checks the parsed recipe against the checkpoint."""

    checkpoint = None

    def __call__(self, finetune: FinetuneConfig, channels: int | None = None) -> dict:
        self.checkpoint = self.checkpoint or open_finetune(finetune)
        return {"train.learning_rate": LEARNING_RATES[finetune.method], **checkpoint_settings(self.checkpoint, channels)}

    def check(self, recipe: Recipe) -> None:
        """Raises a ValueError if the recipe's architecture differs from the checkpoint's."""
        check_architecture(recipe.model, self.checkpoint.config)
