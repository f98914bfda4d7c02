"""Names and settings of transformers' SigLIP: the image tower of SigLIP and of SigLIP 2 at a fixed size.

`SiglipVisionModel` pools by attention. `SiglipForImageClassification` takes the mean of the patches and has no use for the
attention pooling. Of a `SiglipModel` the image tower is read.
"""

import re

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

CLASSES = {"siglip_vision_model": "SiglipVision", "siglip": "Siglip"}
PROCESSORS = dict.fromkeys(CLASSES, "SiglipImageProcessor")
NORMALISATION = dict.fromkeys(CLASSES, ([0.5] * 3, [0.5] * 3))
UNUSED = r"text_model\..*|logit_scale|logit_bias|.*embeddings\.position_ids"

# `torch.nn.MultiheadAttention` has queries, keys and values in one tensor.
PACKED = {f".in_proj_{leaf}": (f".q_proj.{leaf}", f".kv_proj.{leaf}") for leaf in ("weight", "bias")}
NAMES = {
    "encoder/projection": "embeddings.patch_embedding",
    "norm": "post_layernorm",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attention/projection": "self_attn.out_proj",
    "mlp/fc1": "mlp.fc1",
    "mlp/fc2": "mlp.fc2",
    "pool/query": "head.attention.q_proj",
    "pool/key_value": "head.attention.kv_proj",
    "pool/projection": "head.attention.out_proj",
    "pool/norm": "head.layernorm",
    "pool/mlp/fc1": "head.mlp.fc1",
    "pool/mlp/fc2": "head.mlp.fc2",
}
VARIABLES = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}


def table(config: ViTConfig, prefix: str) -> list[Row]:
    """The rows of all weights; `prefix` is that of all names but the classifier's."""
    rows = []
    for path, shape in config.weight_shapes.items():
        match = re.match(r"block_(\d+)/(.*)", path)
        block, inner = (f"{prefix}encoder.layers.{match[1]}.", match[2]) if match else (prefix, path)
        layer, variable = inner.rsplit("/", 1)
        leaf = VARIABLES.get(variable)
        if path == "encoder/position":
            rows.append(Row(path, shape, (f"{prefix}embeddings.position_embedding.weight",), shape[1:], (0, 1)))
        elif path == "pool/probe":
            rows.append(Row(path, shape, (f"{prefix}head.probe",), (1, *shape), (0, 1, 2)))
        elif layer == "attention/qkv":
            rows.append(torch_row(config, path, shape, tuple(f"{block}self_attn.{part}_proj.{leaf}" for part in "qkv")))
        else:
            rows.append(
                torch_row(config, path, shape, f"classifier.{leaf}" if layer == "head" else f"{block}{NAMES[layer]}.{leaf}")
            )
    return rows


def read_config(settings: dict, shapes: dict, kind: str) -> tuple[ViTConfig, list[Row], str]:
    """The `ViTConfig`, the rows and a pattern of unused tensors, from config.json and the tensors' shapes."""
    tower = read_setting(settings, "vision_config", dict, {}) if kind == "siglip" else settings

    def get(name, types, default):
        return read_setting(tower, name, types, default)

    prefix = "vision_model." if any(name.startswith("vision_model.") for name in shapes) else ""
    patches = f"{prefix}embeddings.patch_embedding.weight"
    check_rank(shapes, patches, 4, CLASSES[kind])
    width, channels, *patch = shapes[patches]
    layers = {match[1] for match in (re.match(rf"{prefix}encoder\.layers\.(\d+)\.", name) for name in shapes) if match}
    for name, given, found in (
        ("hidden_size", get("hidden_size", int, 768), width),
        ("num_channels", get("num_channels", int, 3), channels),
        ("patch_size", as_pair("patch_size", tower.get("patch_size") or 16), tuple(patch)),
        ("num_hidden_layers", get("num_hidden_layers", int, 12), len(layers)),
    ):
        check_found(name, given, found)
    classes = shapes["classifier.weight"][0] if "classifier.weight" in shapes else 0
    image = as_pair("image_size", tower.get("image_size") or 224)
    config = ViTConfig(
        image_size=tuple(side // p * p for side, p in zip(image, patch, strict=True)),
        channels=channels,
        patch_size=tuple(patch),
        width=width,
        depth=len(layers),
        num_heads=get("num_attention_heads", int, 12),
        mlp_dim=get("intermediate_size", int, 3072),
        num_classes=classes,
        pool="map" if not classes and get("vision_use_head", bool, True) else "gap",
        mlp=read_activation(get("hidden_act", str, "gelu_pytorch_tanh")),
        norm_epsilon=float(get("layer_norm_eps", (int, float), 1e-6)),
    )
    return config, table(config, prefix), UNUSED if config.pool == "map" else rf"{UNUSED}|{prefix}head\..*"


def describe(config: ViTConfig) -> dict:
    """The settings of transformers for a `ViTConfig`.

    Raises:
        ValueError: For a field that transformers cannot hold.
    """
    target = "SigLIP of transformers"
    plain = {"stem": "patch", "qk_norm": False, "attention_norm": False, "mlp_norm": False, "pre_norm": False}
    plain |= {"norm_after_pool": False, "use_bias": True, "qkv_bias": True, "pre_logits_dim": 0, "layer_scale": 0.0}
    plain |= {"block": "serial", "rms_norm": False, "final_norm": True, "key_bias": True, "pool_heads": 0, "pool_mlp_dim": 0}
    if config.has_class_token:
        raise cannot_hold(target, config, "class_token", "False")
    refuse_unless(target, config, registers=0, mlp=("gelu", "gelu_tanh", "gelu_quick"), **plain)
    if (config.pool == "map") != (not config.num_classes):
        raise cannot_hold(target, config, "pool", "gap with classes, map without")
    if config.position == "none":
        raise cannot_hold(target, config, "position", "learned")
    if config.image_size[0] != config.image_size[1] or config.patch_size[0] != config.patch_size[1]:
        raise cannot_hold(target, config, "image_size", "squares, with square patches")
    tower = {
        "model_type": "siglip_vision_model",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "image_size": config.image_size[0],
        "patch_size": config.patch_size[0],
        "num_channels": config.channels,
        # The one that SigLIP has, of two names for the same approximation.
        "hidden_act": "gelu_pytorch_tanh" if config.mlp == "gelu_tanh" else name_activation(config.mlp),
        "layer_norm_eps": config.norm_epsilon,
        "vision_use_head": config.pool == "map",
        "dtype": "float32",
    }
    if config.pool == "map":
        return {"architectures": ["SiglipVisionModel"], **tower}
    return {"model_type": "siglip", "architectures": ["SiglipForImageClassification"], "vision_config": tower, "dtype": "float32"}


def place(config: ViTConfig, weights: dict, kind: str) -> tuple[ViTConfig, dict]:
    """The model with positions where transformers holds them: in a table."""
    return place_prefix(config, weights, "none")


def save_table(config: ViTConfig, kind: str) -> tuple[list[Row], dict]:
    """The rows of all weights, and the tensors that belong to the model even if unused."""
    return table(config, "vision_model." if kind == "siglip" else ""), {}
