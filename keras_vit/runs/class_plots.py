"""Pictures of the classes of an evaluation, as PNG files."""

import os

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from keras_vit.runs.plots import ACCURATE, add_title, class_label, save, set_tick_labels

MOST = 50  # bars in a picture


def average_precision_bars(
    values: np.ndarray, class_names: list[str], path: str | os.PathLike, *, title: str = "Average precision"
) -> None:
    """Draws the average precision of each class into a PNG file; see `average_precision_figure`."""
    save(average_precision_figure(values, class_names, title), path)


def average_precision_figure(values: np.ndarray, class_names: list[str], title: str = "") -> Figure:
    """Bars of the average precision of each class, the lowest first; beyond 50 classes only the lowest.

    Args:
        values: (K,); NaN for a class without images, which is left out.
        class_names: The K names.
        title: Above the picture.
    """
    values = np.asarray(values, np.float64)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    shown = order[:MOST]
    figure = Figure(figsize=(7, 1.6 + 0.24 * max(len(shown), 3)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(shown))
    axes.barh(places, values[shown], color=ACCURATE)
    mean = f"mean {values[known].mean():.1%}" if len(known) else "no images"
    if len(known):
        axes.axvline(values[known].mean(), color="black", linestyle="--", linewidth=1.2)
    set_tick_labels(axes.yaxis, places, [class_label(class_names, index, 24) for index in shown], size=8)
    axes.invert_yaxis()
    rest = f", the lowest {MOST} of {len(order)} classes" if len(order) > MOST else ""
    axes.set(xlim=(0, 1), xlabel=f"average precision (%), {mean}{rest}")
    axes.xaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    axes.spines[["top", "right"]].set_visible(False)
    add_title(axes, title)
    return figure
