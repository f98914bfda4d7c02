"""Run folders and `.keras` files of this library."""

import zipfile
from pathlib import Path

import keras

from keras_vit.model.adapters import merged_weights
from keras_vit.model.vit import ViT
from keras_vit.runs.folder import RunFolder
from keras_vit.weights.checkpoint import Checkpoint


def open_keras(path: Path) -> Checkpoint:
    """Opens a run folder or a .keras file of this library."""

    mean, std, names, notes = [0.5], [0.5], None, ()
    if path.is_dir():
        run = RunFolder(path)
        recipe = run.recipe
        mean, std = (value if isinstance(value, list) else [value] for value in (recipe.mean, recipe.std))
        names = run.summary.get("class_names") if run.is_finished else None
        if not run.model_path.is_file():
            run.model()  # says what is missing
        path, file = run.path, run.model_path
    else:
        file, notes = path, ("mean and std: not in a .keras file; taken: 0.5, 0.5",)
    if not zipfile.is_zipfile(file):
        raise ValueError(f"checkpoint: {str(file)!r} is damaged or no .keras file")
    try:
        model = keras.saving.load_model(file, compile=False, safe_mode=True)
    except (ValueError, TypeError, KeyError, OSError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"checkpoint: {str(file)!r} cannot be loaded ({reason[:300]})") from None
    if not isinstance(model, ViT):
        raise ValueError(f"checkpoint: {str(file)!r} holds a {type(model).__name__}; allowed: a ViT of this library")
    weights = float_weights(model, f"checkpoint: {str(file)!r}")
    return Checkpoint("keras", path, model.config, mean, std, names, weights.__getitem__, notes=notes)


def float_weights(model, where):
    """The weights of a `ViT` by path, in float32, adapters merged; a ValueError if it is quantised."""
    weights = merged_weights(model)
    if {path: value.shape for path, value in weights.items()} != model.config.weight_shapes:
        raise ValueError(f"{where}: received a quantised model; allowed: one whose weights are floats")
    return weights
