"""Checks of arguments: what passes, and one wording for what does not."""

import dataclasses
import typing

import numpy as np
import pytest

from keras_vit.checks import (
    as_moments,
    as_pair,
    check_choice,
    check_fields,
    check_int,
    check_number,
    check_seed,
    check_types,
    make,
    shown,
    visible,
)


@dataclasses.dataclass
class Settings:
    epochs: int = 1
    batch_size: int = 2


@dataclasses.dataclass
class Part:
    share: float


@dataclasses.dataclass
class Typed:
    size: int | tuple[int, int] = 1
    kind: typing.Literal["a", "b"] | dict[str, float] = "a"
    rates: float | list[float] | None = None
    parts: list[Part] = dataclasses.field(default_factory=list)
    further: dict[str, typing.Any] = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (
            lambda: check_fields(Settings, {"epoch": 3}, "train"),
            "train: received 'epoch' (did you mean 'epochs'?); allowed: epochs, batch_size",
        ),
        (lambda: check_fields(Settings, {"zzz": 3}, "train"), "train: received 'zzz'; allowed: epochs, batch_size"),
        (lambda: check_fields(Settings, {"zzz": 3}), "Settings: received 'zzz'; allowed: epochs, batch_size"),
        (lambda: as_pair("size", (1, 0)), "size: received (1, 0); allowed: an integer of at least 1, or a pair (height, width)"),
        (lambda: check_int("depth", 1.0, at_least=1), "depth: received 1.0; allowed: an integer of at least 1"),
        (lambda: check_int("depth", True, at_least=1), "depth: received True; allowed: an integer of at least 1"),
        (lambda: check_number("rate", 1, above=0, below=1), "rate: received 1; allowed: a number above 0 and below 1"),
        (lambda: check_number("rate", float("nan"), at_least=0), "rate: received nan; allowed: a number of at least 0"),
        (lambda: check_choice("flag", 1, (True, False)), "flag: received 1; allowed: True, False"),
        (lambda: check_int("depth", 7, 1, 6), "depth: received 7; allowed: an integer from 1 to 6"),
        (
            lambda: check_int("depth", 2**60, 1),
            "depth: received 1152921504606846976; allowed: an integer from 1 to 9007199254740992",
        ),
        (
            lambda: as_pair("size", [1, 65537]),
            "size: received [1, 65537]; allowed: an integer from 1 to 65536, or a pair (height, width)",
        ),
        (lambda: check_number("rate", 10**400), "rate: received an integer of 1,329 bits; allowed: a number"),
        (lambda: check_types(Typed(size="3")), "size: received '3'; allowed: an integer or a pair (height, width)"),
        (lambda: check_types(Typed(size=[1, 2, 3])), "size: received [1, 2, 3]; allowed: an integer or a pair (height, width)"),
        (lambda: check_types(Typed(kind="c")), "kind: received 'c'; allowed: a, b or a mapping, each value a number"),
        (lambda: check_types(Typed(kind={"x": "y"})), "kind: received {'x': 'y'}; allowed: a, b or a mapping, each value a number"),
        (
            lambda: check_types(Typed(rates=[True])),
            "rates: received [True]; allowed: a number or a list, each item a number or null",
        ),
        (lambda: check_types(Typed(parts=3), "parts"), "parts: received 3; allowed: a list, each item a Part"),
        (lambda: check_types(Typed(parts=[3]), "parts"), "parts: received 3; allowed: a mapping of settings"),
        (lambda: check_types(Typed(parts=[{}]), "parts"), "parts.share: received none; allowed: a value"),
        (lambda: check_types(Typed(parts=[{"shar": 1}])), "parts: received 'shar' (did you mean 'share'?); allowed: share"),
        (lambda: check_types(Typed(further=[1])), "further: received [1]; allowed: a mapping"),
        (lambda: make(Part, None, "part"), "part: received None; allowed: a mapping of settings"),
        (lambda: check_seed(-1), "seed: received -1; allowed: an integer from 0 to 2^32 - 1"),
        (lambda: check_seed(2**32), "seed: received 4294967296; allowed: an integer from 0 to 2^32 - 1"),
        (lambda: check_seed(True), "seed: received True; allowed: an integer from 0 to 2^32 - 1"),
        (lambda: as_moments((0.1, 0.2), 1, 3), "mean: received (0.1, 0.2); allowed: a number, or one for each of 3 channels"),
        (lambda: as_moments("0.5", 1, 1), "mean: received '0.5'; allowed: a number"),
        (lambda: as_moments([[0.5]], 1, 1), "mean: received [[0.5]]; allowed: a number"),
        (
            lambda: as_moments(0.5, [1, 0, 1], 3),
            "std: received [1, 0, 1]; allowed: a number above 0, or one for each of 3 channels",
        ),
        (lambda: as_moments(0.5, float("inf"), 1, "a.json: "), "a.json: std: received inf; allowed: a number above 0"),
    ],
)
def test_messages(check, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check()
    assert str(caught.value) == message


def test_what_is_right_passes():
    check_fields(Settings, {"epochs": 3})
    check_seed(np.int64(5))
    check_seed(2**32 - 1)
    assert as_pair("size", 3) == as_pair("size", [3, 3]) == (3, 3)
    for mean, std in ((0, 1), ([0], (1,)), (np.zeros(1), np.float32(1)), (np.float64(0), np.ones(1, "float32"))):
        assert as_moments(mean, std, 3) == ([0.0], [1.0])
    mean, std = as_moments((1, 2, 3), np.array([1, 2, 3]), 3)
    assert mean == std == [1.0, 2.0, 3.0]
    assert {type(value) for value in mean + std} == {float}


def test_types_that_are_right_pass():
    for size, rates in ((1, None), ((1, 2), 0.5), ([1, 2], [1, 0.5]), (np.int64(1), (1.0,))):
        check_types(Typed(size, {"x": 1}, rates, [Part(1.0), {"share": 2.0}], {"any": [None]}))
    check_types(Typed(size="3"), "kind")  # the others are not looked at
    assert make(Part, {"share": 0.5}, "part") == Part(0.5)


def test_received_values_are_shortened_whatever_they_are():
    loop, deep = [], []
    loop.append(loop)
    for _ in range(100_000):
        deep = [deep]

    class Odd:
        def __repr__(self):
            raise RuntimeError

    for value in ("x" * 10**6, [0] * 10**6, {str(n): n for n in range(1000)}, 10**5000, loop, deep, Odd(), np.zeros((100, 100))):
        assert 0 < len(shown(value)) < 500
        assert "\n" not in shown(value)
    assert [shown(value) for value in (3, -0.5, "a  b", [1, "a"], None)] == ["3", "-0.5", "'a  b'", "[1, 'a']", "None"]


def test_control_characters_become_escapes():
    assert visible("a\x1b[31mb\nc\x9b\u202ed\u2067\ud800é") == r"a\x1b[31mb\nc\x9b\u202ed\u2067\ud800é"
    assert visible(visible("\x1b")) == r"\x1b"
