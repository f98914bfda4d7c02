"""The Vision Transformer for Keras 3: one small readable model, the same numbers under TensorFlow, JAX and PyTorch.

Import it before Keras: it then chooses a backend that is installed, unless KERAS_BACKEND or `keras.json` has named one.
"""

from keras_vit.backend import choose_backend, quiet_tensorflow

PROBLEM = choose_backend()  # why no backend can be used, in one line; None where one can

quiet_tensorflow()

if not PROBLEM:
    from keras_vit.machine import use_cpu_devices

    use_cpu_devices()

    from keras_vit.export.export import export_model
    from keras_vit.model.attention import Attention
    from keras_vit.model.block import TransformerBlock
    from keras_vit.model.config import VARIANTS, ViTConfig
    from keras_vit.model.embed import ConvBlock, ConvStem, PatchEncoder, Patches
    from keras_vit.model.features import features
    from keras_vit.model.layers import LayerScale
    from keras_vit.model.mlp import MLP
    from keras_vit.model.pool import AttentionPooling, Pooling
    from keras_vit.model.rotary import RotaryPositions
    from keras_vit.model.vit import ViT, build_vit
    from keras_vit.recipes.parse import load_recipe
    from keras_vit.recipes.schema import Recipe
    from keras_vit.runs.folder import RunFolder
    from keras_vit.runs.prediction import Prediction, predict
    from keras_vit.training.distill.logits import save_logits
    from keras_vit.training.loop import train
    from keras_vit.weights.checkpoint import Checkpoint
    from keras_vit.weights.load import load_model, load_weights, open_checkpoint
    from keras_vit.weights.save import save_weights

__all__ = [
    "MLP",
    "VARIANTS",
    "Attention",
    "AttentionPooling",
    "Checkpoint",
    "ConvBlock",
    "ConvStem",
    "LayerScale",
    "PatchEncoder",
    "Patches",
    "Pooling",
    "Prediction",
    "Recipe",
    "RotaryPositions",
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
    "predict",
    "save_logits",
    "save_weights",
    "train",
]


def __getattr__(name):
    if PROBLEM and name in __all__:
        raise ImportError(PROBLEM)
    raise AttributeError(f"module 'keras_vit' has no attribute {name!r}")
