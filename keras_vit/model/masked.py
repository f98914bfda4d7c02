"""A masked autoencoder around the layers of a `ViT` (MAE, arXiv 2111.06377).

Shapes: B batch, H x W image, C channels, N patches, K visible ones, p prefix tokens, D width, E width of the decoder,
F = P·P·C values of a patch.
"""

import keras
from keras import ops

from keras_vit.kernels.ops import reshape
from keras_vit.model.block import TransformerBlock
from keras_vit.model.counts import kept_patches
from keras_vit.model.embed import embedding_initializer, sincos2d, take_patches
from keras_vit.model.layers import Layer, register
from keras_vit.model.vit import ViT

EPSILON = 1e-6  # of the decoder's norms


@register
class VisiblePatches(Layer):
    """Keeps the prefix tokens and the visible patches: (B, p + N, D), orders (B, N) -> (B, p + K, D).

    Args:
        count: K, the patches that come first in the order.
        num_prefix_tokens: p.
    """

    def __init__(self, count, num_prefix_tokens=0, **kwargs):
        super().__init__(**kwargs)
        self.keep(locals())

    def call(self, x, orders):
        return take_patches(x, orders[:, : self.count], self.num_prefix_tokens)


@register
class Decoder(Layer):
    """Paints the hidden patches: tokens (B, p + K, D) of the visible ones, orders (B, N) -> (B, N - K, F), in float32.

    A learned token stands for each hidden patch. All get fixed 2-D positions. As attention does not depend on the order of tokens,
    they stay in that of `orders`: visible, then hidden.

    Args:
        grid_size: Rows and columns of patches.
        outputs: F.
        width: E, a multiple of 4.
        depth: Number of blocks.
        num_heads: Attention heads; divides `width`.
        num_prefix_tokens: p.
    """

    def __init__(self, grid_size, outputs, width, depth, num_heads, num_prefix_tokens=0, **kwargs):
        super().__init__(**kwargs)
        grid_size = tuple(grid_size)
        self.keep(locals())
        self.table = sincos2d(*grid_size, width)  # (N, E)
        self.embed = self.dense(width, "embed")
        settings = {"mlp_dim": 2 * width, "norm_epsilon": EPSILON, "dtype": self.dtype_policy}
        self.blocks = [TransformerBlock.of(self, **settings, name=f"block_{index}") for index in range(depth)]
        self.last_norm = keras.layers.LayerNormalization(epsilon=EPSILON, name="norm", dtype=self.dtype_policy)
        self.head = keras.layers.Dense(outputs, name="head", dtype="float32")

    def build(self, x_shape, orders_shape):
        self.embed.build(x_shape)
        self.mask_token = self.add_weight(shape=(1, 1, self.width), initializer=embedding_initializer(), name="mask_token")
        tokens = (None, self.num_prefix_tokens + len(self.table), self.width)
        for layer in (*self.blocks, self.last_norm, self.head):
            layer.build(tokens)

    def call(self, x, orders, training=None):
        visible, prefix = x.shape[1] - self.num_prefix_tokens, self.num_prefix_tokens
        x = reshape(self.embed.call(reshape(x, (-1, x.shape[2]))), (-1, x.shape[1], self.width))  # (B, p + K, E)
        positions = ops.take(ops.cast(ops.convert_to_tensor(self.table), x.dtype), orders, axis=0)  # (B, N, E)
        hidden = ops.cast(self.mask_token, x.dtype) + positions[:, visible:]  # (B, N - K, E)
        x = ops.concatenate([x[:, :prefix], x[:, prefix:] + positions[:, :visible], hidden], axis=1)  # (B, p + N, E)
        for block in self.blocks:
            x = block.call(x, training=training)
        return self.head(ops.cast(self.last_norm(x[:, prefix + visible :]), "float32"))  # (B, N - K, F)

    def compute_output_shape(self, x_shape, orders_shape):
        hidden = len(self.table) - (x_shape[1] - self.num_prefix_tokens)
        return (x_shape[0], hidden, self.outputs)


class MaskedAutoencoder(keras.Model):
    """A functional model: images (B, H, W, C) without their hidden patches, orders (B, N) -> the hidden patches (B, N - K, F).

    It shares the layers of a `ViT` up to its last norm. The blocks see the prefix tokens and the visible patches alone. What a
    stem of convolutions sees beyond a visible patch must be hidden in the images, as `keras_vit.data.masking.Masking` does.

    Args:
        encoder: The `ViT`, without a head. Its pooling stays as it is.
        mask_ratio: Share of the patches that is hidden.
        width, depth, num_heads: Of the `Decoder`.

    Attributes:
        config: The encoder's `ViTConfig`.
    """

    def __init__(self, encoder: ViT, mask_ratio: float, width: int, depth: int, num_heads: int, name: str = "autoencoder"):
        config, dtype = encoder.config, encoder.dtype_policy
        layers = {layer.name: layer for layer in encoder.layers}
        images = keras.Input(config.image_shape, name="images")
        orders = keras.Input((config.num_patches,), dtype="int32", name="orders")
        kept = kept_patches(config.num_patches, mask_ratio)
        visible = VisiblePatches(kept, config.num_prefix_tokens, name="visible", dtype=dtype)
        x = layers["encoder"](layers["stem"](images))  # (B, p + N, D)
        rotary = visible(layers["rotary"](x), orders) if "rotary" in layers else None  # (B, p + K, d)
        x = visible(x, orders)  # (B, p + K, D)
        x = layers["pre_norm"](x) if config.pre_norm else x
        for index in range(config.depth):
            x = layers[f"block_{index}"](x, rotary=rotary)
        if config.final_norm and not config.norm_after_pool:
            x = layers["norm"](x)
        outputs = config.patch_size[0] * config.patch_size[1] * config.channels
        shape = {"width": width, "depth": depth, "num_heads": num_heads}
        decoder = Decoder.of(config, **shape, outputs=outputs, name="decoder", dtype=dtype)
        super().__init__(inputs=[images, orders], outputs=decoder(x, orders), name=name)
        self.config = config
