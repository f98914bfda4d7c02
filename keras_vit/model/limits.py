"""What positions and heads allow, and how large a model may be: checks that the configuration and its layers share."""

import math

from keras_vit.checks import as_pair, check_choice, check_int, check_number

POSITIONS = ("learned", "sincos2d", "sincos1d", "none")
ROTARY = ("none", "centered", "index")

MAX_PATCHES, MAX_DEPTH = 2**20, 2**10
# From the smallest to the largest value of a field. ViT-22B (arXiv 2302.05442) has width 6,144, depth 48 and mlp_dim 24,576.
SIZES = {
    **dict.fromkeys(("channels", "width", "num_heads"), (1, 2**16)),
    "depth": (1, MAX_DEPTH),
    "mlp_dim": (1, 2**20),
    **dict.fromkeys(("registers", "pool_heads"), (0, 2**16)),
    **dict.fromkeys(("num_classes", "pre_logits_dim", "merge_tokens", "pool_mlp_dim"), (0, 2**20)),
}


def check_sizes(config):
    """Raises a ValueError for a size that no model has: building it, or counting its weights, would never end."""
    for name, (least, most) in SIZES.items():
        check_int(name, getattr(config, name), least, most)


def count_prefix_positions(position: str, prefix_positions: str, class_token: bool, registers: int) -> int:
    """How many rows at the front of the position table belong to prefix tokens.

    Args:
        position: Of `POSITIONS`; only learned and 1-D positions have rows for prefix tokens.
        prefix_positions: Of `PREFIX_POSITIONS`.
        class_token: Whether there is a class token.
        registers: Number of registers.
    """
    if position in ("none", "sincos2d"):
        return 0
    return {"none": 0, "class": int(class_token), "all": class_token + registers}[prefix_positions]


def check_position(position, width):
    """Raises a ValueError for an unknown kind of positions, or a width that fixed positions cannot fill."""
    check_choice("position", position, POSITIONS)
    multiple = {"sincos2d": 4, "sincos1d": 2}.get(position, 1)
    if width % multiple:
        raise ValueError(f"width: received {width}; allowed: multiples of {multiple} with position {position}")


def check_rotary(rotary, base, grid, offset, head_dim):
    """Raises a ValueError for settings of rotary positions that do not go together, or a head that they cannot fill."""
    check_choice("rotary", rotary, ROTARY)
    check_number("rotary_base", base, above=0)
    check_number("rotary_offset", offset)
    if grid is not None:
        as_pair("rotary_grid", grid)
    if rotary != "index":
        for name, value, allowed in (("rotary_grid", grid, None), ("rotary_offset", offset, 0)):
            if value != allowed:
                raise ValueError(f"{name}: received {value}; allowed: {allowed} with rotary {rotary}")
    if rotary != "none" and head_dim % 4:
        raise ValueError(f"num_heads: received heads of {head_dim} channels; allowed: multiples of 4 with rotary positions")


def check_patches(image_size, patch_size):
    """Raises a ValueError unless patches divide an image, into `MAX_PATCHES` or fewer."""
    for side, image, patch in zip(("height", "width"), image_size, patch_size, strict=True):
        if image % patch:
            raise ValueError(f"patch_size: received {patch}; allowed: the divisors of the image's {side}: {divisors(image)}")
    patches = math.prod(image_size) // math.prod(patch_size)
    if patches > MAX_PATCHES:
        raise ValueError(f"image_size: received {image_size}, {patches:,} patches; allowed: at most {MAX_PATCHES:,} patches")


def check_heads(width, num_heads, name="num_heads"):
    """Raises a ValueError unless the heads divide the width."""
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"{name}: received {num_heads}; allowed: the divisors of width {width}: {divisors(width)}")


def divisors(number):
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return ", ".join(map(str, sorted({*small, *(number // divisor for divisor in small)})))
