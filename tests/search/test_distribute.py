"""A chief and its workers, over real sockets: what dies gives its trial back, what is not there is named."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
import searches
from helpers import LIGHT, wait_for
from keras_tuner.engine.trial import TrialStatus
from searches import FAKE, epochs, make

from keras_vit.private.keras_tuner import MESSAGES, SERVICE
from keras_vit.search import distribute
from keras_vit.search.distribute import Chief, ChiefClient, read_address
from keras_vit.search.oracle import HyperbandOracle, RandomOracle
from keras_vit.search.tuner import Lost, Silence, TrialTuner

WORKER = """
import sys
sys.path[:0] = {paths!r}
from keras_vit.search import distribute
distribute.BEAT_SECONDS = 0.3
from test_distribute import worker
worker({folder!r}, {port}).search_with(1)
"""


def outcome(oracle):
    """What a search has found, scores with the seven digits that a message has."""
    return [(name, values, pytest.approx(score, rel=1e-6)) for name, values, score in searches.outcome(oracle)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def worker(folder, port, patience=60.0, trials=6):
    """A tuner that asks a chief; of its own oracle it uses the space."""
    oracle, settings = make(folder, trials, start=False)

    def connect(name):
        return ChiefClient(oracle, ("127.0.0.1", port), name, patience)

    return TrialTuner(oracle, settings, folder, command=FAKE, connect=connect)


def start_worker(folder, port, **environment):
    here = Path(__file__).resolve()
    code = WORKER.format(paths=[str(place) for place in here.parents[:3]], folder=str(folder), port=port)
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "KERAS_BACKEND": LIGHT, **environment})


@contextlib.contextmanager
def chief(tuner, port, events=None, lease=distribute.LEASE_SECONDS, expected=False):
    """A chief that serves in a thread; joined at the end."""
    errors = []

    def serve():
        try:
            Chief(tuner.oracle, tuner.folder, events or Silence(), lease).serve(("127.0.0.1", port))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=serve, name="chief", daemon=True)
    thread.start()
    yield errors
    thread.join(120)
    assert not thread.is_alive()
    if errors and not expected:
        raise errors[0]


def test_workers_find_what_one_process_finds(tmp_path):
    whole = make(tmp_path / "whole", trials=6)
    whole.search_with(1)
    tuner, port = make(tmp_path / "search", trials=6), free_port()
    with chief(tuner, port):
        worker(tmp_path / "search", port).search_with(1)
    assert outcome(tuner.oracle) == searches.outcome(whole.oracle)


def test_failures_travel_with_their_reasons(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_FAILURES", '{"1": "memory", "2": "nan"}')
    tuner, port = make(tmp_path / "search", trials=4), free_port()
    with chief(tuner, port):
        worker(tmp_path / "search", port, trials=4).search_with(2)
    reasons = {name: trial.message for name, trial in tuner.oracle.trials.items() if trial.message}
    assert reasons == {"1": "out of memory: MemoryError: cannot allocate 80 GiB", "2": "loss: nan in epoch 1"}


def test_hyperband_goes_on_across_workers(tmp_path):
    def make_oracle(space, seed):
        return HyperbandOracle(space, seed=seed, max_epochs=9)

    whole = make(tmp_path / "whole", oracle=make_oracle)
    whole.search_with(1)
    tuner, port = make(tmp_path / "search", oracle=make_oracle), free_port()
    with chief(tuner, port):
        worker(tmp_path / "search", port).search_with(1)
    assert outcome(tuner.oracle) == searches.outcome(whole.oracle)


def test_a_dead_worker_gives_its_trial_back(tmp_path, monkeypatch):
    """SIGKILL while it trains; another worker goes on after its last epoch."""

    class Events(Silence):
        def __init__(self):
            self.lost = []

        def trial_lost(self, trial, why):
            self.lost.append(trial.trial_id)

    monkeypatch.setattr(distribute, "BEAT_SECONDS", 0.3)
    whole = make(tmp_path / "whole", trials=3)
    whole.search_with(1)
    tuner, port, events = make(tmp_path / "search", trials=3), free_port(), Events()
    with chief(tuner, port, events, lease=2):
        first = start_worker(tmp_path / "search", port, FAKE_SECONDS="0.5")
        rows = tmp_path / "search" / "trial-0" / "run" / "metrics.csv"
        wait_for(lambda: rows.is_file() and rows.read_text().count("\n") > 1, first)
        first.kill()
        first.wait()
        worker(tmp_path / "search", port, trials=3).search_with(1)
    assert events.lost == ["0"]
    assert epochs(rows.parents[1]) == [1, 2, 3]
    assert sorted(outcome(tuner.oracle)) == sorted(searches.outcome(whole.oracle))


def test_an_interrupted_worker_gives_its_trial_back_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "20")
    tuner, port = make(tmp_path / "search", trials=2), free_port()
    with chief(tuner, port):
        mine = worker(tmp_path / "search", port, trials=2)
        begun = tmp_path / "search" / "trial-0" / "run"
        threading.Thread(target=lambda: wait_for(begun.exists) and mine.stop.set()).start()
        mine.search_with(1)
        assert not tuner.oracle.ongoing_trials
        monkeypatch.setenv("FAKE_SECONDS", "0")
        worker(tmp_path / "search", port, trials=2).search_with(1)
    assert [trial.status for trial in tuner.oracle.trials.values()] == ["COMPLETED"] * 2


def test_a_chief_that_returns_leaves_trials_with_those_who_run_them(tmp_path):
    tuner, port = make(tmp_path / "search", trials=3), free_port()
    trial = tuner.oracle.create_trial("w")
    tuner.save()
    again = make(tmp_path / "search", trials=3)
    client = ChiefClient(RandomOracle(searches.space(), max_trials=3), ("127.0.0.1", port), "w", 30)
    other = ChiefClient(RandomOracle(searches.space(), max_trials=3), ("127.0.0.1", port), "x", 30)
    with chief(again, port):
        assert client.get_trial(trial.trial_id).hyperparameters.values.keys() == trial.hyperparameters.values.keys()
        with pytest.raises(Lost):
            other.get_trial(trial.trial_id)
        for one in (client, other, client):
            mine = one.create_trial(one.tuner_id)
            one.update_trial(mine.trial_id, {"val_accuracy": 0.5})
            mine.status = "COMPLETED"
            one.end_trial(mine)
        with pytest.raises(Lost):  # told again: it is not theirs any more
            one.end_trial(mine)
        assert client.create_trial("w").status == other.create_trial("x").status == "STOPPED"
    assert again.oracle.start_order == ["0", "1", "2"]


def test_workers_end_quietly_when_time_is_over(tmp_path):
    tuner, port = make(tmp_path / "search"), free_port()
    tuner.oracle.max_seconds = 0.001
    with chief(tuner, port):
        worker(tmp_path / "search", port).search_with(2)
    assert len(tuner.oracle.results()) == 1


def test_a_chief_that_fails_says_so_itself(tmp_path):
    tuner, port = make(tmp_path / "search"), free_port()

    def failing():
        raise OSError(28, "No space left on device")

    tuner.oracle.save = failing
    with chief(tuner, port, expected=True) as errors, pytest.raises(ValueError, match=r"refuses: it has failed: .*No space left"):
        worker(tmp_path / "search", port).search_with(1)
    assert "No space left" in str(errors[0])


@pytest.fixture
def asked(tmp_path):
    """A chief of one trial, which worker `w` has; `ask(method, request, worker)` gives the code and words of a refusal, or None."""
    tuner, port = make(tmp_path / "search", trials=1), free_port()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, chief(tuner, port):
        stub = SERVICE.OracleStub(channel)

        def ask(method, request, worker="w"):
            try:
                metadata = ((distribute.IDENTITY, worker),) if worker else ()
                getattr(stub, method)(request, timeout=20, metadata=metadata, wait_for_ready=True)
            except grpc.RpcError as error:
                return error.code().name, error.details()

        assert ask("CreateTrial", MESSAGES.CreateTrialRequest(tuner_id="w")) is None
        ask.trial, ask.port, ask.oracle = next(iter(tuner.oracle.trials.values())), port, tuner.oracle
        yield ask
        assert ask("UpdateTrial", report({"val_accuracy": 0.75})) is None
        assert ask("EndTrial", ended("COMPLETED")) is None
        assert ask("CreateTrial", MESSAGES.CreateTrialRequest(tuner_id="w")) is None
    assert tuner.oracle.results()[0][1]["val_accuracy"] == 0.75


def report(metrics, trial="0"):
    request = MESSAGES.UpdateTrialRequest(trial_id=trial)
    for name, value in metrics.items():
        request.metrics[name] = value
    return request


def ended(status, trial="0"):
    request = MESSAGES.EndTrialRequest()
    request.trial.trial_id = trial
    request.trial.status = TrialStatus.to_proto(status) if isinstance(status, str) else status
    return request


def test_a_chief_refuses_what_it_does_not_understand_and_goes_on(asked, capfd):
    names = MESSAGES.CreateTrialRequest
    refused = [
        (("EndTrial", ended("COMPLETED")), "trial 0: received its end; allowed after its metrics"),
        (("EndTrial", ended(77)), "status: received 77; allowed: completed, or invalid"),
        *((("EndTrial", ended(each)), "status: received") for each in ("RUNNING", "STOPPED", "IDLE", "FAILED", 0)),
        (("UpdateTrial", report({})), "val_accuracy: received none"),
        (("UpdateTrial", report({"params": 3.0})), "val_accuracy: received none"),
        (("UpdateTrial", report({"val_accuracy": 1e38})), r"val_accuracy: received 1e\+38; allowed: a number of at least 0"),
        (("UpdateTrial", report({"val_accuracy": 1.1})), "val_accuracy: received 1.1; allowed"),
        (("UpdateTrial", report({"val_accuracy": float("nan")})), "val_accuracy: received nan; allowed"),
        (("UpdateTrial", report({"val_accuracy": 0.5, "params": float("inf")})), "params: received inf; allowed"),
        (("UpdateTrial", report({"val_accuracy": 0.5, "\x1b[31m": 1.0})), r"metrics: received '\\x1b\[31m'; allowed: names"),
        (("UpdateTrial", report({"val_accuracy": 0.5, "x" * 300: 1.0})), "metrics: received 'xxx.*; allowed: names"),
        (("UpdateTrial", report({f"m{n}": 1.0 for n in range(200)})), "metrics: received .*; allowed: at most 100"),
        (("UpdateSpace", MESSAGES.UpdateSpaceRequest()), "space: received another one; allowed: none"),
        (("GetBestTrials", MESSAGES.GetBestTrialsRequest(num_trials=-1)), "num_trials: received -1"),
        (("CreateTrial", names(tuner_id="w"), "x"), "worker: received 'w'; allowed: the caller's own name"),
        *((("CreateTrial", names(tuner_id=each), each), "worker: received") for each in ("", "../x", "x" * 200, "a b")),
    ]
    for request, words in refused:
        code, said = asked(*request)
        assert code == "INVALID_ARGUMENT", request
        assert re.match(words, said), said
    for request in (report({"val_accuracy": 0.5}, "1"), ended("COMPLETED", "../../x")):
        assert asked("UpdateTrial" if "Update" in type(request).__name__ else "EndTrial", request)[0] == "FAILED_PRECONDITION"
    request = MESSAGES.GetTrialRequest(trial_id="1\n\x1b[31m")
    assert asked("GetTrial", request) == ("FAILED_PRECONDITION", r"trial '1\n\x1b[31m' is not with w")
    assert asked.oracle.ongoing_trials == {"w": asked.trial}
    assert capfd.readouterr().err == ""


def test_garbage_and_oversized_messages_end_no_chief(asked, capfd):
    rng = np.random.default_rng(0)
    with grpc.insecure_channel(f"127.0.0.1:{asked.port}") as channel:
        for method in ("CreateTrial", "UpdateTrial", "EndTrial", "GetTrial", "GetBestTrials", "GetSpace", "None"):
            call = channel.unary_unary(f"/keras_tuner.Oracle/{method}")
            for content in (rng.bytes(100), b"\xff" * 1000, b"\x0a\xff\xff\xff\xff\x0f", bytes(distribute.MAX_MESSAGE + 1)):
                with pytest.raises(grpc.RpcError) as caught:
                    call(content, timeout=20, metadata=((distribute.IDENTITY, "w"),))
                assert caught.value.code() != grpc.StatusCode.DEADLINE_EXCEEDED
    for content in (b"GET / HTTP/1.1\r\n\r\n", rng.bytes(5000), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.bytes(5000)):
        with socket.create_connection(("127.0.0.1", asked.port), timeout=20) as connection:
            connection.sendall(content)
    assert asked.oracle.ongoing_trials == {"w": asked.trial}
    assert "Traceback" not in capfd.readouterr().err


def test_more_workers_than_a_search_has(asked, monkeypatch):
    monkeypatch.setattr(distribute, "MAX_WORKERS", 3)
    for name in ("a", "b"):
        assert asked("GetBestTrials", MESSAGES.GetBestTrialsRequest(num_trials=1), name) is None
    assert asked("GetBestTrials", MESSAGES.GetBestTrialsRequest(num_trials=1), "c")[1].startswith(
        "worker: received one more than 3"
    )
    assert asked("GetTrial", MESSAGES.GetTrialRequest(trial_id="0")) is None


@pytest.mark.parametrize("name", ["../../x", "0/../x"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(distribute, "FAREWELL_SECONDS", 0.1)  # the client does not come back
    tuner, port = make(tmp_path / "search", trials=1), free_port()
    trial = tuner.oracle.create_trial("w")
    trial.hyperparameters.values["tuner/trial_id"] = name
    tuner.oracle.max_seconds = 0.001
    client = ChiefClient(tuner.oracle, ("127.0.0.1", port), "w", 30)
    with chief(tuner, port):
        with pytest.raises(ValueError, match="chief: received a trial named"):
            client.create_trial("w")
        tuner.oracle.ongoing_trials.clear()


def test_a_chief_that_is_not_there_is_named(tmp_path):
    port = free_port()
    with pytest.raises(ValueError, match=f"chief: 127.0.0.1:{port} has not answered for 0.5 s"):
        worker(tmp_path, port, patience=0.5).search_with(1)


def test_a_port_in_use_is_named(tmp_path):
    tuner = make(tmp_path / "search")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"chief: received 127.0.0.1:{port}, which is in use"):
            Chief(tuner.oracle, tuner.folder, Silence()).serve(("127.0.0.1", port))


def test_two_chiefs_do_not_share_a_port(tmp_path):
    first, second, port = make(tmp_path / "a", trials=1), make(tmp_path / "b", trials=1), free_port()
    with chief(first, port):
        wait_for(lambda: answers(port))
        with pytest.raises(ValueError, match="in use"):
            Chief(second.oracle, second.folder, Silence()).serve(("127.0.0.1", port))
        worker(tmp_path / "a", port, trials=1).search_with(1)


@pytest.mark.parametrize(
    ("text", "address"),
    [("8500", ("127.0.0.1", 8500)), (":1", ("127.0.0.1", 1)), ("0.0.0.0:65535", ("0.0.0.0", 65535)), ("[::1]:80", ("::1", 80))],
)
def test_addresses(text, address):
    assert read_address("chief", text) == address


@pytest.mark.parametrize("text", ["", "host", "host:", "host:http", "host:0", "host:65536", "-1"])
def test_bad_addresses(text):
    with pytest.raises(ValueError, match=f"chief: received '{text}'; allowed: HOST:PORT or PORT"):
        read_address("chief", text)
