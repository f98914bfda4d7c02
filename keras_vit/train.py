"""A recipe goes in, a run folder comes out: the only place that calls `fit`."""

import dataclasses
import datetime
import math
import os
import platform
import shlex
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import psutil
from keras import ops

from keras_vit.config import check_number
from keras_vit.data import DataSet, evaluation_batches, load_data, training_batch, training_batches
from keras_vit.finetune import (
    describe_trained,
    learning_rate_factors,
    load_finetune,
    merged_weights,
    select_weights,
    trained_parameters,
)
from keras_vit.machine import accelerator, machine, peak_memory_mb, tune
from keras_vit.model import build_vit
from keras_vit.optimizer import make_optimizer, set_length
from keras_vit.recipe import Recipe, flatten
from keras_vit.run import METRICS, RunFolder
from keras_vit.weights.resample import resample_weight

WARM_STEPS, TIMED_SECONDS = 3, 1.5  # of the measurement of how many images a second a configuration trains
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


class Diverged(ValueError):
    """The loss is no longer a finite number."""


def train(
    recipe: Recipe,
    run_dir: str | os.PathLike,
    *,
    data: DataSet | None = None,
    resume: bool = False,
    overwrite: bool = False,
    until: int | None = None,
    seconds: float | None = None,
    pictures: bool = True,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: int | str = "auto",
) -> RunFolder:
    """Trains the model of a recipe and leaves a run folder; goes on with an interrupted run.

    Args:
        recipe: The `Recipe`. To resume, the one that the run was started with.
        run_dir: The run folder: new or empty, unless `resume` or `overwrite`.
        data: The recipe's `DataSet` where it has been loaded already.
        resume: Goes on behind the last finished epoch of the run in `run_dir`, to the same final numbers as if it had
            never stopped (same backend and machine).
        overwrite: Deletes the run in `run_dir` first.
        until: Stops behind this epoch, in the middle of the recipe's schedule, for `resume` to go on; no test images are
            read then. None = to the end.
        seconds: Training takes about this long on this machine, compilation and validation not included: how fast it is
            is measured first, and the recipe's epochs become parts of that length (`steps_per_epoch`). The recipe in the
            run folder then says how many steps these are. Without effect on a run that is resumed.
        pictures: Whether to draw one training batch and the curves.
        callbacks: More callbacks for `fit`.
        verbose: 0 silent, 1 progress bars, 2 a line an epoch, "auto" 1 on a terminal and else 2.

    Returns:
        The `RunFolder`.

    Raises:
        ValueError: For settings, data or a checkpoint that cannot be used, and a folder that holds something else.
        Diverged: If the loss became NaN or infinite; what was written until then is kept.
    """
    from keras_vit.plots import batch_picture, curves

    tune()
    if data is None:
        data = load_recipe_data(recipe)
        if data.fallback:
            warnings.warn(f"training on {data.name}, not on CIFAR-10: {data.fallback}", stacklevel=2)
    classes = len(data.class_names)
    # What `auto` stood for is written down, so that a resumed run cannot come to another answer.
    recipe = dataclasses.replace(recipe, data=data.name, model=dataclasses.replace(recipe.model, num_classes=classes))
    if len(data.train) < recipe.train.batch_size:
        raise ValueError(f"batch_size: received {recipe.train.batch_size}; {data.name} has {len(data.train)} images")
    model, notes = None, []
    if recipe.finetune.checkpoint and not resume:
        check_apart(run_dir, recipe.finetune.checkpoint)
        with Interrupts():  # before there is a folder: the checkpoint may not fit
            model, notes = compiled_model(recipe.stages()[0][2], total_steps=1, class_names=data.class_names)
    if seconds is not None and not resume:
        check_number("seconds", seconds, above=0)
        needed = 0.0  # for an image, on the average over the epochs
        with Interrupts():
            for first, last, stage in recipe.stages():
                kept = model is not None and model.config == stage.model
                measured = model if kept else compiled_model(stage, total_steps=1)[0]
                needed += (last - first) / recipe.train.epochs / training_rate(measured, data, stage)
                model = model or measured
        steps = max(1, round(seconds / needed / recipe.train.batch_size / recipe.train.epochs))
        recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, steps_per_epoch=steps))
    steps_per_epoch = recipe.train.steps_per_epoch or len(data.train) // recipe.train.batch_size
    total_steps = steps_per_epoch * recipe.train.epochs
    if total_steps < recipe.train.accumulate:
        raise ValueError(f"accumulate: received {recipe.train.accumulate}; the whole training has {total_steps} steps")
    last_epoch = recipe.train.epochs if until is None else min(until, recipe.train.epochs)
    settings = stream_settings(recipe, total_steps)
    pictured = {name: value for name, value in settings.items() if name not in ("mean", "std")}
    # Before there is a folder: settings may not fit.
    begins = [(first * steps_per_epoch, stage.augment) for first, _, stage in recipe.stages()]
    batches = [training_batch(data.train, augment, step, **pictured) for step, augment in begins]
    run = RunFolder(run_dir) if resume else RunFolder.create(run_dir, recipe, overwrite)
    if resume:
        check_same_recipe(run, recipe)
        run.remove_partial_files()
        if run.is_finished:
            return run

    with Interrupts() as interrupts:
        state = run.read_state() if resume else None
        if model is None:
            needed = recipe.finetune.checkpoint and state is None
            epoch = max(state[1]["epoch"] - 1, 0) if state else 0  # the last one that was trained
            stage = next(stage for first, last, stage in recipe.stages() if first <= epoch < last)
            model, notes = compiled_model(stage, total_steps, data.class_names if needed else None)
        set_length(model.optimizer, recipe.train, total_steps)

        session = Session(run, recipe, data, model, steps_per_epoch, last_epoch, notes)
        first_epoch = session.restore(state) if resume else 0
        if recipe.finetune.checkpoint:
            if not first_epoch:
                session.write_state(0)  # from here on the run needs the checkpoint no more
            if verbose:
                print(*session.notes, describe_trained(model), sep="\n", flush=True)
        if pictures and not first_epoch:
            batch_picture(*batches[0], data.class_names, run.plots / "batch.png")
        if first_epoch < last_epoch:
            verbose = (1 if sys.stdout.isatty() else 2) if verbose == "auto" else verbose
            progress = [Progress(recipe.train, steps_per_epoch)] if verbose else []
            session.start()
            try:
                for stage_first, stage_last, stage in recipe.stages():
                    first, last = max(first_epoch, stage_first), min(last_epoch, stage_last)
                    if first >= last:
                        continue
                    session.go_on_with(stage, total_steps)
                    session.training_model.fit(
                        training_batches(
                            data.train,
                            stage.augment,
                            start_step=first * steps_per_epoch,
                            image_size=stage.model.image_size,
                            **settings,
                        ),
                        epochs=last,
                        initial_epoch=first,
                        steps_per_epoch=steps_per_epoch,
                        callbacks=[interrupts, session, StopOnNaN(), *progress, *callbacks],
                        shuffle=False,
                        verbose=verbose,
                    )
                    if session.training_model.stop_training:  # a callback's wish
                        break
            finally:
                session.close()
        if last_epoch == recipe.train.epochs:
            session.finish()
            if pictures:
                curves([run], run.plots / "curves.png")
    return run


def load_recipe_data(recipe: Recipe) -> DataSet:
    """The `DataSet` of a recipe: its images in the size and with the channels of the recipe's model."""
    return load_data(
        recipe.data,
        data_dir=recipe.data_dir,
        image_size=recipe.model.image_size,
        channels=recipe.model.channels,
        validation=recipe.validation,
        seed=recipe.seed,
    )


def compiled_model(recipe, total_steps, class_names=None):
    """The model of a recipe or of a stage of it, ready for `fit`, and notes for the user.

    Its weights are the checkpoint's where the names of the data's classes are given, else the seed's.
    """
    keras.utils.set_random_seed(recipe.seed)
    model = build_vit(recipe.model, dtype=POLICIES[recipe.train.precision], remat=recipe.train.remat)
    notes, factors = [], None
    if recipe.finetune.checkpoint:
        if class_names is not None:
            notes = load_finetune(model, recipe.finetune, class_names)
        select_weights(model, recipe.finetune)
        if recipe.finetune.layer_decay < 1:
            factors = learning_rate_factors(model, recipe.finetune.layer_decay)
    compile_model(model, make_optimizer(recipe.train, total_steps, factors), recipe.train.jit)
    return model, notes


def check_apart(run_dir, checkpoint):
    """Raises a ValueError if the run would be written over the checkpoint that it starts from."""
    run, checkpoint = Path(run_dir).resolve(), Path(checkpoint).resolve()
    if run == checkpoint or run in checkpoint.parents:
        raise ValueError(f"run: {str(run_dir)!r} holds the checkpoint that the run would start from; choose another folder")


def training_rate(model, data, recipe):
    """Images a second that a compiled model trains with; leaves the model as it was, but compiled for `fit`."""
    variables = [*model.variables, *model.optimizer.variables]
    before = [ops.convert_to_numpy(variable) for variable in variables]
    settings = stream_settings(recipe, total_steps=10**6)
    batches = training_batches(data.train, recipe.augment, image_size=model.config.image_size, **settings)
    clock = Clock()
    model.fit(batches, steps_per_epoch=10**6, shuffle=False, verbose=0, callbacks=[clock])
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    return clock.steps * recipe.train.batch_size / clock.seconds


def stream_settings(recipe, total_steps):
    """What the training batches of a recipe depend on, besides its data and augmentation."""
    return {
        "num_classes": recipe.model.num_classes,
        "batch_size": recipe.train.batch_size,
        "seed": recipe.seed,
        "mean": recipe.mean,
        "std": recipe.std,
        "total_steps": total_steps,
    }


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


def carry_over(old, new):
    """Gives a compiled model the weights and the optimizer's state of another that differs as stages do.

    Weights and their averages are resampled. The optimizer's moments of those are only of an order of magnitude then: their mean.
    """
    optimizer = getattr(new.optimizer, "inner_optimizer", new.optimizer)
    paths = {id(variable): variable.path for variable in new.variables}
    if optimizer.use_ema:
        averages = optimizer._model_variables_moving_average  # no public access in Keras 3.15
        paths |= {id(average): variable.path for average, variable in zip(averages, new.trainable_variables, strict=True)}
    # By layer, as only one of them may have patch dropout, which has a variable too: the state of its random numbers.
    theirs, ours = ({layer.name: layer.variables for layer in model.layers} for model in (old, new))
    pairs = [*zip(old.optimizer.variables, new.optimizer.variables, strict=True)]
    for name in theirs.keys() & ours.keys():
        pairs += zip(theirs[name], ours[name], strict=True)
    for source, target in pairs:
        value = ops.convert_to_numpy(source)
        if value.shape != tuple(target.shape):
            path = paths.get(id(target))
            value = resample_weight(path, value, old.config, new.config) if path else np.full(target.shape, value.mean())
        target.assign(value)


def compile_model(model, optimizer, jit):
    jit = {"auto": "auto", "on": True, "off": False}[jit]
    if jit == "auto" and keras.backend.backend() == "tensorflow" and not accelerator():
        jit = False  # on a CPU TensorFlow's own kernels are as fast as XLA's in float32 and faster in bfloat16
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    accuracy = keras.metrics.CategoricalAccuracy(name="accuracy")
    model.compile(optimizer, loss=loss, metrics=[accuracy], jit_compile=jit)
    model.optimizer.build(model.trainable_variables)  # in the first step TensorFlow would trace that step twice


class Session(keras.callbacks.Callback):
    """Behind every epoch: averages the weights, validates, and writes metrics, best model and training state.

    Validated and saved is a second model that holds the averaged weights, in float32 whatever the training's precision.
    It is not compiled, so that the saved file says nothing of this backend; `scorer` is its compiled face.
    """

    def __init__(self, run, recipe, data, model, steps_per_epoch, last_epoch, notes=()):
        super().__init__()
        self.notes = list(notes)
        self.run = run
        self.recipe = recipe
        self.data = data
        self.training_model = model
        self.evaluated = build_vit(recipe.model, dtype="float32")
        self.scorer = keras.Model(self.evaluated.input, self.evaluated.output)
        compile_model(self.scorer, "sgd", recipe.train.jit)
        self.steps_per_epoch, self.last_epoch = steps_per_epoch, last_epoch
        # Made once: TensorFlow keeps what a pipeline is made of for good.
        self.validation = batches_of(data.validation, recipe) if data.validation is not None else None
        self.latest = None  # training state behind the last epoch, where it is needed again
        self.rows = []
        self.best = -math.inf
        self.earlier_seconds = 0.0
        self.earlier_process_seconds = 0.0
        self.writer = None

    @property
    def optimizer(self):
        """The optimizer itself where Keras has wrapped it for loss scaling."""
        return getattr(self.training_model.optimizer, "inner_optimizer", self.training_model.optimizer)

    @property
    def process_seconds(self):
        """Seconds since the start of this process, and of those that trained before it."""
        return self.earlier_process_seconds + time.time() - psutil.Process().create_time()

    def arrays(self):
        """Every variable that training depends on, by a name that is the same in every process."""
        variables = {"model": self.training_model.variables, "optimizer": self.training_model.optimizer.variables}
        return {
            f"{kind}/{index:04d}/{variable.name}": variable
            for kind, members in variables.items()
            for index, variable in enumerate(members)
        }

    def restore(self, state):
        """Goes on from what `RunFolder.read_state` gave; returns the number of finished epochs."""
        where = f"run: {str(self.run.path)!r}"
        rows = self.run.metrics
        if state is None:
            if len(rows) > 1:
                raise ValueError(f"{where} has {len(rows)} epochs but no last/state.safetensors; start again with --overwrite")
            self.run.write_metrics([])
            return 0
        arrays, values = state
        if values["backend"] != keras.backend.backend():
            raise ValueError(f"{where} was made under {values['backend']}; resume it with KERAS_BACKEND={values['backend']}")
        variables = self.arrays()
        shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
        stored = {name: array.shape for name, array in arrays.items()}
        if shapes != stored:
            name = next(name for name in {**shapes, **stored} if shapes.get(name) != stored.get(name))
            raise ValueError(
                f"{where} was made by another model: {name} has shape {stored.get(name)} there and {shapes.get(name)} here"
            )
        if values["fingerprint"] != self.data.fingerprint:
            raise ValueError(f"{where} was made with other data than {self.data.name} holds now")
        for name, variable in variables.items():
            variable.assign(arrays[name])
        self.rows = [row for row in rows if row["epoch"] <= values["epoch"]]
        if len(self.rows) != values["epoch"]:
            raise ValueError(f"{where} has {len(self.rows)} of {values['epoch']} epochs in metrics.csv; start with --overwrite")
        self.run.write_metrics(self.rows)
        self.best = values["best"]
        self.earlier_seconds = values["seconds"]
        self.earlier_process_seconds = values["process_seconds"]
        self.notes = values.get("notes", [])
        return values["epoch"]

    def start(self):
        # Not tensorboardX's SummaryWriter: that writes from a thread, which a full disk ends unseen, and then waits for it.
        from tensorboardX.record_writer import RecordWriter

        # Written anew when a run goes on: a kill may have lost the last events.
        shutil.rmtree(self.run.tensorboard, ignore_errors=True)
        self.run.tensorboard.mkdir()
        self.writer = RecordWriter(str(self.run.tensorboard / f"events.out.tfevents.{int(time.time())}.{platform.node()}"))
        self.write_event(file_version="brain.Event:2")
        for row in self.rows:
            self.write_events(row)
        self.started = time.perf_counter()

    def go_on_with(self, stage, total_steps):
        """Trains by the recipe of a stage from here on; a model that differs gets the weights and the optimizer's state so far."""
        if self.latest:  # at its end `fit` puts the averaged weights in the place of the trained ones
            for name, variable in self.arrays().items():
                variable.assign(self.latest[name])
            self.latest = None
        if stage.model != self.training_model.config:
            model, _ = compiled_model(stage, total_steps)
            carry_over(self.training_model, model)
            self.training_model = model

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.epoch_started = time.perf_counter()

    def on_train_batch_begin(self, batch, logs=None):
        if keras.backend.backend() == "torch":
            # Keras's dropout draws from PyTorch's own stream there, which is no variable of the model, and from which
            # PyTorch's data loader draws too: dropout becomes a function of seed and step, as the batches are.
            import torch

            torch.manual_seed(int(np.random.SeedSequence((self.recipe.seed, self.epoch, batch)).generate_state(1)[0]))

    def on_epoch_end(self, epoch, logs=None):
        config = self.recipe.train
        arrays = {name: ops.convert_to_numpy(variable) for name, variable in self.arrays().items()}
        keep = self.optimizer.use_ema and config.stages
        self.latest = {name: array.copy() for name, array in arrays.items()} if keep else None
        # The loss of the last step was taken before its update, so that only the weights tell.
        if math.isnan(logs["loss"]) or not all(np.isfinite(array).all() for array in arrays.values()):
            raise Diverged(
                f"loss: {logs['loss']} in epoch {epoch + 1}, weights no longer finite; {str(self.run.path)!r} keeps what "
                f"epoch {epoch} left. Lower train.learning_rate ({config.learning_rate:g}) or set train.clip_norm"
            )
        seconds = time.perf_counter() - self.epoch_started
        logs["images_per_second"] = self.steps_per_epoch * config.batch_size / seconds
        self.copy_weights()
        last = epoch + 1 == self.last_epoch
        if self.validation is not None and (last or (epoch + 1) % config.validate_every == 0):
            logs.update({f"val_{name}": value for name, value in evaluate(self.scorer, self.validation).items()})
        row = {
            **logs,
            "epoch": epoch + 1,
            "seconds": self.earlier_seconds + time.perf_counter() - self.started,
            "epoch_seconds": seconds,
            "learning_rate": float(ops.convert_to_numpy(self.optimizer.learning_rate)),
            "memory_mb": psutil.Process().memory_info().rss / 2**20,
        }
        row = {name: row[name] for name in METRICS if name in row}
        self.rows.append(row)
        # Without validation images there is nothing to choose by: the last epoch is the best one.
        score = row.get("val_accuracy", -math.inf) if self.validation is not None else epoch
        if score > self.best:
            self.best = score
            self.run.write_model(self.evaluated)
        self.run.write_metrics(self.rows)
        # The state goes last: whatever a kill before this line leaves is made again when the epoch is repeated.
        self.write_state(epoch + 1, arrays)
        self.write_events(row)

    def write_state(self, epoch, arrays=None):
        """Writes the training state behind an epoch; `arrays` are those of `self.arrays()` where they have been read already."""
        values = {
            "epoch": epoch,
            "best": self.best,
            "seconds": self.rows[-1]["seconds"] if self.rows else 0.0,
            "process_seconds": self.process_seconds,
            "fingerprint": self.data.fingerprint,
            "backend": keras.backend.backend(),
            "notes": self.notes,
        }
        self.run.write_state(arrays or {name: ops.convert_to_numpy(variable) for name, variable in self.arrays().items()}, values)

    def write_events(self, row):
        from tensorboardX.summary import scalar

        for name, value in row.items():
            self.write_event(step=row["epoch"], summary=scalar(name, value))
        self.writer.flush()

    def write_event(self, **content):
        from tensorboardX.proto.event_pb2 import Event

        self.writer.write(Event(wall_time=time.time(), **content).SerializeToString())

    def close(self):
        if self.writer is not None:
            self.writer.close()

    def copy_weights(self):
        """Gives the evaluated model the averaged weights, or the current ones where there is no average; adapters are merged."""
        averages = {}
        if self.optimizer.use_ema:
            variables = self.training_model.trainable_variables
            values = self.optimizer._model_variables_moving_average  # no public access in Keras 3.15
            averages = {variable.path: value for variable, value in zip(variables, values, strict=True)}
        weights = merged_weights(self.training_model, averages)
        theirs, ours = self.training_model.config, self.evaluated.config
        for target in self.evaluated.weights:
            target.assign(resample_weight(target.path, weights[target.path], theirs, ours))

    def finish(self):
        """Reads the test images once, with the best model, and writes the summary."""
        recipe, data, rows = self.recipe, self.data, self.rows
        self.evaluated.load_weights(self.run.model_path)
        test = evaluate(self.scorer, batches_of(data.test, recipe)) if data.test is not None else {}
        best = max((row for row in rows if "val_accuracy" in row), key=lambda row: row["val_accuracy"], default=rows[-1])
        origin = {"checkpoint": recipe.finetune.checkpoint, "checkpoint_notes": self.notes} if recipe.finetune.checkpoint else {}
        self.run.write_summary(
            {
                **origin,
                "data": data.name,
                "data_notes": data.notes,
                "class_names": data.class_names,
                "fingerprint": data.fingerprint,
                **{f"test_{name}": value for name, value in test.items()},
                "best_epoch": best["epoch"],
                "val_accuracy": best.get("val_accuracy"),
                "epochs": len(rows),
                "parameters": self.evaluated.count_params(),
                "trained_parameters": trained_parameters(self.training_model),
                "flops": recipe.model.flops,
                "seconds": rows[-1]["seconds"],
                "process_seconds": self.process_seconds,
                "images_per_second": float(np.median([row["images_per_second"] for row in rows])),
                "peak_memory_mb": peak_memory_mb(),
                "seed": recipe.seed,
                "precision": recipe.train.precision,
                **machine(),
                "command": shlex.join([Path(sys.executable).name, *sys.argv]),
                "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            }
        )


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


def batches_of(split, recipe):
    """The images of a split in order, for `model.evaluate`; can be gone through again and again."""
    return evaluation_batches(
        split,
        num_classes=recipe.model.num_classes,
        batch_size=even_batch_size(len(split), min(500, 4 * recipe.train.batch_size)),
        mean=recipe.mean,
        std=recipe.std,
    )


def evaluate(model, batches):
    """Loss and accuracy of a compiled model, as floats."""
    return {name: float(value) for name, value in model.evaluate(batches, verbose=0, return_dict=True).items()}


def even_batch_size(count, largest):
    """A batch size of at most `largest` that divides `count`, if there is one above a fifth of that: a smaller last batch
    would be compiled again."""
    return next((size for size in range(largest, largest // 5, -1) if count % size == 0), min(largest, count))


def check_same_recipe(run, recipe):
    """Raises a ValueError that names the settings in which a recipe differs from that of a run."""
    theirs, ours = flatten(run.recipe.to_dict(), ""), flatten(recipe.to_dict(), "")
    changed = [name for name in ours if ours[name] != theirs[name] and name not in ("data_dir", "model.num_classes")]
    if changed:
        differences = ", ".join(f"{name} {theirs[name]} there and {ours[name]} here" for name in changed)
        raise ValueError(f"run: {str(run.path)!r} was made by another recipe: {differences}")
