"""The Vision Transformer of a `ViTConfig` as a functional Keras model.

Shapes: B batch, H x W image, C channels, N' patches, N tokens, F features of a patch, D width,
d size of a head.
"""

import dataclasses

import keras

from keras_vit.kernels.ops import portable
from keras_vit.machine import tune
from keras_vit.model.config import ViTConfig
from keras_vit.model.embed import ConvStem, PatchDropout, PatchEncoder, Patches
from keras_vit.model.layers import make_norm, register
from keras_vit.model.merging import MergingBlock
from keras_vit.model.parallel import BLOCKS
from keras_vit.model.pool import AttentionPooling, Pooling
from keras_vit.model.rotary import RotaryPositions
from keras_vit.private.keras import flatten_layers


@register
class ViT(keras.Model):
    """A functional model (B, H, W, C) -> logits (B, num_classes), or features (B, D) if `num_classes` is 0.

    Its layers, by name: `stem` (B, N', F), `encoder` (B, N, D), `rotary` (B, N, d), `patch_dropout`, `pre_norm`, `block_0` ...
    `block_{depth-1}` (B, N, D), `norm`, `pool` (B, D), `pre_logits`, `head`, and in a distilled model `pool_dist`, `head_dist` and
    `average`. A model has only the layers that its configuration needs. `features` returns the output of any layer.

    Args:
        config: The `ViTConfig`.
        name: Name of the model.
        dtype: Keras dtype policy; None = the global one.
        frozen: Names of layers whose weights are not trained.
        separate_heads: Whether a distilled model returns the logits of both heads side by side, (B, 2 num_classes), instead of
            their mean, for a training in which each head has targets of its own. Not saved with the model, whose output is the
            mean. Without the distillation token it has no effect.
    """

    def __init__(self, config, name="vit", dtype=None, frozen=(), separate_heads=False):
        if not isinstance(config, ViTConfig):
            raise ValueError(f"config: received {type(config).__name__}; allowed: a ViTConfig")
        policies = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        dtype = getattr(policies, "default_policy", policies)
        images = keras.Input(config.image_shape, name="images")  # (B, H, W, C)
        x, rotary = embed(config, images, dtype)  # (B, N, D); (B, N, d) if positions are rotary
        x, sizes = transform(config, x, rotary, dtype)  # (B, N, D); (B, N, 1) if tokens are merged
        outputs = classify(config, x, sizes, dtype, separate_heads)  # (B, num_classes)
        super().__init__(inputs=images, outputs=outputs, name=name)
        self.config = config
        self.separate_heads = separate_heads
        self.dtype_policy = dtype
        if policies is not dtype:  # a map, for quantised layers; Keras cannot save a layer that got the map itself
            special = dict(policies.items())
            for layer in [layer for layer in flatten_layers(self) if layer.path in special]:
                layer.dtype_policy = special[layer.path]
        for weight in [weight for name in frozen for weight in self.get_layer(name).weights]:
            weight.trainable = False

    @property
    def has_adapters(self) -> bool:
        """Whether a layer has adapters of LoRA. Keras saves such a model with its adapters merged."""
        return any(getattr(layer, "lora_enabled", False) for layer in flatten_layers(self))

    def export(self, filepath, format="tf_saved_model", verbose=None, input_signature=None, **kwargs):
        """Keras's own export, of a model that has not been called yet too. It verifies nothing; `keras_vit.export_model` does."""
        if input_signature is None:
            input_signature = [keras.InputSpec(shape=(None, *self.config.image_shape), dtype="float32", name="images")]
        with portable():
            super().export(filepath, format, verbose=verbose, input_signature=input_signature, **kwargs)

    def get_config(self):
        quantized = [layer for layer in flatten_layers(self) if getattr(layer, "quantization_mode", None)]
        policy = self.dtype_policy
        if quantized:
            policy = keras.dtype_policies.DTypePolicyMap(policy, {layer.path: layer.dtype_policy for layer in quantized})
        frozen = [layer.name for layer in self.layers if layer.weights and not layer.trainable_weights]
        return {
            "config": self.config.to_dict(),
            "name": self.name,
            "dtype": keras.dtype_policies.serialize(policy),
            "frozen": [] if self.has_adapters else frozen,
        }

    def save(self, filepath, overwrite=True, zipped=None, **kwargs):
        # Keras's old format drops the optimizer's state and then the optimizer itself from every later file of the model.
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(f"filepath: received {str(filepath)!r}; allowed: a name that ends in .keras")
        super().save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)

    def get_compile_config(self):
        # Merged adapters are no longer what the optimizer's state is for.
        return {} if self.has_adapters else super().get_compile_config()

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**{**config, "config": ViTConfig(**config["config"])})


def embed(config, images, dtype):
    """Images (B, H, W, C) to tokens (B, N, D), and their rotary positions (B, N, d), None if there are none."""
    if config.stem == "conv":
        stem = ConvStem.of(config, filters=config.stem_widths, name="stem", dtype=dtype)
    else:
        stem = Patches.of(config, name="stem", dtype=dtype)
    encoder = PatchEncoder.of(
        config,
        class_token=config.has_class_token,
        use_bias=config.use_bias and not config.pre_norm,
        name="encoder",
        dtype=dtype,
    )
    x = encoder(stem(images))  # (B, N, D)
    rotary = RotaryPositions.of(config, name="rotary", dtype=dtype)(x) if config.rotary != "none" else None
    if config.patch_dropout:
        drop = PatchDropout.of(config, rate=config.patch_dropout, name="patch_dropout", dtype=dtype)
        x, rotary = (drop(x), None) if rotary is None else drop(x, rotary)
    if config.pre_norm:
        x = make_norm(config, "pre_norm", dtype)(x)
    return x, rotary


def transform(config, x, rotary, dtype):
    """Runs tokens (B, N, D) through the blocks; returns tokens and sizes (B, N, 1), None if no tokens are merged."""
    sizes = None
    for index, (drop_path, merged) in enumerate(zip(config.drop_path_rates, config.merged_tokens, strict=True)):
        settings = {"drop_path": drop_path, "name": f"block_{index}", "dtype": dtype}
        if config.merge_tokens:
            x, sizes = MergingBlock.of(config, merge_tokens=merged, **settings)(x, sizes)
        else:
            x = BLOCKS[config.block].of(config, **settings)(x, rotary=rotary)
    return x, sizes


def classify(config, x, sizes, dtype, separate_heads):
    """Tokens (B, N, D) and their sizes to logits (B, num_classes), of two separate heads (B, 2 num_classes)."""
    norm = make_norm(config, "norm", dtype) if config.final_norm else None
    if config.pool == "map":
        settings = {
            "num_heads": config.pool_heads or config.num_heads,
            "mlp_dim": config.pool_mlp_dim or config.mlp_dim,
            "skipped": 0 if config.pool_prefix else config.num_prefix_tokens,
        }
        pool = AttentionPooling.of(config, **settings, name="pool", dtype=dtype)
    else:
        pool = Pooling.of(config, kind=config.pool, name="pool", dtype=dtype)
    tokens = norm(x) if norm and not config.norm_after_pool else x  # (B, N, D)
    x = pool(tokens, sizes=sizes)  # (B, D)
    x = norm(x) if norm and config.norm_after_pool else x
    if config.pre_logits_dim:
        x = keras.layers.Dense(config.pre_logits_dim, activation="tanh", name="pre_logits", dtype=dtype)(x)
    if config.num_classes:
        x = make_head(config, "head")(x)
    if config.distillation:
        y = Pooling.of(config, kind="cls", token=1, name="pool_dist", dtype=dtype)(tokens)
        y = make_head(config, "head_dist")(y) if config.num_classes else y
        join = keras.layers.Concatenate if separate_heads else keras.layers.Average
        x = join(name="average", dtype=x.dtype)([x, y])
    return x


def make_head(config, name):
    # The paper's zero-initialised head; logits in float32 whatever the policy, for a stable softmax.
    return keras.layers.Dense(config.num_classes, kernel_initializer="zeros", name=name, dtype="float32")


def build_vit(
    config: ViTConfig,
    name: str = "vit",
    dtype: str | keras.DTypePolicy | None = None,
    remat: bool = False,
    separate_heads: bool = False,
) -> ViT:
    """A Vision Transformer: a functional model from images (B, H, W, C) to logits (B, num_classes).

    Args:
        config: A `ViTConfig`; `num_classes=0` gives the pooled features (B, D) instead of logits.
        name: Name of the model.
        dtype: Keras dtype policy, such as `mixed_bfloat16`; None = the global one. Logits are always float32.
        remat: Whether training recomputes the inside of each block instead of storing it; see `TransformerBlock`. Not saved with
            the model.
        separate_heads: As of `ViT`.

    Returns:
        A `ViT`, which is a functional `keras.Model`; `model.config == config`.

    On Linux the process keeps freed memory afterwards, and JAX computes each step when it is called: faster on a processor, and the
    same numbers (`keras_vit.machine.tune`).

    Source: 'An image is worth 16x16 words' (arXiv 2010.11929), section 3.1.
    """
    tune()
    model = ViT(config, name=name, dtype=dtype, separate_heads=separate_heads)
    for index in range(config.depth):
        model.get_layer(f"block_{index}").remat = remat
    return model


def merging_model(model: ViT, count: int) -> ViT:
    """A copy of a model in which each block merges `count` tokens (`ViTConfig.merge_tokens`); 0 merges none."""
    copy = ViT(dataclasses.replace(model.config, merge_tokens=count), name=model.name, dtype=model.dtype_policy)
    copy.set_weights(model.get_weights())
    return copy
