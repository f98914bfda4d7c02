"""A teacher as the student's data needs it: its pixels, its size, its classes; and targets from its logits.

Shapes: b images, H height, W width, C channels, K the student's classes.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.special import expit, logit, softmax

from keras_vit.checks import as_moments
from keras_vit.data.dataset import DataSet
from keras_vit.files import sha256
from keras_vit.images import normalize, resize
from keras_vit.recipes.distill import DistillConfig
from keras_vit.recipes.schema import Recipe
from keras_vit.training.distill.sources import Source, refused

PROBED = 64  # training images by which a teacher is tried
SUM_TOLERANCE = 1e-3  # of rows that are probabilities
LEAST = 1e-7  # the least probability that has a logarithm here


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher that has been adapted.

    Attributes:
        logits: Float32 logits (b, K), in the order of the student's classes, of uint8 images (b, H, W, C) of any size.
        fingerprint: SHA-256 (hex) of what they depend on.
        notes: Lines for the user: what it is and what was adapted.
    """

    logits: Callable[[np.ndarray], np.ndarray]
    fingerprint: str
    notes: list[str]


def adapt(source: Source, recipe: Recipe, data: DataSet) -> Teacher:
    """A teacher for the images and classes of a recipe's data; what differs from the student's is adapted, and said.

    Raises:
        ValueError: In one line, for other classes, another kind of labels, channels that cannot be adapted, and a teacher whose
            logits are not finite: it has diverged.
    """
    name = recipe.distill.teacher
    notes = [f"teacher: {note}" for note in source.notes]
    if source.multi_label is not None and source.multi_label != data.multi_label:
        kinds = ("one class an image", "any number of classes an image")
        raise refused(name, f"which was trained with {kinds[source.multi_label]}", kinds[data.multi_label])
    columns = columns_of(source, name, data.class_names, notes)
    *size, channels = source.shape
    pictures = recipe.model.channels
    if channels not in (None, pictures) and (pictures, channels) != (1, 3):
        raise refused(name, f"which takes {channels} channels", f"{pictures}, as the student")
    repeats = channels if channels not in (None, pictures) else None
    if repeats:
        notes.append(f"teacher: takes {channels} channels: it sees the grey images {channels} times")
    mean, std = moments(source, recipe, channels or pictures, notes)
    size = None if None in size else tuple(size)
    if size and size != recipe.model.image_size:
        ours = "x".join(map(str, recipe.model.image_size))
        notes.append(f"teacher: takes {size[0]}x{size[1]} pixels, the student {ours}: resized")

    def outputs(images):
        images = normalize(np.repeat(images, repeats, axis=-1) if repeats else images, mean, std)
        answer = source.logits(resize(images, size) if size else images)
        if not np.isfinite(answer).all():
            raise refused(name, "whose logits are not finite: it has diverged", "a teacher that has not")
        return answer

    probed = data.train.images(np.arange(min(PROBED, len(data.train))))
    answer = outputs(probed)
    if answer.shape != (len(probed), source.num_classes):
        raise refused(name, f"whose output is {answer.shape}", f"logits {(len(probed), source.num_classes)}")
    sure = answer.min() >= 0 and answer.max() <= 1
    sure = sure and (data.multi_label or bool((np.abs(answer.sum(axis=1) - 1) < SUM_TOLERANCE).all()))
    if sure:
        notes.append("teacher: gives probabilities: their logarithms are taken for its logits")

    def logits(images):
        answer = outputs(images)
        if sure:
            answer = (logit if data.multi_label else np.log)(np.clip(answer, LEAST, 1 - LEAST)).astype(np.float32)
        return answer if columns is None else answer[:, columns]

    adapted = (mean, std, size, repeats, None if columns is None else columns.tolist(), sure)
    return Teacher(logits, sha256(f"{source.fingerprint} {adapted}"), notes)


def columns_of(source, name, class_names, notes):
    """Which of a teacher's logits are those of the student's classes, in their order; None = all as they are."""
    theirs, count = source.class_names, len(class_names)
    if theirs is None:
        if source.num_classes != count:
            raise refused(name, f"which has {source.num_classes:,} classes without names", f"{count:,}, as the data")
        notes.append(f"teacher: does not name its {count:,} classes: they are taken to be the data's, in their order")
        return None
    if list(theirs) == list(class_names):
        return None
    missing = [each for each in class_names if each not in theirs]
    if missing:
        more = f" and {len(missing) - 1:,} more of the data's classes" if len(missing) > 1 else ""
        raise refused(name, f"which does not know {missing[0]!r}{more}", f"a teacher of all {count:,}")
    others = (
        f" {count:,} of its {len(theirs):,} classes are the data's" if len(theirs) > count else " its classes have another order"
    )
    notes.append(f"teacher:{others}: its logits are taken by their names")
    return np.array([list(theirs).index(each) for each in class_names])


def moments(source, recipe, channels, notes):
    """Mean and std of the teacher's pixels: those of the settings, of its own file, or the student's."""
    config, found, unknown = recipe.distill, [], []
    for name in ("mean", "std"):
        own, ours = getattr(config, name), getattr(recipe, name)
        if own is not None and source.takes_pixels:
            raise ValueError(f"distill.{name}: received {own}; allowed: null, as {config.teacher!r} takes pixels from 0 to 255")
        known = getattr(source, name) if own is None else own
        unknown += [name] * (known is None)
        ours = ours if len(ours) in (1, channels) else [sum(ours) / len(ours)]
        found.append(ours if known is None else known)
    mean, std = as_moments(*found, channels, "distill.")
    if unknown:
        others = " and ".join(f"distill.{name}" for name in unknown)
        taken = "state others" if len(unknown) > 1 else "states another"
        notes.append(f"teacher: does not say its {' and '.join(unknown)}: the student's are taken; {others} {taken}")
    if len(unknown) < len(found) and (set(mean), set(std)) != (set(recipe.mean), set(recipe.std)):
        shown = (", ".join(f"{value:.4g}" for value in values) for values in (mean, std))
        notes.append("teacher: sees pixels with mean {} and std {}, not the student's".format(*shown))
    return mean, std


def targets_of_logits(logits: np.ndarray, config: DistillConfig, multi_label: bool) -> np.ndarray:
    """What a student aims at: float32 (b, K) from a teacher's logits (b, K).

    Soft: softmax(logits / temperature), of several labels an image the sigmoid. Hard: 1 for the likeliest class, of several labels
    for each one above a half.
    """
    if config.targets == "soft":
        return (expit if multi_label else lambda z: softmax(z, axis=1))(logits / np.float32(config.temperature)).astype(np.float32)
    if multi_label:
        return (logits > 0).astype(np.float32)
    return np.eye(logits.shape[1], dtype=np.float32)[logits.argmax(axis=1)]
