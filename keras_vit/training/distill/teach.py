"""The teacher of a recipe, ready for the stream of training batches.

Shapes: B images of a batch, K classes.
"""

import dataclasses
import os
import time
import typing
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from keras_vit.data.batches import training_batch
from keras_vit.data.dataset import DataSet, Split
from keras_vit.data.teaching import Teaching
from keras_vit.recipes.distill import LOGITS, SMALL_CNN, DistillConfig
from keras_vit.recipes.schema import Recipe
from keras_vit.runs.scores import metrics_of
from keras_vit.training.distill.logits import order_of, read_logits
from keras_vit.training.distill.sources import digest_of_file, keras_source, open_source, refused
from keras_vit.training.distill.teacher import Teacher, adapt, targets_of_logits
from keras_vit.training.distill.views import Views
from keras_vit.training.distribution.base import Distribution
from keras_vit.training.speed import batch_settings

BATCH = 250  # validation images at a time
VIEWS = "teacher-views"  # the folder of stored answers, beside the run folder


@dataclasses.dataclass
class Taught:
    """What a training has of its teacher.

    Attributes:
        teaching: For the stream of batches; None without a teacher.
        fingerprint: Of the teacher; empty without one.
        epochs: Passes for which the teacher was trained here; 0 = it was not.
        seconds: That its preparation took.
        notes: Lines for the user.
        summary: For the run's summary.
        save: Puts into a run folder what it needs to go on.
    """

    teaching: Teaching | None = None
    fingerprint: str = ""
    epochs: float = 0.0
    seconds: float = 0.0
    notes: list[str] = dataclasses.field(default_factory=list)
    summary: dict[str, typing.Any] = dataclasses.field(default_factory=dict)
    save: Callable[[Path], None] = lambda path: None


def teach(
    recipe: Recipe,
    data: DataSet,
    run_dir: str | os.PathLike,
    distribution: Distribution,
    say: Callable[[str], None],
    seconds: float | None = None,
    kept: bool = False,
) -> Taught:
    """Opens, or trains, the teacher of a recipe; has its answers stored if the recipe wants that.

    Args:
        recipe: The `Recipe`, with precision and number of classes.
        data: Its `DataSet`.
        run_dir: The run folder, which need not be there yet.
        distribution: Of the student's training.
        say: Takes lines for the user.
        seconds: Of the whole training, of which a teacher that is trained here takes its share; None = as its epochs take.
        kept: Whether the run goes on, and its folder may have the teacher that it has trained.

    Raises:
        ValueError: For a teacher that cannot be used.
    """
    config, started = recipe.distill, time.perf_counter()
    if not config.teacher:
        return Taught()
    if config.teacher.startswith(LOGITS):
        taught = from_logits(recipe, data)
    else:
        taught = from_teacher(recipe, data, Path(run_dir), distribution, say, seconds, kept)
    taught.seconds = time.perf_counter() - started
    for note in taught.notes:
        say(note)
    return taught


def from_logits(recipe, data):
    path, notes = Path(recipe.distill.teacher.removeprefix(LOGITS)).expanduser(), []
    logits = read_logits(path, data, notes)
    known = targets_of_logits(logits, recipe.distill, data.multi_label)
    accuracy = {} if data.multi_label else {"teacher_train_accuracy": float((logits.argmax(axis=1) == data.train.labels).mean())}
    summary = {"teacher": recipe.distill.teacher, **accuracy, "teacher_notes": notes}
    return Taught(Teaching(known=known), digest_of_file(path), notes=notes, summary=summary)


def from_teacher(recipe, data, run_dir, distribution, say, seconds, kept):
    config, started, trained = recipe.distill, time.perf_counter(), None
    with distribution.alone():
        if config.teacher == SMALL_CNN:
            if distribution.processes > 1:
                raise refused(SMALL_CNN, f"with {distribution.processes} processes", "a teacher that has been trained")
            from keras_vit.training.distill.small_cnn import small_cnn

            if recipe.train.time is None and seconds is None and config.share != DistillConfig.share:
                say(f"teacher: distill.share {config.share:g} has no effect without train.time; distill.epochs decides")
            if seconds is not None and config.epochs != DistillConfig.epochs and not kept:
                say(f"teacher: distill.epochs {config.epochs:g} is replaced by what fits into distill.share of the time")
            seconds = None if seconds is None else config.share * seconds
            trained = small_cnn(recipe, data, run_dir if kept else None, say, seconds)
            known = {"class_names": data.class_names, "mean": recipe.mean, "std": recipe.std, "multi_label": data.multi_label}
            source = keras_source(trained.model, SMALL_CNN, **known)
        else:
            source = open_source(config.teacher)
        teacher = adapt(source, recipe, data)
        found = scores(teacher, data.validation, data.class_names) if data.validation is not None else {}
    summary = {
        "teacher": config.teacher,
        **{f"teacher_val_{name}": value for name, value in found.items()},
        **({"teacher_epochs": trained.epochs} if trained else {}),
        "teacher_seconds": trained.seconds if trained else time.perf_counter() - started,
        "teacher_notes": teacher.notes,
    }
    notes = list(teacher.notes)
    for name in ("accuracy", "map"):
        if name in found:
            notes.append(f"teacher: {config.teacher}, {name} {found[name]:.2%} on {len(data.validation):,} validation images")
    if config.views:
        answer = from_views(recipe, data, teacher, run_dir, distribution, say, summary)
    else:
        answer = lambda images, step, rows: targets_of_logits(teacher.logits(images), config, data.multi_label)  # noqa: E731
    taught = Taught(Teaching(answer, views=config.views), teacher.fingerprint, notes=notes, summary=summary)
    if trained:
        taught.epochs, taught.save = trained.epochs, trained.save
    return taught


def from_views(recipe, data, teacher, run_dir, distribution, say, summary):
    """Targets of stored logits, which are computed first where they are not stored yet."""
    config, size = recipe.distill, recipe.train.batch_size
    seen, steps = {**batch_settings(recipe, data), "image_size": recipe.model.image_size}, len(data.train) // size
    del seen["mix_steps"]  # mixing never ends here
    augment = {name: value for name, value in dataclasses.asdict(recipe.augment).items() if name != "label_smoothing"}
    depends = {"teacher": teacher.fingerprint, "backend": keras.backend.backend(), "data": [data.fingerprint, order_of(data)]}
    depends |= {"validation": recipe.validation, "subset": recipe.subset, "center_crop": recipe.center_crop}
    depends |= {"augment": augment, **seen}
    folder = Path(config.folder).expanduser() if config.folder else run_dir.resolve().parent / VIEWS
    views = Views(folder, depends, size, recipe.model.num_classes)
    if missing := views.missing(config.views, steps):
        if distribution.processes > 1:
            what = f"{config.views} with {distribution.processes} processes, of which {len(missing)} files are not stored"
            raise ValueError(f"distill.views: received {what}; allowed: stored ones, as one process makes them")
        say(f"teacher: its answers to {config.views} passes over {len(data.train):,} images are stored in {views.folder}")

    def logits(step):
        images, _ = training_batch(data.train, recipe.augment, step, **seen)
        return teacher.logits(images)

    views.fill(config.views, steps, logits)
    summary["teacher_views_seconds"] = views.seconds
    return lambda images, step, rows: targets_of_logits(views.logits(step, steps)[rows], config, data.multi_label)


def scores(teacher: Teacher, split: Split, class_names: list[str]) -> dict[str, float]:
    """A teacher's metrics on a split, by name."""
    parts = [np.arange(start, min(start + BATCH, len(split))) for start in range(0, len(split), BATCH)]
    found, _ = metrics_of(np.concatenate([teacher.logits(split.images(rows)) for rows in parts]), split.labels, class_names)
    return {name: value for name, value in found.items() if value is not None}
