"""A recipe goes in, a run folder comes out: the only place that calls `fit`."""

import contextlib
import dataclasses
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import keras

from keras_vit.checks import check_choice, check_int, check_number
from keras_vit.data.batches import training_batch, training_batches
from keras_vit.data.dataset import DataSet
from keras_vit.data.labels import class_counts
from keras_vit.data.stream import own_errors
from keras_vit.machine import machine, tune, use_deterministic_operations
from keras_vit.recipes.distill import LOGITS
from keras_vit.recipes.parse import flatten
from keras_vit.recipes.schema import RECALL, Recipe
from keras_vit.runs.folder import RunFolder, WrittenElsewhere, held
from keras_vit.training.callbacks import Callbacks, Interrupts, Progress, StopOnNaN
from keras_vit.training.distill.teach import Taught, teach
from keras_vit.training.distribution.base import check_agreement, gather_texts, on_first
from keras_vit.training.distribution.join import join
from keras_vit.training.finetune import describe_trained
from keras_vit.training.losses import class_weights
from keras_vit.training.models import compiled_model
from keras_vit.training.optimizer import average_decay
from keras_vit.training.saving import SaveEpochs, SaveWithinEpochs
from keras_vit.training.session import Session
from keras_vit.training.speed import batch_settings, resolve_precision, stream_settings, with_length, within_time
from keras_vit.training.starts import set_start
from keras_vit.training.steps import Steps, mixing_steps
from keras_vit.training.user_callbacks import UserCallbacks

# Settings that a run may go on with other values of.
FREE = ("data_dir", "distill.folder", "model.num_classes", "train.distribute", "train.peer_timeout", "train.save_every")


def train(
    recipe: Recipe,
    run_dir: str | os.PathLike,
    *,
    data: DataSet | None = None,
    resume: bool | str = False,
    extend: int = 0,
    extend_rate: float | None = None,
    overwrite: bool = False,
    until: int | None = None,
    seconds: float | None = None,
    pictures: bool = True,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    started: float | None = None,
    verbose: int | str = "auto",
) -> RunFolder:
    """Trains the model of a recipe and leaves a run folder; goes on with an interrupted run.

    With `train.precision: auto` some steps are timed first, and the run folder's recipe states the faster precision.

    Args:
        recipe: The `Recipe`; to resume a run, the recipe that it was started with.
        run_dir: The run folder: new or empty, unless `resume` or `overwrite`.
        data: The recipe's `DataSet` if it has been loaded already.
        resume: Goes on with the run in `run_dir` after its last saved step, to the same final numbers as if it had never stopped
            (same backend and machine). Extensions of the run need not be in `recipe`, and `train.save_every` may be another.
            "auto": if `run_dir` holds a run; otherwise starts one. So a queue can repeat the same program after a warning.
        extend: With `resume`: epochs to add to the run, whether it has ended or not. The run folder's recipe then has a
            `keras_vit.recipes.parts.Extension`; best model, metrics, moments and averages go on.
        extend_rate: Peak learning rate of these epochs. None = half of `train.learning_rate` for a cosine, which then falls to
            zero again; with `schedule: constant` the same rate.
        overwrite: Deletes the run in `run_dir` first.
        until: Stops after this epoch, in the middle of the recipe's schedule; `resume` can go on later. Reads no test images.
            None = to the end.
        seconds: About how long to train on this machine, without compilation and validation: some steps are measured first,
            and the recipe's epochs get as many steps as fit (`steps_per_epoch` in the run folder's recipe). Ignored by a run
            that is resumed.
        pictures: Whether to draw one training batch and the curves, and to write the report (report.html).
        callbacks: More callbacks for `fit`. Their logs have the validation values. A learning rate that one of them sets replaces
            the schedule, also after `resume`. Not `BackupAndRestore` and `SwapEMAWeights`, which a run folder and `train.ema`
            replace.
        started: When `train.time` began, on the clock of `time.perf_counter`; None = with this call. A command counts from its
            process's start.
        verbose: 0 silent, 1 progress bars, 2 a line an epoch, "auto" 1 on a terminal and else 2.

    Returns:
        The `RunFolder`.

    Raises:
        ValueError: For settings, data, callbacks or a checkpoint that cannot be used, and a folder that holds something
            else, or that another process trains in; if files that the run would go on from are damaged.
        Diverged: If the loss became NaN or infinite. The run folder keeps the last finite state.
        KeyboardInterrupt, SystemExit: On Ctrl-C; on SIGTERM or SIGUSR1, with code 143, in the main thread of a program without
            handlers of its own for them. The state after the last step has been saved.
    """
    from keras_vit.runs.plots import batch_picture, curves

    if resume == "auto":
        if extend or overwrite:
            raise ValueError(f"resume: received 'auto'; allowed: true or false with {'extend' if extend else 'overwrite'}")
        resume = (Path(run_dir) / "recipe.yaml").is_file()
    check_choice("resume", resume, (True, False, "auto"))
    check_extension(extend, extend_rate, resume)
    started = time.perf_counter() if started is None else started
    given = UserCallbacks(callbacks)
    tune()
    if recipe.train.deterministic:
        use_deterministic_operations()
    distribution = join(recipe.train.distribute, recipe.train.peer_timeout)
    data = load(recipe) if data is None else data
    recipe = recipe.for_data(data)
    size, images = recipe.train.batch_size, len(data.train)
    if size > images:
        raise ValueError(f"batch_size: received {size}; allowed: 1 to {images}, the training images of {data.name}")
    check_distributed(recipe, seconds, distribution)
    check_steps(recipe.train)
    if verbose == "auto":
        verbose = 1 if sys.stdout.isatty() else 2
    if not distribution.is_first:
        verbose, pictures = 0, False
    with contextlib.ExitStack() as stack:
        stack.enter_context(distribution.watch())
        interrupts = stack.enter_context(Interrupts())
        lock = hold(stack, distribution, run_dir, resume, overwrite)
        stack.enter_context(own_errors())
        # Settings or checkpoint may not fit: everything is tried before the folder is made, what takes no time first.
        if recipe.train.patience and data.validation is None:
            raise ValueError(f"patience: received {recipe.train.patience}; allowed: 0 without validation images")
        check_monitor(recipe.train.monitor, data)
        if resume:
            recipe, prepared, pace = resumed(recipe, run_dir, seconds, extend, extend_rate), None, None
            ended = RunFolder(run_dir).is_finished and not extend
            taught = Taught() if ended else teach(recipe, data, run_dir, distribution, say(verbose), kept=True)
        else:
            recipe, prepared, taught, pace = prepare(recipe, data, run_dir, seconds, started, verbose, distribution)
        steps, total_epochs = Steps.of(recipe.train, images), recipe.train.total_epochs
        total_steps = steps.before(total_epochs)
        if recipe.train.accumulate > total_steps:
            raise ValueError(f"accumulate: received {recipe.train.accumulate}; allowed: 1 to {total_steps}, the steps in all")
        if verbose and (said := average_note(recipe.train, total_steps)):
            print(said, flush=True)
        stages = recipe.stages()
        first_batches = [first_batch(data, recipe, stage, first, steps) for first, _, stage in stages]
        check_agreement(distribution, {**identity(recipe, data), "fingerprint of the teacher": taught.fingerprint})
        run = open_run(run_dir, recipe, resume, overwrite, distribution)
        run.lock = lock
        stack.callback(setattr, run, "lock", None)  # whoever has the run afterwards only reads
        if run.is_finished and not extend:
            return run
        on_first(distribution, lambda: taught.save(run.path))

        state = run.read_state() if resume else None
        done = max(state[1]["epoch"] - (not state[1]["step"]), 0) if state else 0
        stage = next(stage for first, last, stage in stages if first <= done < last)
        weights = class_weights(recipe.train.class_weights, data)
        names = None if state else data.class_names
        scheduled = steps[done] * recipe.train.epochs
        model, notes = prepared or compiled_model(stage, scheduled, names, weights, distribution)
        last_epoch = total_epochs if until is None else min(until, total_epochs)
        session = Session(run, recipe, data, model, stage, steps, last_epoch, notes, given.names, distribution, taught)
        first_epoch = session.restore(state) if resume else 0
        begins = not (first_epoch or session.first_step)
        if begins:
            with distribution.whole(model):
                set_start(model, stage, data)
        if extend:
            run.extend(recipe)
            if verbose:
                added = recipe.train.extensions[-1]
                rates = f"learning rate from {added.learning_rate:g}{' to 0' if recipe.train.schedule == 'cosine' else ' on'}"
                print(f"extension: epochs {added.after + 1} to {added.after + added.epochs}, {rates}", flush=True)
        if recipe.finetune.checkpoint:
            if begins:
                session.save(0)  # from here on the run does not need the checkpoint
            if verbose:
                print(*session.notes, describe_trained(model), sep="\n", flush=True)
        if pictures and begins:
            batch_picture(*first_batches[0], data.class_names, run.plots / "batch.png")

        if first_epoch < last_epoch and not session.out_of_patience:
            fit_stages(session, first_epoch, interrupts, given, verbose, pace)
        if session.out_of_patience and verbose:
            print(
                f"patience: no better epoch for {recipe.train.patience}, training ends after epoch {len(session.rows)}", flush=True
            )
        if last_epoch == total_epochs or session.out_of_patience:
            session.finish()
            if pictures:
                session.draw_reconstructions()
                curves({run.path.resolve().name: run.metrics}, run.plots / "curves.png")
                session.write_report()
    return run


def load(recipe):
    """The data of a recipe, with a warning if it is not the CIFAR-10 that was asked for."""
    data = recipe.load_data()
    if data.fallback:
        warnings.warn(f"training on {data.name}, not on CIFAR-10: {data.fallback}", stacklevel=3)
    return data


def hold(stack, distribution, run_dir, resume, overwrite):
    """The first process's lock of the run folder, until the stack ends; the others have None."""
    locks = []
    lock = held(run_dir, resume=resume, overwrite=overwrite)
    on_first(distribution, lambda: locks.append(stack.enter_context(lock)))
    return locks[0] if locks else None


def check_distributed(recipe, seconds, distribution):
    """Raises a ValueError for what cannot be divided among the devices."""
    where, backend = f"with distribute={distribution.kind}", keras.backend.backend()
    size, heads = recipe.train.batch_size, recipe.model.num_heads
    if size % distribution.replicas:
        raise ValueError(f"batch_size: received {size}; allowed: multiples of {distribution.replicas}, the devices that share it")
    if distribution.kind == "model" and backend == "jax" and heads % distribution.devices:
        raise ValueError(f"num_heads: received {heads}; allowed: multiples of {distribution.devices}, the devices, {where}")
    if distribution.kind == "none":
        return
    if seconds is not None:
        raise ValueError(f"seconds: received {seconds}; allowed: none {where}")
    if recipe.train.measured_seconds is not None:
        raise ValueError(f"time: received {recipe.train.time!r}; allowed: null {where}; set train.epochs instead")
    if recipe.train.accumulate > 1 and backend == "tensorflow":
        raise ValueError(f"accumulate: received {recipe.train.accumulate}; allowed: 1 {where} under TensorFlow")
    if recipe.train.jit == "on" and backend == "torch":
        raise ValueError(f"jit: received on; allowed: auto, off {where} under PyTorch")


def identity(recipe, data):
    """What must be the same in all processes of a training."""
    versions = {f"version of {name}": version for name, version in machine()["versions"].items() if name != "python"}
    return {**flatten(recipe.to_dict(), ""), "fingerprint of the data": data.fingerprint, **versions}


def open_run(run_dir, recipe, resume, overwrite, distribution):
    """The run folder, which the first process makes and writes."""
    if distribution.processes == 1:
        return RunFolder(run_dir) if resume else RunFolder.create(run_dir, recipe, overwrite)
    if not resume:
        on_first(distribution, lambda: RunFolder.create(run_dir, recipe, overwrite))
    seen = gather_texts(distribution, str(Path(run_dir, "recipe.yaml").is_file()))
    if "False" in seen:
        where = f"{str(run_dir)!r}, which process {seen.index('False')} does not see"
        raise ValueError(f"run: received {where}; allowed: a folder that all processes share")
    return RunFolder(run_dir) if distribution.is_first else WrittenElsewhere(run_dir)


def prepare(recipe, data, run_dir, seconds, started, verbose, distribution):
    """The recipe with the precision and length for this machine, the first stage's model if it has been built, the teacher, and
    the `Pace` of a training that has a time.
    """
    if seconds is not None:
        check_number("seconds", seconds, above=0)
    check_apart(run_dir, recipe)
    with distribution.alone():
        resolved = resolve_precision(recipe, data)
    recipe, prepared, pace = resolved.recipe, resolved.prepared, None
    if distribution.kind != "none":
        recipe, prepared = recipe.with_train(precision=gather_texts(distribution, recipe.train.precision)[0]), None
    if resolved.reason and verbose:
        print(resolved.reason, flush=True)
    whole = recipe.train.measured_seconds if seconds is None else seconds
    taught = teach(recipe, data, run_dir, distribution, say(verbose), whole)
    if taught.epochs:
        recipe = dataclasses.replace(recipe, distill=dataclasses.replace(recipe.distill, epochs=taught.epochs))
    if recipe.finetune.checkpoint and prepared is None:
        weights = class_weights(recipe.train.class_weights, data)
        prepared = compiled_model(recipe.stages()[0][2], 1, data.class_names, weights, distribution)
    if seconds is not None:
        left = max(seconds - taught.seconds, 1.0)
        recipe, prepared = with_length(recipe, data, left, prepared, taught.teaching)
    elif recipe.train.measured_seconds is not None:
        trained = taught.seconds if taught.epochs else 0.0
        recipe, pace, reason, prepared = within_time(recipe, data, started, prepared, taught.teaching, trained)
        if verbose:
            print(reason, flush=True)
    return recipe, prepared, taught, pace


def say(verbose):
    """A function that prints a line, if anything is printed."""
    return (lambda line: print(line, flush=True)) if verbose else (lambda line: None)


def resumed(recipe, run_dir, seconds, extend, extend_rate):
    """The recipe with what was measured for the run that goes on, which must be the recipe's run, and with its extensions."""
    run = RunFolder(run_dir)
    theirs, changes = run.recipe.train, {}
    if (seconds is not None or recipe.train.time) and recipe.train.steps_per_epoch is None:
        changes["steps_per_epoch"] = theirs.steps_per_epoch
        if recipe.distill.teacher == run.recipe.distill.teacher:
            recipe = dataclasses.replace(recipe, distill=dataclasses.replace(recipe.distill, epochs=run.recipe.distill.epochs))
    if recipe.train.precision == "auto":
        changes["precision"] = theirs.precision
    if not recipe.train.extensions:
        changes["extensions"] = theirs.extensions
    recipe = recipe.with_train(**changes)
    check_same_recipe(run, recipe)
    run.reopen()
    if extend:
        if not run.is_finished and theirs.extensions:
            raise ValueError(f"extend: received {extend}; allowed: none until the extension that {str(run.path)!r} is in has ended")
        if run.is_finished and not run.states.paths():
            raise ValueError(f"extend: received {extend}; allowed: 0, as {str(run.path)!r} has no training state in last/")
        after = run.summary["epochs"] if run.is_finished else theirs.total_epochs
        steps = theirs.steps_per_epoch
        if isinstance(steps, list):  # an added epoch has as many as the others on the average
            steps = [*(Steps(tuple(steps))[epoch] for epoch in range(after)), round(Steps(tuple(steps)).before(after) / after)]
        recipe = dataclasses.replace(recipe, train=recipe.train.extended(after, extend, extend_rate))
        recipe = recipe.with_train(steps_per_epoch=steps)
    return recipe


def check_steps(config):
    """Raises a ValueError where steps are stated of more epochs than there are."""
    steps = config.steps_per_epoch
    if isinstance(steps, list) and len(steps) > config.total_epochs:
        raise ValueError(f"steps_per_epoch: received {len(steps)} numbers; allowed: at most {config.total_epochs}, the epochs")


def check_extension(extend, extend_rate, resume):
    check_int("extend", extend, at_least=0)
    if extend and not resume:
        raise ValueError(f"extend: received {extend}; allowed: 0 unless a run is resumed")
    if extend_rate is not None and not extend:
        raise ValueError(f"extend_rate: received {extend_rate}; allowed: none without extend")


def check_monitor(monitor, data):
    """Raises a ValueError for the recall of a class without validation images."""
    if not monitor.startswith(RECALL) or data.validation is None:
        return
    found = class_counts(data.validation.labels, len(data.class_names))
    if not found[data.class_names.index(monitor.removeprefix(RECALL))]:
        known = ", ".join(f"{RECALL}{name}" for name, count in zip(data.class_names, found, strict=True) if count)
        raise ValueError(f"monitor: received {monitor!r}, a class without validation images; allowed: {known}")


def average_note(config, total_steps):
    """A line for the user where the training is too short for the decay of the averaged weights; empty where it is not."""
    updates = total_steps // config.accumulate
    reached = average_decay(updates)
    if reached >= config.ema:
        return ""
    return f"ema: received {config.ema:g}, too long for {updates:,} updates: the decay grows from 0.1 to {reached:.4f} only"


def first_batch(data, recipe, stage, first, steps):
    """The images and targets of a stage's first step, not normalised."""
    settings = batch_settings(stage, data, mixing_steps(recipe, stage, steps, first, first))
    return training_batch(data.train, stage.augment, steps.before(first), **settings)


def fit_stages(session, first_epoch, interrupts, given, verbose, pace):
    """Trains from an epoch, or from the session's first step of it, to the session's last one, stage by stage."""
    recipe, data, distribution = session.recipe, session.data, session.distribution
    progress = [Progress(session, verbose)] if verbose else []
    # In one process of several the loss is that of its own images: the others would go on.
    watch = [StopOnNaN()] if distribution.processes == 1 else []
    try:
        session.start()
        for first, step, last, stage_first, stage in parts(session, first_epoch, pace, verbose):
            steps = session.steps
            if session.go_on_with(stage, first, step, last) and verbose and stage.finetune.checkpoint:
                print(describe_trained(session.training_model), flush=True)
            settings = stream_settings(stage, data, mixing_steps(recipe, stage, steps, stage_first, first))
            model = session.training_model
            saving = SaveWithinEpochs(session, interrupts, verbose), SaveEpochs(session, interrupts)
            callbacks = [session, saving[0], *watch, *progress, *given.callbacks, saving[1]]
            with distribution.training():
                batches = training_batches(
                    data.train,
                    stage.augment,
                    start_step=steps.before(first) + step,
                    image_size=stage.model.image_size,
                    part=distribution.part,
                    teaching=session.taught.teaching,
                    **settings,
                )
                model.fit(
                    distribution.batches(batches),
                    epochs=last,
                    initial_epoch=first,
                    steps_per_epoch=steps[first] - step,
                    callbacks=Callbacks(callbacks, model, session.last_epoch, steps[first], step),
                    shuffle=False,
                    verbose=0,
                )
            if model.stop_training:  # a callback asked for it
                break
        given.end()
    finally:
        session.close()


def parts(session, first_epoch, pace, verbose):
    """(first epoch, its first step, epoch after the last one, first epoch of the stage, its recipe) of each `fit`.

    That is a stage, or less of it: the rest of an epoch, epochs of equally many steps, or those until the pace is looked at.
    """
    step = session.first_step
    for stage_first, stage_last, stage in session.recipe.stages():
        first, last = max(first_epoch, stage_first), min(session.last_epoch, stage_last)
        while first < last:
            if pace and first in pace.looks:
                keep_pace(session, pace, first, verbose)
            end = first + 1 if step else session.steps.same_until(first, last)
            if pace:
                end = min(end, pace.next_look(first))
            yield first, step, end, stage_first, stage
            first, step = end, 0


def keep_pace(session, pace, epoch, verbose):
    """Gives the epochs from one on as many steps as there is time for, and says so."""
    found = pace.steps(session.rows, session.steps, time.perf_counter())
    if found != session.steps[epoch]:
        if verbose:
            print(f"time: {found} steps an epoch from here on, {session.steps[epoch]} before", flush=True)
        session.use_steps(session.steps.replaced(epoch, found, pace.epochs))


def check_apart(run_dir, recipe):
    """Raises a ValueError if the run would overwrite the checkpoint that it starts from, or its teacher."""
    teacher = recipe.distill.teacher.removeprefix(LOGITS)
    for path, what in ((recipe.finetune.checkpoint, "checkpoint that the run would start from"), (teacher, "teacher of the run")):
        resolved = Path(path).expanduser().resolve()
        if path and resolved.exists() and Path(run_dir).resolve() in (resolved, *resolved.parents):
            raise ValueError(f"run: {str(run_dir)!r} holds the {what}; choose another folder")


def check_same_recipe(run, recipe):
    """Raises a ValueError that names the settings in which a recipe differs from that of a run."""
    theirs, ours = flatten(run.recipe.to_dict(), ""), flatten(recipe.to_dict(), "")
    changed = [name for name in ours if ours[name] != theirs[name] and name not in FREE]
    if changed:
        differences = ", ".join(f"{name} {theirs[name]} there and {ours[name]} here" for name in changed)
        raise ValueError(f"run: {str(run.path)!r} was made by another recipe: {differences}")
