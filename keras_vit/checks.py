"""Checks of arguments, with one wording for every error: `field: received X; allowed: Y`."""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterable

import numpy as np


def unknown(where: str, name: str, known: Iterable[str], further: str = "") -> str:
    """The message for an unknown name: what was received, the nearest known name if one is near, and all that are allowed."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{where}: received {name!r}{hint}; allowed: {', '.join(filter(None, (*known, further)))}"


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
    """A positive int or a pair of them, as a pair (height, width)."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, numbers.Integral) and not isinstance(v, bool) and v >= 1 for v in pair):
        raise ValueError(f"{name}: received {value!r}; allowed: an integer of at least 1, or a pair (height, width)")
    return tuple(map(int, pair))


def plain(value):
    """A number of NumPy as Python's, which JSON and YAML can hold; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def make_plain(config) -> None:
    """Replaces NumPy's numbers in the fields of a frozen data class by Python's."""
    for field in dataclasses.fields(config):
        object.__setattr__(config, field.name, plain(getattr(config, field.name)))


def check_int(name, value, at_least):
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{name}: received {value!r}; allowed: an integer of at least {at_least}")


def check_seed(seed) -> None:
    """Raises a ValueError unless `seed` is an integer, of Python or NumPy, that every backend takes."""
    if not isinstance(seed, numbers.Integral) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ValueError(f"seed: received {seed!r}; allowed: an integer from 0 to 2^32 - 1")


def check_number(name, value, *, at_least=-math.inf, above=-math.inf, at_most=math.inf, below=math.inf):
    """Raises a ValueError unless `value` is a finite number within the bounds."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not (number and at_least <= value <= at_most and above < value < below):
        bounds = {"of at least": at_least, "above": above, "of at most": at_most, "below": below}
        allowed = " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if math.isfinite(bound))
        raise ValueError(f"{name}: received {value!r}; allowed: a number {allowed}".rstrip())


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
        raise ValueError(f"{name}: received {value!r}; allowed: {one}{several}") from None
    return [float(number) for number in values]


def check_choice(name, value, allowed):
    # Types must match too: 1 == True, but a flag does not take 1.
    if not any(isinstance(value, type(choice)) and value == choice for choice in allowed):
        raise ValueError(f"{name}: received {value!r}; allowed: {', '.join(str(a) for a in allowed)}")
