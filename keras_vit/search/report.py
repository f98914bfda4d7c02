"""One HTML page for a search: its trials, their results and their cost.

The page is one file that opens without a network and includes plotly.js; `keras_vit.report.page` says what it may load and run.
"""

import os
import typing
from importlib import resources

import numpy as np
from plotly.offline import get_plotlyjs

from keras_vit.files import write_text
from keras_vit.report.page import cell, command_cell, render
from keras_vit.search.figures import front_picture, importance_picture, learning_curves, parallel_coordinates
from keras_vit.search.importance import FEWEST_TRIALS, METHOD, importance
from keras_vit.search.labels import LABELS, describe, is_share, label, plain_text, setting_text, show, words
from keras_vit.search.pareto import front, metric, number, signs, smallest_within

NEEDED = ("settings", "axes", "trials", "now", "remaining", "finished")
COSTS = ("latency_ms", "params", "flops")  # drawn against accuracy, objectives or not
STATUSES = ("COMPLETED", "RUNNING", "FAILED")
TITLE = ((" on ", "data"), (", ", "method"))  # what stands before each setting in the title
LEAST_R2 = 0.1  # a forest that explains less of the variance says nothing about importance


def write_report(search: dict[str, typing.Any], path: str | os.PathLike) -> None:
    """Writes the page of a search, finished or running, in one step.

    Args:
        search: Plain values: `settings`, a dictionary; `axes`, each with name, kind ("choice", "int" or "float"), log and
            values; `trials`, each with id, status ("COMPLETED", "RUNNING" or "FAILED"), values, metrics, reason, curve,
            command and continues; `now`, a date; `remaining`, a number or None; `finished`; and, if trials were trained again,
            `retrained`, each with id and test_scores. The first of `settings["objectives"]` ranks the trials, by default
            val_accuracy.
        path: The file.

    Raises:
        ValueError: If a field of the search is missing, or a trial has another status.
    """
    for name in NEEDED:
        if name not in search:
            raise ValueError(f"search: received no {name!r}; allowed: all of {', '.join(NEEDED)}")
    for trial in search["trials"]:
        if trial["status"] not in STATUSES:
            raise ValueError(f"status: received {trial['status']!r} of trial {trial['id']!r}; allowed: {', '.join(STATUSES)}")
    write_text(path, page(search))


def page(search):
    own = resources.files("keras_vit.search").joinpath("templates/figures.js").read_text(encoding="utf-8")
    scripts = [get_plotlyjs().replace("\r\n", "\n").replace("</script", "<\\/script"), own]
    return render("search.html", package="keras_vit.search", scripts=scripts, source="keras-vit search", **content(search))


def content(search):
    """The variables of the template."""
    settings, axes = search["settings"], search["axes"]
    objectives = settings.get("objectives") or {"val_accuracy": "max"}
    goal, sign = next(iter(objectives)), signs(objectives.values())[0]
    done = [trial for trial in search["trials"] if metric(trial, goal) is not None]
    done.sort(key=lambda trial: sign * metric(trial, goal))
    rest = [trial for trial in search["trials"] if metric(trial, goal) is None]
    trials = done + sorted(rest, key=lambda trial: STATUSES.index(trial["status"]))  # best first, failed ones last
    costs = [cost for cost in dict.fromkeys([*COSTS, *objectives]) if cost != goal]
    return {
        "title": "Search" + "".join(f"{before}{settings[name]}" for before, name in TITLE if settings.get(name)),
        "goal": label(goal),
        "objectives": ", ".join(map(label, objectives)),
        "now": search["now"],
        "finished": search["finished"],
        "tiles": tiles(search, trials, done, goal),
        "found": found(done, goal),
        "tradeoffs": list(filter(None, (front_picture(done, objectives, cost) for cost in costs))),
        "board": leaderboard(axes, trials, objectives),
        "curves": list(filter(None, (learning_curves(trials, done, goal, name) for name in ("seconds", "epoch")))),
        "parallel": parallel_coordinates(axes, done, goal),
        "importance": importances(axes, done, goal),
        "failures": [failure(trial) for trial in trials if trial["status"] == "FAILED"],
        "retrained": [retraining(result) for result in search.get("retrained", ())],
        "settings": [[cell(words(name)), cell(setting_text(name, value))] for name, value in settings.items()],
    }


def tiles(search, trials, done, goal):
    """The progress of the search, {name: value}."""
    statuses = [trial["status"] for trial in trials]
    numbers = dict(zip(("done", "running", "failed"), map(statuses.count, STATUSES), strict=True))
    numbers["left"] = "unknown" if search["remaining"] is None else search["remaining"]
    if done:
        numbers[f"best {label(goal)}"] = show(goal, metric(done[0], goal))
    return numbers


def found(done, goal):
    """The trials that the page begins with, {why: {"words", "command"}}."""
    trials = {"Best": done[0]} if done else {}
    if is_share(goal) and (small := smallest_within(done, accuracy=goal)):
        trials["Smallest within 1 point of the best"] = small
        if small is done[0]:
            trials = {"Best, and smallest within 1 point of it": small}
    words = {why: ", ".join(describe(trial, goal, *COSTS)) for why, trial in trials.items()}
    return {why: {"words": words[why], "command": trial.get("command")} for why, trial in trials.items()}


def leaderboard(axes, trials, objectives):
    goal, best = next(iter(objectives)), [trial["id"] for trial in front(trials, objectives)]
    present = {name for trial in trials for name in trial.get("metrics") or {} if metric(trial, name) is not None}
    metrics = [name for name in dict.fromkeys([goal, *LABELS, *sorted(present)]) if name in present]
    values = dict.fromkeys([*(axis["name"] for axis in axes), *(name for trial in trials for name in trial["values"])])
    rows = []
    for trial in trials:
        columns = [(name, metric(trial, name)) for name in metrics] + [(name, trial["values"].get(name)) for name in values]
        status = trial["status"].lower() + (", front" if trial["id"] in best else "")
        row = [cell(trial["id"]), cell(status), *(cell(show(name, value), number(value)) for name, value in columns)]
        rows.append([*row, cell(plain_text(trial.get("continues"))), command_cell(trial.get("command"))])
    return {"names": ["trial", "status", *map(label, metrics), *map(label, values), "continues trial", "command"], "rows": rows}


def importances(axes, done, goal):
    """A picture, or a text that says why there is none."""
    result = importance(done, axes, goal)
    if result is None:
        needed = f"{FEWEST_TRIALS} of different configurations and results are needed"
        return {"picture": None, "text": f"Importance: too few trials, {len(done)} with a result; {needed}. {METHOD}"}
    values, r2 = result
    quality = f"On {len(done)} trials the forest has R² = {r2:.2f} (1: it explains all, 0: nothing)."
    if r2 < LEAST_R2:
        return {"picture": None, "text": f"Importance: none visible. {quality} {METHOD}"}
    return {"picture": importance_picture(values, f"{quality} {METHOD} Grey: standard deviation."), "text": ""}


def failure(trial):
    settings = ", ".join(describe(trial)[1:])
    return [cell(trial["id"]), cell(plain_text(trial["reason"])), cell(settings), command_cell(trial.get("command"))]


def retraining(result):
    """The results on the test images of a trial that was trained again: mean, standard deviation and each seed."""
    seeds = result["test_scores"]
    mean = f"{np.mean(seeds):.2%}" if seeds else ""
    spread = f"{100 * np.std(seeds, ddof=1):.2f} points" if len(seeds) > 1 else ""
    return [cell(result["id"]), cell(mean), cell(spread), cell(", ".join(f"{seed:.2%}" for seed in seeds) or "failed")]
