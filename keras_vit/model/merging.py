"""Token merging (ToMe, 'Token Merging: Your ViT But Faster', arXiv 2210.09461): blocks that hand on fewer tokens than they get.

Shapes: B batch, N tokens, D width, d size of a key, r tokens that are merged.
"""

import numpy as np
from keras import ops


def merge_tokens(x, sizes, keys, count, num_prefix_tokens=0):
    """Merges the `count` patch tokens that are most like another one into that: (B, N, D) -> (B, N - r, D).

    Bipartite soft matching (section 3 of the paper): patches stand alternately in two sets, each of the first finds the most
    similar one of the second by the cosine of their keys, and the r most similar pairs become one token each: the mean, weighted
    by how many patches each stands for.

    Args:
        x: Tokens (B, N, D).
        sizes: How many patches each token stands for, (B, N, 1); None = one.
        keys: What similarity is measured by, (B, N, d).
        count: Number of tokens r; half of the patch tokens where that is less, as behind patch dropout.
        num_prefix_tokens: Class token and registers in front, which stay as they are.

    Returns:
        Tokens (B, N - r, D), the prefix in front, and their sizes (B, N - r, 1).
    """
    start, width = num_prefix_tokens, x.shape[2]
    count = min(count, (x.shape[1] - start) // 2)
    if not count:
        return x, ops.ones_like(x[:, :, :1]) if sizes is None else sizes
    keys = keys[:, start:] * ops.rsqrt(ops.sum(keys[:, start:] * keys[:, start:], axis=-1, keepdims=True) + 1e-6)
    scores = ops.matmul(keys[:, ::2], ops.transpose(keys[:, 1::2], (0, 2, 1)))  # (B, first, second)
    # Comparisons and products where others gather and scatter: every export format has them, and they cost little beside a block.
    best, partners = ops.top_k(scores, 1)  # each (B, first, 1)
    _, order = ops.top_k(best[:, :, 0], scores.shape[1])  # (B, first): the most similar in front
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
