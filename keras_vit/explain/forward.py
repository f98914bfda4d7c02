"""A pass through a model whose attention weights and tokens are seen, and may be shifted: gradients of the shifts are theirs.

Shapes: B images, L blocks, N tokens of a block, M tokens after it, D width, h heads, K classes.
"""

import contextlib
import dataclasses
import threading

import keras
import numpy as np
from keras import ops

from keras_vit.explain.gradients import evaluate
from keras_vit.model.merging import MergingBlock, merge_tokens
from keras_vit.model.parallel import TwinBlock
from keras_vit.model.vit import ViT

TAPPED = threading.RLock()  # a tap belongs to a layer, which every thread shares


@dataclasses.dataclass
class Pass:
    """What a pass leaves, as tensors or arrays.

    Attributes:
        tokens: What each block gets, L of (B, N, D).
        weights: The blocks' attention weights, L of (B, h, N, N); of twins those of both, (B, 2h, N, N).
        merges: The means that each block takes where it merges tokens, L of (B, M, N), rows summing to 1; otherwise L of None.
        logits: (B, K), of the last block's tokens; with `every_block` L of them, of each block's tokens.
        pools: For each of the logits, the attention weights of a pooling by attention, (B, h, 1, N); of another pooling None.
    """

    tokens: list = dataclasses.field(default_factory=list)
    weights: list = dataclasses.field(default_factory=list)
    merges: list = dataclasses.field(default_factory=list)
    logits: list = dataclasses.field(default_factory=list)
    pools: list = dataclasses.field(default_factory=list)


def run(model: ViT, images, weight_shifts=None, token_shift=None, pool_shifts=None, every_block: bool = False) -> Pass:
    """Runs a model on images, without dropout.

    Args:
        model: A `ViT`.
        images: (B, H, W, C), normalised, as the model takes them.
        weight_shifts: Added to the attention weights, L of (B, h, N, N).
        token_shift: Added to the tokens that the last block gets, (B, N, D).
        pool_shifts: Added to the attention weights of a pooling by attention, one for each of the logits.
        every_block: Whether the head reads each block's tokens. No gradient then flows from a block to the one before.
    """
    result, layers = Pass(), [model.get_layer(f"block_{index}") for index in range(model.config.depth)]
    start, head = keras.Model(model.input, layers[0].input), keras.Model(layers[-1].output, model.output)
    x, *rotary = keras.tree.flatten(start(images))
    more = {"rotary": rotary[0]} if rotary else {"sizes": None} if model.config.merge_tokens else {}
    pool_shifts = list(pool_shifts or ())
    for index, block in enumerate(layers):
        last = index == len(layers) - 1
        x = ops.stop_gradient(x) if every_block else x
        x = x + ops.cast(token_shift, x.dtype) if last and token_shift is not None else x
        result.tokens.append(x)
        result.merges.append(merging(block, x, **more) if isinstance(block, MergingBlock) else None)
        attentions = [block.attention, block.twin.attention] if isinstance(block, TwinBlock) else [block.attention]
        shifts = weight_shifts and ops.split(weight_shifts[index], len(attentions), axis=1)
        with tapped(attentions, shifts) as weights:
            output = block(x, **more)
        result.weights.append(ops.concatenate(weights, axis=1))
        x, *sizes = keras.tree.flatten(output)
        more = {"sizes": sizes[0]} if sizes else more
        if last or every_block:
            with tapped([model.get_layer("pool")] if model.config.pool == "map" else [], pool_shifts[:1]) as weights:
                logits = head.call(output)  # `call`: merging blocks give the head other numbers of tokens than it was built for
            pool_shifts = pool_shifts[1:]
            result.logits.append(keras.tree.flatten(logits)[0])
            result.pools.append(weights[0] if weights else None)
    return result


def see(model: ViT, images: np.ndarray, every_block: bool = False) -> Pass:
    """The pass of `run` as NumPy arrays."""
    return Pass(**evaluate(parts, model, images, every_block=every_block))


def parts(model, images, every_block):
    return vars(run(model, images, every_block=every_block))


@contextlib.contextmanager
def tapped(layers, shifts=None):
    """Collects the attention weights of these layers' calls in a list, after it has added the shifts to them."""
    found = []

    def tap(layer_shift):
        def see(weights, training=None):
            found.append(weights if layer_shift is None else weights + ops.cast(layer_shift, weights.dtype))
            return found[-1]

        return see

    with TAPPED:
        for layer, shift in zip(layers, shifts or [None] * len(layers), strict=True):
            layer.tap = tap(shift)
        try:
            yield found
        finally:
            for layer in layers:
                layer.tap = None


def merging(block, x, sizes):
    """The means that a merging block takes of its tokens (B, N, D): (B, M, N), rows summing to 1."""
    tokens = x.shape[1]
    keys = block.attention.keys(block.attention.project(block.norm1(x)), tokens)
    same = ops.broadcast_to(ops.cast(np.eye(tokens), x.dtype), (ops.shape(x)[0], tokens, tokens))
    return merge_tokens(same, sizes, keys, block.merge_tokens, block.num_prefix_tokens)[0]
