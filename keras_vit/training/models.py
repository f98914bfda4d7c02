"""Models ready for `fit`, and what one hands on to the next."""

import keras
import numpy as np
from keras import ops

from keras_vit.machine import accelerator
from keras_vit.model.resample import resample_weight
from keras_vit.model.vit import build_vit
from keras_vit.training.finetune import learning_rate_factors, load_finetune, select_weights
from keras_vit.training.optimizer import make_optimizer

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


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
