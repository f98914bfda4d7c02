"""PyTorch's private operations, all that this library uses of them, under names of our own.

Each is looked for at import; where one is gone, the public way is taken after one warning. `pytest -m private` tries both ways:
run it with a newer version of PyTorch.

Shapes: R rows, F and D features.
"""

import functools
import warnings

import torch

OPERATIONS = {
    name: getattr(getattr(torch.ops, library), name, None)
    for library, name in (("mkldnn", "_linear_pointwise"), ("aten", "_softmax_backward_data"), ("aten", "gelu_"))
}


@functools.cache
def available(name: str) -> bool:
    """Whether this PyTorch has an operation, a key of `OPERATIONS`; warns once where it has not."""
    if OPERATIONS[name] is None:
        warnings.warn(f"PyTorch {torch.__version__} lacks {name}; the slower public way is taken", stacklevel=2)
    return OPERATIONS[name] is not None


def onednn_product(a, b, bias=None):
    """a @ b + bias by oneDNN, without a gradient: (R, F), (F, D), (D,) or None -> (R, D)."""
    if available("_linear_pointwise"):
        return OPERATIONS["_linear_pointwise"](a, b.T, bias, "none", [], "")
    return a @ b if bias is None else torch.addmm(bias, a, b)


def softmax_backward(dy, y):
    """The gradient of a softmax over the last axis, from its result y: (..., N), (..., N) -> (..., N), in float32 inside."""
    if available("_softmax_backward_data"):
        return OPERATIONS["_softmax_backward_data"](dy, y, -1, y.dtype)
    weights, dy = y.float(), dy.float()
    return (weights * (dy - (weights * dy).sum(-1, keepdim=True))).to(y.dtype)


def gelu_in_place(x):
    """Exact GELU, without a gradient; overwrites x."""
    return OPERATIONS["gelu_"](x) if available("gelu_") else torch.nn.functional.gelu(x)
