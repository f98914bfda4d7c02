"""Where a checkpoint is, and whose."""

import os
import re
from pathlib import Path

from keras_vit.weights.checkpoint import PICKLES, read_json, refuse_pickle

HUB_FILES = ["config.json", "preprocessor_config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]


def find(path) -> Path:
    """The local path of a checkpoint, downloaded where it is the name of a hub repository and nothing local."""
    text = os.fspath(path)
    local = Path(text).expanduser()
    if local.suffix in PICKLES and not local.is_dir():
        refuse_pickle(local)
    if local.exists():
        return local
    name = text.removeprefix("hf-hub:")
    if not re.fullmatch(r"[\w][\w.-]*/[\w.-]+", name):
        raise ValueError(f"checkpoint: there is no file or folder {text!r}, and it is no name on the Hugging Face hub (org/name)")
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(
            f"checkpoint: there is no file or folder {text!r}, and a download from the Hugging Face hub needs huggingface_hub: "
            "pip install huggingface_hub"
        ) from None
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # of several packages below it, none of which it wraps
        reason = " ".join(str(error).split())
        raise ValueError(
            f"checkpoint: there is no file or folder {text!r}, and it cannot be downloaded from the Hugging Face hub "
            f"({type(error).__name__}: {reason[:200]})"
        ) from None


def detect(path: Path) -> str:
    """Whose checkpoint a local path is."""
    if path.is_file():
        kinds = {".npz": "jax", ".keras": "keras", ".safetensors": "timm"}
        if path.suffix in kinds:
            return kinds[path.suffix]
        raise ValueError(f"checkpoint: {str(path)!r} has the suffix {path.suffix!r}; allowed: {', '.join(kinds)}, or a folder")
    if (path / "recipe.yaml").is_file():
        return "keras"
    if (path / "config.json").is_file():
        settings = read_json(path / "config.json")
        if "model_type" in settings:
            return "huggingface"
        if "architecture" in settings:
            return "timm"
        raise ValueError(
            f"checkpoint: {str(path / 'config.json')!r} has neither architecture (timm) nor model_type (transformers); "
            "give the source and the architecture"
        )
    raise ValueError(f"checkpoint: {str(path)!r} holds neither recipe.yaml (a run folder) nor config.json (timm, transformers)")


def check_kind(path, source, right, allowed):
    if not right:
        raise ValueError(f"source: received {source!r}, but {str(path)!r} is no such thing; allowed: {allowed}")
    return path
