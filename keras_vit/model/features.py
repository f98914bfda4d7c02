"""What happens inside a model: a view of its layers' outputs and of its attention.

Shapes: B batch, N tokens, D width, h heads.
"""

import keras

from keras_vit.checks import unknown
from keras_vit.model.vit import ViT


def features(model: ViT, names: str | list[str]) -> keras.Model:
    """A model that gives the named intermediates of a `ViT`, sharing its weights.

    Args:
        model: A `ViT`.
        names: One name or a list: a layer of the model (`encoder`, `block_3`, `norm`, `pool`, `pre_logits`, `head`),
            or `block_3/attention` for that block's attention weights (B, h, N, N), of twins those of both, (B, 2h, N, N).

    Returns:
        A functional model from images to a dictionary of the named tensors. It shares the weights of `model`: save `model`
        instead.

    Raises:
        ValueError: For an unknown name; the message lists the known ones.
    """
    names = [names] if isinstance(names, str) else list(names)
    known = [layer.name for layer in model.layers[1:]]
    known += [f"{name}/attention" for name in known if name.startswith("block_")]
    outputs = {}
    for name in names:
        if name not in known:
            raise ValueError(unknown("names", name, known))
        layer_name, _, attention = name.partition("/")
        layer = model.get_layer(layer_name)
        if attention:
            scores = AttentionScores(layer, name=f"{layer_name}_attention")
            x, *more = keras.tree.flatten(layer.input)  # a block also gets sizes, or rotary positions, or neither
            outputs[name] = scores(x, **{"sizes" if model.config.merge_tokens else "rotary": value for value in more})
        else:
            outputs[name] = keras.tree.flatten(layer.output)[0]  # a block that merges tokens also gives their sizes
    return keras.Model(model.input, outputs, name=f"{model.name}_features")


class AttentionScores(keras.layers.Layer):
    """The attention weights (B, h, N, N) of a block for the tokens (B, N, D) that it gets; has no weights of its own.

    A separate layer: Keras fixes a layer's number of outputs at its first call, so the block itself cannot return more later.
    """

    def __init__(self, block, **kwargs):
        super().__init__(dtype=block.dtype_policy, **kwargs)
        self.block = block

    def call(self, x, sizes=None, rotary=None):
        return self.block.scores(x, sizes=sizes, rotary=rotary)
