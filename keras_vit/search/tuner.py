"""The KerasTuner tuner whose trials are training runs, each in a process of its own."""

import contextlib
import copy
import dataclasses
import json
import math
import os
import platform
import secrets
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import keras

from keras_vit.files import atomic_folder, read_json_or_none, read_text, write_text
from keras_vit.private.keras_tuner import TunerHooks
from keras_vit.processes import GRACE_SECONDS, end_process, start_process
from keras_vit.recipes.parse import load_recipe
from keras_vit.search.folder import DATA, JAX_CACHE
from keras_vit.search.oracle import FAILED, WORST, check_metrics, previous
from keras_vit.search.trial import CORES
from keras_vit.training.callbacks import TERMINATED

TRIAL = [sys.executable, "-m", "keras_vit.search.trial"]  # the command that runs a job
LONGEST_REASON = 10_000  # bytes
LIMITS = ("took more than", "made no step in")  # first words of the reasons of trials that a limit ended
MORE_TRIES = 2  # for a killed process that got no further than the one before
POLL_SECONDS, ASK_SECONDS = 0.05, 1.0  # between two checks of a process, and between two requests to a chief
OUT_OF_MEMORY = ("out of memory", "OutOfMemory", "RESOURCE_EXHAUSTED", "ResourceExhausted", "MemoryError")


@dataclasses.dataclass(frozen=True)
class TrialSettings:
    """How a trial is run.

    Attributes:
        budget: {"kind": "epochs", "seconds" or "flops", "amount": number}: the whole training of one trial.
        time_limit: Seconds after which a trial is ended, start and validation included.
        stall_limit: Seconds without a step after which a trial counts as hung.
        latency: Whether the latency of its model is measured.
    """

    budget: dict
    time_limit: float
    stall_limit: float
    latency: bool = False


class Stopped(BaseException):
    """The search stops: the trial is neither finished nor failed, and goes on when the search does."""


class Lost(Exception):
    """The trial now belongs to another worker, which goes on with it."""


class TrialTuner(TunerHooks):
    """Runs the trials of an oracle, each as an ordinary training run in its own process.

    A trial's folder holds `run/` (the run folder), `log.txt` and `result.json`. An error in a trial ends that trial alone: its
    reason is in `failure.txt`, and the oracle gets a bad score. A process that was killed starts again and goes on after its
    last epoch, as long as it gets further each time.

    Args:
        oracle: One of `oracle.ORACLES`.
        settings: The `TrialSettings`.
        folder: The search folder; a search that is there already goes on.
        events: An object with `trial_began(trial)`, `trial_ended(trial, metrics, reason)`, `trial_lost(trial, why)` and
            `tick()`, which is called several times a second; None = silence.
        command: The command that runs a job; None = `TRIAL`.
        connect: Makes a `ChiefClient` from a worker's name, if the oracle is in another process; None = `oracle` itself is used.
    """

    def __init__(self, oracle, settings, folder, events=None, command=None, connect=None):
        self.settings, self.events, self.connect = settings, events or Silence(), connect
        self.command = command or TRIAL
        self.environment, self.cores = {"KERAS_BACKEND": keras.backend.backend()}, None  # of its trials
        self.stop = threading.Event()
        folder = Path(folder).absolute()
        with contextlib.redirect_stdout(None):  # KerasTuner says that it reloads
            super().__init__(oracle, directory=str(folder.parent), project_name=folder.name)

    @property
    def folder(self):
        return Path(self.project_dir)

    def state_file(self):
        """The file that tells KerasTuner that there is a search to go on with."""
        state = self.oracle.state_path
        return state if state.is_file() else previous(state)

    def reload(self):
        """Goes on with the search in the folder; called by KerasTuner."""
        if not self.connect:
            self.oracle.reload()

    def trial_folder(self, trial_id):
        return self.folder / f"trial-{trial_id}"

    def search_with(self, workers=1, environments=None):
        """Runs trials until the oracle has no more, several at a time.

        Args:
            workers: Number of trials at a time.
            environments: For each worker its environment variables, a dictionary, and its cores, a set or None.

        Raises:
            KeyboardInterrupt: On Ctrl-C; the trials that were running go on when the search does.
        """
        failures = []

        def work(tuner):
            try:
                tuner.search()
            except BaseException as error:
                failures.append(error)
                self.stop.set()
                if self.connect:
                    tuner.oracle.give_back(tuner.tuner_id)

        self.stop.clear()
        threads = []
        for number in range(workers):
            tuner = copy.copy(self)
            tuner.tuner_id = f"worker-{number}"
            if self.connect:
                tuner.tuner_id = f"{platform.node()}-{secrets.token_hex(4)}"
                tuner.oracle = self.connect(tuner.tuner_id)
            if environments:
                variables, tuner.cores = environments[number]
                tuner.environment = {**self.environment, **variables}
            threads.append(threading.Thread(target=work, args=(tuner,), name=tuner.tuner_id, daemon=True))
            threads[-1].start()
        try:
            while any(thread.is_alive() for thread in threads) and not failures:
                time.sleep(POLL_SECONDS)
                self.events.tick()
            for thread in threads:
                thread.join(2 * GRACE_SECONDS)
        except BaseException:
            self.stop.set()
            for thread in threads:
                thread.join(2 * GRACE_SECONDS)
            raise
        for error in failures:
            if not isinstance(error, Stopped):
                raise error

    def pre_create_trial(self):
        """Waits a moment, as KerasTuner would ask an idle oracle again at once."""
        if self.stop.wait(ASK_SECONDS if self.connect else POLL_SECONDS):
            raise Stopped

    def try_trial(self, trial):
        # KerasTuner takes any exception for a failed trial. Exceptions here are the search's fault (a full disk, say).
        try:
            metrics = self.run_trial(trial)
            self.oracle.finish(trial, metrics)
        except Lost as error:
            self.events.trial_lost(trial, error)
        else:
            self.events.trial_ended(trial, metrics, trial.message)

    def on_trial_end(self, trial):
        """Does nothing: `try_trial` has told the oracle."""

    def run_trial(self, trial):
        """Trains a configuration; returns its metrics."""
        folder, recipe = self.trial_folder(trial.trial_id), self.oracle.space.recipe(trial.hyperparameters.values)
        self.events.trial_began(trial)
        if folder.exists() and not holds(folder, recipe):
            shutil.rmtree(folder)  # left by a state that was lost
        write_text(folder / "recipe.yaml", recipe.to_yaml())
        reason, metrics = None, self.result_in(folder)[0] or self.twin_of(trial)
        if metrics is None:
            begun = (folder / "run").exists()
            reason = self.run_job(self.write_job(trial, folder), folder, trial.trial_id)
            if begun and reason is not None and not reason.startswith(LIMITS):
                # The files of an earlier process may be the cause.
                shutil.rmtree(folder / "run", ignore_errors=True)
                reason = self.run_job(self.write_job(trial, folder), folder, trial.trial_id)
            metrics, wrong = self.result_in(folder)
            reason = reason or wrong
        if reason is not None:
            write_text(folder / "failure.txt", reason + "\n")
            metrics = {next(iter(self.oracle.objectives)): WORST, FAILED: 1.0}
        trial.message = reason
        return metrics

    def result_in(self, folder):
        """The metrics in a trial's folder, or None and why there are none."""
        found = read_json_or_none(folder / "result.json")
        if not isinstance(found, dict):
            return None, "ended without a result"
        try:  # what could not be measured is no metric
            metrics = {name: value for name, value in found.items() if value is not None and not is_nan(value)}
            check_metrics(metrics, self.oracle.objectives)
            return {name: float(value) for name, value in metrics.items()}, None
        except ValueError as error:
            return None, f"result.json: {error}"

    def twin_of(self, trial):
        """The metrics of a finished trial of the same recipe and length, or None."""
        mine = self.identity(trial)
        for other, metrics in self.oracle.results():
            if not metrics.get(FAILED) and self.identity(other) == mine:
                return metrics
        return None

    def identity(self, trial):
        values = trial.hyperparameters.values
        return self.oracle.space.recipe(values), values.get("tuner/epochs")

    def write_job(self, trial, folder):
        """Writes the job of a trial's process; a promoted trial of Hyperband gets a copy of its predecessor's run."""
        values = trial.hyperparameters.values
        run = folder / "run"
        before = self.trial_folder(values["tuner/trial_id"]) / "run" if "tuner/trial_id" in values else None
        if before is not None and before.is_dir() and not run.exists():  # a failed predecessor may have left no run
            with atomic_folder(run) as copied:
                shutil.copytree(before, copied, dirs_exist_ok=True)
                (copied / "summary.json").unlink(missing_ok=True)
        job = {
            "recipe": str(folder / "recipe.yaml"),
            "run": str(run),
            "data": str(self.folder / DATA),
            "result": str(folder / "result.json"),
            "until": values.get("tuner/epochs"),
            "budget": self.settings.budget,
            "latency": self.settings.latency,
        }
        write_text(folder / "job.json", json.dumps(job, indent=2) + "\n")
        return folder / "job.json"

    def run_job(self, job, folder, trial_id=None):
        """Runs the process of a trial to its end; returns None, or the reason of its failure."""
        tries, reached = 0, epochs_of(folder)
        while True:
            reason, killed = self.run_process(job, folder, trial_id)
            if not killed:
                return reason
            before, reached = reached, epochs_of(folder)
            tries = 0 if reached > before else tries + 1
            if tries > MORE_TRIES:
                return reason

    def jax_cache(self):
        """Environment variables that keep JAX's compiled code for the next trial, and for the same one when it goes on."""
        return {
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / JAX_CACHE / platform.node()),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    def run_process(self, job, folder, trial_id):
        """Runs one process; returns the reason of its failure or None, and whether a signal from outside killed it."""
        settings, alive = self.settings, folder / "alive"
        with open(folder / "log.txt", "ab") as log:
            began = moved = time.monotonic()
            touched = modified(alive)
            process = start_process(
                [*self.command, str(job)],
                stdout=log,
                stderr=log,
                env={**self.jax_cache(), **os.environ, **self.environment, CORES: ",".join(map(str, sorted(self.cores or ())))},
                start_new_session=True,
            )
            try:
                while process.poll() is None:
                    if self.stop.wait(POLL_SECONDS):
                        raise Stopped
                    if trial_id is not None:
                        self.oracle.keep(trial_id)
                    now = time.monotonic()
                    if modified(alive) != touched:
                        touched, moved = modified(alive), now
                    if now - began > settings.time_limit:
                        return f"{LIMITS[0]} {settings.time_limit:g} s", False
                    if now - moved > settings.stall_limit:
                        return f"{LIMITS[1]} {settings.stall_limit:g} s", False
            finally:
                end_process(process)
        if process.returncode == 0:
            return None, False
        code = -signal.SIGTERM if process.returncode == TERMINATED else process.returncode  # `train` ends by itself then
        if code < 0:
            name = signal.Signals(-code).name
            return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else ""), True
        return reason_in(folder / "log.txt", code), False


class Silence:
    """Events without a listener."""

    def trial_began(self, trial):
        pass

    def trial_ended(self, trial, metrics, reason):
        pass

    def trial_lost(self, trial, why):
        pass

    def tick(self):
        """Called several times a second."""


def is_nan(value):
    return isinstance(value, float) and not math.isfinite(value)


def holds(folder, recipe):
    """Whether the folder of a trial holds this recipe; the data's folder may differ."""
    try:
        return dataclasses.replace(load_recipe(folder / "recipe.yaml"), data_dir=recipe.data_dir) == recipe
    except (OSError, ValueError):
        return False


def reason_of(folder, trial, metrics):
    """The reason of a trial's failure, from its folder; None if it did not fail."""
    if not metrics.get(FAILED):
        return None
    try:
        return read_text(folder / f"trial-{trial.trial_id}" / "failure.txt", LONGEST_REASON).strip()
    except (OSError, ValueError):
        return f"see failure.txt in the folder of trial {trial.trial_id}, on its worker"


def epochs_of(folder):
    """The number of finished epochs in the run of a trial."""
    try:
        return (folder / "run" / "metrics.csv").read_text(encoding="utf-8").count("\n")
    except OSError:
        return 0


def modified(path):
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def reason_in(log, code):
    """The reason of a process's failure: the last line that it wrote."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = lines[-1].removeprefix("error: ")[:500] if lines else f"exit code {code}"
    if any(word in line for word in OUT_OF_MEMORY for line in lines[-30:]):
        return f"out of memory: {last}"
    return last
