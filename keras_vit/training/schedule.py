"""The learning rate of each step: warmup and cosine, once or again for an extension, until a callback sets a rate of its own."""

import math

import keras
import numpy as np
from keras import ops

from keras_vit.checks import check_number
from keras_vit.recipes.schema import TrainConfig

UNSET = -1.0  # in place of a rate that a callback has set


@keras.saving.register_keras_serializable(package="keras_vit")
class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear from zero to `peak` within `warmup` steps, then a cosine to zero at step `total`, or constant.

    Args:
        peak: The largest learning rate.
        warmup: Steps of the warmup; 0 = none.
        total: Steps of the schedule, the warmup included.
        cosine: Whether the rate falls after the warmup.

    Attributes:
        state: (5,) The step at which the schedule starts, warmup, total, peak, and a rate that replaces the schedule or `UNSET`.
            A tuple, or a variable of the optimizer: it then changes without recompilation, and is saved with the optimizer.
    """

    def __init__(self, peak, warmup, total, cosine=True):
        self.peak = peak
        self.warmup = warmup
        self.total = total
        self.cosine = cosine
        self.state = (0.0, warmup, total, peak, UNSET)

    def __call__(self, step):
        start, warmup, total, peak, given = (ops.cast(self.state[index], "float32") for index in range(5))
        step = ops.cast(step, "float32") - start
        rate = ops.minimum((step + 1) / ops.maximum(warmup, 1.0), 1.0)
        if self.cosine:
            done = (step - warmup) / ops.maximum(total - warmup, 1.0)
            rate = rate * 0.5 * (1 + ops.cos(math.pi * ops.clip(done, 0.0, 1.0)))
        return ops.where(given >= 0, given, peak * rate)

    def get_config(self):
        return {"peak": self.peak, "warmup": self.warmup, "total": self.total, "cosine": self.cosine}

    def begin(self, config: TrainConfig, total_steps: int, start: int = 0) -> None:
        """Starts the schedule of a `TrainConfig`, of `total_steps` steps, at step `start`; a rate that was set no longer counts."""
        self.state.assign((start, *lengths(config, total_steps), config.learning_rate, UNSET))

    def stretch(self, config: TrainConfig, total_steps: int, start: int) -> None:
        """Goes on as a schedule of `total_steps` steps from step `start`, below 0 or above; a rate that was set still counts."""
        given = ops.convert_to_numpy(self.state)[-1]
        self.state.assign((start, *lengths(config, total_steps), config.learning_rate, given))

    def continue_from(self, other: "WarmupSchedule", steps: int) -> None:
        """Goes on where another schedule is after `steps` steps of its optimizer, although this optimizer counts from 0."""
        start, *rest = ops.convert_to_numpy(other.state)
        self.state.assign((start - steps, *rest))

    def set_rate(self, rate: float) -> None:
        """Replaces the schedule by a constant rate."""
        if callable(rate):
            raise ValueError(f"learning_rate: received a {type(rate).__name__}; allowed: a number")
        rate = float(ops.convert_to_numpy(rate))
        check_number("learning_rate", rate, at_least=0)
        self.state.assign(np.array([*ops.convert_to_numpy(self.state)[:-1], rate]))


def lengths(config: TrainConfig, total_steps: int) -> tuple[int, int]:
    """Steps of the warmup, and of the whole schedule."""
    return round(total_steps * min(config.warmup_epochs / config.epochs, 0.5)), total_steps
