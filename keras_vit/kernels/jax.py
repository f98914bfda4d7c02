"""JAX's versions of the functions of `ops.py`, most of them for training by XLA on a processor.

Tests: tests/kernels/test_kernels.py.

Shapes: B batch, H height, W width, C channels, N tokens, R rows (B·N), F and D features, h heads, d head size.
"""

import functools
import math

import jax
from jax.lax import optimization_barrier as barrier
from keras import ops

from keras_vit.kernels.shared import fused_attention, norm_backward, norm_forward

PARTS = 8  # of a batch, in the gradient of a convolution's kernel


def on_processor() -> bool:
    """Whether XLA compiles for a processor."""
    return jax.default_backend() == "cpu"


def linear(x, kernel, bias, training=False, residual=None):
    """Pays in training on a processor: product and gradients 6.6 to 4.9 ms. Test: test_linear."""
    if len(x.shape) != 2 or not (training and on_processor()):
        return None
    y = product(x, ops.convert_to_tensor(kernel))
    y = with_bias(y, bias)
    return y if residual is None else residual + y


def with_bias(y, bias):
    """y + bias, whose gradient is summed in float32: XLA on a processor sums bfloat16 in bfloat16, 5% wrong over 1,500 rows."""
    return y if bias is None else (y.astype("float32") + ops.convert_to_tensor(bias).astype("float32")).astype(y.dtype)


@jax.custom_vjp
def product(x, kernel):
    """x @ kernel whose weight gradient contracts the last axis of a transposed copy: (R, F), (F, D) -> (R, D).

    XLA on a processor takes a tenth to a quarter less time for it than for a product that contracts the first axis of both.
    """
    return dot(x, kernel).astype(x.dtype)


def product_forward(x, kernel):
    return product(x, kernel), (x, kernel)


def product_backward(kept, dy):
    x, kernel = kept
    swap = x.shape[1] > dy.shape[1]  # the smaller of the two is copied
    gradient = barrier(dot(transposed(dy), x)).T if swap else dot(transposed(x), dy)
    return dot(dy, kernel, 1).astype(x.dtype), gradient.astype(kernel.dtype)


product.defvjp(product_forward, product_backward)


def dot(a, b, axis=0):
    """Batched matmul over a's last axis and b's second-last (0) or last (1): (..., R, F), (..., F, D) -> (..., R, D).

    bfloat16 gives float32. XLA on a processor has fast bfloat16 matmuls (AMX, AVX-512) only for this result type and this order
    of axes; it computes all others in float32.
    """
    batch = tuple(range(a.ndim - 2))
    axes = ((a.ndim - 1,), (b.ndim - 2 + axis,)), (batch, batch)
    if a.dtype != "bfloat16":
        return jax.lax.dot_general(a, b, axes)
    # Otherwise XLA may choose a layout that suits the next operation, and has no matmul for it ("UNIMPLEMENTED").
    a, b = row_major(a), row_major(b)
    return row_major(jax.lax.dot_general(a, b, axes, preferred_element_type="float32"))


def row_major(x):
    from jax.experimental.layout import Layout, with_layout_constraint  # `import jax` does not load it

    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def transposed(x):
    """A transposed copy that XLA does not fold into the product that takes it: (R, F) -> (F, R)."""
    if x.dtype != "bfloat16":  # a barrier would turn bfloat16 into float32
        return barrier(x.T)
    half = len(x) // 2
    return jax.numpy.concatenate([x[:half].T, x[half:].T], axis=1)


def layer_norm(x, gamma, beta, epsilon, training=False):
    """Pays in training on a processor: norm and product 5.1 to 4.6 ms. Test: test_layer_norm."""
    if not (training and on_processor()) or x.dtype == "float64":
        return None
    return norm_keeping_x(epsilon)(x, ops.convert_to_tensor(gamma), ops.convert_to_tensor(beta))


@functools.cache
def norm_keeping_x(epsilon):
    """The norm; its backward pass needs only x and gamma."""
    norm = jax.custom_vjp(functools.partial(norm_forward, epsilon=epsilon))
    norm.defvjp(
        lambda x, gamma, beta: (norm(x, gamma, beta), (x, gamma)), lambda kept, dy: norm_backward(*kept, dy, epsilon=epsilon)
    )
    return norm


def self_attention(qkv, tokens, num_heads, bias=None):
    """Pays in bfloat16 on a processor, for the reason of `dot`. Test: test_bfloat16_is_float32_rounded."""
    if not on_processor() or qkv.dtype != "bfloat16" or bias is not None:
        return None
    features = qkv.shape[1]
    return bfloat16_attention(qkv.reshape(-1, tokens, features), num_heads).reshape(-1, features // 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def bfloat16_attention(qkv, num_heads):
    return attention_forward(qkv, num_heads)[0]


def attention_forward(qkv, num_heads):
    q, k, v = split_heads(qkv, num_heads)
    weights = jax.nn.softmax(q.shape[-1] ** -0.5 * dot(q, k, 1), axis=-1).astype(qkv.dtype)  # (B, h, N, N)
    y = dot(weights, v).astype(qkv.dtype)
    return y.transpose(0, 2, 1, 3).reshape(*qkv.shape[:2], -1), (qkv, weights)


def attention_backward(num_heads, kept, dy):
    qkv, kept_weights = kept
    q, k, v = split_heads(qkv, num_heads)
    batch, _, tokens, size = q.shape
    dy = dy.reshape(batch, tokens, num_heads, size)
    dscores = dot(dy.transpose(0, 2, 1, 3), v, 1)  # (B, h, N, N)
    weights = kept_weights.astype("float32")
    dscores = weights * (dscores - jax.numpy.sum(weights * dscores, axis=-1, keepdims=True))
    dscores = (size**-0.5 * dscores).astype(qkv.dtype)
    dq = dot(dscores, k).transpose(0, 2, 1, 3)  # (B, N, h, d)
    dk = dot(q.transpose(0, 1, 3, 2), dscores).transpose(0, 3, 1, 2)
    dv = dot(dy.transpose(0, 2, 3, 1), kept_weights).transpose(0, 3, 1, 2)
    return (jax.numpy.stack([dq, dk, dv], axis=2).astype(qkv.dtype).reshape(qkv.shape),)


bfloat16_attention.defvjp(attention_forward, attention_backward)


def split_heads(qkv, num_heads):
    """(B, N, 3·h·d) -> (3, B, h, N, d)."""
    return qkv.reshape(*qkv.shape[:2], 3, num_heads, -1).transpose(2, 0, 3, 1, 4)


def attend(q, k, v, mask=None, bias=None, dropout=None):
    """Pays on a GPU. On a TPU Keras 3.15 takes a kernel that is causal unless there is a mask. Test: test_fused_attention."""
    return fused_attention(q, k, v, mask) if jax.default_backend() == "gpu" and bias is None and dropout is None else None


def convolution(layer, x, training=False):
    """Pays in training on a processor, where XLA's gradients are slow. Test: test_gradients_of_a_convolution.

    With stride 1 the kernel's gradient is computed in parts. With stride 2, in float32, the convolution is a matmul over the
    nine pixels of each place, side by side; in bfloat16 the copies cancel the gain.
    """
    if not (training and on_processor()):
        return None
    if layer.strides == (1, 1):
        return with_bias(same_in_parts(x, ops.convert_to_tensor(layer.kernel)), layer.bias)
    if x.dtype != "float32":
        return with_bias(convolved(x, ops.convert_to_tensor(layer.kernel), 2), layer.bias)
    batch, height, width, _ = x.shape
    padded = jax.numpy.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))  # `same` adds only at the end
    pixels = [padded[:, row : row + height : 2, column : column + width : 2] for row in range(3) for column in range(3)]
    rows = jax.numpy.concatenate(pixels, axis=-1).reshape(batch * height * width // 4, -1)  # (B·H/2·W/2, 9·C)
    kernel = ops.convert_to_tensor(layer.kernel)
    y = linear(rows, kernel.reshape(-1, kernel.shape[-1]), layer.bias, training)
    return y.reshape(batch, height // 2, width // 2, -1)


def convolved(x, kernel, stride=1):
    """A convolution: (B, H, W, C), (3, 3, C, D) -> (B, H/s, W/s, D)."""
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def same_forward(x, kernel):
    return convolved(x, kernel), (x, kernel)


def same_backward(kept, dy):
    """Sums the kernel's gradient over parts of the batch. XLA transposes both factors of a part, which fit into the caches."""
    x, kernel = kept
    parts = math.gcd(PARTS, len(x))
    pairs = zip(jax.numpy.split(x, parts), jax.numpy.split(dy, parts), strict=True)
    dkernel = sum(jax.vjp(lambda kernel, x=x: convolved(x, kernel), kernel)[1](dy)[0].astype("float32") for x, dy in pairs)
    return jax.vjp(lambda x: convolved(x, kernel), x)[1](dy)[0], dkernel.astype(kernel.dtype)


same_in_parts = jax.custom_vjp(lambda x, kernel: convolved(x, kernel))
same_in_parts.defvjp(same_forward, same_backward)
