"""The pre-norm transformer block.

Shapes: B batch, N tokens, D width.
"""

import keras

from keras_vit.model.attention import Attention
from keras_vit.model.layers import Layer, LayerScale, register
from keras_vit.model.mlp import MLP


@register
class TransformerBlock(Layer):
    """A pre-norm transformer block: (B, N, D) -> (B, N, D).

        x = x + drop_path(scale1(attention(norm1(x))))
        x = x + drop_path(scale2(mlp(norm2(x))))

    Attributes:
        remat: Whether the backward pass recomputes the inside of the two branches instead of storing it (gradient checkpointing,
            arXiv 1604.06174): same numbers, less memory, more time. Not saved; needs `dropout` and `attention_dropout` of 0.

    Args:
        width: Size D of a token.
        num_heads: Number of attention heads; divides `width`.
        mlp_dim: Size of the MLP's hidden layer.
        mlp: `gelu`, `gelu_tanh`, `gelu_quick` or `swiglu`.
        dropout: Dropout rate of the attention's output and of the MLP.
        attention_dropout: Dropout rate of the attention weights.
        drop_path: Rate at which an example skips a residual branch (arXiv 1603.09382).
        layer_scale: Initial value of the scale of each branch; 0 = none.
        qk_norm: Whether queries and keys are layer-normalised per head.
        norm_epsilon: Epsilon of the layer normalisations.
        qkv_bias: Whether queries, keys and values have a bias.
        use_bias: Whether the other dense layers have a bias.
        key_bias: Whether the keys have a bias too, where `qkv_bias` is True.
        attention_norm: Whether the attention's output is layer-normalised before its projection.
        mlp_norm: Whether the MLP's hidden layer is layer-normalised before its projection.
        rms_norm: Whether the norms are root-mean-square norms (arXiv 1910.07467).
    """

    one_branch = False  # whether attention and MLP share norm, scale and sum

    def __init__(
        self,
        width,
        num_heads,
        mlp_dim,
        mlp="gelu",
        dropout=0.0,
        attention_dropout=0.0,
        drop_path=0.0,
        layer_scale=0.0,
        qk_norm=False,
        norm_epsilon=1e-6,
        qkv_bias=True,
        use_bias=True,
        key_bias=True,
        attention_norm=False,
        mlp_norm=False,
        rms_norm=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.keep(locals())
        self.supports_masking = True
        self.remat = False
        self.norm1 = self.norm("norm1")
        self.attention = Attention.of(self, name="attention", dtype=self.dtype_policy)
        self.feed_forward = MLP.of(self, name="mlp", dtype=self.dtype_policy)
        self.scale1 = LayerScale(layer_scale, name="scale1", dtype=self.dtype_policy) if layer_scale else None
        self.dropout1 = self.drop(dropout, "dropout1")
        self.drop_path1 = self.drop(drop_path, "drop_path1", noise_shape=(None, 1, 1))
        if not self.one_branch:
            self.norm2 = self.norm("norm2")
            self.scale2 = LayerScale(layer_scale, name="scale2", dtype=self.dtype_policy) if layer_scale else None
            self.dropout2 = self.drop(dropout, "dropout2")
            self.drop_path2 = self.drop(drop_path, "drop_path2", noise_shape=(None, 1, 1))

    def build(self, input_shape):
        if input_shape[-1] != self.width:
            raise ValueError(f"width: received tokens of shape {tuple(input_shape)}; allowed: (B, N, {self.width})")
        second = () if self.one_branch else (self.norm2, self.scale2)
        for layer in (self.norm1, self.attention, self.feed_forward, self.scale1, *second):
            if layer is not None:
                layer.build(input_shape)

    def call(self, x, mask=None, training=None, rotary=None):
        """Transforms tokens (B, N, D); `mask` and `rotary` as in `Attention.call`."""
        x = self.add_attention(x, x, training, mask=mask, rotary=rotary)
        return self.add_mlp(x, x, training)

    def add_attention(self, total, x, training, **arguments):
        """total + drop_path(scale1(attention(norm1(x))))."""
        y = self.branch(total, x, self.norm1, self.attention.call, training, **arguments)  # attention(norm1(x))
        return self.add(total, y, self.dropout1, self.scale1, self.drop_path1, training)  # total + drop_path(scale1(y))

    def add_mlp(self, total, x, training):
        """total + drop_path(scale2(mlp(norm2(x))))."""
        y = self.branch(total, x, self.norm2, self.feed_forward.call, training)  # mlp(norm2(x))
        return self.add(total, y, self.dropout2, self.scale2, self.drop_path2, training)  # total + drop_path(scale2(y))

    def branch(self, total, x, norm, function, training, **arguments):
        """function(norm(x)). If the block is `direct`, `function` also adds `total`, in its last matmul."""

        def compute(total, x):
            y = self.inner(norm, x, training=training)
            return function(y, training=training, residual=total if self.direct(training) else None, **arguments)

        return keras.remat(compute)(total, x) if self.remat and training else compute(total, x)

    def add(self, x, y, dropout, scale, drop_path, training):
        """x + drop_path(scale(dropout(y))) for the result y of `branch`; y itself if it already includes x."""
        if self.direct(training):
            return y
        y = self.inner(dropout, y, training=training)
        y = y if scale is None else self.inner(scale, y)
        return x + self.inner(drop_path, y, training=training)

    def direct(self, training) -> bool:
        """Whether no scale, dropout or stochastic depth stands between the last matmul of a branch and the sum."""
        return self.scale1 is None and not (training and (self.dropout or self.drop_path))

    def scores(self, x, mask=None, sizes=None, rotary=None):
        """The attention weights (B, h, N, N) for the tokens (B, N, D) that the block takes; arguments as in `Attention.call`."""
        return self.attention.scores(self.inner(self.norm1, x), mask, sizes, rotary)

    def compute_output_spec(self, x, mask=None, training=None, rotary=None):
        # Without this method Keras runs the block once, the slowest part of building a model.
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype)
