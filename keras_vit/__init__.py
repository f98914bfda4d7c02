"""The Vision Transformer for Keras 3: one small readable model, the same numbers under TensorFlow, JAX and PyTorch."""

from keras_vit.config import VARIANTS, ViTConfig
from keras_vit.export import export_model
from keras_vit.layers import (
    MLP,
    Attention,
    AttentionPooling,
    ConvStem,
    LayerScale,
    PatchEncoder,
    Patches,
    Pooling,
    TransformerBlock,
)
from keras_vit.model import ViT, build_vit, features
from keras_vit.recipe import Recipe, load_recipe
from keras_vit.run import RunFolder
from keras_vit.train import train
from keras_vit.weights import Checkpoint, load_model, load_weights, open_checkpoint, save_weights

__all__ = [
    "MLP",
    "VARIANTS",
    "Attention",
    "AttentionPooling",
    "Checkpoint",
    "ConvStem",
    "LayerScale",
    "PatchEncoder",
    "Patches",
    "Pooling",
    "Recipe",
    "RunFolder",
    "TransformerBlock",
    "ViT",
    "ViTConfig",
    "build_vit",
    "export_model",
    "features",
    "load_model",
    "load_recipe",
    "load_weights",
    "open_checkpoint",
    "save_weights",
    "train",
]
