"""The settings of foreign checkpoints: values of a config.json with their types checked, and the limits of a format."""

import math

from keras_vit.checks import as_moments
from keras_vit.model.config import ViTConfig


def read_setting(settings: dict, name: str, types: type | tuple, default=None):
    """The value of a key, or the default if it is absent or null; a ValueError if it has another type."""
    value = settings.get(name)
    if value is None:
        return default
    if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
        allowed = " or ".join(kind.__name__ for kind in (types if isinstance(types, tuple) else (types,)))
        raise ValueError(f"config.json: {name}: received {value!r}; allowed: {allowed}")
    return value


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


def refuse_unless(target: str, config: ViTConfig, **allowed) -> None:
    """Raises a ValueError that names the first field of a configuration that a format cannot hold."""
    for name, value in allowed.items():
        choices = value if isinstance(value, tuple) else (value,)
        if getattr(config, name) not in choices:
            raise cannot_hold(target, config, name, ", ".join(str(choice) for choice in choices))


def cannot_hold(target: str, config: ViTConfig, name: str, allowed: str) -> ValueError:
    """The error for a field of a configuration that a format cannot hold."""
    return ValueError(f"{name}: received {getattr(config, name)!r}; allowed in {target}: {allowed}")
