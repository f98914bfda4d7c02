"""From images to tokens: patches or a convolutional stem, projection, prefix tokens, positions, patch dropout.

Shapes: B batch, H x W image, C channels, P patch, N tokens, D width.
"""

import math

import keras
import numpy as np
from keras import ops

from keras_vit.checks import as_pair, check_choice
from keras_vit.kernels.ops import activate, convolution, reshape, shape
from keras_vit.model.config import DATA_FORMATS, PREFIX_POSITIONS
from keras_vit.model.counts import kept_patches
from keras_vit.model.layers import Layer, own_seeds, register
from keras_vit.model.limits import check_position, count_prefix_positions


@register
class Patches(Layer):
    """Cuts images into flattened patches: (B, H, W, C) -> (B, N, P*P*C).

    Patches are in row-major order, each flattened as (row, column, channel). A convolution kernel (P, P, C, D) thus reshapes to
    the kernel (P*P*C, D) of a dense layer after the patches. Channels-first images (B, C, H, W) give the same patches.

    Args:
        patch_size: Height and width of a patch in pixels; one number for a square. Must divide the image.
        data_format: `channels_last`, `channels_first` or None for Keras's default.

    Raises:
        ValueError: If the patch size does not divide the image, or the image size is unknown.
    """

    def __init__(self, patch_size, data_format=None, **kwargs):
        super().__init__(**kwargs)
        patch_size = as_pair("patch_size", patch_size)
        data_format = check_data_format(data_format)
        self.keep(locals())

    def build(self, input_shape):
        # Not in `call`, which JAX and PyTorch try with made-up sizes in place of unknown ones.
        check_image_shape(input_shape)

    def call(self, images):
        images = to_channels_last(images, self.data_format)  # (B, H, W, C)
        height, width, channels = images.shape[1:]
        rows, columns = self.patch_size
        if height % rows or width % columns:
            raise ValueError(f"patch_size: received {self.patch_size}; allowed: divisors of the image, {height} x {width} pixels")
        x = ops.reshape(images, (-1, height // rows, rows, width // columns, columns, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))  # (B, H/P, W/P, P, P, C)
        return ops.reshape(x, (-1, (height // rows) * (width // columns), rows * columns * channels))


@register
class ConvStem(Layer):
    """3x3 convolutions of stride 2 with GELU instead of large patches: (B, H, W, C) -> (B, N, filters[-1]).

    Follows 'Early Convolutions Help Transformers See Better' (arXiv 2106.14881) without batch normalisation; the 1x1
    convolution at its end is the projection of `PatchEncoder`.

    Args:
        filters: Channels after each convolution; n convolutions divide the image's sides by 2^n.
        stem_depth: Number of `ConvBlock`s after each convolution.
        use_bias: Whether the convolutions have a bias.
        norm_epsilon: Epsilon of the blocks' norms.
        rms_norm: Whether they are root-mean-square norms.
        data_format: `channels_last`, `channels_first` or None for Keras's default.

    Raises:
        ValueError: If the image size is unknown, or not a multiple of 2^n.
    """

    def __init__(self, filters, stem_depth=0, use_bias=True, norm_epsilon=1e-6, rms_norm=False, data_format=None, **kwargs):
        super().__init__(**kwargs)
        filters = tuple(filters)
        data_format = check_data_format(data_format)
        self.keep(locals())
        self.convolutions = [convolution_3x3(self, size, f"conv{index}", strides=2) for index, size in enumerate(filters)]
        self.blocks = [
            [ConvBlock.of(self, width=size, name=f"block{index}_{number}", dtype=self.dtype_policy) for number in range(stem_depth)]
            for index, size in enumerate(filters)
        ]

    def build(self, input_shape):
        check_image_shape(input_shape)
        batch, *sides = input_shape
        shape = (batch, *sides) if self.data_format == "channels_last" else (batch, *sides[1:], sides[0])
        if any(side % 2 ** len(self.filters) for side in shape[1:3]):
            raise ValueError(
                f"images: received {shape[1]} x {shape[2]} pixels; "
                f"allowed: multiples of {2 ** len(self.filters)}, for {len(self.filters)} convolutions"
            )
        for layer, blocks in zip(self.convolutions, self.blocks, strict=True):
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
            for block in blocks:
                block.build(shape)

    def call(self, images, training=None):
        x = to_channels_last(images, self.data_format)  # (B, H, W, C)
        for layer, blocks in zip(self.convolutions, self.blocks, strict=True):
            x = convolution(layer, x, training)  # (B, H/2, W/2, filters), and so on
            x = activate(x, "gelu", training) if not blocks else x
            for block in blocks:
                x = block(x, training=training)
        return ops.reshape(x, (-1, x.shape[1] * x.shape[2], x.shape[3]))


@register
class ConvBlock(Layer):
    """A residual block of two 3x3 convolutions, pre-norm as a transformer block: (B, H, W, F) -> (B, H, W, F).

        x = x + conv2(gelu(conv1(norm(x))))

    Args:
        width: Channels F.
        use_bias: Whether the convolutions have a bias.
        norm_epsilon: Epsilon of the norm.
        rms_norm: Whether it is a root-mean-square norm.
    """

    def __init__(self, width, use_bias=True, norm_epsilon=1e-6, rms_norm=False, **kwargs):
        super().__init__(**kwargs)
        self.keep(locals())
        self.pre_norm = self.norm("norm")
        self.conv1, self.conv2 = (convolution_3x3(self, width, name) for name in ("conv1", "conv2"))

    def build(self, input_shape):
        for layer in (self.pre_norm, self.conv1, self.conv2):
            layer.build(input_shape)

    def call(self, x, training=None):
        y = convolution(self.conv1, self.inner(self.pre_norm, x, training=training), training)
        return x + convolution(self.conv2, activate(y, "gelu", training), training)


def convolution_3x3(source, filters, name, strides=1):
    """A convolution of a layer's type, with its `use_bias`."""
    settings = {"strides": strides, "padding": "same", "data_format": "channels_last", "use_bias": source.use_bias}
    return keras.layers.Conv2D(filters, 3, **settings, name=name, dtype=source.dtype_policy)


@register
class PatchEncoder(Layer):
    """Embeds patches and adds class token, registers and positions: (B, N', F) -> (B, N, D).

    N = N' + class token + registers. The order is class token, registers, patches.

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
        check_choice("prefix_positions", prefix_positions, PREFIX_POSITIONS)
        check_position(position, width)
        grid_size = None if grid_size is None else as_pair("grid_size", grid_size)
        self.keep(locals())
        self.num_prefix_positions = count_prefix_positions(position, prefix_positions, class_token, registers)
        self.projection = self.dense(width, "projection", use_bias)
        self.embedding_dropout = self.drop(dropout, "dropout")

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
                raise ValueError(f"grid_size: received {self.grid_size}; allowed: rows and columns of {patches} patches")
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
    """Drops patch tokens at random in training, redrawn per image and step: (B, N, D) -> (B, K, D) (arXiv 2208.07220).

    K counts the prefix tokens and the kept patches (at least one). Outside training all N tokens are kept. Given the rotary
    positions (B, N, d) too, returns those of the kept tokens as well.

    Args:
        rate: Fraction of the patches that is dropped, 0 to below 1.
        num_prefix_tokens: Number of class token and registers before the patches; these are always kept.
    """

    def __init__(self, rate, num_prefix_tokens=0, **kwargs):
        super().__init__(**kwargs)
        self.keep(locals())
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, x, rotary=None, training=None):
        given = (x,) if rotary is None else (x, rotary)
        if training and self.rate:
            patches = x.shape[1] - self.num_prefix_tokens
            noise = keras.random.uniform((ops.shape(x)[0], patches), seed=own_seeds(self.seed_generator))
            _, order = ops.top_k(noise, kept_patches(patches, self.rate), sorted=False)  # (B, kept)
            given = tuple(take_patches(values, order, self.num_prefix_tokens) for values in given)
        return given[0] if rotary is None else given


def take_patches(x, order, num_prefix_tokens):
    """The prefix tokens and those patches whose indices are `order`: (B, N, F), (B, kept) -> (B, K, F)."""
    prefix, patches = x[:, :num_prefix_tokens], x[:, num_prefix_tokens:]
    first = patches.shape[1] * ops.arange(shape(patches)[0], dtype=order.dtype)  # row of each image's first patch, (B,)
    patches = ops.take(reshape(patches, (-1, patches.shape[2])), first[:, None] + order, axis=0)  # whole rows
    return ops.concatenate([prefix, patches], axis=1) if num_prefix_tokens else patches


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
