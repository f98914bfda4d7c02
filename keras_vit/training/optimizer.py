"""The optimizer of a recipe: Keras's own, with the schedule, the decay and the averaging that a Vision Transformer wants."""

import functools
import math
import re

import keras
from keras import ops

from keras_vit.model.layers import NO_DECAY
from keras_vit.private.keras import OptimizerHooks, available
from keras_vit.recipes.schema import TrainConfig
from keras_vit.training.fused import backend_class, fused_adam, fused_muon

# Pattern of the names of variables without decay: "encoder/position:0" under TensorFlow is "position" elsewhere.
NOT_DECAYED = rf"(^|/)({'|'.join(NO_DECAY)})(:\d+)?$"


def make_optimizer(config: TrainConfig, total_steps: int, factors: dict[str, float] | None = None) -> keras.optimizers.Optimizer:
    """The Keras optimizer of a `TrainConfig`.

    The variables of `keras_vit.model.layers.NO_DECAY` have no weight decay. The averaged weights are Keras's own EMA, whose decay
    grows with the updates (`GrowingAverage`). Where gradients are accumulated, Keras moves schedule and EMA at every step, not at
    every update: the schedule is therefore counted in steps, and the EMA's decay is spread over the steps of an update.

    Args:
        config: The `TrainConfig`.
        total_steps: Steps of the whole training, before accumulation.
        factors: Factor on the learning rate of each variable, and so on its decay, {path: factor}; None = 1 for all.
    """
    schedule = WarmupSchedule(config.learning_rate, *lengths(config, total_steps), config.schedule == "cosine")
    settings = {
        "learning_rate": schedule,
        "weight_decay": None if config.optimizer == "adam" else config.weight_decay or None,
        "global_clipnorm": config.clip_norm or None,
        "use_ema": config.ema > 0,
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
    if config.ema:
        kind = with_growing_average(kind)
    if factors is None:
        optimizer = kind(**settings)
    else:
        optimizer = with_factors(kind)(**settings)
        optimizer.factor_of = lambda variable: factors[variable.path]
    optimizer.exclude_from_weight_decay(var_names=[NOT_DECAYED])
    optimizer.schedule = schedule
    schedule.lengths = optimizer.add_variable((2,), name="schedule_lengths")
    set_length(optimizer, config, total_steps)
    return optimizer


def lengths(config, total_steps):
    """Steps of the warmup, and of the whole training."""
    return round(total_steps * min(config.warmup_epochs / config.epochs, 0.5)), total_steps


def own_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer itself where Keras has wrapped it for loss scaling."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def set_length(optimizer: keras.optimizers.Optimizer, config: TrainConfig, total_steps: int) -> None:
    """Gives an optimizer of `make_optimizer` another length, without recompilation."""
    own_optimizer(optimizer).schedule.lengths.assign(lengths(config, total_steps))


class GrowingAverage:
    """Mixin before a Keras optimizer with `use_ema`: the average's decay grows with the updates, up to `ema_momentum`.

    After u updates it is at most (1 + u) / (10 + u), as in TensorFlow's `ExponentialMovingAverage` with `num_updates`. A constant
    decay remembers the initial weights for 1 / (1 - decay) updates: in a shorter run they would be most of the average.
    """

    def apply(self, grads, trainable_variables=None):
        longest, every = self.ema_momentum, self.gradient_accumulation_steps or 1
        updates = ops.cast(self.iterations, "float32")
        self.ema_momentum = ops.minimum(longest, average_decay(updates) ** (1 / every))
        try:
            super().apply(grads, trainable_variables)
        finally:
            self.ema_momentum = longest


def average_decay(updates):
    """The largest decay of averaged weights after a number of updates."""
    return (1 + updates) / (10 + updates)


@functools.cache
def with_growing_average(kind: type) -> type:
    """The class of a Keras optimizer, with a `GrowingAverage`."""
    return type(f"{kind.__name__}WithGrowingAverage", (GrowingAverage, backend_class(kind)), {})


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


@keras.saving.register_keras_serializable(package="keras_vit")
class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear from zero to `peak` within `warmup` steps, then a cosine to zero at step `total`, or constant.

    Args:
        peak: The largest learning rate.
        warmup: Steps of the warmup; 0 = none.
        total: Steps of the training, the warmup included.
        cosine: Whether the rate falls after the warmup.
    """

    def __init__(self, peak, warmup, total, cosine=True):
        self.peak = peak
        self.warmup = warmup
        self.total = total
        self.cosine = cosine
        self.lengths = (warmup, total)  # or a variable of the optimizer, which can change without recompilation

    def __call__(self, step):
        step, (warmup, total) = ops.cast(step, "float32"), (ops.cast(self.lengths[index], "float32") for index in range(2))
        rate = ops.minimum((step + 1) / ops.maximum(warmup, 1.0), 1.0)
        if self.cosine:
            done = (step - warmup) / ops.maximum(total - warmup, 1.0)
            rate = rate * 0.5 * (1 + ops.cos(math.pi * ops.clip(done, 0.0, 1.0)))
        return self.peak * rate

    def get_config(self):
        return {"peak": self.peak, "warmup": self.warmup, "total": self.total, "cosine": self.cosine}
