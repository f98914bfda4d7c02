"""The axes of a search: what may be searched, read from a range, from choices or from a file, and the values on each axis."""

import dataclasses
import math
import os
import typing
from pathlib import Path

import numpy as np
from keras_tuner import HyperParameters

from keras_vit.checks import check_choice, check_number, check_types, shown
from keras_vit.files import read_yaml
from keras_vit.model.config import POOLS, STEMS
from keras_vit.recipes.parse import flatten_section
from keras_vit.recipes.schema import Recipe

Axis = str | int | float | list[typing.Any] | None

INTEGERS = {"patch_size": 1, "depth": 1, "num_heads": 1, "head_dim": 1, "stem_depth": 0, "batch_size": 1}  # and the smallest
NAMES = {"stem": STEMS, "pool": POOLS}
LARGEST = 2**16  # integer of an axis, whose values are listed
LOGARITHMIC = ("learning_rate", "weight_decay")
MOST_PATCHES, FEWEST_PATCHES = 256, 4  # the bounds of `patch_size: auto`
DIGITS = 4  # of searched real numbers: recipes stay readable, and values survive messages between machines


@dataclasses.dataclass(frozen=True)
class SpaceConfig:
    """The axes of a search. Each is a range `2..8`, choices `2,4,8`, one fixed value, or null = as in the recipe.

    Attributes:
        patch_size: Side of a patch in pixels; `auto` = the divisors of the image that give 4 to 256 patches.
        depth: Number of transformer blocks.
        num_heads: Attention heads; the width is num_heads x head_dim.
        head_dim: Channels of a head.
        mlp_ratio: Hidden size of the MLP over the width.
        stem: `patch` or `conv`; `conv` only with a patch size that is a power of 2.
        stem_depth: Residual blocks after each convolution of the stem; more than 0 only with `conv`.
        pool: `cls`, `gap` or `map`.
        learning_rate: Peak learning rate, on a logarithmic scale.
        weight_decay: Decoupled weight decay, on a logarithmic scale.
        drop_path: Stochastic depth of the last block, 0 to below 1.
        batch_size: Images a step.
        augment: Strength of the augmentation, 0 to 1. RandAugment gets magnitude 9 x strength (one layer, two above 0.5). The
            recipe's MixUp or CutMix (CutMix if it has neither) mixes the share `strength` of the images. At 0 only flip and crop
            remain.
    """

    patch_size: Axis = "auto"
    depth: Axis = "2..8"
    num_heads: Axis = "2..6"
    head_dim: Axis = "16,32,48,64"
    mlp_ratio: Axis = "1,2,3,4"
    stem: Axis = "patch,conv"
    stem_depth: Axis = "0..2"
    pool: Axis = "cls,gap,map"
    learning_rate: Axis = "3e-4..1e-2"
    weight_decay: Axis = "0.01..0.3"
    drop_path: Axis = "0,0.1"
    batch_size: Axis = "64,128,256"
    augment: Axis = "0..1"

    def __post_init__(self):
        check_types(self)


def read_space(path: str | os.PathLike) -> dict[str, Axis]:
    """Every axis of a YAML or JSON file of axes, {"depth": "2..8", ...}; an axis that the file does not name is None.

    Raises:
        ValueError: If there is no such file, or if it names anything but axes.
    """
    path = Path(path)
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise ValueError(f"space: received {str(path)!r}; allowed: a .yaml or .json file that names axes, or --space.AXIS VALUES")
    if not path.is_file():
        raise ValueError(f"space: received {str(path)!r}; allowed: a file that exists")
    axes = read_yaml(path)
    if not isinstance(axes, dict):
        raise ValueError(f"{path}: received a {type(axes).__name__}; allowed: a mapping of axes, such as depth: 2..8")
    flatten_section("space", SpaceConfig, axes, f"{path}: ")
    return {field.name: axes.get(field.name) for field in dataclasses.fields(SpaceConfig)}


def add_axis(hyperparameters: HyperParameters, name: str, spec: Axis, recipe: Recipe) -> None:
    """Reads one axis and registers it with KerasTuner; an axis that is None is not searched."""
    if spec is None:
        return
    if name == "patch_size" and spec == "auto":
        spec = patch_sizes(recipe.model.image_size)
    if isinstance(spec, str) and ".." in spec:
        low, high = (read_value(name, part) for part in spec.split("..", 1))
        if low > high:
            raise ValueError(f"space.{name}: received {shown(spec)}; allowed: a range LOW..HIGH with LOW below HIGH")
        if low == high:
            hyperparameters.Fixed(name, low)
        elif name in INTEGERS:
            hyperparameters.Int(name, low, high)
        elif name in LOGARITHMIC:
            if low <= 0:
                raise ValueError(f"space.{name}: received {shown(spec)}; allowed: a logarithmic range, which begins above 0")
            hyperparameters.Float(name, low, high, sampling="log")
        else:
            hyperparameters.Float(name, low, high)
        return
    parts = spec.split(",") if isinstance(spec, str) else spec if isinstance(spec, list) else [spec]
    values = list(dict.fromkeys(read_value(name, part) for part in parts))
    if not values:
        raise ValueError(f"space.{name}: received {shown(spec)}; allowed: a range such as 2..8, or values such as 2,4,8")
    if len(values) == 1:
        hyperparameters.Fixed(name, values[0])
    else:
        hyperparameters.Choice(name, values if name in NAMES else sorted(values))


def read_value(name, text):
    """One value of an axis, as its type and within the bounds of the recipe's field."""
    text = text.strip() if isinstance(text, str) else text
    if name in NAMES:
        check_choice(f"space.{name}", text, NAMES[name])
        return text
    try:
        value = math.nan if isinstance(text, bool) else float(text)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        allowed = "a number, a range such as 2..8 or values such as 2,4,8"
        raise ValueError(f"space.{name}: received {shown(text)}; allowed: {allowed}")
    if name in INTEGERS:
        least = INTEGERS[name]
        if value != int(value) or not least <= value <= LARGEST:
            bounds = f"from {least} to {LARGEST:,}" if value > LARGEST else f"of at least {least}"
            raise ValueError(f"space.{name}: received {value:g}; allowed: integers {bounds}")
        return int(value)
    bounds = {
        "mlp_ratio": {"above": 0},
        "learning_rate": {"above": 0},
        "weight_decay": {"at_least": 0},
        "drop_path": {"at_least": 0, "below": 1},
        "augment": {"at_least": 0, "at_most": 1},
    }
    check_number(f"space.{name}", value, **bounds[name])
    return value


def patch_sizes(image_size):
    """The sides of square patches of which 4 to 256 cover an image."""
    height, width = image_size
    sizes = [size for size in range(1, math.gcd(height, width) + 1) if height % size == width % size == 0]
    fitting = [size for size in sizes if FEWEST_PATCHES <= height * width // size**2 <= MOST_PATCHES]
    return fitting or sizes[-1:]


def is_countable(axis):
    """Whether an axis is anything but a range of real numbers."""
    return type(axis).__name__ != "Float"


def values_of(axis):
    """The values of a countable axis, in order."""
    if type(axis).__name__ == "Fixed":
        return [axis.value]
    if type(axis).__name__ == "Int":
        return list(range(axis.min_value, axis.max_value + 1))
    return list(axis.values)


def smallest_value(axis):
    return values_of(axis)[0] if is_countable(axis) else axis.min_value


def value_at(axis, probability):
    """The value of an axis at a point of 0..1: a plain Python value, a real number with `DIGITS` digits."""
    value = axis.prob_to_value(probability)
    value = value.item() if isinstance(value, np.generic) else value
    return value if is_countable(axis) else rounded(value)


def rounded(value):
    return float(f"{value:.{DIGITS}g}")
