"""Trials as processes: what goes wrong ends one of them; a search killed anywhere ends like one that never was."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from helpers import LIGHT, children, interrupted, interruptible, wait_for
from searches import epochs, make, outcome

from keras_vit.search.oracle import WORST, HyperbandOracle

MB = 2**20


@pytest.mark.parametrize("workers", [1, 3])
def test_each_failure_ends_one_trial_and_says_why(tmp_path, monkeypatch, workers):
    failures = {1: "memory", 2: "raise", 3: "kill", 4: "nan", 5: "hang", 6: "warn"}
    monkeypatch.setenv("FAKE_FAILURES", json.dumps(failures))
    tuner = make(tmp_path / "search", trials=7, stall_limit=3)
    tuner.search_with(workers)
    trials = {int(name): trial for name, trial in tuner.oracle.trials.items()}
    assert len(trials) == 7
    reasons = {number: trial.message for number, trial in trials.items() if trial.score == WORST}
    assert reasons == {
        1: "out of memory: MemoryError: cannot allocate 80 GiB",
        2: "RuntimeError: no such kernel",
        3: "killed by SIGKILL (out of memory?)",
        4: "loss: nan in epoch 1",
        5: "made no step in 3 s",
        6: "killed by SIGTERM",
    }
    assert (tmp_path / "search" / "trial-2" / "failure.txt").read_text() == reasons[2] + "\n"
    assert not children("fake_trial")


def test_results_that_cannot_be_are_failures_and_never_the_best(tmp_path, monkeypatch):
    said = {
        1: '{"val_accuracy": 1e38}',
        2: '{"val_accuracy": NaN}',
        3: '{"val_accuracy": 1.01, "params": 5}',
        4: "[1]",
        5: '{"val_acc',
    }
    said |= {6: '{"val_accuracy": "0.9"}', 7: '{"params": 5}', 8: '{"val_accuracy": 0.9, "params": -1}', 9: "[" * 10**5}
    monkeypatch.setenv("FAKE_RESULTS", json.dumps(said))
    tuner = make(tmp_path / "search", trials=10)
    tuner.search_with(2)
    reasons = {int(name): trial.message for name, trial in tuner.oracle.trials.items() if trial.score == WORST}
    assert reasons == {
        1: "result.json: val_accuracy: received 1e+38; allowed: a number of at least 0 and of at most 1",
        2: "result.json: val_accuracy: received none; allowed: a number, as the search is after it",
        3: "result.json: val_accuracy: received 1.01; allowed: a number of at least 0 and of at most 1",
        4: "ended without a result",
        5: "ended without a result",
        6: "result.json: val_accuracy: received '0.9'; allowed: a number of at least 0 and of at most 1",
        7: "result.json: val_accuracy: received none; allowed: a number, as the search is after it",
        8: "result.json: params: received -1; allowed: a number of at least 0",
        9: "ended without a result",
    }
    assert tuner.oracle.get_best_trials()[0].trial_id == "00"


def test_time_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_FAILURES", json.dumps({0: "hang"}))
    tuner = make(tmp_path / "search", trials=1, time_limit=1)
    tuner.search_with(1)
    assert tuner.oracle.trials["0"].message == "took more than 1 s"


def test_a_trial_that_is_killed_goes_on_as_long_as_it_gets_further(tmp_path, monkeypatch):
    """Somebody kills each process after each of its epochs: the search does not notice."""
    whole = make(tmp_path / "whole", trials=3)
    whole.search_with(1)
    monkeypatch.setenv("FAKE_SECONDS", "0.2")
    tuner = make(tmp_path / "search", trials=3)
    done, killed = threading.Event(), set()

    def kill():
        while not done.wait(0.02):
            for child in children("fake_trial"):
                with contextlib.suppress(OSError, psutil.Error, IndexError):  # it has ended since
                    folder = Path(child.cmdline()[-1]).parent
                    moment = folder.name, (folder / "run" / "metrics.csv").read_text().count("\n")
                    if 0 < moment[1] < 4 and moment not in killed:
                        killed.add(moment)
                        child.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    tuner.search_with(1)
    done.set()
    thread.join()
    assert len(killed) >= 4
    assert outcome(tuner.oracle) == outcome(whole.oracle)


SEARCH = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from searches import make
tuner = make({folder!r}, trials=12)
tuner.search_with({workers})
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ten_kills_change_nothing(tmp_path, workers):
    """SIGKILL at random moments, of the search or of one of its trials; then the same command."""
    whole = make(tmp_path / "whole", trials=12)
    whole.search_with(1)
    root, tests = Path(__file__).resolve().parents[2], Path(__file__).parent
    folder = tmp_path / "search"
    code = SEARCH.format(root=str(root), tests=str(tests), folder=str(folder), workers=workers)
    environment = {**os.environ, "KERAS_BACKEND": LIGHT, "FAKE_SECONDS": "0.7"}
    rng, kills = random.Random(0), {"search": 0, "trial": 0}

    def start():
        process = subprocess.Popen([sys.executable, "-c", code], env=environment)
        wait_for(lambda: process.poll() is not None or children("fake_trial", process))  # most of its start is the import of Keras
        return process

    process = start()
    while sum(kills.values()) < 10:
        time.sleep(rng.uniform(0.2, 1.5))
        assert process.poll() is None, "the search ended before it was killed ten times"
        trials = psutil.Process(process.pid).children()
        if trials and rng.random() < 0.5:
            with contextlib.suppress(psutil.NoSuchProcess):
                rng.choice(trials).kill()
            kills["trial"] += 1
        else:
            process.kill()
            process.wait()
            kills["search"] += 1
            process = start()
    assert process.wait(120) == 0
    assert min(kills.values()) >= 2
    again = make(folder, trials=12)
    ours, theirs = outcome(again.oracle), outcome(whole.oracle)
    if workers == 1:
        assert ours == theirs
    else:  # with two at a time results come in in another order
        assert sorted(ours, key=str) == sorted(theirs, key=str)
    for name in again.oracle.start_order:
        assert epochs(again.trial_folder(name)) == [1, 2, 3]


def test_a_damaged_trial_folder_is_begun_again(tmp_path):
    whole = make(tmp_path / "whole", trials=3)
    whole.search_with(1)
    tuner = make(tmp_path / "search", trials=3)
    run = tuner.trial_folder("1") / "run"
    shutil.copytree(whole.trial_folder("1"), run.parent)
    (run / "metrics.csv").write_text("garbage")
    (run.parent / "result.json").write_text('{"val_accuracy": 0.')
    tuner.search_with(1)
    assert outcome(tuner.oracle) == outcome(whole.oracle)


@interruptible
def test_interrupt_stops_at_once_and_leaves_no_process(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "30")
    tuner = make(tmp_path / "search", trials=5)
    runs = [tmp_path / "search" / f"trial-{number}" / "run" for number in range(2)]
    with interrupted(lambda: all(run.exists() for run in runs)), pytest.raises(KeyboardInterrupt):
        tuner.search_with(2)
    assert not children("fake_trial")
    monkeypatch.setenv("FAKE_SECONDS", "0")
    again = make(tmp_path / "search", trials=5)
    assert again.oracle.start_order == ["0", "1"]  # it is the same search that goes on
    again.search_with(1)
    whole = make(tmp_path / "whole", trials=5)
    whole.search_with(1)
    assert outcome(again.oracle) == outcome(whole.oracle)


def test_promoted_trials_go_on_with_the_run_of_their_predecessor(tmp_path):
    tuner = make(tmp_path / "search", oracle=lambda space, seed: HyperbandOracle(space, seed=seed, max_epochs=9))
    tuner.search_with(1)
    promoted = [trial for trial in tuner.oracle.trials.values() if "tuner/trial_id" in trial.hyperparameters.values]
    assert promoted
    for trial in promoted:
        values = trial.hyperparameters.values
        assert epochs(tuner.trial_folder(trial.trial_id)) == list(range(1, values["tuner/epochs"] + 1))
        before = tuner.oracle.trials[values["tuner/trial_id"]].hyperparameters.values
        assert before["learning_rate"] == values["learning_rate"]
        assert before["tuner/epochs"] == values["tuner/initial_epoch"]


def test_a_trial_whose_predecessor_left_nothing_begins_afresh(tmp_path):
    tuner = make(tmp_path / "search", oracle=lambda space, seed: HyperbandOracle(space, seed=seed, max_epochs=9))
    trial = tuner.oracle.create_trial("w")
    trial.hyperparameters.values |= {"tuner/trial_id": "0099", "tuner/epochs": 2}
    assert "val_accuracy" in tuner.run_trial(trial)
    assert epochs(tuner.trial_folder(trial.trial_id)) == [1, 2]


def test_a_folder_of_another_configuration_is_not_taken_over(tmp_path):
    whole = make(tmp_path / "whole", trials=2)
    whole.search_with(1)
    tuner = make(tmp_path / "search", trials=2)
    left = tuner.trial_folder("0")
    (left / "run").mkdir(parents=True)
    (left / "recipe.yaml").write_text("of a state that was lost")
    (left / "result.json").write_text('{"val_accuracy": 0.99}')
    tuner.search_with(1)
    assert outcome(tuner.oracle) == outcome(whole.oracle)


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_of_the_search_itself_ends_it(tmp_path, workers):
    """A full disk, say: it is raised, nothing waits for ever, and the trials go on later."""
    tuner = make(tmp_path / "search", trials=6)
    save, saves = tuner.oracle.save, []

    def failing():
        saves.append(1)
        if len(saves) == 5:
            raise OSError(28, "No space left on device")
        save()

    tuner.oracle.save = failing
    with pytest.raises(OSError, match="No space left"):
        tuner.search_with(workers)
    again = make(tmp_path / "search", trials=6)
    again.search_with(1)
    assert len(again.oracle.results()) == 6


def test_time_that_is_over_stops_new_trials_but_not_begun_ones(tmp_path):
    tuner = make(tmp_path / "search")
    tuner.oracle.max_seconds = 0.001
    tuner.search_with(1)
    assert len(tuner.oracle.results()) == 1  # there is always time for one
    begun = make(tmp_path / "begun")
    begun.oracle.create_trial("w")
    begun.oracle.create_trial("x")
    again = make(tmp_path / "begun")
    again.oracle.max_seconds = 0.001
    again.search_with(1)
    assert len(again.oracle.results()) == 2


def test_the_score_of_a_twin_is_reused(tmp_path):
    tuner = make(tmp_path / "search", trials=3)
    tuner.search_with(1)
    trial = next(iter(tuner.oracle.trials.values()))
    twin = type(trial)(trial.hyperparameters.copy(), trial_id="99")
    assert tuner.run_trial(twin)["val_accuracy"] == trial.score
    assert not (tuner.trial_folder("99") / "job.json").exists()


@pytest.mark.slow
def test_many_trials_take_no_memory(tmp_path):
    tuner = make(tmp_path / "search", trials=200)
    before = psutil.Process().memory_info().rss
    tuner.search_with(1)
    assert len(tuner.oracle.trials) == 200
    assert psutil.Process().memory_info().rss - before < 20 * MB
