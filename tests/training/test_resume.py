"""Runs that are killed or interrupted, in processes of their own, go on to the numbers of one that never was."""

import contextlib
import os
import signal
import time

import keras
import numpy as np
import pytest
from helpers import interrupted, interruptible, kill, numpy, start, wait_for

from keras_vit.cli import train as command
from keras_vit.processes import run_command
from keras_vit.recipes.parse import load_recipe
from keras_vit.runs.folder import RunFolder
from keras_vit.training.loop import train

pytestmark = [pytest.mark.backend, pytest.mark.usefixtures("no_pictures")]
SCRIPT = "experiments/train_cifar.py"


def run(*options):
    run_command(lambda: command.main([str(option) for option in options]))


# Everything that has a state: dropout seeds, augmentation, momentum, schedule, averaged weights, accumulation; then the
# scale of the loss, a best model that is older than the state, and a kill before anything was written.
MUON = ("--train.accumulate", "2", "--augment.mixup", "0.4")
FLOAT16 = ("--train.optimizer", "adamw", "--train.precision", "float16", "--train.validate_every", "2")
SETTINGS = ["--recipe", "digits", "--model.depth", "1", "--model.dropout", "0.2", "--model.drop_path", "0.1"]
SETTINGS += ["--train.epochs", "4", "--train.warmup_epochs", "1"]
# The command with a disk so slow that a kill finds it writing.
SLOW = f"""
import os, runpy, sys, time
write = os.fsync
os.fsync = lambda handle: (time.sleep(0.5), write(handle))
sys.argv[:1] = [{SCRIPT!r}]
runpy.run_path({SCRIPT!r}, run_name="__main__")
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that is never killed, made once for the same options."""
    made = {}

    def make(options):
        if options not in made:
            made[options] = tmp_path_factory.mktemp("whole") / "run"
            run(*SETTINGS, *options, "--out", made[options])
        return RunFolder(made[options])

    return make


def lines_in(folder, count):
    """Whether metrics.csv has so many lines; of none whether the training begins. Then waits, to be anywhere in an epoch."""
    metrics, picture = folder / "metrics.csv", folder / "plots" / "batch.png"
    if not (metrics.is_file() and metrics.read_text().count("\n") >= count if count else picture.is_file()):
        return False
    time.sleep(np.random.default_rng().uniform(0, 0.3))  # in an epoch, in validation, while writing
    return True


def writes_a_state(folder, count):
    """Whether another state is being written beside so many."""
    last = folder / "last"
    return len(list(last.glob("state-*"))) == count and list(last.glob(".partial-*.safetensors"))


@pytest.mark.parametrize(
    ("options", "moment", "count"),
    [
        (MUON, lines_in, 3),
        pytest.param(MUON, writes_a_state, 2, marks=pytest.mark.slow),
        pytest.param(MUON, writes_a_state, 1, marks=pytest.mark.slow),
        pytest.param(FLOAT16, lines_in, 4, marks=pytest.mark.slow),
        pytest.param(MUON, lines_in, 0, marks=pytest.mark.slow),
    ],
    ids=["muon", "while writing", "while writing the second", "float16", "first epoch"],
)
def test_killed_run_ends_like_one_that_never_was(tmp_path, whole, options, moment, count):
    """The whole run and the resumed one are trained in this process, the one that is killed in another."""
    folder, whole = tmp_path / "killed", whole(options)
    program = (SCRIPT,) if moment is lines_in else ("-c", SLOW)
    kill(start(*program, *SETTINGS, *options, "--out", folder, log=tmp_path / "log.txt"), lambda: moment(folder, count))
    if moment is writes_a_state:
        assert list(folder.glob("last/.partial-*"))
    run("--resume", folder)
    assert not list(folder.rglob(".partial-*"))
    killed = RunFolder(folder)
    timeless = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")
    assert [[row.get(name) for name in timeless] for row in killed.metrics] == [
        [row.get(name) for name in timeless] for row in whole.metrics
    ]
    assert killed.summary["test_loss"] == whole.summary["test_loss"]
    assert killed.summary["best_epoch"] == whole.summary["best_epoch"]
    for a, b in zip(killed.model().weights, whole.model().weights, strict=True):
        np.testing.assert_array_equal(numpy(a), numpy(b))


@pytest.mark.slow
def test_memory_does_not_grow_from_epoch_to_epoch(tmp_path):
    start(SCRIPT, "--recipe", "digits", "--train.epochs", "8", "--out", tmp_path / "run", log=tmp_path / "log.txt").wait(300)
    memory = [row["memory_mb"] for row in RunFolder(tmp_path / "run").metrics]
    assert len(memory) == 8
    assert memory[-1] - memory[2] < 40


LONG = ["--recipe", "digits", "--model.depth", "1", "--train.epochs", "500"]


def test_interrupt_in_the_first_step_says_how_to_go_on(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log.txt"
    process = start(SCRIPT, *LONG, "--out", folder, log=log)
    try:
        wait_for((folder / "plots" / "batch.png").is_file, process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(120) == 130, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert f"--resume {folder}" in log.read_text()
    assert "Traceback" not in log.read_text()


@interruptible
def test_interrupt_after_an_epoch_says_how_to_go_on(capsys, tmp_path):
    folder = tmp_path / "run"
    with interrupted((folder / "metrics.csv").is_file), pytest.raises(SystemExit) as stopped:
        run(*LONG, "--out", folder)
    assert stopped.value.code == 130
    assert f"--resume {folder}" in "".join(capsys.readouterr())


def test_an_interruption_that_keras_swallows_ends_the_training(tmp_path):
    """Whatever is raised while a model is traced gets lost under PyTorch; an error of the clean-up hides it under JAX."""

    class Swallow(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)

    class Hide(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
            finally:
                raise TypeError("of the clean-up")

    recipe = load_recipe("digits", model={"depth": 1, "width": 16, "mlp_dim": 16}, train={"epochs": 1})
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for callback in (Swallow(), Hide()):
            with pytest.raises(KeyboardInterrupt):
                train(recipe, tmp_path / "run", overwrite=True, callbacks=[callback], verbose=0, pictures=False)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert RunFolder(tmp_path / "run").metrics == []
