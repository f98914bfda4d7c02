"""Rotary positions: attention turns each pair of a head's channels by an angle that depends on the patch's row or column.

Shapes: B batch, N tokens, D width, d size of a head.
"""

import math

import numpy as np
from keras import ops

from keras_vit.checks import as_pair
from keras_vit.kernels.ops import shape
from keras_vit.model.layers import Layer, register
from keras_vit.model.limits import check_rotary


@register
class RotaryPositions(Layer):
    """Cosines and sines of every token's angles, side by side, for `Attention`: (B, N, D) -> (B, N, d).

    The angles follow from the grid alone, so that another image size needs no resampling. Prefix tokens have the angle 0.

    Args:
        grid_size: Rows and columns of patches.
        head_dim: Size d of a head, a multiple of 4.
        rotary: `centered` or `index`; see `rotary_angles`.
        rotary_base: See `rotary_angles`.
        rotary_grid: See `rotary_angles`.
        rotary_offset: See `rotary_angles`.
        num_prefix_tokens: Class token and registers before the patches.
    """

    def __init__(
        self,
        grid_size,
        head_dim,
        rotary="centered",
        rotary_base=100.0,
        rotary_grid=None,
        rotary_offset=0.0,
        num_prefix_tokens=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_rotary(rotary, rotary_base, rotary_grid, rotary_offset, head_dim)
        grid_size = as_pair("grid_size", grid_size)
        rotary_grid = None if rotary_grid is None else as_pair("rotary_grid", rotary_grid)
        self.keep(locals())
        angles = rotary_angles(grid_size, head_dim, rotary, rotary_base, rotary_grid, rotary_offset)
        angles = np.pad(angles, ((num_prefix_tokens, 0), (0, 0)))  # (N, d / 2)
        self.table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype("float32")

    def build(self, input_shape):
        if input_shape[1] != len(self.table):
            raise ValueError(f"grid_size: received {self.grid_size} for {input_shape[1]} tokens; allowed: {len(self.table)} tokens")

    def call(self, x):
        table = ops.cast(ops.convert_to_tensor(self.table), self.compute_dtype)
        return ops.broadcast_to(table, (shape(x)[0], *self.table.shape))


def rotary_angles(grid_size, head_dim, rotary="centered", base=100.0, reference=None, offset=0.0) -> np.ndarray:
    """The angles of all patches in row-major order: float64 (rows * columns, d / 2).

    Half of the angles grow with the row, half with the column: coordinate * base^(-i / n) for i < n = d / 4. Channels i and
    i + d / 2 of a head are a pair, turned by angle i.

    Args:
        grid_size: Rows and columns of patches.
        head_dim: Size d of a head.
        rotary: Coordinates. `centered`: from -2 pi to 2 pi between the image's borders, at the patch's centre, whatever the grid
            (DINOv3, arXiv 2508.10104). `index`: the number of the row or column, from 0 (RoPE-ViT, arXiv 2403.13298).
        base: Base of the frequencies.
        reference: Rows and columns that `index` is stretched to (EVA-02, arXiv 2303.11331); None = not stretched.
        offset: Added to `index` before it is stretched.

    Source: RoFormer (arXiv 2104.09864), in two dimensions.
    """
    frequencies = base ** -(np.arange(head_dim // 4) / (head_dim // 4))  # (d / 4,)
    coordinates = []
    for count, stretched in zip(grid_size, reference or grid_size, strict=True):
        index = np.arange(count)
        centre = 2 * (index + 0.5) / count - 1  # from -1 to 1
        coordinates.append(2 * math.pi * centre if rotary == "centered" else (index + offset) / count * stretched)
    rows, columns = (axis.reshape(-1, 1) * frequencies for axis in np.meshgrid(*coordinates, indexing="ij"))
    return np.concatenate([rows, columns], axis=1)
