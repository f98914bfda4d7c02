"""What is published of a run: a smaller run folder, with weights that other libraries read, and the card."""

import dataclasses
import os
import re
import shutil
import typing
from pathlib import Path

from keras_vit.checks import visible
from keras_vit.files import sealed, write_sealed_json, write_text
from keras_vit.hub.card import UNKNOWN, model_card
from keras_vit.model.saved import load_keras
from keras_vit.recipes.distill import LOGITS, TIMM
from keras_vit.recipes.schema import Recipe
from keras_vit.runs.folder import CARD, RunFolder
from keras_vit.weights.save import save_weights

MODEL, RECIPE, SUMMARY = "best.keras", "recipe.yaml", "summary.json"
TARGETS = {"huggingface": "transformers", "timm": "timm"}  # in the order in which they are tried
PRIVATE = ("command", "data_notes", "teacher", "teacher_notes")  # of a summary: they may name paths


@dataclasses.dataclass(frozen=True)
class Contents:
    """The files to publish, in a folder of their own.

    Attributes:
        folder: Where they lie.
        target: The library whose names the safetensors have, "huggingface" or "timm"; None = there are none.
        notes: Lines for the user: which library cannot hold the model, and why; where the card comes from.
    """

    folder: Path
    target: str | None
    notes: list[str]

    @property
    def files(self) -> dict[str, int]:
        """Bytes of each file, by its name."""
        return {file.name: file.stat().st_size for file in sorted(self.folder.iterdir())}


def gather(run: RunFolder, repo: str, folder: Path, *, license: str | None = None, weights: str = "auto") -> Contents:
    """Writes what is published of a run into a folder.

    A README.md in the run folder is published as it is; else it is written there first.

    Args:
        run: A run that has ended.
        repo: "user/name" on the hub.
        folder: A new folder.
        license: Such as apache-2.0; None = unknown. Not with a README.md that is there.
        weights: "huggingface" or "timm": the names that the tensors get; "none": only the `.keras` file; "auto": the first of the
            two that can hold the model.

    Raises:
        ValueError: For a run that has not ended, a library that cannot hold the model, and a README.md whose metadata is damaged.
    """
    run.check_classes()
    recipe, summary = run.recipe, run.summary
    model = load_keras(path := run.intact_model_path(), "run")
    names = [visible(str(name)) for name in summary["class_names"]]
    known = {"mean": recipe.mean, "std": recipe.std, "class_names": names}
    target, notes = None, []
    for each in TARGETS if weights == "auto" else [weights] * (weights != "none"):
        try:
            save_weights(model, folder, each, **known)
        except ValueError as error:
            if weights != "auto":
                raise
            notes.append(f"{TARGETS[each]} cannot hold this model ({error})")
        else:
            target = each
            break
    if target is None:
        folder.mkdir(exist_ok=True)
        notes.append(f"{MODEL} is the only file with weights")
    elif recipe.center_crop < 1 or recipe.labels == "multi":
        what = "the crop of the middle" if recipe.center_crop < 1 else "several labels an image"
        notes.append(f"{TARGETS[target]}'s files do not state {what}: {RECIPE} does")
    if target is not None and summary.get("temperature"):
        notes.append(f"{TARGETS[target]}'s files do not state the temperature of calibrated probabilities: {SUMMARY} does")
    shutil.copyfile(path, folder / MODEL)
    write_text(folder / RECIPE, sealed(without_paths(recipe).to_yaml()))
    write_sealed_json(folder / SUMMARY, {name: value for name, value in summary.items() if name not in PRIVATE})
    notes.append(write_card(run, repo, folder, license, target, notes))
    return Contents(folder, target, notes)


def without_paths(recipe: Recipe) -> Recipe:
    """A recipe whose paths are cut to their last names: what a disk looks like is nobody's business."""
    source, colon, path = recipe.data.partition(":")
    kind = next((kind for kind in (TIMM, LOGITS) if recipe.distill.teacher.startswith(kind)), "")
    teacher = kind + without_folder(recipe.distill.teacher.removeprefix(kind))
    changes = {
        "data": f"{source}{colon}{last_name(path)}",
        "data_dir": None,
        "finetune": dataclasses.replace(recipe.finetune, checkpoint=without_folder(recipe.finetune.checkpoint)),
        "distill": dataclasses.replace(recipe.distill, teacher=teacher, folder=""),
    }
    return dataclasses.replace(recipe, **changes)


def without_folder(name: str) -> str:
    """The last name of a path on this disk; a name of another kind as it is."""
    local = os.path.isabs(name) or name.startswith(("~", ".")) or (name and Path(name).exists())
    return last_name(name) if local else name


def last_name(path):
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def write_card(run, repo, folder, license, target, notes) -> str:
    """Copies the card of the run folder, which is written where there is none; says which of the two."""
    path = run.path / CARD
    if path.is_file():
        if license is not None:
            raise ValueError(f"--license: received {license!r}; allowed with {str(path)!r}, which states one: none, or --new-card")
        check_card(path)
        shutil.copyfile(path, folder / CARD)
        old = path.stat().st_mtime < (run.path / SUMMARY).stat().st_mtime  # of a run that was extended since
        since = ", with numbers from before the run's last end" if old else ""
        return f"{path} is published as it is{since}; --new-card writes it anew"
    kinds: dict[str, typing.Any] = {
        "model.safetensors": f"weights in {TARGETS.get(target)}'s names",
        "config.json": f"architecture, as {TARGETS.get(target)} reads it",
        "preprocessor_config.json": "preprocessing, as transformers reads it",
        MODEL: "the same model for keras_vit, under TensorFlow, JAX or PyTorch",
        RECIPE: "every setting of the training",
        SUMMARY: "the outcome, and the names of the classes",
    }
    files = [(name, kinds[name]) for name in kinds if (folder / name).is_file()]
    text = model_card(run, repo, files, license=license or UNKNOWN, target=target, notes=notes)
    write_text(path, text)
    shutil.copyfile(path, folder / CARD)
    return f"{path} is written; edit it before you publish: limits, intended use, licence"


def check_card(path):
    """Raises a ValueError if the metadata of a card cannot be read."""
    from huggingface_hub import ModelCard

    try:
        ModelCard(path.read_text(encoding="utf-8"))
    except Exception as error:  # of YAML's parser, of the metadata's checks, of the text's encoding
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{CARD}: {str(path)!r} is no model card ({reason}); allowed: metadata of YAML between two lines ---"
        ) from None
