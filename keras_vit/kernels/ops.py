"""The operations in which training spends its time, as fast as each backend has them on a processor; the same numbers.

Keras composes a norm or a GELU of a dozen operations. XLA on an accelerator makes one of them; without it each is a pass over
memory, forward and backward. What is here is used while training (and under PyTorch always, unless a model is being exported;
TensorFlow's norm outside of `portable`): elsewhere the layers keep to `keras.ops`, which every export format
knows. `benchmarks/README.md` has what each of them brings.

Shapes: R rows (B·N tokens), F and D features, B batch, N tokens, h heads, d head size.
"""

import contextlib
import contextvars
import functools
import math

import keras
from keras import ops

from keras_vit.machine import processor

BACKEND = keras.backend.backend()
PORTABLE = contextvars.ContextVar("portable", default=False)

if BACKEND == "tensorflow":
    import tensorflow as tf
elif BACKEND == "jax":
    import jax
    from jax.lax import optimization_barrier as barrier
elif BACKEND == "torch":
    import torch


@contextlib.contextmanager
def portable():
    """Within it TensorFlow traces what every format has in few operations, and not what is fastest in its own runtime."""
    token = PORTABLE.set(True)
    try:
        yield
    finally:
        PORTABLE.reset(token)


def reshape(x, shape):
    """`ops.reshape`, which under PyTorch spends a tenth of a millisecond on looking for symbolic tensors."""
    return x.reshape(shape) if BACKEND == "torch" else ops.reshape(x, shape)


def shape(x):
    """`ops.shape`, likewise."""
    return x.shape if BACKEND == "torch" else ops.shape(x)


def gelu(x, approximate=False):
    """GELU (arXiv 1606.08415), exact through erf unless `approximate`.

    Written out where Keras's own goes through erfc, which costs XLA several passes on a CPU and which ONNX lacks.
    """
    if BACKEND == "torch":
        return torch.nn.functional.gelu(x, approximate="tanh" if approximate else "none")
    if approximate:
        return ops.gelu(x, approximate=True)
    return ops.cast(0.5, x.dtype) * x * (1 + ops.erf(x * ops.cast(math.sqrt(0.5), x.dtype)))


def gelu_tanh(x):
    return gelu(x, approximate=True)


def gelu_quick(x):
    """x sigmoid(1.702 x), CLIP's."""
    return x * ops.sigmoid(ops.cast(1.702, x.dtype) * x)


def swiglu(x):
    """silu(x1) * x2 of the two halves of the features (arXiv 2002.05202): (R, 2F) -> (R, F)."""
    gate, x = ops.split(x, 2, axis=-1)
    return ops.silu(gate) * x


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "gelu_quick": gelu_quick, "swiglu": swiglu}


def activate(x, kind, training=False):
    """An activation of `ACTIVATIONS`; what `x` holds may be lost."""
    if BACKEND == "torch" and kind == "gelu" and not torch.is_grad_enabled() and not torch.compiler.is_exporting():
        return torch.ops.aten.gelu_(x)
    return one_pass(ACTIVATIONS[kind])(x) if training and fuses_here() else ACTIVATIONS[kind](x)


def layer_norm(x, gamma, beta, epsilon, training=False):
    """Layer normalisation of the last axis, computed in float32; the result has the type of x."""
    if BACKEND == "torch" and (x.dtype == torch.float32 or (x.device.type == "cpu" and not torch.compiler.is_exporting())):
        return torch.nn.functional.layer_norm(x, (x.shape[-1],), gamma, beta, epsilon)
    plain = keras.backend.standardize_dtype(x.dtype) == "float64"
    if training and not plain and (fuses_here() or xla_is_here()):
        return _norm(epsilon)(x, ops.convert_to_tensor(gamma), ops.convert_to_tensor(beta))
    if fuses_here() and has_onednn() and not (plain or PORTABLE.get()):
        return _onednn_norm(x, gamma, beta, epsilon)
    return ops.layer_normalization(x, gamma, beta, axis=-1, epsilon=epsilon)


@functools.cache
def _norm(epsilon):
    """The norm with a backward pass of its own, which keeps nothing but x."""

    def backward(x, gamma, dy):
        return _norm_backward(x, gamma, dy, epsilon)

    forward = functools.partial(_norm_forward, epsilon=epsilon)
    if BACKEND == "jax":
        norm = jax.custom_vjp(forward)
        norm.defvjp(lambda x, gamma, beta: (norm(x, gamma, beta), (x, gamma)), lambda kept, dy: backward(*kept, dy))
        return norm
    forward = functools.partial(_onednn_norm, epsilon=epsilon) if has_onednn() else _compiled(forward)
    backward = _compiled(backward)

    @tf.custom_gradient
    def norm(x, gamma, beta):
        return forward(x, gamma, beta), lambda dy: backward(x, gamma, dy)

    return lambda *inputs: norm(*map(tf.convert_to_tensor, inputs))  # a variable would be no argument to `custom_gradient`


def _norm_forward(x, gamma, beta, epsilon):
    y = _standardized(ops.cast(x, "float32"), epsilon)[0] * ops.cast(gamma, "float32") + ops.cast(beta, "float32")
    return ops.cast(y, x.dtype)


def _onednn_norm(x, gamma, beta, epsilon):
    """A batch norm with the tokens as channels, as Keras 2 had it: TensorFlow makes oneDNN's layer norm of it, one pass."""
    # That needs ones and zeros that are filled in as the graph runs; TensorFlow would compute them ahead if it knew how many.
    shape, none = tf.shape(x), tf.zeros((0,))
    tokens = tf.compat.v1.placeholder_with_default(tf.reduce_prod(shape[:-1]), ())
    settings = {"scale": tf.ones((tokens,)), "offset": tf.zeros((tokens,)), "mean": none, "variance": none}
    settings |= {"epsilon": epsilon, "data_format": "NCHW", "is_training": True}
    y = tf.raw_ops.FusedBatchNormV3(x=tf.reshape(x, tf.stack([1, tokens, shape[-1], 1])), **settings).y
    return tf.reshape(y, shape) * ops.cast(gamma, x.dtype) + ops.cast(beta, x.dtype)


def _norm_backward(x, gamma, dy, epsilon):
    """Gradients of x, gamma and beta, in float32 inside."""
    rows, d = (ops.cast(ops.reshape(values, (-1, x.shape[-1])), "float32") for values in (x, dy))  # (R, F)
    y, scale = _standardized(rows, epsilon)
    column = ops.transpose(ops.ones_like(rows[:, :1]))  # (1, R)
    dgamma, dbeta = (ops.cast(ops.matmul(column, values)[0], gamma.dtype) for values in (d * y, d))
    d = d * ops.cast(gamma, "float32")
    dx = scale * (d - _means(d) - y * _means(d * y))
    return ops.cast(ops.reshape(dx, ops.shape(x)), x.dtype), dgamma, dbeta


def _standardized(x, epsilon):
    """(x - mean) / deviation of the last axis, and one over the deviation."""
    x = x - _means(x)
    scale = ops.rsqrt(_means(x * x) + epsilon)
    return x * scale, scale


def _means(x):
    """Means of the last axis, (..., F) -> (..., 1): a product, since XLA on a processor takes longer to sum in other ways."""
    return ops.matmul(x, ops.full((x.shape[-1], 1), 1 / x.shape[-1], x.dtype))


def linear(x, kernel, bias, training=False, residual=None):
    """x @ kernel + bias + residual: (R, F), (F, D), (D,) or None, (R, D) or None -> (R, D)."""
    flat = len(x.shape) == 2
    if BACKEND == "torch" and flat and onednn_is_faster(x):
        kernel, bias = ops.convert_to_tensor(kernel), None if bias is None else ops.convert_to_tensor(bias)
        y = (_OneDNNLinear.apply if torch.is_grad_enabled() else _onednn_product)(x, kernel, bias)
        return y if residual is None else residual + y
    if BACKEND == "torch" and flat and bias is not None and not torch.compiler.is_exporting():
        if residual is not None and not torch.is_grad_enabled():
            return torch.add(residual, bias).addmm_(x, kernel)  # the product adds to what is there
        y = torch.addmm(bias, x, kernel)  # the bias costs no pass of its own
        return y if residual is None else residual + y
    y = _linear(x, kernel, bias, flat, training)
    return y if residual is None else residual + y


def _linear(x, kernel, bias, flat, training):
    if flat and training and xla_is_here():
        y = _product()(x, ops.convert_to_tensor(kernel))
    else:
        y = ops.matmul(x, kernel)
    if bias is None:
        return y
    if BACKEND == "tensorflow" and flat:
        bias = tf.convert_to_tensor(bias)
        # TensorFlow makes one operation of product, BiasAdd and GELU; of another addition it would not.
        return _add_bias()(y, bias) if training and fuses_here() else tf.nn.bias_add(y, bias)
    return ops.add(y, bias)


def convolution(layer, x, training=False):
    """What a built Keras layer gives, 3x3 with stride 2 and padding `same`: (B, H, W, C) -> (B, H/2, W/2, D), H and W even.

    Under PyTorch without the copies that Keras makes to have the channels first. While training under JAX on a processor a product
    with the nine pixels of each place side by side: XLA has slow gradients of convolutions there (of bfloat16 the product gains
    nothing, for all the copies before it).
    """
    if BACKEND == "torch" and not torch.compiler.is_exporting():
        kernel, bias = ops.convert_to_tensor(layer.kernel), None if layer.bias is None else ops.convert_to_tensor(layer.bias)
        x = torch.nn.functional.pad(x.permute(0, 3, 1, 2), (0, 1, 0, 1))  # `same` adds only behind
        return torch.nn.functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias, stride=2).permute(0, 2, 3, 1)
    if not (training and xla_is_here() and x.dtype == "float32"):
        return layer(x)
    batch, height, width, _ = x.shape
    padded = jax.numpy.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))  # `same` adds only behind
    pixels = [padded[:, row : row + height : 2, column : column + width : 2] for row in range(3) for column in range(3)]
    rows = jax.numpy.concatenate(pixels, axis=-1).reshape(batch * height * width // 4, -1)
    kernel, bias = ops.convert_to_tensor(layer.kernel), layer.bias
    return linear(rows, kernel.reshape(-1, kernel.shape[-1]), bias, training).reshape(batch, height // 2, width // 2, -1)


def attention(qkv, num_heads, bias=None):
    """Self-attention from fused queries, keys and values: (B, N, 3·h·d) -> (B, N, h·d); None where it is not faster here.

    A `bias` (B, 1, 1, N) is added to the scores.

    Under PyTorch on a processor: the gradients of queries, keys and values are written side by side, where autograd stacks and
    copies them, and its fused kernel has a slower backward pass. Under JAX on a processor in bfloat16: see `_dot`.
    """
    if xla_is_here() and qkv.dtype == "bfloat16" and bias is None:
        return _bfloat16_attention()(qkv, num_heads)
    if BACKEND != "torch" or qkv.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    if torch.is_grad_enabled() and qkv.requires_grad:
        return _PackedAttention.apply(qkv, num_heads) if bias is None else None
    q, k, v = _split(qkv, num_heads)
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return y.transpose(1, 2).flatten(2)


def _split(qkv, num_heads):
    batch, tokens, width = qkv.shape
    qkv = qkv.view(batch, tokens, 3, num_heads, width // (3 * num_heads))
    return qkv.permute(2, 0, 3, 1, 4)  # (3, B, h, N, d)


if BACKEND == "torch":

    class _OneDNNLinear(torch.autograd.Function):
        """x @ kernel + bias, and both gradients, by oneDNN: (R, F), (F, D), (D,) or None -> (R, D)."""

        @staticmethod
        def forward(context, x, kernel, bias):
            context.save_for_backward(x, kernel)
            return _onednn_product(x, kernel, bias)

        @staticmethod
        @torch.autograd.function.once_differentiable  # a second time would silently give nothing: the operation has no gradient
        def backward(context, dy):
            x, kernel = context.saved_tensors
            wanted, (dx, dkernel, dbias) = context.needs_input_grad, (None, None, None)
            if wanted[0]:
                dx = _onednn_product(dy, kernel.T)
            if wanted[1]:  # oneDNN copies the first factor if it is transposed: the smaller one
                swap = x.shape[1] > dy.shape[1]
                dkernel = _onednn_product(dy.T, x).T if swap else _onednn_product(x.T, dy)
            if wanted[2]:
                dbias = dy.sum(0)
            return dx, dkernel, dbias

    def _onednn_product(a, b, bias=None):
        return torch.ops.mkldnn._linear_pointwise(a, b.T, bias, "none", [], "")

    class _PackedAttention(torch.autograd.Function):
        @staticmethod
        def forward(context, qkv, num_heads):
            _, batch, _, tokens, size = (parts := _split(qkv, num_heads)).shape
            parts = parts.reshape(3, batch * num_heads, tokens, size)  # contiguous
            q, k, v = parts
            scores = torch.baddbmm(qkv.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=size**-0.5)
            scores = torch.softmax(scores, -1)  # in float32 inside, here and below
            context.save_for_backward(parts, scores)
            context.num_heads = num_heads
            return torch.bmm(scores, v).view(batch, num_heads, tokens, size).transpose(1, 2).flatten(2)

        @staticmethod
        def backward(context, dy):
            parts, scores = context.saved_tensors
            (q, k, v), num_heads = parts, context.num_heads
            _, pairs, tokens, size = parts.shape
            dy = dy.view(-1, tokens, num_heads, size).transpose(1, 2).reshape(pairs, tokens, size)
            gradients = torch.empty_like(parts)
            torch.bmm(scores.transpose(1, 2), dy, out=gradients[2])
            dscores = torch.bmm(dy, v.transpose(1, 2))
            dscores = torch.ops.aten._softmax_backward_data(dscores, scores, -1, scores.dtype)
            for gradient, a, b in ((gradients[0], dscores, k), (gradients[1], dscores.transpose(1, 2), q)):
                torch.baddbmm(gradient, a, b, beta=0, alpha=size**-0.5, out=gradient)
            gradients = gradients.view(3, -1, num_heads, tokens, size).permute(1, 3, 0, 2, 4)
            return gradients.flatten(2), None


@functools.cache
def _add_bias():
    """Adds a bias whose gradient is a matrix product: TensorFlow's sum over rows takes twice as long on a processor."""

    @tf.custom_gradient
    def add_bias(x, bias):
        def gradient(dy):
            return dy, tf.matmul(tf.ones((1, tf.shape(dy)[0]), dy.dtype), dy)[0]

        return tf.nn.bias_add(x, bias), gradient

    return add_bias


@functools.cache
def _product():
    """x @ kernel whose weight gradient is a product that contracts the last axis of a transposed copy.

    XLA on a processor is a third faster with it than with the product that contracts the first axis of both.
    """

    @jax.custom_vjp
    def product(x, kernel):
        return _dot(x, kernel).astype(x.dtype)

    def forward(x, kernel):
        return product(x, kernel), (x, kernel)

    def backward(kept, dy):
        x, kernel = kept
        swap = x.shape[1] > dy.shape[1]  # the smaller of the two is copied
        gradient = barrier(_dot(_transposed(dy), x)).T if swap else _dot(_transposed(x), dy)
        return _dot(dy, kernel, 1).astype(x.dtype), gradient.astype(kernel.dtype)

    product.defvjp(forward, backward)
    return product


def _dot(a, b, axis=0):
    """Products of the last axis of a with the first (0) or last (1) of b behind the axes that both have: (..., R, F), (..., F, D).

    Of bfloat16 in float32: XLA on a processor has fast products of bfloat16 (AMX, AVX-512) for such a result alone, and for no
    other order of the axes; all others it computes in float32.
    """
    batch = tuple(range(a.ndim - 2))
    axes = ((a.ndim - 1,), (b.ndim - 2 + axis,)), (batch, batch)
    if a.dtype != "bfloat16":
        return jax.lax.dot_general(a, b, axes)
    # Left to itself XLA may lay them out as what takes the result prefers, and then has no product at all ("UNIMPLEMENTED").
    a, b = _row_major(a), _row_major(b)
    return _row_major(jax.lax.dot_general(a, b, axes, preferred_element_type="float32"))


def _row_major(x):
    from jax.experimental.layout import Layout, with_layout_constraint  # what `import jax` does not load

    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _transposed(x):
    """A transposed copy that XLA does not fold into the product that takes it: (R, F) -> (F, R)."""
    if x.dtype != "bfloat16":  # of which a barrier would make float32
        return barrier(x.T)
    half = len(x) // 2
    return jax.numpy.concatenate([x[:half].T, x[half:].T], axis=1)


@functools.cache
def _bfloat16_attention():
    def split(qkv, num_heads):
        return qkv.reshape(*qkv.shape[:2], 3, num_heads, -1).transpose(2, 0, 3, 1, 4)  # (3, B, h, N, d)

    def forward(qkv, num_heads):
        q, k, v = split(qkv, num_heads)
        scores = jax.nn.softmax(q.shape[-1] ** -0.5 * _dot(q, k, 1), axis=-1).astype(qkv.dtype)  # (B, h, N, N)
        y = _dot(scores, v).astype(qkv.dtype)
        return y.transpose(0, 2, 1, 3).reshape(*qkv.shape[:2], -1), (qkv, scores)

    def backward(num_heads, kept, dy):
        qkv, scores = kept
        q, k, v = split(qkv, num_heads)
        batch, _, tokens, size = q.shape
        dy = dy.reshape(batch, tokens, num_heads, size)
        dscores = _dot(dy.transpose(0, 2, 1, 3), v, 1)  # (B, h, N, N)
        weights = scores.astype("float32")
        dscores = weights * (dscores - jax.numpy.sum(weights * dscores, axis=-1, keepdims=True))
        dscores = (size**-0.5 * dscores).astype(qkv.dtype)
        dq = _dot(dscores, k).transpose(0, 2, 1, 3)  # (B, N, h, d)
        dk = _dot(q.transpose(0, 1, 3, 2), dscores).transpose(0, 3, 1, 2)
        dv = _dot(dy.transpose(0, 2, 3, 1), scores).transpose(0, 3, 1, 2)
        return (jax.numpy.stack([dq, dk, dv], axis=2).astype(qkv.dtype).reshape(qkv.shape),)

    attention = jax.custom_vjp(lambda qkv, num_heads: forward(qkv, num_heads)[0], nondiff_argnums=(1,))
    attention.defvjp(forward, backward)
    return attention


def branch_off(x, training=False):
    """x, at the beginning of a residual branch.

    For XLA on a processor alone, which repeats cheap operations to save a pass over memory: it would compute the gradient of x, a
    sum over all branches behind it, once more for every product that wants it transposed.
    """
    return _branch_off()(x) if training and xla_is_here() else x


@functools.cache
def _branch_off():
    @jax.custom_vjp
    def branch_off(x):
        return x

    def backward(_, dy):
        return (dy / (1 + 0 * dy),)  # the same numbers, and a division is not repeated; by one alone it would be taken out

    branch_off.defvjp(lambda x: (x, None), backward)
    return branch_off


def onednn_is_faster(x) -> bool:
    """Whether PyTorch's products of this tensor are better left to oneDNN than to MKL."""
    # torch.compile cannot take a product whose weights change.
    return not torch.compiler.is_compiling() and x.dtype == torch.float32 and x.device.type == "cpu" and mkl_is_slow()


@functools.cache
def mkl_is_slow() -> bool:
    """Whether PyTorch multiplies by MKL on a processor of AMD that has AVX-512, which MKL does not use: twice oneDNN's time."""
    backends = torch.backends
    there = backends.mkl.is_available() and backends.mkldnn.is_available() and backends.cpu.get_cpu_capability() == "AVX512"
    return there and "AuthenticAMD" in processor("vendor_id")


def fuses_here() -> bool:
    """Whether XLA is to be asked for single operations: under TensorFlow where no accelerator compiles the whole step."""
    return BACKEND == "tensorflow" and not tf.config.list_logical_devices("GPU")


@functools.cache
def has_onednn() -> bool:
    """Whether TensorFlow computes with oneDNN here: not on Arm, and not with TF_ENABLE_ONEDNN_OPTS=0."""
    try:
        from tensorflow.python.util._pywrap_util_port import IsMklEnabled  # no public access in TensorFlow 2.21
    except ImportError:
        return False
    return IsMklEnabled()


def xla_is_here() -> bool:
    """Whether XLA compiles the whole step for a processor."""
    return BACKEND == "jax" and jax.default_backend() == "cpu"


def _compiled(function):
    return tf.function(function, jit_compile=True, autograph=False)


@functools.cache
def one_pass(function):
    """A function of tensors with one XLA computation forward and one backward, which computes all it needs again.

    In TensorFlow the graph around it, with its matrix products, stays as it is.
    """

    @_compiled
    def backward(inputs, dy):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = function(*inputs)
        return tape.gradient(y, inputs, dy)

    forward = _compiled(function)

    @tf.custom_gradient
    def call(*inputs):
        return forward(*inputs), lambda dy: backward(inputs, dy)

    return lambda *inputs: call(*map(tf.convert_to_tensor, inputs))  # a variable would be no argument to `custom_gradient`
