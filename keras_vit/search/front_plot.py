"""The trade-off of a search as a PNG file: what accuracy costs."""

import os
import typing

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter

from keras_vit.runs.plots import COLORS, add_title, save
from keras_vit.search.labels import LOGARITHMIC, is_share, label
from keras_vit.search.pareto import front, metric

COST = "params"  # where the search has one objective
NAMED = 8  # trials of the front whose numbers are written


def draw_front(
    trials: list[dict[str, typing.Any]], objectives: dict[str, str], path: str | os.PathLike, *, title: str = "Search"
) -> bool:
    """Draws each trial's first objective against the second one, or the parameters, with a line along the Pareto front.

    Args:
        trials: As of `write_report`.
        objectives: "max" or "min" by the metric's name.
        path: The PNG file to write.
        title: Above the picture.

    Returns:
        Whether there was a trial to draw; otherwise no file is written.
    """
    goal, cost = [*objectives, COST][:2]
    known = [trial for trial in trials if None not in (metric(trial, goal), metric(trial, cost))]
    best = front(known, {goal: objectives[goal], cost: objectives.get(cost, "min")})
    if not best:
        return False
    best = sorted(best, key=lambda trial: metric(trial, cost))
    others = [trial for trial in known if not any(trial is each for each in best)]
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for chosen, color, name, line in ((others, COLORS[0], "trial", "none"), (best, COLORS[1], "on the Pareto front", "solid")):
        x, y = ([metric(trial, name) for trial in chosen] for name in (cost, goal))
        axes.plot(x, y, linestyle=line, drawstyle="steps-post", marker="o", markersize=5, color=color, label=name)
    for trial in best[:NAMED]:
        at = metric(trial, cost), metric(trial, goal)
        axes.annotate(f"{trial['id']}", at, xytext=(0, 5), textcoords="offset points", size=8, ha="center")
    if cost in LOGARITHMIC:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel=label(cost), ylabel=label(goal))
    if is_share(goal):
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    add_title(axes, title)
    save(figure, path)
    return True
