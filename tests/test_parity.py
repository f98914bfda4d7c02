"""The command that compares backends: it finds what differs, says where, and its exit code tells."""

import json

import numpy as np
import pytest
from helpers import SMALL, error_line, numpy

from keras_vit import RunFolder, ViTConfig, build_vit, load_recipe, parity
from keras_vit.backend import installed_backends
from keras_vit.cli.parity import load_target, main, parse_model

BACKENDS = installed_backends()
SMALL = {**SMALL, "num_classes": 3}
SETTINGS = ["--model.image_size=[8,12]", "--model.width=8", "--model.depth=1", "--model.num_heads=2", "--model.mlp_dim=12"]


@pytest.fixture(scope="module")
def numbers():
    return parity.measure(parity.randomise(build_vit(ViTConfig(**SMALL))), 4, timed_seconds=0)


def changed(numbers, name, by):
    return {key: value + by if key == name else value for key, value in numbers.items()}


def test_equal_numbers_pass(numbers):
    differences = parity.compare({"tensorflow": numbers, "jax": numbers, "torch": numbers})
    assert [(d.quantity, d.backend, d.largest, d.passed) for d in differences] == [
        (quantity, backend, 0.0, True) for backend in ("jax", "torch") for quantity in parity.THRESHOLDS
    ]


@pytest.mark.parametrize("quantity", parity.THRESHOLDS)
@pytest.mark.parametrize(("share", "passed"), [(0.5, True), (2.0, False), (np.nan, False)])
def test_a_difference_is_found_and_named(numbers, quantity, share, passed):
    name = next(key for key in numbers if key.partition("/")[0] == quantity)
    scale = {
        "logits": max(1, np.abs(numbers[name]).max()),
        "loss": max(1, np.abs(numbers[name]).max()),
        "gradients": np.abs(numbers[name]).max(),
        "weights": parity.STEPS * parity.LEARNING_RATE,
    }[quantity]
    other = changed(numbers, name, share * parity.THRESHOLDS[quantity] * scale)
    differences = {d.quantity: d for d in parity.compare({"tensorflow": numbers, "jax": other})}
    assert differences.pop(quantity).passed == passed
    assert all(d.passed for d in differences.values())
    if not passed:
        found = next(d for d in parity.compare({"tensorflow": numbers, "jax": other}) if d.quantity == quantity)
        assert found.where == name.partition("/")[2]


def test_three_steps_move_every_weight(numbers):
    before = parity.randomise(build_vit(ViTConfig(**SMALL)))
    for weight in before.trainable_weights:
        moved = np.abs(numbers[f"weights/{weight.path}"] - numpy(weight))
        assert moved.max() > 0.1 * parity.LEARNING_RATE, weight.path


def test_a_run_is_measured_with_its_own_weights(tmp_path):
    run = RunFolder.create(tmp_path / "run", load_recipe("quick"))
    model = parity.randomise(build_vit(ViTConfig(**SMALL, drop_path=0.5)), seed=3)
    run.write_model(1, model)
    loaded = parity.load_model(load_target(str(run.path), {}))
    assert loaded.config.drop_path == 0
    for ours, theirs in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "target: received 'nothing'; allowed: a run folder"),
        (["nothing.keras"], "target: received"),
        (["Ti/4", "--model.depht", "3"], "depht"),
        (["Ti/5"], "patch_size: received 5; allowed: "),
        (["--backends", "numpy"], "backends: received 'numpy'; allowed: "),
        (["--backends", BACKENDS[0]], f"backends: received {BACKENDS[0]}; allowed: two or more of "),
        (["--batch_size", "0"], "batch_size: received 0"),
        (["--exports", "pdf"], "exports: received 'pdf'; allowed: tf_saved_model"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, message):
    assert message in error_line(capsys, main, arguments)


def test_settings_count_as_stated_even_if_they_are_the_defaults():
    assert parse_model(["--model.depth", "12", "--model.width=768"]) == {"depth": 12, "width": 768}
    assert parse_model([]) == {}


@pytest.mark.skipif(len(BACKENDS) < 2, reason="compares two backends")
def test_command(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # JAX as its users run it
    options = ["Ti/4", *SETTINGS, "--batch-size=3", f"--json={tmp_path / 'parity.json'}", "--backends", ",".join(BACKENDS[-2:])]
    assert main(options) == 0
    result = json.loads((tmp_path / "parity.json").read_text())
    assert [d["quantity"] for d in result["differences"]] == list(parity.THRESHOLDS)
    assert all(d["largest"] <= d["threshold"] for d in result["differences"])
    assert min(speed for speeds in result["images_per_second"].values() for speed in speeds.values()) > 0
    assert "passed" in capsys.readouterr().out
