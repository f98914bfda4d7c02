"""What happens after each epoch and at the end of a training: validation, and the files of the run folder."""

import datetime
import math
import platform
import shlex
import shutil
import sys
import time
import typing
import warnings
from pathlib import Path

import keras
import numpy as np
import psutil
from keras import ops

from keras_vit.checks import check_type
from keras_vit.data.batches import evaluation_batches
from keras_vit.data.labels import targets_of
from keras_vit.data.seeds import FIXED_MASK
from keras_vit.files import Damaged
from keras_vit.images import normalize
from keras_vit.machine import machine, peak_memory_mb, process_seconds
from keras_vit.model.adapters import merged_weights
from keras_vit.model.resample import resample_weight
from keras_vit.model.vit import build_vit
from keras_vit.recipes.schema import RECALL
from keras_vit.runs.calibration import calibration_of, fit_temperature
from keras_vit.runs.evaluation import Outputs
from keras_vit.runs.metrics import columns_of
from keras_vit.runs.scores import metrics_of
from keras_vit.training.callbacks import Diverged
from keras_vit.training.distill.teach import Taught
from keras_vit.training.distribution.base import Distribution, gather_rows
from keras_vit.training.finetune import trained_parameters
from keras_vit.training.losses import class_weights, make_loss
from keras_vit.training.models import averaged, carry_over, compile_model, compiled_model, trained_model
from keras_vit.training.optimizer import iterations, own_optimizer
from keras_vit.training.saving import StateWriter, restore_metrics

PAINTED = 16  # images of the picture after a pre-training
STATED = {  # in a training state, beside its epoch and step
    **dict.fromkeys(("backend", "fingerprint"), str),
    **dict.fromkeys(("seconds", "epoch_seconds", "process_seconds"), float),
    **{"rows": list[dict], "metrics": list[typing.Any], "callbacks": list[str]},
}


class Session(keras.callbacks.Callback):
    """After each epoch: averages the weights, validates, and writes metrics and the best model; `SaveEpochs` comes last.

    A second, float32 model with the averaged weights is validated and saved. It is not compiled: the saved file does not depend
    on the backend. `scorer` is the same model, compiled.

    Args:
        run: The `RunFolder`.
        recipe: The `Recipe`.
        data: Its `DataSet`.
        model: The compiled model of the stage that is resumed, or of the first.
        stage: The recipe of that stage.
        steps: The `Steps`.
        last_epoch: The epoch after which training ends, by the recipe or earlier.
        notes: Lines on the checkpoint for the summary.
        callbacks: Names of the user's callbacks, for the summary.
        distribution: The `Distribution`. Each process validates a part of the images.
        taught: What the training has of its teacher.
    """

    def __init__(
        self,
        run,
        recipe,
        data,
        model,
        stage,
        steps,
        last_epoch,
        notes=(),
        callbacks=(),
        distribution=None,
        taught=None,
    ):
        super().__init__()
        self.taught = taught or Taught()
        self.distribution = distribution or Distribution()
        self.notes, self.callbacks = list(notes), list(callbacks)
        self.run = run
        self.recipe = recipe
        self.data = data
        self.training_model, self.stage = model, stage
        if recipe.pretrain:
            keras.utils.set_random_seed(recipe.seed)  # the pooling is saved as it begins, in a resumed run too
        with self.distribution.alone():
            self.evaluated = build_vit(recipe.model, dtype="float32")
            whole = trained_model(recipe, self.evaluated)
            self.scorer = keras.Model(whole.input, whole.output)
            self.loss = make_loss(recipe)
            compile_model(self.scorer, "sgd", recipe.train.jit, self.loss, [])
        self.steps, self.last_epoch = steps, last_epoch
        self.fit_end = last_epoch  # the epoch after the last one of the `fit` that runs
        # Made once: TensorFlow never frees what a pipeline is made of.
        self.validation = self.own_batches(data.validation) if data.validation is not None else None
        self.states = StateWriter(self.write_state)
        self.latest = None  # training state after the last epoch, where it is needed again
        self.rows = []
        self.lost = []  # best epochs whose model is damaged and was found nowhere else
        self.first_step, self.accumulated = 0, []  # of a run that goes on within an epoch
        self.earlier_seconds = self.earlier_epoch_seconds = 0.0
        self.started = self.saved = None
        self.earlier_process_seconds = 0.0
        self.writer = None
        self.painted = None  # what a pre-training makes of some images, once it has ended
        self.tested = None  # the `Outputs` of the test images, once they have been read

    @property
    def out_of_patience(self):
        """Whether the training ends because no epoch has been better for as long as the recipe waits; anew in each extension."""
        config = self.recipe.train
        if not (config.patience and self.rows):
            return False
        epoch = self.rows[-1]["epoch"]
        return epoch - max(best_row(self.rows, config.monitor)["epoch"], config.schedule_start(epoch)) >= config.patience

    @property
    def best(self):
        """The row of the best epoch so far, of those whose weights are still there."""
        return best_row([row for row in self.rows if row["epoch"] not in self.lost], self.recipe.train.monitor)

    @property
    def optimizer(self):
        return own_optimizer(self.training_model.optimizer)

    @property
    def seconds(self):
        """Seconds since the first epoch began, without those between the processes of a resumed run."""
        return self.earlier_seconds + (time.perf_counter() - self.started if self.started else 0.0)

    @property
    def process_seconds(self):
        """Seconds of this process so far, plus those of the earlier processes of a resumed run."""
        return self.earlier_process_seconds + process_seconds()

    def arrays(self):
        """All variables that training depends on, by a name that is the same in every process."""
        variables = {"model": self.training_model.variables, "optimizer": self.training_model.optimizer.variables}
        return {
            f"{kind}/{index:04d}/{variable.name}": variable
            for kind, members in variables.items()
            for index, variable in enumerate(members)
        }

    def restore(self, state):
        """Goes on from a state of `RunFolder.read_state`, or starts again without one; returns the number of finished epochs.

        Where the state is one within an epoch, `first_step` is its next step.
        """
        where = f"run: {str(self.run.path)!r}"
        if state is None:
            if len(rows := self.run.metrics) > 1:
                raise ValueError(f"{where} has {len(rows)} epochs but no training state in last/; start again with --overwrite")
            self.run.write_metrics([])
            return 0
        arrays, values = state
        for name, kind in STATED.items():
            check_type(f"{where}: {name} in its training state", values.get(name), kind)
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
        if values.get("teacher", "") != self.taught.fingerprint:
            raise ValueError(f"{where} was made with another teacher than {self.recipe.distill.teacher!r} is now")
        self.rows = values["rows"]
        self.run.write_metrics(self.rows)
        with self.distribution.whole(self.training_model):
            for name, variable in variables.items():
                variable.assign(arrays[name])
            if self.distribution.is_first:
                self.settle_best(between_epochs=not values["step"])
        self.first_step, self.accumulated = values["step"], values["metrics"]
        self.earlier_seconds, self.earlier_epoch_seconds = values["seconds"], values["epoch_seconds"]
        self.earlier_process_seconds = values["process_seconds"]
        self.notes = values.get("notes", [])
        self.callbacks = [*values["callbacks"], *(name for name in self.callbacks if name not in values["callbacks"])]
        return values["epoch"]

    def settle_best(self, between_epochs=True):
        """Makes best.keras the model of the best epoch; if that is damaged, of the best one whose weights are still there.

        Between two epochs the training model has the weights of the last row.
        """
        while len(self.lost) < len(self.rows):
            best = self.best
            try:
                return self.run.best.choose(best["epoch"])
            except Damaged as error:
                damage = f"run: {str(self.run.model_path)!r}, of epoch {best['epoch']}, is damaged ({error})"
            if between_epochs and best is self.rows[-1]:
                self.copy_weights()
                self.run.write_model(best["epoch"], self.evaluated)
                return warnings.warn(f"{damage}; it is written anew from the training state", stacklevel=4)
            self.lost.append(best["epoch"])
            left = f"epoch {self.best['epoch']}" if len(self.lost) < len(self.rows) else "the next epoch"
            warnings.warn(f"{damage}; the model of {left} takes its place", stacklevel=4)

    def start(self):
        self.started = time.perf_counter()
        self.saved = self.steps.before(len(self.rows)) + self.first_step, self.started
        if not self.distribution.is_first:
            return
        # Not tensorboardX's SummaryWriter: a full disk ends its thread unseen, and it then waits for that thread.
        from tensorboardX.record_writer import RecordWriter

        # Written again when a run is resumed: a kill may have lost the last events.
        shutil.rmtree(self.run.tensorboard, ignore_errors=True)
        self.run.tensorboard.mkdir()
        self.writer = RecordWriter(str(self.run.tensorboard / f"events.out.tfevents.{int(time.time())}.{platform.node()}"))
        self.write_event(file_version="brain.Event:2")
        for row in self.rows:
            self.write_events(row)

    def go_on_with(self, stage, first_epoch, first_step, fit_end):
        """Switches to a stage's recipe before a step, to its model if that differs, which inherits weights and optimizer state.

        Args:
            stage: The recipe of the stage.
            first_epoch: The epoch from 0 on.
            first_step: The step in it.
            fit_end: The epoch after the last one of this `fit`.

        Returns:
            Whether the model is another one.
        """
        if self.latest:  # `fit` ends with the averaged weights in the place of the trained ones
            with self.distribution.whole(self.training_model):
                for name, variable in self.arrays().items():
                    variable.assign(self.latest[name])
            self.latest = None
        before, self.stage, self.fit_end = self.stage, stage, fit_end
        changed = stage.model != before.model or stage.finetune != before.finetune
        if changed:
            weights = class_weights(stage.train.class_weights, self.data)
            total_steps = self.steps[first_epoch] * stage.train.epochs
            model, _ = compiled_model(stage, total_steps, weights=weights, distribution=self.distribution)
            with self.distribution.whole(self.training_model), self.distribution.whole(model):
                carry_over(self.training_model, model)
            self.training_model = model
        steps, began = self.steps[first_epoch], self.recipe.train.schedule_start(first_epoch)
        if not first_step and first_epoch == began:
            self.optimizer.schedule.begin(stage.train, steps * stage.train.epochs, self.optimizer_steps)
        elif not first_step and self.steps.changes(first_epoch):
            # As if the epochs before had been as long as those that follow: the rate goes on from where it is.
            start = self.optimizer_steps - steps * (first_epoch - began)
            self.optimizer.schedule.stretch(stage.train, steps * stage.train.epochs, start)
        return changed

    def use_steps(self, steps):
        """Trains the epochs that follow with other `Steps`, which the run's recipe then states."""
        self.steps = steps
        self.recipe = self.recipe.with_train(steps_per_epoch=list(steps.each))
        self.run.replace_recipe(self.recipe)

    @property
    def optimizer_steps(self):
        """Steps of the optimizer so far."""
        return int(ops.convert_to_numpy(iterations(self.training_model.optimizer)))

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.epoch_started = time.perf_counter() - self.earlier_epoch_seconds
        if self.accumulated:
            restore_metrics(self.training_model, self.accumulated, self.distribution.counters)
        self.earlier_epoch_seconds, self.accumulated = 0.0, []

    def on_train_batch_begin(self, batch, logs=None):
        if keras.backend.backend() == "torch":
            # Keras's dropout draws from PyTorch's global generator, which is not saved with the model and which data loaders
            # share. Seeded here, dropout depends on seed and step alone, as the batches do.
            import torch

            rank = [self.distribution.rank] if self.distribution.rank else []  # each process has dropout of its own
            torch.manual_seed(int(np.random.SeedSequence((self.recipe.seed, self.epoch, batch, *rank)).generate_state(1)[0]))

    def on_epoch_end(self, epoch, logs=None):
        config = self.recipe.train
        logs.update(self.distribution.means(logs))
        arrays = {name: self.distribution.array(variable) for name, variable in self.arrays().items()}
        # The loss precedes the last update: only the weights show its effect.
        if math.isnan(logs["loss"]) or not all(np.isfinite(array).all() for array in arrays.values()):
            raise Diverged(
                f"loss: {logs['loss']} in epoch {epoch + 1}, weights no longer finite; {str(self.run.path)!r} keeps the "
                f"last finite state. Lower train.learning_rate ({config.learning_rate:g}) or set train.clip_norm"
            )
        seconds = time.perf_counter() - self.epoch_started
        logs["images_per_second"] = self.steps[epoch] * config.batch_size / seconds
        self.copy_weights()
        last = epoch + 1 == self.last_epoch or epoch + 1 in (part.after for part in config.extensions)
        if self.data.validation is not None and (last or (epoch + 1) % config.validate_every == 0):
            found = self.validated()
            logs.update({f"val_{name}": value for name, value in found.items()})
        row = {
            **logs,
            "epoch": epoch + 1,
            "seconds": self.seconds,
            "epoch_seconds": seconds,
            "learning_rate": float(ops.convert_to_numpy(self.optimizer.learning_rate)),
            "memory_mb": psutil.Process().memory_info().rss / 2**20,
        }
        row = {name: row[name] for name in columns_of([row]) if name in row}
        self.rows.append(row)
        if self.best is row:
            self.run.write_model(epoch + 1, self.evaluated)
        self.run.write_metrics(self.rows)
        self.write_events(row)
        if self.out_of_patience:
            self.training_model.stop_training = True

    def since_saved(self, epoch, step):
        """Steps and seconds since the last state was saved, at a step of an epoch."""
        steps, when = self.saved
        return self.steps.before(epoch) + step - steps, time.perf_counter() - when

    def save(self, epoch, step=0):
        """Copies the training state after a number of epochs and of steps of the next one; another thread begins to write it."""
        metrics = self.model.metrics_variables if step else []  # under JAX, `self.model` fetches all of its state
        arrays = {name: self.distribution.array(variable) for name, variable in self.arrays().items()}
        if not step:
            keep = self.optimizer.use_ema and epoch == self.fit_end < self.last_epoch
            self.latest = dict(arrays) if keep else None
        steps = self.steps.before(epoch) + step
        values = {
            "epoch": epoch,
            "step": step,
            "rows": list(self.rows),
            "metrics": [self.distribution.total(variable).tolist() for variable in metrics],
            "seconds": self.seconds,
            "epoch_seconds": time.perf_counter() - self.epoch_started if step else 0.0,
            "process_seconds": self.process_seconds,
            "fingerprint": self.data.fingerprint,
            "teacher": self.taught.fingerprint,
            "backend": keras.backend.backend(),
            "notes": self.notes,
            "callbacks": self.callbacks,
        }
        self.states.start(steps, arrays, values)
        self.saved = steps, time.perf_counter()

    def write_state(self, steps, arrays, values):
        """Writes a state. One within an epoch that is not finite ends the epoch instead, and so the training."""
        if not values["step"] or all(np.isfinite(array).all() for array in arrays.values()):
            self.run.write_state(steps, arrays, values)
        elif self.distribution.processes == 1:  # several would stop at different steps
            self.training_model.stop_training = True

    def write_events(self, row):
        if self.writer is None:
            return
        from tensorboardX.summary import scalar

        for name, value in row.items():
            self.write_event(step=row["epoch"], summary=scalar(name, value))
        self.writer.flush()

    def write_event(self, **content):
        from tensorboardX.proto.event_pb2 import Event

        self.writer.write(Event(wall_time=time.time(), **content).SerializeToString())

    def close(self):
        try:
            self.states.close()
        finally:
            if self.writer is not None:
                self.writer.close()

    def copy_weights(self):
        """Gives the evaluated model the averaged weights, or the current ones without an average; adapters are merged."""
        theirs, ours = self.training_model.config, self.evaluated.config
        with self.distribution.whole(self.training_model), averaged(self.training_model):
            weights = merged_weights(self.training_model)
            for target in self.scorer.weights:
                target.assign(resample_weight(target.path, weights[target.path], theirs, ours))

    def validated(self):
        """Metrics of the evaluated model on the validation images by name."""
        if not self.recipe.pretrain:
            return self.scores(self.data.validation, self.logits(self.validation))[0]
        rows = np.zeros((0, 2), np.float32)  # this process's loss and images
        with self.distribution.alone():
            if self.validation is not None:
                count = len(self.own_rows(self.data.validation))
                rows = np.array([[self.scorer.evaluate(self.validation, verbose=0), count]], np.float32)
        rows = gather_rows(self.distribution, rows)
        return {"loss": float(np.average(rows[:, 0], weights=rows[:, 1]))}

    def logits(self, batches):
        """Logits of the evaluated model for a split, in the order of its images; `batches` are this process's own."""
        logits = np.zeros((0, self.recipe.model.num_classes), np.float32)
        with self.distribution.alone():
            if batches is not None:
                logits = self.scorer.predict(batches, verbose=0)
        return gather_rows(self.distribution, logits)

    def scores(self, split, logits):
        """Metrics of logits on a split by name, and of each class by its name."""
        targets = targets_of(split.labels, self.recipe.model.num_classes)
        found, classes = metrics_of(logits, split.labels, self.data.class_names)
        monitor = self.recipe.train.monitor
        if monitor.startswith(RECALL):
            found[monitor] = classes[monitor.removeprefix(RECALL)]["recall"]
        found = {"loss": float(ops.convert_to_numpy(self.loss(targets, logits))), **found}
        return {name: value for name, value in found.items() if value is not None}, classes

    def own_batches(self, split):
        """The part of a split's images that this process validates, for `logits`; None if there is none."""
        rows = self.own_rows(split)
        whole = self.distribution.processes == 1
        return batches_of(split if whole else split.take(rows), self.recipe, rows) if len(rows) else None

    def own_rows(self, split):
        return np.array_split(np.arange(len(split)), self.distribution.processes)[self.distribution.rank]

    def finish(self):
        """With the best model, fits the temperature to the validation images, reads the test images once and writes the summary."""
        recipe, data, rows = self.recipe, self.data, self.rows
        with self.distribution.whole(self.training_model):
            if self.distribution.is_first:
                self.settle_best()
        self.distribution.meet()  # the first process has written the best model
        if recipe.pretrain:
            self.copy_weights()  # of the last epoch: the decoder of the best one has not been kept
            self.painted = self.paint()
        self.evaluated.load_weights(self.run.model_path)
        test, classes, best = {}, {}, self.best
        temperature, reason = self.temperature()
        if data.test is not None and not recipe.pretrain:
            logits = self.logits(self.own_batches(data.test))
            test, classes = self.scores(data.test, logits)
            errors = [calibration_of(logits, data.test.labels, by).error for by in (temperature or 1.0, 1.0)]
            test |= dict(zip(("calibration_error", "calibration_error_before"), errors, strict=True))
            known = data.class_names, data.name, data.fingerprint
            self.tested = Outputs(self.evaluated, data.test, data.test.labels, logits, *known, temperature or 1.0)
        origin = {"checkpoint": recipe.finetune.checkpoint, "checkpoint_notes": self.notes} if recipe.finetune.checkpoint else {}
        self.run.write_summary(
            {
                **origin,
                **self.taught.summary,
                "data": data.name,
                "data_notes": data.notes,
                "class_names": data.class_names,
                "multi_label": data.multi_label,
                "fingerprint": data.fingerprint,
                "images": {name: len(part) for name, part in data.parts.items()},
                **{f"test_{name}": value for name, value in test.items()},
                **({"test_classes": classes} if classes else {}),
                "temperature": temperature,
                **({"temperature_note": reason} if reason else {}),
                "best_epoch": best["epoch"],
                "monitor": recipe.train.monitor,
                f"val_{recipe.train.monitor}": None,
                **{name: value for name, value in best.items() if name.startswith("val_")},
                "epochs": len(rows),
                **({"callbacks": self.callbacks} if self.callbacks else {}),
                "parameters": self.evaluated.count_params(),
                "trained_parameters": trained_parameters(self.training_model),
                "flops": recipe.model.flops,
                "seconds": rows[-1]["seconds"],
                "process_seconds": self.process_seconds,
                "images_per_second": float(np.median([row["images_per_second"] for row in rows])),
                "peak_memory_mb": peak_memory_mb(),
                "seed": recipe.seed,
                "distribute": recipe.train.distribute,
                "devices": self.distribution.devices,
                "processes": self.distribution.processes,
                "precision": recipe.train.precision,
                **machine(),
                "command": shlex.join([Path(sys.executable).name, *sys.argv]),
                "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            }
        )
        self.distribution.meet()  # and now the summary

    def temperature(self):
        """The temperature that suits the validation images best; None, and why, where there is none."""
        if self.recipe.pretrain:
            return None, "no classes"
        if self.data.validation is None:
            return None, "no validation images"
        found = fit_temperature(self.logits(self.validation), self.data.validation.labels)
        return found, "" if found else "predictions of the validation images are no better than chance"

    def paint(self):
        """Some images, without their hidden patches, and as the evaluated model paints them: three arrays uint8 (B, H, W, C)."""
        recipe, split = self.recipe, self.data.validation or self.data.train
        split = split.take(np.unique(np.linspace(0, len(split) - 1, min(PAINTED, len(split))).astype(int)))
        originals = split.images(np.arange(len(split)))
        images = normalize(originals, recipe.mean, recipe.std)
        orders = recipe.masking.orders(len(split), split.shape[:2], FIXED_MASK, recipe.seed, 0)
        given, _ = recipe.masking.apply(images, orders)
        with self.distribution.alone():
            painted = recipe.masking.paint(images, orders, self.scorer.predict(given, verbose=0))
        mean, std = np.float32(recipe.mean), np.float32(recipe.std)
        seen, painted = (np.clip(255 * (each * std + mean), 0, 255).astype(np.uint8) for each in (given[0], painted))
        return originals, seen, painted

    def draw_reconstructions(self):
        """Draws what `finish` has painted, after a pre-training."""
        if self.painted is None:
            return
        from keras_vit.runs.reconstructions import reconstructions

        scaled = "; painted patches get the originals' mean and contrast" if self.recipe.pretrain.normalize else ""
        note = f"{'Validation' if self.data.validation else 'Training'} images, model of the last epoch{scaled}"
        reconstructions(*self.painted, self.run.plots / "reconstructions.png", note=note)

    def write_report(self):
        """Writes the run's report, of the test images as the summary has read them; whatever goes wrong, the run has finished."""
        from keras_vit.report.run import write_run_report

        try:
            with self.distribution.alone():
                write_run_report(self.run, self.tested)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            warnings.warn(f"report: not written ({reason}); the run has finished", stacklevel=3)


def batches_of(split, recipe, places=None):
    """The images of a split in order, for `model.predict`, any number of times; `places` as of `evaluation_batches`."""
    return evaluation_batches(
        split,
        num_classes=recipe.model.num_classes,
        batch_size=even_batch_size(len(split), min(500, 4 * recipe.train.batch_size)),
        mean=recipe.mean,
        std=recipe.std,
        masking=recipe.masking,
        seed=recipe.seed,
        places=places,
    )


def even_batch_size(count, largest):
    """The largest batch size up to `largest` that divides `count` and exceeds a fifth of `largest`; else the smaller of both.

    A smaller last batch would need another compilation.
    """
    return next((size for size in range(largest, largest // 5, -1) if count % size == 0), min(largest, count))


def best_row(rows: list[dict], monitor: str = "accuracy") -> dict:
    """The epoch with the best validation metric; of equal ones the lowest loss; the last epoch if none was validated."""
    name, sign = f"val_{monitor}", -1 if monitor == "loss" else 1
    validated = [row for row in rows if name in row]
    return max(validated, key=lambda row: (sign * row[name], -row["val_loss"]), default=rows[-1])
