"""A teacher whose answers are targets beside the labels: the section of a recipe."""

import dataclasses
import math
import typing

from keras_vit.checks import as_channels, check_choice, check_int, check_number, check_types, make_plain, refuse

TARGETS = ("soft", "hard")
MOST = 10_000  # views, and passes of a teacher that is trained
SMALL_CNN, TIMM, LOGITS = "small-cnn", "timm:", "logits:"  # a teacher, and two prefixes of teachers


@dataclasses.dataclass(frozen=True)
class DistillConfig:
    """A teacher, whose answers are targets beside the labels: knowledge distillation (arXiv 1503.02531).

    With `model.distillation` the teacher trains the head of DeiT's distillation token (arXiv 2012.12877) and the labels the other
    one; without it both train the only head.

    Attributes:
        teacher: `small-cnn` (a small convolutional net, trained first), a run folder, a `.keras` or `.onnx` file, a checkpoint of
            timm, transformers or JAX as `finetune.checkpoint` may be, `timm:NAME` (any model of timm, where timm is installed) or
            `logits:FILE` (logits of the training images, `.safetensors`, `.npz` or `.npy`); empty = none.
        targets: `soft` (the teacher's probabilities) or `hard` (its likeliest class).
        temperature: Divides the logits of teacher and student before the softmax, above 0; 1 with `hard`.
        weight: Share of the teacher in the loss, 0 to 1; the labels have the rest.
        views: 0 = the teacher sees the pixels of every step; V = it sees those of the first V epochs once, its answers are stored,
            and later epochs repeat the batches of these in other orders.
        folder: Where answers are stored, for any run with the same teacher, data and augmentation; empty =
            `teacher-views` beside the run folder.
        mean: Subtracted from images scaled to 0..1 before the teacher sees them; null = as the teacher's file says, otherwise as
            for the student.
        std: Divides the result, likewise.
        epochs: Passes of `small-cnn` over the training images; may be a fraction. With `train.time` the run finds them.
        share: Share of `train.time` that `small-cnn` takes, above 0 and below 1.
    """

    teacher: str = ""
    targets: typing.Literal[TARGETS] = "soft"
    temperature: float = 1.0
    weight: float = 0.5
    views: int = 0
    folder: str = ""
    mean: float | list[float] | None = None
    std: float | list[float] | None = None
    epochs: float = 8.0
    share: float = 0.3

    def __post_init__(self):
        make_plain(self)
        check_types(self, "teacher", "folder", "mean", "std")
        for name, above in (("mean", -math.inf), ("std", 0)):
            if (value := getattr(self, name)) is not None:
                as_channels(name, value, max(len(value), 1) if isinstance(value, (list, tuple)) else 1, above)
        check_choice("targets", self.targets, TARGETS)
        check_number("temperature", self.temperature, above=0)
        check_number("weight", self.weight, at_least=0, at_most=1)
        check_int("views", self.views, at_least=0, at_most=MOST)
        check_number("epochs", self.epochs, above=0, at_most=MOST)
        check_number("share", self.share, above=0, below=1)
        if not self.teacher:
            refuse(self, [field.name for field in dataclasses.fields(self)], "without a teacher")
        if self.targets == "hard":
            refuse(self, ("temperature",), "with targets=hard")
        if not self.views:
            refuse(self, ("folder",), "with views=0")
        if self.teacher != SMALL_CNN:
            refuse(self, ("epochs", "share"), f"with a teacher other than {SMALL_CNN}")
        if self.teacher == SMALL_CNN:
            refuse(self, ("mean", "std"), f"with {SMALL_CNN}, which sees what the student sees")
        if self.teacher.startswith(LOGITS):
            refuse(self, ("views", "mean", "std"), "with a file of logits")

    def check_recipe(self, recipe, stages: list) -> None:
        """Raises a ValueError for settings of a recipe with which an image would change after its answers are stored."""
        if not self.views:
            return
        where, augment = "with distill.views, whose images repeat", recipe.augment
        if augment.mix_until != 1 and (augment.mixup or augment.cutmix):
            raise ValueError(f"mix_until: received {augment.mix_until}; allowed: 1 {where}")
        for stage in stages:
            if dataclasses.replace(stage.augment, mix_until=augment.mix_until) != augment:
                raise ValueError(f"stages: received other augmentation; allowed: none {where}")
            if stage.augment.resized_crop and stage.model.image_size != recipe.model.image_size:
                raise ValueError(f"stages: received image_scale and resized_crop; allowed: one of both {where}")
