"""From tokens to one vector an image.

Shapes: B batch, N tokens, D width, h heads, d = D / h.
"""

from keras import ops

from keras_vit.checks import check_choice
from keras_vit.kernels.ops import attend, reshape, shape, split_heads
from keras_vit.model.attention import key_bias, split_glorot_uniform
from keras_vit.model.layers import Layer, register
from keras_vit.model.limits import check_heads
from keras_vit.model.mlp import MLP


@register
class Pooling(Layer):
    """The class token, the mean of the patch tokens, or both side by side: (B, N, D) -> (B, D) or (B, 2D).

    Args:
        kind: `cls` (one token), `gap` (the mean of all but the first `num_prefix_tokens`) or `cls_gap`.
        num_prefix_tokens: Class token and registers before the patches.
        token: Which token `cls` takes: 0 is the class token, 1 the first register.
    """

    def __init__(self, kind, num_prefix_tokens=0, token=0, **kwargs):
        super().__init__(**kwargs)
        check_choice("kind", kind, ("cls", "gap", "cls_gap"))
        self.keep(locals())
        self.supports_masking = True

    def compute_mask(self, x, previous_mask=None):
        return None  # tokens end here

    def call(self, x, mask=None, sizes=None):
        """Pools tokens (B, N, D). The mean counts tokens whose `mask` (B, N) is True, or weights them by `sizes` (B, N, 1)."""
        if self.kind == "cls":
            return x[:, self.token]
        if sizes is None and mask is not None:
            sizes = ops.expand_dims(ops.cast(mask, x.dtype), -1)
        mean = self.mean(x, sizes)
        return mean if self.kind == "gap" else ops.concatenate([x[:, self.token], mean], axis=-1)

    def mean(self, x, sizes):
        x = x[:, self.num_prefix_tokens :]
        if sizes is None:
            return ops.mean(x, axis=1)
        weights = sizes[:, self.num_prefix_tokens :]  # (B, N, 1)
        return ops.sum(x * weights, axis=1) / ops.maximum(ops.sum(weights, axis=1), 1)


@register
class AttentionPooling(Layer):
    """One learned query attends to the tokens, an MLP follows: (B, N, D) -> (B, D).

    The 'MAP head' of 'Scaling Vision Transformers' (arXiv 2106.04560), section 3.1: y + mlp(norm(y)), where y is the attention's
    output.

    Attributes:
        tap: A function through which the attention weights (B, h, 1, N) go, as `Attention.tap`.

    Args:
        width: Size D of a token.
        num_heads: Number of attention heads; divides `width`.
        mlp_dim: Size of the MLP's hidden layer.
        mlp: `gelu`, `gelu_tanh`, `gelu_quick` or `swiglu`.
        norm_epsilon: Epsilon of the layer normalisation.
        qkv_bias: Whether query, keys and values have a bias.
        use_bias: Whether the other dense layers have a bias.
        skipped: How many tokens at the front are left out.
        rms_norm: Whether the norm is a root-mean-square norm (arXiv 1910.07467).
    """

    def __init__(
        self,
        width,
        num_heads,
        mlp_dim,
        mlp="gelu",
        norm_epsilon=1e-6,
        qkv_bias=True,
        use_bias=True,
        skipped=0,
        rms_norm=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_heads(width, num_heads)
        self.keep(locals())
        self.supports_masking = True
        self.tap = None
        self.query = self.dense(width, "query", qkv_bias)
        self.key_value = self.dense(2 * width, "key_value", qkv_bias, split_glorot_uniform(2))
        self.projection = self.dense(width, "projection", use_bias)
        self.output_norm = self.norm("norm")
        self.feed_forward = MLP.of(self, name="mlp", dtype=self.dtype_policy)

    def build(self, input_shape):
        self.probe = self.add_weight(shape=(1, self.width), initializer="glorot_uniform", name="probe")
        for layer in (self.query, self.key_value, self.projection, self.output_norm, self.feed_forward):
            layer.build((None, self.width))

    def compute_mask(self, x, previous_mask=None):
        return None  # tokens end here

    def call(self, x, mask=None, training=None, sizes=None):
        """Pools tokens (B, N, D); `mask` (B, N) is True for tokens to attend to, `sizes` as in `Attention.call`."""
        if self.skipped:
            x = x[:, self.skipped :]
            mask, sizes = (values if values is None else values[:, self.skipped :] for values in (mask, sizes))
        head_dim = self.width // self.num_heads
        q = self.inner(self.query, ops.cast(self.probe, x.dtype), training=training)
        q = reshape(q, (1, self.num_heads, 1, head_dim))
        q = ops.broadcast_to(q, (shape(x)[0], self.num_heads, 1, head_dim))  # (B, h, 1, d)
        kv = self.inner(self.key_value, reshape(x, (-1, x.shape[2])), training=training)  # (B·N, 2D)
        k, v = split_heads(kv, shape(x)[1], self.num_heads, parts=2)  # each (B, h, N, d)
        y = reshape(attend(q, k, v, mask, key_bias(sizes), self.tap), (-1, self.width))  # (B, D)
        y = self.inner(self.projection, y, training=training)
        return y + self.inner(self.feed_forward, self.inner(self.output_norm, y, training=training), training=training)
