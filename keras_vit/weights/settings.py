"""The settings of foreign checkpoints: values of a config.json with their types checked, and the limits of a format."""

import math

from keras_vit.checks import as_moments, as_pair, shown
from keras_vit.model.config import ViTConfig


def read_setting(settings: dict, name: str, types: type | tuple, default=None):
    """The value of a key, or the default if it is absent or null; a ValueError if it has another type."""
    value = settings.get(name)
    if value is None:
        return default
    if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
        allowed = " or ".join(kind.__name__ for kind in (types if isinstance(types, tuple) else (types,)))
        raise ValueError(f"config.json: {name}: received {shown(value)}; allowed: {allowed}")
    return value


# Names of activations in transformers; of those with the same meaning, the first is written.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "gelu_quick",
}


def read_activation(theirs: str) -> str:
    """`ViTConfig.mlp` for an activation of transformers; a ValueError for others."""
    if theirs not in ACTIVATIONS:
        raise ValueError(f"config.json: hidden_act: received {theirs!r}; allowed: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[theirs]


def name_activation(mlp: str) -> str:
    """The activation of transformers for `ViTConfig.mlp`, if it is not gated."""
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == mlp)


def read_moments(mean, std, channels: int) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation of pixels as lists of numbers, None if one is missing; a ValueError for anything else."""
    return None if mean is None or std is None else as_moments(mean, std, channels, "config.json: ")


def check_found(name: str, given, found) -> None:
    """Raises a ValueError unless a setting of config.json agrees with the tensors."""
    if given != found:
        raise ValueError(f"config.json: {name}: received {given}; allowed: {found}, as the tensors have")


def check_rank(shapes: dict, name: str, rank: int, kind: str) -> None:
    """Raises a ValueError unless a tensor exists and has as many axes as this kind of model needs."""
    shape = shapes.get(name)
    if shape is None or len(shape) != rank:
        received = "no tensor" if shape is None else f"shape {tuple(shape)}"
        raise ValueError(f"checkpoint: {name}: received {received}; allowed: {rank} axes, as in {kind}")


def square_side(count: int) -> int | None:
    """The side of a square of `count` patches, or None."""
    side = math.isqrt(count) if count > 0 else 0
    return side if side and side * side == count else None


def find_grid(length, prefix, patch, given, others):
    """Rows and columns of patches: from the given image size, else from the first other size that fits, else a square.

    A remainder of pixels is dropped, as in timm: 384 pixels make 27 patches of 14.

    Args:
        length: Number of positions, or None.
        prefix: Number of prefix tokens.
        patch: The patch size.
        given: The image size in the arguments, or None.
        others: Further image sizes, or None.
    """
    grids = []
    for size in (given, *others):
        if size:
            size = as_pair("img_size", int(size) if isinstance(size, str) else size)
            grids.append(tuple(side // p for side, p in zip(size, patch, strict=True)))
    if length is None:
        if not grids:
            raise ValueError("config.json: model_args.img_size: received none; allowed: an image size, as there are no positions")
        return grids[0]
    lengths = (length, length - prefix)
    if given and grids[0][0] * grids[0][1] not in lengths:
        raise ValueError(
            f"config.json: model_args.img_size: received {given}; allowed: a size with {length} positions, as in the tensors"
        )
    for grid in grids:
        if grid[0] * grid[1] in lengths:
            return grid
    side = square_side(length - prefix) or square_side(length)
    if not side:
        raise ValueError(f"checkpoint: received {length} positions, no square grid; allowed: these with img_size in config.json")
    return side, side


def exact_ratio(hidden: int, width: int) -> float:
    """A ratio r with int(width * r) == hidden."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def refuse_unless(target: str, config: ViTConfig, **allowed) -> None:
    """Raises a ValueError that names the first field of a configuration that a format cannot hold."""
    for name, value in allowed.items():
        choices = value if isinstance(value, tuple) else (value,)
        if getattr(config, name) not in choices:
            raise cannot_hold(target, config, name, ", ".join(str(choice) for choice in choices))


def cannot_hold(target: str, config: ViTConfig, name: str, allowed: str) -> ValueError:
    """The error for a field of a configuration that a format cannot hold."""
    return ValueError(f"{name}: received {getattr(config, name)!r}; allowed in {target}: {allowed}")
