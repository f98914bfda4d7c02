"""Better initial weights at no cost: attention that starts as trained attention looks, a first layer that sees decorrelated pixels.

Shapes: D width, h heads, d size of a head, F values that a filter of the first layer sees.
"""

import keras
import numpy as np
from keras import ops

from keras_vit.data.dataset import DataSet
from keras_vit.data.seeds import START, generator
from keras_vit.images import normalize, resize
from keras_vit.model.attention import Attention
from keras_vit.model.vit import ViT
from keras_vit.private.keras import flatten_layers
from keras_vit.recipes.schema import Recipe

# Of arXiv 2305.09828, section 4: noise and identity in query times key, and in value times projection.
QUERY_KEY, VALUE_PROJECTION = (0.7, 0.7), (0.4, -0.4)
SEEN, WINDOWS = 500, 100  # images that the covariance is taken from, and places in each
EPSILON = 1e-2  # added to the eigenvalues of the covariance


def set_start(model: ViT, recipe: Recipe, data: DataSet) -> None:
    """Gives a new model the initial weights of `train.init` and `train.whiten`.

    Args:
        model: The model; its other weights stay as they are.
        recipe: The `Recipe` of the model: that of the first stage.
        data: Its `DataSet`, of which `whiten` takes training images.
    """
    if recipe.train.init == "mimetic":
        set_mimetic(model, generator(START, recipe.seed))
    if recipe.train.whiten:
        whiten(model, pixels_of(recipe, data))


def set_mimetic(model: ViT, rng: np.random.Generator) -> None:
    """Makes each block's attention look at similar tokens, and its value and projection give back less of them.

    For each head W_q W_k' is near 0.7 Z + 0.7 I, and W_v W_o is 0.4 Z - 0.4 I, Z random, as in trained Vision Transformers:
    'Mimetic Initialization of Self-Attention Layers' (arXiv 2305.09828).
    """
    layers = {layer.path: layer for layer in flatten_layers(model) if isinstance(layer, Attention)}
    for _, attention in sorted(layers.items()):
        width, heads = attention.width, attention.num_heads  # a decoder has its own
        pairs = [factors(rng, width, *QUERY_KEY, width // heads) for _ in range(heads)]
        queries, keys = (np.concatenate(side, axis=1) for side in zip(*pairs, strict=True))  # (D, h·d)
        values, projection = factors(rng, width, *VALUE_PROJECTION, width)
        attention.qkv.kernel.assign(np.concatenate([queries, keys, values], axis=1))
        attention.projection.kernel.assign(projection.T)


def factors(rng, width, noise, identity, rank):
    """A and B (D, rank), A B' the best approximation of noise Z + identity I, with Z from N(0, 1 / D), by a matrix of that rank."""
    target = noise * rng.normal(size=(width, width)) / np.sqrt(width) + identity * np.eye(width)
    left, sizes, right = np.linalg.svd(target)
    roots = np.sqrt(sizes[:rank])
    return left[:, :rank] * roots, right[:rank].T * roots


def whiten(model: ViT, pixels: np.ndarray) -> None:
    """Lets the first layer's random filters see whitened pixels: its kernel W (F, D) becomes (C + 0.01 I)^(-1/2) W.

    C is the covariance of `pixels` (n, F). The idea is that of the first layer of airbench (arXiv 2404.00498), whose filters are
    eigenvectors of C; here the filters stay random and are trained on.
    """
    centred = pixels - pixels.mean(axis=0)
    sizes, vectors = np.linalg.eigh((centred.T @ centred / (len(pixels) - 1)).astype(np.float64))
    matrix = (vectors / np.sqrt(np.maximum(sizes, 0) + EPSILON)) @ vectors.T  # (F, F)
    kernel = first_kernel(model)
    shape = tuple(kernel.shape)
    kernel.assign((matrix @ ops.convert_to_numpy(kernel).reshape(-1, shape[-1])).reshape(shape))


def first_kernel(model: ViT) -> keras.Variable:
    """The kernel that meets the image: (P·P·C, D), or (3, 3, C, D) of a convolutional stem."""
    stem = model.get_layer("stem")
    return stem.convolutions[0].kernel if model.config.stem == "conv" else model.get_layer("encoder").projection.kernel


def pixels_of(recipe: Recipe, data: DataSet) -> np.ndarray:
    """What the filters of the first layer see of some places in some training images, normalised: float32 (n, F)."""
    config, rng = recipe.model, generator(START, recipe.seed, 1)
    rows = np.sort(rng.permutation(len(data.train))[:SEEN])
    images = resize(normalize(data.train.images(rows), recipe.mean, recipe.std), config.image_size)
    size, stride = ((3, 3), (2, 2)) if config.stem == "conv" else (config.patch_size, config.patch_size)
    windows = np.lib.stride_tricks.sliding_window_view(images, size, axis=(1, 2))  # (images, rows, columns, C, height, width)
    windows = windows[:, :: stride[0], :: stride[1]]
    places = (rng.integers(count, size=(len(rows), WINDOWS)) for count in windows.shape[1:3])
    windows = windows[np.arange(len(rows))[:, None], *places]  # (images, WINDOWS, C, height, width)
    return windows.transpose(0, 1, 3, 4, 2).reshape(-1, size[0] * size[1] * config.channels)
