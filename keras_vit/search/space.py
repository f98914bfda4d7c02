"""What may be searched: axes, the configurations that can be built from them, and what those cost before they are built."""

import dataclasses
import itertools
import math
import typing

import numpy as np
from keras_tuner import HyperParameters

from keras_vit.checks import check_number
from keras_vit.model.config import POOLS, STEMS, ViTConfig
from keras_vit.recipes.schema import Recipe

Axis = str | int | float | list[typing.Any] | None

INTEGERS = ("patch_size", "depth", "num_heads", "head_dim", "batch_size")
NAMES = {"stem": STEMS, "pool": POOLS}
LOGARITHMIC = ("learning_rate", "weight_decay")
# The axes that decide the architecture: these are counted, and limits cut them.
SHAPE = ("patch_size", "depth", "num_heads", "head_dim", "mlp_ratio", "stem", "pool")
MOST_PATCHES, FEWEST_PATCHES = 256, 4  # what `patch_size: auto` stays between
RANDAUGMENT_MAGNITUDE = 9.0  # at augmentation strength 1, as CCT has it (arXiv 2104.05704)
DIGITS = 4  # of a searched real number: recipes stay readable, and it survives a message between machines
# Measured on Linux without an accelerator: peak memory of small trials, less images and model.
PROCESS_MB = {"tensorflow": 1140, "jax": 1110, "torch": 690}
SAMPLES = 20_000  # shapes drawn to estimate how much of a large space a limit leaves


@dataclasses.dataclass(frozen=True)
class SpaceConfig:
    """What is searched. Each axis is a range `2..8`, choices `2,4,8`, one fixed value, or null: as in the recipe.

    Attributes:
        patch_size: Side of a patch in pixels; `auto` = the divisors of the image that give 4 to 256 patches.
        depth: Number of transformer blocks.
        num_heads: Attention heads; the width is num_heads x head_dim.
        head_dim: Channels of a head.
        mlp_ratio: Hidden size of the MLP over the width.
        stem: `patch` or `conv`; the latter where the patch size is a power of 2.
        pool: `cls`, `gap` or `map`.
        learning_rate: Peak learning rate, on a logarithmic scale.
        weight_decay: Decoupled weight decay, on a logarithmic scale.
        drop_path: Stochastic depth of the last block, 0 to below 1.
        batch_size: Images a step.
        augment: Strength of the augmentation, 0 to 1: RandAugment of magnitude 9 x strength (one layer, two above a half),
            and the share `strength` of the images goes through the recipe's MixUp or CutMix, or CutMix where it has none.
            0 leaves flip and crop.
    """

    patch_size: Axis = "auto"
    depth: Axis = "2..8"
    num_heads: Axis = "2..6"
    head_dim: Axis = "16,32,48,64"
    mlp_ratio: Axis = "1,2,3,4"
    stem: Axis = "patch,conv"
    pool: Axis = "cls,gap,map"
    learning_rate: Axis = "3e-4..1e-2"
    weight_decay: Axis = "0.01..0.3"
    drop_path: Axis = "0,0.1"
    batch_size: Axis = "64,128,256"
    augment: Axis = "0..1"


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a configuration may cost; null = anything.

    Attributes:
        max_params: Largest number of parameters.
        max_flops: Most floating-point operations of one image's forward pass; a multiply-add counts as two.
        max_memory: Largest memory of its training in MB, as `training_memory` predicts it.
    """

    max_params: float | None = None
    max_flops: float | None = None
    max_memory: float | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                check_number(field.name, value, above=0)


class Space:
    """A search space over a recipe: only configurations that can be built, and that keep within limits.

    Args:
        config: The `SpaceConfig`.
        recipe: The `Recipe` that gives everything that is not searched.
        limits: The `Limits`.
        process: Memory in MB of a process without a model, which counts for `max_memory`; 0 on an accelerator.

    Raises:
        ValueError: For an axis that cannot be read, and for a space without a configuration that can be built.
    """

    def __init__(self, config: SpaceConfig, recipe: Recipe, limits: Limits | None = None, process: float = 0.0):
        self.config, self.base, self.limits, self.process = config, recipe, limits or Limits(), process
        self.hyperparameters = HyperParameters()
        for field in dataclasses.fields(config):
            add_axis(self.hyperparameters, field.name, getattr(config, field.name), recipe)
        self.total, self.legal, self.within = self.count()
        if not self.legal:
            raise ValueError(f"space: no configuration can be built; {self.why_not()}")
        if not self.within:
            raise ValueError(f"space: none of {self.legal:,} shapes keeps within {self.describe_limits()}; {self.smallest()}")

    @property
    def axes(self) -> list:
        """The hyperparameters that have more than one value."""
        return [axis for axis in self.hyperparameters.space if type(axis).__name__ != "Fixed"]

    def recipe(self, values: dict[str, typing.Any]) -> Recipe:
        """The recipe of a configuration.

        Raises:
            ValueError: If it cannot be built.
        """
        base = self.base
        model, train, augment = {}, {}, {}
        for name in ("patch_size", "depth", "stem", "pool", "drop_path"):
            if name in values:
                model[name] = values[name]
        for name in ("learning_rate", "weight_decay", "batch_size"):
            if name in values:
                train[name] = values[name]
        heads = model["num_heads"] = values.get("num_heads", base.model.num_heads)
        width = model["width"] = heads * values.get("head_dim", base.model.head_dim)
        model["mlp_dim"] = round(values.get("mlp_ratio", base.model.mlp_dim / base.model.width) * width)
        if "augment" in values:
            strength = values["augment"]
            augment["randaugment_layers"] = 0 if strength == 0 else 1 if strength <= 0.5 else 2
            augment["randaugment_magnitude"] = RANDAUGMENT_MAGNITUDE * strength
            augment["mix_probability"] = strength
            if not base.augment.mixup and not base.augment.cutmix:
                augment["cutmix"] = 1.0
        return dataclasses.replace(
            base,
            model=dataclasses.replace(base.model, **model),
            train=dataclasses.replace(base.train, **train),
            augment=dataclasses.replace(base.augment, **augment),
        )

    def nearest(self, recipe: Recipe) -> dict[str, typing.Any]:
        """The values that come closest to a recipe's own, axis by axis; not necessarily legal."""
        model, train, augment = recipe.model, recipe.train, recipe.augment
        own = {
            "patch_size": model.patch_size[0],
            "mlp_ratio": model.mlp_dim / model.width,
            "augment": augment.randaugment_magnitude / RANDAUGMENT_MAGNITUDE if augment.randaugment_layers else 0.0,
            **{name: getattr(model, name) for name in ("depth", "num_heads", "head_dim", "stem", "pool", "drop_path")},
            **{name: getattr(train, name) for name in ("learning_rate", "weight_decay", "batch_size")},
        }
        values = {}
        for axis in self.hyperparameters.space:
            value = own[axis.name]
            if not is_countable(axis):
                value = rounded(min(max(value, axis.min_value), axis.max_value))
            elif value not in values_of(axis):
                known = values_of(axis)
                value = known[0] if axis.name in NAMES else min(known, key=lambda other: abs(other - value))
            values[axis.name] = value
        return values

    def is_legal(self, values: dict[str, typing.Any]) -> bool:
        """Whether a configuration can be built and keeps within the limits."""
        try:
            recipe = self.recipe(values)
        except ValueError:
            return False
        return self.keeps_limits(recipe)

    def keeps_limits(self, recipe):
        limits = self.limits
        return (
            (limits.max_params is None or recipe.model.num_params <= limits.max_params)
            and (limits.max_flops is None or recipe.model.flops <= limits.max_flops)
            and (limits.max_memory is None or training_memory(recipe, self.process) <= limits.max_memory)
        )

    def shapes(self):
        """Every combination of the axes that decide the architecture, or `SAMPLES` of them, the rest as small as it gets."""
        axes = {axis.name: axis for axis in self.hyperparameters.space}
        rest = {name: smallest_value(axis) for name, axis in axes.items() if name not in SHAPE}
        shape = [axes[name] for name in SHAPE if name in axes]
        if all(is_countable(axis) for axis in shape):
            choices = [values_of(axis) for axis in shape]
            if math.prod(map(len, choices)) <= SAMPLES:
                for combination in itertools.product(*choices):
                    yield {**rest, **dict(zip((axis.name for axis in shape), combination, strict=True))}
                return
        rng = np.random.default_rng(0)
        for _ in range(SAMPLES):
            yield {**rest, **{axis.name: value_at(axis, rng.random()) for axis in shape}}

    def count(self):
        """How many shapes there are, can be built, and keep within the limits (of `SAMPLES` where there are more)."""
        total = legal = within = 0
        for values in self.shapes():
            total += 1
            try:
                recipe = self.recipe(values)
            except ValueError:
                continue
            legal += 1
            within += self.keeps_limits(recipe)
        return total, legal, within

    def why_not(self):
        """Why the first configuration cannot be built."""
        try:
            self.recipe(next(iter(self.shapes())))
        except ValueError as error:
            return f"the first one: {error}"
        return ""

    def smallest(self):
        """The least that a shape of this space costs, for an error message."""
        costs = []
        for values in self.shapes():
            try:
                recipe = self.recipe(values)
            except ValueError:
                continue
            costs.append((recipe.model.num_params, recipe.model.flops, training_memory(recipe, self.process)))
        params, flops, memory = (min(column) for column in zip(*costs, strict=True))
        return f"the least is {params:,} parameters, {flops:,} FLOPs, {memory:,.0f} MB"

    def describe_limits(self):
        given = {field.name: getattr(self.limits, field.name) for field in dataclasses.fields(self.limits)}
        return ", ".join(f"{name} {value:,.0f}" for name, value in given.items() if value is not None)

    def describe(self) -> str:
        """One line: how many shapes there are, and what legality and limits leave of them."""
        text = f"{self.legal:,} of {self.total:,} shapes can be built"
        if self.describe_limits():
            text += f", {self.within:,} keep within {self.describe_limits()}"
        return text

    def draw(self, rng: np.random.Generator) -> dict[str, typing.Any]:
        """Random values of every axis; not necessarily legal."""
        return {axis.name: value_at(axis, rng.random()) for axis in self.hyperparameters.space}

    def grid(self, steps: int):
        """Every legal configuration, in the order of the axes; a range of real numbers counts as `steps` values."""
        axes = self.hyperparameters.space
        ticks = np.linspace(0, 1, steps)
        choices = [values_of(axis) if is_countable(axis) else [value_at(axis, t) for t in ticks] for axis in axes]
        for combination in itertools.product(*choices):
            values = dict(zip((axis.name for axis in axes), combination, strict=True))
            if self.is_legal(values):
                yield values

    def sample(self, rng: np.random.Generator, tries: int = 10_000) -> dict[str, typing.Any]:
        """Random values of every axis that make a legal configuration.

        Raises:
            ValueError: If there is none among `tries`.
        """
        for _ in range(tries):
            values = self.draw(rng)
            if self.is_legal(values):
                return values
        raise ValueError(f"space: no legal configuration among {tries:,} random ones; {self.describe()}")

    def neighbour(self, values: dict[str, typing.Any], rng: np.random.Generator, spread: float = 0.15) -> dict[str, typing.Any]:
        """Values of which some, at least one, have moved a little; not necessarily legal."""
        axes = self.axes
        moved = rng.random(len(axes)) < max(1 / len(axes), 0.3)
        moved[rng.integers(len(axes))] = True
        result = dict(values)
        for axis, move in zip(axes, moved, strict=True):
            if not move:
                continue
            if is_countable(axis):
                choices = values_of(axis)
                at = choices.index(values[axis.name])
                steps = [s for s in (-2, -1, 1, 2) if 0 <= at + s < len(choices)]
                result[axis.name] = (
                    choices[rng.integers(len(choices))] if axis.name in NAMES else choices[at + steps[rng.integers(len(steps))]]
                )
            else:
                probability = np.clip(axis.value_to_prob(values[axis.name]) + spread * rng.normal(), 0, 1 - 1e-9)
                result[axis.name] = value_at(axis, probability)
        return result

    def vector(self, values: dict[str, typing.Any]) -> np.ndarray:
        """A configuration as a point of a unit cube: one coordinate an axis, one a choice where there is no order."""
        point = []
        for axis in self.axes:
            value = values[axis.name]
            if axis.name in NAMES:
                point += [float(value == choice) for choice in values_of(axis)]
            elif is_countable(axis):
                choices = values_of(axis)
                point.append(choices.index(value) / (len(choices) - 1))
            else:
                point.append(axis.value_to_prob(value))
        return np.array(point)

    def restore(self, values: dict[str, typing.Any]) -> dict[str, typing.Any]:
        """The values of a configuration whose order and last digits were lost on the way from another machine."""
        restored = {}
        for axis in self.hyperparameters.space:
            value = values.get(axis.name)
            if isinstance(value, float):  # KerasTuner sends 32 bits
                value = min(values_of(axis), key=lambda known: abs(known - value)) if is_countable(axis) else rounded(value)
            if axis.name in values:
                restored[axis.name] = value
        return {**restored, **{name: value for name, value in values.items() if name not in restored}}

    def to_dict(self) -> dict:
        """What decides which configurations there are, as plain values: to tell one search from another."""
        base = {name: value for name, value in self.base.to_dict().items() if name != "data_dir"}
        return {"space": dataclasses.asdict(self.config), "limits": dataclasses.asdict(self.limits), "base": base}


def add_axis(hyperparameters, name, spec, recipe):
    """Reads one axis and registers it with KerasTuner."""
    if spec is None:
        return
    if name == "patch_size" and spec == "auto":
        spec = patch_sizes(recipe.model.image_size)
    if isinstance(spec, str) and ".." in spec:
        low, high = (read_value(name, part) for part in spec.split("..", 1))
        if low > high:
            raise ValueError(f"space.{name}: received {spec!r}; the range is empty")
        if low == high:
            hyperparameters.Fixed(name, low)
        elif name in INTEGERS:
            hyperparameters.Int(name, low, high)
        elif name in LOGARITHMIC:
            if low <= 0:
                raise ValueError(f"space.{name}: received {spec!r}; a logarithmic range begins above 0")
            hyperparameters.Float(name, low, high, sampling="log")
        else:
            hyperparameters.Float(name, low, high)
        return
    parts = spec.split(",") if isinstance(spec, str) else spec if isinstance(spec, list) else [spec]
    values = list(dict.fromkeys(read_value(name, part) for part in parts))
    if not values:
        raise ValueError(f"space.{name}: received {spec!r}; allowed: a range such as 2..8, or values such as 2,4,8")
    if len(values) == 1:
        hyperparameters.Fixed(name, values[0])
    else:
        hyperparameters.Choice(name, values if name in NAMES else sorted(values))


def read_value(name, text):
    """One value of an axis, of the axis's type and in the range that its field has in a recipe."""
    text = text.strip() if isinstance(text, str) else text
    if name in NAMES:
        if text not in NAMES[name]:
            raise ValueError(f"space.{name}: received {text!r}; allowed: {', '.join(NAMES[name])}")
        return text
    try:
        value = float(text)
    except (TypeError, ValueError):
        raise ValueError(
            f"space.{name}: received {text!r}; allowed: a number, a range such as 2..8 or values such as 2,4,8"
        ) from None
    if name in INTEGERS:
        if value != int(value) or value < 1:
            raise ValueError(f"space.{name}: received {text}; allowed: integers of at least 1")
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
    """The square patches that cut an image into 4 to 256."""
    height, width = image_size
    sizes = [size for size in range(1, math.gcd(height, width) + 1) if height % size == width % size == 0]
    fitting = [size for size in sizes if FEWEST_PATCHES <= height * width // size**2 <= MOST_PATCHES]
    return fitting or sizes[-1:]


def is_countable(axis):
    return type(axis).__name__ != "Float"


def values_of(axis):
    """The values of an axis that is no range of real numbers, in order."""
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


def activation_floats(config: ViTConfig) -> int:
    """Numbers that the backward pass of one image keeps: what every layer's gradient needs.

    Per token and block: the inputs of the two norms, of the four products and of the activation, queries, keys, values and
    the attention's output; per pair of tokens and head the scores before and after softmax.
    """
    tokens, width = config.num_tokens, config.width
    gate = 2 if config.mlp == "swiglu" else 1
    block = tokens * (9 * width + (1 + gate) * config.mlp_dim) + 2 * config.num_heads * tokens * tokens
    pixels, stem = math.prod(config.image_size), math.prod(config.image_size) * config.channels
    if config.stem == "conv":
        for filters in config.stem_widths:
            pixels //= 4
            stem += 3 * pixels * filters
    return stem + 2 * tokens * width + config.depth * block


def training_memory(recipe: Recipe, process: float = 0.0) -> float:
    """Predicted peak memory of a training in MB (2^20 bytes): weights, gradients, optimizer, average, activations.

    Activations count as float32 in mixed precision too: on a CPU, where this was compared with measurements, both are kept.

    Args:
        recipe: The recipe.
        process: What a process has without a model, in MB: `process_memory` on a CPU, 0 for the memory of an accelerator.
    """
    copies = 2 + {"adamw": 2, "adam": 2, "lion": 1, "sgd": 1, "muon": 2}[recipe.train.optimizer] + (recipe.train.ema > 0)
    copies += 1  # the float32 model that is validated and saved
    activations = activation_floats(recipe.model) * recipe.train.batch_size
    return process + 4 * (copies * recipe.model.num_params + activations) / 2**20


def process_memory(backend: str, images: int, recipe: Recipe) -> float:
    """Memory in MB of a process that trains nearly nothing: the framework with its compiled code, and the images."""
    return PROCESS_MB[backend] + images * math.prod(recipe.model.image_shape) / 2**20
