"""Names of timm's class `Eva`: DINOv3, EVA-02, EVA, and ViTs with rotary positions.

Tensors do not tell the rotary positions. These come from the architecture's name and arguments (timm/models/eva.py, version
1.0.31).
"""

import dataclasses
import re

from keras_vit.checks import as_pair
from keras_vit.model.config import ViTConfig
from keras_vit.weights.rows import Row
from keras_vit.weights.settings import cannot_hold, check_found, check_rank, exact_ratio, find_grid, read_setting, refuse_unless
from keras_vit.weights.timm_vit import HARMLESS, POOLS, check_shown, plain_row

SIZES = {"tiny": 3, "small": 6, "small_plus": 6, "medium": 8, "mediumd": 8, "betwixt": 10, "base": 12, "large": 16, "giant": 16}
SIZES |= {"gigantic": 16}
SIZES |= {"huge_plus": 20, "7b": 32}

CAT = {"use_rot_pos_emb": True, "rope_type": "cat"}
EVA02 = {**CAT, "ref_feat_shape": 16}
ROPE = {**CAT, "rope_temperature": 100.0, "rope_grid_indexing": "xy", "global_pool": "token"}
ALONE = {"use_abs_pos_emb": False}
DINOV3 = {
    **ALONE,
    "img_size": 256,
    "use_rot_pos_emb": True,
    "rope_type": "dinov3",
    "rope_temperature": 100.0,
    "rope_rotate_half": True,
}
PE = {**CAT, "ref_feat_shape": 32, "rope_grid_indexing": "xy", "rope_grid_offset": 1.0}
PE_CORE = {**PE, "global_pool": "map", "attn_pool_num_heads": 8}
PE_OTHER = {**PE, "use_post_transformer_norm": False}
# Architectures by the parts of their names: size, and arguments that differ from the class's.
NAMES = (
    (r"eva_(giant)_patch14_\d+", {}),
    (r"eva_(giant)_patch14_clip_\d+", {"global_pool": "token"}),
    (r"eva02_(tiny|small|base|large)_patch14_\d+", EVA02),
    (r"eva02_(base|large)_patch\d+_clip_\d+", {**EVA02, "global_pool": "token"}),
    (r"vit_(small|medium|mediumd|betwixt|base)_patch16_rope_reg\d_gap_\d+", {**EVA02, **ALONE}),
    (r"vit_(small|base|large)_patch16_rope_\d+", {**ROPE, **ALONE}),
    (r"vit_(small|base|large)_patch16_rope_ape_\d+", ROPE),
    (r"vit_(tiny|small|small_plus|base|large|huge_plus|7b)_patch16_dinov3(?:_qkvb)?", DINOV3),
    (r"vit_(small|base|large|giant)_patch16_lingbot", {**DINOV3, "img_size": 512, "global_pool": "token"}),
    (r"vit_pe_core_(tiny|small|large)_patch\d+_\d+", {**PE_CORE, "ref_feat_shape": 24}),
    (r"vit_pe_core_(base)_patch\d+_\d+", {**PE_CORE, "ref_feat_shape": 14}),
    (r"vit_pe_core_(gigantic)_patch\d+_\d+", {**PE_CORE, "rope_grid_offset": 0.0}),
    (r"vit_pe_(?:lang|spatial)_(tiny|small|base|large)_patch\d+_\d+", PE_OTHER),
    (r"vit_pe_(?:lang|spatial)_(gigantic)_patch\d+_\d+", {**PE_OTHER, "rope_grid_offset": 0.0}),
)
WIDE_EPSILON = r".*_(dinov3|dinov3_qkvb|lingbot)|vit_pe_.*"  # 1e-5, else 1e-6
UNUSED = r"mask_token|rope\.(?!freqs).*"  # as in timm: pretraining's token, and angles, which are computed
NORMALISED_AS = (("_clip_", "clip"), ("eva", "clip"), ("dinov3", "imagenet"), ("lingbot", "imagenet"))  # else half

# Arguments that are read, or that change no number at inference; those of `HARMLESS` too.
ROTARY = ("use_rot_pos_emb", "rope_type", "rope_temperature", "rope_rotate_half", "rope_grid_indexing", "rope_grid_offset")
READ = (*ROTARY, "use_abs_pos_emb", "ref_feat_shape", "num_heads", "global_pool", "attn_pool_num_heads")
READ += ("use_post_transformer_norm",)
UNREAD = ("qkv_fused", "swiglu_mlp", "swiglu_align_to", "scale_mlp", "scale_attn_inner", "attn_type", "head_init_scale")
UNREAD += ("use_pre_transformer_norm", "use_fc_norm", "attn_pool_mlp_ratio")
UNREAD += ("rope_shift_coords", "rope_jitter_coords", "rope_rescale_coords")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a checkpoint holds the weights of a configuration.

    Attributes:
        fused_qkv: Whether queries, keys and values are one tensor.
        fused_gate: Whether a gated MLP's two halves are one tensor.
        half: Whether channels i and i + d / 2 of a head are a pair, as in this library, rather than 2 i and 2 i + 1.
        xy: Whether the pairs of columns come before those of rows.
    """

    fused_qkv: bool
    fused_gate: bool
    half: bool
    xy: bool


def is_eva(architecture: str) -> bool:
    """Whether an architecture's name is one of this class."""
    return find_name(architecture) is not None


def is_needed(config: ViTConfig) -> bool:
    """Whether a configuration has anything that `VisionTransformer` has not."""
    norms, partial_bias = config.attention_norm or config.mlp_norm, config.qkv_bias and not config.key_bias
    return config.rotary != "none" or norms or partial_bias or bool(config.pool_heads or config.pool_mlp_dim)


def find_name(architecture):
    base = architecture.partition(".")[0]
    matches = ((re.fullmatch(pattern, base), args) for pattern, args in NAMES)
    return next(((base, match[1], args) for match, args in matches if match), None)


def normalisation(architecture: str) -> str:
    """Key of the pixels' mean and standard deviation in `timm.NORMALISATION`."""
    return next((kind for part, kind in NORMALISED_AS if part in architecture), "half")


def channel_order(config: ViTConfig, layout: Layout) -> list[int]:
    """The checkpoint's channel that each channel of a head is."""
    half = config.head_dim // 2
    pairs = [(pair + half // 2 * layout.xy) % half for pair in range(half)]
    return [pair + part * half if layout.half else 2 * pair + part for part in (0, 1) for pair in pairs]


def table(config: ViTConfig, layout: Layout) -> list[Row]:
    """The rows of all weights."""
    head = channel_order(config, layout)
    every_head = [block * config.head_dim + channel for block in range(config.num_heads) for channel in head]
    values = list(range(config.width))
    orders = {  # by path in a block
        "attention/qkv/": [part * config.width + channel for part in (0, 1) for channel in every_head]
        + [2 * config.width + channel for channel in values],
        "attention/query_bias": every_head,
        "attention/q_norm/": head,
        "attention/k_norm/": head,
    }
    rows = []
    for path, shape in config.weight_shapes.items():
        match = re.fullmatch(r"block_(\d+)/(.*)", path)
        block, inner = (f"blocks.{match[1]}", match[2]) if match else ("", "")
        row = plain_row(config, path, shape, special_names(config, layout, block, inner))
        order = next((order for start, order in orders.items() if inner.startswith(start)), None)
        rows.append(row if order is None or config.rotary == "none" else dataclasses.replace(row, order=tuple(order)))
    return rows


def special_names(config, layout, block, inner):
    """Names of tensors that `VisionTransformer` has not, for the path of a weight within a block; None for other weights."""
    leaf = "weight" if inner.endswith("kernel") else "bias"
    if inner.startswith("scale"):
        return (f"{block}.gamma_{inner.removeprefix('scale')[0]}",)
    if inner in ("attention/query_bias", "attention/value_bias"):
        part = inner.removeprefix("attention/")[0]
        return (f"{block}.attn.{part}_bias" if layout.fused_qkv else f"{block}.attn.{part}_proj.bias",)
    if inner.startswith("attention/qkv/") and not layout.fused_qkv:
        return tuple(f"{block}.attn.{part}_proj.{leaf}" for part in "qkv")
    if inner.startswith("mlp/fc1/") and config.mlp == "swiglu" and not layout.fused_gate:
        return tuple(f"{block}.mlp.fc1_{part}.{leaf}" for part in "gx")
    return None


def read_config(shapes: dict, architecture: str, args: dict, image_size=None) -> tuple[ViTConfig, list[Row]]:
    """The `ViTConfig` and the rows of a checkpoint, from the shapes of its tensors, its architecture's name and arguments.

    Args:
        shapes: Names and shapes of the tensors.
        architecture: A name of timm's, such as `vit_base_patch16_dinov3`.
        args: Arguments of the architecture, as `model_args` of a config.json.
        image_size: The image size in the rest of config.json.
    """
    base, size, defaults = find_name(architecture)
    for name in args:
        if name not in (*HARMLESS, *READ, *UNREAD, "embed_dim", "depth", "patch_size", "in_chans", "num_reg_tokens"):
            raise ValueError(f"config.json: model_args.{name}: received {args[name]!r}; allowed: none, as it is unknown here")
    settings = {**defaults, **args}
    for name, rank in (("patch_embed.proj.weight", 4), ("blocks.0.mlp.fc2.weight", 2)):
        check_rank(shapes, name, rank, architecture)
    width, channels, *patch = shapes["patch_embed.proj.weight"]
    mlp_dim = shapes["blocks.0.mlp.fc2.weight"][1]
    class_token = "cls_token" in shapes
    registers = shapes["reg_token"][1] if "reg_token" in shapes else 0
    depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    found = {"embed_dim": width, "depth": depth, "in_chans": channels, "num_reg_tokens": registers, "patch_size": tuple(patch)}
    check_shown(args, found)
    pool = read_setting(settings, "global_pool", str, "avg")
    mapped = "attn_pool.latent" in shapes
    if pool not in POOLS or (pool == "map") != mapped:
        raise ValueError(f"config.json: model_args.global_pool: received {pool!r}; allowed: {'map' if mapped else 'token, avg'}")
    prefix = class_token + registers
    length = shapes["pos_embed"][1] if "pos_embed" in shapes else None
    check_found("model_args.use_abs_pos_emb", read_setting(settings, "use_abs_pos_emb", bool, True), length is not None)
    sizes = (image_size, *re.findall(r"_(\d+)$", base), defaults.get("img_size", 224))
    grid = find_grid(length, prefix, patch, args.get("img_size"), sizes)
    learned = {"position": "learned" if length else "none"}
    if length and prefix:
        learned["prefix_positions"] = "none" if length == grid[0] * grid[1] else "all" if registers else "class"
    fused_gate = "blocks.0.mlp.fc1_g.weight" not in shapes
    gated = not fused_gate or shapes.get("blocks.0.mlp.fc1.weight", (0,))[0] == 2 * mlp_dim
    whole_bias = {"blocks.0.attn.qkv.bias", "blocks.0.attn.k_proj.bias"} & set(shapes)
    partial_bias = {"blocks.0.attn.q_bias", "blocks.0.attn.q_proj.bias"} & set(shapes)
    heads = read_setting(args, "num_heads", int, 24 if base.endswith("giant_patch16_lingbot") else SIZES[size])
    pool_heads = read_setting(settings, "attn_pool_num_heads", int, heads) if mapped else heads
    pool_mlp_dim = shapes.get("attn_pool.mlp.fc2.weight", (0, mlp_dim))[1]
    config = ViTConfig(
        image_size=tuple(side * size for side, size in zip(grid, patch, strict=True)),
        channels=channels,
        patch_size=tuple(patch),
        width=width,
        depth=depth,
        num_heads=heads,
        mlp_dim=mlp_dim,
        num_classes=shapes["head.weight"][0] if "head.weight" in shapes else 0,
        pool=POOLS[pool],
        class_token=None if class_token == (pool == "token") else class_token,
        registers=registers,
        **learned,
        **read_rotary(settings),
        mlp="swiglu" if gated else "gelu",
        layer_scale=(read_setting(args, "init_values", (int, float)) or 1e-5) if "blocks.0.gamma_1" in shapes else 0.0,
        qk_norm="blocks.0.attn.q_norm.weight" in shapes,
        attention_norm="blocks.0.attn.norm.weight" in shapes,
        mlp_norm="blocks.0.mlp.norm.weight" in shapes,
        norm_epsilon=1e-5 if re.fullmatch(WIDE_EPSILON, base) else 1e-6,
        pre_norm="norm_pre.weight" in shapes,
        norm_after_pool="fc_norm.weight" in shapes,
        final_norm="fc_norm.weight" in shapes or read_setting(settings, "use_post_transformer_norm", bool, True),
        pool_heads=0 if pool_heads == heads else pool_heads,
        pool_mlp_dim=0 if pool_mlp_dim == mlp_dim else pool_mlp_dim,
        qkv_bias=bool(whole_bias or partial_bias),
        key_bias=not partial_bias or bool(whole_bias),
    )
    layout = Layout(
        fused_qkv="blocks.0.attn.qkv.weight" in shapes,
        fused_gate=fused_gate,
        half=read_setting(settings, "rope_rotate_half", bool, False),
        xy=read_setting(settings, "rope_grid_indexing", str, "ij") == "xy",
    )
    return config, table(config, layout)


def read_rotary(settings):
    """The fields of `ViTConfig` for timm's arguments of rotary positions."""
    if not read_setting(settings, "use_rot_pos_emb", bool, False):
        return {}
    kind, indexing = read_setting(settings, "rope_type", str, "cat"), read_setting(settings, "rope_grid_indexing", str, "ij")
    if kind not in ("cat", "dinov3"):
        raise ValueError(f"config.json: model_args.rope_type: received {kind!r}; allowed: cat, dinov3")
    if indexing not in ("ij", "xy") or (indexing, kind) == ("xy", "dinov3"):
        raise ValueError(f"config.json: model_args.rope_grid_indexing: received {indexing!r}; allowed: ij, xy with rope_type cat")
    base = float(read_setting(settings, "rope_temperature", (int, float), 10_000.0))
    offset = float(read_setting(settings, "rope_grid_offset", (int, float), 0.0))
    if kind == "dinov3":
        if offset:
            raise ValueError(f"config.json: model_args.rope_grid_offset: received {offset}; allowed: 0 with rope_type dinov3")
        return {"rotary": "centered", "rotary_base": base}
    grid = settings.get("ref_feat_shape")
    grid = None if grid is None else as_pair("ref_feat_shape", grid)
    return {"rotary": "index", "rotary_base": base, "rotary_grid": grid, "rotary_offset": offset}


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
        mlp=("gelu", "swiglu"),
        distillation=False,
        block="serial",
        rms_norm=False,
    )
    if config.pool == "map" and not config.qkv_bias:
        raise cannot_hold("timm", config, "qkv_bias", "True with attention pooling")
    if config.pool == "map" and (config.mlp != "gelu" or not (config.pool_prefix or not config.num_prefix_tokens)):
        name = "mlp" if config.mlp != "gelu" else "pool_prefix"
        raise cannot_hold("timm", config, name, "gelu with attention pooling" if name == "mlp" else "True")
    wide, gated = config.norm_epsilon == 1e-5, config.mlp == "swiglu"
    centered, whole_bias = config.rotary == "centered", config.qkv_bias and config.key_bias
    layout = Layout(not config.mlp_norm, not (config.mlp_norm or wide), half=centered, xy=whole_bias and not centered)
    args = {
        "img_size": list(config.image_size),
        "patch_size": list(config.patch_size),
        "in_chans": config.channels,
        "global_pool": next(theirs for theirs, ours in POOLS.items() if ours == config.pool),
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": exact_ratio(config.mlp_dim, config.width),
        "attn_type": "rope" if whole_bias else "eva",
        "qkv_bias": config.qkv_bias,
        "qkv_fused": layout.fused_qkv,
        "qk_norm": config.qk_norm,
        "swiglu_mlp": gated,
        "swiglu_align_to": 0 if layout.fused_gate else 1,
        "scale_mlp": config.mlp_norm,
        "scale_attn_inner": config.attention_norm,
        "init_values": config.layer_scale or None,
        "class_token": config.has_class_token,
        "num_reg_tokens": config.registers,
        "no_embed_class": not config.num_prefix_positions,
        "use_abs_pos_emb": config.position != "none",
        "use_rot_pos_emb": config.rotary != "none",
        "use_pre_transformer_norm": config.pre_norm,
        "use_post_transformer_norm": config.final_norm and not config.norm_after_pool,
        "use_fc_norm": config.norm_after_pool,
        "attn_pool_num_heads": config.pool_heads or config.num_heads,
        "attn_pool_mlp_ratio": exact_ratio(config.pool_mlp_dim or config.mlp_dim, config.width),
        "dynamic_img_size": config.position == "none",
        "rope_type": "dinov3" if centered else "cat",
        "rope_temperature": config.rotary_base,
        "rope_rotate_half": layout.half,
        "rope_grid_indexing": "xy" if layout.xy else "ij",
        "rope_grid_offset": config.rotary_offset,
        "ref_feat_shape": list(config.rotary_grid) if config.rotary_grid else None,
    }
    return ("vit_base_patch16_dinov3" if wide else "eva02_base_patch14_224"), args, table(config, layout)
