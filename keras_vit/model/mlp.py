"""The block's multi-layer perceptron.

Shapes: B batch, N tokens, D width, M hidden size.
"""

from keras_vit.checks import check_choice
from keras_vit.kernels.ops import activate, reshape, shape
from keras_vit.model.config import MLPS
from keras_vit.model.layers import Layer, register


@register
class MLP(Layer):
    """Two dense layers with an activation between them: (..., D) -> (..., D).

    Args:
        width: Size D of a token.
        mlp_dim: Size M of the hidden layer.
        mlp: `gelu` (exact), `gelu_tanh` (approximation), `gelu_quick` (x sigmoid(1.702 x)) or `swiglu`, silu(x1) * x2 (arXiv
            2002.05202).
        dropout: Dropout rate after the activation.
        use_bias: Whether the dense layers have a bias.
        mlp_norm: Whether the hidden layer is layer-normalised after the activation ('sub-LN', arXiv 2210.06423).
        norm_epsilon: Epsilon of that norm.
        rms_norm: Whether it is a root-mean-square norm (arXiv 1910.07467).
    """

    def __init__(
        self,
        width,
        mlp_dim,
        mlp="gelu",
        dropout=0.0,
        use_bias=True,
        mlp_norm=False,
        norm_epsilon=1e-6,
        rms_norm=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_choice("mlp", mlp, MLPS)
        self.keep(locals())
        self.fc1 = self.dense(mlp_dim * (2 if mlp == "swiglu" else 1), "fc1", use_bias)
        self.fc2 = self.dense(width, "fc2", use_bias)
        self.hidden_dropout = self.drop(dropout, "dropout")
        self.hidden_norm = self.norm("norm") if mlp_norm else None

    def build(self, input_shape):
        self.fc1.build((None, input_shape[-1]))
        self.fc2.build((None, self.mlp_dim))
        if self.mlp_norm:
            self.hidden_norm.build((None, self.mlp_dim))

    def call(self, x, training=None, residual=None):
        """Transforms tokens (..., D); a `residual` of the same shape is added."""
        y = self.inner(self.fc1, reshape(x, (-1, x.shape[-1])), training=training)  # (B·N, M), twice as wide if gated
        y = self.inner(self.hidden_dropout, activate(y, self.mlp, training), training=training)  # (B·N, M)
        y = self.inner(self.hidden_norm, y, training=training) if self.mlp_norm else y
        residual = None if residual is None else reshape(residual, (-1, self.width))
        y = self.inner_sum(residual, self.fc2, y, training)  # (B·N, D)
        return reshape(y, (-1, *shape(x)[1:-1], self.width))
