"""Multi-head self-attention.

Shapes: B batch, N tokens, D width, h heads, d = D / h.
"""

import keras
from keras import ops

from keras_vit.checks import check_int
from keras_vit.kernels.ops import attention, reshape, shape
from keras_vit.model.layers import Layer, register


@register
class Attention(Layer):
    """Multi-head self-attention with one fused projection: (B, N, D) -> (B, N, D).

    Takes the backend's fused kernel where it has one and neither scores nor dropout of the scores are wanted.

    Args:
        width: Size D of a token.
        num_heads: Number of heads h; divides `width`.
        attention_dropout: Dropout rate of the attention weights.
        qk_norm: Whether queries and keys are layer-normalised per head (arXiv 2302.05442).
        norm_epsilon: Epsilon of those norms.
        qkv_bias: Whether queries, keys and values have a bias.
        use_bias: Whether the output projection has a bias.
    """

    arguments = ("width", "num_heads", "attention_dropout", "qk_norm", "norm_epsilon", "qkv_bias", "use_bias")

    def __init__(
        self,
        width,
        num_heads,
        attention_dropout=0.0,
        qk_norm=False,
        norm_epsilon=1e-6,
        qkv_bias=True,
        use_bias=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_heads(width, num_heads)
        self.supports_masking = True
        self.width = width
        self.num_heads = num_heads
        self.attention_dropout = attention_dropout
        self.qk_norm = qk_norm
        self.norm_epsilon = norm_epsilon
        self.qkv_bias = qkv_bias
        self.use_bias = use_bias
        self.qkv = self.dense(3 * width, "qkv", qkv_bias, split_glorot_uniform(3))
        self.projection = self.dense(width, "projection", use_bias)
        self.scores_dropout = self.drop(attention_dropout, "dropout")
        if qk_norm:
            self.q_norm = self.norm("q_norm", norm_epsilon)
            self.k_norm = self.norm("k_norm", norm_epsilon)

    def build(self, input_shape):
        self.qkv.build((None, input_shape[-1]))
        self.projection.build((None, self.width))
        if self.qk_norm:
            head_shape = (None, None, None, self.width // self.num_heads)
            self.q_norm.build(head_shape)
            self.k_norm.build(head_shape)

    def call(self, x, mask=None, training=None, return_attention_scores=False, sizes=None, return_keys=False, residual=None):
        """Attends from every token to every token.

        Args:
            x: Tokens (B, N, D).
            mask: True for the keys to attend to, (B, N), or for each query and key, (B, N, N).
            training: Whether dropout is active.
            return_attention_scores: Whether to return the attention weights (B, h, N, N), rows summing to 1, too.
            sizes: How many patches each token stands for, (B, N, 1): that many keys it counts as (arXiv 2210.09461). None = one.
            return_keys: Whether to return the mean of the keys over the heads (B, N, d) last, too.
            residual: Added to the tokens that are returned, (B, N, D).
        """
        residual = None if residual is None else reshape(residual, (-1, self.width))
        tokens, head_dim = shape(x)[1], self.width // self.num_heads
        # Two-dimensional products: XLA is up to half as fast again with them as with three-dimensional ones.
        qkv = self.inner(self.qkv, reshape(x, (-1, x.shape[2])), training=training)  # (B*N, 3D)
        dropout = self.scores_dropout if training and self.attention_dropout else None
        bias = None if sizes is None else ops.expand_dims(ops.transpose(ops.log(sizes), (0, 2, 1)), 1)  # (B, 1, 1, N)
        plain = mask is None and dropout is None and not (self.qk_norm or return_attention_scores)
        y = attention(reshape(qkv, (-1, tokens, 3 * self.width)), self.num_heads, bias) if plain else None
        qkv = reshape(qkv, (-1, tokens, 3, self.num_heads, head_dim))
        keys = (ops.mean(qkv[:, :, 1], axis=2),) if return_keys else ()
        if y is not None:
            y = self.add(residual, self.projection, reshape(y, (-1, self.width)), training)
            y = reshape(y, (-1, tokens, self.width))
            return (y, *keys) if keys else y
        q, k, v = ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)), 3)  # each (B, h, N, d)
        if self.qk_norm:
            q, k = (self.inner(norm, x, training=training) for norm, x in ((self.q_norm, q), (self.k_norm, k)))
        y, scores = attend(q, k, v, mask, dropout, return_attention_scores, bias)  # (B, h, N, d)
        y = reshape(ops.transpose(y, (0, 2, 1, 3)), (-1, self.width))  # (B*N, D)
        y = reshape(self.add(residual, self.projection, y, training), (-1, tokens, self.width))
        more = (scores, *keys) if return_attention_scores else keys
        return (y, *more) if more else y


def attend(q, k, v, mask=None, dropout=None, return_scores=False, bias=None):
    """Scaled dot-product attention: q (B, h, Q, d), k and v (B, h, N, d) -> (B, h, Q, d), scores (B, h, Q, N) or None.

    Args:
        mask: True for the keys to attend to: (B, N), or (B, Q, N).
        dropout: A layer for the attention weights; None = no dropout.
        return_scores: Whether the attention weights are returned.
        bias: Added to the scores before the softmax, (B, 1, 1, N).
    """
    scale = q.shape[-1] ** -0.5
    if mask is not None:
        mask = ops.expand_dims(ops.cast(mask, "bool"), (1, 2) if len(mask.shape) == 2 else 1)  # (B, 1, 1 or Q, N)
    if dropout is None and bias is None and not return_scores and has_fused_attention(q):
        q, k, v = (ops.transpose(x, (0, 2, 1, 3)) for x in (q, k, v))  # views; (B, N, h, d) is what Keras takes
        y = ops.dot_product_attention(q, k, v, mask=mask, scale=scale)
        return ops.transpose(y, (0, 2, 1, 3)), None
    scores = ops.matmul(q * ops.cast(scale, q.dtype), ops.transpose(k, (0, 1, 3, 2)))  # (B, h, Q, N)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = ops.where(mask, scores, ops.cast(-3e4, scores.dtype))  # finite in float16 too
    scores = ops.cast(ops.softmax(ops.cast(scores, "float32"), axis=-1), q.dtype)
    y = ops.matmul(scores if dropout is None else dropout(scores, training=True), v)
    return y, scores if return_scores else None


def has_fused_attention(x) -> bool:
    """Whether the backend's fused attention is the fast path for a tensor: under PyTorch and JAX on an accelerator.

    On a CPU the backward pass of PyTorch's fused kernel takes longer than all else in a block of a small image.
    """
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_backend() == "gpu"  # on a TPU Keras 3.15 takes a kernel that is causal unless there is a mask
    return keras.backend.backend() == "torch" and x.device.type != "cpu"


def split_glorot_uniform(parts):
    """Glorot's uniform initialisation for `parts` square kernels side by side: the fused (D, 3D) starts as three would.

    With `parts` kernels the mean fan of the fused one is (1 + parts) / 2 times as large; the scale makes up for it.
    """
    return keras.initializers.VarianceScaling(scale=(1 + parts) / 2, mode="fan_avg", distribution="uniform")


def check_heads(width, num_heads):
    check_int("width", width, at_least=1)
    check_int("num_heads", num_heads, at_least=1)
    if width % num_heads:
        raise ValueError(f"num_heads: received {num_heads}, which does not divide width {width}")
