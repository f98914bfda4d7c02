"""How the devices and processes of a training work together, behind one set of methods; here: a single device.

The engines are the frameworks' own: `keras.distribution` under JAX, `tf.distribute` under TensorFlow, PyTorch's
DistributedDataParallel. A global batch stays a function of seed and step, and each process makes its part. Weights, optimizer and
metrics are the same in every process after every step; the first one writes.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator

import keras
import numpy as np
from keras import ops

from keras_vit.data.batches import Part


class Distribution:
    """A training on one device.

    Attributes:
        kind: `none`, `data` or `model`.
        processes: Number of processes.
        rank: Which of them this one is, from 0.
        replicas: Devices that share a batch, of all processes.
        devices: Devices that take part, of all processes.
        counters: Processes whose metrics count their own images only.
    """

    kind = "none"
    processes, rank, replicas, devices, counters = 1, 0, 1, 1, 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run folder and speaks to the user."""
        return self.rank == 0

    @property
    def part(self) -> Part:
        """Which part of a global batch this process makes, and of how many."""
        return self.rank, self.processes

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Within it, models that are trained are built and compiled."""
        yield

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Within it, `fit` is called."""
        yield

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Within it, an engine's error that says that another process is gone becomes a `LostProcess`."""
        yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Within it, models belong to this process alone, as those that validate its part of the images."""
        yield

    def divide(self, model: keras.Model) -> None:
        """Divides the weights of a model that will be trained, where they were not built so; before its optimizer is built."""

    @contextlib.contextmanager
    def whole(self, model: keras.Model) -> Iterator[None]:
        """Within it, weights and optimizer of a model can be read and assigned as on one device. Every process must enter it."""
        yield

    def prepare(self, model: keras.Model) -> None:
        """Makes the steps of a compiled model those of all processes together."""

    def batches(self, batches):
        """A stream of this process's parts of the global batches, as `fit` takes it."""
        return batches

    def array(self, variable: keras.Variable) -> np.ndarray:
        """The whole value of a variable, also of one that is spread over devices. Every process must call it."""
        return ops.convert_to_numpy(variable)

    def gather(self, array: np.ndarray) -> np.ndarray:
        """The arrays of all processes (processes, ...), which have one shape and type. Every process must call it."""
        return np.asarray(array)[None]

    def total(self, variable: keras.Variable) -> np.ndarray:
        """What a metric's variable has accumulated in all `counters` together. Every process must call it."""
        return self.array(variable) if self.counters == 1 else self.gather(self.array(variable)).sum(axis=0)

    def meet(self) -> None:
        """Waits until all processes are here."""
        self.gather(np.zeros(1, np.int32))

    def means(self, logs: dict) -> dict:
        """The means of numbers over the processes."""
        return logs


def environment_int(name: str, least: int = 1) -> int | None:
    """A variable of the environment that counts processes; None if it is not set or empty.

    Raises:
        ValueError: If it is no whole number of at least `least`.
    """
    text = os.environ.get(name)
    if not text:
        return None
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name}: received {text!r}; allowed: a whole number of at least {least}")
    return int(text)


class LostProcess(ValueError):
    """Another process of the training has ended, or does not answer."""


# What the engines' errors say where another process is gone.
LOST = re.compile("connection (closed|reset|refused)|broken pipe|peer|timed? ?out|heartbeat|unavailable|aborted", re.IGNORECASE)
STATUS = re.compile("[A-Z_]+: ")  # begins an engine's ValueError, as "UNKNOWN: Gloo AllGather failed"


class Processes(Distribution):
    """What distributions over several processes have in common.

    Attributes:
        errors: The engine's exceptions.
    """

    errors: tuple[type[Exception], ...] = (RuntimeError,)

    @contextlib.contextmanager
    def watch(self):
        try:
            yield
        except self.errors as error:
            own = isinstance(error, ValueError) and not STATUS.match(str(error))
            if self.processes == 1 or own or not LOST.search(str(error)):
                raise
            self.leave()
            words = " ".join(str(error).split())[:200]
            lost = f"distribute: another process has ended or does not answer ({words})"
            raise LostProcess(f"{lost}; go on with --resume, with as many processes as there are") from None

    def leave(self) -> None:
        """Lets this process end without waiting for the others."""

    def means(self, logs):
        if self.processes == 1:
            return logs
        names = sorted(logs)
        values = self.gather(np.array([float(logs[name]) for name in names], np.float64).view(np.int32))
        return dict(zip(names, values.view(np.float64).mean(axis=0).tolist(), strict=True))


def on_first(distribution: Distribution, action: Callable[[], object]) -> None:
    """Does something in the first process while the others wait; its ValueError or OSError is raised in all."""
    error = None
    if distribution.is_first:
        try:
            action()
        except (ValueError, OSError) as raised:
            error = raised
    said = gather_texts(distribution, "" if error is None else str(error) or type(error).__name__)[0]
    if error is not None:
        raise error
    if said:
        raise ValueError(f"process 0: {said}")


def check_agreement(distribution: Distribution, values: dict) -> None:
    """Raises a ValueError in every process that names what differs between them, and in which."""
    first, *others = (json.loads(text) for text in gather_texts(distribution, json.dumps(values)))
    for rank, other in enumerate(others, start=1):
        for name in first | other:
            if other.get(name) != first.get(name):
                said = f"{name} {other.get(name)} in process {rank}; allowed: {first.get(name)}, as in process 0"
                raise ValueError(f"distribute: received {said}")


def gather_texts(distribution: Distribution, text: str) -> list[str]:
    """The texts of all processes, in the order of their ranks."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = distribution.gather(np.array([len(data)], np.int32))[:, 0]
    padded = np.zeros(max(sizes.max(), 1), np.uint8)
    padded[: len(data)] = data
    gathered = distribution.gather(padded.astype(np.int32))  # int32: every engine gathers it
    return [row[:size].astype(np.uint8).tobytes().decode() for row, size in zip(gathered, sizes, strict=True)]


def gather_rows(distribution: Distribution, rows: np.ndarray) -> np.ndarray:
    """The float32 rows (n, K) of all processes below each other, whose n may differ."""
    counts = distribution.gather(np.array([len(rows)], np.int32))[:, 0]
    padded = np.zeros((counts.max(), *rows.shape[1:]), np.float32)
    padded[: len(rows)] = rows
    return np.concatenate([part[:count] for part, count in zip(distribution.gather(padded), counts, strict=True)])
