"""All private operations of PyTorch that this library uses, under names of its own.

Each is looked up at import. If one is missing, the public way is taken, after one warning. `pytest -m private` tests both ways:
run it with a newer version of PyTorch.

Shapes: R rows, F and D features.
"""

import functools
import inspect
import warnings

import torch

try:
    from torch.optim.adam import adam
except ImportError:
    adam = None

ADAM_ARGUMENTS = {"fused", "amsgrad", "beta1", "beta2", "lr", "weight_decay", "eps", "maximize"}
OPERATIONS = {
    name: getattr(getattr(torch.ops, library), name, None)
    for library, name in (("mkldnn", "_linear_pointwise"), ("aten", "_softmax_backward_data"), ("aten", "gelu_"))
}
for name in ("_foreach_add", "_foreach_add_", "_foreach_mul", "_foreach_mul_", "_foreach_norm", "_foreach_sub_"):
    OPERATIONS[name] = getattr(torch, name, None)
OPERATIONS["adam"] = adam if adam and inspect.signature(adam).parameters.keys() >= ADAM_ARGUMENTS else None


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


def norms(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The Euclidean norm of each tensor."""
    if available("_foreach_norm"):
        return OPERATIONS["_foreach_norm"](tensors)
    return [torch.linalg.vector_norm(tensor) for tensor in tensors]


def scaled(tensors: list[torch.Tensor], factor) -> list[torch.Tensor]:
    """Each tensor times a number or a scalar tensor."""
    if available("_foreach_mul"):
        return OPERATIONS["_foreach_mul"](tensors, factor)
    return [tensor * factor for tensor in tensors]


def scale(tensors: list[torch.Tensor], factor) -> None:
    """Multiplies each tensor in place."""
    if available("_foreach_mul_"):
        OPERATIONS["_foreach_mul_"](tensors, factor)
    else:
        for tensor in tensors:
            tensor.mul_(factor)


def plus(tensors: list[torch.Tensor], others: list[torch.Tensor], factor: float) -> list[torch.Tensor]:
    """tensor + factor · other, for each pair."""
    if available("_foreach_add"):
        return OPERATIONS["_foreach_add"](tensors, others, alpha=factor)
    return [torch.add(tensor, other, alpha=factor) for tensor, other in zip(tensors, others, strict=True)]


def add(tensors: list[torch.Tensor], others: list[torch.Tensor]) -> None:
    """Adds to each tensor in place."""
    if available("_foreach_add_"):
        OPERATIONS["_foreach_add_"](tensors, others)
    else:
        for tensor, other in zip(tensors, others, strict=True):
            tensor.add_(other)


def subtract(tensors: list[torch.Tensor], others: list[torch.Tensor]) -> None:
    """Subtracts from each tensor in place."""
    if available("_foreach_sub_"):
        OPERATIONS["_foreach_sub_"](tensors, others)
    else:
        for tensor, other in zip(tensors, others, strict=True):
            tensor.sub_(other)


def adam_step(
    weights: list[torch.Tensor],
    gradients: list[torch.Tensor],
    momentums: list[torch.Tensor],
    velocities: list[torch.Tensor],
    *,
    step: int,
    learning_rate: float,
    beta_1: float,
    beta_2: float,
    epsilon: float,
) -> None:
    """One fused step of Adam in place, without decay; only where `available("adam")`. `step` counts from 0."""
    steps = torch.full((len(weights),), float(step), device=weights[0].device).unbind()
    OPERATIONS["adam"](
        weights,
        [gradient.contiguous() for gradient in gradients],
        momentums,
        velocities,
        [],
        list(steps),
        fused=True,
        amsgrad=False,
        beta1=beta_1,
        beta2=beta_2,
        lr=learning_rate,
        weight_decay=0.0,
        eps=epsilon,
        maximize=False,
    )
