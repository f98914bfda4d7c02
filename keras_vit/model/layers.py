"""What the layers of a Vision Transformer (arXiv 2010.11929) have in common, and the smallest of them.

Shapes: D width.
"""

import functools
import inspect
import typing

import keras
from keras import ops

from keras_vit.kernels.ops import layer_norm, linear, replica

REPLICA = 1_000_003  # between the seeds of two replicas

register = keras.saving.register_keras_serializable(package="keras_vit")

# Weights that no optimizer should decay, by variable name: biases, norms and scales, tokens and positions.
NO_DECAY = ("bias", "query_bias", "value_bias", "gamma", "beta", "class_token", "register_tokens", "position", "probe")
NO_DECAY += ("mask_token",)


class Layer(keras.layers.Layer):
    """A Keras layer that keeps its constructor's arguments as attributes and adds them to `get_config`."""

    @classmethod
    @functools.cache
    def arguments(cls) -> tuple[str, ...]:
        """Names of the constructor's arguments, base classes first."""
        inherited = cls.__base__.arguments() if cls is not Layer else ()
        own = inspect.signature(cls.__init__).parameters.values() if "__init__" in vars(cls) and cls is not Layer else ()
        return (*inherited, *(p.name for p in own if p.name != "self" and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)))

    @classmethod
    def of(cls, source, **settings) -> typing.Self:
        """A layer that takes its arguments from the attributes of `source` with the same names.

        Args:
            source: A layer or a `ViTConfig`; arguments without such an attribute keep their defaults.
            **settings: `name`, `dtype` and arguments that override those of `source`.
        """
        return cls(**{name: getattr(source, name) for name in cls.arguments() if hasattr(source, name)} | settings)

    def keep(self, values: dict) -> None:
        """Makes attributes of the constructor's arguments, given as its `locals()`."""
        for name in self.arguments():
            if name in values:
                setattr(self, name, values[name])

    def get_config(self):
        return {**super().get_config(), **{name: getattr(self, name) for name in self.arguments()}}

    def dense(self, units, name, use_bias=True, kernel_initializer="glorot_uniform"):
        return Dense(units, use_bias=use_bias, kernel_initializer=kernel_initializer, name=name, dtype=self.dtype_policy)

    def norm(self, name):
        return make_norm(self, name, self.dtype_policy)

    def drop(self, rate, name, noise_shape=None):
        return Dropout(rate, noise_shape=noise_shape, name=name, dtype=self.dtype_policy)

    def inner(self, layer, *args, **kwargs):
        """Calls a built sublayer with this layer's dtype policy, without `__call__`'s overhead.

        Under PyTorch this saves time in every call, and a block has a dozen sublayers.
        """
        return layer(*args, **kwargs) if layer.quantization_mode else layer.call(*args, **kwargs)

    def inner_sum(self, residual, layer, x, training):
        """residual + layer(x) for a dense sublayer, in one pass where the backend can; layer(x) if `residual` is None."""
        if layer.quantization_mode:
            y = self.inner(layer, x, training=training)
            return y if residual is None else residual + y
        return layer.call(x, training=training, residual=residual)


class ReplicaSeeds(keras.random.SeedGenerator):
    """The seeds of a generator, made different in each replica of a training: Keras's repeat (keras-team/keras#18426)."""

    def __init__(self, generator):
        self.generator = generator

    def next(self, ordered=True):
        seed = self.generator.next(ordered)
        return seed + ops.cast(replica(), seed.dtype) * ops.convert_to_tensor([REPLICA, 0], seed.dtype)


def own_seeds(generator):
    """The generator, or its `ReplicaSeeds` where there are replicas with random numbers of their own."""
    return generator if replica() is None else ReplicaSeeds(generator)


@register
class Dropout(keras.layers.Dropout):
    """Keras's dropout, with `own_seeds`."""

    def call(self, inputs, training=False):
        if not (training and self.rate):
            return inputs
        return keras.random.dropout(inputs, self.rate, noise_shape=self.noise_shape, seed=own_seeds(self.seed_generator))


@register
class Dense(keras.layers.Dense):
    """Keras's dense layer without an activation, by `kernels.ops.linear`."""

    def call(self, x, training=None, residual=None):
        return linear(x, self.kernel, self.bias, training, residual)

    def quantize(self, mode=None, type_check=True, config=None):
        super().quantize(mode, type_check=False, config=config)  # Keras refuses classes other than its own by default


@register
class LayerNormalization(keras.layers.LayerNormalization):
    """Keras's layer normalisation of the last axis, by `kernels.ops.layer_norm`."""

    def call(self, x, training=None):
        return layer_norm(x, self.gamma, self.beta, self.epsilon, training)


@register
class RMSNormalization(Layer):
    """Root-mean-square normalisation of the last axis, without a bias (arXiv 1910.07467): (..., D) -> (..., D).

    Args:
        epsilon: Added to the mean square.
    """

    def __init__(self, epsilon=1e-6, **kwargs):
        super().__init__(**kwargs)
        self.keep(locals())
        self.supports_masking = True

    def build(self, input_shape):
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="gamma")

    def call(self, x, training=None):
        return ops.rms_normalization(x, ops.cast(self.gamma, x.dtype), axis=-1, epsilon=self.epsilon)


def make_norm(source, name, dtype):
    """The norm that a layer or a `ViTConfig` asks for: `norm_epsilon`, `rms_norm`."""
    cls = RMSNormalization if source.rms_norm else LayerNormalization
    return cls(epsilon=source.norm_epsilon, name=name, dtype=dtype)


@register
class LayerScale(Layer):
    """Multiplies each channel by a learned factor (arXiv 2103.17239): (..., D) -> (..., D).

    Args:
        initial_value: The factor before training.
    """

    def __init__(self, initial_value, **kwargs):
        super().__init__(**kwargs)
        self.keep(locals())
        self.supports_masking = True

    def build(self, input_shape):
        initializer = keras.initializers.Constant(self.initial_value)
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer=initializer, name="gamma")

    def call(self, x):
        return x * ops.cast(self.gamma, x.dtype)
