"""The run folder: its files, read and written in one place.

    recipe.yaml            the resolved recipe
    metrics.csv            a row an epoch
    best.keras             the model of the best epoch by its validation; its averaged weights if the run averages them
    last/state.safetensors the full training state after the last finished epoch
    summary.json           the outcome, once the run has ended
    plots/  tensorboard/   pictures and event files

Every file is written atomically: a kill at any moment leaves the old file or the new one.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from keras_vit.files import PARTIAL, atomic_path, remove, write_json, write_text
from keras_vit.model.vit import ViT
from keras_vit.recipes.parse import load_recipe
from keras_vit.recipes.schema import Recipe
from keras_vit.runs.prediction import Prediction, predict

# Columns of metrics.csv, in order. `seconds` is training time since the first epoch, also of a run that was resumed.
METRICS = (
    "epoch",
    "seconds",
    "epoch_seconds",
    "images_per_second",
    "learning_rate",
    "loss",
    "accuracy",
    "val_loss",
    "val_accuracy",
    "val_balanced_accuracy",
    "memory_mb",
)


def columns_of(rows: list[dict]) -> list[str]:
    """The columns of metrics.csv for these rows: the usual ones, and those that only some runs have, such as `val_map`."""
    return [*METRICS, *dict.fromkeys(name for row in rows for name in row if name not in METRICS)]


class RunFolder:
    """A run folder on disk.

    Args:
        path: The folder. It must hold a `recipe.yaml`; `RunFolder.create` makes a new one.

    Raises:
        ValueError: If `path` is no folder, or has no recipe.yaml.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not self.path.is_dir():
            raise ValueError(f"run: received {str(self.path)!r}, which is no folder; allowed: a run folder")
        if not (self.path / "recipe.yaml").is_file():
            raise ValueError(f"run: received {str(self.path)!r}, which has no recipe.yaml; allowed: a run folder")

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
        if (path / "recipe.yaml").is_file():
            run = cls(path)
            # The new recipe replaces the old one last: until then the folder remains a run folder.
            for file in (run.state_path, run.model_path, path / "metrics.csv", path / "summary.json"):
                file.unlink(missing_ok=True)
            for folder in (run.state_path.parent, run.plots, run.tensorboard, path / "export"):
                shutil.rmtree(folder, ignore_errors=True)
            for file in path.glob("evaluation-*.json"):
                file.unlink()
        write_text(path / "recipe.yaml", recipe.to_yaml())
        run = cls(path)
        run.remove_partial_files()
        return run

    @staticmethod
    def check_free(path: str | os.PathLike, overwrite: bool = False) -> None:
        """Raises a ValueError if `path` holds something that `create` may not overwrite."""
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise ValueError(f"run: received {str(path)!r}, which is a file; allowed: a new or empty folder")
        if path.is_dir() and any(not file.name.startswith(PARTIAL) for file in path.iterdir()):
            if not (path / "recipe.yaml").is_file():
                raise ValueError(
                    f"run: received {str(path)!r}, which is not empty and not a run folder; allowed: a new or empty folder"
                )
            if not overwrite:
                raise ValueError(f"run: received {str(path)!r}, which exists; go on with --resume, or start again with --overwrite")

    def extend(self, recipe: Recipe) -> None:
        """Replaces the recipe by one with an extension; the run has not ended then."""
        # Its end goes first: after a kill in between, a resumed run only ends again.
        (self.path / "summary.json").unlink(missing_ok=True)
        write_text(self.path / "recipe.yaml", recipe.to_yaml())

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
    def state_path(self) -> Path:
        return self.path / "last" / "state.safetensors"

    @property
    def recipe(self) -> Recipe:
        return load_recipe(self.path / "recipe.yaml")

    @property
    def metrics(self) -> list[dict]:
        """The rows of metrics.csv, a dictionary an epoch; empty before the first epoch has ended."""
        path = self.path / "metrics.csv"
        if not path.is_file():
            return []
        with open(path, newline="", encoding="utf-8") as file:
            return [
                {name: int(value) if name == "epoch" else float(value) for name, value in row.items() if value}
                for row in csv.DictReader(file)
            ]

    def write_metrics(self, rows: list[dict]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, columns_of(rows), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path / "metrics.csv", text.getvalue())

    @property
    def summary(self) -> dict:
        """The contents of summary.json.

        Raises:
            ValueError: If the run has not ended.
        """
        path = self.path / "summary.json"
        if not path.is_file():
            raise ValueError(f"run: received {str(self.path)!r}, which has no summary.json; allowed: a run that has ended")
        return json.loads(path.read_text(encoding="utf-8"))

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended."""
        return (self.path / "summary.json").is_file()

    def write_summary(self, summary: dict) -> None:
        write_json(self.path / "summary.json", summary)

    def model(self) -> ViT:
        """The trained model, from best.keras.

        Raises:
            ValueError: If no epoch has been validated yet.
        """
        if not self.model_path.is_file():
            raise ValueError(f"run: received {str(self.path)!r}, which has no best.keras; allowed: a run with a validated epoch")
        return keras.models.load_model(self.model_path, compile=False)

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes in the order of the logits; None if the run has not ended."""
        return self.summary.get("class_names") if self.is_finished else None

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of classes."""
        return self.recipe.labels == "multi"

    def predict(
        self, paths: str | os.PathLike | Sequence[str | os.PathLike], *, top: int | None = None, threshold: float | None = None
    ) -> list[Prediction]:
        """The likeliest classes of pictures, by the best model.

        Args:
            paths: Picture files, folders with pictures and patterns.
            top: Number of classes for each picture, the likeliest first; None = 1, or where a picture may have several those above
                the threshold.
            threshold: Probability above which a class counts, where a picture may have several; None = 0.5.

        Returns:
            A `Prediction` for each picture; those that cannot be read are left out, with a warning.

        Raises:
            ValueError: As `model`; for paths without pictures.
        """
        recipe = self.recipe
        known = {"mean": recipe.mean, "std": recipe.std, "class_names": self.class_names, "multi_label": self.multi_label}
        known["center_crop"] = recipe.center_crop
        return predict(self.model(), paths, top=top, threshold=threshold, **known)

    def write_model(self, model: keras.Model) -> None:
        with atomic_path(self.model_path) as temporary:
            model.save(temporary)

    def read_state(self) -> tuple[dict, dict] | None:
        """The training state: a dictionary of arrays and one of plain values; None if no epoch has ended."""
        if not self.state_path.is_file():
            return None
        try:
            with safe_open(self.state_path, framework="numpy") as file:
                names = list(file.keys())
                return {name: file.get_tensor(name) for name in names}, json.loads(file.metadata()["state"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"run: {str(self.state_path)!r} is damaged ({error}); start again with --overwrite") from None

    def write_state(self, arrays: dict, values: dict) -> None:
        with atomic_path(self.state_path) as temporary:
            arrays = {name: np.array(array, order="C") for name, array in arrays.items()}
            # Not safetensors' save_file: on a full disk it does not raise an OSError.
            temporary.write_bytes(save(arrays, metadata={"state": json.dumps(values)}))

    def remove_partial_files(self) -> None:
        """Deletes what a kill left half written."""
        for path in list(self.path.rglob(f"{PARTIAL}*")):
            remove(path)


class WrittenElsewhere(RunFolder):
    """A run folder that another process of the same training writes; this one only reads it."""

    def extend(self, recipe):
        """Left to the first process."""

    write_metrics = write_summary = write_model = extend

    def write_state(self, *state):
        """Left to the first process."""
