"""What breaks while a run trains, and a run that is broken when it is to go on: nothing that was intact is lost."""

import contextlib
import errno
import os
import shutil
import time
import warnings

import keras
import numpy as np
import pytest
from helpers import numpy, one_line_error
from PIL import Image
from small import STEPS, column, small_recipe, trained

from benchmarks.damage import damages
from keras_vit import machine
from keras_vit.locks import LOCK, Lock
from keras_vit.recipes.parse import load_recipe
from keras_vit.runs.folder import RunFolder
from keras_vit.training.loop import train
from keras_vit.training.session import Session, best_row

backend = pytest.mark.backend
NAMES = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")
RECIPE = small_recipe(ema=0.5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return trained(RECIPE, tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """The same run, stopped after three of four epochs."""
    return trained(RECIPE, tmp_path_factory.mktemp("runs") / "three", until=3)


@pytest.fixture
def half(three, tmp_path):
    """A copy of it that a test may spoil."""
    run = RunFolder(shutil.copytree(three.path, tmp_path / "half"))
    run.best.path.unlink()
    run.best.choose(best_row(run.metrics)["epoch"])
    return run


def files(run):
    return {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file() and file.name != LOCK}


def assert_same(run, other):
    assert [column(run, name) for name in NAMES] == [column(other, name) for name in NAMES]
    assert [run.summary[name] for name in ("test_loss", "best_epoch")] == [
        other.summary[name] for name in ("test_loss", "best_epoch")
    ]
    for ours, theirs in zip(run.model().weights, other.model().weights, strict=True):
        np.testing.assert_array_equal(numpy(ours), numpy(theirs))


@contextlib.contextmanager
def warned(*messages):
    """Expects these warnings, in order, each in one line, and no others."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        yield
    said = [str(each.message) for each in said if issubclass(each.category, UserWarning)]
    assert len(said) == len(messages), said
    for line, message in zip(said, messages, strict=True):
        assert message in line
        assert "\n" not in line


class At(keras.callbacks.Callback):
    """Does something once, at a step of an epoch from 0."""

    def __init__(self, epoch, step, do):
        super().__init__()
        self.place, self.do = (epoch, step), do

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.place:
            self.do()


# Two trainings on one folder


@pytest.mark.parametrize("settings", [{}, {"overwrite": True}, {"resume": True}, {"resume": True, "extend": 2}], ids=str)
def test_a_second_training_on_a_folder_is_refused_and_changes_nothing(half, settings):
    before = files(half)
    with (
        Lock(half.path, "run"),
        one_line_error(rf"^run: received '{half.path}', in use by process {os.getpid()} on .* since .*; allowed: another folder"),
    ):
        trained(RECIPE, half.path, **settings)
    assert files(half) == before


def test_a_run_is_held_while_it_trains_and_can_be_read(tmp_path):
    seen = []

    def look():
        run = RunFolder(tmp_path / "run")
        with one_line_error(f"in use by process {os.getpid()} on "):
            trained(small_recipe(epochs=2), run.path, overwrite=True)
        seen.append((len(run.metrics), run.model().config, run.read_state()[1]["epoch"]))

    run = trained(RECIPE, tmp_path / "run", callbacks=[At(2, 1, look)])
    assert seen == [(2, run.model().config, 2)]
    assert run.summary["epochs"] == 4
    assert (run.path / LOCK).read_text() == ""
    with Lock(run.path, "run"):
        pass


def test_a_refused_training_leaves_no_folder_and_no_lock(tmp_path):
    wrong = small_recipe(batch_size=5000)
    with pytest.raises(ValueError, match="batch_size"):
        trained(wrong, tmp_path / "a" / "b")
    with pytest.raises(ValueError, match="accumulate"):
        trained(small_recipe(accumulate=1000), tmp_path / "a" / "b")
    with pytest.raises(ValueError, match="is no folder"):
        trained(RECIPE, tmp_path / "a" / "b", resume=True)
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="accumulate"):
        trained(small_recipe(accumulate=1000), tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())
    (tmp_path / "mine" / LOCK).touch()  # of a process that was killed before it wrote anything
    assert trained(small_recipe(epochs=1), tmp_path / "mine").is_finished


# Damage found by a run that goes on


def test_a_damaged_state_is_found_and_the_one_before_leads_to_the_same_numbers(half, whole):
    state = half.states.paths()[0]
    assert [path.name for path in half.states.paths()] == [f"state-{STEPS * epoch:09}.safetensors" for epoch in (3, 2)]
    state.write_bytes(damages(state.read_bytes())["a bit in part 7 of 8"])
    (half.path / "metrics.csv").write_bytes(b"epoch,nonsense")  # the state knows the rows
    with warned(f"{state.name}' is damaged (it does not fit its SHA-256); the run goes on after epoch 2, with the state before"):
        trained(RECIPE, half.path, resume=True)
    assert_same(half, whole)
    assert [path.name for path in half.states.paths()] == [f"state-{STEPS * epoch:09}.safetensors" for epoch in (4, 3)]


def test_without_an_intact_state_nothing_is_overwritten(half):
    for state in half.states.paths():
        state.write_bytes(b"")
    before = files(half)
    with one_line_error("no state is left to go on from"):
        trained(RECIPE, half.path, resume=True)
    assert files(half) == before


def spoil_best(run):
    """Damages best.keras and its other name, which is the same file."""
    run.model_path.write_bytes(run.model_path.read_bytes()[:1000])


@pytest.fixture
def scores(monkeypatch):
    """Sets the validation loss of each epoch."""

    def set_scores(*losses):
        def scores(self, split, batches):
            return {"accuracy": 0.5, "loss": losses[getattr(self, "epoch", 0)]}, {}

        monkeypatch.setattr(Session, "scores", scores)

    return set_scores


def test_a_damaged_best_model_of_the_last_epoch_is_written_anew(tmp_path, scores):
    scores(0.5, 0.1, 0.3)
    whole = trained(small_recipe(epochs=3, ema=0.5), tmp_path / "whole")
    run = trained(small_recipe(epochs=3, ema=0.5), tmp_path / "run", until=2)
    spoil_best(run)
    with warned("best.keras', of epoch 2, is damaged (File is not a zip file); it is written anew from the training state"):
        trained(small_recipe(epochs=3, ema=0.5), run.path, resume=True)
    assert run.summary["best_epoch"] == 2
    assert_same(run, whole)


def test_a_damaged_best_model_gives_way_to_the_one_before_until_a_better_one_comes(tmp_path, scores):
    """The model of the second epoch, the best, is lost: the fourth is no better, but the best whose weights are there."""
    scores(0.2, 0.1, 0.6, 0.15)
    run = trained(small_recipe(), tmp_path / "run", until=3)
    assert [path.name for path in run.best.files.paths()] == ["best-000002.keras", "best-000001.keras"]
    first = run.best.files.path(1).read_bytes()
    spoil_best(run)
    seen = []
    look = At(3, 0, lambda: seen.append(run.model_path.read_bytes()))
    with warned("of epoch 2, is damaged (File is not a zip file); the model of epoch 1 takes its place"):
        trained(small_recipe(), run.path, resume=True, callbacks=[look])
    assert seen == [first]
    assert (run.summary["best_epoch"], run.summary["val_loss"]) == (4, 0.15)


@pytest.mark.parametrize(("losses", "best"), [((0.2, 0.1, 0.6), 1), ((0.2, 0.3, 0.1), 3)])
def test_a_best_model_damaged_while_the_run_trains_does_not_lose_the_training(tmp_path, scores, losses, best):
    """Found when the test images are read: the model before takes its place, or the last weights are written anew."""
    scores(*losses)

    class Spoil(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            spoil_best(RunFolder(tmp_path / "run"))

    with warned("the model of epoch 1 takes its place" if best == 1 else "written anew from the training state"):
        run = trained(small_recipe(epochs=3), tmp_path / "run", callbacks=[Spoil()])
    assert run.summary["best_epoch"] == best
    assert run.summary["val_loss"] == losses[best - 1]
    assert run.model_path.samefile(run.best.files.path(best))
    assert run.model().count_params() == run.summary["parameters"]


def test_a_damaged_summary_is_written_anew(half, whole):
    run = RunFolder(shutil.copytree(whole.path, half.path.with_name("copy")))
    expected = run.summary
    text = (run.path / "summary.json").read_text(encoding="utf-8")
    (run.path / "summary.json").write_text(text.replace('"test_loss": ', '"test_loss": 1'), encoding="utf-8")
    with one_line_error(r"^run: '.*summary.json' is damaged \(.*\); the run writes it anew if it is resumed"):
        _ = run.summary
    with warned("summary.json' is damaged (it does not fit its digest)"):
        trained(RECIPE, run.path, resume=True)
    assert {name: run.summary[name] for name in ("test_loss", "best_epoch", "seed", "class_names")} == {
        name: expected[name] for name in ("test_loss", "best_epoch", "seed", "class_names")
    }


# What breaks while a run trains


@pytest.mark.parametrize("what", ["moved", "made anew"])
def test_a_run_folder_that_is_gone_ends_the_training_and_is_not_made_again(half, whole, what):
    away = half.path.with_name("away")

    def change():
        half.path.rename(away)
        if what == "made anew":
            shutil.copytree(whole.path, half.path)

    message = rf"^run: '{half.path}' was deleted, moved or replaced during the training, which ends here$"
    with one_line_error(message):
        trained(RECIPE, half.path, resume=True, callbacks=[At(3, 1, change)])
    assert half.path.exists() == (what == "made anew")
    if what == "made anew":
        assert_same(half, whole)
    if what == "moved":
        assert_same(trained(RECIPE, away, resume=True), whole)


def test_a_write_that_fails_ends_the_training_and_leaves_a_run_that_goes_on(half, whole, monkeypatch):
    """An NFS server that is gone when the last state is to be renamed; test_damage.py has every write and other errors."""
    real = os.replace

    def failing(source, target):
        if os.path.basename(target) == f"state-{4 * STEPS:09}.safetensors":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="Stale file handle") as caught:
            trained(RECIPE, half.path, resume=True)
    assert caught.value.filename == str(half.path / "last" / f"state-{4 * STEPS:09}.safetensors")
    assert not list(half.path.rglob(".partial-*"))
    assert_same(trained(RECIPE, half.path, resume=True), whole)


def test_a_clock_that_goes_back_changes_no_duration(monkeypatch):
    real, before = time.time, machine.process_seconds()
    monkeypatch.setattr(time, "time", lambda: real() - 86_400)
    assert 0 < machine.process_seconds() - before < 60


@backend
def test_images_that_vanish_within_an_epoch_are_named_and_the_run_goes_on_when_they_are_back(tmp_path):
    photos, rng = tmp_path / "photos", np.random.default_rng(0)
    for index in range(48):
        file = photos / "ab"[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (10, 10), dtype=np.uint8)).save(file)
    settings = {"epochs": 3, "batch_size": 8, "warmup_epochs": 0}
    model = {"depth": 1, "width": 8, "mlp_dim": 8, "num_heads": 2, "stem": "patch", "stem_depth": 0, "patch_size": 4}
    recipe = load_recipe("digits", data=f"folder:{photos}", model=model, augment={"resized_crop": 0.5}, train=settings)
    whole = train(recipe, tmp_path / "whole", verbose=0, pictures=False)
    vanish = At(1, 1, lambda: photos.rename(tmp_path / "away"))
    with one_line_error(rf"^data: '{photos}/.*png' was readable and is no longer: No such file or directory$"):
        train(recipe, tmp_path / "run", verbose=0, pictures=False, callbacks=[vanish])
    with one_line_error("there is no such folder"):
        train(recipe, tmp_path / "run", verbose=0, pictures=False, resume=True)
    (tmp_path / "away").rename(photos)
    run = train(recipe, tmp_path / "run", verbose=0, pictures=False, resume=True)
    assert [column(run, name) for name in NAMES] == [column(whole, name) for name in NAMES]
    assert run.summary["test_loss"] == whole.summary["test_loss"]
