"""Names of timm's class `VisionTransformer`: `vit_*`, `deit_*`, `deit3_*`, CLIP's and SigLIP's image towers, DINOv2.

Tensors do not tell the number of heads, the activation, the epsilon or the pooling. These come from the architecture's name and
arguments (timm/models/vision_transformer.py and deit.py, version 1.0.31).
"""

import re

from keras_vit.checks import as_pair
from keras_vit.model.config import ViTConfig
from keras_vit.weights.rows import Row, torch_row
from keras_vit.weights.settings import cannot_hold, check_found, check_rank, exact_ratio, find_grid, read_setting, refuse_unless

# Attention heads by the size in an architecture's name.
HEADS = {"tiny": 3, "wee": 4, "pwee": 4, "xsmall": 4, "little": 5, "small": 6, "medium": 8, "mediumd": 8, "betwixt": 10, "base": 12}
HEADS |= {"so150m": 14, "so150m2": 13, "large": 16, "so400m": 16, "intern300m": 16, "huge": 16}
HEADS |= {"giant": 16, "giantopt": 16, "gigantic": 16}
# The exceptions, by a pattern of size and rest of the name.
OTHER_HEADS = (
    (r"giant_patch14_(reg\d_)?(dinov2|tipsv2)|giant_patch16_radio_v\d", 24),
    (r"base_patch\d+_plus_.*", 14),
    (r"base_patch16_gap_224", 16),
)

# Parts of a name that change nothing, or only what the tensors show. All others are refused: `rope`, for example, changes the
# numbers but has no tensors.
PARTS = r"distilled|patch\d+|plus|clip|quickgelu|siglip|gap|map|reg\d+|dinov2|tipsv2|radio|v3|v4|miil|36x1|18x2|xp|\d+"
WITHOUT_NORM = r"intern300m_.*|.*_radio_v\d"
UNUSED = r"$^"  # none
TANH = r"(base_patch32|giantopt_patch16|so400m_patch16)_siglip_.*|large_patch16_siglip_(gap_)?512"  # SigLIP 2
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "gelu_quick"}
POOLS = {"token": "cls", "avg": "gap", "map": "map"}

# SHOWN: arguments that the tensors show. HARMLESS: arguments that change no number at inference, or whose tensors show them by
# being there.
SHOWN = ("embed_dim", "depth", "patch_size", "in_chans", "reg_tokens")
HARMLESS = ("num_classes", "class_token", "mlp_ratio", "qkv_bias", "qk_norm", "pre_norm", "fc_norm", "pos_embed", "weight_init")
HARMLESS += ("dynamic_img_size", "strict_img_size", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate")
HARMLESS += ("attn_drop_rate", "drop_path_rate", "fix_init", "no_embed_class", "pool_include_prefix", "init_values", "img_size")
HARMLESS += ("final_norm",)

LAYERS = (  # ours, theirs
    (r"encoder/projection", "patch_embed.proj"),
    (r"pre_norm", "norm_pre"),
    (r"block_(\d+)/(norm[12])", r"blocks.\1.\2"),
    (r"block_(\d+)/attention/(qkv|q_norm|k_norm)", r"blocks.\1.attn.\2"),
    (r"block_(\d+)/attention/norm", r"blocks.\1.attn.norm"),
    (r"block_(\d+)/attention/projection", r"blocks.\1.attn.proj"),
    (r"block_(\d+)/mlp/(fc[12]|norm)", r"blocks.\1.mlp.\2"),
    (r"block_(\d+)/scale([12])", r"blocks.\1.ls\2"),
    (r"pool/query", "attn_pool.q"),
    (r"pool/key_value", "attn_pool.kv"),
    (r"pool/projection", "attn_pool.proj"),
    (r"pool/norm", "attn_pool.norm"),
    (r"pool/mlp/(fc[12])", r"attn_pool.mlp.\1"),
    (r"(head|head_dist)", r"\1"),
)
# Blocks whose branches stand side by side: their names for those of a plain block; {} is a twin's number.
TWINS = (("norm1", "attns.{}.norm"), ("attn", "attns.{}.attn"), ("ls1", "attns.{}.ls"))
TWINS += (("norm2", "ffns.{}.norm"), ("mlp", "ffns.{}.mlp"), ("ls2", "ffns.{}.ls"))
PARALLEL = (("norm1", "in_norm"), (r"attn\.qkv", "qkv_in"), (r"attn\.proj", "attn_out_proj"), (r"attn\.([qk]_norm)", r"\2"))
PARALLEL += ((r"mlp\.fc1", "mlp_in"), (r"mlp\.fc2", "mlp_out_proj"), ("ls1", "ls"))
RENAMED = {"serial": (), "twin": TWINS, "parallel": PARALLEL}
# A `ParallelScalingBlock` has the first layers of MLP and attention in one tensor.
PACKED = {f".in_proj.{leaf}": (f".mlp_in.{leaf}", f".qkv_in.{leaf}") for leaf in ("weight", "bias")}
VARIABLES = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}
TOKENS = {"encoder/class_token": "cls_token", "encoder/position": "pos_embed", "pool/probe": "attn_pool.latent"}


def table(config: ViTConfig) -> list[Row]:
    """The rows of all weights."""
    return [plain_row(config, path, shape) for path, shape in config.weight_shapes.items()]


def plain_row(config: ViTConfig, path: str, shape: tuple, names: tuple[str, ...] | None = None) -> Row:
    """The row of a weight, with the names of this class or others."""
    given = path
    twin, path = "/twin/" in path, path.replace("/twin/", "/")
    layer, variable = path.rsplit("/", 1)
    if names is None and path in TOKENS:
        names = TOKENS[path]
    elif names is None and path == "encoder/register_tokens":
        names = "dist_token" if config.distillation else "reg_token"
    elif names is None and layer == "norm":
        names = f"{'fc_norm' if config.norm_after_pool else 'norm'}.{VARIABLES[variable]}"
    elif names is None:
        pattern, theirs = next(row for row in LAYERS if re.fullmatch(row[0], layer))
        names = f"{re.sub(pattern, theirs, layer)}.{'gamma' if '/scale' in layer else VARIABLES[variable]}"
        names = block_name(names, config.block, int(twin))
        if config.block == "parallel" and not config.qkv_bias:
            names = names.replace("mlp_in.bias", "mlp_bias")
    row = torch_row(config, given, shape, names)
    return row if path != "pool/probe" else Row(path, shape, row.names, (1, 1, config.width), (0, 1, 2))


def block_name(name: str, block: str, twin: int = 0) -> str:
    """The name of a tensor in timm's block of the kind of `ViTConfig.block`, from its name in a plain one."""
    for part, theirs in RENAMED[block]:
        name = re.sub(rf"^(blocks\.\d+)\.{part}\b", rf"\1.{theirs.format(twin)}", name)
    return name


def parse_architecture(name: str) -> tuple[str, set[str], int]:
    """An architecture's name without family and tag, its parts after the size, and its number of heads."""
    base = name.partition(".")[0]  # without the tag of the pretraining
    match = re.fullmatch(r"(?:vit|deit|deit3|eva(?=_large))_(([a-z0-9]+)_(.*))", base)
    parts = match[3].split("_") if match else []
    if not match or match[2] not in HEADS or not all(re.fullmatch(PARTS, part) for part in parts):
        odd = [part for part in parts if not re.fullmatch(PARTS, part)]
        reason = f" ({'_'.join(odd)} is another architecture)" if match and match[2] in HEADS and odd else ""
        raise ValueError(
            f"architecture: received {name!r}{reason}; allowed: vit_*, deit_*, deit3_*, eva_* and eva02_* of timm, but no hybrids, "
            "relative positions, learned frequencies of rotary ones, differential attention, grouped queries or post-norm blocks"
        )
    heads = next((heads for pattern, heads in OTHER_HEADS if re.fullmatch(pattern, match[1])), HEADS[match[2]])
    return match[1], set(parts), heads


def read_config(shapes: dict, architecture: str, args: dict, image_size=None) -> tuple[ViTConfig, list[Row]]:
    """The `ViTConfig` and the rows of a checkpoint, from the shapes of its tensors, its architecture's name and arguments.

    Args:
        shapes: Names and shapes of the tensors.
        architecture: A name of timm's, such as `vit_base_patch16_224`.
        args: Arguments of the architecture, as `model_args` of a config.json.
        image_size: The image size in the rest of config.json.
    """
    base, parts, heads = parse_architecture(architecture)
    block = "twin" if "18x2" in parts else "parallel" if parts & {"xp"} or "pwee" in base else "serial"

    def of_block(name):
        return shapes.get(block_name(f"blocks.0.{name}", block))

    for name in args:
        if name not in (*SHOWN, *HARMLESS, "num_heads", "act_layer", "global_pool"):
            raise ValueError(f"config.json: model_args.{name}: received {args[name]!r}; allowed: none, as it is unknown here")
    hidden = block_name("blocks.0.mlp.fc2.weight", block)
    for name, rank in (("patch_embed.proj.weight", 4), (hidden, 2)):
        check_rank(shapes, name, rank, architecture)
    width, channels, *patch = shapes["patch_embed.proj.weight"]
    mlp_dim = shapes[hidden][1]
    gated = (of_block("mlp.fc1.weight") or (0,))[0] == 2 * mlp_dim
    distilled = "dist_token" in shapes
    registers = shapes["reg_token"][1] if "reg_token" in shapes else int(distilled)
    class_token = "cls_token" in shapes
    mapped = "attn_pool.latent" in shapes
    activation = read_setting(args, "act_layer", str) or (
        "quick_gelu" if "quickgelu" in parts else "gelu_tanh" if re.fullmatch(TANH, base) else "gelu"
    )
    if activation not in ACTIVATIONS and not gated:
        raise ValueError(f"config.json: model_args.act_layer: received {activation!r}; allowed: {', '.join(ACTIVATIONS)}")
    mean = "gap" in parts or architecture.startswith("eva")
    pool = read_setting(args, "global_pool", str) or ("map" if mapped else "avg" if mean else "token")
    if pool not in POOLS or (pool == "map") != mapped:
        raise ValueError(f"config.json: model_args.global_pool: received {pool!r}; allowed: {'map' if mapped else 'token, avg'}")
    depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    found = {"embed_dim": width, "depth": depth, "in_chans": channels, "reg_tokens": 0 if distilled else registers}
    found["patch_size"] = tuple(patch)
    check_shown(args, found)
    prefix = class_token + registers
    # Without prefix tokens the argument means nothing.
    pool_prefix = not (mapped and prefix) or read_setting(args, "pool_include_prefix", bool, False)
    length = shapes["pos_embed"][1] if "pos_embed" in shapes else None
    grid = find_grid(length, prefix, patch, args.get("img_size"), (image_size, *re.findall(r"\d+$", base)))
    learned = {"position": "learned"} if length else {"position": "none"}
    if length and prefix:
        learned["prefix_positions"] = "none" if length == grid[0] * grid[1] else "all" if registers else "class"
    config = ViTConfig(
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
        layer_scale=(read_setting(args, "init_values", (int, float)) or 1e-5) if of_block("ls1.gamma") else 0.0,
        block=block,
        rms_norm="xp" in parts,
        qk_norm=of_block("attn.q_norm.weight") is not None,
        norm_epsilon=1e-5 if "clip" in parts else 1e-6,
        pre_norm="norm_pre.weight" in shapes,
        norm_after_pool="fc_norm.weight" in shapes,
        final_norm=read_setting(args, "final_norm", bool, not re.fullmatch(WITHOUT_NORM, base)),
        pool_prefix=pool_prefix,
        qkv_bias=of_block("attn.qkv.bias") is not None,
    )
    return config, table(config)


def normalisation(architecture: str) -> str:
    """Key of the pixels' mean and standard deviation in `timm.NORMALISATION`."""
    parts = parse_architecture(architecture)[1]
    plain = architecture.startswith("deit") or "dinov2" in parts
    return "clip" if parts & {"clip", "radio"} or architecture.startswith("eva") else "imagenet" if plain else "half"


def check_shown(args: dict, found: dict) -> None:
    """Raises a ValueError unless the arguments that tensors show are those found in them."""
    for name, value in found.items():
        given = args.get(name, value)
        check_found(f"model_args.{name}", as_pair(name, given) if name == "patch_size" else given, value)


def describe(config: ViTConfig) -> tuple[str, dict, list[Row]]:
    """The architecture of timm for a `ViTConfig`, its arguments and the rows of all weights.

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
    if config.rms_norm and config.block != "parallel":
        raise cannot_hold("timm", config, "rms_norm", "True only with block parallel")
    if config.block != "serial" and (config.norm_epsilon != 1e-6 or config.mlp == "swiglu" or config.distillation):
        raise cannot_hold("timm", config, "block", "twin, parallel only with norm_epsilon 1e-06, a plain MLP and no distillation")
    if config.pool == "map" and not config.qkv_bias:
        raise cannot_hold("timm", config, "qkv_bias", "True with attention pooling")
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
        "final_norm": config.final_norm,
    }
    if config.distillation:
        return "deit_base_distilled_patch16_224", args, table(config)
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
        args["pool_include_prefix"] = config.pool_prefix
    if config.mlp == "swiglu":
        return "vit_giant_patch14_dinov2", args, table(config)
    args["act_layer"] = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.mlp)
    if config.block != "serial":
        parallel = "vit_base_patch16_xp_224" if config.rms_norm else "vit_pwee_patch16_reg1_gap_256"
        return parallel if config.block == "parallel" else "vit_small_patch16_18x2_224", args, table(config)
    architecture = "vit_base_patch16_clip_224" if config.norm_epsilon == 1e-5 else "vit_base_patch16_224"
    return architecture, args, table(config)
