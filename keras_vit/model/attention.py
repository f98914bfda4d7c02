"""Multi-head self-attention.

Shapes: B batch, N tokens, D width, h heads, d = D / h.
"""

import keras
from keras import ops

from keras_vit.kernels.ops import attend, attention_weights, join_heads, reshape, rotate, self_attention, shape, split_heads
from keras_vit.model.layers import Layer, register
from keras_vit.model.limits import check_heads


@register
class Attention(Layer):
    """Multi-head self-attention with one fused projection: (B, N, D) -> (B, N, D).

    Attributes:
        tap: A function through which the attention weights (B, h, N, N) go, to see or change them; None = there is none, and the
            fastest kernel is taken, which may have no weights. Not saved.

    Args:
        width: Size D of a token.
        num_heads: Number of heads h; divides `width`.
        attention_dropout: Dropout rate of the attention weights.
        qk_norm: Whether queries and keys are layer-normalised per head (arXiv 2302.05442).
        norm_epsilon: Epsilon of the norms of queries and keys.
        qkv_bias: Whether queries, keys and values have a bias.
        use_bias: Whether the output projection has a bias.
        key_bias: Whether the keys have a bias too, where `qkv_bias` is True.
        attention_norm: Whether the heads' output is layer-normalised before the projection ('sub-LN', arXiv 2210.06423).
        rms_norm: Whether the norms are root-mean-square norms (arXiv 1910.07467).
    """

    def __init__(
        self,
        width,
        num_heads,
        attention_dropout=0.0,
        qk_norm=False,
        norm_epsilon=1e-6,
        qkv_bias=True,
        use_bias=True,
        key_bias=True,
        attention_norm=False,
        rms_norm=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_heads(width, num_heads)
        self.keep(locals())
        self.supports_masking = True
        self.tap = None
        self.partial_bias = qkv_bias and not key_bias
        self.qkv = self.dense(3 * width, "qkv", qkv_bias and key_bias, split_glorot_uniform(3))
        self.projection = self.dense(width, "projection", use_bias)
        self.scores_dropout = self.drop(attention_dropout, "dropout")
        if qk_norm:
            self.q_norm = self.norm("q_norm")
            self.k_norm = self.norm("k_norm")
        if attention_norm:
            self.output_norm = self.norm("norm")

    def build(self, input_shape):
        self.qkv.build((None, input_shape[-1]))
        self.projection.build((None, self.width))
        if self.qk_norm:
            head_shape = (None, None, None, self.width // self.num_heads)
            self.q_norm.build(head_shape)
            self.k_norm.build(head_shape)
        if self.attention_norm:
            self.output_norm.build((None, self.width))
        if self.partial_bias:
            self.query_bias = self.add_weight(shape=(self.width,), initializer="zeros", name="query_bias")
            self.value_bias = self.add_weight(shape=(self.width,), initializer="zeros", name="value_bias")

    def call(self, x, mask=None, training=None, sizes=None, residual=None, rotary=None):
        """Attends from every token to every token.

        Args:
            x: Tokens (B, N, D).
            mask: True for the keys to attend to, (B, N), or for each query and key, (B, N, N).
            training: Whether dropout is active.
            sizes: Each token counts as this many keys (arXiv 2210.09461), (B, N, 1); None = one.
            residual: Added to the result, (B, N, D); None = nothing.
            rotary: Cosines and sines of the tokens' angles, (B, N, d), from `RotaryPositions`; None = not rotated.
        """
        residual = None if residual is None else reshape(residual, (-1, self.width))  # (B·N, D)
        return self.mix(self.project(x, training), shape(x)[1], mask, training, sizes, residual, rotary)

    def project(self, x, training=None):
        """Queries, keys and values side by side: (B, N, D) -> (B·N, 3D)."""
        # Two-dimensional matmuls: in XLA faster than three-dimensional ones.
        y = self.inner(self.qkv, reshape(x, (-1, x.shape[2])), training=training)
        if self.partial_bias:
            q, v = (ops.cast(bias, y.dtype) for bias in (self.query_bias, self.value_bias))
            y = y + ops.concatenate([q, ops.zeros_like(q), v])
        return y

    def mix(self, qkv, tokens, mask=None, training=None, sizes=None, residual=None, rotary=None):
        """The second half of `call`, after `project`: (B·N, 3D) -> (B, N, D). `tokens` is N, `residual` (B·N, D)."""
        dropout = self.tap or (self.scores_dropout if training and self.attention_dropout else None)
        if mask is None and dropout is None and rotary is None and not self.qk_norm:
            y = self_attention(qkv, tokens, self.num_heads, key_bias(sizes))  # (B·N, D)
        else:
            y = join_heads(attend(*self.split(qkv, tokens, training, rotary), mask, key_bias(sizes), dropout))
        y = self.inner(self.output_norm, y, training=training) if self.attention_norm else y
        y = self.inner_sum(residual, self.projection, y, training)
        return reshape(y, (-1, tokens, self.width))

    def split(self, qkv, tokens, training=None, rotary=None):
        """Queries, keys and values that `mix` compares: (B·N, 3D) -> three of (B, h, N, d)."""
        q, k, v = split_heads(qkv, tokens, self.num_heads)
        if self.qk_norm:
            q, k = self.inner(self.q_norm, q, training=training), self.inner(self.k_norm, k, training=training)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        return q, k, v

    def scores(self, x, mask=None, sizes=None, rotary=None):
        """The attention weights that `call` gives tokens (B, N, D): (B, h, N, N), rows summing to 1."""
        q, k, _ = self.split(self.project(x), shape(x)[1], rotary=rotary)
        return attention_weights(q, k, mask, key_bias(sizes))

    def keys(self, qkv, tokens):
        """The mean of the keys over the heads, before any norm: (B·N, 3D) of `project` -> (B, N, d)."""
        head_dim = self.width // self.num_heads
        return ops.mean(reshape(qkv, (-1, tokens, 3, self.num_heads, head_dim))[:, :, 1], axis=2)


def key_bias(sizes):
    """Bias of the scores that makes each key count `sizes` times: (B, N, 1) -> (B, 1, 1, N); None for None."""
    return None if sizes is None else ops.expand_dims(ops.transpose(ops.log(sizes), (0, 2, 1)), 1)


def split_glorot_uniform(parts):
    """Glorot-uniform initialiser of `parts` square kernels side by side: a fused kernel (D, 3D) starts as three kernels would.

    The fused kernel's mean fan is (1 + parts) / 2 times a single kernel's; the scale compensates.
    """
    return keras.initializers.VarianceScaling(scale=(1 + parts) / 2, mode="fan_avg", distribution="uniform")
