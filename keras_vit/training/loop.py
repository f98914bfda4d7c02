"""A recipe goes in, a run folder comes out: the only place that calls `fit`."""

import dataclasses
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import keras

from keras_vit.checks import check_number
from keras_vit.data.dataset import DataSet, training_batch, training_batches
from keras_vit.machine import tune
from keras_vit.recipes.parse import flatten
from keras_vit.recipes.schema import Recipe, load_recipe_data
from keras_vit.runs.folder import RunFolder
from keras_vit.training.callbacks import Interrupts, Progress, StopOnNaN
from keras_vit.training.finetune import describe_trained
from keras_vit.training.models import compiled_model
from keras_vit.training.optimizer import set_length
from keras_vit.training.session import Session
from keras_vit.training.speed import stream_settings, training_rate


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
    from keras_vit.runs.plots import batch_picture, curves

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
                curves({run.path.resolve().name: run.metrics}, run.plots / "curves.png")
    return run


def check_apart(run_dir, checkpoint):
    """Raises a ValueError if the run would be written over the checkpoint that it starts from."""
    run, checkpoint = Path(run_dir).resolve(), Path(checkpoint).resolve()
    if run == checkpoint or run in checkpoint.parents:
        raise ValueError(f"run: {str(run_dir)!r} holds the checkpoint that the run would start from; choose another folder")


def check_same_recipe(run, recipe):
    """Raises a ValueError that names the settings in which a recipe differs from that of a run."""
    theirs, ours = flatten(run.recipe.to_dict(), ""), flatten(recipe.to_dict(), "")
    changed = [name for name in ours if ours[name] != theirs[name] and name not in ("data_dir", "model.num_classes")]
    if changed:
        differences = ", ".join(f"{name} {theirs[name]} there and {ours[name]} here" for name in changed)
        raise ValueError(f"run: {str(run.path)!r} was made by another recipe: {differences}")
