"""The private names of KerasTuner that the search uses: with a newer version, run `pytest -m private`."""

import importlib
import re
import sys

import keras_tuner
import pytest
from helpers import one_line_error

from keras_vit.private import keras_tuner as private

pytestmark = pytest.mark.private


class Oracle(private.OracleHooks, keras_tuner.oracles.RandomSearchOracle):
    """Proposes 0, 1, 2, ... for one hyperparameter."""

    def __init__(self, folder, **settings):
        hyperparameters = keras_tuner.HyperParameters()
        hyperparameters.Int("x", 0, 9)
        objective = keras_tuner.Objective("score", "max")
        super().__init__(objective=objective, hyperparameters=hyperparameters, **settings)
        self.use_folder(folder)
        self.verbose = 0

    def random_values(self):
        return {"x": len(self.start_order)}


def test_no_name_is_missing():
    assert private.missing_names() == []


def test_a_missing_name_is_one_line(monkeypatch):
    monkeypatch.delitem(sys.modules, private.__name__)  # as in a new process
    monkeypatch.delattr(keras_tuner.Oracle, "_save_trial")
    version = keras_tuner.__version__
    expected = f"keras-tuner: received {version}, which lacks Oracle._save_trial; allowed: {private.TESTED}; pip install"
    with one_line_error(f"^{re.escape(expected)}", ImportError):
        importlib.import_module(private.__name__)


def test_proposals_come_from_random_values_and_are_known_as_tried(tmp_path):
    oracle = Oracle(tmp_path / "search", max_trials=3)
    assert [oracle.create_trial(str(n)).hyperparameters.values for n in range(3)] == [{"x": 0}, {"x": 1}, {"x": 2}]
    assert [oracle.is_tried({"x": n}) for n in range(4)] == [True, True, True, False]
    assert oracle.create_trial("3").status == "STOPPED"


def test_a_waiting_trial_goes_to_the_next_worker(tmp_path):
    oracle = Oracle(tmp_path / "search", max_trials=3)
    first = oracle.create_trial("a")
    oracle.waiting.append(oracle.ongoing_trials.pop("a").trial_id)
    assert oracle.create_trial("b") is first
    assert oracle.waiting == []
    oracle.waiting = ["0"]
    assert oracle.get_state()["retry_queue"] == ["0"]


def test_failures_in_a_row_raise_nothing_and_trials_have_no_files_of_their_own(tmp_path):
    oracle = Oracle(tmp_path / "search", max_trials=9)
    for _ in range(5):
        trial = oracle.create_trial("a")
        trial.status = "FAILED"
        oracle.end_trial(trial)
    assert [file.name for file in (tmp_path / "search").iterdir()] == [oracle.state_path.name]
    assert oracle.state_path.parent == tmp_path / "search"


def test_a_seed_of_0_stays_0(tmp_path):
    oracle = Oracle(tmp_path / "search", max_trials=1, seed=0)
    oracle.set_seed(0)
    assert (oracle.get_state()["seed"], oracle.get_state()["seed_state"]) == (0, 0)


def test_a_lock_that_an_error_left_is_released(tmp_path):
    oracle = Oracle(tmp_path / "search", max_trials=3)
    save = oracle.save

    def failing():
        raise OSError("full")

    oracle.save = failing
    with pytest.raises(OSError, match="full"):
        oracle.create_trial("a")
    assert private.LOCKS[oracle].locked()
    oracle.release()
    oracle.save = save
    assert not private.LOCKS[oracle].locked()
    assert oracle.create_trial("b").status == "RUNNING"


def test_the_tuner_calls_our_hooks(tmp_path):
    class Tuner(private.TunerHooks):
        asked, tried = 0, []

        def state_file(self):
            self.asked += 1
            return tmp_path / "no such file"

        def try_trial(self, trial):
            self.tried.append(trial.trial_id)
            self.oracle.update_trial(trial.trial_id, {"score": 1.0})
            trial.status = "COMPLETED"

        def run_trial(self, trial):
            raise AssertionError

    tuner = Tuner(Oracle(tmp_path / "search", max_trials=2), directory=str(tmp_path), project_name="search")
    tuner.save = lambda: None
    tuner.search()
    assert tuner.tried == ["0", "1"]
    assert tuner.asked == 1


def test_trials_travel_as_messages(tmp_path):
    oracle = Oracle(tmp_path / "search", max_trials=2)
    trial = oracle.create_trial("a")
    response = private.MESSAGES.CreateTrialResponse(trial=trial.to_proto())
    back = type(trial).from_proto(private.MESSAGES.CreateTrialResponse.FromString(response.SerializeToString()).trial)
    assert (back.trial_id, back.status, back.hyperparameters.values) == ("0", "RUNNING", {"x": 0})
    assert issubclass(private.OracleServicer, private.SERVICE.OracleServicer)
    client = private.Client(oracle, None, "me")
    assert (client.objective.name, client.max_trials, client.should_report) == ("score", 2, True)
