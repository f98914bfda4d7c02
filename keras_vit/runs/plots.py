"""Pictures of batches, runs and evaluations, as PNG files: arrays and rows in, a file out.

Each picture has a figure of its own, without pyplot: no window and no global state. Any thread can draw.
"""

import functools
import io
import math
import os
import unicodedata

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.colors import PowerNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from keras_vit.files import atomic_path
from keras_vit.runs.calibration import Calibration

DPI = 150
MAPS = 32  # most position maps in a row or column of a picture
# Okabe and Ito's colours without yellow and black: people with any kind of colour blindness can tell them apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
ACCURATE, GAP, GREY = "#9CC9E8", "#D55E00", "#777777"
# Fallbacks for Chinese, Japanese and Korean, which DejaVu Sans lacks; used if the machine has them.
WIDE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Arial Unicode MS",
)


def batch_picture(
    images: np.ndarray, targets: np.ndarray, class_names: list[str], path: str | os.PathLike, *, limit: int = 64
) -> None:
    """Draws the images of a batch with their labels, and the weight of each label unless it is 1.

    Args:
        images: uint8 (B, H, W, C).
        targets: Soft labels (B, K). The one or two largest are shown if they exceed the weight that label smoothing gives
            to every class; of several labels an image the four largest, or a dash if it has none.
        class_names: The K names; none = no labels are drawn.
        path: The PNG file to write.
        limit: Most images to draw.
    """
    images, targets = np.asarray(images), np.asarray(targets, np.float64)
    total, height, width, _ = images.shape
    images, targets = images[:limit], targets[:limit]
    # Lengths are in inches; the axes cover the whole figure and have inches as their unit.
    columns = min(8, len(images))
    rows = math.ceil(len(images) / columns)
    scale = 1.4 / max(height, width)
    image_width, image_height, font_size = width * scale, height * scale, 8
    cell_width, line = max(image_width, 1.0) + 0.14, font_size * 1.3 / 72
    characters = int(cell_width * 72 / (0.62 * font_size))
    labels = [label_lines(target, class_names, characters) if class_names else [] for target in targets]
    cell_height, top, margin = image_height + max(map(len, labels)) * line + 0.16, 0.42, 0.1
    figure_width, figure_height = max(columns * cell_width, 4.5) + 2 * margin, rows * cell_height + top + margin
    figure = Figure(figsize=(figure_width, figure_height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    shown = f"{total} images" if len(images) == total else f"first {len(images)} of {total} images"
    add_text(axes, margin + 0.07, 0.2, f"Augmented training batch, {shown}", size=11, va="center")
    left = (figure_width - columns * cell_width) / 2
    for index, (image, lines) in enumerate(zip(displayable(images), labels, strict=True)):
        x = left + (index % columns) * cell_width + (cell_width - image_width) / 2
        y = top + (index // columns) * cell_height
        extent = (x, x + image_width, y + image_height, y)
        axes.imshow(image, extent=extent, cmap="gray", vmin=0, vmax=255)
        for number, label in enumerate(lines):
            below = y + image_height + 0.03 + number * line
            add_text(axes, x + image_width / 2, below, label, size=font_size, ha="center", va="top")
    axes.set(xlim=(0, figure_width), ylim=(figure_height, 0), aspect="auto")
    save(figure, path)


def displayable(images):
    """uint8 (B, H, W, C) as Matplotlib draws it: RGB (B, H, W, 3), or the first channel as grey (B, H, W)."""
    return images[..., :3] if images.shape[-1] >= 3 else images[..., 0]


def label_lines(target, class_names, characters):
    """A line for each class whose weight exceeds the smallest one, with its weight unless that is 1; at most two, or four."""
    several = abs(target.sum() - 1) > 0.005  # labels of one class sum to 1, mixed and smoothed too
    largest = np.argsort(-target, kind="stable")[: 4 if several else 2]
    floor = target.min() if len(target) > 2 else 0.0
    if several and target[largest[0]] <= floor + 0.005:
        return ["all" if floor > 0.5 else "–"]
    chosen = [index for index in largest if target[index] > floor + 0.005] or largest[:1]
    weights = ["" if target[index] > 0.995 else f" {target[index]:.2f}" for index in chosen]
    return [
        class_label(class_names, index, characters - len(weight)) + weight for index, weight in zip(chosen, weights, strict=True)
    ]


def curves(runs: dict[str, list[dict]], path: str | os.PathLike) -> None:
    """Draws loss and accuracy over epochs and over seconds, and the time of every epoch; mAP where no run has an accuracy.

    Runs of pre-training have neither.

    Args:
        runs: The rows of each run's metrics, as `RunFolder.metrics`, by the run's name. A run without rows has no line.
        path: The PNG file to write.
    """
    figure = Figure(figsize=(14, 7.5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    grid = figure.subplots(2, 3)
    drawn = panels(runs)
    for axes, (metric, x) in zip(grid.flat, drawn, strict=False):
        draw_panel(axes, runs, metric, x)
    for axes in grid.flat[len(drawn) :]:
        axes.set_axis_off()
    lines = [Line2D([], [], color=color, linewidth=2.5) for color in run_colors(len(runs))]
    lines += [Line2D([], [], color="black", linewidth=1.8), Line2D([], [], color="black", linestyle="--", linewidth=1.2)]
    names = [shorten(legible(name), 44) for name in runs] + ["validation", "training, as augmented"]
    legend = grid[1, 2].legend(lines, names, loc="upper left", frameon=False, prop={"family": list(fonts()), "size": 10})
    for text in legend.get_texts():
        text.set_parse_math(False)
    save(figure, path)


def curve_figures(runs: dict[str, list[dict]]) -> dict[str, Figure]:
    """The panels of `curves`, each a figure of its own by its title, without a legend."""
    figures = {}
    for metric, x in panels(runs):
        figure = Figure(figsize=(5.2, 3.3), layout="constrained")
        title = draw_panel(figure.add_subplot(), runs, metric, x, titled=False)
        figures[title] = figure
    return figures


def panels(runs):
    """(metric, what it is drawn over) of each panel of the curves."""
    names = {name for metrics in runs.values() for row in metrics for name in row}
    quality = next((name for name in ("accuracy", "map") if f"val_{name}" in names or name in names), "" if names else "accuracy")
    found = (("loss", "epoch"), ("loss", "seconds"), ("epoch_seconds", "epoch"))
    return (*found, (quality, "epoch"), (quality, "seconds")) if quality else found  # a pre-training has a loss alone


# Title and unit of a metric of the curves, and the factor that gives the unit.
PANELS = {
    "loss": ("Loss", "loss (nats)", 1),
    "accuracy": ("Accuracy", "accuracy (%)", 100),
    "map": ("Mean average precision", "mean average precision (%)", 100),
    "epoch_seconds": ("Time per epoch", "time (s)", 1),
}


def draw_panel(axes, runs, metric, x, titled=True):
    """Draws one metric of all runs over epochs or seconds; returns the title."""
    title, unit, factor = PANELS[metric]
    if metric != "epoch_seconds":
        title += " over epochs" if x == "epoch" else " over time"
    for metrics, color in zip(runs.values(), run_colors(len(runs)), strict=True):
        marker = {"marker": "o", "markersize": 3} if len(metrics) <= 30 else {}
        validation = {"color": color, "linewidth": 1.8, **marker}
        if metric == "epoch_seconds":
            axes.plot(*series(metrics, x, metric), **validation)
            continue
        axes.plot(*series(metrics, x, metric, factor), color=color, linestyle="--", linewidth=1.2, alpha=0.8, **marker)
        axes.plot(*series(metrics, x, f"val_{metric}", factor), **validation)
    axes.set(title=title if titled else "", xlabel="epoch" if x == "epoch" else "training time (s)", ylabel=unit)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=x == "epoch"))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.4g}" if x == "epoch" else "{x:,g}"))
    if metric == "epoch_seconds":
        axes.set_ylim(bottom=0)
    return title


def series(metrics, x, y, factor=1):
    """The values of two columns, from the epochs with both: not every epoch is validated."""
    points = [(row[x], factor * row[y]) for row in metrics if x in row and y in row]
    return tuple(zip(*points, strict=True)) or ((), ())


def run_colors(count):
    """A colour for each run: `COLORS`, or shades of one scale for more runs than that."""
    return COLORS[:count] if count <= len(COLORS) else colormaps["viridis"](np.linspace(0, 0.92, count))


def confusion(matrix: np.ndarray, class_names: list[str], path: str | os.PathLike, *, title: str = "Confusion matrix") -> None:
    """Draws a confusion matrix into a PNG file; see `confusion_figure`."""
    save(confusion_figure(matrix, class_names, title), path)


def confusion_figure(matrix: np.ndarray, class_names: list[str], title: str = "") -> Figure:
    """A confusion matrix, coloured by the share of the true class on a square-root scale, which shows rare errors.

    Args:
        matrix: Counts (K, K); row = true class, column = predicted class. The row of a class without images is grey.
        class_names: The K names.
        title: Above the picture.
    """
    matrix = np.asarray(matrix)
    classes = len(matrix)
    totals = matrix.sum(axis=1, keepdims=True)
    share = np.where(totals > 0, matrix / np.maximum(totals, 1), np.nan)
    side = min(max(4.5, 2.2 + 0.55 * classes), 10)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("#cccccc")
    # With hundreds of classes a cell is smaller than a pixel, and averaging would fade single errors.
    picture = axes.imshow(share, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    axes.set(xlabel="predicted class", ylabel="true class")
    add_title(axes, title)
    step = math.ceil(classes / 50)
    ticks = np.arange(0, classes, step)
    size = 9 if classes <= 20 else 7
    names = [class_label(class_names, index, 18) for index in ticks]
    upright = max(text_width(name) for name in names) * len(names) * size * 0.6 > 72 * 0.75 * side
    set_tick_labels(axes.xaxis, ticks, names, size=size, rotation=90 if upright else 0)
    set_tick_labels(axes.yaxis, ticks, names, size=size)
    if classes <= 20:
        for row, column in np.ndindex(matrix.shape):
            if matrix[row, column]:
                color = "white" if share[row, column] > 0.35 else "black"
                label = f"{matrix[row, column]:,}"
                axes.text(column, row, label, ha="center", va="center", size=8 if len(label) < 5 else 7, color=color)
    bar = figure.colorbar(picture, ax=axes, shrink=0.8, label="share of the true class (%)")
    bar.set_ticks((0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1))
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=""))
    return figure


def reliability(calibration: Calibration, path: str | os.PathLike, *, title: str = "Reliability") -> None:
    """Draws a reliability diagram into a PNG file; see `reliability_figure`."""
    save(reliability_figure(calibration, title), path)


def reliability_figure(calibration: Calibration, title: str = "") -> Figure:
    """A reliability diagram: accuracy against confidence, and the share of images in each bin of confidence.

    Args:
        calibration: A `Calibration`, as `Evaluation.calibration`.
        title: Above the picture.

    Source: figure 1 of 'On calibration of modern neural networks' (arXiv 1706.04599).
    """
    edges, count = np.asarray(calibration.edges), np.asarray(calibration.count)
    filled = count > 0
    left, width = edges[:-1][filled], np.diff(edges)[filled]
    accuracy, confidence = np.asarray(calibration.accuracy)[filled], np.asarray(calibration.confidence)[filled]
    figure = Figure(figsize=(5.8, 6.8), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.bar(left, accuracy, width, align="edge", color=ACCURATE, edgecolor="white", linewidth=1, label="accuracy")
    upper.bar(
        left,
        confidence - accuracy,
        width,
        bottom=accuracy,
        align="edge",
        facecolor=to_rgba(GAP, 0.15),
        edgecolor=GAP,
        linewidth=1,
        hatch="////",
        label="gap to the mean confidence",
    )
    upper.plot((0, 1), (0, 1), color="black", linestyle="--", linewidth=1.2, label="perfect calibration")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy (%)")
    add_title(upper, title)
    error = f"ECE = {100 * calibration.error:.2f}%, {len(count)} bins, {count.sum():,} images"
    # Above the axes: within them it would lie on the bars of a model that is not sure enough.
    style = {"frameon": False, "fontsize": 9, "title_fontsize": 10, "alignment": "left"}
    figure.legend(*upper.get_legend_handles_labels(), loc="outside upper left", title=error, **style)
    lower.bar(left, count[filled] / count.sum(), width, align="edge", color=GREY, edgecolor="white", linewidth=0.8)
    lower.set(xlabel="confidence (%)", ylabel="images (%)")
    for axis in (upper.yaxis, lower.yaxis, lower.xaxis):
        axis.set_major_formatter(PercentFormatter(1, symbol=""))
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def position_maps(similarity: np.ndarray, path: str | os.PathLike, *, title: str = "Position embedding similarity") -> None:
    """Draws a map for each position: the similarity of its embedding to every position's.

    The colours run from the smallest similarity, rounded down to a tenth, to 1. A grid beyond 32 rows or columns shows the
    maps of every second, third... position; each map is complete.

    Args:
        similarity: (rows, columns, rows, columns), as from `keras_vit.explain.positions.position_similarity`.
        path: The PNG file to write.
        title: Above the picture.

    Source: figure 7 (centre) of 'An image is worth 16x16 words' (arXiv 2010.11929).
    """
    similarity = np.asarray(similarity, np.float32)
    low = min(math.floor(10 * similarity.min()) / 10, 0.9)
    step = math.ceil(max(similarity.shape) / MAPS)
    similarity = similarity[::step, ::step]
    number_of_rows, number_of_columns, rows, columns = similarity.shape
    # One image with gaps between the maps, as hundreds of axes would take minutes.
    factor = max(1, round(48 / max(rows, columns)))  # pixels a value, so that a gap can be narrower than a value
    gap = max(1, round(factor * max(rows, columns) / 10))
    high, wide = rows * factor + gap, columns * factor + gap  # a map and its gap
    canvas = np.full((number_of_rows, high, number_of_columns, wide), np.nan, np.float32)
    maps = similarity.repeat(factor, axis=2).repeat(factor, axis=3)
    canvas[:, : high - gap, :, : wide - gap] = maps.transpose(0, 2, 1, 3)
    canvas = canvas.reshape(number_of_rows * high, number_of_columns * wide)[:-gap, :-gap]
    scale = min(max(max(canvas.shape) / DPI, 7.5), 14) / max(canvas.shape)
    size = (max(canvas.shape[1] * scale, 3.5) + 1.6, max(canvas.shape[0] * scale, 1.6) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(canvas, cmap="viridis", vmin=low, vmax=1)
    axes.set(xlabel="input patch column", ylabel="input patch row")
    add_title(axes, title if step == 1 else f"{title}, in steps of {step}")
    axes.spines[:].set_visible(False)
    for axis, number, length in ((axes.xaxis, number_of_columns, wide), (axes.yaxis, number_of_rows, high)):
        shown = np.arange(0, number, math.ceil(number / 16))
        axis.set_ticks(shown * length + (length - gap) / 2 - 0.5, [str(step * index + 1) for index in shown])
        axis.set_tick_params(length=0)
    figure.colorbar(picture, ax=axes, label="cosine similarity", shrink=0.85)
    save(figure, path)


def class_label(class_names, index, width):
    """A class's name cut to a width, or its number if the fonts lack one of the name's characters."""
    name = legible(class_names[index], missing="\0")
    return f"#{index}" if "\0" in name else shorten(name, width)


def legible(text, missing="?"):
    """The text on one line, with `missing` for characters that the fonts lack.

    Letters and accents are composed first, since some file systems split them.
    """
    text = " ".join(unicodedata.normalize("NFC", str(text)).split())
    return "".join(c if ord(c) in drawable() else missing for c in text if c.isprintable())


def shorten(text, width):
    """The text cut to `width` characters by an ellipsis in the middle."""
    if text_width(text) <= width:
        return text
    end = max((width - 1) // 3, 0)
    head, tail = text, ""
    while head and text_width(head) > width - 1 - end:
        head = head[:-1]
    for c in reversed(text):
        if text_width(c + tail) > end:
            break
        tail = c + tail
    return f"{head.rstrip()}…{tail.lstrip()}"


def text_width(text):
    """Width of a text in Latin characters; a Chinese, Japanese or Korean character counts as two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


@functools.cache
def fonts():
    """Font families in which to look for a character, in order."""
    known = set(font_manager.get_font_names())
    return ("DejaVu Sans", *(name for name in WIDE_FONTS if name in known))


@functools.cache
def drawable():
    """The code points in `fonts()`."""
    return frozenset().union(*(font_manager.get_font(font_manager.findfont(name)).get_charmap() for name in fonts()))


def add_text(axes, x, y, text, **options):
    """Adds a text without parsing dollar signs, in fonts that have Chinese, Japanese and Korean."""
    axes.text(x, y, text, family=list(fonts()), parse_math=False, **options)


def add_title(axes, title):
    axes.set_title(legible(title), size=11, family=list(fonts()), parse_math=False)


def set_tick_labels(axis, ticks, labels, **options):
    axis.set_ticks(ticks, labels, family=list(fonts()), parse_math=False, **options)


def save(figure, path):
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def encode(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI)
    return out.getvalue()
