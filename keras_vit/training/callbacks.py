"""Callbacks of a training: interruption, divergence, progress, timing."""

import datetime
import math
import signal
import sys
import threading
import time

import keras

TERMINATED = 128 + signal.SIGTERM  # exit code
WARM_STEPS = 3  # steps before a measurement, for compilation and the first allocations


class Diverged(ValueError):
    """The loss is no longer a finite number."""


class Terminated(SystemExit):
    """A signal by which a queue warns of the end: this process ends with exit code 143."""

    def __init__(self):
        super().__init__(TERMINATED)


# What a signal raises, and the handler that it has where the program has none of its own.
SIGNALS = {signal.SIGINT: (KeyboardInterrupt, signal.default_int_handler), signal.SIGTERM: (Terminated, signal.SIG_DFL)}
if hasattr(signal, "SIGUSR1"):  # not on Windows
    SIGNALS[signal.SIGUSR1] = SIGNALS[signal.SIGTERM]


class Callbacks(keras.callbacks.CallbackList):
    """The callbacks of a `fit` that begins within an epoch: they see the whole epoch's steps.

    Args:
        callbacks: The callbacks.
        model: The model.
        epochs: The epoch after the last one of the training.
        steps: Steps of an epoch.
        first_step: The step of the epoch at which `fit` begins.
    """

    def __init__(self, callbacks, model, epochs, steps, first_step):
        super().__init__(callbacks, add_history=True, model=model, verbose=0, epochs=epochs, steps=steps)
        self.first_step = first_step

    def on_train_batch_begin(self, batch, logs=None):
        super().on_train_batch_begin(self.first_step + batch, logs)

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(self.first_step + batch, logs)


class Watcher(keras.callbacks.Callback):
    """Checks the loss now and then, off the main thread where Keras allows it: no step waits for the previous one."""

    async_safe = True

    def set_model(self, model):
        super().set_model(model)
        self.watched = model  # `self.model` would fetch the state of a step that is still running (JAX)


class Clock(Watcher):
    """Skips the first few steps, times the next ones for `seconds`, then ends `fit`.

    Attributes:
        steps: Timed steps.
        seconds: Their time.
    """

    def __init__(self, seconds):
        super().__init__()
        self.enough = seconds
        self.lock = threading.Lock()
        self.first = self.seconds = None

    def on_train_batch_end(self, batch, logs=None):
        with self.lock:  # Keras may call this from several threads at once, a later step before an earlier one
            if batch < WARM_STEPS - 1 or self.seconds is not None:
                return
            if self.first is None:
                float(logs["loss"])  # waits for the steps so far
                self.first, self.started = batch, time.perf_counter()
            elif batch > self.first and time.perf_counter() - self.started > self.enough:
                float(logs["loss"])
                self.steps, self.seconds = batch - self.first, time.perf_counter() - self.started
                self.watched.stop_training = True


class Interrupts:
    """Makes a signal end the training, whenever it comes: Ctrl-C, and SIGTERM or SIGUSR1, by which queues warn.

    Where it would lose steps, it waits until the state has been saved (`SaveWithinEpochs`); only a second Ctrl-C does not.

    The exception of a signal can get lost. Keras swallows it while tracing a model (PyTorch), and raises a TypeError instead while
    cleaning up the first step (JAX). During garbage collection Python only prints it. It is remembered, and raised again before
    the next step or at the end.

    Attributes:
        came: The exception of the signal that has come; None = none has.
        unsaved: Whether steps would be lost.
    """

    def __init__(self):
        self.handlers, self.hook = {}, sys.unraisablehook
        self.came, self.unsaved = None, False

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number, (_, default) in SIGNALS.items():
                if signal.getsignal(number) == default:  # not where the program has a handler of its own
                    self.handlers[number] = signal.signal(number, self.note)
        if self.handlers:
            sys.unraisablehook = lambda lost: None if lost.exc_type is self.came else self.hook(lost)
        return self

    def __exit__(self, kind, error, trace):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        if self.handlers:
            sys.unraisablehook = self.hook
        if kind is not self.came and not isinstance(error, (OSError, Diverged)):  # a full disk says more
            self.check()

    def note(self, number, frame):
        first, self.came = self.came is None, SIGNALS[number][0]
        if not (self.unsaved and (first or self.came is Terminated)):  # a queue may warn twice
            raise self.came

    def check(self):
        """Raises the exception of the signal that has come, if any."""
        if self.came:
            raise self.came from None


class StopOnNaN(Watcher):
    """Ends the epoch soon after the loss became NaN; `Session` then says so."""

    every = 20

    def on_train_batch_end(self, batch, logs=None):
        if batch % self.every == 0 and math.isnan(logs["loss"]):
            self.watched.stop_training = True


class Progress(keras.callbacks.Callback):
    """A progress bar with images/s and, at each epoch's start, the time left.

    Args:
        session: The `Session`.
        verbose: 1 for a bar, 2 for a line an epoch.
    """

    async_safe = True

    def __init__(self, session, verbose):
        super().__init__()
        self.session, self.config, self.verbose = session, session.recipe.train, verbose
        self.step_seconds = None

    def on_epoch_begin(self, epoch, logs=None):
        self.started, self.first, steps = time.perf_counter(), None, self.session.steps
        self.bar = keras.utils.Progbar(steps[epoch], verbose=self.verbose, stateless_metrics=())
        left = ""
        if self.step_seconds:
            seconds = self.step_seconds * (steps.before(self.config.total_epochs) - steps.before(epoch))
            left = f", about {datetime.timedelta(seconds=round(seconds))} left"
        print(f"Epoch {epoch + 1}/{self.config.total_epochs}{left}", flush=True)

    def on_train_batch_begin(self, batch, logs=None):
        if self.first is None:
            self.first = batch  # not 0 where the epoch goes on in its middle

    def on_train_batch_end(self, batch, logs=None):
        if self.verbose == 1:
            rate = (batch + 1 - self.first) * self.config.batch_size / (time.perf_counter() - self.started)
            self.bar.update(batch + 1, [*logs.items(), ("images_per_second", rate)], finalize=False)

    def on_epoch_end(self, epoch, logs=None):
        steps = self.session.steps[epoch]
        self.step_seconds = (time.perf_counter() - self.started) / (steps - self.first)
        self.bar.update(steps, list(logs.items()), finalize=True)
