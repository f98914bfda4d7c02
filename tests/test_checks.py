"""Checks of arguments: what passes, and one wording for what does not."""

import dataclasses

import numpy as np
import pytest

from keras_vit.checks import as_moments, as_pair, check_choice, check_fields, check_int, check_number, check_seed


@dataclasses.dataclass
class Settings:
    epochs: int = 1
    batch_size: int = 2


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
