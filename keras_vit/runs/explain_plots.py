"""Pictures of what a model sees: heat maps over images, heads, distances, filters.

Shapes: B images, H height, W width, C channels, L blocks, h heads.
"""

import math
import os

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from keras_vit.images import resize
from keras_vit.runs.plots import COLORS, add_title, displayable, legible, save, shorten

HEAT = "inferno"  # its lightness rises evenly: it reads without colours too
STRENGTH = 0.6  # of the heat over the image
CELL = 1.5  # inches
SIDE = 96  # pixels of a small image that is drawn larger


def overlay(images: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Heat maps over images: the image in grey, the map in colour, from its smallest value (black) to its largest (yellow).

    Args:
        images: uint8 (B, H, W, C).
        maps: (B, rows, columns); a map of one value is black.

    Returns:
        uint8 (B, H, W, 3).
    """
    images, maps = np.asarray(images), np.asarray(maps, np.float64)
    low = maps.min(axis=(1, 2), keepdims=True)
    scaled = (maps - low) / np.maximum(maps.max(axis=(1, 2), keepdims=True) - low, np.finfo(np.float64).tiny)
    heat = colormaps[HEAT](np.clip(resize(scaled[..., None], images.shape[1:3])[..., 0], 0, 1))[..., :3]  # (B, H, W, 3)
    grey = images[..., : 3 if images.shape[-1] >= 3 else 1].mean(axis=-1, keepdims=True) / 255
    return np.round(255 * ((1 - STRENGTH) * grey + STRENGTH * heat)).astype(np.uint8)


def enlarged(images: np.ndarray) -> np.ndarray:
    """Small images with pixels as squares, about 96 a side: a heat map is smooth over them. (B, H, W, C) -> (B, n H, n W, C)."""
    factor = max(1, SIDE // max(images.shape[1:3]))
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def heat_picture(
    images: np.ndarray,
    maps: dict[str, np.ndarray],
    labels: list[str],
    path: str | os.PathLike,
    *,
    title: str = "Where the model looks",
) -> None:
    """Draws images, a row each, and beside them their maps by each method.

    Args:
        images: uint8 (B, H, W, C).
        maps: (B, rows, columns) by the method's name.
        labels: What stands above each image: its class, say.
        path: The PNG file to write.
        title: Above the picture.
    """
    images = enlarged(images)
    panels = {"image": displayable(images), **{name: overlay(images, each) for name, each in maps.items()}}
    height = CELL * images.shape[1] / images.shape[2] + 0.35
    figure = Figure(figsize=(CELL * 1.12 * len(panels) + 0.2, height * len(images) + 0.7), layout="constrained")
    grid = figure.subplots(len(images), len(panels), squeeze=False)
    figure.suptitle(legible(title), size=11, parse_math=False)
    for column, (name, pictures) in enumerate(panels.items()):
        for row, picture in enumerate(pictures):
            axes = grid[row, column]
            show(axes, picture)
            if column == 0:
                axes.set_title(shorten(legible(labels[row]), 26), size=8, parse_math=False)
            elif row == 0:
                axes.set_title(name, size=8)
    save(figure, path)


def head_picture(image: np.ndarray, maps: np.ndarray, path: str | os.PathLike, *, title: str = "Attention") -> None:
    """Draws the attention of every head over one image: a row a block, a column a head.

    Args:
        image: uint8 (H, W, C).
        maps: (L, h, rows, columns), as `attention_maps` gives for an image.
        path: The PNG file to write.
        title: Above the picture.
    """
    depth, heads = maps.shape[:2]
    cell = min(CELL, 16 / max(depth, heads))
    figure = Figure(figsize=(cell * heads + 0.9, cell * depth * image.shape[0] / image.shape[1] + 0.8), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
    grid = figure.subplots(depth, heads, squeeze=False)
    figure.suptitle(legible(title), size=11, parse_math=False)
    image = enlarged(image[None])
    pictures = overlay(image.repeat(depth * heads, axis=0), maps.reshape(depth * heads, *maps.shape[2:]))
    for index, picture in enumerate(pictures):
        block, head = divmod(index, heads)
        show(grid[block, head], picture)
        if block == 0:
            grid[block, head].set_title(f"head {head}", size=8)
        if head == 0:
            grid[block, head].set_ylabel(f"block {block}", size=8)
    save(figure, path)


def distance_picture(distances: np.ndarray, path: str | os.PathLike, *, title: str = "Mean attention distance") -> None:
    """Draws the mean attention distance of each head, in pixels, over the blocks.

    Args:
        distances: (L, h), as of `attention_distance`.
        path: The PNG file to write.
        title: Above the picture.
    """
    depth, heads = distances.shape
    figure = Figure(figsize=(max(5, 2.5 + 0.35 * depth), 4), layout="constrained")
    axes = figure.add_subplot()
    blocks = np.arange(depth)
    axes.plot(blocks, distances.mean(axis=1), color=COLORS[1], linewidth=1.5, label="mean of the heads", zorder=1)
    axes.scatter(blocks.repeat(heads), distances.ravel(), s=22, color=COLORS[0], label="a head", zorder=2)
    axes.set(xlabel="block", ylabel="mean attention distance (pixels)", ylim=(0, None))
    axes.set_xticks(blocks[:: math.ceil(depth / 24)])
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    add_title(axes, title)
    save(figure, path)


def filter_picture(filters: np.ndarray, path: str | os.PathLike, *, title: str = "Filters of the patch embedding") -> None:
    """Draws filters, each scaled to its own range: RGB of three channels, otherwise the first channel in grey.

    Args:
        filters: (count, height, width, channels), as of `patch_filters`.
        path: The PNG file to write.
        title: Above the picture.
    """
    count = len(filters)
    columns = min(7, count)
    rows = math.ceil(count / columns)
    reach = np.abs(filters).max(axis=(1, 2, 3), keepdims=True)
    pictures = displayable(np.round(255 * (0.5 + filters / (2 * reach))).astype(np.uint8))
    figure = Figure(figsize=(max(0.9 * columns, 3.6) + 0.3, 1.1 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(legible(title), size=11, parse_math=False)
    for index, axes in enumerate(grid.flat):
        if index < count:
            show(axes, pictures[index])
            axes.spines[:].set(visible=True, color="#cccccc", linewidth=0.6)
            axes.set_title(str(index + 1), size=7, pad=2)
        else:
            axes.set_axis_off()
    save(figure, path)


def show(axes, picture):
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
