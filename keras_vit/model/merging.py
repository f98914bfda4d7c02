"""Token merging (ToMe, 'Token Merging: Your ViT But Faster', arXiv 2210.09461): blocks that return fewer tokens than they get.

Shapes: B batch, N tokens, D width, d size of a key, r tokens that are merged.
"""

import keras
import numpy as np
from keras import ops

from keras_vit.checks import check_int
from keras_vit.kernels.ops import reshape, shape
from keras_vit.model.block import TransformerBlock
from keras_vit.model.layers import register


@register
class MergingBlock(TransformerBlock):
    """A transformer block that merges tokens between its branches: (B, N, D) -> tokens (B, N - r, D), sizes (B, N - r, 1).

    Args:
        merge_tokens: Number r of patch tokens to merge into their most similar tokens; at most half of the patch tokens.
        num_prefix_tokens: Class token and registers at the front, which are not merged.
        **kwargs: The arguments of `TransformerBlock`.
    """

    def __init__(self, *args, merge_tokens, num_prefix_tokens=0, **kwargs):
        super().__init__(*args, **kwargs)
        check_int("merge_tokens", merge_tokens, at_least=0)
        self.keep(locals())

    def build(self, input_shape):
        super().build(input_shape)
        patches = None if input_shape[1] is None else input_shape[1] - self.num_prefix_tokens
        if patches is not None and 2 * self.merge_tokens > patches:
            raise ValueError(f"merge_tokens: received {self.merge_tokens}; allowed: half of the {patches} patch tokens at most")

    def call(self, x, sizes=None, mask=None, training=None):
        """Transforms tokens (B, N, D) that stand for `sizes` patches each, (B, N, 1); None = one. Takes no mask."""
        if mask is not None:
            raise ValueError("mask: received one; allowed: None in a block that merges tokens")
        y, keys = self.branch(x, x, self.norm1, self.attend, training, sizes=sizes)
        x = self.add(x, y, self.dropout1, self.scale1, self.drop_path1, training)
        x, sizes = merge_tokens(x, sizes, keys, self.merge_tokens, self.num_prefix_tokens)  # (B, N - r, D), (B, N - r, 1)
        return self.add_mlp(x, x, training), sizes

    def attend(self, x, training, sizes, residual):
        """The attention of tokens (B, N, D), and the keys (B, N, d) that measure similarity."""
        residual = None if residual is None else reshape(residual, (-1, self.width))  # (B·N, D)
        qkv, tokens = self.attention.project(x, training), shape(x)[1]
        y = self.attention.mix(qkv, tokens, training=training, sizes=sizes, residual=residual)
        return y, self.attention.keys(qkv, tokens)

    def compute_output_spec(self, x, sizes=None, mask=None, training=None):
        batch, tokens, width = x.shape
        tokens = tokens and tokens - self.merge_tokens
        return tuple(keras.KerasTensor((batch, tokens, size), dtype=self.compute_dtype) for size in (width, 1))


def merge_tokens(x, sizes, keys, count, num_prefix_tokens=0):
    """Merges `count` patch tokens into their most similar tokens: (B, N, D) -> (B, N - r, D).

    Bipartite soft matching (section 3 of the paper). Patch tokens go alternately into two sets. Each token of the first set finds
    its most similar partner in the second, by the cosine similarity of their keys. The r tokens with the most similar partners
    merge into them. A merged token is the mean of its parts, weighted by their `sizes`.

    Args:
        x: Tokens (B, N, D).
        sizes: How many patches each token stands for, (B, N, 1); None = one.
        keys: The keys that measure similarity, (B, N, d).
        count: Number r of tokens to merge, capped at half of the patch tokens present; patch dropout leaves fewer.
        num_prefix_tokens: Number of class token and registers at the front, which are not merged.

    Returns:
        Tokens (B, N - r, D), the prefix at the front, and their sizes (B, N - r, 1).
    """
    start, width = num_prefix_tokens, x.shape[2]
    count = min(count, (x.shape[1] - start) // 2)
    if not count:
        return x, ops.ones_like(x[:, :, :1]) if sizes is None else sizes
    keys = keys[:, start:] * ops.rsqrt(ops.sum(keys[:, start:] * keys[:, start:], axis=-1, keepdims=True) + 1e-6)
    scores = ops.matmul(keys[:, ::2], ops.transpose(keys[:, 1::2], (0, 2, 1)))  # (B, first, second)
    # Comparisons and matmuls instead of gather and scatter: every export format has them, and they are cheap beside a block.
    best, partners = ops.top_k(scores, 1)  # each (B, first, 1)
    _, order = ops.top_k(best[:, :, 0], scores.shape[1])  # (B, first): the most similar at the front
    first, second = (ops.convert_to_tensor(np.arange(size), order.dtype) for size in scores.shape[1:])
    sort = ops.cast(ops.expand_dims(order, 2) == first, x.dtype)  # (B, first, first)
    pairs = ops.cast(partners == second, x.dtype)  # (B, first, second)

    if sizes is None:
        sums = ops.pad(x, ((0, 0), (0, 0), (0, 1)), constant_values=1)  # (B, N, D + 1)
    else:
        sums = ops.concatenate([x * sizes, sizes], axis=2)
    ones, others = ops.matmul(sort, sums[:, start::2]), sums[:, start + 1 :: 2]
    targets = ops.transpose(ops.matmul(sort[:, :count], pairs), (0, 2, 1))  # (B, second, r): 1 where a merged token goes
    others = others + ops.matmul(targets, ones[:, :count])
    prefix = [sums[:, :start]] if start else []  # LiteRT takes no empty tensor
    sums = ops.concatenate([*prefix, ones[:, count:], others], axis=1)
    return sums[:, :, :width] / sums[:, :, width:], sums[:, :, width:]
