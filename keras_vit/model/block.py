"""The pre-norm transformer block.

Shapes: B batch, N tokens, D width, M hidden size of the MLP.
"""

import keras
from keras import ops

from keras_vit.checks import check_choice, check_int
from keras_vit.kernels.ops import activate, branch_off, reshape, shape
from keras_vit.model.attention import Attention
from keras_vit.model.config import MLPS
from keras_vit.model.layers import Layer, register
from keras_vit.model.merging import merge_tokens


@register
class MLP(Layer):
    """Two dense layers with an activation between them: (..., D) -> (..., D).

    Args:
        width: Size D of a token.
        hidden_dim: Size M of the hidden layer.
        kind: `gelu` (exact), `gelu_tanh` (approximation), `gelu_quick` (x sigmoid(1.702 x)) or `swiglu`, silu(x1) * x2 (arXiv
            2002.05202).
        dropout: Dropout rate behind the activation.
        use_bias: Whether the dense layers have a bias.
    """

    arguments = ("width", "hidden_dim", "kind", "dropout", "use_bias")

    def __init__(self, width, hidden_dim, kind="gelu", dropout=0.0, use_bias=True, **kwargs):
        super().__init__(**kwargs)
        check_int("hidden_dim", hidden_dim, at_least=1)
        check_choice("kind", kind, MLPS)
        self.width = width
        self.hidden_dim = hidden_dim
        self.kind = kind
        self.dropout = dropout
        self.use_bias = use_bias
        self.fc1 = self.dense(hidden_dim * (2 if kind == "swiglu" else 1), "fc1", use_bias)
        self.fc2 = self.dense(width, "fc2", use_bias)
        self.hidden_dropout = self.drop(dropout, "dropout")

    def build(self, input_shape):
        self.fc1.build((None, input_shape[-1]))
        self.fc2.build((None, self.hidden_dim))

    def call(self, x, training=None, residual=None):
        """Transforms tokens (..., D); a `residual` of the same shape is added."""
        y = self.inner(self.fc1, reshape(x, (-1, x.shape[-1])), training=training)  # (B*N, M), twice as wide if gated
        y = self.inner(self.hidden_dropout, activate(y, self.kind, training), training=training)
        residual = None if residual is None else reshape(residual, (-1, self.width))
        y = self.add(residual, self.fc2, y, training)  # (B*N, D)
        return reshape(y, (-1, *shape(x)[1:-1], self.width))


@register
class LayerScale(Layer):
    """Multiplies each channel with a learned factor (arXiv 2103.17239): (..., D) -> (..., D)."""

    arguments = ("initial_value",)

    def __init__(self, initial_value, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.initial_value = initial_value

    def build(self, input_shape):
        initializer = keras.initializers.Constant(self.initial_value)
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer=initializer, name="gamma")

    def call(self, x):
        return x * ops.cast(self.gamma, x.dtype)


@register
class TransformerBlock(Layer):
    """A pre-norm transformer block: (B, N, D) -> (B, N, D).

        x = x + drop_path(ls1(attn(norm1(x))))
        x = x + drop_path(ls2(mlp(norm2(x))))

    With `merge_tokens`, that many tokens are merged between the two lines, and the block returns (B, N - merge_tokens, D) and the
    tokens' sizes (B, N - merge_tokens, 1).

    Attributes:
        remat: Whether the backward pass computes what is inside the two branches again instead of keeping it (gradient
            checkpointing, arXiv 1604.06174): the same numbers in less memory and more time. Not saved; needs `dropout` and
            `attention_dropout` of 0.

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
        merge_tokens: Patch tokens that are merged into the most similar ones (`keras_vit.merging`); at most half of them.
        num_prefix_tokens: Class token and registers in front, which are not merged.
    """

    arguments = (
        "width",
        "num_heads",
        "mlp_dim",
        "mlp",
        "dropout",
        "attention_dropout",
        "drop_path",
        "layer_scale",
        "qk_norm",
        "norm_epsilon",
        "qkv_bias",
        "use_bias",
        "merge_tokens",
        "num_prefix_tokens",
    )

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
        merge_tokens=0,
        num_prefix_tokens=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_int("merge_tokens", merge_tokens, at_least=0)
        check_int("num_prefix_tokens", num_prefix_tokens, at_least=0)
        self.supports_masking = True
        self.merge_tokens = merge_tokens
        self.num_prefix_tokens = num_prefix_tokens
        self.remat = False
        self.width = width
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.mlp = mlp
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.drop_path = drop_path
        self.layer_scale = layer_scale
        self.qk_norm = qk_norm
        self.norm_epsilon = norm_epsilon
        self.qkv_bias = qkv_bias
        self.use_bias = use_bias
        self.norm1 = self.norm("norm1", norm_epsilon)
        self.attention = Attention(
            width,
            num_heads,
            attention_dropout=attention_dropout,
            qk_norm=qk_norm,
            norm_epsilon=norm_epsilon,
            qkv_bias=qkv_bias,
            use_bias=use_bias,
            name="attention",
            dtype=self.dtype_policy,
        )
        self.norm2 = self.norm("norm2", norm_epsilon)
        self.feed_forward = MLP(width, mlp_dim, mlp, dropout, use_bias, name="mlp", dtype=self.dtype_policy)
        self.scale1 = LayerScale(layer_scale, name="scale1", dtype=self.dtype_policy) if layer_scale else None
        self.scale2 = LayerScale(layer_scale, name="scale2", dtype=self.dtype_policy) if layer_scale else None
        self.dropout1 = self.drop(dropout, "dropout1")
        self.dropout2 = self.drop(dropout, "dropout2")
        self.drop_path1 = self.drop(drop_path, "drop_path1", noise_shape=(None, 1, 1))
        self.drop_path2 = self.drop(drop_path, "drop_path2", noise_shape=(None, 1, 1))

    def build(self, input_shape):
        if input_shape[-1] != self.width:
            raise ValueError(f"width: the block has {self.width}; received tokens of shape {tuple(input_shape)}")
        patches = None if input_shape[1] is None else input_shape[1] - self.num_prefix_tokens
        if patches is not None and 2 * self.merge_tokens > patches:
            raise ValueError(f"merge_tokens: received {self.merge_tokens}; allowed: half of the {patches} patch tokens at most")
        for layer in (self.norm1, self.attention, self.norm2, self.feed_forward, self.scale1, self.scale2):
            if layer is not None:
                layer.build(input_shape)

    def call(self, x, mask=None, training=None, return_attention_scores=False, sizes=None):
        """Transforms tokens (B, N, D); `mask`, `return_attention_scores` (not while merging) and `sizes` as in `Attention.call`."""
        merging = bool(self.merge_tokens) and not return_attention_scores
        if merging and mask is not None:
            raise ValueError("mask: received one; a block that merges tokens takes none")

        # Nothing between the branches' last products and the residual connections: they are one.
        direct = self.scale1 is None and not (training and (self.dropout or self.drop_path))

        def attend(x):
            x = branch_off(x, training)
            y, residual = self.inner(self.norm1, x, training=training), x if direct else None
            return self.inner(self.attention, y, mask, training, return_attention_scores, sizes, merging, residual)

        def feed_forward(x):
            x = branch_off(x, training)
            y, residual = self.inner(self.norm2, x, training=training), x if direct else None
            return self.inner(self.feed_forward, y, training=training, residual=residual)

        if self.remat and training:
            attend, feed_forward = keras.remat(attend), keras.remat(feed_forward)
        y = attend(x)
        y, more = y if merging or return_attention_scores else (y, None)
        x = y if direct else x + self.residual(y, self.dropout1, self.scale1, self.drop_path1, training)
        if merging:
            x, sizes = merge_tokens(x, sizes, more, self.merge_tokens, self.num_prefix_tokens)
        y = feed_forward(x)
        x = y if direct else x + self.residual(y, self.dropout2, self.scale2, self.drop_path2, training)
        if return_attention_scores:
            return x, more
        return (x, sizes) if merging else x

    def compute_output_spec(self, x, mask=None, training=None, return_attention_scores=False, sizes=None):
        if return_attention_scores:
            return super().compute_output_spec(x, mask, training, return_attention_scores, sizes)
        # Keras would run the block once for this, which takes longer than all else in building a model.
        batch, tokens, width = x.shape
        tokens = tokens and tokens - self.merge_tokens
        y = keras.KerasTensor((batch, tokens, width), dtype=self.compute_dtype)
        return (y, keras.KerasTensor((batch, tokens, 1), dtype=self.compute_dtype)) if self.merge_tokens else y

    def residual(self, y, dropout, scale, drop_path, training):
        y = self.inner(dropout, y, training=training)
        return self.inner(drop_path, y if scale is None else self.inner(scale, y), training=training)
