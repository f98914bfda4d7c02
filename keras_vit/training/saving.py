"""When the training state is saved: after each epoch, within epochs, and before a signal ends the training.

The training waits while its state is copied. Another thread writes the copy.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np

from keras_vit.training.callbacks import Terminated
from keras_vit.training.distribution.base import Distribution

SHARED_EVERY = 10  # steps after which several processes agree on what to do
SIGNALS = (None, KeyboardInterrupt, Terminated)  # what may have come to a process


class StateWriter:
    """Writes training states in another thread, one at a time.

    Args:
        write: Writes a state; its arguments are those of `start`.
    """

    def __init__(self, write: Callable):
        self.write, self.pool, self.pending = write, ThreadPoolExecutor(1, "state"), None

    @property
    def busy(self) -> bool:
        """Whether a state is being written; raises what the writing of the last one has raised."""
        if self.pending is not None and self.pending.done():
            self.wait()
        return self.pending is not None

    def start(self, *state) -> None:
        """Begins to write a state, after the one before."""
        self.wait()
        self.pending = self.pool.submit(self.write, *state)

    def wait(self) -> None:
        """Returns once the state is written; raises what that has raised."""
        if self.pending is not None:
            self.pending.result()
            self.pending = None

    def close(self) -> None:
        self.pool.shutdown()  # after an interruption, too, the state is written to its end
        self.wait()


class SaveWithinEpochs(keras.callbacks.Callback):
    """Saves the state between two steps, before other callbacks see the next one: if `train.save_every` or a signal asks for it.

    A state that is due while another is being written is saved as soon as that one is written. Several processes save and end
    together, before every tenth step: one of them alone would leave the others waiting.

    Args:
        session: The `Session`.
        interrupts: The `Interrupts`, which end the training here.
        verbose: Whether to print.
    """

    def __init__(self, session, interrupts, verbose):
        super().__init__()
        self.session, self.interrupts, self.verbose = session, interrupts, verbose
        self.steps, self.seconds = session.recipe.train.save_interval
        self.late = False

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        several = self.session.distribution.processes > 1
        if several and batch % SHARED_EVERY:
            return
        steps, seconds = self.session.since_saved(self.epoch, batch)
        busy, due = self.session.states.busy, steps >= self.steps or seconds >= self.seconds
        self.interrupts.came, saves = agreed(self.session.distribution, self.interrupts.came, bool(steps) and due and not busy)
        if steps and self.interrupts.came:
            self.session.save(self.epoch, batch)
            self.session.states.wait()
            if self.verbose:
                print(f"\nsaved after step {batch} of {self.params['steps']} in epoch {self.epoch + 1}", flush=True)
        self.interrupts.check()
        if saves:
            self.session.save(self.epoch, batch)
            steps = 0
        elif due and busy and self.verbose and not self.late:
            self.late = True
            print(f"\nsave_every: {self.session.recipe.train.save_every}, but writing a state takes longer", flush=True)
        self.interrupts.unsaved = steps > 0 or several


class SaveEpochs(keras.callbacks.Callback):
    """Saves the state after each epoch, as all other callbacks leave it, the user's too; then a signal may end the training.

    After a kill before that the rest of the epoch is repeated, and all that the others wrote is written again.
    """

    def __init__(self, session, interrupts):
        super().__init__()
        self.session, self.interrupts = session, interrupts

    def on_epoch_end(self, epoch, logs=None):
        self.session.save(epoch + 1)
        self.session.states.wait()
        self.interrupts.unsaved = False
        self.interrupts.came, _ = agreed(self.session.distribution, self.interrupts.came, False)
        self.interrupts.check()


def agreed(distribution: Distribution, came: type[BaseException] | None, saves: bool) -> tuple[type[BaseException] | None, bool]:
    """What has come to any of the processes, and whether the first one wants to save. Every process must call it."""
    if distribution.processes == 1:
        return came, saves
    theirs = distribution.gather(np.array([SIGNALS.index(came), saves], np.int32))  # (processes, 2)
    return SIGNALS[theirs[:, 0].max()], bool(theirs[0, 1])


def restore_metrics(model: keras.Model, totals: list, counters: int) -> None:
    """Gives the metrics of a compiled ViT what they had accumulated; Keras resets them before each epoch.

    Args:
        model: The `ViT`.
        totals: `Distribution.total` of each of its metrics' variables.
        counters: As of the `Distribution`.
    """
    if len(model.metrics_variables) < len(totals):  # TensorFlow makes them while it traces the first step
        nothing = np.zeros((1, model.config.num_classes), "float32")
        model.compute_metrics(None, nothing, nothing)
    for variable, total in zip(model.metrics_variables, totals, strict=True):
        variable.assign(np.array(total, variable.dtype) / counters)
