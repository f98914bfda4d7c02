"""LoRA (arXiv 2106.09685): which layers have adapters, and the weights with adapters merged."""

import keras
import numpy as np

from keras_vit.model.vit import ViT


def adapted_layers(model: ViT, first: int = 0) -> list[keras.layers.Layer]:
    """The dense layers that LoRA adapts, in the blocks from index `first` on."""
    blocks = [model.get_layer(f"block_{index}") for index in range(first, model.config.depth)]
    blocks = [part for block in blocks for part in (block, getattr(block, "twin", None)) if part is not None]
    return [
        layer
        for block in blocks
        for layer in (block.attention.qkv, block.attention.projection, block.feed_forward.fc1, block.feed_forward.fc2)
    ]


def merged_weights(model: ViT) -> dict[str, np.ndarray]:
    """The weights of a model, with or without adapters, by path: in float32, with adapters merged."""
    values = {weight.path: np.asarray(keras.ops.convert_to_numpy(weight), "float32") for weight in model.weights}
    for layer in adapted_layers(model):
        if layer.lora_enabled:
            a, b = values.pop(layer.lora_kernel_a.path), values.pop(layer.lora_kernel_b.path)
            kernel, scale = f"{layer.path}/kernel", layer.lora_alpha / layer.lora_rank
            values[kernel] = values[kernel] + scale * (a @ b)  # not in place: the array may be the model's
    return values
