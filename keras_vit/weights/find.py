"""Finds a checkpoint on disk or on the Hugging Face hub, and tells whose it is."""

import os
import re
from pathlib import Path

from keras_vit.files import read_json
from keras_vit.weights.checkpoint import wrong
from keras_vit.weights.tensors import PICKLES, pickled

RUN_FILES = ["summary.json", "recipe.yaml", "best.keras"]  # of a run, as `keras-vit publish` uploads it
HUB_FILES = ["config.json", "preprocessor_config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
HUB_FILES += RUN_FILES[:1]
SUFFIXES = {".npz": "jax", ".keras": "keras", ".safetensors": "timm"}


def find(path: str | os.PathLike) -> Path:
    """The local path of a checkpoint; a name with no local file is downloaded from the hub.

    Raises:
        ValueError: If there is none, or it is a pickle.
    """
    text = os.fspath(path)
    local = Path(text).expanduser()
    if local.suffix in PICKLES and not local.is_dir():
        raise pickled(local)
    if local.exists():
        return local
    name = text.removeprefix("hf-hub:")
    if not re.fullmatch(r"[\w][\w.-]*/[\w.-]+", name):
        raise wrong(text, "an existing file or folder, or a name on the Hugging Face hub (org/name)")
    absent = f"checkpoint: received {text!r}, which is no local file or folder"
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(f"{absent}; a download from the Hugging Face hub needs: pip install huggingface_hub") from None
    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES))
        if (folder / RUN_FILES[0]).is_file() and not (folder / "config.json").is_file():  # a model that no other library holds
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=RUN_FILES))
        return folder
    except Exception as error:  # from any package that huggingface_hub uses
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(f"{absent} and cannot be downloaded from the Hugging Face hub ({reason})") from None


def detect(path: Path) -> str:
    """The source of a local checkpoint: `keras`, `timm`, `huggingface` or `jax`.

    Raises:
        ValueError: If the files do not tell.
    """
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise wrong(path, f"{', '.join(SUFFIXES)}, or a folder")
        return SUFFIXES[path.suffix]
    if (path / "recipe.yaml").is_file():
        return "keras"
    if not (path / "config.json").is_file():
        raise wrong(path, "a folder with recipe.yaml (a run) or config.json (timm, transformers)")
    settings = read_json(path / "config.json", "checkpoint")
    if "model_type" in settings:
        return "huggingface"
    if "architecture" in settings:
        return "timm"
    raise wrong(path / "config.json", "one with architecture (timm) or model_type (transformers), or both source and architecture")
