"""Gradients of a model's weights under whichever backend runs."""

import keras
import numpy as np


def gradients(model, x, direction):
    """Gradients of sum(model(x) * direction) by path of the trainable weight, as NumPy arrays."""
    variables = model.trainable_variables
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(tf.constant(x)) * direction)
        values = tape.gradient(loss, [variable.value for variable in variables])
    elif backend == "jax":
        import jax

        frozen = [variable.value for variable in model.non_trainable_variables]

        def loss_of(trainable):
            return (model.stateless_call(trainable, frozen, x)[0] * direction).sum()

        values = jax.jit(jax.grad(loss_of))([variable.value for variable in variables])
    else:
        import torch

        model.zero_grad()
        (model(torch.from_numpy(x)) * torch.from_numpy(direction)).sum().backward()
        values = [variable.value.grad for variable in variables]
    paths = [variable.path for variable in variables]
    return {path: np.asarray(value) for path, value in zip(paths, values, strict=True) if value is not None}
