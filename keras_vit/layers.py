"""The parts of a Vision Transformer (arXiv 2010.11929) as Keras layers, each usable on its own.

Shapes: B batch, H x W image, C channels, P patch, N tokens, D width, h heads, d = D / h, M hidden size of the MLP.
"""

import math

import keras
import numpy as np
from keras import ops

from keras_vit.config import (
    DATA_FORMATS,
    MLPS,
    POSITIONS,
    PREFIX_POSITIONS,
    as_pair,
    check_choice,
    check_int,
    check_number,
    check_position,
    kept_patches,
)
from keras_vit.kernels import activate, attention, branch_off, convolution, layer_norm, linear, reshape, shape
from keras_vit.merging import merge_tokens

register = keras.saving.register_keras_serializable(package="keras_vit")

# Weights that no optimizer should decay, by variable name: biases, norms and scales, tokens and positions.
NO_DECAY = ("bias", "gamma", "beta", "class_token", "register_tokens", "position", "probe")


class Layer(keras.layers.Layer):
    """A Keras layer whose `get_config` is its constructor's arguments, exactly: those listed in `arguments`."""

    arguments = ()

    def get_config(self):
        return {**super().get_config(), **{name: getattr(self, name) for name in self.arguments}}

    def dense(self, units, name, use_bias=True, kernel_initializer="glorot_uniform"):
        return Dense(units, use_bias=use_bias, kernel_initializer=kernel_initializer, name=name, dtype=self.dtype_policy)

    def norm(self, name, epsilon):
        return LayerNormalization(epsilon=epsilon, name=name, dtype=self.dtype_policy)

    def inner(self, layer, *args, **kwargs):
        """What `layer(...)` gives, for a part of this layer that is built and has its dtype policy.

        Without what Keras does around a call: under PyTorch a tenth of a millisecond, and a block has a dozen parts.
        """
        return layer(*args, **kwargs) if layer.quantization_mode else layer.call(*args, **kwargs)

    def add(self, residual, layer, x, training):
        """`residual` + what a dense layer gives, in one pass where the backend can; without a residual (None) the layer alone."""
        if residual is None or layer.quantization_mode:
            y = self.inner(layer, x, training=training)
            return y if residual is None else residual + y
        return layer.call(x, training=training, residual=residual)

    def drop(self, rate, name, noise_shape=None):
        return keras.layers.Dropout(rate, noise_shape=noise_shape, name=name, dtype=self.dtype_policy)


@register
class Dense(keras.layers.Dense):
    """Keras's dense layer without an activation, through `kernels.linear`."""

    def call(self, x, training=None, residual=None):
        return linear(x, self.kernel, self.bias, training, residual)

    def quantize(self, mode=None, type_check=True, config=None):
        super().quantize(mode, type_check=False, config=config)  # Keras quantises its own class alone unless told so


@register
class LayerNormalization(keras.layers.LayerNormalization):
    """Keras's layer normalisation of the last axis, through `kernels.layer_norm`."""

    def call(self, x, training=None):
        return layer_norm(x, self.gamma, self.beta, self.epsilon, training)


@register
class Patches(Layer):
    """Cuts images into flattened patches: (B, H, W, C) -> (B, N, P*P*C).

    Patches stand in row-major order and each is flattened as (row, column, channel), so that a convolution kernel
    (P, P, C, D) reshapes to the kernel (P*P*C, D) of a dense layer behind this one. Images with the channels first,
    (B, C, H, W), give the same patches.

    Args:
        patch_size: Height and width of a patch in pixels; one number for a square. Must divide the image.
        data_format: `channels_last`, `channels_first` or None for Keras's default.

    Raises:
        ValueError: If the patch size does not divide the image, or the image size is unknown.
    """

    arguments = ("patch_size", "data_format")

    def __init__(self, patch_size, data_format=None, **kwargs):
        super().__init__(**kwargs)
        self.patch_size = as_pair("patch_size", patch_size)
        self.data_format = check_data_format(data_format)

    def build(self, input_shape):
        # Here and not in `call`: JAX and PyTorch try a call with sizes made up for the unknown ones.
        check_image_shape(input_shape)

    def call(self, images):
        images = to_channels_last(images, self.data_format)  # (B, H, W, C)
        height, width, channels = images.shape[1:]
        rows, columns = self.patch_size
        if height % rows or width % columns:
            raise ValueError(f"patch_size: {self.patch_size} must divide the image; received {height} x {width} pixels")
        x = ops.reshape(images, (-1, height // rows, rows, width // columns, columns, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))  # (B, H/P, W/P, P, P, C)
        return ops.reshape(x, (-1, (height // rows) * (width // columns), rows * columns * channels))


@register
class ConvStem(Layer):
    """3x3 convolutions of stride 2 with GELU in the place of large patches: (B, H, W, C) -> (B, N, filters[-1]).

    Follows 'Early Convolutions Help Transformers See Better' (arXiv 2106.14881) without batch normalisation; the 1x1
    convolution at its end is the projection of `PatchEncoder`.

    Args:
        filters: Channels behind each convolution; n of them divide the image's sides by 2^n.
        use_bias: Whether the convolutions have a bias.
        data_format: `channels_last`, `channels_first` or None for Keras's default.

    Raises:
        ValueError: If the image size is unknown, or not a multiple of 2^n.
    """

    arguments = ("filters", "use_bias", "data_format")

    def __init__(self, filters, use_bias=True, data_format=None, **kwargs):
        super().__init__(**kwargs)
        self.filters = tuple(filters)
        self.use_bias = use_bias
        self.data_format = check_data_format(data_format)
        self.convolutions = [
            keras.layers.Conv2D(
                size,
                3,
                strides=2,
                padding="same",
                data_format="channels_last",
                use_bias=use_bias,
                name=f"conv{index}",
                dtype=self.dtype_policy,
            )
            for index, size in enumerate(self.filters)
        ]

    def build(self, input_shape):
        check_image_shape(input_shape)
        batch, *sides = input_shape
        shape = (batch, *sides) if self.data_format == "channels_last" else (batch, *sides[1:], sides[0])
        if any(side % 2 ** len(self.filters) for side in shape[1:3]):
            raise ValueError(
                f"filters: {len(self.filters)} convolutions take an image whose sides are multiples of "
                f"{2 ** len(self.filters)}; received {shape[1]} x {shape[2]} pixels"
            )
        for layer in self.convolutions:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def call(self, images, training=None):
        x = to_channels_last(images, self.data_format)  # (B, H, W, C)
        for layer in self.convolutions:
            x = activate(convolution(layer, x, training), "gelu", training)  # (B, H/2, W/2, filters), and so on
        return ops.reshape(x, (-1, x.shape[1] * x.shape[2], x.shape[3]))


@register
class PatchEncoder(Layer):
    """Embeds patches and adds class token, registers and positions: (B, N', F) -> (B, N, D).

    N = N' + class token + registers, which stand in this order in front of the patches.

    Args:
        width: Size D of a token.
        class_token: Whether a learned class token is prepended.
        registers: Number of register tokens (arXiv 2309.16588).
        position: `learned`, `sincos2d`, `sincos1d` or `none`; see `ViTConfig`.
        prefix_positions: Which prefix tokens have a position of their own: `none`, `class` or `all`.
        grid_size: Rows and columns of patches, for `sincos2d`; None for a square grid.
        dropout: Rate of the dropout of the embedded tokens.
        use_bias: Whether the projection has a bias.
    """

    arguments = (
        "width",
        "class_token",
        "registers",
        "position",
        "prefix_positions",
        "grid_size",
        "dropout",
        "use_bias",
    )

    def __init__(
        self,
        width,
        class_token=True,
        registers=0,
        position="learned",
        prefix_positions="class",
        grid_size=None,
        dropout=0.0,
        use_bias=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_int("width", width, at_least=1)
        check_int("registers", registers, at_least=0)
        check_choice("position", position, POSITIONS)
        check_choice("prefix_positions", prefix_positions, PREFIX_POSITIONS)
        check_position(position, width)
        self.width = width
        self.class_token = class_token
        self.registers = registers
        self.position = position
        self.prefix_positions = prefix_positions
        self.grid_size = None if grid_size is None else as_pair("grid_size", grid_size)
        self.dropout = dropout
        self.use_bias = use_bias
        self.projection = self.dense(width, "projection", use_bias)
        self.embedding_dropout = self.drop(dropout, "dropout")

    @property
    def num_prefix_positions(self):
        """How many prefix tokens have a position of their own."""
        count = {"none": 0, "class": int(self.class_token), "all": self.class_token + self.registers}
        return 0 if self.position in ("none", "sincos2d") else count[self.prefix_positions]

    def build(self, input_shape):
        patches = input_shape[1]
        self.projection.build(input_shape)
        if self.class_token:
            self.class_embedding = self.add_weight(
                shape=(1, 1, self.width), initializer=embedding_initializer(), name="class_token"
            )
        if self.registers:
            self.register_embedding = self.add_weight(
                shape=(1, self.registers, self.width), initializer=embedding_initializer(), name="register_tokens"
            )
        positions = self.num_prefix_positions + patches
        if self.position == "learned":
            self.position_embedding = self.add_weight(
                shape=(1, positions, self.width), initializer=embedding_initializer(), name="position"
            )
        elif self.position == "sincos1d":
            self.position_embedding = sincos1d(positions, self.width)[None]
        elif self.position == "sincos2d":
            side = math.isqrt(patches)
            grid_size = self.grid_size or (side, side)
            if math.prod(grid_size) != patches:
                raise ValueError(f"grid_size: {self.grid_size} does not hold {patches} patches")
            self.position_embedding = sincos2d(*grid_size, self.width)[None]

    def call(self, patches):
        x = self.projection(reshape(patches, (-1, patches.shape[-1])))  # (B*N', D): two-dimensional as in `Attention`
        x = reshape(x, (-1, patches.shape[1], self.width))  # (B, N', D)
        prefix = []
        if self.class_token:
            prefix.append(ops.cast(self.class_embedding, x.dtype))
        if self.registers:
            prefix.append(ops.cast(self.register_embedding, x.dtype))
        prefix = ops.concatenate(prefix, axis=1) if prefix else None  # (1, class token + registers, D)
        if self.position != "none":
            position = ops.cast(ops.convert_to_tensor(self.position_embedding), x.dtype)
            split = self.num_prefix_positions
            x = x + position[:, split:]
            if split:
                placed = prefix[:, :split] + position[:, :split]
                prefix = ops.concatenate([placed, prefix[:, split:]], axis=1)
        if prefix is not None:
            prefix = ops.broadcast_to(prefix, (ops.shape(x)[0], prefix.shape[1], self.width))
            x = ops.concatenate([prefix, x], axis=1)  # (B, N, D)
        return self.embedding_dropout(x)


@register
class PatchDropout(Layer):
    """Leaves out patch tokens at random while training, others for each image: (B, N, D) -> (B, K, D) (arXiv 2208.07220).

    K is the prefix and the patches that are left, at least one. Without training all N tokens pass.

    Args:
        rate: Share of the patches that is left out, 0 to below 1.
        num_prefix_tokens: Class token and registers in front of the patches, which all pass.
    """

    arguments = ("rate", "num_prefix_tokens")

    def __init__(self, rate, num_prefix_tokens=0, **kwargs):
        super().__init__(**kwargs)
        check_number("rate", rate, at_least=0, below=1)
        check_int("num_prefix_tokens", num_prefix_tokens, at_least=0)
        self.rate = rate
        self.num_prefix_tokens = num_prefix_tokens
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, x, training=None):
        if not training or not self.rate:
            return x
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        kept = kept_patches(patches.shape[1], self.rate)
        noise = keras.random.uniform((ops.shape(patches)[0], patches.shape[1]), seed=self.seed_generator)
        _, order = ops.top_k(noise, kept, sorted=False)  # (B, kept)
        first = patches.shape[1] * ops.arange(shape(patches)[0], dtype=order.dtype)  # row of each image's first patch, (B,)
        patches = ops.take(reshape(patches, (-1, patches.shape[2])), first[:, None] + order, axis=0)  # whole rows
        return ops.concatenate([prefix, patches], axis=1) if self.num_prefix_tokens else patches


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


@register
class Pooling(Layer):
    """The class token, the mean of the patch tokens, or both side by side: (B, N, D) -> (B, D) or (B, 2D).

    Args:
        kind: `cls` (one token), `gap` (the mean of all but the first `num_prefix_tokens`) or `cls_gap`.
        num_prefix_tokens: Class token and registers in front of the patches.
        token: Which token `cls` takes: 0 is the class token, 1 the first register.
    """

    arguments = ("kind", "num_prefix_tokens", "token")

    def __init__(self, kind, num_prefix_tokens=0, token=0, **kwargs):
        super().__init__(**kwargs)
        check_choice("kind", kind, ("cls", "gap", "cls_gap"))
        check_int("token", token, at_least=0)
        self.supports_masking = True
        self.kind = kind
        self.num_prefix_tokens = num_prefix_tokens
        self.token = token

    def compute_mask(self, x, previous_mask=None):
        return None  # tokens end here

    def call(self, x, mask=None, sizes=None):
        """Pools tokens (B, N, D); a `mask` (B, N) is True for those that count towards the mean, `sizes` (B, N, 1) how much."""
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
    """One learned query attends to all tokens, an MLP follows: (B, N, D) -> (B, D).

    The 'MAP head' of 'Scaling Vision Transformers' (arXiv 2106.04560), section 3.1: with y the attention's output,
    y + mlp(norm(y)).

    Args:
        width: Size D of a token.
        num_heads: Number of attention heads; divides `width`.
        mlp_dim: Size of the MLP's hidden layer.
        mlp: `gelu`, `gelu_tanh`, `gelu_quick` or `swiglu`.
        norm_epsilon: Epsilon of the layer normalisation.
        qkv_bias: Whether query, keys and values have a bias.
        use_bias: Whether the other dense layers have a bias.
    """

    arguments = ("width", "num_heads", "mlp_dim", "mlp", "norm_epsilon", "qkv_bias", "use_bias")

    def __init__(self, width, num_heads, mlp_dim, mlp="gelu", norm_epsilon=1e-6, qkv_bias=True, use_bias=True, **kwargs):
        super().__init__(**kwargs)
        check_heads(width, num_heads)
        self.supports_masking = True
        self.width = width
        self.num_heads = num_heads
        self.mlp_dim = mlp_dim
        self.mlp = mlp
        self.norm_epsilon = norm_epsilon
        self.qkv_bias = qkv_bias
        self.use_bias = use_bias
        self.query = self.dense(width, "query", qkv_bias)
        self.key_value = self.dense(2 * width, "key_value", qkv_bias, split_glorot_uniform(2))
        self.projection = self.dense(width, "projection", use_bias)
        self.mlp_norm = self.norm("norm", norm_epsilon)
        self.feed_forward = MLP(width, mlp_dim, mlp, use_bias=use_bias, name="mlp", dtype=self.dtype_policy)

    def build(self, input_shape):
        self.probe = self.add_weight(shape=(1, self.width), initializer="glorot_uniform", name="probe")
        for layer in (self.query, self.key_value, self.projection, self.mlp_norm, self.feed_forward):
            layer.build((None, self.width))

    def compute_mask(self, x, previous_mask=None):
        return None  # tokens end here

    def call(self, x, mask=None, training=None, sizes=None):
        """Pools tokens (B, N, D); a `mask` (B, N) is True for those to attend to, `sizes` as in `Attention.call`."""
        tokens, head_dim = ops.shape(x)[1], self.width // self.num_heads
        q = self.inner(self.query, ops.cast(self.probe, x.dtype), training=training)
        q = ops.reshape(q, (1, self.num_heads, 1, head_dim))
        q = ops.broadcast_to(q, (ops.shape(x)[0], self.num_heads, 1, head_dim))  # (B, h, 1, d)
        kv = self.inner(self.key_value, ops.reshape(x, (-1, x.shape[2])), training=training)  # (B*N, 2D)
        kv = ops.reshape(kv, (-1, tokens, 2, self.num_heads, head_dim))
        k, v = ops.unstack(ops.transpose(kv, (2, 0, 3, 1, 4)), 2)  # each (B, h, N, d)
        bias = None if sizes is None else ops.expand_dims(ops.transpose(ops.log(sizes), (0, 2, 1)), 1)  # (B, 1, 1, N)
        y, _ = attend(q, k, v, mask, bias=bias)  # (B, h, 1, d)
        y = self.inner(self.projection, ops.reshape(y, (-1, self.width)), training=training)  # (B, D)
        return y + self.inner(self.feed_forward, self.inner(self.mlp_norm, y, training=training), training=training)


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


def sincos2d(rows: int, columns: int, width: int, temperature: float = 10_000.0) -> np.ndarray:
    """Fixed 2-D positions (rows * columns, D): sine and cosine of x, then of y, a quarter of the width each.

    Source: MoCo v3 (arXiv 2104.02057) in the order of 'Better plain ViT baselines' (arXiv 2205.01580).
    """
    y, x = np.mgrid[:rows, :columns]
    omega = temperature ** -(np.arange(width // 4) / max(width // 4 - 1, 1))
    x, y = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype("float32")


def sincos1d(length: int, width: int, temperature: float = 10_000.0) -> np.ndarray:
    """Fixed 1-D positions (length, D), sine in even and cosine in odd channels (arXiv 1706.03762, section 3.5)."""
    angle = np.arange(length)[:, None] * temperature ** -(np.arange(0, width, 2) / width)
    return np.stack([np.sin(angle), np.cos(angle)], axis=2).reshape(length, width).astype("float32")


def embedding_initializer():
    """Initial tokens and positions: normal with standard deviation 0.02, as in the paper's code."""
    return keras.initializers.RandomNormal(stddev=0.02)


def split_glorot_uniform(parts):
    """Glorot's uniform initialisation for `parts` square kernels side by side: the fused (D, 3D) starts as three would.

    With `parts` kernels the mean fan of the fused one is (1 + parts) / 2 times as large; the scale makes up for it.
    """
    return keras.initializers.VarianceScaling(scale=(1 + parts) / 2, mode="fan_avg", distribution="uniform")


def check_data_format(data_format):
    data_format = data_format or keras.config.image_data_format()
    check_choice("data_format", data_format, DATA_FORMATS)
    return data_format


def check_image_shape(shape):
    if len(shape) != 4 or None in shape[1:]:
        raise ValueError(f"images: received shape {tuple(shape)}; allowed: 4 axes, all but the batch known")


def to_channels_last(images, data_format):
    """Images of either format as (B, H, W, C)."""
    return images if data_format == "channels_last" else ops.transpose(images, (0, 2, 3, 1))


def check_heads(width, num_heads):
    check_int("width", width, at_least=1)
    check_int("num_heads", num_heads, at_least=1)
    if width % num_heads:
        raise ValueError(f"num_heads: received {num_heads}, which does not divide width {width}")
