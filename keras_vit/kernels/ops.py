"""The operations in which a Vision Transformer spends its time. Layers import them from here alone.

Each function is written below in `keras.ops`, which defines its numbers. If the backend's file (`tensorflow.py`, `jax.py`,
`torch.py`) has a function of the same name and signature, it is tried first. It returns None where it has nothing faster, for
example on an accelerator or in an export. Keras composes a norm or a GELU of a dozen operations, each a pass over memory on a
processor; the backend's file has one or two. `benchmarks/` has the measurements.

Shapes: B batch, N tokens, R rows (B·N), F and D features, h heads, d head size, Q queries.
"""

import functools

import keras
from keras import ops

from keras_vit.kernels.shared import ACTIVATIONS, expand_mask, portable

BACKEND = keras.backend.backend()

if BACKEND == "tensorflow":
    from keras_vit.kernels import tensorflow as backend
elif BACKEND == "jax":
    from keras_vit.kernels import jax as backend
elif BACKEND == "torch":
    from keras_vit.kernels import torch as backend
else:
    backend = None

__all__ = [
    "activate",
    "attend",
    "attention_weights",
    "convolution",
    "join_heads",
    "layer_norm",
    "linear",
    "portable",
    "replica",
    "reshape",
    "rotate",
    "self_attention",
    "shape",
    "split_heads",
]


def faster(plain):
    """Tries the backend's function of the same name first. The result's attribute `plain` is the plain function."""
    special = getattr(backend, plain.__name__, None)

    @functools.wraps(plain)
    def call(*args, **kwargs):
        result = special(*args, **kwargs)
        return plain(*args, **kwargs) if result is None else result

    chosen = plain if special is None else call
    chosen.plain = plain
    return chosen


@faster
def replica():
    """The number of this replica in a data-parallel training; None where random numbers are those of a whole batch."""
    return None


@faster
def reshape(x, shape):
    return ops.reshape(x, shape)


@faster
def shape(x):
    return ops.shape(x)


@faster
def linear(x, kernel, bias, training=False, residual=None):
    """x @ kernel + bias + residual: (R, F), (F, D), (D,) or None, (R, D) or None -> (R, D). `x` may have more than two axes."""
    y = ops.matmul(x, kernel)
    y = y if bias is None else ops.add(y, bias)
    return y if residual is None else residual + y


@faster
def activate(x, kind, training=False):
    """An activation of `ACTIVATIONS`: (R, F) -> (R, F), or (R, F / 2) if gated. May overwrite `x`."""
    return ACTIVATIONS[kind](x)


@faster
def layer_norm(x, gamma, beta, epsilon, training=False):
    """Layer normalisation of the last axis, computed in float32: (..., F), (F,), (F,) -> (..., F) of the type of `x`."""
    return ops.layer_normalization(x, gamma, beta, axis=-1, epsilon=epsilon)


@faster
def self_attention(qkv, tokens, num_heads, bias=None):
    """Every token of an image attends to every token: (R, 3·h·d) -> (R, h·d).

    Args:
        qkv: Queries, keys and values side by side.
        tokens: N.
        num_heads: h.
        bias: Added to the scores, (B, 1, 1, N).
    """
    return join_heads(attend(*split_heads(qkv, tokens, num_heads), bias=bias))


@faster
def attend(q, k, v, mask=None, bias=None, dropout=None):
    """Scaled dot-product attention: q (B, h, Q, d), k and v (B, h, N, d) -> (B, h, Q, d).

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        mask: True for the keys to attend to: (B, N), or (B, Q, N).
        bias: Added to the scores before the softmax, (B, 1, 1, N).
        dropout: A layer for the attention weights, active; None = no dropout.
    """
    weights = attention_weights(q, k, mask, bias)
    return ops.matmul(weights if dropout is None else dropout(weights, training=True), v)


def attention_weights(q, k, mask=None, bias=None):
    """softmax(q · k / sqrt(d)), computed in float32: (B, h, Q, N), rows summing to 1. Arguments as in `attend`."""
    scores = ops.matmul(q * ops.cast(q.shape[-1] ** -0.5, q.dtype), ops.transpose(k, (0, 1, 3, 2)))  # (B, h, Q, N)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = ops.where(expand_mask(mask), scores, ops.cast(-3e4, scores.dtype))  # finite in float16 too
    return ops.cast(ops.softmax(ops.cast(scores, "float32"), axis=-1), q.dtype)


def rotate(x, rotary):
    """Turns channels i and i + d / 2 of each head by an angle: (B, h, N, d) -> (B, h, N, d).

    Args:
        x: Queries or keys.
        rotary: Cosines and sines of the tokens' angles, side by side, (B, N, d).
    """
    a, b = ops.split(x, 2, axis=-1)  # each (B, h, N, d / 2)
    cos, sin = ops.split(ops.expand_dims(rotary, 1), 2, axis=-1)  # each (B, 1, N, d / 2)
    return ops.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def split_heads(x, tokens, num_heads, parts=3):
    """(R, parts·h·d) -> `parts` tensors (B, h, N, d)."""
    x = reshape(x, (-1, tokens, parts, num_heads, x.shape[1] // (parts * num_heads)))
    return ops.unstack(ops.transpose(x, (2, 0, 3, 1, 4)), parts)


def join_heads(x):
    """(B, h, N, d) -> (R, h·d)."""
    return reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, x.shape[1] * x.shape[3]))


@faster
def convolution(layer, x, training=False):
    """A built Keras layer, 3x3 with stride s of 1 or 2 and padding `same`: (B, H, W, C) -> (B, H/s, W/s, D), H and W even for 2."""
    return layer(x)
