"""Checkpoints of timm: `vit_*`, `deit_*`, `deit3_*`, with and without registers, CLIP's and SigLIP's image towers, DINOv2.

Tensors do not tell the number of heads, the activation, the epsilon or the pooling. These come from the architecture's name and
arguments (timm/models/vision_transformer.py and deit.py, version 1.0.31).
"""

import json
import re
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save

from keras_vit.checks import as_pair
from keras_vit.files import atomic_folder, atomic_path, parse_json, read_json, write_json
from keras_vit.model.config import ViTConfig
from keras_vit.weights.checkpoint import Checkpoint
from keras_vit.weights.prefix import place_prefix
from keras_vit.weights.rows import Row, check_tensors, save_rows, torch_row, weight_reader
from keras_vit.weights.settings import (
    cannot_hold,
    check_found,
    check_rank,
    read_moments,
    read_setting,
    refuse_unless,
    square_side,
)
from keras_vit.weights.tensors import open_safetensors, safetensors_files

# Attention heads by the size in an architecture's name.
HEADS = {"tiny": 3, "wee": 4, "xsmall": 4, "little": 5, "small": 6, "medium": 8, "mediumd": 8, "betwixt": 10, "base": 12}
HEADS |= {"so150m": 14, "so150m2": 13, "large": 16, "so400m": 16, "huge": 16, "giant": 16, "giantopt": 16, "gigantic": 16}
# The exceptions, by a pattern of size and rest of the name.
OTHER_HEADS = ((r"giant_patch14_(reg\d_)?(dinov2|tipsv2)", 24), (r"base_patch\d+_plus_.*", 14), (r"base_patch16_gap_224", 16))

# Parts of a name that change nothing, or only what the tensors show. All others are refused: `rope`, for example, changes the
# numbers but has no tensors.
PARTS = r"distilled|patch\d+|plus|clip|quickgelu|siglip|gap|map|reg\d+|dinov2|tipsv2|miil|36x1|\d+"
TANH = r"(base_patch32|giantopt_patch16|so400m_patch16)_siglip_.*|large_patch16_siglip_(gap_)?512"  # SigLIP 2
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "gelu_quick"}
POOLS = {"token": "cls", "avg": "gap", "map": "map"}

# SHOWN: arguments that the tensors show. HARMLESS: arguments that change no number at inference, or whose tensors show them by
# being there.
SHOWN = ("embed_dim", "depth", "patch_size", "in_chans", "reg_tokens")
HARMLESS = ("num_classes", "class_token", "mlp_ratio", "qkv_bias", "qk_norm", "pre_norm", "fc_norm", "pos_embed", "weight_init")
HARMLESS += ("dynamic_img_size", "strict_img_size", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate")
HARMLESS += ("attn_drop_rate", "drop_path_rate", "fix_init", "no_embed_class", "pool_include_prefix", "init_values", "img_size")

NORMALISATION = {
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "half": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
}

LAYERS = (  # ours, theirs
    (r"encoder/projection", "patch_embed.proj"),
    (r"pre_norm", "norm_pre"),
    (r"block_(\d+)/(norm[12])", r"blocks.\1.\2"),
    (r"block_(\d+)/attention/(qkv|q_norm|k_norm)", r"blocks.\1.attn.\2"),
    (r"block_(\d+)/attention/projection", r"blocks.\1.attn.proj"),
    (r"block_(\d+)/mlp/(fc[12])", r"blocks.\1.mlp.\2"),
    (r"block_(\d+)/scale([12])", r"blocks.\1.ls\2"),
    (r"pool/query", "attn_pool.q"),
    (r"pool/key_value", "attn_pool.kv"),
    (r"pool/projection", "attn_pool.proj"),
    (r"pool/norm", "attn_pool.norm"),
    (r"pool/mlp/(fc[12])", r"attn_pool.mlp.\1"),
    (r"(head|head_dist)", r"\1"),
)
VARIABLES = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}
TOKENS = {"encoder/class_token": "cls_token", "encoder/position": "pos_embed", "pool/probe": "attn_pool.latent"}


def table(config: ViTConfig) -> list[Row]:
    """The rows of all weights."""
    rows = []
    for path, shape in config.weight_shapes.items():
        layer, variable = path.rsplit("/", 1)
        if path in TOKENS:
            name = TOKENS[path]
        elif path == "encoder/register_tokens":
            name = "dist_token" if config.distillation else "reg_token"
        elif layer == "norm":
            name = f"{'fc_norm' if config.norm_after_pool else 'norm'}.{VARIABLES[variable]}"
        else:
            pattern, theirs = next(row for row in LAYERS if re.fullmatch(row[0], layer))
            leaf = "gamma" if "/scale" in layer else VARIABLES[variable]
            name = f"{re.sub(pattern, theirs, layer)}.{leaf}"
        row = torch_row(config, path, shape, name)
        rows.append(row if path != "pool/probe" else Row(path, shape, row.names, (1, 1, config.width), (0, 1, 2)))
    return rows


def parse_architecture(name: str) -> tuple[str, set[str], int]:
    """An architecture's name without family and tag, its parts after the size, and its number of heads."""
    base = name.partition(".")[0]  # without the tag of the pretraining
    match = re.fullmatch(r"(?:vit|deit|deit3)_(([a-z0-9]+)_(.*))", base)
    parts = match[3].split("_") if match else []
    if not match or match[2] not in HEADS or not all(re.fullmatch(PARTS, part) for part in parts):
        odd = [part for part in parts if not re.fullmatch(PARTS, part)]
        reason = f" ({'_'.join(odd)} is another architecture)" if match and match[2] in HEADS and odd else ""
        raise ValueError(
            f"architecture: received {name!r}{reason}; allowed: vit_*, deit_* and deit3_* of timm with plain blocks, "
            f"of the sizes {', '.join(HEADS)}"
        )
    heads = next((heads for pattern, heads in OTHER_HEADS if re.fullmatch(pattern, match[1])), HEADS[match[2]])
    return match[1], set(parts), heads


def read_config(shapes: dict, architecture: str, args: dict, image_size=None) -> ViTConfig:
    """The `ViTConfig` of a checkpoint, from the shapes of its tensors, the name of its architecture and its arguments.

    Args:
        shapes: Names and shapes of the tensors.
        architecture: A name of timm's, such as `vit_base_patch16_224`.
        args: Arguments of the architecture, as `model_args` of a config.json.
        image_size: The image size in the rest of config.json.
    """
    base, parts, heads = parse_architecture(architecture)
    for name in args:
        if name not in (*SHOWN, *HARMLESS, "num_heads", "act_layer", "global_pool"):
            raise ValueError(f"config.json: model_args.{name}: received {args[name]!r}; allowed: none, as it is unknown here")
    for name, rank in (("patch_embed.proj.weight", 4), ("blocks.0.mlp.fc2.weight", 2)):
        check_rank(shapes, name, rank, architecture)
    width, channels, *patch = shapes["patch_embed.proj.weight"]
    mlp_dim = shapes["blocks.0.mlp.fc2.weight"][1]
    gated = shapes.get("blocks.0.mlp.fc1.weight", (0,))[0] == 2 * mlp_dim
    distilled = "dist_token" in shapes
    registers = shapes["reg_token"][1] if "reg_token" in shapes else int(distilled)
    class_token = "cls_token" in shapes
    mapped = "attn_pool.latent" in shapes
    activation = read_setting(args, "act_layer", str) or (
        "quick_gelu" if "quickgelu" in parts else "gelu_tanh" if re.fullmatch(TANH, base) else "gelu"
    )
    if activation not in ACTIVATIONS and not gated:
        raise ValueError(f"config.json: model_args.act_layer: received {activation!r}; allowed: {', '.join(ACTIVATIONS)}")
    pool = read_setting(args, "global_pool", str) or ("map" if mapped else "avg" if "gap" in parts else "token")
    if pool not in POOLS or (pool == "map") != mapped:
        raise ValueError(f"config.json: model_args.global_pool: received {pool!r}; allowed: {'map' if mapped else 'token, avg'}")
    depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    found = {"embed_dim": width, "depth": depth, "in_chans": channels, "reg_tokens": 0 if distilled else registers}
    found["patch_size"] = tuple(patch)
    for name in SHOWN:
        given = args.get(name, found[name])
        if name == "patch_size":
            given = as_pair(name, given)
        check_found(f"model_args.{name}", given, found[name])
    if mapped and (class_token or registers) and not args.get("pool_include_prefix"):
        raise ValueError(
            f"architecture: received {architecture!r}, whose attention pooling leaves out prefix tokens; "
            "allowed: pool_include_prefix, or no prefix tokens"
        )
    prefix = class_token + registers
    length = shapes["pos_embed"][1] if "pos_embed" in shapes else None
    grid = find_grid(length, prefix, patch, args.get("img_size"), (image_size, *re.findall(r"\d+$", base)))
    learned = {"position": "learned"} if length else {"position": "none"}
    if length and prefix:
        learned["prefix_positions"] = "none" if length == grid[0] * grid[1] else "all" if registers else "class"
    return ViTConfig(
        image_size=tuple(side * size for side, size in zip(grid, patch, strict=True)),
        channels=channels,
        patch_size=tuple(patch),
        width=width,
        depth=depth,
        num_heads=read_setting(args, "num_heads", int, heads),
        mlp_dim=mlp_dim,
        num_classes=shapes["head.weight"][0] if "head.weight" in shapes else 0,
        pool=POOLS[pool],
        class_token=None if class_token == (pool == "token") else class_token,
        registers=registers,
        distillation=distilled,
        **learned,
        mlp="swiglu" if gated else ACTIVATIONS[activation],
        layer_scale=(read_setting(args, "init_values", (int, float)) or 1e-5) if "blocks.0.ls1.gamma" in shapes else 0.0,
        qk_norm="blocks.0.attn.q_norm.weight" in shapes,
        norm_epsilon=1e-5 if "clip" in parts else 1e-6,
        pre_norm="norm_pre.weight" in shapes,
        norm_after_pool="fc_norm.weight" in shapes,
        qkv_bias="blocks.0.attn.qkv.bias" in shapes,
    )


def find_grid(length, prefix, patch, given, others):
    """Rows and columns of patches: from the given image size, else from the first other size that fits, else a square.

    A remainder of pixels is dropped, as in timm: 384 pixels make 27 patches of 14.

    Args:
        length: Number of positions, or None.
        prefix: Number of prefix tokens.
        patch: The patch size.
        given: The image size in the arguments, or None.
        others: Further image sizes, or None.
    """
    grids = []
    for size in (given, *others):
        if size:
            size = as_pair("img_size", int(size) if isinstance(size, str) else size)
            grids.append(tuple(side // p for side, p in zip(size, patch, strict=True)))
    if length is None:
        if not grids:
            raise ValueError("config.json: model_args.img_size: received none; allowed: an image size, as there are no positions")
        return grids[0]
    lengths = (length, length - prefix)
    if given and grids[0][0] * grids[0][1] not in lengths:
        raise ValueError(
            f"config.json: model_args.img_size: received {given}; allowed: a size with {length} positions, as in the tensors"
        )
    for grid in grids:
        if grid[0] * grid[1] in lengths:
            return grid
    side = square_side(length - prefix) or square_side(length)
    if not side:
        raise ValueError(f"checkpoint: received {length} positions, no square grid; allowed: these with img_size in config.json")
    return side, side


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
    config = read_config(shapes, architecture, args, tuple(size[1:]) if len(size) == 3 else None)
    classes = settings.get("num_classes", pretrained.get("num_classes"))
    if isinstance(classes, int):
        check_found("num_classes", classes, config.num_classes)
    rows = table(config)
    check_tensors(str(path), rows, shapes)
    moments, notes = read_moments(pretrained.get("mean"), pretrained.get("std"), config.channels), ()
    if not moments:
        parts = parse_architecture(architecture)[1]
        plain = architecture.startswith("deit") or "dinov2" in parts
        moments = NORMALISATION["clip" if "clip" in parts else "imagenet" if plain else "half"]
        notes = (f"mean and std: not in the file; taken for {architecture}: {moments[0]}, {moments[1]}",)
    names = settings.get("label_names") or pretrained.get("label_names")
    names = list(names) if isinstance(names, (list, tuple)) and len(names) == config.num_classes else None
    return Checkpoint("timm", path, config, *moments, names, weight_reader(rows, read), notes=notes)


def file_settings(path):
    """The settings in the metadata of a safetensors file that this library wrote; empty for other files."""
    with safe_open(path, framework="numpy") as file:
        text = (file.metadata() or {}).get("timm")
    return parse_json(text, str(path), "checkpoint") if text else {}


def describe(config: ViTConfig) -> tuple[str, dict]:
    """The architecture of timm for a `ViTConfig`, and its arguments.

    Raises:
        ValueError: For a field that timm cannot hold.
    """
    refuse_unless(
        "timm",
        config,
        stem="patch",
        pool=("cls", "gap", "map"),
        pre_logits_dim=0,
        use_bias=True,
        norm_epsilon=(1e-6, 1e-5),
    )
    if config.mlp == "swiglu" and (config.pool == "map" or config.norm_epsilon != 1e-6):
        raise cannot_hold("timm", config, "mlp", "swiglu only without attention pooling and with norm_epsilon 1e-06")
    if config.distillation and (config.registers != 1 or config.norm_epsilon != 1e-6 or config.mlp == "swiglu"):
        raise cannot_hold("timm", config, "distillation", "True only with one register, norm_epsilon 1e-06 and a plain MLP")
    if config.pool == "map" and config.qk_norm:
        raise cannot_hold("timm", config, "qk_norm", "True only without attention pooling")
    hidden = config.mlp_dim * (2 if config.mlp == "swiglu" else 1)
    args = {
        "img_size": list(config.image_size),
        "patch_size": list(config.patch_size),
        "in_chans": config.channels,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": exact_ratio(hidden, config.width),
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "init_values": config.layer_scale or None,
        "pre_norm": config.pre_norm,
    }
    if config.distillation:
        return "deit_base_distilled_patch16_224", args
    args |= {
        "class_token": config.has_class_token,
        "no_embed_class": not config.num_prefix_positions,
        "reg_tokens": config.registers,
        "global_pool": next(theirs for theirs, ours in POOLS.items() if ours == config.pool),
        "fc_norm": config.norm_after_pool,
    }
    if config.position == "none":
        args["pos_embed"] = "none"
    if config.pool == "map" and config.num_prefix_tokens:
        args["pool_include_prefix"] = True
    if config.mlp == "swiglu":
        return "vit_giant_patch14_dinov2", args
    args["act_layer"] = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.mlp)
    return ("vit_base_patch16_clip_224" if config.norm_epsilon == 1e-5 else "vit_base_patch16_224"), args


def exact_ratio(hidden: int, width: int) -> float:
    """A ratio r with int(width * r) == hidden."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def save_timm(config: ViTConfig, weights: dict, path: Path, mean: list, std: list, class_names: list | None) -> None:
    """Writes a folder for `timm.create_model("local-dir:PATH")`, or one file where `path` ends in .safetensors."""
    if config.position != "none":
        # In timm all prefix tokens have positions, or none has.
        all_have = 0 < config.num_prefix_positions == config.num_prefix_tokens
        config, weights = place_prefix(config, weights, "all" if all_have else "none")
        if config.distillation and not config.num_prefix_positions:
            config, weights = place_prefix(config, weights, "all")
    architecture, args = describe(config)
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
    tensors = save_rows(table(config), weights)
    if path.suffix == ".safetensors":
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(tensors, metadata={"format": "pt", "timm": json.dumps(settings)}))
        return
    with atomic_folder(path) as folder:
        (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
        write_json(folder / "config.json", settings)
