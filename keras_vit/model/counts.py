"""What a `ViTConfig` costs, counted without building the model: weights and floating-point operations."""

import itertools
import math


def weight_shapes(config) -> dict[str, tuple[int, ...]]:
    """Path and shape of each weight of the model that `build_vit` makes."""
    shapes, width, bias = {}, config.width, config.use_bias

    def dense(name, inputs, units, bias):
        shapes[f"{name}/kernel"] = (inputs, units)
        if bias:
            shapes[f"{name}/bias"] = (units,)

    def norm(name, size):
        for variable in ("gamma",) if config.rms_norm else ("gamma", "beta"):
            shapes[f"{name}/{variable}"] = (size,)

    def mlp(name, size):
        dense(f"{name}/fc1", width, size * (2 if config.mlp == "swiglu" else 1), bias)
        dense(f"{name}/fc2", size, width, bias)

    partial = config.qkv_bias and not config.key_bias

    patch_dim = math.prod(config.patch_size) * config.channels
    if config.stem == "conv":
        for index, (a, b) in enumerate(itertools.pairwise((config.channels, *config.stem_widths))):
            shapes[f"stem/conv{index}/kernel"] = (3, 3, a, b)
            if bias:
                shapes[f"stem/conv{index}/bias"] = (b,)
            for block in (f"stem/block{index}_{number}" for number in range(config.stem_depth)):
                norm(f"{block}/norm", b)
                for conv in (f"{block}/conv1", f"{block}/conv2"):
                    shapes[f"{conv}/kernel"] = (3, 3, b, b)
                    if bias:
                        shapes[f"{conv}/bias"] = (b,)
        patch_dim = width
    dense("encoder/projection", patch_dim, width, bias and not config.pre_norm)
    if config.has_class_token:
        shapes["encoder/class_token"] = (1, 1, width)
    if config.registers:
        shapes["encoder/register_tokens"] = (1, config.registers, width)
    if config.position == "learned":
        shapes["encoder/position"] = (1, config.num_prefix_positions + config.num_patches, width)
    if config.pre_norm:
        norm("pre_norm", width)
    twins = ("", "/twin") if config.block == "twin" else ("",)
    for block in (f"block_{index}{twin}" for index in range(config.depth) for twin in twins):
        norm(f"{block}/norm1", width)
        dense(f"{block}/attention/qkv", width, 3 * width, config.qkv_bias and not partial)
        if partial:
            shapes[f"{block}/attention/query_bias"] = shapes[f"{block}/attention/value_bias"] = (width,)
        dense(f"{block}/attention/projection", width, width, bias)
        if config.qk_norm:
            norm(f"{block}/attention/q_norm", config.head_dim)
            norm(f"{block}/attention/k_norm", config.head_dim)
        if config.attention_norm:
            norm(f"{block}/attention/norm", width)
        if config.block != "parallel":
            norm(f"{block}/norm2", width)
        mlp(f"{block}/mlp", config.mlp_dim)
        if config.mlp_norm:
            norm(f"{block}/mlp/norm", config.mlp_dim)
        if config.layer_scale:
            for scale in ("scale1",) if config.block == "parallel" else ("scale1", "scale2"):
                shapes[f"{block}/{scale}/gamma"] = (width,)
    if config.final_norm:
        norm("norm", config.pooled_dim if config.norm_after_pool else width)
    if config.pool == "map":
        shapes["pool/probe"] = (1, width)
        dense("pool/query", width, width, config.qkv_bias)
        dense("pool/key_value", width, 2 * width, config.qkv_bias)
        dense("pool/projection", width, width, bias)
        norm("pool/norm", width)
        mlp("pool/mlp", config.pool_mlp_dim or config.mlp_dim)
    if config.pre_logits_dim:
        dense("pre_logits", config.pooled_dim, config.pre_logits_dim, True)
    if config.num_classes:
        for head in ("head", "head_dist") if config.distillation else ("head",):
            dense(head, config.pre_logits_dim or config.pooled_dim, config.num_classes, True)
    return shapes


def num_params(config) -> int:
    """Number of trainable parameters."""
    return sum(math.prod(shape) for shape in weight_shapes(config).values())


def flops(config, patches: int) -> int:
    """Floating-point operations of one image's forward pass; a multiply-add counts as two.

    Counts the matrix products and convolutions, as the papers do; norms, activations and softmax are left out.

    Args:
        config: A `ViTConfig`.
        patches: How many patches the blocks get.
    """
    width, tokens = config.width, config.num_prefix_tokens + patches
    gate = 2 if config.mlp == "swiglu" else 1
    mlp, blocks = (gate + 1) * width * config.mlp_dim, 0
    for merged in config.merged_tokens:
        blocks += tokens * 4 * width * width + 2 * tokens * tokens * width + (tokens - merged) * mlp
        tokens -= merged
    blocks *= 2 if config.block == "twin" else 1
    embed = config.num_patches * math.prod(config.patch_size) * config.channels * width
    if config.stem == "conv":
        widths, pixels, embed = (config.channels, *config.stem_widths), math.prod(config.image_size), 0
        for a, b in itertools.pairwise(widths):
            pixels //= 4
            embed += pixels * 9 * (a * b + 2 * config.stem_depth * b * b)
        embed += config.num_patches * width * width
    pool = 0
    if config.pool == "map":
        pooled = tokens if config.pool_prefix else tokens - config.num_prefix_tokens
        pool = 2 * width * width * (1 + pooled) + 2 * pooled * width + (gate + 1) * width * (config.pool_mlp_dim or config.mlp_dim)
    features = config.pooled_dim
    head = features * config.pre_logits_dim
    head += (config.pre_logits_dim or features) * config.num_classes * (1 + config.distillation)
    return 2 * (embed + blocks + pool + head)


def training_flops(config) -> int:
    """FLOPs of one image's training step, on the patches that `patch_dropout` keeps: three times a forward pass."""
    return 3 * flops(config, kept_patches(config.num_patches, config.patch_dropout))


def kept_patches(count: int, patch_dropout: float) -> int:
    """How many of `count` patches training keeps, at least one."""
    return max(1, round(count * (1 - patch_dropout)))
