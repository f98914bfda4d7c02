"""The models that are exported: a `ViT`, or a Keras model of the user's own, such as one around a ViT."""

import dataclasses

import keras
import numpy as np

from keras_vit.model.vit import ViT, build_vit
from keras_vit.private.keras import flatten_layers


@dataclasses.dataclass(frozen=True)
class Interface:
    """What a model takes and gives.

    Attributes:
        image_size: H and W.
        channels: C.
        data_format: `channels_last` or `channels_first`.
        num_classes: K; 0 if it gives features.
        merge_tokens: Tokens that each block of a `ViT` merges.
    """

    image_size: tuple[int, int]
    channels: int
    data_format: str
    num_classes: int
    merge_tokens: int = 0

    @property
    def pictures(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return (*self.image_size, self.channels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """As the model takes images, without the batch."""
        return self.pictures if self.data_format == "channels_last" else (self.channels, *self.image_size)


def interface(model: keras.Model) -> Interface:
    """The `Interface` of a model.

    Raises:
        ValueError: If it is no model from one batch of float32 images of one size to a batch of vectors.
    """
    if isinstance(model, ViT):
        config = model.config
        return Interface(config.image_size, config.channels, config.data_format, config.num_classes, config.merge_tokens)
    allowed = "allowed: a ViT, a Keras model from images of one size to logits, or a RunFolder"
    if not isinstance(model, keras.Model):
        raise ValueError(f"model_or_run: received a {type(model).__name__}; {allowed}")
    inputs, outputs = (getattr(model, name, None) or [] for name in ("inputs", "outputs"))
    shapes = [tuple(tensor.shape) for tensor in (*inputs, *outputs)]
    fits = [*map(len, shapes)] == [4, 2] and len(inputs) == 1 and None not in (*shapes[0][1:], *shapes[1][1:])
    if not fits:
        shown = f"from {shapes[: len(inputs)]} to {shapes[len(inputs) :]}" if shapes else "that is not built"
        raise ValueError(f"model_or_run: received a {type(model).__name__} {shown}; {allowed}")
    if inputs[0].dtype != "float32":
        raise ValueError(f"model_or_run: received a {type(model).__name__} that takes {inputs[0].dtype}; allowed: float32")
    inner = next((layer for layer in model.layers if isinstance(layer, ViT)), None)
    data_format = inner.config.data_format if inner else keras.config.image_data_format()
    shape = shapes[0][1:] if data_format == "channels_last" else (*shapes[0][2:], shapes[0][1])
    return Interface(shape[:2], shape[2], data_format, shapes[1][1])


def check_model(model) -> None:
    """Raises a ValueError unless a model can be exported."""
    interface(model)
    if any(getattr(layer, "quantization_mode", None) for layer in flatten_layers(model)):
        raise ValueError("model_or_run: received a quantised model; allowed: the original one, with a precision of the format")


def float32_model(model: keras.Model) -> keras.Model:
    """The model in float32, from which exports are written and with which they are compared."""
    lower = [layer for layer in flatten_layers(model) if layer.dtype_policy.name != "float32"]
    return with_dtype(model, "float32") if lower else model


def with_dtype(model: keras.Model, dtype: str) -> keras.Model:
    """A copy of a model, with its weights, whose layers compute in another type; logits stay in float32."""
    if isinstance(model, ViT):
        copy = build_vit(model.config, dtype=dtype)
    else:

        def clone(layer):
            last = layer is model.layers[-1] and not isinstance(layer, ViT)
            return type(layer).from_config({**layer.get_config(), "dtype": "float32" if last else dtype})

        copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights([np.asarray(weight, "float32") for weight in model.get_weights()])
    return copy
