"""A model of timm as a teacher, under PyTorch, whatever the student's backend."""

import threading
from pathlib import Path

import numpy as np

from keras_vit.training.distill.sources import Source, fingerprint_of, refused


def open_timm(name: str) -> Source:
    """A pretrained model of timm by its name, or of a folder with config.json and weights, as timm saves it for a hub.

    Raises:
        ValueError: In one line, without timm and PyTorch, for an unknown name, and for weights that cannot be had.
    """
    try:
        import timm
        import torch
    except Exception as error:  # not an ImportError alone: torchvision raises others where it does not fit PyTorch
        reason = " ".join(str(error).split())[:200]
        raise refused(f"timm:{name}", f"and timm cannot be imported ({reason})", "after pip install timm") from None
    folder = Path(name).expanduser()
    try:
        model = timm.create_model(f"local-dir:{folder}" if folder.is_dir() else name, pretrained=True).eval()
    except Exception as error:  # of timm, PyTorch, huggingface_hub and what they use
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise refused(f"timm:{name}", f"which timm cannot make ({reason})", "a model of timm with weights, or its folder") from None
    if not model.num_classes:
        raise refused(f"timm:{name}", "which has no classes", "a classifier")
    arrays = ((key, value.detach().float().numpy()) for key, value in model.state_dict().items())
    settings = model.pretrained_cfg
    fingerprint = fingerprint_of(arrays, settings.get("architecture") or name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, lock = model.to(device), threading.Lock()

    def logits(images):
        with lock, torch.inference_mode():
            tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1))).to(device)
            return model(tensor).float().cpu().numpy()

    channels, *size = settings.get("input_size") or (3, None, None)
    names = settings.get("label_names")
    known = {
        "class_names": list(names) if names else None,
        "mean": listed(settings.get("mean")),
        "std": listed(settings.get("std")),
    }
    return Source(logits, (*size, channels), model.num_classes, fingerprint, **known)


def listed(values):
    return None if values is None else [float(value) for value in values]
