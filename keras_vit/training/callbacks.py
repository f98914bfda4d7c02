"""Callbacks of a training: interruption, divergence, progress, timing."""

import datetime
import math
import signal
import sys
import threading
import time

import keras


class Diverged(ValueError):
    """The loss is no longer a finite number."""


class Clock(keras.callbacks.Callback):
    """Times steps behind the first few, and then ends `fit`."""

    async_safe = True

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()
        self.first = self.seconds = None

    def on_train_batch_end(self, batch, logs=None):
        with self.lock:  # Keras may call this from several threads at once, a later step before an earlier one
            if batch < WARM_STEPS - 1 or self.seconds is not None:
                return
            if self.first is None:
                float(logs["loss"])  # waits for the steps so far
                self.first, self.started = batch, time.perf_counter()
            elif batch > self.first and time.perf_counter() - self.started > TIMED_SECONDS:
                float(logs["loss"])
                self.steps, self.seconds = batch - self.first, time.perf_counter() - self.started
                self._model.stop_training = True  # `self.model` would fetch the state of a step that is still running (JAX)


class Interrupts(keras.callbacks.Callback):
    """Makes an interruption (Ctrl-C) end the training, whenever it comes.

    While Keras traces a model it swallows everything that is raised (PyTorch), its clean-up of a first step that was
    interrupted raises a TypeError of its own (JAX), and what is raised while Python collects garbage is only printed: what
    came is noted here, and raised again at the next step or the end.
    """

    def __init__(self):
        super().__init__()
        self.handler, self.came, self.hook = None, False, sys.unraisablehook

    def __enter__(self):
        # Elsewhere than in the main thread, or where the program has a handler of its own, that is none of our business.
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


class StopOnNaN(keras.callbacks.Callback):
    """Ends the epoch soon after the loss became NaN; `Session` then says so.

    Looks once in a while and off the main thread where Keras allows it, so that no step waits for its predecessor.
    """

    async_safe = True
    every = 20

    def on_train_batch_end(self, batch, logs=None):
        if batch % self.every == 0 and math.isnan(logs["loss"]):
            self._model.stop_training = True  # `self.model` would fetch the state of a step that is still running (JAX)


class Progress(keras.callbacks.ProgbarLogger):
    """Keras's progress bar with images/s and, at each epoch's start, the time left."""

    async_safe = True

    def __init__(self, config, steps_per_epoch):
        super().__init__()
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.epoch_seconds = None

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()
        self._reset_progbar()
        self._maybe_init_progbar()
        left = ""
        if self.epoch_seconds:
            left = datetime.timedelta(seconds=round(self.epoch_seconds * (self.config.epochs - epoch)))
            left = f", about {left} left"
        print(f"Epoch {epoch + 1}/{self.config.epochs}{left}", flush=True)

    def on_train_batch_end(self, batch, logs=None):
        rate = (batch + 1) * self.config.batch_size / (time.perf_counter() - self.started)
        super().on_train_batch_end(batch, {**logs, "images_per_second": rate})

    def on_epoch_end(self, epoch, logs=None):
        self.epoch_seconds = time.perf_counter() - self.started
        super().on_epoch_end(epoch, logs)


WARM_STEPS, TIMED_SECONDS = 3, 1.5  # of the measurement of how many images a second a configuration trains
