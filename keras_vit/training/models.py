"""Models ready for `fit`, and the transfer of training state from one stage to the next."""

import contextlib
from collections.abc import Iterator, Sequence

import keras
import numpy as np
from keras import ops

from keras_vit.machine import accelerator
from keras_vit.model.masked import MaskedAutoencoder
from keras_vit.model.resample import resample_weight
from keras_vit.model.vit import ViT, build_vit
from keras_vit.recipes.schema import Recipe
from keras_vit.training.distribution.base import Distribution
from keras_vit.training.finetune import learning_rate_factors, load_finetune, select_weights
from keras_vit.training.losses import make_metrics, training_loss
from keras_vit.training.optimizer import iterations, make_optimizer, own_optimizer

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}

Prepared = tuple[ViT, list[str]]  # a compiled model, and notes for the user


def compiled_model(
    recipe: Recipe,
    total_steps: int,
    class_names: list[str] | None = None,
    weights: np.ndarray | None = None,
    distribution: Distribution | None = None,
) -> Prepared:
    """The model of a recipe or of one of its stages, ready for `fit`, and notes for the user.

    Args:
        recipe: The `Recipe`, with a precision other than `auto`.
        total_steps: Steps of the learning rate's schedule.
        class_names: The data's classes, needed to load the recipe's checkpoint, if any. None = initial weights from the seed.
        weights: Of the classes in the loss, as of `class_weights`.
        distribution: The devices that train it; None = this one.
    """
    distribution = distribution or Distribution()
    keras.utils.set_random_seed(recipe.seed)
    with distribution.scope():
        model, notes = compiled(recipe, total_steps, class_names, weights, distribution)
    distribution.prepare(model)
    return model, notes


def compiled(recipe, total_steps, class_names, weights, distribution):
    policy, separate_heads = POLICIES[recipe.train.precision], bool(recipe.distill.teacher)
    model = build_vit(recipe.model, dtype=policy, remat=recipe.train.remat, separate_heads=separate_heads)
    notes, factors = [], None
    if recipe.finetune.checkpoint:
        if class_names is not None:
            notes = load_finetune(model, recipe.finetune, class_names)
        select_weights(model, recipe.finetune)
        if recipe.finetune.layer_decay < 1:
            factors = learning_rate_factors(model, recipe.finetune.layer_decay)
    model = trained_model(recipe, model)
    distribution.divide(model)
    optimizer = make_optimizer(recipe.train, total_steps, factors)
    compile_model(model, optimizer, recipe.train.jit, training_loss(recipe, weights), make_metrics(recipe))
    return model, notes


def trained_model(recipe: Recipe, model: ViT) -> ViT | MaskedAutoencoder:
    """What `fit` trains: the model itself, or in a pre-training an autoencoder around it, which shares its layers."""
    if not recipe.pretrain:
        return model
    config = recipe.pretrain
    return MaskedAutoencoder(model, config.mask_ratio, config.decoder_width, config.decoder_depth, config.decoder_heads)


@contextlib.contextmanager
def averaged(model: ViT) -> Iterator[None]:
    """Swaps in the averaged weights, if there are any; the trained weights come back afterwards."""
    if not own_optimizer(model.optimizer).use_ema:
        yield
        return
    variables = model.trainable_variables
    trained = [np.array(ops.convert_to_numpy(variable)) for variable in variables]
    model.optimizer.finalize_variable_values(variables)
    try:
        yield
    finally:
        for variable, value in zip(variables, trained, strict=True):
            variable.assign(value)


def carry_over(old: ViT, new: ViT) -> None:
    """Gives a compiled model the weights and the optimizer state of another stage's model.

    Weights and their averages are resampled. Resized weights get their old moments' mean. If the stages train other weights, the
    optimizer starts anew, only the learning rate goes on: Adam corrects its moments by the number of all updates, and would move
    weights that are trained for the first time several times too far.
    """
    optimizer = own_optimizer(new.optimizer)
    paths = {id(variable): variable.path for variable in new.variables}
    pairs = []
    # Layer by layer: only one of the models may have patch dropout, whose random state is one more variable.
    theirs, ours = ({layer.name: {v.path: v for v in layer.variables} for layer in model.layers} for model in (old, new))
    for name in theirs.keys() & ours.keys():  # only one of the layers may have adapters
        pairs += [(theirs[name][path], ours[name][path]) for path in theirs[name].keys() & ours[name].keys()]
    if [variable.path for variable in old.trainable_variables] == [variable.path for variable in new.trainable_variables]:
        if optimizer.use_ema:
            averages = [variable for variable in optimizer.variables if variable.path.endswith("_average")]
            paths |= {id(average): v.path for average, v in zip(averages, new.trainable_variables, strict=True)}
        pairs += zip(old.optimizer.variables, new.optimizer.variables, strict=True)
    else:
        steps = int(ops.convert_to_numpy(iterations(old.optimizer)))
        optimizer.schedule.continue_from(own_optimizer(old.optimizer).schedule, steps)
    for source, target in pairs:
        value = ops.convert_to_numpy(source)
        if value.shape != tuple(target.shape):
            path = paths.get(id(target))
            value = resample_weight(path, value, old.config, new.config) if path else np.full(target.shape, value.mean())
        target.assign(value)


def compile_model(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer | str,
    jit: str,
    loss: keras.losses.Loss | None = None,
    metrics: Sequence[keras.metrics.Metric] | None = None,
) -> None:
    """Compiles a model for classification, by default with cross-entropy and accuracy; `jit` as in `TrainConfig`."""
    jit = {"auto": "auto", "on": True, "off": False}[jit]
    if jit == "auto" and keras.backend.backend() == "tensorflow" and not accelerator():
        jit = False  # on a CPU TensorFlow's own kernels are as fast as XLA's in float32 and faster in bfloat16
    loss = loss or keras.losses.CategoricalCrossentropy(from_logits=True)
    metrics = [keras.metrics.CategoricalAccuracy(name="accuracy")] if metrics is None else list(metrics)
    model.compile(optimizer, loss=loss, metrics=metrics, jit_compile=jit)
    model.optimizer.build(model.trainable_variables)  # otherwise TensorFlow traces the first step twice
