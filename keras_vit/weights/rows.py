"""The correspondence of weights: a table with a row for each of this library's weights, read both ways.

Shapes: D width, C channels, P patch.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np

from keras_vit.checks import visible
from keras_vit.model.config import ViTConfig

SHOWN = 6  # names of one kind in a message


@dataclasses.dataclass(frozen=True)
class Row:
    """One weight of this library and the foreign tensors that hold it.

    The tensors are parts of the weight, side by side along its last axis; each may have its axes in another order.

    Attributes:
        path: Path of the weight.
        shape: Its shape.
        names: Names of the tensors, one for each part.
        part: Shape of each tensor.
        axes: Order of axes that a tensor is transposed to before it is reshaped to its part of the weight.
        order: Where each entry of the weight's last axis is in the tensors'; None = in the same place.
    """

    path: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    part: tuple[int, ...]
    axes: tuple[int, ...]
    order: tuple[int, ...] | None = None

    def load(self, tensors: list[np.ndarray]) -> np.ndarray:
        """The weight from its tensors."""
        shape = (*self.shape[:-1], self.shape[-1] // len(tensors))
        weight = np.concatenate([tensor.transpose(self.axes).reshape(shape) for tensor in tensors], axis=-1)
        return weight if self.order is None else weight[..., list(self.order)]

    def save(self, weight: np.ndarray) -> dict[str, np.ndarray]:
        """The tensors by name, from the weight."""
        weight = weight if self.order is None else weight[..., np.argsort(self.order)]
        shape = [self.part[axis] for axis in self.axes]
        parts = np.split(weight, len(self.names), axis=-1)
        back = np.argsort(self.axes)
        return {name: np.ascontiguousarray(p.reshape(shape).transpose(back)) for name, p in zip(self.names, parts, strict=True)}


def torch_row(config: ViTConfig, path: str, shape: tuple, names: str | tuple[str, ...]) -> Row:
    """The row of a weight as PyTorch's layers hold it: kernels are (out, in), the projection of patches is (D, C, P, P)."""
    names = (names,) if isinstance(names, str) else tuple(names)
    part = (*shape[:-1], shape[-1] // len(names))
    if path == "encoder/projection/kernel":
        return Row(path, shape, names, (config.width, config.channels, *config.patch_size), (2, 3, 1, 0))
    if path.endswith("/kernel"):
        return Row(path, shape, names, part[::-1], (1, 0))
    return Row(path, shape, names, part, tuple(range(len(part))))


def check_tensors(where: str, rows: list[Row], shapes: Mapping[str, tuple], unused: str = "$^") -> None:
    """Raises a ValueError that lists the missing (-), extra (+) and wrongly shaped (!) tensors of a checkpoint.

    Args:
        where: The checkpoint's name.
        rows: The table of its weights.
        shapes: The shapes of its tensors by name.
        unused: Pattern of names that are allowed and not read.
    """
    wanted = {name: row.part for row in rows for name in row.names}
    missing = [f"- {name}" for name in wanted if name not in shapes]
    extra = [f"+ {name}" for name in shapes if name not in wanted and not re.fullmatch(unused, name)]
    other = [
        f"! {name} {tuple(shapes[name])}, expected {part}"
        for name, part in wanted.items()
        if name in shapes and tuple(shapes[name]) != tuple(part)
    ]
    listed = [line for lines in (missing, extra, other) for line in shorten(lines)]
    if listed:
        raise ValueError(
            f"checkpoint: received {where!r}; allowed: the tensors of its configuration "
            f"(- missing, + extra, ! shape): {visible('; '.join(listed))}"
        )


def shorten(lines: list[str]) -> list[str]:
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"{lines[0][0]} and {len(lines) - SHOWN} more"]


def weight_reader(rows: list[Row], read: Callable[[str], np.ndarray]) -> Callable[[str], np.ndarray]:
    """A function that reads a weight by its path, from one that reads a tensor by its name."""
    by_path = {row.path: row for row in rows}

    def read_weight(path):
        row = by_path[path]
        return row.load([np.asarray(read(name)).astype("float32", copy=False) for name in row.names])

    return read_weight


def save_rows(rows: list[Row], weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors by name, from the weights by path."""
    return {name: tensor for row in rows for name, tensor in row.save(weights[row.path]).items()}
