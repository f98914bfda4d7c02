"""Names and settings of transformers' ViT, DeiT, DINOv2 and DINOv2 with registers.

Tensor names are those in the files, which are the same in transformers 4 and 5.
"""

import re

import numpy as np

from keras_vit.checks import as_pair
from keras_vit.model.config import ViTConfig
from keras_vit.weights.prefix import place_prefix
from keras_vit.weights.rows import Row, torch_row
from keras_vit.weights.settings import (
    cannot_hold,
    check_found,
    check_rank,
    name_activation,
    read_activation,
    read_setting,
    refuse_unless,
)

PREFIXES = {"vit": "vit", "deit": "deit", "dinov2": "dinov2", "dinov2_with_registers": "dinov2_with_registers"}
CLASSES = {"vit": "ViT", "deit": "DeiT", "dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}
PROCESSORS = {"vit": "ViTImageProcessor", "deit": "DeiTImageProcessor"}
PROCESSORS |= {"dinov2": "BitImageProcessor", "dinov2_with_registers": "BitImageProcessor"}
# Of released checkpoints, for folders without a preprocessor_config.json.
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
NORMALISATION = {"vit": ([0.5] * 3, [0.5] * 3), "deit": IMAGENET, "dinov2": IMAGENET, "dinov2_with_registers": IMAGENET}
UNUSED = r"(.*\.)?(embeddings\.mask_token|embeddings\.position_ids)"  # needed by pretraining only

QKV = ("query", "key", "value")
COMMON = {
    "encoder/projection": "embeddings.patch_embeddings.projection",
    "encoder/class_token": "embeddings.cls_token",
    "encoder/position": "embeddings.position_embeddings",
    "norm": "layernorm",
    "pre_logits": "pooler.dense",
}
BLOCK = {"attention/projection": "attention.output.dense"}
VIT_BLOCK = {"norm1": "layernorm_before", "norm2": "layernorm_after", "mlp/fc1": "intermediate.dense", "mlp/fc2": "output.dense"}
DINO_BLOCK = {"norm1": "norm1", "norm2": "norm2", "mlp/fc1": "mlp.fc1", "mlp/fc2": "mlp.fc2"}
DINO_BLOCK |= {"scale1": "layer_scale1", "scale2": "layer_scale2"}
GATED = {"mlp/fc1": "mlp.weights_in", "mlp/fc2": "mlp.weights_out"}
VARIABLES = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}


def table(config: ViTConfig, kind: str, prefix: str) -> list[Row]:
    """The rows of all weights.

    Args:
        config: The `ViTConfig`.
        kind: A model type of `CLASSES`.
        prefix: Prefix of all names but the head's: `vit.` in a classifier, nothing in a bare model.
    """
    block = BLOCK | (VIT_BLOCK if kind in ("vit", "deit") else DINO_BLOCK | (GATED if config.mlp == "swiglu" else {}))
    heads = {"head": "classifier"}
    if config.distillation:
        heads = {"head": "cls_classifier", "head_dist": "distillation_classifier"}
    rows = []
    for path, shape in config.weight_shapes.items():
        layer, variable = path.rsplit("/", 1) if "/" in path else (path, "")
        match = re.match(r"block_(\d+)/(.*)", layer)
        if path in COMMON:
            names = prefix + COMMON[path]
        elif path == "encoder/register_tokens":
            names = prefix + ("embeddings.distillation_token" if kind == "deit" else "embeddings.register_tokens")
        elif layer in heads:
            names = f"{heads[layer]}.{VARIABLES[variable]}"
        elif not match:
            names = f"{prefix}{COMMON[layer]}.{VARIABLES[variable]}"
        elif match[2] == "attention/qkv":
            names = tuple(f"{prefix}encoder.layer.{match[1]}.attention.attention.{part}.{VARIABLES[variable]}" for part in QKV)
        else:
            leaf = "lambda1" if match[2].startswith("scale") else VARIABLES[variable]
            names = f"{prefix}encoder.layer.{match[1]}.{block[match[2]]}.{leaf}"
        rows.append(torch_row(config, path, shape, names))
    return rows


def gated_dim(width: int, ratio: float) -> int:
    """Hidden size of DINOv2's gated MLP: two thirds of the plain one's, rounded up to a multiple of 8."""
    return (int(int(width * ratio) * 2 / 3) + 7) // 8 * 8


def read_config(settings: dict, shapes: dict, kind: str) -> tuple[ViTConfig, list[Row], str]:
    """The `ViTConfig`, the rows and a pattern of unused tensors, from config.json and the tensors' shapes."""

    def get(name, types, default):
        return read_setting(settings, name, types, default)

    dino = kind.startswith("dinov2")
    prefix = f"{PREFIXES[kind]}." if any(name.startswith(f"{PREFIXES[kind]}.") for name in shapes) else ""
    patches = f"{prefix}embeddings.patch_embeddings.projection.weight"
    check_rank(shapes, patches, 4, CLASSES[kind])
    width, channels, *patch = shapes[patches]
    layers = {match[1] for match in (re.search(r"encoder\.layer\.(\d+)\.", name) for name in shapes) if match}
    for name, given, found in (
        ("hidden_size", get("hidden_size", int, 768), width),
        ("num_channels", get("num_channels", int, 3), channels),
        ("patch_size", as_pair("patch_size", settings.get("patch_size") or (14 if dino else 16)), tuple(patch)),
        ("num_hidden_layers", get("num_hidden_layers", int, 12), len(layers)),
    ):
        check_found(name, given, found)
    distilled = "cls_classifier.weight" in shapes
    head = shapes.get("cls_classifier.weight" if distilled else "classifier.weight")
    classes = head[0] if head else 0
    labels = settings.get("id2label")
    listed = len(labels) if isinstance(labels, dict) else settings.get("num_labels")
    if classes and listed is not None:
        check_found("id2label", f"{listed} classes", f"{classes} classes")
    mlp, mlp_dim = read_activation(get("hidden_act", str, "gelu")), get("intermediate_size", int, 4 * width)
    if dino:
        ratio = get("mlp_ratio", (int, float), 4)
        gated = get("use_swiglu_ffn", bool, False)
        mlp, mlp_dim = ("swiglu", gated_dim(width, ratio)) if gated else (mlp, int(width * ratio))
        if not get("apply_layernorm", bool, True):
            raise ValueError("config.json: apply_layernorm: received False; allowed: True")
    pooler = get("pooler_act", str, "tanh")
    pre_logits = shapes[f"{prefix}pooler.dense.weight"][0] if f"{prefix}pooler.dense.weight" in shapes else 0
    if pre_logits and pooler != "tanh":
        raise ValueError(f"config.json: pooler_act: received {pooler!r}; allowed: tanh")
    image = as_pair("image_size", settings.get("image_size") or 224)
    config = ViTConfig(
        image_size=tuple(side // p * p for side, p in zip(image, patch, strict=True)),
        channels=channels,
        patch_size=tuple(patch),
        width=width,
        depth=len(layers),
        num_heads=get("num_attention_heads", int, 12),
        mlp_dim=mlp_dim,
        num_classes=classes,
        pool="cls_gap" if dino and classes else "cls",
        registers=get("num_register_tokens", int, 4) if kind == "dinov2_with_registers" else int(kind == "deit"),
        distillation=distilled,
        prefix_positions="all" if kind == "deit" else "class",
        mlp=mlp,
        layer_scale=float(get("layerscale_value", (int, float), 1.0)) if dino else 0.0,
        norm_epsilon=float(get("layer_norm_eps", (int, float), 1e-6 if dino else 1e-12)),
        pre_logits_dim=pre_logits,
        qkv_bias=get("qkv_bias", bool, True),
    )
    return config, table(config, kind, prefix), UNUSED


def describe(config: ViTConfig) -> dict:
    """The settings of transformers for a `ViTConfig`.

    Raises:
        ValueError: For a field that transformers cannot hold.
    """
    common = {"stem": "patch", "qk_norm": False, "attention_norm": False, "mlp_norm": False, "pre_norm": False}
    common |= {"norm_after_pool": False, "final_norm": True, "rms_norm": False, "block": "serial"}
    common |= {"key_bias": True, "use_bias": True}
    refuse_unless("transformers", config, pool=("cls", "cls_gap"), **common)
    dino = config.layer_scale > 0 or config.mlp == "swiglu" or config.pool == "cls_gap" or config.registers > 1
    settings = {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "image_size": list(config.image_size),
        "patch_size": list(config.patch_size),
        "num_channels": config.channels,
        "layer_norm_eps": config.norm_epsilon,
        "qkv_bias": config.qkv_bias,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": "gelu" if config.mlp == "swiglu" else name_activation(config.mlp),
        "dtype": "float32",
    }
    if dino:
        kind = "dinov2_with_registers" if config.registers else "dinov2"
        target = f"{CLASSES[kind]} of transformers"
        refuse_unless(target, config, distillation=False, pre_logits_dim=0)
        if not config.layer_scale:
            raise cannot_hold(target, config, "layer_scale", "a number above 0")
        if (config.num_classes and config.pool == "cls") or (not config.num_classes and config.pool == "cls_gap"):
            raise cannot_hold(target, config, "pool", "cls_gap with classes, cls without")
        gated = config.mlp == "swiglu"
        ratio = round(config.mlp_dim * (1.5 if gated else 1) / config.width)
        hidden = gated_dim(config.width, ratio) if gated else config.width * ratio
        if hidden != config.mlp_dim:
            raise cannot_hold(target, config, "mlp_dim", f"sizes such as {hidden}")
        if config.image_size[0] != config.image_size[1] or config.grid_size[0] != config.grid_size[1]:
            raise cannot_hold(target, config, "image_size", "squares, with square patches")
        settings |= {"mlp_ratio": ratio, "use_swiglu_ffn": gated, "layerscale_value": config.layer_scale}
        settings |= {"use_mask_token": False} if kind == "dinov2" else {"num_register_tokens": config.registers}
        name = f"{CLASSES[kind]}{'ForImageClassification' if config.num_classes else 'Model'}"
        return {"model_type": kind, "architectures": [name], **settings}
    kind = "deit" if config.registers else "vit"
    if config.pre_logits_dim and config.num_classes:
        raise cannot_hold("transformers", config, "pre_logits_dim", "0, or any with num_classes 0")
    settings |= {"intermediate_size": config.mlp_dim}
    if config.pre_logits_dim:
        settings |= {"pooler_output_size": config.pre_logits_dim, "pooler_act": "tanh"}
    if config.distillation and not config.num_classes:
        raise cannot_hold("transformers", config, "num_classes", "at least 1 with distillation, which averages logits")
    suffix = "ForImageClassificationWithTeacher" if config.distillation else "ForImageClassification"
    name = f"{CLASSES[kind]}{suffix if config.num_classes else 'Model'}"
    return {"model_type": kind, "architectures": [name], **settings}


def place(config: ViTConfig, weights: dict, kind: str) -> tuple[ViTConfig, dict]:
    """The model with positions where transformers holds them: in a table, for the class token or for all tokens."""
    if config.position == "none":
        raise cannot_hold("transformers", config, "position", "learned")
    return place_prefix(config, weights, "all" if kind == "deit" else "class")


def save_table(config: ViTConfig, kind: str) -> tuple[list[Row], dict]:
    """The rows of all weights, and the tensors that belong to the model even if unused."""
    prefix = f"{PREFIXES[kind]}." if config.num_classes else ""
    further = {}
    if kind == "dinov2_with_registers":
        further = {f"{prefix}embeddings.mask_token": np.zeros((1, config.width), "float32")}
    return table(config, kind, prefix), further
