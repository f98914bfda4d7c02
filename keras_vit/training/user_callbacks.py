"""Callbacks that a user gives to `train`: which cannot work there, and one training for them although `fit` runs once a stage."""

from collections.abc import Sequence

import keras

# Callbacks of Keras that would change a run's weights without its training state, and what does their work here.
REFUSED = {
    "BackupAndRestore": "the run folder is the backup, and resume=True goes on with it",
    "SwapEMAWeights": "train.ema averages the weights, validates and saves the averages",
}
HOOKS = ("on_epoch_begin", "on_epoch_end", "on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")


class UserCallbacks:
    """The callbacks of a user, ready for every stage's `fit`.

    Args:
        callbacks: Keras callbacks.

    Attributes:
        names: The names of their classes.
        callbacks: What `fit` gets: each begins its training once, before the first stage.

    Raises:
        ValueError: For what is no callback, and for those in `REFUSED`.
    """

    def __init__(self, callbacks: Sequence[keras.callbacks.Callback]):
        for callback in callbacks:
            if not isinstance(callback, keras.callbacks.Callback):
                raise ValueError(f"callbacks: received a {type(callback).__name__}; allowed: Keras's callbacks")
            for name, instead in REFUSED.items():
                if isinstance(callback, getattr(keras.callbacks, name)):
                    raise ValueError(f"callbacks: received {name}; allowed: others, as {instead}")
            path = getattr(callback, "filepath", "")
            if isinstance(callback, keras.callbacks.ModelCheckpoint) and path.endswith(".h5") and not callback.save_weights_only:
                raise ValueError(f"callbacks: received ModelCheckpoint with {path!r}; allowed: .keras, or .weights.h5 for weights")
        self.names = [type(callback).__name__ for callback in callbacks]
        self.callbacks = [Once(callback) for callback in callbacks]

    def end(self) -> None:
        """Ends the training, if it has begun."""
        for callback in self.callbacks:
            callback.end()


class Once(keras.callbacks.Callback):
    """Passes a callback everything except that the training begins again in each stage and ends after each.

    Keras's callbacks start anew when a training begins: `EarlyStopping` forgets the best epoch, `CSVLogger` its file.
    """

    def __init__(self, callback):
        super().__init__()
        self.callback, self.logs = callback, None
        self.async_safe = getattr(callback, "async_safe", False)
        for hook in HOOKS:
            setattr(self, hook, getattr(callback, hook))  # no methods: Keras skips hooks that do nothing

    def set_params(self, params):
        super().set_params(params)
        self.callback.set_params(params)

    def set_model(self, model):
        super().set_model(model)
        self.callback.set_model(model)

    def on_train_begin(self, logs=None):
        if self.logs is None:
            self.callback.on_train_begin(logs)
        self.logs = {}

    def on_train_end(self, logs=None):
        self.logs = logs or {}

    def end(self):
        if self.logs is not None:
            self.callback.on_train_end(self.logs)
