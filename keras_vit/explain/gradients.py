"""Functions of a model and of arrays, and their gradients, under every backend."""

import weakref
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

BACKEND = keras.backend.backend()
COMPILED = weakref.WeakKeyDictionary()  # what JAX has compiled for a model: op by op it takes seconds for the first image


def evaluate(function: Callable, model: keras.Model, *arrays: np.ndarray, **settings):
    """`function(model, *tensors, **settings)`, a tree of tensors, as NumPy arrays; nothing is recorded for gradients."""
    tensors = [ops.convert_to_tensor(each) for each in arrays]
    if BACKEND == "jax":
        return to_numpy(compiled(function, model, settings)(variables(model), *tensors))
    if BACKEND == "tensorflow":
        return to_numpy(function(model, *tensors, **settings))
    import torch

    with torch.no_grad():
        return to_numpy(function(model, *tensors, **settings))


def gradients(
    function: Callable, model: keras.Model, inputs: list[np.ndarray], *arrays: np.ndarray, **settings
) -> list[np.ndarray]:
    """The gradients of a scalar `function(model, inputs, *tensors, **settings)` to each of its inputs.

    Args:
        function: Of the model, a list of tensors, and tensors.
        model: A Keras model.
        inputs: float32 arrays.
        *arrays: What else the function takes.
        **settings: Plain values that it takes.

    Returns:
        A float32 array of each input's shape, zeros where the scalar does not depend on it.
    """
    inputs, tensors = ([ops.convert_to_tensor(each) for each in group] for group in (inputs, arrays))
    if BACKEND == "jax":
        return to_numpy(compiled(function, model, settings, gradient=True)(variables(model), inputs, *tensors))
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(inputs)
            value = function(model, inputs, *tensors, **settings)
        return to_numpy(tape.gradient(value, inputs, unconnected_gradients=tf.UnconnectedGradients.ZERO))
    import torch

    with torch.enable_grad():
        inputs = [each.requires_grad_() for each in inputs]
        value = function(model, inputs, *tensors, **settings)
        return to_numpy(list(torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)))


def compiled(function, model, settings, gradient=False):
    """The function, or its gradient to the first argument after the model, compiled by JAX; takes the model's variables first."""
    import jax

    known, key = COMPILED.setdefault(model, {}), (function, gradient, *sorted(settings.items()))
    if key not in known:
        here = weakref.ref(model)

        def pure(values, *arguments):
            model = here()
            with keras.StatelessScope(state_mapping=list(zip(model.variables, values, strict=True))):
                return function(model, *arguments, **settings)

        known[key] = jax.jit(jax.grad(pure, argnums=1) if gradient else pure)
    return known[key]


def variables(model):
    return [variable.value for variable in model.variables]


def to_numpy(tree):
    """A tree of tensors as float32 NumPy arrays; None stays."""

    def convert(tensor):
        return None if tensor is None else ops.convert_to_numpy(ops.cast(tensor, "float32"))

    return keras.tree.map_structure(convert, tree)
