"""Pictures of a report: figures as sources of images, and what the model attends to, drawn over its image.

Shapes: B images, H height, W width, C channels.
"""

import io
import math

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from keras_vit.report.page import data_uri
from keras_vit.runs.explain_plots import HEAT, overlay
from keras_vit.runs.plots import encode

SIDE = 160  # pixels of the longer side of a picture in the gallery, about
PIXELS = 72  # of a screen, for an inch of a figure: text keeps its size
SMALLEST = 0.8  # a figure is not shown smaller: it scrolls


def figure_picture(figure: Figure, title: str, caption: str = "", *, wide: bool = False) -> dict:
    """A figure as parts.html takes a picture.

    Args:
        figure: The figure.
        title: Its title on the page.
        caption: Below it.
        wide: Whether its text gets too small to read on a phone, so that it scrolls there.
    """
    width = round(PIXELS * figure.get_figwidth())
    least = round(SMALLEST * width) if wide else 0
    return {"title": title, "caption": caption, "source": data_uri(encode(figure)), "least": least, "most": round(1.4 * width)}


def small_picture(image: np.ndarray) -> Image.Image:
    """uint8 (H, W, C) in RGB, its longer side about `SIDE`: small pixels become squares, large pictures are made smaller.

    Of images with other than 1 or 3 channels the first three, or the first one, are shown.
    """
    channels = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    picture = Image.fromarray(np.ascontiguousarray(channels))
    if (factor := SIDE // max(picture.size)) > 1:
        return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)
    picture.thumbnail((SIDE, SIDE))
    return picture


def over(picture: Image.Image, attention: np.ndarray) -> Image.Image:
    """`overlay` of one picture and one map (rows, columns)."""
    return Image.fromarray(overlay(np.asarray(picture)[None], attention[None])[0])


def source_of(picture: Image.Image) -> str:
    """A picture as the source of an image that needs no request."""
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return data_uri(out.getvalue(), "jpeg")


def color_scale() -> str:
    """The colours of an overlay as a gradient of CSS."""
    colors = (colormaps[HEAT](place, bytes=True)[:3] for place in np.linspace(0, 1, 6))
    return f"linear-gradient(90deg, {', '.join('#{:02x}{:02x}{:02x}'.format(*map(int, color)) for color in colors)})"


def check_maps(maps: np.ndarray, count: int, grid: tuple[int, int]) -> np.ndarray:
    """Attention maps as float32 (B, rows, columns); a ValueError for another shape, NaN or infinity."""
    maps = np.asarray(maps, np.float32)
    if maps.shape != (count, *grid) or not np.isfinite(maps).all():
        received = f"shape {maps.shape}" if maps.shape != (count, *grid) else f"{math.nan} or infinity"
        raise ValueError(f"attention: received {received}; allowed: finite numbers of shape {(count, *grid)}")
    return maps
