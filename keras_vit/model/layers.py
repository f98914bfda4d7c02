"""The parts of a Vision Transformer (arXiv 2010.11929) as Keras layers, each usable on its own.

Shapes: B batch, H x W image, C channels, P patch, N tokens, D width, h heads, d = D / h, M hidden size of the MLP.
"""

import keras

from keras_vit.kernels.ops import layer_norm, linear

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
