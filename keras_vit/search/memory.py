"""Predicts the memory of a training before anything is built."""

import math

from keras_vit.model.config import ViTConfig
from keras_vit.recipes.schema import Recipe

# Measured on Linux without an accelerator: peak memory of small trials, less images and model.
PROCESS_MB = {"tensorflow": 1140, "jax": 1110, "torch": 690}


def activation_floats(config: ViTConfig) -> int:
    """How many numbers one image's forward pass keeps for the backward pass.

    Each token in each block keeps the inputs of the two norms, of the four products and of the activation, the queries, keys
    and values, and the attention's output; each pair of tokens in each head keeps its score before and after softmax.
    """
    tokens, width = config.num_tokens, config.width
    gate = 2 if config.mlp == "swiglu" else 1
    block = tokens * (9 * width + (1 + gate) * config.mlp_dim) + 2 * config.num_heads * tokens * tokens
    pixels, stem = math.prod(config.image_size), math.prod(config.image_size) * config.channels
    if config.stem == "conv":
        for filters in config.stem_widths:
            pixels //= 4
            stem += (3 + 6 * config.stem_depth) * pixels * filters
    return stem + 2 * tokens * width + config.depth * block


def training_memory(recipe: Recipe, process: float = 0.0) -> float:
    """Predicted peak memory of a training in MB (2^20 bytes): weights, gradients, optimizer, average, activations.

    Activations count as float32 in mixed precision too: a CPU keeps both. The prediction was compared with measurements on CPUs.

    Args:
        recipe: The recipe.
        process: Memory in MB of the process without a model: `process_memory` on a CPU, 0 for the memory of an accelerator.
    """
    copies = 2 + {"adamw": 2, "adam": 2, "lion": 1, "sgd": 1, "muon": 2}[recipe.train.optimizer] + recipe.train.averages
    copies += 1  # the float32 model that is validated and saved
    activations = activation_floats(recipe.model) * recipe.train.batch_size
    return process + 4 * (copies * recipe.model.num_params + activations) / 2**20


def process_memory(backend: str, images: int, recipe: Recipe) -> float:
    """Memory in MB of a process without a model: the framework with its compiled code, and the images."""
    return PROCESS_MB[backend] + images * math.prod(recipe.model.image_shape) / 2**20
