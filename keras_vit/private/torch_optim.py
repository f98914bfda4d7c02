"""PyTorch's operations on many tensors in one call, and its fused Adam: none of them is published as stable.

Each is looked for at import; where one is gone, a loop over the tensors does the same after one warning. `pytest -m private`
tries both ways: run it with a newer version of PyTorch.
"""

import functools
import inspect
import warnings

import torch

FOREACH_NAMES = ("_foreach_add", "_foreach_add_", "_foreach_mul", "_foreach_mul_", "_foreach_norm", "_foreach_sub_")
ADAM_ARGUMENTS = ("fused", "amsgrad", "beta1", "beta2", "lr", "weight_decay", "eps", "maximize")

try:
    from torch.optim.adam import adam
except ImportError:
    adam = None

MISSING = {
    "foreach": [f"torch.{name}" for name in FOREACH_NAMES if not hasattr(torch, name)],
    "adam": [
        f"{name} of torch.optim.adam" for name in ADAM_ARGUMENTS if not adam or name not in inspect.signature(adam).parameters
    ],
}


@functools.cache
def available(kind: str) -> bool:
    """Whether this PyTorch has all private names of a kind, a key of `MISSING`; warns once where it has not."""
    if MISSING[kind]:
        names = ", ".join(MISSING[kind])
        warnings.warn(f"PyTorch {torch.__version__} lacks {names}; the slower public way is taken", stacklevel=2)
    return not MISSING[kind]


def norms(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The Euclidean norm of each tensor."""
    return torch._foreach_norm(tensors) if available("foreach") else [torch.linalg.vector_norm(tensor) for tensor in tensors]


def scaled(tensors: list[torch.Tensor], factor) -> list[torch.Tensor]:
    """Each tensor times a number or a scalar tensor."""
    return torch._foreach_mul(tensors, factor) if available("foreach") else [tensor * factor for tensor in tensors]


def scale(tensors: list[torch.Tensor], factor) -> None:
    """Multiplies each tensor in place."""
    if available("foreach"):
        torch._foreach_mul_(tensors, factor)
    else:
        for tensor in tensors:
            tensor.mul_(factor)


def plus(tensors: list[torch.Tensor], others: list[torch.Tensor], factor: float) -> list[torch.Tensor]:
    """tensor + factor · other, for each pair."""
    if available("foreach"):
        return torch._foreach_add(tensors, others, alpha=factor)
    return [torch.add(tensor, other, alpha=factor) for tensor, other in zip(tensors, others, strict=True)]


def add(tensors: list[torch.Tensor], others: list[torch.Tensor]) -> None:
    """Adds to each tensor in place."""
    if available("foreach"):
        torch._foreach_add_(tensors, others)
    else:
        for tensor, other in zip(tensors, others, strict=True):
            tensor.add_(other)


def subtract(tensors: list[torch.Tensor], others: list[torch.Tensor]) -> None:
    """Subtracts from each tensor in place."""
    if available("foreach"):
        torch._foreach_sub_(tensors, others)
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
    adam(
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
