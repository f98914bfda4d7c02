"""Transformer blocks whose branches stand side by side.

Shapes: B batch, N tokens, D width, h heads.
"""

from keras import ops

from keras_vit.model.block import TransformerBlock
from keras_vit.model.layers import register


@register
class ParallelBlock(TransformerBlock):
    """Attention and MLP side by side, after one norm: (B, N, D) -> (B, N, D).

        x = x + drop_path(scale1(attention(norm1(x)) + mlp(norm1(x))))

    Source: 'Scaling Vision Transformers to 22 Billion Parameters' (arXiv 2302.05442).

    Args:
        **kwargs: The arguments of `TransformerBlock`.
    """

    one_branch = True

    def call(self, x, mask=None, training=None, rotary=None):
        """Transforms tokens (B, N, D); `mask` and `rotary` as in `Attention.call`."""
        y = self.branch(x, x, self.norm1, self.both, training, mask=mask, rotary=rotary)
        return self.add(x, y, self.dropout1, self.scale1, self.drop_path1, training)

    def both(self, x, training, residual, **arguments):
        """residual + attention(x) + mlp(x)."""
        y = self.attention.call(x, training=training, residual=residual, **arguments)
        return self.feed_forward.call(x, training=training, residual=y)


@register
class TwinBlock(TransformerBlock):
    """Two attentions side by side, then two MLPs, each with its own norm and scale: (B, N, D) -> (B, N, D).

        x = x + sum of drop_path(scale1(attention(norm1(x)))) over the block and its twin
        x = x + sum of drop_path(scale2(mlp(norm2(x)))) over the block and its twin

    Source: 'Three things everyone should know about Vision Transformers' (arXiv 2203.09795).

    Args:
        **kwargs: The arguments of `TransformerBlock`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.twin = TransformerBlock.of(self, name="twin", dtype=self.dtype_policy)

    def build(self, input_shape):
        super().build(input_shape)
        self.twin.build(input_shape)

    def call(self, x, mask=None, training=None, rotary=None):
        """Transforms tokens (B, N, D); `mask` and `rotary` as in `Attention.call`."""
        self.twin.remat = self.remat
        y = self.add_attention(x, x, training, mask=mask, rotary=rotary)
        x = self.twin.add_attention(y, x, training, mask=mask, rotary=rotary)
        y = self.add_mlp(x, x, training)
        return self.twin.add_mlp(y, x, training)

    def scores(self, x, mask=None, sizes=None, rotary=None):
        """The attention weights (B, 2h, N, N) of both attentions, those of the twin last; see `TransformerBlock.scores`."""
        scores = [super().scores(x, mask, sizes, rotary), self.twin.scores(x, mask, sizes, rotary)]
        return ops.concatenate(scores, axis=1)


BLOCKS = {"serial": TransformerBlock, "parallel": ParallelBlock, "twin": TwinBlock}
