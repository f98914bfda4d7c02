"""A training that is given a time gets the steps that fit into it."""

import dataclasses
import re
import time

import numpy as np
import pytest

from keras_vit.recipes.parse import load_recipe, parse_recipe
from keras_vit.recipes.schema import TrainConfig
from keras_vit.training import speed
from keras_vit.training.loop import train
from keras_vit.training.steps import Pace, Steps, mixing_steps

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
    monkeypatch.setattr(speed, "image_seconds", lambda recipe, *arguments: ([0.02] * recipe.train.epochs, ("model", [])))
    monkeypatch.setattr(speed, "evaluation_seconds", lambda *arguments: (0.01, 1.0))
    began = time.perf_counter() - 5
    found, pace, reason, prepared = speed.within_time(recipe, data, began, None)
    fixed = 5 + 1 + 0.01 * ((validations + 1) * 144 + 359) + speed.END_SECONDS + 4 * speed.EPOCH_SECONDS
    steps = (120 * (1 - speed.SPARE) - fixed) / 0.02 / 10 / 4
    assert found == recipe.with_train(steps_per_epoch=int(steps))
    assert pace.ends == pytest.approx(began + 120 * (1 - speed.SPARE) - 0.01 * (144 + 359) - speed.END_SECONDS)
    assert pace.costs == (0.2,) * 4
    assert pace.beside == pytest.approx([speed.EPOCH_SECONDS + 1.44 * (epoch % every == 0 or epoch == 4) for epoch in (1, 2, 3, 4)])
    assert prepared == ("model", [])
    assert reason == (
        f"time: 2m; 4 epochs of {int(steps)} steps, {40 * int(steps) / 1294:.1f} passes in all; "
        "measured images/s: 50 in training, 100 in validation"
    )


def test_without_images_to_evaluate_only_training_is_measured(monkeypatch):
    recipe = small(time="2m", epochs=4, batch_size=10)
    data = dataclasses.replace(recipe.load_data(), validation=None, test=None)
    monkeypatch.setattr(speed, "image_seconds", lambda recipe, *arguments: ([0.02] * recipe.train.epochs, ("model", [])))
    found, _, reason, _ = speed.within_time(recipe.for_data(data), data, time.perf_counter(), None)
    steps = found.train.steps_per_epoch
    assert steps == int((120 * (1 - speed.SPARE) - speed.END_SECONDS - 4 * speed.EPOCH_SECONDS) / 0.02 / 10 / 4)
    passes = 40 * steps / len(data.train)
    assert reason == f"time: 2m; 4 epochs of {steps} steps, {passes:.1f} passes in all; measured images/s: 50 in training"


def test_steps_of_epochs():
    steps = Steps((5, 5, 3))
    assert [steps[epoch] for epoch in range(5)] == [5, 5, 3, 3, 3]
    assert [steps.before(epoch) for epoch in range(6)] == [0, 5, 10, 13, 16, 19]
    assert [steps.changes(epoch) for epoch in range(4)] == [False, False, True, False]
    assert [steps.same_until(epoch, 5) for epoch in range(5)] == [2, 2, 5, 5, 5]
    assert steps.replaced(4, 7, 6) == Steps((5, 5, 3, 3, 7, 7))
    assert Steps.of(TrainConfig(batch_size=8), 27) == Steps((3,))
    assert Steps.of(TrainConfig(steps_per_epoch=[4, 2]), 27) == Steps((4, 2))


def test_mixing_ends_at_its_share_of_the_epochs():
    recipe = small(epochs=5)
    recipe = dataclasses.replace(recipe, augment=dataclasses.replace(recipe.augment, mix_until=0.5))
    assert mixing_steps(recipe, recipe, Steps((4,)), 0, 0) == 10
    # Half of the third epoch: as planned in the first, when all had 4, and once the third is known to have 2.
    assert mixing_steps(recipe, recipe, Steps((4, 4, 2)), 0, 2) == 9
    assert mixing_steps(recipe, recipe, Steps((4, 4, 2, 2, 10)), 0, 4) <= 10  # it is over


def test_what_is_left_is_counted_anew():
    """Planned: 10 steps an epoch of 1 s each, and 5 s beside. Everything takes twice as long, then three times, then half."""
    pace = Pace(1000.0, (1.0,) * 8, (5.0,) * 8)
    assert pace.looks == [2, 4, 6, 7]
    assert [pace.next_look(epoch) for epoch in (0, 2, 3, 6, 7)] == [2, 4, 4, 7, 8]
    rows = [{"seconds": 100.0}, {"seconds": 130.0}]  # the first one compiles
    assert pace.steps(rows, Steps((10,)), 700.0) == (300 / 2 - 6 * 5) // 6
    rows += [{"seconds": 205.0}, {"seconds": 280.0}]
    assert pace.steps(rows, Steps((10, 10, 20)), 700.0) == 300 / 3 // 4 - 5
    rows += [{"seconds": 287.5}, {"seconds": 295.0}]
    assert pace.steps(rows, Steps((10,)), 980.0) == 40 // 2 - 5
    assert pace.steps(rows, Steps((10,)), 1001.0) == 1
    assert Pace(1000.0, (1.0,), (0.0,)).looks == []
    assert Pace(1000.0, (1.0,) * 2, (0.0,) * 2).looks == [1]


def test_stages_of_unequal_cost_are_counted_as_they_are():
    """Three quarters of the epochs have small images, whose steps take a quarter of the time; the last one is validated."""
    pace = Pace(420.0, (1.0,) * 6 + (4.0,) * 2, (0.0,) * 7 + (14.0,))
    planned = 29  # (420 - 14) / 14
    rows = [{"seconds": 29.0 * epoch} for epoch in (1, 2)]
    assert pace.steps(rows, Steps((planned,)), 58.0) == planned
    rows = [{"seconds": 29.0 * epoch} for epoch in (1, 2, 3, 4, 5, 6)] + [{"seconds": 290.0}]
    assert pace.steps(rows, Steps((planned,)), 290.0) == planned


@pytest.mark.backend
def test_a_run_with_other_steps_repeats_and_goes_on_alike(tmp_path, monkeypatch):
    """The learning rate goes to zero, whatever the steps; the run's recipe gives the same numbers, also after a stop."""
    planned = iter([5, 6, 2])
    monkeypatch.setattr(Pace, "steps", lambda *arguments: next(planned))
    monkeypatch.setattr(speed, "image_seconds", lambda recipe, *arguments: ([0.3] * recipe.train.epochs, None))
    augment = {"cutmix": 1.0, "mix_until": 0.6}
    recipe = load_recipe("digits", data="digits", model=MODEL, augment=augment, train={"epochs": 4, "time": "5m", "ema": 0.5})
    run = train(recipe, tmp_path / "run", verbose=0, pictures=False)
    first = run.recipe.train.steps_per_epoch[0]
    assert run.recipe.train.steps_per_epoch == [first, 5, 6, 2]
    rates = [row["learning_rate"] for row in run.metrics]
    peak, warmup = run.recipe.train.learning_rate, min(run.recipe.train.warmup_epochs, 2)
    done = [max(epoch - warmup, 0) / (4 - warmup) for epoch in (1, 2, 3, 4)]
    falling = [peak * 0.5 * (1 + np.cos(np.pi * share)) for share in done[1:]]
    np.testing.assert_allclose(rates[1:], falling, rtol=1e-4, atol=1e-9)
    stopped = train(run.recipe, tmp_path / "stopped", until=2, verbose=0, pictures=False)
    assert stopped.recipe.train.steps_per_epoch == [first, 5, 6, 2]
    went_on = train(run.recipe, tmp_path / "stopped", resume=True, verbose=0, pictures=False)
    for name in ("loss", "val_loss"):
        assert [row[name] for row in went_on.metrics] == [row[name] for row in run.metrics]


def test_more_numbers_than_epochs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="steps_per_epoch: received 3 numbers; allowed: at most 2, the epochs"):
        train(small(epochs=2, steps_per_epoch=[4, 4, 4]), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()
    for steps in ([], [0], [3, 1.5], "many"):
        with pytest.raises(ValueError, match="steps_per_epoch: received"):
            small(epochs=2, steps_per_epoch=steps)


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
    monkeypatch.setattr(speed, "image_seconds", lambda recipe, *arguments: ([0.02] * recipe.train.epochs, ("model", [])))
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
        (["--train.steps_per_epoch", "3", "--train.time", "5m"], "5m"),
        (["--seed", "1"], "10m"),
    ],
)
def test_another_length_replaces_the_time_of_a_recipe(tmp_path, options, left):
    file = tmp_path / "mine.yaml"
    file.write_text("data: digits\ntrain: {epochs: 7, time: 10m}\n")
    assert parse_recipe(file, options)[0].train.time == left


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ([], ("10m", [4, 5])),
        (["--train.epochs", "3"], (None, None)),
        (["--train.steps_per_epoch", "3"], (None, 3)),
        (["--train.time", "5m"], ("5m", None)),
        (["--train.epochs", "3", "--train.steps_per_epoch", "6"], (None, 6)),
    ],
)
def test_another_length_replaces_the_steps_that_a_run_has_found(tmp_path, options, left):
    file = tmp_path / "run.yaml"
    file.write_text("data: digits\ntrain: {epochs: 7, time: 10m, steps_per_epoch: [4, 5]}\n")
    train = parse_recipe(file, options)[0].train
    assert (train.time, train.steps_per_epoch) == left


def test_added_epochs_have_as_many_steps_as_the_others(tmp_path):
    recipe = small(epochs=3, steps_per_epoch=[4, 6, 2])
    train(recipe, tmp_path / "run", until=2, verbose=0, pictures=False)
    train(recipe, tmp_path / "run", resume=True, verbose=0, pictures=False)
    run = train(recipe, tmp_path / "run", resume=True, extend=2, verbose=0, pictures=False)
    assert run.recipe.train.steps_per_epoch == [4, 6, 2, 4]
    assert len(run.metrics) == 5


def test_another_length_in_python_replaces_the_time_too(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("data: digits\ntrain: {epochs: 7, time: 10m}\n")
    assert load_recipe(file, train={"epochs": 3}).train.time is None
    assert load_recipe(file, train={"epochs": 3, "time": "1h"}).train.measured_seconds == 3600
    assert load_recipe(file, seed=1).train.measured_seconds == 600
    assert dataclasses.replace(load_recipe(file).train, steps_per_epoch=3).measured_seconds is None


def test_the_least_time_counts_the_share_of_a_teacher(monkeypatch):
    """A teacher that has half of the time has half of a longer one too."""
    monkeypatch.setattr(speed, "image_seconds", lambda recipe, *arguments: ([0.02] * recipe.train.epochs, ("model", [])))
    monkeypatch.setattr(speed, "evaluation_seconds", lambda *arguments: (0.01, 1.0))

    data = small().load_data()

    def within(seconds):
        began = time.perf_counter() - 10 - seconds / 2
        return speed.within_time(small(time=f"{seconds}s").for_data(data), data, began, None, None, seconds / 2)

    with pytest.raises(ValueError, match="allowed: at least") as refused:
        within(20)
    least = int(re.search(r"at least (\d+)s", str(refused.value))[1])
    assert within(least)[0].train.steps_per_epoch == 1
    with pytest.raises(ValueError, match="allowed: at least"):
        within(least - 2)
