"""Run folders and `.keras` files of this library."""

from pathlib import Path

import numpy as np

from keras_vit.model.adapters import merged_weights
from keras_vit.model.saved import load_keras
from keras_vit.model.vit import ViT
from keras_vit.runs.folder import RunFolder
from keras_vit.weights.checkpoint import Checkpoint


def open_keras(path: Path) -> Checkpoint:
    """Opens a run folder or a .keras file of this library."""
    if path.is_dir():
        run = RunFolder(path)
        recipe, model = run.recipe, run.model()
        mean, std = (value if isinstance(value, list) else [value] for value in (recipe.mean, recipe.std))
        names = run.summary.get("class_names") if run.is_finished else None
        notes = ()
    else:
        model, mean, std, names = load_keras(path, "checkpoint"), [0.5], [0.5], None
        notes = ("mean and std: not in a .keras file; taken: 0.5, 0.5",)
    weights = float_weights(model, f"checkpoint: {str(path)!r}")
    return Checkpoint("keras", path, model.config, mean, std, names, weights.__getitem__, notes=notes)


def float_weights(model: ViT, where: str) -> dict[str, np.ndarray]:
    """The weights of a `ViT` by path, in float32, adapters merged; a ValueError if it is quantised."""
    weights = merged_weights(model)
    if {path: value.shape for path, value in weights.items()} != model.config.weight_shapes:
        raise ValueError(f"{where}: received a quantised model; allowed: one with float weights")
    return weights
