"""Checks of arguments, with one wording for every error: `field: received X; allowed: Y`."""

import dataclasses
import difflib
import math
from collections.abc import Iterable


def unknown(where: str, name: str, known: Iterable[str], further: str = "") -> str:
    """The message for an unknown name: what was received, the nearest known name if one is near, and all that are allowed."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{where}: received {name!r}{hint}; allowed: {', '.join(filter(None, (*known, further)))}"


def check_fields(cls, settings: dict, where: str = "") -> None:
    """Raises a ValueError that names the first unknown key of `settings` and the nearest field of `cls`."""
    names = [field.name for field in dataclasses.fields(cls)]
    for name in settings:
        if name not in names:
            raise ValueError(unknown(f"{where}{name}", name, names))


def as_pair(name: str, value: int | tuple[int, int]) -> tuple[int, int]:
    """A positive int or a pair of them, as a pair (height, width)."""
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 1 for v in pair):
        raise ValueError(f"{name}: received {value!r}; allowed: an integer of at least 1, or a pair (height, width)")
    return pair


def check_int(name, value, at_least):
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"{name}: received {value!r}; allowed: an integer of at least {at_least}")


def check_number(name, value, *, at_least=-math.inf, above=-math.inf, at_most=math.inf, below=math.inf):
    """Raises a ValueError unless `value` is a finite number within the bounds."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not (number and at_least <= value <= at_most and above < value < below):
        bounds = {"of at least": at_least, "above": above, "of at most": at_most, "below": below}
        allowed = " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if math.isfinite(bound))
        raise ValueError(f"{name}: received {value!r}; allowed: a number {allowed}")


def check_choice(name, value, allowed):
    # By type too: 1 == True, but 1 is not what a flag takes.
    if not any(isinstance(value, type(choice)) and value == choice for choice in allowed):
        raise ValueError(f"{name}: received {value!r}; allowed: {', '.join(str(a) for a in allowed)}")
