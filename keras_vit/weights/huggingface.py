"""Folders of transformers: config.json and safetensors, in one file or sharded.

What their tensors are called, and what their settings mean, stands in a file for each family: `huggingface_vit.py` (ViT, DeiT,
DINOv2), `huggingface_dinov3.py` and `huggingface_siglip.py`.
"""

from pathlib import Path

from safetensors.numpy import save

from keras_vit.files import atomic_folder, read_json, write_json
from keras_vit.model.config import ViTConfig
from keras_vit.weights import huggingface_dinov3, huggingface_siglip, huggingface_vit
from keras_vit.weights.checkpoint import Checkpoint
from keras_vit.weights.rows import check_tensors, save_rows, weight_reader
from keras_vit.weights.settings import read_moments, read_setting
from keras_vit.weights.tensors import join_rows, open_safetensors, safetensors_files, split_rows

FAMILIES = (huggingface_vit, huggingface_dinov3, huggingface_siglip)
KINDS = {kind: family for family in FAMILIES for kind in family.CLASSES}
# Those whose own library antialiases when it interpolates positions.
ANTIALIASED = ("dinov2_with_registers",)


def open_huggingface(path: Path) -> Checkpoint:
    """Opens a folder with config.json and safetensors."""
    settings = read_json(path / "config.json", "checkpoint")
    shapes, read = open_safetensors(safetensors_files(path))
    shapes, read = split_rows(shapes, read, huggingface_siglip.PACKED, lambda rows: rows // 3)
    kind = read_setting(settings, "model_type", str)
    if kind not in KINDS:
        raise ValueError(f"config.json: model_type: received {kind!r}; allowed: {', '.join(KINDS)}")
    config, rows, unused = KINDS[kind].read_config(settings, shapes, kind)
    check_tensors(str(path), rows, shapes, unused)
    processor, notes = path / "preprocessor_config.json", ()
    values = read_json(processor, "checkpoint") if processor.is_file() else {}
    moments = read_moments(values.get("image_mean"), values.get("image_std"), config.channels)
    if not moments:
        moments = KINDS[kind].NORMALISATION[kind]
        notes = (f"mean and std: no preprocessor_config.json; taken for {kind}: {moments[0]}, {moments[1]}",)
    if values.get("do_normalize") is False:
        moments, notes = ([0.0], [1.0]), ()
    labels = settings.get("id2label")
    names = None
    if config.num_classes and isinstance(labels, dict) and set(labels) == {str(index) for index in range(config.num_classes)}:
        names = [str(labels[str(index)]) for index in range(config.num_classes)]
        if names == [f"LABEL_{index}" for index in range(config.num_classes)]:  # the placeholders of transformers
            names = None
    return Checkpoint("huggingface", path, config, *moments, names, weight_reader(rows, read), kind in ANTIALIASED, notes)


def save_huggingface(config: ViTConfig, weights: dict, path: Path, mean: list, std: list, class_names: list | None) -> None:
    """Writes a folder for `from_pretrained`: config.json, preprocessor_config.json and model.safetensors."""
    if config.rotary != "none":
        family = huggingface_dinov3
    else:
        family = huggingface_siglip if config.pool in ("map", "gap") else huggingface_vit
    settings = family.describe(config)
    kind = settings["model_type"]
    config, weights = family.place(config, weights, kind)
    if config.num_classes:
        names = class_names or [f"LABEL_{index}" for index in range(config.num_classes)]
        settings["id2label"] = {str(index): label for index, label in enumerate(names)}
        settings["label2id"] = {label: index for index, label in enumerate(names)}
    rows, further = family.save_table(config, kind)
    tensors = join_rows(save_rows(rows, weights), huggingface_siglip.PACKED) | further
    height, width = config.image_size
    processor = {
        "image_processor_type": family.PROCESSORS[kind],
        "do_resize": True,
        "size": {"height": height, "width": width},
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
        "resample": 3,
    }
    with atomic_folder(path) as folder:
        (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
        write_json(folder / "config.json", settings)
        write_json(folder / "preprocessor_config.json", processor)
