"""One HTML page for a search: what was tried, what came of it, at what cost.

The page is one file that opens without a network: plotly.js lies in it, and its content security policy, which names the
page's two scripts by their hashes, lets it load nothing and run nothing else. All that comes from the search is escaped.
"""

import base64
import hashlib
import html
import json
import math
import os
import tomllib
import typing
from pathlib import Path

import numpy as np

from keras_vit.files import write_text
from keras_vit.search.pareto import front, metric, number, signs, smallest_within

NEEDED = ("settings", "axes", "trials", "now", "remaining", "finished")
LABELS = {  # of metrics, in the order of the leaderboard's columns
    "val_accuracy": "validation accuracy",
    "best_val_accuracy": "best epoch's accuracy",
    "latency_ms": "latency (ms)",
    "batch_latency_ms": "batch latency (ms)",
    "params": "parameters",
    "flops": "FLOPs per image",
    "epochs": "epochs",
    "train_seconds": "training (s)",
    "process_seconds": "process (s)",
    "images_per_second": "images per second",
    "memory_mb": "peak memory (MB)",
    "overhead_seconds": "beyond training (s)",
    "seconds": "seconds of training",
}
COSTS = ("latency_ms", "params", "flops")  # drawn against accuracy, whether they were an objective or not
LOGARITHMIC = ("params", "flops")
ORDER = ("COMPLETED", "RUNNING", "FAILED")
# Groups of trials by rank. Viridis from dark to light, and grey: on white the best stand out.
BANDS = ((0.1, "best 10%", "#440154"), (0.25, "to 25%", "#3b528b"), (0.5, "to 50%", "#21918c"), (1, "rest", "#b4bcc3"))
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#8a929a"
# Permutation importance: fewer trials, or a forest that explains less of the variance, say nothing.
FEWEST_TRIALS, LEAST_R2 = 10, 0.1
TREES, FOLDS, PARTITIONS, SHUFFLES = 32, 5, 3, 2
ROUNDING = 1e-18  # of a variance: equal results may differ in the last bit from their mean
METHOD = f"""Method: permutation importance (scikit-learn) of a random forest of {TREES} trees, cross-validated in {FOLDS} folds
{PARTITIONS} times: how much less of the variance of held-out trials the forest explains once the values of one hyperparameter
are shuffled. Trials of different lengths are compared within their length."""
PROJECT = Path(__file__).parents[1] / "pyproject.toml"
FEW = 12  # names or values are written into a picture
NOTHING = "Nothing yet: no trial has a result."


def write_report(search: dict[str, typing.Any], path: str | os.PathLike) -> None:
    """Writes the page of a search, finished or running, in one step.

    Args:
        search: Plain values: `settings`, a dictionary; `axes`, each with name, kind ("choice", "int" or "float"), log and
            values; `trials`, each with id, status ("COMPLETED", "RUNNING" or "FAILED"), values, metrics, reason, curve,
            command and continues; `now`, a date; `remaining`, a number or None; `finished`; and, where trials have been
            trained again, `retrained`, each with id and test_accuracies.
            The first of `settings["objectives"]` ranks the trials; val_accuracy where there are none.
        path: Where the page goes.

    Raises:
        ValueError: If a field of the search is missing, or a trial has another status.
    """
    for name in NEEDED:
        if name not in search:
            raise ValueError(f"search: received no {name!r}; needed: {', '.join(NEEDED)}")
    for trial in search["trials"]:
        if trial["status"] not in ORDER:
            raise ValueError(f"search: trial {trial['id']!r} has status {trial['status']!r}; allowed: {', '.join(ORDER)}")
    write_text(path, page(search))


def page(search):
    from plotly.offline import get_plotlyjs

    settings, axes = search["settings"], search["axes"]
    objectives = settings.get("objectives") or {"val_accuracy": "max"}
    goal, sign = next(iter(objectives)), signs(objectives.values())[0]
    done = [trial for trial in search["trials"] if metric(trial, goal) is not None]
    done.sort(key=lambda trial: sign * metric(trial, goal))
    rest = [trial for trial in search["trials"] if metric(trial, goal) is None]
    trials = done + sorted(rest, key=lambda trial: ORDER.index(trial["status"]))  # best first, failed ones last
    title = " ".join(["Search", *(str(settings[name]) for name in ("method", "data") if settings.get(name))])
    sections = {
        "Trade-off": grid([front_picture(done, objectives, cost) for cost in dict.fromkeys([*COSTS, *objectives]) if cost != goal]),
        "Leaderboard": leaderboard(axes, trials, objectives),
        "Learning curves": grid([learning_curves(trials, done, goal, name) for name in ("seconds", "epoch")]),
        "Hyperparameters": parallel_coordinates(axes, done, goal) + importance_picture(axes, done, goal),
        "Failures": failures(trials),
        **({"Retrained": retrained(search["retrained"])} if search.get("retrained") else {}),
        "Settings": table(("setting", "value"), [(cell(name), cell(value)) for name, value in settings.items()]),
    }
    body = "".join(f"<section><h2>{name}</h2>{content or note(NOTHING)}</section>" for name, content in sections.items())
    version = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["version"]
    scripts = (get_plotlyjs().replace("\r\n", "\n").replace("</script", "<\\/script"), SCRIPT)
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src {hashes}; style-src 'unsafe-inline';
 img-src data: blob:; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)} · keras_vit</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>{summary(search, trials, done, goal)}</header>
<main>{body}</main>
<footer>keras_vit {version} · written by tuning/report.py · {escape(search["now"])}</footer>
<script>{scripts[0]}</script>
<script>{scripts[1]}</script>
</body>
</html>
"""


def summary(search, trials, done, goal):
    """How far the search is, and what it has found."""
    statuses = [trial["status"] for trial in trials]
    tiles = dict(zip(("done", "running", "failed"), map(statuses.count, ORDER), strict=True))
    tiles["left"] = "unknown" if search["remaining"] is None else search["remaining"]
    found = {}
    if done:
        tiles[f"best {label(goal)}"] = show(goal, metric(done[0], goal))
        found["Best"] = done[0]
    if goal == "val_accuracy" and (small := smallest_within(done)):
        found["Smallest within 1 point of the best"] = small
        if small is done[0]:
            found = {"Best, and smallest within 1 point of it": small}
    parts = [f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles.items()]
    running = f"Running, as of {search['now']}. Load the page again to see what has happened since."
    parts = [f"<dl>{''.join(parts)}</dl>", note("Finished." if search["finished"] else running)]
    for name, trial in found.items():
        parts.append(f"<h3>{name}</h3>{note(', '.join(describe(trial, goal, *COSTS)))}{command_line(trial)}")
    return "".join(parts)


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
        rows.append([*row, cell(trial.get("continues")), f"<td>{command_line(trial)}</td>"])
    text = f"Best {label(goal)} first; the name of a column sorts by it. No other trial beats those on the front in all of:"
    names = ["trial", "status", *map(label, metrics), *values, "continues", "command"]
    return rows and note(f"{text} {', '.join(map(label, objectives))}.") + table(names, rows, "sortable")


def failures(trials):
    rows = [
        [cell(trial["id"]), cell(trial["reason"]), cell(", ".join(describe(trial)[1:])), f"<td>{command_line(trial)}</td>"]
        for trial in trials
        if trial["status"] == "FAILED"
    ]
    return table(("trial", "reason", "configuration", "command"), rows, "words") if rows else note("No trial has failed.")


def retrained(results):
    """The test accuracies of trials that were trained again: each seed, mean and standard deviation."""
    rows = []
    for result in results:
        seeds = result["test_accuracies"]
        mean = f"{np.mean(seeds):.2%}" if seeds else ""
        spread = f"{100 * np.std(seeds, ddof=1):.2f} points" if len(seeds) > 1 else ""
        rows.append([cell(result["id"]), cell(mean), cell(spread), cell(", ".join(f"{seed:.2%}" for seed in seeds) or "failed")])
    names = ("trial", "test accuracy, mean", "standard deviation", "each seed")
    return note("Trained again on train and validation images; the test images were read once for each.") + table(names, rows)


# Pictures: the traces and layouts of plotly.js, as plain dictionaries.


def front_picture(done, objectives, cost):
    """Accuracy against one cost; nothing where no trial has that cost."""
    goal = next(iter(objectives))
    best = front(done, {goal: objectives.get(goal, "max"), cost: objectives.get(cost, "min")})[::-1]
    if not best:
        return ""
    known = [trial for trial in done if metric(trial, cost) is not None]
    others = [trial for trial in known if not any(trial is other for other in best)]

    def points(trials):
        for trial in trials:
            yield metric(trial, cost), metric(trial, goal), "<br>".join(map(escape, describe(trial, goal, cost)))

    names = {"mode": "lines+markers+text", "text": [escape(trial["id"]) for trial in best], "textposition": "top center"}
    traces = [
        trace("other trials", [*points(others)], BLUE, mode="markers", marker={"size": 8, "opacity": 0.5}),
        trace("front", [*points(best)], VERMILION, line={"shape": "hv"}, **(names if len(best) <= FEW else {})),
    ]
    ends = [f"{show(goal, metric(trial, goal))} at {show(cost, metric(trial, cost))}" for trial in (best[0], best[-1])]
    caption = f"{len(best)} of {len(known)} trials are on the front: {' to '.join(dict.fromkeys(ends))}."
    scale = {"type": "log", "dtick": "D2", "exponentformat": "SI"} if cost in LOGARITHMIC else {}
    traces = [one for one in traces if one["x"]]
    return picture(f"{label(goal)} against {label(cost)}", caption, traces, axis_of(cost, **scale), axis_of(goal))


def bands(done, goal):
    """The trials in groups by their rank: name, colour, trials. The worst come first: the best are drawn above them."""
    groups, start = [], 0
    for share, name, color in BANDS:
        group, start = done[start : math.ceil(share * len(done))], math.ceil(share * len(done))
        values = dict.fromkeys(show(goal, metric(trial, goal)) for trial in group[-1:] + group[:1])
        groups.append((f"{name}: {' – '.join(values)}", color, group[::-1]))
    return groups[::-1]


def learning_curves(trials, done, goal, x_name):
    goal = goal if any(goal in row for trial in trials for row in trial["curve"]) else "val_accuracy"
    known = {trial["id"]: trial for trial in trials}

    def points(trial):
        rows, before = trial["curve"], known.get(trial.get("continues"))
        if before and before["curve"]:  # the line begins where the one before has ended
            last = before["curve"][-1]
            rows = [last, *(row for row in rows if row["epoch"] > last["epoch"])]
        for row in rows:
            x, y, seconds = (number(row.get(name)) for name in (x_name, goal, "seconds"))
            if x is not None and y is not None:
                yield x, y, escape(f"trial {trial['id']}: {show(goal, y)}, epoch {row['epoch']}, {show('', seconds)} s")

    failed, running = ([trial for trial in trials if trial["status"] == status] for status in ("FAILED", "RUNNING"))
    traces = lines([("failed", GREY, failed), *bands(done, goal), ("running", VERMILION, running)], points)
    caption = "Groups by rank; a click on one hides it."
    if any(trial.get("continues") for trial in trials):
        caption += " A trial that goes on with another one begins at the end of that one."
    return traces and picture(f"{label(goal)} over {label(x_name)}", caption, traces, axis_of(x_name), axis_of(goal))


def parallel_coordinates(axes, done, goal):
    rows = {trial["id"]: {**trial["values"], goal: metric(trial, goal)} for trial in done}
    axes = [axis for axis in axes if any(row.get(axis["name"]) is not None for row in rows.values())]
    if not axes:
        return note(NOTHING)
    axes.append({"name": goal, "kind": "float", "values": []})
    scales = [scale(axis, [row.get(axis["name"]) for row in rows.values()]) for axis in axes]
    ranks = {name: index / len(rows) for index, name in enumerate(rows)}

    def points(trial):
        for at, (axis, (place, _, spread)) in enumerate(zip(axes, scales, strict=True)):
            value = rows[trial["id"]].get(axis["name"])
            shift = spread * (0.5 - ranks[trial["id"]])
            text = f"trial {trial['id']}: {show(goal, metric(trial, goal))}, {axis['name']} {show(axis['name'], value)}"
            yield at, None if value is None else place(value) + shift, escape(text)

    look = {"showarrow": False, "xanchor": "left", "xshift": 4, "bgcolor": "rgba(255,255,255,.75)"}
    marks = [
        {"x": at, "y": place(value), "text": escape(show(axis["name"], value)), **look}
        for at, (axis, (place, values, _)) in enumerate(zip(axes, scales, strict=True))
        for value in values
    ]
    ticks = {"tickvals": list(range(len(axes))), "ticktext": [escape(axis["name"]) for axis in axes]}
    x_axis, y_axis = {**ticks, "gridcolor": GREY, "range": [-0.5, len(axes) - 0.4]}, {"visible": False, "range": [-0.1, 1.1]}
    caption = "A line is a trial, the darker the better; a click on a group hides it. On one value the better trials lie higher."
    traces = lines(bands(done, goal), points)
    return picture("Parallel coordinates", caption, traces, x_axis, y_axis, width=95 * len(axes), annotations=marks)


def scale(axis, values):
    """Where a value of an axis lies, a function to 0..1; the values to be written beside it; the room for trials of one value."""

    def key(value):
        return plain_text(value) if number(value) is None else number(value)

    known = {key(value): value for value in [*axis["values"], *values] if value is not None}
    order = sorted(known, key=lambda name: (isinstance(name, str), name))
    named = axis["kind"] == "choice" or any(isinstance(name, str) for name in order)
    warp, back = (math.log, math.exp) if axis.get("log") and not named and order and order[0] > 0 else (float, float)
    warp = order.index if named else warp
    low, high = (warp(order[0]), warp(order[-1])) if order else (0, 1)
    all_marked = named or (axis["kind"] == "int" and len(order) <= FEW)
    marks = [known[name] for name in order] if all_marked else dict.fromkeys(map(back, (low, (low + high) / 2, high)))
    room = 0.0 if axis["kind"] == "float" else min(0.15, 0.4 / max(len(order), 1))
    return lambda value: (warp(key(value)) - low) / ((high - low) or 1), list(marks), room


def importance(
    trials: list[dict], axes: list[dict], goal: str = "val_accuracy"
) -> tuple[dict[str, tuple[float, float]], float] | None:
    """How much each axis decides the result: permutation importance of a random forest, on trials that it has not seen.

    For each of 5 folds a forest is fitted to the other trials; the importance of an axis is by how much the share of the
    variance that the forest explains (R²) falls when the axis's values are shuffled among the fold's trials. That is done
    twice for each of 3 partitions into folds. A result counts relative to the mean of the trials with as many epochs, so
    that Hyperband's short trials can be compared with its long ones; trials of one configuration are in one fold, so that
    none is predicted from its twin.

    Returns:
        For each axis that varies the mean and the standard deviation over the shuffles, and the R² of all held-out
        predictions. None for fewer than 10 configurations with a result, and where no axis or no result varies.

    Source: Breiman 2001, 'Random forests', section 10; scikit-learn's `permutation_importance`.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.model_selection import GroupKFold

    done = sorted((trial for trial in trials if metric(trial, goal) is not None), key=lambda trial: trial["id"])
    columns = {}
    for axis in axes:
        place, *_ = scale(axis, values := [trial["values"].get(axis["name"]) for trial in done])
        columns[axis["name"]] = [-1.0 if value is None else place(value) for value in values]
    columns = {name: column for name, column in columns.items() if len(set(column)) > 1}
    configurations = list(zip(*columns.values(), strict=True))
    target, epochs = (np.array([metric(trial, name) for trial in done], float) for name in (goal, "epochs"))
    epochs = np.nan_to_num(epochs)
    for length in np.unique(epochs):
        target[epochs == length] -= target[epochs == length].mean()
    if len(set(configurations)) < FEWEST_TRIALS or not target.var() > ROUNDING:
        return None
    groups = np.unique(configurations, axis=0, return_inverse=True)[1].ravel()
    table, left, losses = np.array(configurations), 0.0, np.zeros((len(columns), PARTITIONS, SHUFFLES))
    how = {"scoring": "neg_mean_squared_error", "n_repeats": SHUFFLES, "random_state": 0}
    for partition in range(PARTITIONS):
        for seen, held_out in GroupKFold(FOLDS, shuffle=True, random_state=partition).split(table, groups=groups):
            forest = RandomForestRegressor(TREES, random_state=0).fit(table[seen], target[seen])
            left += ((forest.predict(table[held_out]) - target[held_out]) ** 2).sum()
            shuffled = permutation_importance(forest, table[held_out], target[held_out], **how)
            losses[:, partition] += len(held_out) * shuffled.importances  # (axes, SHUFFLES)
    total = len(target) * target.var()
    found = zip((losses / total).mean(axis=(1, 2)).tolist(), (losses / total).std(axis=(1, 2)).tolist(), strict=True)
    return dict(zip(columns, found, strict=True)), float(1 - left / total / PARTITIONS)


def importance_picture(axes, done, goal):
    found = importance(done, axes, goal)
    if found is None:
        needed = f"{FEWEST_TRIALS} of different configurations and results are needed"
        return note(f"Importance: too few trials, {len(done)} with a result; {needed}. {METHOD}")
    values, r2 = found
    quality = f"On {len(done)} trials the forest has R² = {r2:.2f} (1: all is explained, 0: nothing)."
    if r2 < LEAST_R2:
        return note(f"Importance: none to be seen. {quality} {METHOD}")
    names = sorted(values, key=lambda name: values[name][0])
    means, deviations = zip(*(values[name] for name in names), strict=True)
    bars = {"type": "bar", "orientation": "h", "y": list(map(escape, names)), "x": means, "marker": {"color": BLUE}}
    bars["error_x"] = {"array": deviations, "color": GREY}
    caption = f"{quality} {METHOD} Grey: standard deviation."
    x_axis, height = axis_of("how far R² falls"), 110 + 26 * len(names)
    return picture("Importance of each hyperparameter", caption, [bars], x_axis, {"type": "category"}, height=height)


def lines(groups, points_of):
    """A trace a group, of the lines of its trials with gaps between them; none for a group without a line."""
    traces = []
    for name, color, trials in groups:
        points = [point for trial in trials for point in [*points_of(trial), (None, None, "")]]
        if any(x is not None for x, _, _ in points):
            dash = "dot" if name in ("failed", "running") else "solid"
            traces.append(trace(name, points, color, line={"dash": dash, "width": 1.5}, marker={"size": 4}))
    return traces


def trace(name, points, color, line=(), marker=(), **style):
    x, y, texts = zip(*points, strict=True) if points else ((), (), ())
    data = {"type": "scatter", "mode": "lines+markers", "name": escape(name), "x": x, "y": y, "hovertext": texts}
    data |= {"hoverinfo": "text", "line": {"color": color, **dict(line)}, "marker": {"color": color, **dict(marker)}}
    return data | style


def axis_of(name, **more):
    percent = {"tickformat": "~%", "minallowed": 0, "maxallowed": 1} if name.endswith("accuracy") else {}
    return {"title": {"text": escape(label(name))}, **percent, **more}


def picture(title, caption, traces, x_axis, y_axis, width=0, height=380, **layout):
    common = {"gridcolor": "#e4e8eb", "zeroline": False, "automargin": True}
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "reversed"}
    layout |= {"xaxis": {**common, **x_axis}, "yaxis": {**common, **y_axis}, "legend": legend, "hovermode": "closest"}
    layout |= {"margin": {"l": 10, "r": 16, "t": 10, "b": 10}, "hoverlabel": {"align": "left", "bgcolor": "#fff"}}
    data = json.dumps({"data": traces, "layout": layout}, allow_nan=False).replace("<", "\\u003c")
    title = escape(title[0].upper() + title[1:])
    return f"""<figure><h3>{title}</h3>
<script type="application/json">{data}</script>
<div class="scroll"><div class="plot" role="img" aria-label="{title}" style="height:{height}px;min-width:{width}px"></div></div>
<figcaption>{escape(caption)}</figcaption></figure>
"""


# Parts of the page.


def grid(pictures):
    return f'<div class="grid">{"".join(filter(None, pictures))}</div>' if any(pictures) else ""


def note(text):
    return f"<p>{escape(text)}</p>"


def table(names, rows, kind=""):
    heads = [f"<button>{escape(name)}</button>" if kind else escape(name) for name in names]
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    start = f'<div class="scroll" tabindex="0"><table class="{kind}"><thead><tr>{head}</tr></thead>'
    return f"{start}<tbody>\n{body}\n</tbody></table></div>"


def cell(text, value=None):
    return f"<td>{escape(text)}</td>" if value is None else f'<td data-value="{value!r}">{escape(text)}</td>'


def command_line(trial):
    text = escape(trial.get("command") or "")
    return f'<div class="command"><button title="copy the command">copy</button><code>{text}</code></div>' if text else ""


def label(name):
    return LABELS.get(name, name)


def describe(trial, *metrics):
    """A trial in words: its name, some of its metrics, its configuration."""
    known = [(label(name), show(name, metric(trial, name))) for name in metrics if metric(trial, name) is not None]
    values = [(name, show(name, value)) for name, value in trial["values"].items()]
    return [f"trial {trial['id']}", *(f"{name} {text}" for name, text in known + values)]


def show(name, value):
    """A value as a text, in the way of the metric or hyperparameter that it is one of."""
    amount = number(value)
    if amount is None:
        return plain_text(value)
    if name.endswith("accuracy"):
        return f"{amount:.2%}"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if name in LOGARITHMIC and amount >= 0.9995 * size:
            return f"{amount / size:.3g}{unit}"
    return f"{amount:,.0f}" if abs(amount) >= 1000 else f"{amount:.4g}"


def plain_text(value):
    if value is None:
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {plain_text(part)}" for key, part in value.items())
    return ", ".join(map(plain_text, value)) if isinstance(value, list | tuple) else str(value)


def escape(text):
    """HTML of a text; the quotes as numbers, which plotly.js knows too."""
    return html.escape(plain_text(text), quote=False).replace('"', "&#34;").replace("'", "&#39;")


STYLE = """
:root { color-scheme: light; font: 16px/1.5 system-ui, sans-serif; color: #1d2329; background: #fff; }
body { max-width: 1240px; margin: 0 auto; padding: 1rem; }
h1, h2, h3 { line-height: 1.2; text-wrap: balance; margin: 1.2em 0 .4em; }
h1 { font-size: 1.7rem; margin-top: .5em; } h2 { font-size: 1.3rem; } h3 { font-size: 1rem; } .grid h3 { font-size: .9rem; }
section { border-top: 1px solid #dde2e6; margin-top: 2rem; }
p { max-width: 75ch; margin: .3em 0 .6em; overflow-wrap: anywhere; }
dl { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; }
dl div { background: #f2f5f7; border-radius: .5rem; padding: .4rem .9rem; }
dt, figcaption, footer { color: #56606a; font-size: .85rem; } dd { margin: 0; font-size: 1.35rem; font-weight: 600; }
.grid { display: grid; gap: 1rem 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 23rem), 1fr)); }
figure { margin: 0 0 1rem; min-width: 0; } figcaption { max-width: 90ch; margin-top: .3rem; }
.scroll { overflow: auto; max-height: 80vh; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #e4e8eb; text-align: left; vertical-align: top; }
th { position: sticky; top: 0; z-index: 1; background: #fff; white-space: nowrap; }
td:first-child { font-weight: 600; } .sortable td { white-space: nowrap; } td[data-value] { text-align: right; }
.sortable :is(td, th):first-child { position: sticky; left: 0; background: #fff; } .sortable th:first-child { z-index: 2; }
button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
[aria-sort=ascending] button::after { content: " ▲"; } [aria-sort=descending] button::after { content: " ▼"; }
.command { display: flex; gap: .5rem; align-items: baseline; max-width: 75ch; font-size: .85rem; }
.command button { background: #e8edf1; border-radius: .3rem; padding: 0 .5rem; flex: none; }
.command code { overflow-wrap: anywhere; user-select: all; } td .command { min-width: 20rem; font-size: inherit; max-width: none; }
.words td:nth-child(n+2) { min-width: 12rem; }
footer { border-top: 1px solid #dde2e6; margin-top: 2rem; padding-top: .5rem; }
"""

SCRIPT = """
// No buttons: one of them would upload the picture. A drag zooms, a double click resets.
const config = {responsive: true, displayModeBar: false, showSendToCloud: false, plotlyServerURL: ""};
for (const element of document.querySelectorAll(".plot")) setTimeout(() => {  // one at a time: the page is there first
  const {data, layout} = JSON.parse(element.closest("figure").querySelector("script").textContent);
  if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false;  // a finger scrolls the page
  Plotly.newPlot(element, data, layout, config);
});
for (const button of document.querySelectorAll(".command button")) button.onclick = () => {
  getSelection().selectAllChildren(button.nextSibling);
  if (document.execCommand("copy")) button.textContent = "copied";  // works in files, where there is no clipboard API
};
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const head = button.parentNode, body = head.closest("table").tBodies[0];
  const down = head.ariaSort === "ascending";
  for (const other of head.parentNode.cells) other.ariaSort = null;
  head.ariaSort = down ? "descending" : "ascending";
  const key = row => row.cells[head.cellIndex].dataset.value ?? row.cells[head.cellIndex].textContent;
  const compare = (a, b) => (key(a) === "–") - (key(b) === "–")
    || (down ? -1 : 1) * (key(a) - key(b) || key(a).localeCompare(key(b), undefined, {numeric: true}));
  body.append(...[...body.rows].sort(compare));
};
"""
