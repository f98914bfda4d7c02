"""How many steps each epoch of a training has: the same number in all, or as many as its time leaves."""

import dataclasses
import math
import typing

from keras_vit.recipes.schema import Recipe, TrainConfig

ROUNDED = 6  # digits of a step; 0.55 of 100 is more than 55


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of each epoch.

    Attributes:
        each: Of the first epochs; all later ones have as many as the last of these.
    """

    each: tuple[int, ...]

    @classmethod
    def of(cls, config: TrainConfig, images: int) -> typing.Self:
        """Those of a `TrainConfig`; where it states none, an epoch is one pass over the images."""
        given = config.steps_per_epoch or images // config.batch_size
        return cls(tuple(given) if isinstance(given, list) else (given,))

    def __getitem__(self, epoch: int) -> int:
        """The steps of an epoch from 0 on."""
        return self.each[min(epoch, len(self.each) - 1)]

    def before(self, epoch: int) -> int:
        """The steps of all epochs before one."""
        known = self.each[:epoch]
        return sum(known) + (epoch - len(known)) * self.each[-1]

    def changes(self, epoch: int) -> bool:
        """Whether an epoch has another number of steps than the one before."""
        return epoch > 0 and self[epoch] != self[epoch - 1]

    def same_until(self, epoch: int, last: int) -> int:
        """The end, `last` at most, of the epochs from one on that have as many steps as it."""
        return next((later for later in range(epoch + 1, last) if self.changes(later)), last)

    def share(self, share: float, epochs: int, now: int) -> float:
        """The steps of a share of `epochs`, if all epochs from `now` on have as many as that one."""
        return self.before(now) + (share * epochs - now) * self[now]

    def replaced(self, epoch: int, steps: int, last: int) -> typing.Self:
        """This with other steps in the epochs from one on to `last`."""
        return type(self)((*(self[each] for each in range(epoch)), *[steps] * (last - epoch)))


@dataclasses.dataclass(frozen=True)
class Pace:
    """Fits the epochs that are left into what is left of `train.time`: a machine may get slower or faster while it trains.

    Attributes:
        ends: When the last epoch must have ended, on the clock of `time.perf_counter`.
        costs: Seconds that were measured for a step of each epoch; those of the stages differ.
        beside: Seconds that were measured for the rest of each epoch, such as its validation.
    """

    ends: float
    costs: tuple[float, ...]
    beside: tuple[float, ...]

    @property
    def epochs(self) -> int:
        """The epochs in all."""
        return len(self.costs)

    @property
    def looks(self) -> list[int]:
        """The epochs before which the steps are counted anew: after each quarter, and the last one."""
        looks = {*(round(self.epochs * part / 4) for part in (1, 2, 3)), self.epochs - 1}
        return sorted(look for look in looks if 0 < look < self.epochs)

    def next_look(self, epoch: int) -> int:
        """The first of `looks` after an epoch, or the end."""
        return next((look for look in self.looks if look > epoch), self.epochs)

    def steps(self, rows: list[dict], steps: Steps, now: float) -> int:
        """The steps that each of the epochs that are left has time for, at least 1.

        They take as much longer than measured as the epochs since the last look have taken. The first epoch may compile, and does
        not count where there are others.

        Args:
            rows: Of the epochs so far, with `seconds` from the first one's beginning.
            steps: The steps so far.
            now: On the clock of `time.perf_counter`.
        """
        done = len(rows)
        since = max(look for look in (0, min(1, done - 1), *self.looks) if look < done)
        measured = sum(self.costs[epoch] * steps[epoch] + self.beside[epoch] for epoch in range(since, done))
        slower = (rows[-1]["seconds"] - (rows[since - 1]["seconds"] if since else 0.0)) / measured
        left = (self.ends - now) / slower - sum(self.beside[done:])
        return max(1, math.floor(left / sum(self.costs[done:])))


def mixing_steps(recipe: Recipe, stage: Recipe, steps: Steps, first: int, now: int) -> float:
    """How many steps of a training, from its first one on, a stage mixes images in, as planned at an epoch.

    Args:
        recipe: The `Recipe`.
        stage: That of the stage.
        steps: The `Steps`.
        first: The stage's first epoch.
        now: The epoch.
    """
    return round(steps.share(stage.augment.mix_until, recipe.train.schedule_end(first), now), ROUNDED)
