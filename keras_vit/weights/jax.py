"""The .npz files of vision_transformer (AugReg, SAM) and big_vision (also SigLIP's image tower).

Both use the tanh approximation of GELU, epsilon 1e-6 and pixels from -1 to 1. Their names differ, and big_vision adds the positions
before it adds the class token.
"""

import json
import re
import zipfile
from pathlib import Path

import numpy as np

from keras_vit.archives import BFLOAT16, open_arrays
from keras_vit.files import atomic_path, plain_json
from keras_vit.model.config import ViTConfig
from keras_vit.model.limits import MAX_DEPTH
from keras_vit.weights.checkpoint import Checkpoint, wrong
from keras_vit.weights.prefix import place_prefix
from keras_vit.weights.rows import Row, check_tensors, save_rows, weight_reader
from keras_vit.weights.settings import cannot_hold, check_rank, read_moments, refuse_unless, square_side

MAX_EXPANSION, SMALL = 16, 2**26  # of a compressed file, and bytes of one that may expand more: trained weights hardly shrink
PREFIXES = ("", "params/", "opt/target/", "img/", "params/img/")
UNUSED = r"(params/)?(t|b|bias_init|txt/.*)|opt/(?!target/).*"  # SigLIP's temperature, bias and text tower, an optimizer's state

LEAVES = {"gamma": "scale", "beta": "bias", "kernel": "kernel", "bias": "bias"}
QKV = ("query", "key", "value")
# The names of a block's parts; flax numbers them in the order of their use.
ATTENTION = "MultiHeadDotProductAttention"
BLOCKS = {
    "vision_transformer": {"norm1": "LayerNorm_0", "attention": f"{ATTENTION}_1", "norm2": "LayerNorm_2", "mlp": "MlpBlock_3"},
    "big_vision": {"norm1": "LayerNorm_0", "attention": f"{ATTENTION}_0", "norm2": "LayerNorm_1", "mlp": "MlpBlock_0"},
}
POSITION = {"vision_transformer": "Transformer/posembed_input/pos_embedding", "big_vision": "pos_embedding"}


def table(config: ViTConfig, flavour: str, prefix: str = "") -> list[Row]:
    """The rows of all weights.

    Args:
        config: The `ViTConfig`.
        flavour: A key of `BLOCKS`.
        prefix: Prefix of all names.
    """
    block, heads, head_dim, width = BLOCKS[flavour], config.num_heads, config.head_dim, config.width
    rows = []
    for path, shape in config.weight_shapes.items():
        layer, variable = path.rsplit("/", 1) if "/" in path else (path, "")
        leaf, part = LEAVES.get(variable), shape
        where, _, inner = layer.partition("/")
        if where.startswith("block_"):
            inner, _, rest = inner.partition("/")
            base = f"Transformer/encoderblock_{where[6:]}/{block[inner]}"
            inner = f"{inner}/{rest}" if rest else inner
        else:
            base = "MAPHead_0"
        names = [base]
        if path == "encoder/class_token":
            names = ["cls"]
        elif path == "encoder/position":
            names = [POSITION[flavour]]
        elif path == "pool/probe":
            names, part = [f"{base}/probe"], (1, 1, width)
        elif layer == "encoder/projection":
            names, part = [f"embedding/{leaf}"], (*config.patch_size, config.channels, width) if leaf == "kernel" else shape
        elif layer == "norm":
            names = [f"Transformer/encoder_norm/{leaf}"]
        elif layer in ("pre_logits", "head"):
            names = [f"{layer}/{leaf}"]
        elif inner in ("attention/qkv", "query", "key_value"):
            attention = base if where.startswith("block_") else f"{base}/{ATTENTION}_0"
            parts = {"attention/qkv": QKV, "query": QKV[:1], "key_value": QKV[1:]}[inner]
            names = [f"{attention}/{part}/{leaf}" for part in parts]
            part = (width, heads, head_dim) if leaf == "kernel" else (heads, head_dim)
        elif inner in ("attention/projection", "projection"):
            attention = base if where.startswith("block_") else f"{base}/{ATTENTION}_0"
            names, part = [f"{attention}/out/{leaf}"], (heads, head_dim, width) if leaf == "kernel" else shape
        elif inner.startswith("mlp/"):
            mlp = base if where.startswith("block_") else f"{base}/MlpBlock_0"
            names = [f"{mlp}/Dense_{0 if inner.endswith('fc1') else 1}/{leaf}"]
        else:  # norm1 and norm2 of a block, the norm of the pooling
            names = [f"{base}/{leaf}" if where.startswith("block_") else f"{base}/LayerNorm_0/{leaf}"]
        rows.append(Row(path, shape, tuple(prefix + name for name in names), tuple(part), tuple(range(len(part)))))
    return rows


def read_config(shapes: dict, settings: dict) -> tuple[ViTConfig, str]:
    """The `ViTConfig` and the flavour of a file, from the shapes of its arrays (names without prefix).

    Args:
        shapes: Names and shapes.
        settings: The settings in the comment of a file that this library wrote.
    """

    def query(flavour):
        return f"Transformer/encoderblock_0/{BLOCKS[flavour]['attention']}/query/kernel"

    flavour = "vision_transformer" if query("vision_transformer") in shapes else "big_vision"
    first = query(flavour)
    hidden = f"Transformer/encoderblock_0/{BLOCKS[flavour]['mlp']}/Dense_0/kernel"
    for name, rank in (("embedding/kernel", 4), (first, 3), (hidden, 2)):
        check_rank(shapes, name, rank, "a ViT of vision_transformer or big_vision")
    *patch, channels, width = shapes["embedding/kernel"]
    class_token = "cls" in shapes
    pool = "map" if "MAPHead_0/probe" in shapes else "cls" if class_token else "gap"
    length = shapes[POSITION[flavour]][1] if len(shapes.get(POSITION[flavour], ())) == 3 else None
    placed = class_token and flavour == "vision_transformer"
    size = settings.get("image_size")
    if not size:
        side = square_side(length - placed) if length else None
        if not side:
            raise ValueError(
                f"checkpoint: received {length or 'no'} positions, no square grid; allowed: a file with the image size"
            )
        size = [side * p for p in patch]
    config = ViTConfig(
        image_size=size,
        channels=channels,
        patch_size=tuple(patch),
        width=width,
        depth=len({match[1] for match in (re.match(r"Transformer/encoderblock_(\d+)/", name) for name in shapes) if match}),
        num_heads=shapes[first][1],
        mlp_dim=shapes[hidden][1],
        num_classes=shapes["head/bias"][0] if "head/bias" in shapes else 0,
        pool=pool,
        class_token=class_token if class_token and pool != "cls" else None,
        position="learned" if length else settings.get("position", "sincos2d"),
        prefix_positions="class" if placed or not class_token else "none",
        mlp="gelu_tanh",
        pre_logits_dim=shapes["pre_logits/bias"][0] if "pre_logits/bias" in shapes else 0,
    )
    return config, flavour


def open_jax(path: Path) -> Checkpoint:
    """Opens an .npz file."""
    try:
        archive = open_arrays(path)
        if archive.bytes > max(MAX_EXPANSION * path.stat().st_size, SMALL):
            raise ValueError(f"its arrays have {archive.bytes:,} bytes; allowed: {MAX_EXPANSION} times those of the file")
    except ValueError as error:
        raise wrong(path, "an intact .npz file of arrays", error) from None
    stored, settings = archive.shapes, settings_in(archive.comment)
    prefix = next((p for p in PREFIXES if f"{p}embedding/kernel" in stored), "")
    stored = {name: shape for name, shape in stored.items() if not re.fullmatch(UNUSED, name)}
    # If big_vision scans over the blocks, one array holds a tensor of all blocks.
    shapes, places = {}, {}
    for name, shape in stored.items():
        match = re.fullmatch(rf"({re.escape(prefix)}Transformer/)encoderblock/(.*)", name)
        if match and not (shape and 1 <= shape[0] <= MAX_DEPTH):
            raise wrong(path, f"{name} with a row for each of 1 to {MAX_DEPTH} blocks", f"it has shape {shape}")
        for block in range(shape[0]) if match else [None]:
            full = name if block is None else f"{match[1]}encoderblock_{block}/{match[2]}"
            shapes[full], places[full] = shape if block is None else shape[1:], (name, block)
    config, flavour = read_config({name.removeprefix(prefix): shape for name, shape in shapes.items()}, settings)
    rows = table(config, flavour, prefix)
    check_tensors(str(path), rows, shapes)

    def read(name):
        name, block = places[name]
        try:
            array = archive.read(name)
        except ValueError as error:
            raise wrong(path, "an intact .npz file of arrays", error) from None
        if array.dtype == BFLOAT16:  # the upper half of a float32
            array = (array.view("uint16").astype("uint32") << 16).view("float32")
        return array if block is None else array[block]

    names = settings.get("class_names")
    names = names if isinstance(names, list) and len(names) == config.num_classes else None
    half = [0.5] * config.channels  # pixels from -1 to 1
    moments = read_moments(settings.get("mean", half), settings.get("std", half), config.channels) or (half, half)
    return Checkpoint("jax", path, config, *moments, names, weight_reader(rows, read))


def settings_in(comment: bytes) -> dict:
    """The settings in the comment of a file that this library wrote."""
    try:
        settings = plain_json(comment)["keras_vit"]
    except (ValueError, KeyError, TypeError):
        settings = {}
    return settings if isinstance(settings, dict) else {}


def save_jax(config: ViTConfig, weights: dict, path: Path, mean: list, std: list, class_names: list | None) -> None:
    """Writes an .npz file, with the names of vision_transformer if the class token has a position, else of big_vision.

    The archive's comment holds mean, std, class names and the image size, which arrays for non-square images do not reveal.
    """
    target = "vision_transformer and big_vision"
    plain = {"stem": "patch", "registers": 0, "mlp": "gelu_tanh", "layer_scale": 0.0, "qk_norm": False, "norm_epsilon": 1e-6}
    plain |= {"block": "serial", "rms_norm": False, "final_norm": True, "key_bias": True, "attention_norm": False}
    plain |= {"mlp_norm": False, "rotary": "none", "pool_heads": 0, "pool_mlp_dim": 0}
    plain |= {"pre_norm": False, "norm_after_pool": False, "qkv_bias": True, "use_bias": True, "pool": ("cls", "gap", "map")}
    refuse_unless(target, config, **plain)
    if config.position == "none":
        raise cannot_hold(target, config, "position", "learned, sincos2d")
    if config.has_class_token and config.pool != "cls":
        raise cannot_hold(target, config, "class_token", "True only with pool cls")
    if path.suffix != ".npz":
        raise ValueError(f"path: received {str(path)!r}; allowed: a name that ends in .npz")
    if config.position != "sincos2d":
        config, weights = place_prefix(config, weights, "class" if config.num_prefix_positions else "none")
    flavour = "vision_transformer" if config.position == "learned" and config.num_prefix_positions else "big_vision"
    tensors = save_rows(table(config, flavour), weights)
    settings = {"image_size": list(config.image_size), "mean": mean, "std": std}
    if class_names and len(json.dumps(class_names)) < 60_000:  # a comment has 65,535 bytes
        settings["class_names"] = list(class_names)
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as file:  # given a name, savez would add a suffix
            np.savez(file, **tensors)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.comment = json.dumps({"keras_vit": settings}).encode()
