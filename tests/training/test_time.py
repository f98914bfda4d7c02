"""A training that is given a time gets the steps that fit into it."""

import dataclasses
import time

import pytest

from keras_vit.recipes.parse import load_recipe, parse_recipe
from keras_vit.training import speed
from keras_vit.training.loop import train

MODEL = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16}


def small(**settings):
    return load_recipe("digits", data="digits", model=MODEL, train={"warmup_epochs": 1, **settings})


@pytest.mark.parametrize(("every", "validations"), [(1, 4), (3, 2)])
def test_steps_are_what_measured_speeds_leave_room_for(monkeypatch, every, validations):
    """Spent already: 5 s, and 1 s to compile. Validation and test take 0.01 s an image, training 0.02 s.

    The validation images are seen once more, for the temperature.
    """
    recipe = small(time="2m", epochs=4, validate_every=every, batch_size=10)
    data = recipe.load_data()
    recipe = recipe.for_data(data)
    monkeypatch.setattr(speed, "image_seconds", lambda *arguments: (0.02, ("model", [])))
    monkeypatch.setattr(speed, "evaluation_seconds", lambda *arguments: (0.01, 1.0))
    found, reason, prepared = speed.within_time(recipe, data, time.perf_counter() - 5, None)
    fixed = 5 + 1 + 0.01 * ((validations + 1) * 144 + 359) + speed.END_SECONDS + 4 * speed.EPOCH_SECONDS
    steps = (120 * (1 - speed.SPARE) - fixed) / 0.02 / 10 / 4
    assert found == recipe.with_train(steps_per_epoch=int(steps))
    assert prepared == ("model", [])
    assert reason == (
        f"time: 2m; 4 epochs of {int(steps)} steps, {40 * int(steps) / 1294:.1f} passes in all; "
        "measured images/s: 50 in training, 100 in validation"
    )


def test_a_time_is_kept_and_the_run_repeats(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "END_SECONDS", 1.0)
    recipe, before = small(epochs=2, time="20s"), time.perf_counter()
    run = train(recipe, tmp_path / "run", verbose=0, pictures=False)
    assert 5 < time.perf_counter() - before < 40  # other tests run beside this one
    steps = run.recipe.train.steps_per_epoch
    assert run.recipe.train.time == "20s"
    assert run.recipe.train.measured_seconds is None
    assert [row["epoch"] for row in run.metrics] == [1, 2]
    half = load_recipe(run.recipe_path, train={"epochs": 1, "steps_per_epoch": 2})  # the same steps, fewer of them
    assert half.train.time is None
    resumed = train(recipe, run.path, resume=True, verbose=0)  # the recipe as it was, whose steps are still to be found
    assert resumed.recipe.train.steps_per_epoch == steps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"time": "5s", "epochs": 40}, "time: received '5s'; allowed: at least .*s for 40 epochs on this machine"),
        ({"time": "soon"}, "time: received 'soon'; allowed: a time above 0 such as 90s, 15m or 2h"),
        ({"time": "0s"}, "time: received '0s'; allowed: a time above 0"),
    ],
)
def test_a_time_that_is_none_or_too_short(monkeypatch, tmp_path, settings, message):
    monkeypatch.setattr(speed, "image_seconds", lambda *arguments: (0.02, ("model", [])))
    monkeypatch.setattr(speed, "evaluation_seconds", lambda *arguments: (0.01, 1.0))
    with pytest.raises(ValueError, match=message):
        train(small(**settings), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ([], "10m"),
        (["--train.epochs", "3"], None),
        (["--train.epochs=3"], None),
        (["--train.steps_per_epoch", "3"], None),
        (["--train", '{"epochs": 3}'], None),
        (["--train", '{"warmup_epochs": 3}'], "10m"),
        (["--train.epochs", "3", "--train.time", "5m"], "5m"),
        (["--train.time", "5m"], "5m"),
        (["--seed", "1"], "10m"),
    ],
)
def test_another_length_replaces_the_time_of_a_recipe(tmp_path, options, left):
    file = tmp_path / "mine.yaml"
    file.write_text("data: digits\ntrain: {epochs: 7, time: 10m}\n")
    assert parse_recipe(file, options)[0].train.time == left


def test_another_length_in_python_replaces_the_time_too(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("data: digits\ntrain: {epochs: 7, time: 10m}\n")
    assert load_recipe(file, train={"epochs": 3}).train.time is None
    assert load_recipe(file, train={"epochs": 3, "time": "1h"}).train.measured_seconds == 3600
    assert load_recipe(file, seed=1).train.measured_seconds == 600
    assert dataclasses.replace(load_recipe(file).train, steps_per_epoch=3).measured_seconds is None
