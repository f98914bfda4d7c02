"""When the training state is saved: after each epoch, within epochs, and before a signal ends the training.

The training waits while its state is copied. Another thread writes the copy.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np

from keras_vit.training.callbacks import Terminated

SHARED_EVERY = 10  # steps
SIGNALLED = (None, KeyboardInterrupt, Terminated)


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

    A state that is due while another is being written is saved as soon as that one is written.

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
        if not self.share_signals(batch):
            return
        steps, seconds = self.session.since_saved(self.epoch, batch)
        busy, due = self.session.states.busy, steps >= self.steps or seconds >= self.seconds
        if steps and self.interrupts.came:
            self.session.save(self.epoch, batch)
            self.session.states.wait()
            if self.verbose:
                print(f"\nsaved after step {batch} of {self.params['steps']} in epoch {self.epoch + 1}", flush=True)
        self.interrupts.check()
        if steps and due and not busy:
            self.session.save(self.epoch, batch)
            steps = 0
        elif due and busy and self.verbose and not self.late:
            self.late = True
            print(f"\nsave_every: {self.session.recipe.train.save_every}, but writing a state takes longer", flush=True)
        self.interrupts.unsaved = steps > 0

    def share_signals(self, batch):
        """Whether a signal is heeded before this step: among several processes before every tenth, and then by all."""
        distribution = self.session.distribution
        if distribution.processes == 1:
            return True
        if batch % SHARED_EVERY:
            return False
        came = distribution.gather(np.array([SIGNALLED.index(self.interrupts.came)], np.int32)).max()
        self.interrupts.came = SIGNALLED[came]
        return True


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
        self.interrupts.check()


def restore_metrics(model: keras.Model, values: list) -> None:
    """Gives the metrics of a compiled ViT what they had accumulated; Keras resets them before each epoch."""
    if len(model.metrics_variables) < len(values):  # TensorFlow makes them while it traces the first step
        nothing = np.zeros((1, model.config.num_classes), "float32")
        model.compute_metrics(None, nothing, nothing)
    for variable, value in zip(model.metrics_variables, values, strict=True):
        variable.assign(np.array(value, variable.dtype))
