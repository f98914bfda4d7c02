"""The optimizer of a recipe: Keras's own, with the schedule, the decay and the averaging that a Vision Transformer wants."""

import functools
import re

import keras
from keras import ops

from keras_vit.model.layers import NO_DECAY
from keras_vit.private.keras import OptimizerHooks, available
from keras_vit.recipes.schema import TrainConfig
from keras_vit.training.fused import backend_class, fused_adam, fused_muon
from keras_vit.training.schedule import WarmupSchedule, lengths

# Fields of a `TrainConfig` that make an optimizer.
FIELDS = ("optimizer", "learning_rate", "schedule", "epochs", "warmup_epochs", "weight_decay", "beta_1", "beta_2")
FIELDS += ("clip_norm", "ema", "average_last", "accumulate")

# Pattern of the names of variables without decay: "encoder/position:0" under TensorFlow is "position" elsewhere.
NOT_DECAYED = rf"(^|/)({'|'.join(NO_DECAY)})(:\d+)?$"


def make_optimizer(config: TrainConfig, total_steps: int, factors: dict[str, float] | None = None) -> keras.optimizers.Optimizer:
    """The Keras optimizer of a `TrainConfig`.

    The variables of `keras_vit.model.layers.NO_DECAY` have no weight decay. The averaged weights are Keras's own EMA, whose decay
    changes with the steps (`GrowingAverage`, `UniformAverage`). Where gradients are accumulated, Keras moves schedule and EMA at
    every step, not at every update: the schedule is therefore counted in steps, and a growing EMA's decay is spread over the steps
    of an update.

    Args:
        config: The `TrainConfig`.
        total_steps: Steps of the whole training, before accumulation.
        factors: Factor on the learning rate of each layer's variables, and so on their decay, {layer name: factor}; None = 1.
    """
    schedule = WarmupSchedule(config.learning_rate, *lengths(config, total_steps), config.schedule == "cosine")
    settings = {
        "learning_rate": schedule,
        "weight_decay": None if config.optimizer == "adam" else config.weight_decay or None,
        "global_clipnorm": config.clip_norm or None,
        "use_ema": config.averages,
        "ema_momentum": config.ema ** (1 / config.accumulate),
        "gradient_accumulation_steps": config.accumulate if config.accumulate > 1 else None,
    }
    betas = {"beta_1": config.beta_1, "beta_2": config.beta_2}
    if config.optimizer == "sgd":
        kind = keras.optimizers.SGD
        settings |= {"momentum": config.beta_1, "nesterov": config.beta_1 > 0}
    elif config.optimizer == "lion":
        kind = keras.optimizers.Lion
        settings |= betas
    elif config.optimizer == "muon":
        kind = fused_muon()
        settings |= {f"adam_{name}": value for name, value in betas.items()}
        settings |= {"adam_weight_decay": config.weight_decay or None, "exclude_layers": ["probe$"]}  # a single row, not a matrix
    else:
        kind = fused_adam()
        settings |= betas
    if config.averages:
        kind = with_average(kind, GrowingAverage if config.ema else UniformAverage)
    kind = backend_class(kind) if factors is None else with_factors(kind)
    optimizer = recipe_optimizer(kind)(**settings)
    if factors is not None:
        optimizer.factor_of = lambda variable: factors[variable.path.partition("/")[0]]
    optimizer.exclude_from_weight_decay(var_names=[NOT_DECAYED])
    optimizer.arguments = {**{name: getattr(config, name) for name in FIELDS}, "total_steps": total_steps, "factors": factors}
    optimizer.schedule = schedule
    schedule.state = optimizer.add_variable((5,), name="schedule")
    schedule.begin(config, total_steps)
    return optimizer


@keras.saving.register_keras_serializable(package="keras_vit", name="Optimizer")
class RecipeOptimizer:
    """Mixin before a Keras optimizer: it is saved as the arguments of `make_optimizer`, and its learning rate can be set.

    Keras refuses to set the rate of an optimizer with a schedule. Here a rate that is set, as Keras's callbacks do, replaces the
    schedule, without recompilation. It is saved with the optimizer's variables.
    """

    def get_config(self):
        return dict(self.arguments)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return make_optimizer(TrainConfig(**{name: config[name] for name in FIELDS}), config["total_steps"], config["factors"])

    def add_variable_from_reference(self, reference_variable, name=None, initializer="zeros"):
        if keras.backend.backend() == "torch" and initializer == "zeros":
            # Divided among the processes if the reference is.
            initializer = lambda shape, dtype: ops.zeros_like(reference_variable, dtype)  # noqa: E731
        return super().add_variable_from_reference(reference_variable, name, initializer)

    @property
    def learning_rate(self):
        return super().learning_rate

    @learning_rate.setter
    def learning_rate(self, rate):
        self.schedule.set_rate(rate)


@functools.cache
def recipe_optimizer(kind: type) -> type:
    """The class of a Keras optimizer, with a `RecipeOptimizer`; all are saved under one name, as their arguments tell the kind."""
    made = type(kind.__name__, (RecipeOptimizer, kind), {})
    return keras.saving.register_keras_serializable(package="keras_vit", name="Optimizer")(made)


def own_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer itself where Keras has wrapped it for loss scaling."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def iterations(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """The variable that counts an optimizer's steps, those too that only accumulate; `optimizer.iterations` counts updates."""
    return next(variable for variable in own_optimizer(optimizer).variables if variable.name == "iteration")


class Average:
    """Mixin before a Keras optimizer with `use_ema`: the average's decay changes from step to step."""

    def apply(self, grads, trainable_variables=None):
        longest = self.ema_momentum
        self.ema_momentum = self.average_momentum()
        try:
            super().apply(grads, trainable_variables)
        finally:
            self.ema_momentum = longest


class GrowingAverage(Average):
    """The decay grows with the updates, up to `ema_momentum`.

    After u updates it is at most (1 + u) / (10 + u), as in TensorFlow's `ExponentialMovingAverage` with `num_updates`. A constant
    decay remembers the initial weights for 1 / (1 - decay) updates: in a shorter run they would be most of the average.
    """

    def average_momentum(self):
        updates = ops.cast(self.iterations, "float32")
        return ops.minimum(self.ema_momentum, average_decay(updates) ** (1 / (self.gradient_accumulation_steps or 1)))


class UniformAverage(Average):
    """The mean of the weights after the last steps of the schedule, a share `average_last` of them; before, the weights themselves.

    After n steps of the mean the decay is n / (n + 1). Where epochs get other steps (`WarmupSchedule.stretch`), n is counted as if
    those before had had as many: each epoch keeps its weight.
    """

    def average_momentum(self):
        start, _, total, *_ = (ops.cast(self.schedule.state[index], "float32") for index in range(5))
        first = ops.minimum(ops.round((1 - self.arguments["average_last"]) * total), total - 1)
        averaged = ops.maximum(ops.cast(iterations(self), "float32") - start - first, 0.0)
        return averaged / (averaged + 1)


def average_decay(updates):
    """The largest decay of averaged weights after a number of updates."""
    return (1 + updates) / (10 + updates)


@functools.cache
def with_average(kind: type, average: type) -> type:
    """The class of a Keras optimizer, with an `Average`."""
    return type(f"{kind.__name__}With{average.__name__}", (average, backend_class(kind)), {})


class Factors(OptimizerHooks):
    """Mixin before a Keras optimizer: each variable is updated and decayed at its own share of the learning rate.

    Keras's own update runs once for each group of variables with one factor. Clipping, accumulation, averaging and loss scaling
    surround the update and stay unchanged.

    Attributes:
        factor_of: The factor of a variable.
    """

    factor = 1.0  # of the group that is being decayed

    def groups(self, variables):
        """Indices of `variables` by factor."""
        groups = {}
        for index, variable in enumerate(variables):
            groups.setdefault(self.factor_of(variable), []).append(index)
        return groups

    def update(self, gradients, variables, learning_rate):
        for factor, indices in self.groups(variables).items():
            members = [variables[index] for index in indices]
            super().update([gradients[index] for index in indices], members, learning_rate * factor)

    def decay(self, variables):
        decayed = [variable for variable in variables if self.is_decayed(variable)]
        for factor, indices in self.groups(decayed).items():
            self.factor = factor
            super().decay([decayed[index] for index in indices])
        self.factor = 1.0

    def rate(self):
        return super().rate() * self.factor


class FactorsByStep:
    """As `Factors`, by Keras's public methods alone: slower, as each variable is decayed and updated by itself."""

    def __init__(self, **settings):
        super().__init__(**{name: None if name.endswith("weight_decay") else value for name, value in settings.items()})
        self.decay = settings["weight_decay"] or 0.0

    def build(self, variables):
        self.factors = {}
        for variable in variables:  # TensorFlow's updates get the variable inside Keras's
            self.factors[id(variable)] = self.factors[id(variable.value)] = self.factor_of(variable)
        super().build(variables)

    def update_step(self, gradient, variable, learning_rate):
        rate = learning_rate * self.factors[id(variable)]
        if self.decay and not re.search(NOT_DECAYED, variable.name):
            self.assign(variable, variable * (1 - self.decay * rate))
        super().update_step(gradient, variable, rate)


@functools.cache
def with_factors(kind: type) -> type:
    """The class of a Keras optimizer that asks its `factor_of` for each variable's share of the learning rate."""
    bases = (Factors, backend_class(kind)) if available("optimizer") else (FactorsByStep, kind)
    return type(f"{kind.__name__}WithFactors", bases, {})
