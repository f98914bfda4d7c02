"""Checks of arguments, with one wording for every error: `field: received X; allowed: Y`."""

import dataclasses
import difflib
import functools
import math
import numbers
import re
import reprlib
import sys
import types
import typing
from collections.abc import Iterable

import numpy as np

MAX_SIDE = 2**16  # pixels of an image's side
MAX_NUMBER = sys.float_info.max
LARGEST = 2**53  # integers up to here are exact as real numbers
UNITS = {"s": 1, "m": 60, "h": 3600}  # of time, in seconds
# What a terminal would obey, or cannot show.
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
SCALARS = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "null"}


class Shortened(reprlib.Repr):
    """`repr` with bounded length and depth, whatever it gets."""

    def __init__(self):
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 4, 200, 200
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = 20

    def repr_int(self, x, level):
        return repr(x) if abs(x) < 10**40 else f"an integer of {x.bit_length():,} bits"  # Python refuses to print many digits


SHORTENED = Shortened()


def shown(value: typing.Any) -> str:
    """A value as an error message shows it: `repr`, in one line, shortened."""
    text = re.sub(r"\s*\n\s*", " ", SHORTENED.repr(value))
    return text if len(text) <= 400 else f"{text[:300]} ... {text[-80:]}"


def visible(text: str) -> str:
    """A text that a terminal shows and does not obey: control characters become escapes."""
    return UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text)


def unknown(where: str, name: str, known: Iterable[str], further: str = "") -> str:
    """The message for an unknown name: what was received, the nearest known name if one is near, and all that are allowed."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1) if isinstance(name, str) and len(name) < 100 else []
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{where}: received {shown(name)}{hint}; allowed: {', '.join(filter(None, (*known, further)))}"


def check_fields(cls, settings: dict, where: str = "") -> None:
    """Raises a ValueError that names the first key of `settings` that is no field of `cls`.

    Args:
        cls: A data class.
        settings: Values by name.
        where: Of the settings, such as the section of a recipe; by default the class's name.
    """
    names = [field.name for field in dataclasses.fields(cls)]
    for name in settings:
        if name not in names:
            raise ValueError(unknown(where or cls.__name__, name, names))


def as_pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """A positive int or a pair of them, at most `MAX_SIDE`, as a pair (height, width)."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(is_integer(v) and 1 <= v <= MAX_SIDE for v in pair):
        least = f"from 1 to {MAX_SIDE}" if any(is_integer(v) and v > MAX_SIDE for v in pair) else "of at least 1"
        raise ValueError(f"{name}: received {shown(value)}; allowed: an integer {least}, or a pair (height, width)")
    return tuple(map(int, pair))


def is_integer(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_types(config, *names: str) -> None:
    """Raises a ValueError that names the first field of a data class whose value is not of the field's type.

    Args:
        config: An instance of the data class.
        *names: The fields; none = all of them.
    """
    hints = hints_of(type(config))
    for name in names or [field.name for field in dataclasses.fields(config)]:
        check_type(name, getattr(config, name), hints[name])


hints_of = functools.cache(typing.get_type_hints)  # of each field, by name; reading them takes longer than the checks


def check_type(name: str, value: typing.Any, hint: typing.Any) -> None:
    """Raises a ValueError unless a value is of a type, as plain values are: a list is a tuple, an integer is a real number."""
    kind = typing.get_args(hint)[0] if typing.get_origin(hint) is list else None
    if dataclasses.is_dataclass(kind) and isinstance(value, (list, tuple)):  # also plain values, as a file has them
        for part in value:
            if not isinstance(part, kind):
                make(kind, part, name)
    elif not is_of(value, hint):
        raise ValueError(f"{name}: received {shown(value)}; allowed: {words(hint)}")


def is_of(value, hint) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if origin in (typing.Union, types.UnionType):
        return any(is_of(value, part) for part in inner)
    if origin is dict:
        return isinstance(value, dict) and all(is_of(k, inner[0]) and is_of(v, inner[1]) for k, v in value.items())
    if origin is list:
        return isinstance(value, (list, tuple)) and all(is_of(each, inner[0]) for each in value)
    if origin is tuple:
        return (
            isinstance(value, (list, tuple))
            and len(value) == len(inner)
            and all(is_of(each, part) for each, part in zip(value, inner, strict=True))
        )
    if hint is int:
        return is_integer(value)
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    return hint is typing.Any or isinstance(value, hint)


def words(hint) -> str:
    """A type in the words of an error message."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(map(str, inner))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(words, inner))
    if origin is dict:
        return "a mapping" if inner[1] is typing.Any else f"a mapping, each value {words(inner[1])}"
    if origin is list:
        return "a list" if inner[0] is typing.Any else f"a list, each item {words(inner[0])}"
    if origin is tuple:
        return "a pair (height, width)"
    return SCALARS.get(hint) or f"a {hint.__name__}"


def make(cls, settings: typing.Any, where: str):
    """An instance of a data class from plain values by field; a ValueError that begins with `where` if they do not fit."""
    if not isinstance(settings, dict):
        raise ValueError(f"{where}: received {shown(settings)}; allowed: a mapping of settings")
    check_fields(cls, settings, where)
    for field in dataclasses.fields(cls):
        if field.name not in settings and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}.{field.name}: received none; allowed: a value")
    try:
        return cls(**settings)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None


def plain(value):
    """A number of NumPy as Python's, which JSON and YAML can hold; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def make_plain(config) -> None:
    """Replaces NumPy's numbers in the fields of a frozen data class by Python's."""
    for field in dataclasses.fields(config):
        object.__setattr__(config, field.name, plain(getattr(config, field.name)))


def check_int(name, value, at_least, at_most=LARGEST):
    """Raises a ValueError unless `value` is an integer within the bounds."""
    if not is_integer(value) or not at_least <= value <= at_most:
        bounds = f"from {at_least} to {at_most}" if is_integer(value) and value > at_most else f"of at least {at_least}"
        raise ValueError(f"{name}: received {shown(value)}; allowed: an integer {bounds}")


def check_seed(seed) -> None:
    """Raises a ValueError unless `seed` is an integer, of Python or NumPy, that every backend takes."""
    if not is_integer(seed) or not 0 <= seed < 2**32:
        raise ValueError(f"seed: received {shown(seed)}; allowed: an integer from 0 to 2^32 - 1")


def check_number(name, value, *, at_least=-math.inf, above=-math.inf, at_most=math.inf, below=math.inf):
    """Raises a ValueError unless `value` is a finite number within the bounds."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool) and -MAX_NUMBER <= value <= MAX_NUMBER
    if not (number and at_least <= value <= at_most and above < value < below):
        bounds = {"of at least": at_least, "above": above, "of at most": at_most, "below": below}
        allowed = " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if math.isfinite(bound))
        raise ValueError(f"{name}: received {shown(value)}; allowed: a number {allowed}".rstrip())


def as_moments(mean, std, channels: int, where: str = "") -> tuple[list[float], list[float]]:
    """Mean and standard deviation of pixels scaled to 0..1, each as a list of one number, or of one for each channel.

    Args:
        mean: A number, or a list, tuple or array of 1 or C numbers.
        std: Likewise, above 0.
        channels: C.
        where: Prefix of the message, such as the name of a file.

    Raises:
        ValueError: For another number of values, and values that are not finite or, of `std`, not above 0.
    """
    return as_channels(f"{where}mean", mean, channels), as_channels(f"{where}std", std, channels, above=0)


def as_channels(name, value, channels, above=-math.inf):
    values = value.tolist() if hasattr(value, "tolist") else value  # NumPy's arrays and numbers
    values = list(values) if isinstance(values, (list, tuple)) else [values]
    one = "a number" if above == -math.inf else f"a number above {above}"
    try:
        if len(values) not in (1, channels):
            raise ValueError
        for number in values:
            check_number(name, number, above=above)
    except ValueError:
        several = f", or one for each of {channels} channels" if channels > 1 else ""
        raise ValueError(f"{name}: received {shown(value)}; allowed: {one}{several}") from None
    return [float(number) for number in values]


def read_quantity(name: str, text: str, units: str, allowed: str) -> tuple[float, str]:
    """A number above 0 and its unit.

    Args:
        name: The field.
        text: Such as "90s" or "500 steps".
        units: A regular expression of the units.
        allowed: Ends the message.

    Raises:
        ValueError: For another text.
    """
    match = re.fullmatch(rf"(\d+\.?\d*(?:e[+-]?\d+)?)\s*({units})", str(text).strip().lower())
    if not match or not 0 < float(match[1]) < math.inf:
        raise ValueError(f"{name}: received {text!r}; allowed: {allowed}")
    return float(match[1]), match[2]


def read_seconds(name: str, text: str) -> float:
    """Seconds from a time such as `90s`, `10m` or `2h`; without a unit, seconds. Raises a ValueError for another text."""
    amount, unit = read_quantity(name, text, "|[smh]", "a time above 0 such as 90s, 15m or 2h")
    return amount * UNITS[unit or "s"]


def check_choice(name, value, allowed):
    # Types must match too: 1 == True, but a flag does not take 1.
    if not any(isinstance(value, type(choice)) and value == choice for choice in allowed):
        raise ValueError(f"{name}: received {shown(value)}; allowed: {', '.join(str(a) for a in allowed)}")


def check_unused(options, names, where):
    """Raises a ValueError if one of the named options of a command, which have no effect there, is given."""
    for name in names:
        value = getattr(options, name)
        if value not in (None, False):
            received = "true" if value is True else value
            raise ValueError(f"--{name.replace('_', '-')}: received {received}; allowed {where}: none")


def refuse(section, names, where):
    """Raises a ValueError if a named field of a data class, which has no effect here, differs from its default."""
    for name in names:
        value, default = getattr(section, name), type(section).__dataclass_fields__[name].default
        if value != default:
            raise ValueError(f"{name}: received {shown(value)}; allowed: {default!r} {where}")
