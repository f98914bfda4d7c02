"""Callbacks of a training: interruption, divergence, progress, timing."""

import datetime
import math
import signal
import sys
import threading
import time

import keras

WARM_STEPS = 3  # steps before a measurement, for compilation and the first allocations


class Diverged(ValueError):
    """The loss is no longer a finite number."""


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


class Interrupts(keras.callbacks.Callback):
    """Makes an interruption (Ctrl-C) end the training, whenever it comes.

    A KeyboardInterrupt can get lost. Keras swallows it while tracing a model (PyTorch), and raises a TypeError instead while
    cleaning up the first step (JAX). During garbage collection Python only prints it. This callback remembers the interruption
    and raises it again at the next step or at the end.
    """

    def __init__(self):
        super().__init__()
        self.handler, self.came, self.hook = None, False, sys.unraisablehook

    def __enter__(self):
        # Not in another thread, and not where the program has a handler of its own.
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self.handler = signal.signal(signal.SIGINT, self.note)
            sys.unraisablehook = lambda lost: None if lost.exc_type is KeyboardInterrupt else self.hook(lost)
        return self

    def __exit__(self, kind, error, trace):
        if self.handler is not None:
            signal.signal(signal.SIGINT, self.handler)
            sys.unraisablehook = self.hook
        if self.came and kind is not KeyboardInterrupt:
            raise KeyboardInterrupt from None

    def note(self, number, frame):
        self.came = True
        raise KeyboardInterrupt

    def on_train_batch_begin(self, batch, logs=None):
        if self.came:
            raise KeyboardInterrupt


class StopOnNaN(Watcher):
    """Ends the epoch soon after the loss became NaN; `Session` then says so."""

    every = 20

    def on_train_batch_end(self, batch, logs=None):
        if batch % self.every == 0 and math.isnan(logs["loss"]):
            self.watched.stop_training = True


class Progress(keras.callbacks.Callback):
    """A progress bar with images/s and, at each epoch's start, the time left.

    Args:
        config: The `TrainConfig`.
        steps_per_epoch: Steps of an epoch.
        verbose: 1 for a bar, 2 for a line an epoch.
    """

    async_safe = True

    def __init__(self, config, steps_per_epoch, verbose):
        super().__init__()
        self.config, self.steps, self.verbose = config, steps_per_epoch, verbose
        self.epoch_seconds = None

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()
        self.bar = keras.utils.Progbar(self.steps, verbose=self.verbose, stateless_metrics=())
        left = ""
        if self.epoch_seconds:
            left = datetime.timedelta(seconds=round(self.epoch_seconds * (self.config.total_epochs - epoch)))
            left = f", about {left} left"
        print(f"Epoch {epoch + 1}/{self.config.total_epochs}{left}", flush=True)

    def on_train_batch_end(self, batch, logs=None):
        if self.verbose == 1:
            rate = (batch + 1) * self.config.batch_size / (time.perf_counter() - self.started)
            self.bar.update(batch + 1, [*logs.items(), ("images_per_second", rate)], finalize=False)

    def on_epoch_end(self, epoch, logs=None):
        self.epoch_seconds = time.perf_counter() - self.started
        self.bar.update(self.steps, list(logs.items()), finalize=True)
