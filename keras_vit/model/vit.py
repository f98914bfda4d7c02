"""The Vision Transformer of a `ViTConfig` as a functional Keras model."""

import dataclasses

import keras

from keras_vit.model.block import TransformerBlock
from keras_vit.model.config import ViTConfig
from keras_vit.model.embed import ConvStem, PatchDropout, PatchEncoder, Patches
from keras_vit.model.layers import LayerNormalization, register
from keras_vit.model.pool import AttentionPooling, Pooling
from keras_vit.private.keras import flatten_layers


@register
class ViT(keras.Model):
    """A functional model (B, H, W, C) -> logits (B, num_classes), or features (B, D) if `num_classes` is 0.

    Its layers, by name: `stem` (B, N', F), `encoder` (B, N, D), `patch_dropout`, `pre_norm`, `block_0` ... `block_{depth-1}`
    (B, N, D), `norm`, `pool` (B, D), `pre_logits`, `head`, and `pool_dist`, `head_dist` and `average` of a distilled model; those
    that the configuration has. `features` gives the output of any.

    Attributes:
        config: The `ViTConfig` it was built from.
    """

    def __init__(self, config, name="vit", dtype=None):
        if not isinstance(config, ViTConfig):
            raise ValueError(f"config: received {type(config).__name__}; allowed: a ViTConfig")
        policies = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        dtype = getattr(policies, "default_policy", policies)
        common = {"qkv_bias": config.qkv_bias, "use_bias": config.use_bias, "norm_epsilon": config.norm_epsilon}
        images = keras.Input(config.image_shape, name="images")  # (B, H, W, C)
        if config.stem == "conv":
            stem = ConvStem(config.stem_widths, config.use_bias, config.data_format, name="stem", dtype=dtype)
        else:
            stem = Patches(config.patch_size, config.data_format, name="stem", dtype=dtype)
        x = PatchEncoder(
            config.width,
            class_token=config.has_class_token,
            registers=config.registers,
            position=config.position,
            prefix_positions=config.prefix_positions,
            grid_size=config.grid_size,
            dropout=config.dropout,
            use_bias=config.use_bias and not config.pre_norm,
            name="encoder",
            dtype=dtype,
        )(stem(images))  # (B, N, D)
        if config.patch_dropout:
            prefix = config.has_class_token + config.registers
            x = PatchDropout(config.patch_dropout, prefix, name="patch_dropout", dtype=dtype)(x)
        norms = {"epsilon": config.norm_epsilon, "dtype": dtype}
        if config.pre_norm:
            x = LayerNormalization(name="pre_norm", **norms)(x)
        sizes = None
        for index, (drop_path, merged) in enumerate(zip(config.drop_path_rates, config.merged_tokens, strict=True)):
            block = TransformerBlock(
                config.width,
                config.num_heads,
                config.mlp_dim,
                mlp=config.mlp,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                drop_path=drop_path,
                layer_scale=config.layer_scale,
                qk_norm=config.qk_norm,
                merge_tokens=merged,
                num_prefix_tokens=config.has_class_token + config.registers,
                name=f"block_{index}",
                dtype=dtype,
                **common,
            )
            x = block(x) if sizes is None else block(x, sizes=sizes)
            x, sizes = x if merged else (x, sizes)
        norm = LayerNormalization(name="norm", **norms)
        prefix = config.has_class_token + config.registers
        if config.pool == "map":
            pool = AttentionPooling(
                config.width, config.num_heads, config.mlp_dim, mlp=config.mlp, name="pool", dtype=dtype, **common
            )
        else:
            pool = Pooling(config.pool, prefix, name="pool", dtype=dtype)
        tokens = x if config.norm_after_pool else norm(x)  # (B, N, D)
        x = pool(tokens) if sizes is None else pool(tokens, sizes=sizes)  # (B, D)
        x = norm(x) if config.norm_after_pool else x
        if config.pre_logits_dim:
            x = keras.layers.Dense(config.pre_logits_dim, activation="tanh", name="pre_logits", dtype=dtype)(x)
        if config.num_classes:
            x = make_head(config, "head")(x)
        if config.distillation:
            y = Pooling("cls", prefix, token=1, name="pool_dist", dtype=dtype)(tokens)
            y = make_head(config, "head_dist")(y) if config.num_classes else y
            x = keras.layers.Average(name="average", dtype=x.dtype)([x, y])
        super().__init__(inputs=images, outputs=x, name=name)
        self.config = config
        self.dtype_policy = dtype
        if policies is not dtype:  # a map of the layers that are quantised; Keras cannot save a layer that is given the map itself
            special = dict(policies.items())
            for layer in [layer for layer in flatten_layers(self) if layer.path in special]:
                layer.dtype_policy = special[layer.path]

    def get_config(self):
        quantized = [layer for layer in flatten_layers(self) if getattr(layer, "quantization_mode", None)]
        policy = self.dtype_policy
        if quantized:
            policy = keras.dtype_policies.DTypePolicyMap(policy, {layer.path: layer.dtype_policy for layer in quantized})
        return {"config": self.config.to_dict(), "name": self.name, "dtype": keras.dtype_policies.serialize(policy)}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**{**config, "config": ViTConfig(**config["config"])})


def make_head(config, name):
    # The paper's zero-initialised head; logits in float32 whatever the policy, for a stable softmax.
    return keras.layers.Dense(config.num_classes, kernel_initializer="zeros", name=name, dtype="float32")


def build_vit(config: ViTConfig, name: str = "vit", dtype: str | keras.DTypePolicy | None = None, remat: bool = False) -> ViT:
    """A Vision Transformer: a functional model from images (B, H, W, C) to logits (B, num_classes).

    Args:
        config: A `ViTConfig`; `num_classes=0` gives the pooled features (B, D) instead of logits.
        name: Name of the model.
        dtype: Keras dtype policy, such as `mixed_bfloat16`; None = the global one. Logits are always float32.
        remat: Whether training computes the inside of each block twice instead of keeping it; see `TransformerBlock`. Not saved
            with the model.

    Returns:
        A `ViT`, which is a functional `keras.Model`; `model.config == config`.

    Source: 'An image is worth 16x16 words' (arXiv 2010.11929), section 3.1.
    """
    model = ViT(config, name=name, dtype=dtype)
    for index in range(config.depth):
        model.get_layer(f"block_{index}").remat = remat
    return model


def merging_model(model: ViT, count: int) -> ViT:
    """A copy of a model in which each block merges `count` tokens (`ViTConfig.merge_tokens`); 0 merges none."""
    copy = ViT(dataclasses.replace(model.config, merge_tokens=count), name=model.name, dtype=model.dtype_policy)
    copy.set_weights(model.get_weights())
    return copy


def features(model: ViT, names: str | list[str]) -> keras.Model:
    """A model that gives the named intermediates of a `ViT`, sharing its weights.

    Args:
        model: A `ViT`.
        names: One name or a list: a layer of the model (`encoder`, `block_3`, `norm`, `pool`, `pre_logits`, `head`),
            or `block_3/attention` for that block's attention weights (B, h, N, N).

    Returns:
        A functional model from images to a dictionary of the named tensors. It is a view of `model`: save that one.

    Raises:
        ValueError: For a name that the model does not have, listing those it has.
    """
    names = [names] if isinstance(names, str) else list(names)
    known = [layer.name for layer in model.layers[1:]]
    known += [f"{name}/attention" for name in known if name.startswith("block_")]
    outputs = {}
    for name in names:
        if name not in known:
            raise ValueError(f"names: received {name!r}; allowed: {', '.join(known)}")
        layer_name, _, attention = name.partition("/")
        layer = model.get_layer(layer_name)
        scores = AttentionScores(layer, name=f"{layer_name}_attention") if attention else None
        # A block that merges tokens has their sizes beside them.
        outputs[name] = scores(*keras.tree.flatten(layer.input)) if attention else keras.tree.flatten(layer.output)[0]
    return keras.Model(model.input, outputs, name=f"{model.name}_features")


class AttentionScores(keras.layers.Layer):
    """The attention weights (B, h, N, N) of a block for the tokens (B, N, D) that it gets; has no weights of its own.

    Keras counts a layer's outputs once, at its first call, so that the block itself cannot be called again for more.
    """

    def __init__(self, block, **kwargs):
        super().__init__(dtype=block.dtype_policy, **kwargs)
        self.block = block

    def call(self, x, sizes=None):
        return self.block(x, return_attention_scores=True, sizes=sizes)[1]
