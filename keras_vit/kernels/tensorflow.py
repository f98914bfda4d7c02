"""TensorFlow's versions of the functions of `ops.py`: single operations by XLA or oneDNN on a processor.

Tests: tests/kernels/test_kernels.py.

Shapes: N tokens, R rows (B·N), F and D features.
"""

import functools

import keras
import tensorflow as tf
from keras import ops

from keras_vit.kernels.shared import ACTIVATIONS, PORTABLE, norm_backward, norm_forward
from keras_vit.private.tensorflow import has_onednn


def on_processor() -> bool:
    """Whether single operations go to XLA and oneDNN: only without an accelerator, for which XLA compiles the whole step."""
    return not tf.config.list_logical_devices("GPU")


def replica():
    """Needed: replicas of `tf.distribute` draw the same random numbers. Test: test_distribution."""
    if not tf.distribute.has_strategy() or tf.distribute.in_cross_replica_context():
        return None
    return tf.distribute.get_replica_context().replica_id_in_sync_group


def linear(x, kernel, bias, training=False, residual=None):
    """Pays: matmul, BiasAdd, GELU and residual fuse into one operation; other additions do not fuse. Test: test_linear."""
    if len(x.shape) != 2 or bias is None:
        return None
    y, bias = ops.matmul(x, kernel), tf.convert_to_tensor(bias)
    y = add_bias(y, bias) if training and on_processor() else tf.nn.bias_add(y, bias)
    return y if residual is None else residual + y


@tf.custom_gradient
def add_bias(x, bias):
    """Adds a bias whose gradient is a matrix product: TensorFlow's sum over rows takes twice as long on a processor."""

    def gradient(dy):
        return dy, tf.matmul(tf.ones((1, tf.shape(dy)[0]), dy.dtype), dy)[0]

    return tf.nn.bias_add(x, bias), gradient


def activate(x, kind, training=False):
    """Pays in training: one XLA computation each way, with `add_bias` 0.78 to 0.88 of timm. Test: test_activations."""
    return one_pass(ACTIVATIONS[kind])(x) if training and on_processor() else None


@functools.cache
def one_pass(function):
    """A function of tensors as one XLA computation forward and one backward; the latter recomputes what it needs.

    The graph around it, with its matrix products, stays as it is.
    """

    @compiled
    def backward(inputs, dy):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = function(*inputs)
        return tape.gradient(y, inputs, dy)

    forward = compiled(function)

    @tf.custom_gradient
    def call(*inputs):
        return forward(*inputs), lambda dy: backward(inputs, dy)

    return of_tensors(call)


def layer_norm(x, gamma, beta, epsilon, training=False):
    """Pays: oneDNN's norm is one pass; training 870 to 810 ms a batch, inference 262 to 227. Test: test_layer_norm."""
    if not on_processor() or keras.backend.standardize_dtype(x.dtype) == "float64":
        return None
    if training:
        return norm_keeping_x(epsilon)(x, gamma, beta)
    return onednn_norm(x, gamma, beta, epsilon) if has_onednn() and not PORTABLE.get() else None


@functools.cache
def norm_keeping_x(epsilon):
    """The norm; its backward pass needs only x and gamma."""
    forward = functools.partial(onednn_norm, epsilon=epsilon)
    forward = forward if has_onednn() else compiled(functools.partial(norm_forward, epsilon=epsilon))

    @compiled
    def backward(x, gamma, dy):
        return norm_backward(x, gamma, dy, epsilon)

    @tf.custom_gradient
    def norm(x, gamma, beta):
        return forward(x, gamma, beta), lambda dy: backward(x, gamma, dy)

    return of_tensors(norm)


def onednn_norm(x, gamma, beta, epsilon):
    """A batch norm with the tokens as channels, as Keras 2 had it: TensorFlow turns it into oneDNN's layer norm, one pass."""
    # TensorFlow recognises only ones and zeros that the graph fills at run time; with a known count it would fold them into
    # constants.
    shape, none = tf.shape(x), tf.zeros((0,))
    tokens = tf.compat.v1.placeholder_with_default(tf.reduce_prod(shape[:-1]), ())
    settings = {"scale": tf.ones((tokens,)), "offset": tf.zeros((tokens,)), "mean": none, "variance": none}
    settings |= {"epsilon": epsilon, "data_format": "NCHW", "is_training": True}
    y = tf.raw_ops.FusedBatchNormV3(x=tf.reshape(x, tf.stack([1, tokens, shape[-1], 1])), **settings).y
    return tf.reshape(y, shape) * ops.cast(gamma, x.dtype) + ops.cast(beta, x.dtype)


def compiled(function):
    return tf.function(function, jit_compile=True, autograph=False)


def of_tensors(function):
    """The function with its arguments as tensors: `custom_gradient` ignores variables."""
    return lambda *inputs: function(*map(tf.convert_to_tensor, inputs))
