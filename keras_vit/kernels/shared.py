"""Parts that several backends' kernels share, in `keras.ops`.

Shapes: R rows, F features, B batch, N tokens, h heads, d head size, Q queries.
"""

import contextlib
import contextvars
import math

from keras import ops

PORTABLE = contextvars.ContextVar("portable", default=False)


@contextlib.contextmanager
def portable():
    """Inside this context TensorFlow traces operations that every format has, not those fastest in its own runtime."""
    token = PORTABLE.set(True)
    try:
        yield
    finally:
        PORTABLE.reset(token)


def gelu(x):
    """Exact GELU (arXiv 1606.08415). Keras's own uses erfc: several passes in XLA on a processor, and ONNX lacks it."""
    return ops.cast(0.5, x.dtype) * x * (1 + ops.erf(x * ops.cast(math.sqrt(0.5), x.dtype)))


def gelu_tanh(x):
    """GELU's approximation by tanh."""
    return ops.gelu(x, approximate=True)


def gelu_quick(x):
    """x sigmoid(1.702 x), CLIP's."""
    return x * ops.sigmoid(ops.cast(1.702, x.dtype) * x)


def swiglu(x):
    """silu(x1) * x2 of the two halves of the features (arXiv 2002.05202): (R, 2F) -> (R, F)."""
    gate, x = ops.split(x, 2, axis=-1)
    return ops.silu(gate) * x


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "gelu_quick": gelu_quick, "swiglu": swiglu}


def norm_forward(x, gamma, beta, epsilon):
    """Layer normalisation of the last axis, in float32 inside."""
    y = standardize(ops.cast(x, "float32"), epsilon)[0] * ops.cast(gamma, "float32") + ops.cast(beta, "float32")
    return ops.cast(y, x.dtype)


def norm_backward(x, gamma, dy, epsilon):
    """Gradients of x, gamma and beta, in float32 inside. Needs nothing of the forward pass but x."""
    rows, d = (ops.cast(ops.reshape(values, (-1, x.shape[-1])), "float32") for values in (x, dy))  # (R, F)
    y, scale = standardize(rows, epsilon)
    column = ops.transpose(ops.ones_like(rows[:, :1]))  # (1, R)
    dgamma, dbeta = (ops.cast(ops.matmul(column, values)[0], gamma.dtype) for values in (d * y, d))
    d = d * ops.cast(gamma, "float32")
    dx = scale * (d - means(d) - y * means(d * y))
    return ops.cast(ops.reshape(dx, ops.shape(x)), x.dtype), dgamma, dbeta


def standardize(x, epsilon):
    """(x - mean) / deviation of the last axis, and 1 / deviation."""
    x = x - means(x)
    scale = ops.rsqrt(means(x * x) + epsilon)
    return x * scale, scale


def means(x):
    """Means of the last axis, (..., F) -> (..., 1). By a matmul: on a processor, other sums take XLA longer."""
    return ops.matmul(x, ops.full((x.shape[-1], 1), 1 / x.shape[-1], x.dtype))


def expand_mask(mask):
    """A mask (B, N) or (B, Q, N) as one for scores (B, h, Q, N)."""
    return ops.expand_dims(ops.cast(mask, "bool"), (1, 2) if len(mask.shape) == 2 else 1)  # (B, 1, 1 or Q, N)


def fused_attention(q, k, v, mask=None):
    """`attend` by the backend's fused kernel: q (B, h, Q, d), k and v (B, h, N, d) -> (B, h, Q, d)."""
    q, k, v = (ops.transpose(x, (0, 2, 1, 3)) for x in (q, k, v))  # views; Keras takes (B, N, h, d)
    mask = None if mask is None else expand_mask(mask)
    y = ops.dot_product_attention(q, k, v, mask=mask, scale=q.shape[-1] ** -0.5)
    return ops.transpose(y, (0, 2, 1, 3))
