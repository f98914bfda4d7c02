"""Parts of a training: stages before the rest, extensions after it, and what is saved within an epoch."""

import dataclasses
import math
import typing

from keras_vit.checks import UNITS, check_int, check_number, check_types, make_plain, read_quantity


@dataclasses.dataclass(frozen=True)
class Stage:
    """An early part of the training: smaller images, larger or fewer patches, less augmentation, more frozen blocks.

    Attributes:
        until: Share of the epochs after which the next stage begins, above 0 and below 1.
        image_scale: Factor on the model's image size, above 0 and at most 1.
        patch_scale: Factor on the model's patch size, 1 or more; 1 with a convolutional stem.
        patch_dropout: Replaces the model's `patch_dropout`, 0 to below 1; null = the model's.
        augment: Augmentation settings that differ in this stage, such as {randaugment_layers: 0}.
        freeze: Replaces `finetune.freeze`, for gradual unfreezing (arXiv 1801.06146): from a large number to small ones; null =
            `finetune.freeze`.
    """

    until: float
    image_scale: float = 1.0
    patch_scale: float = 1.0
    patch_dropout: float | None = None
    augment: dict[str, typing.Any] = dataclasses.field(default_factory=dict)
    freeze: int | None = None

    def __post_init__(self):
        make_plain(self)
        check_types(self, "augment")
        check_number("until", self.until, above=0, below=1)
        check_number("image_scale", self.image_scale, above=0, at_most=1)
        check_number("patch_scale", self.patch_scale, at_least=1)
        if self.patch_dropout is not None:
            check_number("patch_dropout", self.patch_dropout, at_least=0, below=1)
        if self.freeze is not None:
            check_int("freeze", self.freeze, at_least=0)


@dataclasses.dataclass(frozen=True)
class Extension:
    """Epochs that were added to a training, as `keras-vit train --resume RUN --extend 20` does: the last stage goes on.

    The learning rate has a schedule of its own, without warmup, as in a warm restart (arXiv 1608.03983). Moments and averages go
    on. `augment.mix_until` is a share of these epochs.

    Attributes:
        after: Epochs before it. Those before may be fewer than planned, if `patience` ended them.
        epochs: Epochs that are added.
        learning_rate: Its peak learning rate, at its first step.
    """

    after: int
    epochs: int
    learning_rate: float

    def __post_init__(self):
        make_plain(self)
        check_int("after", self.after, at_least=1)
        check_int("epochs", self.epochs, at_least=1)
        check_number("learning_rate", self.learning_rate, above=0)


def save_interval(text: str) -> tuple[float, float]:
    """Steps and seconds between two saved states within an epoch, from `500 steps`, `90s`, `10m`, `2h` or `1 epochs`; inf = none.

    Raises:
        ValueError: For another text.
    """
    allowed = "1 epochs, or steps or a time within an epoch such as 500 steps, 90s, 10m, 2h"
    amount, unit = read_quantity("save_every", text, "steps?|epochs?|[smh]", allowed)
    if unit in UNITS:
        return math.inf, amount * UNITS[unit]
    if amount % 1 or (unit.startswith("epoch") and amount != 1):
        raise ValueError(f"save_every: received {text!r}; allowed: {allowed}")
    return (amount if unit.startswith("step") else math.inf), math.inf
