"""All private names of KerasTuner that the search uses, under names of its own.

Nothing public replaces them: KerasTuner offers no other way to keep an oracle's state in one file, to give a trial back, or to
answer for a chief. `tests/private/test_private_keras_tuner.py` tries each one; run it with a newer version before raising `TESTED`.
"""

from pathlib import Path

import keras_tuner

TESTED = "1.4.8"
ORACLE_METHODS = (
    "_check_consecutive_failures",
    "_duplicate",
    "_get_oracle_fname",
    "_random_values",
    "_save_trial",
    "_set_project_dir",
)
ORACLE_ATTRIBUTES = ("_retry_queue", "_seed_state")
TUNER_METHODS = ("_get_tuner_fname", "_try_run_and_update_trial")


def unusable(missing: str) -> str:
    """The error message for a KerasTuner without these private names."""
    version = getattr(keras_tuner, "__version__", "unknown")
    return f"keras-tuner: received {version}, which lacks {missing}; allowed: {TESTED}; pip install keras-tuner=={TESTED}"


def missing_names(oracle=keras_tuner.Oracle, tuner=keras_tuner.Tuner) -> list[str]:
    """The private names that this version of KerasTuner lacks: an override of a method that nobody calls would do nothing."""
    missing = [f"{oracle.__name__}.{name}" for name in ORACLE_METHODS if not hasattr(oracle, name)]
    missing += [f"{oracle.__name__}.{name}" for name in ORACLE_ATTRIBUTES if not hasattr(oracle(), name)]
    return missing + [f"{tuner.__name__}.{name}" for name in TUNER_METHODS if not hasattr(tuner, name)]


try:
    from keras_tuner.src import protos
    from keras_tuner.src.distribute.oracle_chief import OracleServicer  # noqa: F401  the base of the search's chief
    from keras_tuner.src.distribute.oracle_client import OracleClient
    from keras_tuner.src.engine.oracle import LOCKS, THREADS

    MESSAGES, SERVICE = protos.get_service(), protos.get_service_grpc()  # of the protocol between chief and workers
except (ImportError, AttributeError) as error:
    raise ImportError(unusable(str(error))) from None
if missing_names():
    raise ImportError(unusable(", ".join(missing_names())))


class OracleHooks:
    """Mixin, listed before one of KerasTuner's oracles among the bases. Subclasses define `random_values()`."""

    def _random_values(self):
        return self.random_values()

    def _check_consecutive_failures(self):
        """Does nothing: a failed trial is a bad score, not the end of the search."""

    def _save_trial(self, trial):
        """Does nothing: `save`, which follows, writes the trials too."""

    def set_seed(self, seed: int) -> None:
        """Sets the seed; KerasTuner's constructor would take 0 for no seed."""
        self.seed = self._seed_state = seed

    def use_folder(self, folder: Path) -> None:
        """The folder of the state."""
        self._set_project_dir(str(folder.parent), folder.name)

    @property
    def state_path(self) -> Path:
        """The file of the state."""
        return Path(self._get_oracle_fname())

    @property
    def waiting(self) -> list[str]:
        """The trials to hand out again, the next one last."""
        return self._retry_queue

    @waiting.setter
    def waiting(self, trial_ids):
        self._retry_queue = trial_ids

    def is_tried(self, values: dict) -> bool:
        """Whether a trial has had these values."""
        return self._duplicate(values)

    def release(self) -> None:
        """Frees the lock that KerasTuner keeps for ever if a synchronized method raises."""
        if THREADS[self] is not None:
            THREADS[self] = None
            LOCKS[self].release()


class TunerHooks(keras_tuner.Tuner):
    """Subclasses define `try_trial(trial)`, and `state_file()`: if that file exists, a search goes on."""

    def _get_tuner_fname(self):
        return str(self.state_file())

    def _try_run_and_update_trial(self, trial):
        self.try_trial(trial)


class Client(OracleClient):
    """KerasTuner's view of the chief's oracle, on a channel of our own.

    Args:
        oracle: An oracle of the same space.
        stub: Makes the calls.
        tuner_id: The name of this worker.
    """

    def __init__(self, oracle, stub, tuner_id):  # KerasTuner's reads address and name from the environment
        self._oracle, self.stub, self.tuner_id = oracle, stub, tuner_id
        self.multi_worker, self.should_report = False, True
