"""Fine-tuning: the weights of a checkpoint, which of them are trained, and at what share of the learning rate."""

import dataclasses
import itertools
import math
import typing

import keras
import numpy as np

from keras_vit.config import ViTConfig, check_choice, check_int, check_number

if typing.TYPE_CHECKING:
    from keras_vit.model import ViT
    from keras_vit.weights import Checkpoint

METHODS = ("full", "probe", "lora")
SOURCES = ("auto", "keras", "timm", "huggingface", "jax")
HEADS = ("head", "head_dist")  # names of the layers that give logits; the second one where there is distillation

# Peak learning rates where neither recipe nor command line says: the more is trained, the smaller.
LEARNING_RATES = {"full": 1e-4, "lora": 1e-3, "probe": 3e-3}

# Fields of a ViTConfig that are the recipe's, not the checkpoint's: they change no weight, or the head alone.
OWN_FIELDS = ("num_classes", "dropout", "attention_dropout", "drop_path", "data_format")
RESIZED_FIELDS = ("image_size", "patch_size")  # the checkpoint's unless others are asked for; weights are then resampled


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """What a training starts from, and what of it is trained.

    Attributes:
        checkpoint: A run folder, a `.keras` file, a checkpoint of timm, transformers or JAX, or a name on the Hugging Face hub;
            empty = from scratch.
        source: Whose checkpoint it is: `auto` (told by its files), `keras`, `timm`, `huggingface` or `jax`.
        architecture: Name of the architecture, such as vit_base_patch16_224, where the checkpoint does not say; empty = it does.
        method: `full` (every weight), `probe` (the head alone) or `lora` (the head, and adapters of low rank beside the kernels of
            attention and MLP, arXiv 2106.09685).
        keep_head: Whether the checkpoint's head is kept, for data of the same classes; else a new one starts at zero.
        freeze: Number of blocks, from the first on, that are not trained, nor then is the embedding; 0 = all are trained.
        layer_decay: Factor on the learning rate for every block down from the head (arXiv 2106.08254): 1 for all behind the last
            block, layer_decay^1 for the last block, layer_decay^depth for the first and layer_decay^(depth + 1) for the
            embedding; 1 = off.
        lora_rank: Rank r of the adapters A (D, r) and B (r, M), of which B starts at zero.
        lora_alpha: Scale of the adapters: a kernel becomes kernel + lora_alpha / lora_rank * A B.
    """

    checkpoint: str = ""
    source: typing.Literal[SOURCES] = "auto"
    architecture: str = ""
    method: typing.Literal[METHODS] = "full"
    keep_head: bool = False
    freeze: int = 0
    layer_decay: float = 1.0
    lora_rank: int = 8
    lora_alpha: float = 16.0

    def __post_init__(self):
        for name in ("checkpoint", "architecture"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}: received {getattr(self, name)!r}; allowed: a string")
        check_choice("source", self.source, SOURCES)
        check_choice("method", self.method, METHODS)
        check_choice("keep_head", self.keep_head, (True, False))
        check_int("freeze", self.freeze, at_least=0)
        check_number("layer_decay", self.layer_decay, above=0, at_most=1)
        check_int("lora_rank", self.lora_rank, at_least=1)
        check_number("lora_alpha", self.lora_alpha, above=0)
        if not self.checkpoint:
            self.refuse([field.name for field in dataclasses.fields(self)], "without a checkpoint")
        if self.method == "probe":
            self.refuse(("freeze", "layer_decay"), "of a linear probe, which trains the head alone,")
        if self.method != "lora":
            self.refuse(("lora_rank", "lora_alpha"), f"with method {self.method}, which has no adapters,")

    def refuse(self, names, where):
        """Raises a ValueError unless the named fields have their defaults: elsewhere they would do nothing."""
        for name in names:
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != default:
                raise ValueError(f"{name}: received {value!r}; {where} allowed: {default!r}")

    def check_model(self, model: ViTConfig) -> None:
        """Raises a ValueError unless this can be done with a model."""
        if self.freeze > model.depth:
            raise ValueError(f"freeze: received {self.freeze}; the model has {model.depth} blocks; allowed: 0 to {model.depth}")
        largest = min(model.width, model.mlp_dim)
        if self.method == "lora" and self.lora_rank > largest:
            raise ValueError(f"lora_rank: received {self.lora_rank}; allowed: 1 to {largest}, the smaller side of the kernels")
        if self.method == "probe":
            for name in ("dropout", "attention_dropout", "drop_path"):
                if getattr(model, name):
                    raise ValueError(
                        f"{name}: received {getattr(model, name)}; of a linear probe, whose blocks are frozen, allowed: 0"
                    )


# Weights of a checkpoint


def open_finetune(config: FinetuneConfig) -> "Checkpoint":
    """The checkpoint of a `FinetuneConfig`, opened.

    Raises:
        ValueError: Where there is none, or it cannot be read.
    """
    from keras_vit.weights import open_checkpoint

    if not config.checkpoint:
        raise ValueError("checkpoint: none is given; allowed: a run folder, a file, a folder or a name on the Hugging Face hub")
    return open_checkpoint(config.checkpoint, config.source, architecture=config.architecture or None)


def checkpoint_settings(checkpoint: "Checkpoint") -> dict:
    """The settings of a recipe that a checkpoint decides, as {"model.depth": 12, ..., "mean": [...], "std": [...]}."""
    model = checkpoint.config.to_dict()
    settings = {f"model.{name}": value for name, value in model.items() if name not in OWN_FIELDS}
    return {**settings, "mean": list(checkpoint.mean), "std": list(checkpoint.std)}


def check_architecture(config: ViTConfig, checkpoint: ViTConfig) -> None:
    """Raises a ValueError that names the first field in which a model contradicts its checkpoint."""
    free = (*OWN_FIELDS, *(RESIZED_FIELDS if checkpoint.stem == "patch" else RESIZED_FIELDS[:1]))
    for field in dataclasses.fields(ViTConfig):
        ours, theirs = getattr(config, field.name), getattr(checkpoint, field.name)
        if field.name not in free and ours != theirs:
            raise ValueError(f"model.{field.name}: received {ours}; allowed: {theirs}, as the checkpoint has it")


def load_finetune(model: "ViT", config: FinetuneConfig, class_names: list[str]) -> list[str]:
    """Gives a model the weights of a checkpoint, resampled to its image and patch size, and a head at zero or the checkpoint's.

    Args:
        model: A `ViT`, not yet prepared by `select_weights`.
        config: The `FinetuneConfig`.
        class_names: Those of the data.

    Returns:
        Lines for the user.

    Raises:
        ValueError: For a checkpoint that cannot be read or has another architecture, or whose head cannot be kept.
    """
    from keras_vit.weights import load_weights

    checkpoint = open_finetune(config)
    check_architecture(model.config, checkpoint.config)
    names, count = checkpoint.class_names, checkpoint.config.num_classes
    if config.keep_head:
        if count != len(class_names):
            raise ValueError(f"keep_head: the checkpoint has {count} classes and the data {len(class_names)}; allowed: false")
        for index, (theirs, ours) in enumerate(zip(names or class_names, class_names, strict=True)):
            if theirs != ours:
                raise ValueError(
                    f"keep_head: class {index} is {theirs!r} in the checkpoint and {ours!r} in the data; allowed: false"
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
    """Freezes what a `FinetuneConfig` does not train, and adds the adapters of LoRA, which leave the outputs as they are.

    Keras neither differentiates by a frozen variable nor keeps optimizer state of it. Before the model is compiled.
    """
    trained = HEADS
    if config.method == "full":
        names = [layer.name for layer in model.layers]
        trained = names[names.index(f"block_{config.freeze - 1}") + 1 :] if config.freeze else names
    for layer in model.layers:
        for variable in layer.weights:  # not layer.trainable: that would hold for its adapters too
            variable.trainable = layer.name in trained
    if config.method == "lora":
        for layer in adapted_layers(model, config.freeze):
            layer.enable_lora(config.lora_rank, lora_alpha=config.lora_alpha)


def adapted_layers(model, first=0):
    """The dense layers that LoRA adapts, of the blocks from `first` on."""
    blocks = [model.get_layer(f"block_{index}") for index in range(first, model.config.depth)]
    return [
        layer
        for block in blocks
        for layer in (block.attention.qkv, block.attention.projection, block.feed_forward.fc1, block.feed_forward.fc2)
    ]


def merged_weights(model: "ViT", averages: dict | None = None) -> dict[str, np.ndarray]:
    """The weights of a model by path, in float32, as a model without adapters has them.

    Args:
        model: A `ViT`, with or without adapters.
        averages: Values that count instead of those of the model, {path of a variable: variable or array}.
    """
    values = {weight.path: (averages or {}).get(weight.path, weight) for weight in model.weights}
    values = {path: np.asarray(keras.ops.convert_to_numpy(value), "float32") for path, value in values.items()}
    for layer in adapted_layers(model):
        if layer.lora_enabled:
            a, b = values.pop(layer.lora_kernel_a.path), values.pop(layer.lora_kernel_b.path)
            kernel = f"{layer.path}/kernel"
            values[kernel] = values[kernel] + layer.lora_alpha / layer.lora_rank * (
                a @ b
            )  # not in place: the array may be the model's
    return values


def learning_rate_factors(model: "ViT", layer_decay: float) -> dict[str, float]:
    """The factor on the learning rate of each weight, by path.

    Behind the last block 1, then layer_decay^1 for the last block to layer_decay^depth for the first, and
    layer_decay^(depth + 1) for the embedding: stem, projection, prefix tokens and positions. So does BEiT (arXiv 2106.08254);
    timm counts the last norm to the last block.
    """
    depth, layers = model.config.depth, model.layers  # in the order in which an image passes them
    first = [layer.name for layer in layers].index("block_0")
    return {
        weight.path: layer_decay ** min(max(first + depth - index, 0), depth + 1)
        for index, layer in enumerate(layers)
        for weight in layer.weights
    }


def trained_parameters(model: keras.Model) -> int:
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


def describe_trained(model: "ViT") -> str:
    """A line that says what of a model is trained, such as "block_2 to block_3, norm, head (3,450 of 9,120 parameters...)"."""
    names = dict.fromkeys(variable.path.split("/")[0] for variable in model.trainable_variables)
    parts = []
    for is_block, group in itertools.groupby(names, lambda name: name.startswith("block_")):
        group = list(group)
        parts += [f"{group[0]} to {group[-1]}"] if is_block and len(group) > 1 else group
    adapted = any(layer.lora_enabled for layer in adapted_layers(model))
    every = model.count_params()
    return (
        f"trained: {', '.join(parts)}: {trained_parameters(model):,} of {every:,} parameters in "
        f"{len(model.trainable_variables)} variables{' (of the blocks, the adapters alone)' if adapted else ''}"
    )
