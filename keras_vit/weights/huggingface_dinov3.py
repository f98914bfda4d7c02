"""Names and settings of transformers' `DINOv3ViTModel`.

Tensor names are those in the files, which are the same in transformers 4 and 5.
"""

import re

import numpy as np

from keras_vit.checks import as_pair
from keras_vit.model.config import ViTConfig
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

CLASSES = {"dinov3_vit": "DINOv3ViT"}
PROCESSORS = {"dinov3_vit": "DINOv3ViTImageProcessor"}
NORMALISATION = {"dinov3_vit": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])}

NAMES = {
    "encoder/projection": "embeddings.patch_embeddings",
    "encoder/class_token": "embeddings.cls_token",
    "encoder/register_tokens": "embeddings.register_tokens",
    "norm": "norm",
    "norm1": "norm1",
    "norm2": "norm2",
    "attention/projection": "attention.o_proj",
    "mlp/fc1": "mlp.up_proj",
    "mlp/fc2": "mlp.down_proj",
    "scale1": "layer_scale1",
    "scale2": "layer_scale2",
}
VARIABLES = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}


def table(config: ViTConfig) -> list[Row]:
    """The rows of all weights."""
    rows = []
    for path, shape in config.weight_shapes.items():
        match = re.match(r"block_(\d+)/(.*)", path)
        block, inner = (f"layer.{match[1]}.", match[2]) if match else ("", path)
        layer, variable = inner.rsplit("/", 1)
        leaf = VARIABLES.get(variable)
        if inner in NAMES:
            names = NAMES[inner]
        elif inner in ("attention/query_bias", "attention/value_bias"):
            names = f"{block}attention.{variable[0]}_proj.bias"
        elif layer == "attention/qkv":
            names = tuple(f"{block}attention.{part}_proj.{leaf}" for part in "qkv")
        elif layer == "mlp/fc1" and config.mlp == "swiglu":
            names = tuple(f"{block}mlp.{part}_proj.{leaf}" for part in ("gate", "up"))
        else:
            names = f"{block}{NAMES[layer]}.{'lambda1' if layer.startswith('scale') else leaf}"
        rows.append(torch_row(config, path, shape, names))
    return rows


def read_config(settings: dict, shapes: dict, kind: str) -> tuple[ViTConfig, list[Row], str]:
    """The `ViTConfig`, the rows and a pattern of unused tensors, from config.json and the tensors' shapes."""

    def get(name, types, default):
        return read_setting(settings, name, types, default)

    check_rank(shapes, "embeddings.patch_embeddings.weight", 4, CLASSES[kind])
    width, channels, *patch = shapes["embeddings.patch_embeddings.weight"]
    layers = {match[1] for match in (re.match(r"layer\.(\d+)\.", name) for name in shapes) if match}
    for name, given, found in (
        ("hidden_size", get("hidden_size", int, 384), width),
        ("num_channels", get("num_channels", int, 3), channels),
        ("patch_size", as_pair("patch_size", settings.get("patch_size") or 16), tuple(patch)),
        ("num_hidden_layers", get("num_hidden_layers", int, 12), len(layers)),
    ):
        check_found(name, given, found)
    for name in ("proj_bias", "mlp_bias"):
        if not get(name, bool, True):
            raise ValueError(f"config.json: {name}: received False; allowed: True")
    biases = get("query_bias", bool, True), get("key_bias", bool, False), get("value_bias", bool, True)
    if biases[0] != biases[2] or (biases[1] and not biases[0]):
        raise ValueError(f"config.json: query_bias, key_bias, value_bias: received {biases}; allowed: all, none, all but key_bias")
    gated, mlp = get("use_gated_mlp", bool, False), get("hidden_act", str, "gelu")
    if gated and mlp != "silu":
        raise ValueError(f"config.json: hidden_act: received {mlp!r}; allowed: silu with use_gated_mlp")
    registers = get("num_register_tokens", int, 0)
    image = as_pair("image_size", settings.get("image_size") or 224)
    config = ViTConfig(
        image_size=tuple(side // p * p for side, p in zip(image, patch, strict=True)),
        channels=channels,
        patch_size=tuple(patch),
        width=width,
        depth=len(layers),
        num_heads=get("num_attention_heads", int, 6),
        mlp_dim=get("intermediate_size", int, 1536),
        num_classes=0,
        registers=registers,
        position="none",
        rotary="centered",
        rotary_base=float(get("rope_theta", (int, float), 100.0)),
        mlp="swiglu" if gated else read_activation(mlp),
        layer_scale=float(get("layerscale_value", (int, float), 1.0)),
        norm_epsilon=float(get("layer_norm_eps", (int, float), 1e-5)),
        qkv_bias=biases[0],
        key_bias=biases[1] or not biases[0],
    )
    # The mask token is needed by pretraining only; a model without registers has an empty tensor of them.
    unused = r"embeddings\.mask_token" if registers else r"embeddings\.(mask_token|register_tokens)"
    return config, table(config), unused


def describe(config: ViTConfig) -> dict:
    """The settings of transformers for a `ViTConfig`.

    Raises:
        ValueError: For a field that transformers cannot hold.
    """
    target = "DINOv3ViTModel of transformers"
    plain = {"stem": "patch", "qk_norm": False, "attention_norm": False, "mlp_norm": False, "pre_norm": False}
    plain |= {"norm_after_pool": False, "use_bias": True, "pre_logits_dim": 0, "distillation": False}
    plain |= {"block": "serial", "rms_norm": False, "final_norm": True}
    refuse_unless(target, config, rotary="centered", position="none", pool="cls", num_classes=0, **plain)
    if not config.layer_scale:
        raise cannot_hold(target, config, "layer_scale", "a number above 0")
    return {
        "model_type": "dinov3_vit",
        "architectures": ["DINOv3ViTModel"],
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "image_size": list(config.image_size),
        "patch_size": list(config.patch_size),
        "num_channels": config.channels,
        "num_register_tokens": config.registers,
        "rope_theta": config.rotary_base,
        "layer_norm_eps": config.norm_epsilon,
        "layerscale_value": config.layer_scale,
        "query_bias": config.qkv_bias,
        "key_bias": config.qkv_bias and config.key_bias,
        "value_bias": config.qkv_bias,
        "use_gated_mlp": config.mlp == "swiglu",
        "hidden_act": "silu" if config.mlp == "swiglu" else name_activation(config.mlp),
        "dtype": "float32",
    }


def place(config: ViTConfig, weights: dict, kind: str) -> tuple[ViTConfig, dict]:
    """The model with positions where transformers holds them: it has none here."""
    return config, weights


def save_table(config: ViTConfig, kind: str) -> tuple[list[Row], dict]:
    """The rows of all weights, and the tensors that belong to the model even if unused."""
    further = {"embeddings.mask_token": np.zeros((1, 1, config.width), "float32")}
    if not config.registers:
        further["embeddings.register_tokens"] = np.zeros((1, 0, config.width), "float32")
    return table(config), further
