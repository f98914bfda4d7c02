"""Pictures of a pre-training: images, what the model sees of them, and what it makes of that."""

import math
import os

import numpy as np
from matplotlib.figure import Figure

from keras_vit.runs.plots import add_text, displayable, save

ACROSS = 2  # images side by side, each with three pictures
NAMES = ("original", "seen", "painted")
SIDE = 0.95  # inches of a picture's longer side


def reconstructions(
    originals: np.ndarray, seen: np.ndarray, painted: np.ndarray, path: str | os.PathLike, *, note: str = ""
) -> None:
    """Draws images three times: as they are, without their hidden patches, and with what the model painted there.

    Args:
        originals: uint8 (B, H, W, C).
        seen: The same with grey in place of the hidden patches.
        painted: The same with the model's patches there.
        path: The PNG file to write.
        note: A line above the pictures.
    """
    count, height, width, _ = originals.shape
    rows, scale = math.ceil(count / ACROSS), SIDE / max(height, width)
    high, wide, gap, top, margin = height * scale, width * scale, 0.06, 0.46, 0.12
    group = 3 * wide + 2 * gap
    figure_width = ACROSS * group + (ACROSS - 1) * 0.3 + 2 * margin
    figure = Figure(figsize=(figure_width, top + rows * (high + gap) + margin))
    axes = figure.add_axes((0, 0, 1, 1))  # its unit is an inch
    axes.set_axis_off()
    add_text(axes, margin, 0.15, note, size=8, va="center")
    for index, images in enumerate(zip(*map(displayable, (originals, seen, painted)), strict=True)):
        row, column = divmod(index, ACROSS)
        for place, image in enumerate(images):
            x, y = margin + column * (group + 0.3) + place * (wide + gap), top + row * (high + gap)
            axes.imshow(image, extent=(x, x + wide, y + high, y), cmap="gray", vmin=0, vmax=255)
            if not row:
                add_text(axes, x + wide / 2, top - 0.06, NAMES[place], size=8, ha="center", va="bottom")
    axes.set(xlim=(0, figure_width), ylim=(top + rows * (high + gap) + margin, 0), aspect="auto")
    save(figure, path)
