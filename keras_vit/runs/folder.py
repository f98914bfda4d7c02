"""The run folder: its files, read and written in one place.

    recipe.yaml            the resolved recipe
    metrics.csv            a row an epoch
    best.keras             the model of the best epoch by its validation; its averaged weights if the run averages them
    last/state-*           the newest full training states, by their training steps
    last/best-*            the newest best models, by their epochs
    teacher.keras          the teacher that the run has trained, if it has one; teacher.json: what is known of it
    summary.json           the outcome, once the run has ended
    report.html            the run on one page, for people
    plots/  tensorboard/   pictures and event files
    .lock                  the process that trains

Every file is written atomically: a kill at any moment leaves the old file or the new one. Every file that is read again has
checksums: damage is found before the file is used.
"""

import contextlib
import itertools
import os
import shutil
import typing
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import psutil

from keras_vit.checks import check_number
from keras_vit.files import PARTIAL, Damaged, read_sealed_json, remove, sealed, write_sealed_json, write_text, writer_of
from keras_vit.locks import LOCK, Lock
from keras_vit.model.saved import load_keras
from keras_vit.model.vit import ViT
from keras_vit.recipes.parse import check_resolved, load_recipe
from keras_vit.recipes.schema import Recipe
from keras_vit.runs.kept import BestModels, States
from keras_vit.runs.metrics import read_metrics, write_metrics
from keras_vit.runs.prediction import Prediction, predict
from keras_vit.runs.views import choose_views

RECIPE, METRICS, SUMMARY, LAST = "recipe.yaml", "metrics.csv", "summary.json", "last"
REPORT = "report.html"
TEACHER, TEACHER_FACTS = "teacher.keras", "teacher.json"
CARD = "README.md"  # of `keras-vit publish`


@contextlib.contextmanager
def held(path: str | os.PathLike, *, resume: bool = False, overwrite: bool = False) -> Iterator[Lock]:
    """Holds a run folder for a training. A new folder is made, and removed again if no run is written into it.

    Args:
        path: The run folder: new or empty, unless `resume` or `overwrite`.
        resume: Whether a run that is there goes on.
        overwrite: Whether a run that is there may be deleted.

    Raises:
        ValueError: If another process holds the folder, or it is none that may be trained in.
    """
    path = Path(path)
    if resume:
        RunFolder(path)
    else:
        RunFolder.check_free(path, overwrite=True)  # the rest below: that a process trains there is said first
    missing = list(itertools.takewhile(lambda folder: not folder.exists(), (path, *path.parents)))
    path.mkdir(parents=True, exist_ok=True)
    try:
        with Lock(path, "run") as lock:
            try:
                if not resume:
                    RunFolder.check_free(path, overwrite)
                yield lock
            finally:
                if lock.in_place() and not (path / RECIPE).exists():
                    lock.path.unlink()
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


class RunFolder:
    """A run folder on disk.

    Args:
        path: The folder. It must hold a `recipe.yaml`; `RunFolder.create` makes a new one.

    Attributes:
        states: Its training `States`.
        best: Its `BestModels`.
        lock: The `Lock` of the training that writes, of `held`; None = this only reads.

    Raises:
        ValueError: If `path` is no folder, or its recipe.yaml is missing, damaged or incomplete.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.is_dir():
            raise ValueError(f"run: received {str(self.path)!r}, which is no folder; allowed: a run folder")
        if not self.recipe_path.is_file():
            raise ValueError(f"run: received {str(self.path)!r}, which has no recipe.yaml; allowed: a run folder")
        check_resolved(self.recipe_path)
        self.states = States(self.path / LAST)
        self.best = BestModels(self.model_path, self.path / LAST)
        self.lock: Lock | None = None

    @classmethod
    def create(cls, path: str | os.PathLike, recipe: Recipe, overwrite: bool = False) -> "RunFolder":
        """Makes a run folder with its recipe.

        Args:
            path: A new or empty folder; with `overwrite` also a run folder.
            recipe: The `Recipe`.
            overwrite: Whether to delete the files of a run that is already there.

        Raises:
            ValueError: If `path` holds something that may not be overwritten.
        """
        cls.check_free(path, overwrite)
        path = Path(path)
        if (path / RECIPE).is_file():
            # The new recipe replaces the old one last: until then the folder remains a run folder.
            for file in (
                path / LAST,
                path / "best.keras",
                path / METRICS,
                path / SUMMARY,
                path / TEACHER,
                path / TEACHER_FACTS,
                path / REPORT,
                path / CARD,
                *path.glob("evaluation-*.json"),
            ):
                remove(file)
            for name in ("plots", "tensorboard", "export", "explain"):
                shutil.rmtree(path / name, ignore_errors=True)
        write_text(path / RECIPE, sealed(recipe.to_yaml()))
        run = cls(path)
        run.remove_partial_files()
        return run

    @staticmethod
    def check_free(path: str | os.PathLike, overwrite: bool = False) -> None:
        """Raises a ValueError if `path` holds something that `create` may not overwrite."""
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise ValueError(f"run: received {str(path)!r}, which is a file; allowed: a new or empty folder")
        if path.is_dir() and any(not file.name.startswith(PARTIAL) and file.name != LOCK for file in path.iterdir()):
            if not (path / RECIPE).is_file():
                raise ValueError(
                    f"run: received {str(path)!r}, which is not empty and not a run folder; allowed: a new or empty folder"
                )
            if not overwrite:
                raise ValueError(f"run: received {str(path)!r}, which exists; go on with --resume, or start again with --overwrite")

    def reopen(self) -> None:
        """Before the run goes on: deletes what a kill left half written, and a damaged summary, which the end writes anew."""
        self.remove_partial_files()
        try:
            _ = self.is_finished and self.summary
        except ValueError as error:
            warnings.warn(f"{error}; it is written anew", stacklevel=2)
            (self.path / SUMMARY).unlink()

    def extend(self, recipe: Recipe) -> None:
        """Replaces the recipe by one with an extension; the run has not ended then."""
        self.check_place()
        # Its end goes first: after a kill in between, a resumed run only ends again.
        (self.path / SUMMARY).unlink(missing_ok=True)
        self.replace_recipe(recipe)

    def replace_recipe(self, recipe: Recipe) -> None:
        """Replaces the recipe, of a run that trains, by one with other steps or an extension."""
        self.check_place()
        write_text(self.recipe_path, sealed(recipe.to_yaml()))

    def check_place(self) -> None:
        """Raises a ValueError if the folder was deleted, moved or made anew since: what is written would lie without its recipe."""
        if not self.recipe_path.is_file() or (self.lock is not None and not self.lock.in_place()):
            raise ValueError(f"run: {str(self.path)!r} was deleted, moved or replaced during the training, which ends here")

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def model_path(self) -> Path:
        return self.path / "best.keras"

    @property
    def recipe_path(self) -> Path:
        return self.path / RECIPE

    @property
    def recipe(self) -> Recipe:
        return load_recipe(self.recipe_path)

    @property
    def metrics(self) -> list[dict]:
        """The rows of metrics.csv, a dictionary an epoch; empty before the first epoch has ended.

        Raises:
            ValueError: If the file is damaged.
        """
        path = self.path / METRICS
        try:
            rows = read_metrics(path)
        except Damaged as error:
            raise ValueError(f"run: {str(path)!r} is damaged ({error}); allowed: the file as the run wrote it") from None
        epochs = self.summary.get("epochs", len(rows)) if self.is_finished else len(rows)
        if len(rows) != epochs:
            raise ValueError(f"run: {str(path)!r} is damaged (it has {len(rows)} of {epochs} epochs)")
        return rows

    def write_metrics(self, rows: list[dict]) -> None:
        self.check_place()
        write_metrics(self.path / METRICS, rows)

    @property
    def summary(self) -> dict:
        """The contents of summary.json.

        Raises:
            ValueError: If the run has not ended, or the file is damaged.
        """
        path = self.path / SUMMARY
        if not self.is_finished:
            raise ValueError(f"run: received {str(self.path)!r}, which has no summary.json; allowed: a run that has ended")
        try:
            return read_sealed_json(path)
        except Damaged as error:
            raise ValueError(f"run: {str(path)!r} is damaged ({error}); the run writes it anew if it is resumed") from None

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended."""
        return (self.path / SUMMARY).is_file()

    def write_summary(self, summary: dict) -> None:
        self.check_place()
        write_sealed_json(self.path / SUMMARY, summary)

    def check_classes(self) -> None:
        """Raises a ValueError for a pre-trained run, which has no classes yet."""
        if self.recipe.pretrain:
            allowed = f"a run with classes, as `keras-vit finetune {self.path} --data DATA` makes of it"
            raise ValueError(f"run: received {str(self.path)!r}, pre-trained without classes; allowed: {allowed}")

    def model(self) -> ViT:
        """The trained model, from best.keras; from the best model before, with a warning, if that is damaged.

        Raises:
            ValueError: If no epoch has been validated yet, or no intact model is left.
        """
        return load_keras(self.intact_model_path(), "run")

    def intact_model_path(self) -> Path:
        """The file of the trained model; see `model`."""
        if not self.model_path.is_file() and not self.best.files.paths():
            raise ValueError(f"run: received {str(self.path)!r}, which has no best.keras; allowed: a run with a validated epoch")
        return self.best.find()

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes in the order of the logits; None if the run has not ended."""
        return self.summary.get("class_names") if self.is_finished else None

    @property
    def temperature(self) -> float:
        """What the logits are divided by before they become probabilities; 1 if the run has not ended, or none was fitted.

        Raises:
            ValueError: If summary.json is damaged, or states no number above 0.
        """
        found = self.summary.get("temperature") if self.is_finished else None
        if found is None:
            return 1.0
        check_number(f"run: temperature in {str(self.path / SUMMARY)!r}", found, above=0)  # a published run may say anything
        return float(found)

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of classes."""
        return self.recipe.labels == "multi"

    @property
    def known(self) -> dict[str, typing.Any]:
        """What a model's file does not say of it, and pictures need: arguments of `classifier`, by name."""
        recipe = self.recipe
        known = {"mean": recipe.mean, "std": recipe.std, "class_names": self.class_names, "multi_label": self.multi_label}
        return {**known, "center_crop": recipe.center_crop, "temperature": self.temperature}

    def predict(
        self,
        paths: str | os.PathLike | Sequence[str | os.PathLike],
        *,
        top: int | None = None,
        threshold: float | None = None,
        tta: str | None = None,
    ) -> list[Prediction]:
        """The likeliest classes of pictures, by the best model.

        Args:
            paths: Picture files, folders with pictures and patterns.
            top: Number of classes for each picture, the likeliest first; None = 1, or where a picture may have several those above
                the threshold.
            threshold: Probability above which a class counts, where a picture may have several; None = 0.5.
            tta: Test-time augmentation, as of `keras_vit.predict`; also `auto`: what the run was trained with.

        Returns:
            A `Prediction` for each picture; those that cannot be read are left out, with a warning.

        Raises:
            ValueError: As `model`; for paths without pictures.
        """
        self.check_classes()
        views, note = choose_views(tta, self.recipe.augment)
        if note:
            warnings.warn(note, stacklevel=2)
        return predict(self.model(), paths, top=top, threshold=threshold, tta=views, **self.known)

    def write_model(self, epoch: int, model: keras.Model) -> None:
        """Writes the model of an epoch that is better than those before."""
        self.check_place()
        self.best.write(epoch, model)

    def read_state(self) -> tuple[dict[str, np.ndarray], dict[str, typing.Any]] | None:
        """The newest intact training state, arrays by name and plain values; None if there is no state.

        Warns of damaged ones, which are newer.

        Raises:
            ValueError: If every state is damaged.
        """
        return self.states.read()

    def write_state(self, steps: int, arrays: dict[str, np.ndarray], values: dict[str, typing.Any]) -> None:
        """Writes the training state after so many training steps; the newest few are kept.

        Args:
            steps: Training steps so far.
            arrays: Finite arrays by name.
            values: Plain values, among them `epoch`, the number of finished epochs.
        """
        self.check_place()
        self.states.write(steps, arrays, values)

    def remove_partial_files(self) -> None:
        """Deletes what killed processes left half written; what another process of this machine is writing stays."""
        for path in list(self.path.rglob(f"{PARTIAL}*")):
            pid = writer_of(path)
            if pid in (None, os.getpid()) or not psutil.pid_exists(pid):
                remove(path)


class WrittenElsewhere(RunFolder):
    """A run folder that another process of the same training writes; this one only reads it."""

    def extend(self, *written):
        """Left to the first process."""

    replace_recipe = write_metrics = write_summary = write_model = write_state = extend
