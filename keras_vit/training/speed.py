"""Measures how fast a recipe trains on this machine, before the run; the result decides its precision and length."""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_vit.data.batches import evaluation_batches, training_batches
from keras_vit.data.dataset import DataSet
from keras_vit.data.teaching import Teaching
from keras_vit.kernels.ops import linear
from keras_vit.machine import accelerator, has_bfloat16
from keras_vit.model.vit import build_vit
from keras_vit.recipes.distill import DistillConfig
from keras_vit.recipes.schema import Recipe
from keras_vit.training.callbacks import Clock
from keras_vit.training.losses import class_weights
from keras_vit.training.models import Prepared, compile_model, compiled_model, trained_model
from keras_vit.training.steps import Pace

CANDIDATES = ("float32", "bfloat16")  # of `train.precision: auto`
PRODUCT_ROWS, PRODUCT_TURNS, PRODUCT_GAIN = 2048, 30, 1.1  # of `product_gain`; below it models are not measured
MARGIN = 1.02  # bfloat16 must be faster by this factor: float32 has the better numbers
CLEAR = 1.25  # no further turns once one is faster by this factor
TURNS, TURN_SECONDS = 3, 0.4
TIMED_SECONDS = 1.5  # of a measurement of one model
# Of `train.time`: the share that measuring takes, the share that is kept for a machine that gets slower, images that measure the
# validation, seconds of the files and pictures at the end, and of the files after each epoch.
MEASURED, SPARE, EVALUATED, END_SECONDS, EPOCH_SECONDS = 0.01, 0.03, 2000, 10.0, 0.3
WHY = {"bfloat16": "computes in it", "float32": "has no bfloat16"}


@dataclasses.dataclass
class Resolved:
    """What `resolve_precision` has found.

    Attributes:
        recipe: The recipe with its precision.
        reason: A line for the user; empty if the recipe stated its precision.
        prepared: The model of the recipe's first stage, if it was measured.
    """

    recipe: Recipe
    reason: str = ""
    prepared: Prepared | None = None


def resolve_precision(recipe: Recipe, data: DataSet) -> Resolved:
    """Replaces `train.precision: auto` by the faster of float32 and bfloat16 on this machine.

    On a CPU with bfloat16 instructions, a product of matrices is timed first. Where bfloat16 gains less than a tenth there, it is
    float32. Otherwise both are trained for some steps in turns: their speed depends on the CPU, the backend and the model. If that
    contradicts the products, it is done once more, as other work may have disturbed it. The longest stage decides. An accelerator
    takes bfloat16 if it computes in it, without a measurement. What is measured has no teacher.

    Args:
        recipe: A `Recipe` with the data's number of classes.
        data: Its `DataSet`.
    """
    if recipe.train.precision != "auto":
        return Resolved(recipe)
    if accelerator() or not has_bfloat16():
        precision = "bfloat16" if has_bfloat16() else "float32"
        where = accelerator() or "this CPU"
        return Resolved(with_precision(recipe, precision), f"precision: {precision}; {where} {WHY[precision]}")
    if (gain := product_gain(recipe.model.width, recipe.model.mlp_dim)) < PRODUCT_GAIN:
        reason = f"precision: float32; this CPU multiplies matrices in bfloat16 at {gain:.2f} times its rate in float32"
        return Resolved(with_precision(recipe, "float32"), reason)
    plain = dataclasses.replace(recipe, distill=DistillConfig())
    recipes = [with_precision(plain, precision) for precision in CANDIDATES]
    stages = [max(each.stages(), key=lambda stage: stage[1] - stage[0])[2] for each in recipes]
    prepared = [compiled_model(stage, 1, data.class_names, class_weights(stage.train.class_weights, data)) for stage in stages]
    measured = functools.partial(training_rates, [model for model, _ in prepared], data, stages[0], TURNS, TURN_SECONDS)
    rates = measured()
    if gain > CLEAR and rates[1] <= MARGIN * rates[0]:  # the products say otherwise: other work may have disturbed the models
        rates = [max(turns) for turns in zip(rates, measured(), strict=True)]
    chosen = int(rates[1] > MARGIN * rates[0])
    speeds = " and ".join(f"{rate:,.0f} in {precision}" for precision, rate in zip(CANDIDATES, rates, strict=True))
    reason = f"precision: {CANDIDATES[chosen]}; measured images/s of training: {speeds}"
    chosen_recipe = with_precision(recipe, CANDIDATES[chosen])
    first = chosen_recipe.stages()[0][2]
    return Resolved(chosen_recipe, reason, prepared[chosen] if first == stages[chosen] else None)


def product_gain(width: int, mlp_dim: int) -> float:
    """The rate of the first linear layer of an MLP in bfloat16, as a multiple of that in float32; the best of some turns each."""
    rng, best = np.random.default_rng(0), dict.fromkeys(CANDIDATES, math.inf)
    factors = [rng.standard_normal(shape, "float32") for shape in ((PRODUCT_ROWS, width), (width, mlp_dim))]
    factors = {precision: [ops.cast(factor, precision) for factor in factors] for precision in CANDIDATES}
    for _ in range(PRODUCT_TURNS):
        for precision in CANDIDATES:
            before = time.perf_counter()
            ops.convert_to_numpy(linear(*factors[precision], None, training=True)[:1, :1])  # waits for the result
            best[precision] = min(best[precision], time.perf_counter() - before)
    return best["float32"] / best["bfloat16"]


def with_precision(recipe: Recipe, precision: str) -> Recipe:
    return recipe.with_train(precision=precision)


def with_length(
    recipe: Recipe, data: DataSet, seconds: float, prepared: Prepared | None, teaching: Teaching | None = None
) -> tuple[Recipe, Prepared]:
    """The recipe with the `steps_per_epoch` that make its training take about `seconds`, and the model of its first stage.

    Args:
        recipe: A `Recipe` with a precision.
        data: Its `DataSet`.
        seconds: Training time, without compilation and validation.
        prepared: The model of the first stage if it exists already.
        teaching: Of the recipe's teacher, which takes time too.
    """
    needed, prepared = image_seconds(recipe, data, prepared, teaching=teaching)
    steps = max(1, round(seconds / recipe.train.batch_size / sum(needed)))
    return recipe.with_train(steps_per_epoch=steps), prepared


def within_time(
    recipe: Recipe,
    data: DataSet,
    started: float,
    prepared: Prepared | None,
    teaching: Teaching | None = None,
    teacher_seconds: float = 0.0,
) -> tuple[Recipe, Pace, str, Prepared]:
    """The recipe with the `steps_per_epoch` with which everything ends within its `train.time`.

    Training, validation and test are measured. A machine's speed changes from minute to minute: `SPARE` of the time is kept, and
    the `Pace` counts anew while the training runs.

    Args:
        recipe: A `Recipe` with a precision.
        data: Its `DataSet`.
        started: When the time began, on the clock of `time.perf_counter`.
        prepared: The model of the first stage if it exists already.
        teaching: Of the recipe's teacher, which takes time too.
        teacher_seconds: That a teacher has been trained, a share of the time.

    Returns:
        The recipe, the `Pace`, a line for the user, and the model of the first stage.

    Raises:
        ValueError: If the time is too short for a step in each epoch.
    """
    config, epochs = recipe.train, recipe.train.total_epochs
    turn = max(TIMED_SECONDS, config.measured_seconds * MEASURED)
    needed, prepared = image_seconds(recipe, data, prepared, turn, teaching)
    per_image, start = evaluation_seconds(recipe, data)
    validation, test = (per_image * len(part) if part is not None else 0.0 for part in (data.validation, data.test))
    costs = tuple(seconds * config.batch_size for seconds in needed)
    validated = [epoch % config.validate_every == 0 or epoch == epochs for epoch in range(1, epochs + 1)]
    beside = tuple(EPOCH_SECONDS + validation * each for each in validated)
    end = validation + (0.0 if recipe.pretrain else test) + END_SECONDS  # the validation once more, for the temperature
    pace = Pace(started + config.measured_seconds * (1 - SPARE) - end, costs, beside)
    fixed = time.perf_counter() - started + start + sum(beside) + end
    left = config.measured_seconds * (1 - SPARE) - fixed
    steps = int(left / sum(costs))
    if steps < 1:
        share = min(teacher_seconds / config.measured_seconds, 1 - 2 * SPARE)
        shortest = math.ceil((fixed - teacher_seconds + sum(costs)) / (1 - SPARE - share))
        raise ValueError(f"time: received {config.time!r}; allowed: at least {shortest}s for {epochs} epochs on this machine")
    passes = steps * config.batch_size * epochs / len(data.train)
    measured = f"{epochs / sum(needed):,.0f} in training" + (f", {1 / per_image:,.0f} in validation" if per_image else "")
    reason = f"time: {config.time}; {epochs} epochs of {steps} steps, {passes:.1f} passes in all; measured images/s: {measured}"
    return recipe.with_train(steps_per_epoch=steps), pace, reason, prepared


def evaluation_seconds(recipe: Recipe, data: DataSet) -> tuple[float, float]:
    """Seconds to evaluate one image, and to compile before the first, with the float32 model that a run validates."""
    split = data.validation or data.test
    if split is None:
        return 0.0, 0.0
    scorer = trained_model(recipe, build_vit(recipe.model, dtype="float32"))
    compile_model(scorer, "sgd", recipe.train.jit)
    rows = np.arange(min(len(split), EVALUATED))
    batches = evaluation_batches(
        split.take(rows),
        num_classes=recipe.model.num_classes,
        batch_size=min(4 * recipe.train.batch_size, len(rows)),
        mean=recipe.mean,
        std=recipe.std,
        masking=recipe.masking,
        seed=recipe.seed,
    )
    times = []
    for _ in range(2):
        before = time.perf_counter()
        scorer.predict(batches, verbose=0)
        times.append(time.perf_counter() - before)
    return times[1] / len(rows), max(times[0] - times[1], 0.0)


def image_seconds(
    recipe: Recipe, data: DataSet, prepared: Prepared | None, turn: float = TIMED_SECONDS, teaching: Teaching | None = None
) -> tuple[list[float], Prepared]:
    """Seconds of training for an image in each epoch, measured in turns of a length for each stage; and the first's model."""
    needed = []
    measured = None  # the last stage's recipe
    weights = class_weights(recipe.train.class_weights, data)
    for first, last, stage in recipe.stages():
        if measured is None or (stage.model, stage.finetune) != (measured.model, measured.finetune):
            model = prepared if prepared and measured is None else compiled_model(stage, 1, weights=weights)
            measured = stage
        prepared = prepared or model
        needed += [1 / training_rates([model[0]], data, stage, seconds=turn, teaching=teaching)[0]] * (last - first)
    return needed, prepared


def training_rates(
    models: Sequence[keras.Model],
    data: DataSet,
    recipe: Recipe,
    turns: int = 1,
    seconds: float = TIMED_SECONDS,
    teaching: Teaching | None = None,
) -> list[float]:
    """Training rate of each compiled model in images/s, its best turn. Leaves the models as they were, compiled for `fit`.

    Args:
        models: Models of one image size.
        data: What they train on.
        recipe: Batch size and augmentation.
        turns: Turns of each model. The models alternate: passing load on the machine slows all of them. There are fewer turns if
            one model is clearly faster or steps are slow.
        seconds: Length of a turn after its first steps.
        teaching: As of `training_batches`.
    """
    variables = [variable for model in models for variable in (*model.variables, *model.optimizer.variables)]
    before = [np.array(ops.convert_to_numpy(variable)) for variable in variables]
    settings = stream_settings(recipe, data)
    batches = training_batches(data.train, recipe.augment, image_size=recipe.model.image_size, teaching=teaching, **settings)
    best, spent = [0.0] * len(models), 0.0
    while spent < turns * seconds * len(models) and max(best) <= CLEAR * min(best):
        for index, model in enumerate(models):
            clock = Clock(seconds)
            model.fit(batches, steps_per_epoch=10**6, shuffle=False, verbose=0, callbacks=[clock])
            best[index] = max(best[index], clock.steps * recipe.train.batch_size / clock.seconds)
            spent += clock.seconds
            # After each turn, because averaged weights then share buffers with the weights, and JAX refuses to donate a buffer
            # twice.
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)
    return best


def stream_settings(recipe: Recipe, data: DataSet, mix_steps: float = math.inf) -> dict:
    """What `training_batches` depends on, besides data and augmentation."""
    return {"mean": recipe.mean, "std": recipe.std, "masking": recipe.masking, **batch_settings(recipe, data, mix_steps)}


def batch_settings(recipe: Recipe, data: DataSet, mix_steps: float = math.inf) -> dict:
    """What `training_batch` depends on, likewise."""
    return {
        "num_classes": recipe.model.num_classes,
        "batch_size": recipe.train.batch_size,
        "seed": recipe.seed,
        "mix_steps": mix_steps,
        "sampling": recipe.train.sampling,
    }
