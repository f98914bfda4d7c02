"""Token merging (ToMe, 'Token Merging: Your ViT But Faster', arXiv 2210.09461): blocks that hand on fewer tokens than they get.

Shapes: B batch, N tokens, D width, d size of a key, r tokens that are merged.
"""

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
        count: Number of tokens r; at most half of the patch tokens.
        num_prefix_tokens: Class token and registers in front, which stay as they are.

    Returns:
        Tokens (B, N - r, D), the prefix in front, and their sizes (B, N - r, 1).
    """
    start, batch, width = num_prefix_tokens, ops.shape(x)[0], x.shape[2]
    keys = keys[:, start:] * ops.rsqrt(ops.sum(keys[:, start:] * keys[:, start:], axis=-1, keepdims=True) + 1e-6)
    scores = ops.matmul(keys[:, ::2], ops.transpose(keys[:, 1::2], (0, 2, 1)))  # (B, first, second)
    first, second = scores.shape[1:]
    partners = ops.argmax(scores, axis=2)  # (B, first)
    _, order = ops.top_k(ops.max(scores, axis=2), first)  # the most similar in front
    merged, kept = order[:, :count], order[:, count:]
    partners = ops.take_along_axis(partners, ops.cast(merged, partners.dtype), axis=1)
    pairs = ops.expand_dims(ops.arange(second, dtype=partners.dtype), (0, 2)) == ops.expand_dims(partners, 1)
    pairs = ops.cast(pairs, x.dtype)  # (B, second, r): 1 where a merged token goes

    sizes = ops.ones((batch, x.shape[1], 1), x.dtype) if sizes is None else sizes
    sums = ops.concatenate([x * sizes, sizes], axis=2)  # (B, N, D + 1)
    ones, others = sums[:, start::2], sums[:, start + 1 :: 2]
    others = others + ops.matmul(pairs, ops.take_along_axis(ones, ops.expand_dims(merged, 2), axis=1))
    sums = ops.concatenate([sums[:, :start], ops.take_along_axis(ones, ops.expand_dims(kept, 2), axis=1), others], axis=1)
    return sums[:, :, :width] / sums[:, :, width:], sums[:, :, width:]
