"""Checkpoints of timm: folders with a config.json, and safetensors files.

What their tensors are called, and what the architecture's name tells, stands in a file for each class of timm: `timm_vit.py` and
`timm_eva.py`.
"""

import json
from pathlib import Path

from safetensors.numpy import save

from keras_vit.files import atomic_folder, atomic_path, parse_json, read_json, write_json
from keras_vit.model.config import ViTConfig
from keras_vit.weights import timm_eva, timm_vit
from keras_vit.weights.checkpoint import Checkpoint
from keras_vit.weights.prefix import place_prefix
from keras_vit.weights.rows import check_tensors, save_rows, weight_reader
from keras_vit.weights.settings import check_found, read_moments, read_setting
from keras_vit.weights.tensors import join_rows, open_safetensors, opened, safetensors_files, split_rows

NORMALISATION = {
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "half": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
}


def open_timm(path: Path, architecture: str | None) -> Checkpoint:
    """Opens a folder with config.json and model.safetensors, or a safetensors file."""
    if path.is_dir():
        settings = read_json(path / "config.json", "checkpoint")
        shapes, read = open_safetensors(safetensors_files(path))
    else:
        shapes, read = open_safetensors({path: None})
        settings = file_settings(path)
    pretrained = read_setting(settings, "pretrained_cfg", dict, settings)
    architecture = architecture or settings.get("architecture")
    if not isinstance(architecture, str):
        raise ValueError(
            f"architecture: received none for {str(path)!r}, whose tensors do not tell heads and activation; "
            "allowed: a name of timm, such as architecture='vit_base_patch16_224'"
        )
    args = read_setting(settings, "model_args", dict, {})
    size = read_setting(pretrained, "input_size", list, ())
    names = timm_eva if timm_eva.is_eva(architecture) else timm_vit
    width = (shapes.get("patch_embed.proj.weight") or (0,))[0]
    shapes, read = split_rows(shapes, read, timm_vit.PACKED, lambda rows: rows - 3 * width)
    config, rows = names.read_config(shapes, architecture, args, tuple(size[1:]) if len(size) == 3 else None)
    classes = settings.get("num_classes", pretrained.get("num_classes"))
    if isinstance(classes, int):
        check_found("num_classes", classes, config.num_classes)
    check_tensors(str(path), rows, shapes, names.UNUSED)
    moments, notes = read_moments(pretrained.get("mean"), pretrained.get("std"), config.channels), ()
    if not moments:
        moments = NORMALISATION[names.normalisation(architecture)]
        notes = (f"mean and std: not in the file; taken for {architecture}: {moments[0]}, {moments[1]}",)
    labels = settings.get("label_names") or pretrained.get("label_names")
    labels = list(labels) if isinstance(labels, (list, tuple)) and len(labels) == config.num_classes else None
    return Checkpoint("timm", path, config, *moments, labels, weight_reader(rows, read), notes=notes)


def file_settings(path):
    """The settings in the metadata of a safetensors file that this library wrote; empty for other files."""
    with opened(path) as file:
        text = (file.metadata() or {}).get("timm")
    return parse_json(text, str(path), "checkpoint") if text else {}


def save_timm(config: ViTConfig, weights: dict, path: Path, mean: list, std: list, class_names: list | None) -> None:
    """Writes a folder for `timm.create_model("local-dir:PATH")`, or one file where `path` ends in .safetensors."""
    if config.position != "none":
        # In timm all prefix tokens have positions, or none has.
        all_have = 0 < config.num_prefix_positions == config.num_prefix_tokens
        config, weights = place_prefix(config, weights, "all" if all_have else "none")
        if config.distillation and not config.num_prefix_positions:
            config, weights = place_prefix(config, weights, "all")
    names = timm_eva if timm_eva.is_needed(config) else timm_vit
    architecture, args, rows = names.describe(config)
    settings = {
        "architecture": architecture,
        "num_classes": config.num_classes,
        "num_features": config.width,
        "global_pool": args.get("global_pool", "token"),
        "model_args": args,
        "pretrained_cfg": {
            "input_size": [config.channels, *config.image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": mean,
            "std": std,
            "num_classes": config.num_classes,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"] if config.distillation else "head",
        },
    }
    if class_names:
        settings["label_names"] = list(class_names)
    tensors = join_rows(save_rows(rows, weights), timm_vit.PACKED)
    if path.suffix == ".safetensors":
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(tensors, metadata={"format": "pt", "timm": json.dumps(settings)}))
        return
    with atomic_folder(path) as folder:
        (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
        write_json(folder / "config.json", settings)
