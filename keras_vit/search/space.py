"""The configurations of a search: those that can be built and keep within limits, counted before they are built."""

import dataclasses
import functools
import itertools
import math
import typing

import numpy as np
from keras_tuner import HyperParameters

from keras_vit.checks import check_number, make_plain
from keras_vit.recipes.schema import Recipe
from keras_vit.search.axes import NAMES, SpaceConfig, add_axis, is_countable, rounded, smallest_value, value_at, values_of
from keras_vit.search.memory import training_memory

# The axes that decide the architecture. Their combinations are counted; limits exclude some.
SHAPE = ("patch_size", "depth", "num_heads", "head_dim", "mlp_ratio", "stem", "stem_depth", "pool")
# The axes that are fields of the same name.
MODEL = ("depth", "stem", "stem_depth", "pool", "drop_path")
TRAIN = ("learning_rate", "weight_decay", "batch_size")
RANDAUGMENT_MAGNITUDE = 9.0  # at augmentation strength 1, as CCT has it (arXiv 2104.05704)
SAMPLES = 50_000  # shapes drawn to estimate how much of a large space a limit leaves


@dataclasses.dataclass(frozen=True)
class Limits:
    """The most that a configuration may cost; null = anything.

    Attributes:
        max_params: Largest number of parameters.
        max_flops: Most floating-point operations of one image's forward pass; a multiply-add counts as two.
        max_memory: Largest memory of its training in MB, as `training_memory` predicts it.
    """

    max_params: float | None = None
    max_flops: float | None = None
    max_memory: float | None = None

    def __post_init__(self):
        make_plain(self)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                check_number(field.name, value, above=0)


class Space:
    """The configurations around a recipe that can be built and keep within limits.

    Args:
        config: The `SpaceConfig`.
        recipe: The `Recipe`, which decides everything that is not searched.
        limits: The `Limits`.
        process: Memory in MB of a process without a model, which counts for `max_memory`; 0 on an accelerator.

    Raises:
        ValueError: If an axis cannot be read, or if no configuration can be built within the limits.
    """

    def __init__(self, config: SpaceConfig, recipe: Recipe, limits: Limits | None = None, process: float = 0.0):
        if recipe.pretrain:
            raise ValueError(
                f"pretrain.method: received {recipe.pretrain.method!r}; allowed: 'none' in a search, which judges classes"
            )
        self.config, self.base, self.limits, self.process = config, recipe, limits or Limits(), process
        # Most of the shapes that are counted share these.
        self.section = functools.lru_cache(16)(lambda name, changes: dataclasses.replace(getattr(recipe, name), **dict(changes)))
        self.hyperparameters = HyperParameters()
        for field in dataclasses.fields(config):
            add_axis(self.hyperparameters, field.name, getattr(config, field.name), recipe)
        self.total, self.legal, self.within = self.count()
        if not self.legal:
            raise ValueError(f"space: no configuration can be built; {self.why_not()}")
        if not self.within:
            limits = self.describe_limits()
            raise ValueError(f"limits: received {limits}; none of {self.legal:,} shapes keeps them; allowed: {self.smallest()}")

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
        for name in ("patch_size", *MODEL):
            if name in values:
                model[name] = values[name]
        for name in TRAIN:
            if name in values:
                train[name] = values[name]
        if model.get("stem") == "patch":
            model.setdefault("stem_depth", 0)
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
            train=self.section("train", tuple(train.items())),
            augment=self.section("augment", tuple(augment.items())),
        )

    def nearest(self, recipe: Recipe) -> dict[str, typing.Any]:
        """The values nearest to a recipe's own, axis by axis; not necessarily legal."""
        model, train, augment = recipe.model, recipe.train, recipe.augment
        own = {
            "patch_size": model.patch_size[0],
            "mlp_ratio": model.mlp_dim / model.width,
            "augment": augment.randaugment_magnitude / RANDAUGMENT_MAGNITUDE if augment.randaugment_layers else 0.0,
            **{name: getattr(model, name) for name in ("num_heads", "head_dim", *MODEL)},
            **{name: getattr(train, name) for name in TRAIN},
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
        """Every combination of the axes that decide the architecture, at most `SAMPLES`; the other axes at their smallest."""
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
        """Numbers of shapes: all, those that can be built, and those within the limits too; at most `SAMPLES` are counted."""
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
        """The lowest costs in this space, for an error message."""
        costs = []
        for values in self.shapes():
            try:
                recipe = self.recipe(values)
            except ValueError:
                continue
            costs.append((recipe.model.num_params, recipe.model.flops, training_memory(recipe, self.process)))
        params, flops, memory = (min(column) for column in zip(*costs, strict=True))
        return f"at least {params:,} parameters, {flops:,} FLOPs, {memory:,.0f} MB"

    def describe_limits(self):
        given = {field.name: getattr(self.limits, field.name) for field in dataclasses.fields(self.limits)}
        return ", ".join(f"{name} {value:,.0f}" for name, value in given.items() if value is not None)

    def describe(self) -> str:
        """The numbers of shapes, in one line."""
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
        """A random legal configuration.

        Raises:
            ValueError: If none of `tries` random ones is legal.
        """
        for _ in range(tries):
            values = self.draw(rng)
            if self.is_legal(values):
                return values
        raise ValueError(f"space: no legal configuration among {tries:,} random ones; {self.describe()}")

    def neighbour(self, values: dict[str, typing.Any], rng: np.random.Generator, spread: float = 0.15) -> dict[str, typing.Any]:
        """The values, at least one of them moved a little; not necessarily legal."""
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
        """A configuration as a point of the unit cube: a coordinate for each axis, or for each choice without an order."""
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
        """The values of a configuration from another machine; the transfer changes their order and last digits."""
        restored = {}
        for axis in self.hyperparameters.space:
            value = values.get(axis.name)
            if isinstance(value, float):  # KerasTuner sends 32 bits
                value = min(values_of(axis), key=lambda known: abs(known - value)) if is_countable(axis) else rounded(value)
            if axis.name in values:
                restored[axis.name] = value
        return {**restored, **{name: value for name, value in values.items() if name not in restored}}

    def to_dict(self) -> dict:
        """Everything that decides the configurations, as plain values: searches with equal values share one space."""
        base = {name: value for name, value in self.base.to_dict().items() if name != "data_dir"}
        return {"space": dataclasses.asdict(self.config), "limits": dataclasses.asdict(self.limits), "base": base}
