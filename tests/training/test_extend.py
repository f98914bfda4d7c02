"""More epochs for a run that has ended or not: their learning rate, the same numbers after a kill, and from the recipe alone."""

import math

import numpy as np
import pytest
from helpers import error_line, numpy
from small import STEPS, column, small_recipe, trained

from keras_vit.cli import train as command
from keras_vit.processes import run_command
from keras_vit.recipes.parts import Extension
from keras_vit.recipes.schema import TrainConfig
from keras_vit.runs.folder import RunFolder

backend = pytest.mark.backend
NAMES = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")


def assert_same(run, other):
    assert [column(run, name) for name in NAMES] == [column(other, name) for name in NAMES]
    for name in ("test_loss", "best_epoch", "epochs", "trained_parameters"):
        assert run.summary[name] == other.summary[name], name
    for ours, theirs in zip(run.model().weights, other.model().weights, strict=True):
        np.testing.assert_array_equal(numpy(ours), numpy(theirs))


@backend
@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_a_constant_rate_goes_on_as_in_one_longer_run(tmp_path, optimizer):
    """Moments, averages, dropout, order of the images and accumulated gradients go on."""
    settings = {"schedule": "constant", "ema": 0.8, "optimizer": optimizer, "accumulate": 3}
    model = {"dropout": 0.2}
    longer = trained(small_recipe(model=model, **settings), tmp_path / "longer")
    recipe = small_recipe(model=model, epochs=2, **settings)
    first = trained(recipe, tmp_path / "run")
    assert first.summary["epochs"] == 2
    run = trained(recipe, first.path, resume=True, extend=2)
    assert_same(run, longer)
    assert run.recipe.train.extensions == [Extension(2, 2, 0.01)]


def test_an_extension_of_a_cosine_in_parts_and_repeated_by_its_recipe(tmp_path):
    """After a stage, with mixing that ends; extended twice, the first time stopped in its middle."""
    stages = [{"until": 0.5, "patch_dropout": 0.5}]
    recipe = small_recipe(augment={"mixup": 0.4, "mix_until": 0.5}, stages=stages, ema=0.8)
    run = trained(recipe, tmp_path / "run")
    before = column(run, "loss")
    trained(recipe, run.path, resume=True, extend=3, until=5)
    assert not run.is_finished
    assert run.recipe.train.extensions == [Extension(4, 3, 0.005)]  # half of the peak
    trained(recipe, run.path, resume=True)
    trained(run.recipe, run.path, resume=True, extend=2, extend_rate=0.002)
    assert run.summary["epochs"] == 9
    assert column(run, "loss")[:4] == before
    assert run.recipe.train.epochs == 4
    peaks = [0.01] * 4 + [0.005] * 3 + [0.002] * 2
    done = [1 / 4, 2 / 4, 3 / 4, 1, 1 / 3, 2 / 3, 1, 1 / 2, 1]  # at the end of each epoch, of its schedule
    expected = [0.5 * peak * (1 + math.cos(math.pi * share)) for peak, share in zip(peaks, done, strict=True)]
    np.testing.assert_allclose(column(run, "learning_rate"), expected, atol=1e-8)
    assert_same(trained(run.recipe, tmp_path / "again"), run)


def test_an_average_of_the_last_weights_goes_on_and_begins_anew(tmp_path):
    """In parts as in one piece, also with images mirrored in every second epoch; before, the weights themselves are validated."""
    settings = {"augment": {"flip": "alternating"}, "schedule": "constant"}
    recipe, plain = small_recipe(average_last=0.5, **settings), trained(small_recipe(**settings), tmp_path / "plain")
    whole = trained(recipe, tmp_path / "whole")
    same = [ours == theirs for ours, theirs in zip(column(whole, "val_loss"), column(plain, "val_loss"), strict=True)]
    assert same == [True, True, False, False]
    assert column(whole, "loss") == column(plain, "loss")
    run = trained(recipe, tmp_path / "run", until=3)
    assert_same(trained(recipe, run.path, resume=True), whole)
    trained(recipe, run.path, resume=True, extend=2, until=5)
    trained(recipe, run.path, resume=True)
    assert_same(run, trained(recipe, whole.path, resume=True, extend=2))
    longer = trained(small_recipe(epochs=6, **settings), tmp_path / "longer")
    same = [ours == theirs for ours, theirs in zip(column(run, "val_loss"), column(longer, "val_loss"), strict=True)]
    assert same == [True, True, False, False, True, False]


def test_mixing_ends_in_each_part():
    recipe = small_recipe(augment={"mixup": 0.4, "mix_until": 0.5})
    extended = recipe.with_train(extensions=[Extension(4, 2, 0.1)])
    (first, last, stage), (start, end, added) = extended.stages()
    assert (first, last, start, end) == (0, 4, 4, 6)
    assert (stage.augment, added.augment.mix_until * end * STEPS) == (recipe.augment, 5 * STEPS)
    assert (added.train.epochs, added.train.learning_rate, added.train.warmup_epochs) == (2, 0.1, 0)


def test_an_interrupted_run_ends_as_planned_and_goes_on(tmp_path):
    recipe = small_recipe(epochs=3, validate_every=2)
    whole = trained(recipe, tmp_path / "whole")
    trained(recipe, whole.path, resume=True, extend=1)
    run = trained(recipe, tmp_path / "run", until=2)
    trained(recipe, run.path, resume=True, extend=1)
    assert_same(run, whole)
    assert [row["epoch"] for row in run.metrics if "val_loss" in row] == [2, 3, 4]  # the planned end is validated too


def test_patience_counts_anew_in_an_extension(tmp_path, monkeypatch):
    losses = iter((3.0, 2.0, 2.5, 2.6, 9.0, 2.7, 1.9, 2.7, 2.8, 9.0))  # 9 is that of the test images
    monkeypatch.setattr(
        "keras_vit.training.session.Session.scores", lambda self, split, batches: ({"accuracy": 0.5, "loss": next(losses)}, {})
    )
    recipe = small_recipe(epochs=9, patience=2)
    run = trained(recipe, tmp_path / "run")  # better in the second epoch, ends after the fourth
    assert (run.summary["epochs"], run.summary["best_epoch"]) == (4, 2)
    trained(recipe, run.path, resume=True, extend=20)
    assert run.recipe.train.extensions == [Extension(4, 20, 0.005)]
    assert (run.summary["epochs"], run.summary["best_epoch"]) == (8, 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"extend": 2}, "extend: received 2; allowed: 0 unless a run is resumed"),
        ({"extend": -1, "resume": True}, "extend: received -1; allowed: an integer"),
        ({"extend_rate": 0.1, "resume": True}, "extend_rate: received 0.1; allowed: none without extend"),
        ({"extend": 1, "extend_rate": 0.0, "resume": True}, "learning_rate: received 0.0; allowed: a number above 0"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(tmp_path, settings, message):
    run = trained(small_recipe(epochs=1), tmp_path / "run")
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=f"^{message}"):
        trained(small_recipe(epochs=1), run.path, **settings)
    assert {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()} == before


def test_a_run_without_its_state_cannot_be_extended(tmp_path):
    run = trained(small_recipe(epochs=1), tmp_path / "run")
    run.states.paths()[0].unlink()
    with pytest.raises(ValueError, match=r"^extend: received 1; allowed: 0, as '.*' has no training state in last/$"):
        trained(small_recipe(epochs=1), run.path, resume=True, extend=1)
    assert run.is_finished


def test_an_extension_is_not_extended_before_it_has_ended(tmp_path):
    run = trained(small_recipe(epochs=1), tmp_path / "run")
    trained(small_recipe(epochs=1), run.path, resume=True, extend=2, until=2)
    with pytest.raises(ValueError, match=r"^extend: received 2; allowed: none until the extension that '.*' is in has ended"):
        trained(small_recipe(epochs=1), run.path, resume=True, extend=2)


@pytest.mark.parametrize(
    ("extensions", "message"),
    [
        ([{"after": 5, "epochs": 1, "learning_rate": 0.1}], "extensions: received after 5; allowed: 1 to 4"),
        ([{"after": 4, "epochs": 0, "learning_rate": 0.1}], "epochs: received 0"),
        ([{"after": 3, "epochs": 2, "learning_rate": 0.1}, {"after": 3, "epochs": 2, "learning_rate": 0.1}], "allowed: 4 to 5"),
    ],
)
def test_extensions_that_cannot_be_are_named(extensions, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(epochs=4, extensions=extensions)


def test_the_command(capsys, tmp_path):
    fast = ["--model.depth", "1", "--model.width", "16", "--train.epochs", "1", "--train.warmup_epochs", "0"]
    folder = str(tmp_path / "run")
    run_command(lambda: command.main(["--recipe", "digits", *fast, "--out", folder]))
    run_command(lambda: command.main(["--resume", folder, "--extend", "2", "--extend-rate", "1e-4"]))
    said = capsys.readouterr().out
    assert ", 1 epochs and 2 more; " in said
    assert "extension: epochs 2 to 3, learning rate from 0.0001 to 0\n" in said
    assert "Epoch 3/3" in said
    run = RunFolder(folder)
    assert (run.recipe.train.epochs, run.recipe.train.extensions) == (1, [Extension(1, 2, 1e-4)])
    assert run.summary["epochs"] == 3
    assert error_line(capsys, command.main, ["--extend", "3"]) == "--extend: received 3; allowed without --resume: none"
