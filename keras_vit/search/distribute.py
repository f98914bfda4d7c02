"""A search over several machines: KerasTuner's chief and workers, made to survive.

The chief holds the oracle and shows the search to the user; it neither trains nor touches a GPU. Workers ask it for trials. All
of them share the search folder. The messages are KerasTuner's own (gRPC). Added here: workers send signs of life, the trial of a
silent worker goes to another one, and a worker or chief that waits in vain says so.

A worker ends its trial when its signs of life stay unanswered, before the chief gives that trial away: no two processes write
one run.
"""

import contextlib
import logging
import re
import threading
import time
from concurrent import futures

import grpc
from keras_tuner.engine.trial import TrialStatus

from keras_vit.checks import shown
from keras_vit.private.keras_tuner import MESSAGES, SERVICE, Client, OracleServicer
from keras_vit.search.oracle import check_metrics, metrics_of, with_results
from keras_vit.search.tuner import Lost, reason_of

LEASE_SECONDS = 30.0  # of silence, after which the chief gives a trial to another worker
BEAT_SECONDS = 2.0  # between two signs of life
UNANSWERED_SECONDS = 15.0  # after which a worker ends its trial if its signs of life get no answer
FAREWELL_SECONDS = 10.0  # for which a chief with nothing left to do waits until its workers have asked once more
MAX_MESSAGE, MAX_WORKERS = 2**22, 1000  # bytes of a request; workers, and requests that wait
IDENTITY = "worker"  # metadata key of the caller's name
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def read_address(name, text):
    """Host and port of `HOST:PORT`, `[HOST]:PORT` or `PORT`; the last means this machine, reachable from itself alone.

    Raises:
        ValueError: For any other text.
    """
    host, _, port = str(text).rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{name}: received {text!r}; allowed: HOST:PORT or PORT, with a port from 1 to 65535")
    return host.strip("[]") or LOOPBACK[0], int(port)


def join(host, port):
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Refused(ValueError):
    """A request that the chief does not understand, or that no worker of this search makes."""


def answered(method):
    """One call at a time; a `Lost` or `Refused` goes to the worker, any other error ends the chief."""

    def call(self, request, context):
        try:
            with self.lock:
                return method(self, request, context)
        except Lost as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except Refused as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Exception as error:
            self.error = self.error or error
            context.abort(grpc.StatusCode.INTERNAL, f"it has failed: {error}")

    return call


class Chief(OracleServicer):
    """Answers the workers of a search, and takes back the trials of silent workers.

    Args:
        oracle: The `SearchOracle`. Trials that ran under an earlier chief stay for `lease` seconds with their workers.
        folder: The search folder.
        events: As of a `TrialTuner`.
        lease: Seconds of silence after which a trial goes to another worker.
    """

    def __init__(self, oracle, folder, events, lease=LEASE_SECONDS):
        super().__init__(oracle)
        self.folder, self.events, self.lease = folder, events, lease
        self.lock, self.error = threading.RLock(), None
        self.started, self.seen, self.dismissed = time.monotonic(), {}, set()
        for trial_id in oracle.waiting:
            oracle.ongoing_trials[f"of-earlier-{trial_id}"] = oracle.trials[trial_id]
        oracle.waiting = []

    def serve(self, address):
        """Answers until the search has ended.

        Args:
            address: (host, port).

        Raises:
            ValueError: If the port is in use.
        """
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MAX_MESSAGE)]
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=1), options=options, maximum_concurrent_rpcs=MAX_WORKERS)
        logging.getLogger("grpc").propagate = False  # it would print a traceback for each message that it cannot read
        SERVICE.add_OracleServicer_to_server(self, server)
        try:
            server.add_insecure_port(join(*address))
        except RuntimeError:
            allowed = "a free port and an address of this machine"
            raise ValueError(f"chief: received {join(*address)}, which is in use or elsewhere; allowed: {allowed}") from None
        server.start()
        try:
            while not self.is_done():
                time.sleep(0.2)
                self.take_back()
                self.events.tick()
                if self.error:
                    raise self.error
            until = time.monotonic() + FAREWELL_SECONDS
            while self.living() - self.dismissed and time.monotonic() < until:
                time.sleep(0.2)
        finally:
            server.stop(1).wait()

    def is_done(self):
        with self.lock:
            busy = self.oracle.ongoing_trials or self.oracle.waiting
            return (self.stop_triggered or self.oracle.is_over) and not busy

    def living(self):
        with self.lock:
            now = time.monotonic()
            return {worker for worker, seen in self.seen.items() if now - seen < self.lease}

    def take_back(self):
        """Takes back the trials of silent workers."""
        with self.lock:
            now = time.monotonic()
            for worker, trial in list(self.oracle.ongoing_trials.items()):
                if now - self.seen.get(worker, self.started) > self.lease:
                    self.oracle.give_back(worker)
                    self.events.trial_lost(trial, worker)

    def caller(self, context, trial_id=None):
        """The name of the calling worker; raises `Lost` if the trial is not, or no longer, its own."""
        worker = dict(context.invocation_metadata()).get(IDENTITY, "")
        if not isinstance(worker, str) or not re.fullmatch(r"[\w.-]{1,100}", worker):
            raise Refused(f"worker: received {shown(worker)}; allowed: a name of letters, digits, '.', '-' and '_'")
        if worker not in self.seen and len(self.seen) >= MAX_WORKERS:
            self.seen = {name: self.seen[name] for name in self.living()}
            if len(self.seen) >= MAX_WORKERS:
                raise Refused(f"worker: received one more than {MAX_WORKERS:,}; allowed: {MAX_WORKERS:,}")
        self.seen[worker] = time.monotonic()
        if trial_id is not None:
            ongoing = self.oracle.ongoing_trials
            earlier = f"of-earlier-{trial_id}"
            if earlier in ongoing and worker not in ongoing:
                ongoing[worker] = ongoing.pop(earlier)
            if worker not in ongoing or ongoing[worker].trial_id != trial_id:
                raise Lost(f"trial {shown(trial_id)} is not with {worker}")
        return worker

    @answered
    def CreateTrial(self, request, context):
        if self.caller(context) != request.tuner_id:
            raise Refused(f"worker: received {shown(request.tuner_id)}; allowed: the caller's own name")
        running = request.tuner_id in self.oracle.ongoing_trials
        trial = self.oracle.create_trial(request.tuner_id)
        if trial.status == TrialStatus.STOPPED:
            if self.oracle.ongoing_trials:
                trial.status = TrialStatus.IDLE  # a running trial may still come back
            else:
                self.stop_triggered = True
                self.dismissed.add(request.tuner_id)
        elif trial.status == TrialStatus.RUNNING and not running:
            self.events.trial_began(trial)
        return MESSAGES.CreateTrialResponse(trial=trial.to_proto())

    @answered
    def GetTrial(self, request, context):
        self.caller(context, request.trial_id)
        return super().GetTrial(request, context)

    @answered
    def UpdateTrial(self, request, context):
        self.caller(context, request.trial_id)
        # Numbers travel with seven digits.
        metrics = {name: float(f"{value:.7g}") for name, value in request.metrics.items()}
        try:
            check_metrics(metrics, self.oracle.objectives)
        except ValueError as error:
            raise Refused(str(error)) from None
        trial = self.oracle.update_trial(request.trial_id, metrics)
        return MESSAGES.UpdateTrialResponse(trial=trial.to_proto())

    @answered
    def EndTrial(self, request, context):
        worker = self.caller(context, request.trial.trial_id)
        trial, status = self.oracle.ongoing_trials[worker], request.trial.status
        if status not in map(TrialStatus.to_proto, (TrialStatus.COMPLETED, TrialStatus.INVALID)):
            raise Refused(f"status: received {status}; allowed: completed, or invalid for a trial that is given back")
        if TrialStatus.from_proto(status) == TrialStatus.INVALID:
            self.oracle.give_back(worker)
            self.events.trial_lost(trial, worker)
        else:
            metrics = metrics_of(trial)
            if not metrics:
                raise Refused(f"trial {trial.trial_id}: received its end; allowed after its metrics")
            trial.message = reason_of(self.folder, trial, metrics)
            trial.status = TrialStatus.COMPLETED
            self.oracle.end_trial(trial)
            self.events.trial_ended(trial, metrics, trial.message)
        return MESSAGES.EndTrialResponse()

    @answered
    def GetBestTrials(self, request, context):
        self.caller(context)
        if request.num_trials < 0:
            raise Refused(f"num_trials: received {request.num_trials}; allowed: a number of at least 0")
        return super().GetBestTrials(request, context)

    @answered
    def UpdateSpace(self, request, context):
        raise Refused("space: received another one; allowed: none, the space of this search does not change")


class ChiefClient(Client):
    """A worker's view of the chief's oracle.

    Args:
        oracle: An oracle of the same space; only its space and objectives are used.
        address: (host, port) of the chief.
        tuner_id: The unique name of this worker.
        patience: Seconds to wait for a chief that does not answer.
    """

    def __init__(self, oracle, address, tuner_id, patience):
        self.channel = grpc.insecure_channel(join(*address), options=[("grpc.max_receive_message_length", -1)])
        super().__init__(oracle, Calls(SERVICE.OracleStub(self.channel), join(*address), tuner_id, patience), tuner_id)
        self.space, self.objectives = oracle.space, oracle.objectives
        self.beaten = self.answered = 0.0
        self.mine = None

    def create_trial(self, tuner_id):
        asked = time.monotonic()
        trial = super().create_trial(tuner_id)
        if trial.status == TrialStatus.RUNNING:
            values = trial.hyperparameters.values
            for name in (trial.trial_id, str(values.get("tuner/trial_id", "0"))):
                if not name.isdigit():  # it becomes the name of a folder
                    raise ValueError(f"chief: received a trial named {name!r}; allowed: digits")
            trial.hyperparameters.values = self.space.restore(values)
            self.answered, self.mine = asked, trial
        return trial

    def get_best_trials(self, num_trials=1):
        trials = super().get_best_trials(num_trials)
        for trial in trials:
            trial.hyperparameters.values = self.space.restore(trial.hyperparameters.values)
        return trials

    def results(self):
        """The finished trials with their metrics."""
        return with_results(self.get_best_trials(2**31 - 1))

    def finish(self, trial, metrics):
        """Tells the chief the result of a trial."""
        self.update_trial(trial.trial_id, metrics)
        trial.status = TrialStatus.COMPLETED
        self.end_trial(trial)
        self.mine = None

    def keep(self, trial_id):
        """Sends a sign of life every `BEAT_SECONDS`.

        Raises:
            Lost: If the trial is another worker's, or may soon be, because the chief does not answer.
        """
        now = time.monotonic()
        if now - self.beaten < BEAT_SECONDS:
            return
        self.beaten = now
        request = MESSAGES.GetTrialRequest(trial_id=trial_id)
        try:
            self.stub.once("GetTrial", request, BEAT_SECONDS)
            self.answered = now
        except grpc.RpcError:
            if time.monotonic() - self.answered > UNANSWERED_SECONDS:
                raise Lost(f"the chief has not answered for {UNANSWERED_SECONDS:.0f} s") from None

    def give_back(self, tuner_id):
        """Returns the trial that this worker will not finish."""
        if self.mine is not None:
            self.mine.status = TrialStatus.INVALID
            request = MESSAGES.EndTrialRequest(trial=self.mine.to_proto())
            with contextlib.suppress(grpc.RpcError, Lost):
                self.stub.once("EndTrial", request, BEAT_SECONDS)


class Calls:
    """The remote procedures, with the caller's name, a time limit and one-line errors."""

    def __init__(self, stub, address, tuner_id, patience):
        self.stub, self.address, self.patience = stub, address, patience
        self.metadata = ((IDENTITY, tuner_id),)

    def __getattr__(self, name):
        def call(request, **_):
            until = time.monotonic() + self.patience
            while True:
                try:
                    return self.once(name, request, max(0.1, until - time.monotonic()), wait_for_ready=True)
                except grpc.RpcError as error:
                    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                        raise ValueError(f"chief: {self.address} refuses: {error.details()}") from None
                    if time.monotonic() >= until:
                        raise ValueError(f"chief: {self.address} has not answered for {self.patience:g} s") from None

        return call

    def once(self, name, request, seconds, wait_for_ready=False):
        try:
            return getattr(self.stub, name)(request, timeout=seconds, metadata=self.metadata, wait_for_ready=wait_for_ready)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
                raise Lost("the chief has given it to another worker") from None
            raise
