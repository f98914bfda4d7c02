"""`train.precision: auto`: which precision is chosen, that it is written down, and that choosing it changes no number."""

import dataclasses
import time
import types

import keras
import numpy as np
import pytest

from keras_vit import machine
from keras_vit.recipes.parse import load_recipe
from keras_vit.training import speed
from keras_vit.training.finetune import finetune_recipe
from keras_vit.training.loop import train
from keras_vit.training.models import compiled_model
from keras_vit.training.speed import resolve_precision, training_rates, with_precision

MODEL = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16, "dropout": 0.1}
NUMBERS = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")


def auto_recipe(**settings):
    defaults = {"epochs": 2, "warmup_epochs": 1, "batch_size": 256, "ema": 0.9, "optimizer": "adamw", "precision": "auto"}
    return load_recipe("digits", data="digits", model=MODEL, train={**defaults, **settings})


@pytest.fixture
def cpu(monkeypatch):
    """A processor whose matrix products are faster in bfloat16, whatever runs the tests."""
    monkeypatch.setattr(speed, "accelerator", lambda: None)
    monkeypatch.setattr(speed, "has_bfloat16", lambda: True)
    monkeypatch.setattr(speed, "product_gain", lambda *_: 2.0)


def measured(monkeypatch, float32, bfloat16):
    """Makes the measurement find these images/s."""
    rates = {"float32": float32, "bfloat16": bfloat16}
    found = lambda models, *_, **__: [rates[model.dtype_policy.compute_dtype] for model in models]  # noqa: E731
    monkeypatch.setattr(speed, "training_rates", found)


def unmeasured(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("measured")

    monkeypatch.setattr(speed, "training_rates", refuse)


def numbers(run):
    return [[row.get(name) for name in NUMBERS] for row in run.metrics], run.summary["test_loss"]


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"), [(1000, 1500, "bfloat16"), (1000, 1010, "float32"), (1000, 700, "float32")]
)
def test_the_faster_precision_is_chosen(monkeypatch, cpu, float32, bfloat16, chosen):
    measured(monkeypatch, float32, bfloat16)
    recipe = auto_recipe()
    data = recipe.load_data()
    resolved = resolve_precision(recipe.for_data(data), data)
    assert resolved.recipe == with_precision(recipe.for_data(data), chosen)
    assert resolved.reason == (
        f"precision: {chosen}; measured images/s of training: {float32:,} in float32 and {bfloat16:,} in bfloat16"
    )
    assert resolved.prepared[0].dtype_policy.compute_dtype == chosen


@pytest.mark.parametrize(
    ("gain", "again", "chosen"), [(2.0, (469, 720), "bfloat16"), (2.0, (469, 300), "float32"), (1.2, None, "float32")]
)
def test_what_contradicts_the_products_is_measured_once_more(monkeypatch, cpu, gain, again, chosen):
    """A run whose first measurement was disturbed found 40 and 38 images/s."""
    turns = iter([(40, 38), again])
    monkeypatch.setattr(speed, "product_gain", lambda *_: gain)
    monkeypatch.setattr(speed, "training_rates", lambda *_, **__: next(turns))
    recipe = auto_recipe()
    data = recipe.load_data()
    assert resolve_precision(recipe.for_data(data), data).recipe.train.precision == chosen
    assert len(list(turns)) == (again is None)


@pytest.mark.backend
def test_a_run_says_what_it_chose_and_repeats_without_measuring(monkeypatch, capsys, cpu, tmp_path):
    """Truly measured: the model that trains has taken steps before, which must not tell."""
    monkeypatch.setattr(speed, "TURN_SECONDS", 0.05)
    run = train(auto_recipe(), tmp_path / "auto", verbose=2, pictures=False)
    chosen = run.recipe.train.precision
    assert chosen in ("float32", "bfloat16")
    assert run.recipe == with_precision(auto_recipe().for_data(auto_recipe().load_data()), chosen)
    assert run.summary["precision"] == chosen
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("precision: ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"precision: {chosen}; measured images/s")

    unmeasured(monkeypatch)
    again = train(with_precision(auto_recipe(), chosen), tmp_path / "explicit", verbose=0, pictures=False)
    assert numbers(again) == numbers(run)
    train(run.recipe, tmp_path / "parts", until=1, verbose=0, pictures=False)
    part = train(auto_recipe(), tmp_path / "parts", resume=True, verbose=0, pictures=False)
    assert numbers(part) == numbers(run)


def test_a_run_that_states_its_precision_measures_nothing(monkeypatch, tmp_path):
    unmeasured(monkeypatch)
    run = train(auto_recipe(precision="bfloat16", epochs=1), tmp_path / "run", verbose=0, pictures=False)
    assert run.recipe.train.precision == "bfloat16"


@pytest.mark.parametrize(
    ("device", "bfloat16", "chosen"), [("a GPU", True, "bfloat16"), ("an old GPU", False, "float32"), (None, False, "float32")]
)
def test_where_one_is_sure_to_be_faster_nothing_is_measured(monkeypatch, device, bfloat16, chosen):
    unmeasured(monkeypatch)
    monkeypatch.setattr(speed, "accelerator", lambda: device)
    monkeypatch.setattr(speed, "has_bfloat16", lambda: bfloat16)
    resolved = resolve_precision(auto_recipe(), None)
    assert (resolved.recipe.train.precision, resolved.prepared) == (chosen, None)
    why = "computes in it" if bfloat16 else "has no bfloat16"
    assert resolved.reason == f"precision: {chosen}; {device or 'this CPU'} {why}"


def test_where_products_gain_nothing_no_model_is_measured(monkeypatch, cpu):
    unmeasured(monkeypatch)
    monkeypatch.setattr(speed, "product_gain", lambda width, mlp_dim: {(16, 16): 1.04}[width, mlp_dim])
    resolved = resolve_precision(auto_recipe(), None)
    assert (resolved.recipe.train.precision, resolved.prepared) == ("float32", None)
    assert resolved.reason == "precision: float32; this CPU multiplies matrices in bfloat16 at 1.04 times its rate in float32"


@pytest.mark.backend
def test_the_gain_of_products_is_measured(monkeypatch):
    monkeypatch.setattr(speed, "PRODUCT_TURNS", 2)
    assert 0.001 < speed.product_gain(16, 32) < 1000


@pytest.mark.parametrize(("slow", "gain"), [("float32", 4), ("bfloat16", 0.25)])
def test_the_gain_of_products_is_that_of_their_best_turns(monkeypatch, slow, gain):
    """Of multiplications that take 5 and 20 ms, apart from some that take longer."""
    turns = []

    def linear(x, kernel, bias, training):
        assert (tuple(x.shape), tuple(kernel.shape), training) == ((2048, 16), (16, 32), True)
        turns.append(keras.backend.standardize_dtype(x.dtype))
        time.sleep((0.02 if turns[-1] == slow else 0.005) * (1 if len(turns) > 4 else 5))
        return x

    monkeypatch.setattr(speed, "linear", linear)
    monkeypatch.setattr(speed, "PRODUCT_TURNS", 6)
    assert speed.product_gain(16, 32) == pytest.approx(gain, rel=0.3)
    assert turns == ["float32", "bfloat16"] * 6


def test_the_longest_stage_is_measured(monkeypatch, cpu):
    measured(monkeypatch, 2, 1)
    recipe = auto_recipe(epochs=10, stages=[{"until": 0.3, "augment": {"crop": 0}}])
    data = recipe.load_data()
    assert resolve_precision(recipe.for_data(data), data).prepared is None  # the run begins with another model
    recipe = auto_recipe(epochs=10, stages=[{"until": 0.7, "augment": {"crop": 0}}])
    assert resolve_precision(recipe.for_data(data), data).prepared is not None


def test_fine_tuning_starts_from_the_checkpoint_whatever_was_measured(monkeypatch, cpu, tmp_path):
    source = train(auto_recipe(precision="float32", epochs=1), tmp_path / "source", verbose=0, pictures=False)
    measured(monkeypatch, 2, 1)
    settings = {"data": "digits", "train": {"epochs": 1, "precision": "auto"}, "finetune": {"method": "lora"}}
    tuned = train(finetune_recipe(source.path, **settings), tmp_path / "tuned", verbose=0, pictures=False)
    settings["train"] = {"epochs": 1, "precision": "float32"}
    plain = train(finetune_recipe(source.path, **settings), tmp_path / "plain", verbose=0, pictures=False)
    assert tuned.recipe == plain.recipe
    assert numbers(tuned) == numbers(plain)
    assert tuned.summary["checkpoint_notes"] == plain.summary["checkpoint_notes"] != []


# The measurement


@pytest.fixture
def turns(monkeypatch):
    """Models whose turns take given seconds for ten steps, and the order in which they took them."""
    order, clocks = [], iter(())

    def make(*seconds_of_turns):
        def model(index):
            left = iter(seconds_of_turns[index])
            config = types.SimpleNamespace(image_size=(8, 8))
            optimizer = types.SimpleNamespace(variables=[])

            def fit(batches, callbacks, **settings):
                order.append(index)
                callbacks[0].steps, callbacks[0].seconds = 10, next(left)

            return types.SimpleNamespace(variables=[], optimizer=optimizer, config=config, fit=fit)

        return [model(index) for index in range(len(seconds_of_turns))], order

    monkeypatch.setattr(speed, "training_batches", lambda *_, **__: clocks)
    return make


def test_models_take_turns_and_a_slow_moment_does_not_count(turns):
    models, order = turns([1.0, 5.0, 1.0], [5.0, 1.1, 1.1])  # another process runs in the second turn, then in the third
    recipe = dataclasses.replace(auto_recipe(batch_size=20))
    rates = training_rates(models, types.SimpleNamespace(train=None), recipe, turns=3, seconds=4.0)
    assert order[:2] == [0, 1]
    assert rates == [pytest.approx(200), pytest.approx(40)]  # clear after the first turns
    models, order = turns([1.0, 5.0, 1.0], [1.2, 1.1, 5.0])
    rates = training_rates(models, types.SimpleNamespace(train=None), recipe, turns=3, seconds=1.5)
    assert order == [0, 1] * (1 + 3)  # the first measurement took one turn
    assert rates == [pytest.approx(200), pytest.approx(200 / 1.1)]


@pytest.mark.backend
def test_measuring_leaves_the_models_as_they_were():
    recipe = auto_recipe()
    data = recipe.load_data()
    recipe = recipe.for_data(data)
    models = [compiled_model(with_precision(recipe, name), 10)[0] for name in speed.CANDIDATES]
    variables = [variable for model in models for variable in (*model.variables, *model.optimizer.variables)]
    before = [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
    rates = training_rates(models, data, recipe, turns=1, seconds=0.05)
    assert min(rates) > 0
    for variable, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value, err_msg=variable.path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("flags\t: fpu avx512_bf16 sse", True), ("flags\t: fpu avx2", False), ("Features\t: fp bf16", True), ("model: 3", True)],
)
def test_a_processor_says_whether_it_has_bfloat16(monkeypatch, tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{text}\n")
    monkeypatch.setattr(machine, "accelerator", lambda: None)
    monkeypatch.setattr(machine, "Path", lambda name: tmp_path / "cpuinfo")
    assert machine.has_bfloat16() is expected
