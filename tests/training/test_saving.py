"""States within an epoch: a run that ends there goes on to the numbers of one that never did; signals, full disks, `auto`."""

import contextlib
import dataclasses
import errno
import os
import shutil
import signal
import threading
import time

import keras
import numpy as np
import pytest
from helpers import error_line, kill, numpy, start, wait_for
from small import PLAIN, STEPS, column, small_data, small_recipe, trained

from keras_vit.cli import train as command
from keras_vit.data.dataset import Split
from keras_vit.files import PARTIAL
from keras_vit.processes import run_command
from keras_vit.recipes.parts import save_interval
from keras_vit.runs.folder import RunFolder
from keras_vit.training.callbacks import TERMINATED, Diverged, Terminated
from keras_vit.training.finetune import finetune_recipe
from keras_vit.training.session import Session, best_row

backend = pytest.mark.backend
SCRIPT = "experiments/train_cifar.py"
NAMES = ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")


class Broken(Exception):
    pass


class At(keras.callbacks.Callback):
    """Does something before a step of an epoch, and notes all steps."""

    def __init__(self, epoch, step, action):
        super().__init__()
        self.at, self.action, self.seen = (epoch, step), action, []

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.seen.append(f"epoch {epoch} of {self.params['steps']} steps")

    def on_train_batch_begin(self, batch, logs=None):
        self.seen.append(batch)
        if (self.epoch, batch) == self.at:
            self.action()


def fail():
    raise Broken


def send(*numbers):
    def action():
        for number in numbers:
            os.kill(os.getpid(), number)

    return action


def broken(recipe, folder, epoch, step, action=fail, error=Broken, **settings):
    """A run that ends before a step of an epoch."""
    with pytest.raises(error) as caught:
        trained(recipe, folder, callbacks=[At(epoch, step, action)], **settings)
    return RunFolder(folder), caught.value


def place(run):
    """Epochs and steps of the run's state."""
    values = run.read_state()[1]
    return values["epoch"], values["step"]


def assert_same(run, other):
    assert [column(run, name) for name in NAMES] == [column(other, name) for name in NAMES]
    assert run.summary["test_loss"] == other.summary["test_loss"]
    (ours, _), (theirs, _) = run.read_state(), other.read_state()
    assert list(ours) == list(theirs)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)
    for a, b in zip(run.model().weights, other.model().weights, strict=True):
        np.testing.assert_array_equal(numpy(a), numpy(b))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two epochs that nothing stops."""
    return trained(small_recipe(epochs=2), tmp_path_factory.mktemp("runs") / "whole")


# Numbers

DROPOUT = {"model": {"depth": 2, "dropout": 0.2, "drop_path": 0.1}}
CASES = {
    # In the first epoch of the second stage, whose model is another one; later stages get the trained weights, not the averages.
    "stages": {"stages": [{"until": 0.25, "patch_dropout": 0.5}, {"until": 0.75}], "ema": 0.5, "augment": {"mixup": 0.4}},
    # In the middle of an update: two of the accumulated gradients are there.
    "muon": {"optimizer": "muon", "accumulate": 5, "ema": 0.5, "augment": {"cutmix": 1.0}, **DROPOUT},
    # As a time plans them: the average's steps and the end of mixing move with the steps of the epochs.
    "steps": {"steps_per_epoch": [4, 5, 2], "average_last": 0.7, "augment": {"mixup": 0.4, "mix_until": 0.6}},
    "float16": {"precision": "float16", "accumulate": 2},
}
MARKS = {"stages": backend, "muon": backend, "float16": pytest.mark.slow}


@pytest.mark.parametrize("case", [pytest.param(case, marks=MARKS.get(case, ())) for case in CASES])
def test_a_run_goes_on_within_an_epoch_to_the_same_numbers(tmp_path, case):
    whole = trained(small_recipe(**CASES[case]), tmp_path / "whole")
    recipe = small_recipe(save_every="3 steps", **CASES[case])
    run, _ = broken(recipe, tmp_path / "run", 1, 3)
    assert place(run) == (1, 3)
    assert len(run.metrics) == 1
    trained(recipe, run.path, resume=True)
    assert_same(run, whole)


def test_a_run_ends_within_epochs_again_and_again_and_its_extension_too(tmp_path):
    """In the first epoch, twice in one epoch, and in the first epoch of an extension, whose schedule has begun."""
    recipe = small_recipe(epochs=2, ema=0.5)
    whole = trained(recipe, tmp_path / "whole")
    trained(recipe, whole.path, resume=True, extend=2)
    often = small_recipe(epochs=2, ema=0.5, save_every="1 steps")
    run, _ = broken(often, tmp_path / "run", 0, 1)
    broken(often, run.path, 0, 2, resume=True)
    broken(often, run.path, 1, 1, resume=True)
    trained(often, run.path, resume=True)
    broken(often, run.path, 2, 1, resume=True, extend=2)
    assert place(run) == (2, 1)
    trained(often, run.path, resume=True)
    assert_same(run, whole)


def test_a_fine_tuning_goes_on_in_its_first_epoch_without_its_checkpoint(tmp_path):
    checkpoint = trained(small_recipe(epochs=1), tmp_path / "checkpoint")
    settings = {"epochs": 2, "batch_size": 16, "warmup_epochs": 0, "save_every": "3 steps"}
    finetune = {"method": "lora", "lora_rank": 2}
    recipe = finetune_recipe(checkpoint.path, data="made", augment=PLAIN, train=settings, finetune=finetune)
    whole = trained(recipe, tmp_path / "whole")
    run, _ = broken(recipe, tmp_path / "run", 0, 3)
    shutil.rmtree(checkpoint.path)
    assert place(run) == (0, 3)
    assert_same(trained(recipe, run.path, resume=True), whole)


def test_callbacks_see_one_epoch_and_its_seconds_add_up(tmp_path):
    recipe = small_recipe(epochs=2, save_every="3 steps")
    slow = At(0, 0, lambda: time.sleep(0.5))
    with pytest.raises(Broken):
        trained(recipe, tmp_path / "run", callbacks=[slow, At(0, 3, fail)])
    seen, early = At(9, 9, fail), keras.callbacks.EarlyStopping(monitor="loss", patience=1, min_delta=9)
    began = time.perf_counter()
    run = trained(recipe, tmp_path / "run", resume=True, callbacks=[seen, early])
    took = time.perf_counter() - began
    assert slow.seen == ["epoch 0 of 4 steps", 0, 1, 2, 3]
    assert seen.seen == ["epoch 0 of 4 steps", 3, "epoch 1 of 4 steps", 0, 1, 2, 3]
    first, second = run.metrics
    assert 0.5 < first["epoch_seconds"] < first["seconds"] < second["seconds"]
    assert second["seconds"] < took + 0.5 + 2
    assert first["images_per_second"] == pytest.approx(64 / first["epoch_seconds"])


@backend
@pytest.mark.skipif(keras.backend.backend() != "torch", reason="train_step sees its images only where it is not compiled")
def test_each_image_is_trained_on_once(tmp_path, monkeypatch):
    """Also in an epoch that is left twice. Each image has its number as its pixels."""
    data = small_data()
    numbers = np.arange(len(data.train), dtype="uint8")
    data = dataclasses.replace(data, train=Split(np.tile(numbers[:, None, None, None], (1, 8, 12, 1)), data.train.labels))
    seen = []
    train_step = keras.Model.train_step

    def noting(self, batch):
        seen.extend(np.rint(127.5 * (numpy(batch[0])[:, 0, 0, 0] + 1)).astype(int))
        return train_step(self, batch)

    monkeypatch.setattr(keras.Model, "train_step", noting)
    monkeypatch.setattr("small.small_data", lambda: data)
    unmixed = {"mixup": 0, "cutmix": 0, "erasing": 0, "randaugment_layers": 0}
    recipe, folder = small_recipe(epochs=2, save_every="1 steps", augment=unmixed), tmp_path / "run"
    broken(recipe, folder, 0, 1)
    broken(recipe, folder, 0, 3, resume=True)
    done = place(RunFolder(folder))[1]
    again = seen[16 * done : 16 * 3]  # steps after the last state are trained again
    trained(recipe, folder, resume=True)
    del seen[16 * done : 16 * done + len(again)]
    assert len(seen) == 128
    assert sorted(seen[:64]) == sorted(seen[64:]) == list(range(64))


# Signals


@pytest.mark.parametrize(
    ("numbers", "error", "code"),
    [
        pytest.param((signal.SIGTERM,), Terminated, TERMINATED, marks=backend),
        ((signal.SIGUSR1, signal.SIGTERM), Terminated, TERMINATED),
        ((signal.SIGINT,), KeyboardInterrupt, None),
    ],
    ids=["SIGTERM", "twice", "Ctrl-C"],
)
def test_a_signal_finishes_the_step_saves_and_ends(tmp_path, capsys, whole, numbers, error, code):
    recipe = small_recipe(epochs=2)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run, raised = broken(recipe, tmp_path / "run", 1, 2, send(*numbers), error, verbose=2)
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == [signal.SIG_DFL] * 2
    finally:
        signal.signal(signal.SIGINT, before)
    assert getattr(raised, "code", None) == code
    assert place(run) == (1, 3)
    assert "saved after step 3 of 4 in epoch 2\n" in capsys.readouterr().out
    assert_same(trained(recipe, run.path, resume=True), whole)


def test_a_second_interruption_does_not_wait(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run, _ = broken(small_recipe(), tmp_path / "run", 1, 2, send(signal.SIGINT, signal.SIGINT), KeyboardInterrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert place(run) == (1, 0)


def test_a_signal_in_the_validation_of_the_last_epoch_leaves_the_test_for_later(tmp_path, monkeypatch):
    scores = Session.scores

    def warned(self, split, batches):
        if len(self.rows) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return scores(self, split, batches)

    recipe = small_recipe(epochs=2)
    monkeypatch.setattr(Session, "scores", warned)
    with pytest.raises(Terminated):
        trained(recipe, tmp_path / "run")
    monkeypatch.undo()
    run = RunFolder(tmp_path / "run")
    assert place(run) == (2, 0)
    assert not run.is_finished
    assert trained(recipe, run.path, resume="auto").summary["epochs"] == 2


def test_handlers_of_the_program_stay(tmp_path):
    """Its own ones are not replaced, and in another thread there are none."""
    seen = []

    def note():
        seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.signal(signal.SIGTERM, send)
    try:
        trained(small_recipe(epochs=1), tmp_path / "own", callbacks=[At(0, 1, note)])
    finally:
        signal.signal(signal.SIGTERM, before)
    thread = threading.Thread(
        target=trained, args=(small_recipe(epochs=1), tmp_path / "thread"), kwargs={"callbacks": [At(0, 1, note)]}
    )
    thread.start()
    thread.join()
    assert seen == [send, signal.SIG_DFL]
    assert RunFolder(tmp_path / "thread").is_finished


# Processes: whatever the queue does, the same command goes on

LONG = 200  # steps of an epoch
QUEUED = ["--recipe", "digits", "--model.depth", "1", "--model.width", "16", "--model.mlp_dim", "16", "--train.batch_size", "16"]
QUEUED += ["--train.epochs", "2", "--train.warmup_epochs", "0.5", "--train.steps_per_epoch", str(LONG), "--model.dropout", "0.1"]


def run(*options):
    run_command(lambda: command.main([str(option) for option in options]))


def within(folder):
    """The total number of steps of a run's state, where that is one within an epoch; else 0."""
    with contextlib.suppress(ValueError, OSError, TypeError):
        values = RunFolder(folder).read_state()[1]
        return values["step"] and LONG * values["epoch"] + values["step"]
    return 0


@pytest.mark.usefixtures("no_pictures")
def test_the_same_command_goes_on_after_a_kill_and_a_warning(tmp_path, capsys):
    folder, log = tmp_path / "run", tmp_path / "log.txt"
    options = [*QUEUED, "--train.save_every", "10 steps", "--out", str(folder), "--resume", "auto"]
    kill(start(SCRIPT, *options, log=log), lambda: within(folder))
    killed = within(folder)
    process = start(SCRIPT, *options, log=log)
    try:
        wait_for(lambda: within(folder) > killed, process)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(60) == TERMINATED
    finally:
        process.kill()
        process.wait()
    said = log.read_text()
    assert said.endswith(f" --resume {folder}\n")
    assert "Traceback" not in said
    run(*options)
    first = capsys.readouterr().out
    run(*options)  # it has ended: the result again
    assert capsys.readouterr().out.splitlines()[-1] == first.splitlines()[-1]
    run(*QUEUED, "--out", tmp_path / "whole")
    assert_same(RunFolder(folder), RunFolder(tmp_path / "whole"))


WRITES_FOR_EVER = """
import os, pathlib, sys, threading, time
sys.path += "tests", "tests/training"
from small import small_recipe, trained

fsync, calls = os.fsync, []

def stop(handle):
    if threading.current_thread().name.startswith("state"):
        calls.append(handle)
        if len(calls) == 3:
            pathlib.Path(sys.argv[2]).touch()
            time.sleep(99)
    fsync(handle)

os.fsync = stop
trained(small_recipe(epochs=2, save_every="1 steps"), sys.argv[1])
"""


def test_a_kill_while_a_state_is_written_leaves_the_one_before(tmp_path, whole):
    folder, begun = tmp_path / "run", tmp_path / "begun"
    kill(start("-c", WRITES_FOR_EVER, folder, begun, log=tmp_path / "log.txt"), begun.exists)
    assert list((folder / "last").glob(f"{PARTIAL}*.safetensors"))
    assert place(RunFolder(folder)) < (2, 0)
    run = trained(small_recipe(epochs=2), folder, resume=True)
    assert not list((folder / "last").glob(f"{PARTIAL}*"))
    assert_same(run, whole)


# Errors


def test_a_full_disk_ends_the_training(tmp_path, monkeypatch, whole):
    recipe = small_recipe(epochs=2, save_every="2 steps")
    write = RunFolder.write_state

    def full(self, steps, arrays, values):
        if steps == 6:
            assert threading.current_thread() is not threading.main_thread()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "state")
        write(self, steps, arrays, values)

    monkeypatch.setattr(RunFolder, "write_state", full)
    with pytest.raises(OSError, match="No space left"):
        trained(recipe, tmp_path / "run")
    monkeypatch.undo()
    run = RunFolder(tmp_path / "run")
    assert place(run) == (1, 0)
    assert_same(trained(recipe, run.path, resume=True), whole)


def test_states_are_written_one_at_a_time_and_the_training_goes_on(tmp_path, monkeypatch, capsys):
    written, write = [], RunFolder.write_state

    def slow(self, steps, arrays, values):
        if steps == 1:
            time.sleep(1)
        write(self, steps, arrays, values)
        written.append(steps)

    monkeypatch.setattr(RunFolder, "write_state", slow)
    trained(small_recipe(epochs=1, save_every="1 steps"), tmp_path / "run", verbose=2)
    assert written == [1, STEPS]  # at the epoch's end the first has been waited for
    assert capsys.readouterr().out.count("save_every: 1 steps, but writing a state takes longer\n") == 1


def test_a_damaged_model_is_not_replaced_by_weights_within_an_epoch(tmp_path):
    recipe = small_recipe(epochs=3, save_every="3 steps")
    whole = trained(recipe, tmp_path / "whole")
    run, _ = broken(recipe, tmp_path / "run", 1, 3)
    for path in (run.model_path, *run.best.files.paths()):
        path.write_bytes(path.read_bytes()[:999])
    with pytest.warns(UserWarning, match=r"of epoch 1, is damaged .*; the model of the next epoch takes its place$"):
        trained(recipe, run.path, resume=True)
    assert [column(run, name) for name in NAMES] == [column(whole, name) for name in NAMES]
    assert run.summary["best_epoch"] == best_row(run.metrics[1:])["epoch"]


def test_a_state_that_is_not_finite_is_not_kept(tmp_path):
    recipe = small_recipe(epochs=2, save_every="1 steps")

    class Spoil(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                weight = self.model.trainable_variables[0]
                weight.assign(numpy(weight) * np.nan)

    with pytest.raises(Diverged, match="keeps the last finite state"):
        trained(recipe, tmp_path / "run", callbacks=[Spoil()])
    run = RunFolder(tmp_path / "run")
    assert place(run) == (0, 1)
    assert all(np.isfinite(array).all() for array in run.read_state()[0].values())


# Settings


@pytest.mark.parametrize(
    ("text", "steps", "seconds"),
    [("500 steps", 500, np.inf), ("1 step", 1, np.inf), ("90s", np.inf, 90), ("10m", np.inf, 600), ("1.5 h", np.inf, 5400)],
)
def test_intervals(text, steps, seconds):
    assert save_interval(text) == (steps, seconds)


@pytest.mark.parametrize("text", ["", "500", "0 steps", "1.5 steps", "2 epochs", "-1s", "1 day", "nan s"])
def test_other_intervals_are_refused(text):
    with pytest.raises(ValueError, match=r"^save_every: received .*; allowed: 1 epochs, or steps or a time within an epoch such"):
        small_recipe(save_every=text)


def test_time_is_an_interval_too(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(RunFolder, "write_state", lambda self, step, arrays, values: steps.append(step))
    trained(small_recipe(epochs=1, save_every="0.5s"), tmp_path / "run", callbacks=[At(0, 1, lambda: time.sleep(0.6))])
    assert steps[-2:] == [2, STEPS]  # and after the first step, if that was compiled for so long


def test_auto_starts_goes_on_and_ends(tmp_path):
    recipe, folder = small_recipe(epochs=2), tmp_path / "run"
    trained(recipe, folder, resume="auto", until=1)
    run = trained(recipe, folder, resume="auto")
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.name != ".lock"}
    assert trained(recipe, folder, resume="auto").summary["epochs"] == 2
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.name != ".lock"} == before
    with pytest.raises(ValueError, match=r"^run: .* was made by another recipe: train\.epochs 2 there and 3 here$"):
        trained(small_recipe(epochs=3), folder, resume="auto")
    for settings in ({"extend": 1}, {"overwrite": True}):
        with pytest.raises(ValueError, match=rf"^resume: received 'auto'; allowed: true or false with {next(iter(settings))}$"):
            trained(recipe, folder, resume="auto", **settings)
    with pytest.raises(ValueError, match=r"^resume: received 'yes'; allowed: True, False, auto$"):
        trained(recipe, folder, resume="yes")
    assert run.is_finished


def test_the_command_needs_a_folder_for_auto(capsys, tmp_path):
    assert error_line(capsys, command.main, ["--resume", "auto"]).startswith("--out: received none; allowed with --resume auto")
    out = ["--out", str(tmp_path / "run"), "--resume", "auto"]
    said = error_line(capsys, command.main, [*out, "--overwrite"])
    assert said == "--overwrite: received true; allowed with --resume auto: none"
    said = error_line(capsys, command.main, [*out, "--extend", "2"])
    assert said == "--extend: received 2; allowed with --resume auto: none"
