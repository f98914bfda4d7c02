"""What positions and heads allow: checks that the configuration and its layers share."""

from keras_vit.checks import as_pair, check_choice, check_number

POSITIONS = ("learned", "sincos2d", "sincos1d", "none")
ROTARY = ("none", "centered", "index")


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


def check_heads(width, num_heads, name="num_heads"):
    """Raises a ValueError unless the heads divide the width."""
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"{name}: received {num_heads}; allowed: the divisors of width {width}: {divisors(width)}")


def divisors(number):
    return ", ".join(str(divisor) for divisor in range(1, number + 1) if number % divisor == 0)
