"""The pictures of a search's report: the traces and layouts of plotly.js, as plain dictionaries."""

import math

from keras_vit.search.labels import LOGARITHMIC, describe, escape, is_share, label, plain_text, show
from keras_vit.search.pareto import front, metric, number

# Groups of trials by rank. Viridis from dark to light, and grey: on white the best stand out.
BANDS = ((0.1, "best 10%", "#440154"), (0.25, "to 25%", "#3b528b"), (0.5, "to 50%", "#21918c"), (1, "rest", "#b4bcc3"))
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#8a929a"
FEW = 12  # up to so many names or values are written into a picture


def front_picture(done, objectives, cost):
    """Accuracy against one cost, with a line along the trials that no other one beats in both; None if no trial has that cost."""
    goal = next(iter(objectives))
    best = front(done, {goal: objectives.get(goal, "max"), cost: objectives.get(cost, "min")})[::-1]
    if not best:
        return None
    known = [trial for trial in done if metric(trial, cost) is not None]
    others = [trial for trial in known if not any(trial is other for other in best)]

    def points(trials):
        for trial in trials:
            yield metric(trial, cost), metric(trial, goal), "<br>".join(map(escape, describe(trial, goal, cost)))

    names = {"mode": "lines+markers+text", "text": [escape(trial["id"]) for trial in best], "textposition": "top center"}
    traces = [
        trace("other trials", [*points(others)], BLUE, mode="markers", marker={"size": 8, "opacity": 0.5}),
        trace("not beaten in both", [*points(best)], VERMILION, line={"shape": "hv"}, **(names if len(best) <= FEW else {})),
    ]
    ends = [f"{show(goal, metric(trial, goal))} at {show(cost, metric(trial, cost))}" for trial in (best[0], best[-1])]
    count = f"{len(best)} of {len(known)} trials: no other trial is better in both"
    caption = f"The line joins {count}; {' to '.join(dict.fromkeys(ends))}."
    scale = {"type": "log", "dtick": "D2", "exponentformat": "SI"} if cost in LOGARITHMIC else {}
    traces = [one for one in traces if one["x"]]
    return picture(f"{label(goal)} against {label(cost)}", caption, traces, axis_of(cost, **scale), axis_of(goal))


def bands(done, goal):
    """Groups of trials by rank: name, colour, trials. The worst come first: the best are drawn on top."""
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
        if before and before["curve"]:  # the line begins where its predecessor's ends
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
        caption += " The curve of a trial that continues another one begins where that one ends."
    return traces and picture(f"{label(goal)} over {label(x_name)}", caption, traces, axis_of(x_name), axis_of(goal))


def parallel_coordinates(axes, done, goal):
    rows = {trial["id"]: {**trial["values"], goal: metric(trial, goal)} for trial in done}
    axes = [axis for axis in axes if any(row.get(axis["name"]) is not None for row in rows.values())]
    if not axes:
        return None
    axes.append({"name": goal, "kind": "float", "values": []})
    scales = [place_values(axis, [row.get(axis["name"]) for row in rows.values()]) for axis in axes]
    ranks = {name: index / len(rows) for index, name in enumerate(rows)}

    def points(trial):
        for at, (axis, (place, _, spread)) in enumerate(zip(axes, scales, strict=True)):
            value = rows[trial["id"]].get(axis["name"])
            shift = spread * (0.5 - ranks[trial["id"]])
            text = f"trial {trial['id']}: {show(goal, metric(trial, goal))}, {label(axis['name'])} {show(axis['name'], value)}"
            yield at, None if value is None else place(value) + shift, escape(text)

    look = {"showarrow": False, "xanchor": "left", "xshift": 4, "bgcolor": "rgba(255,255,255,.75)"}
    marks = [
        {"x": at, "y": place(value), "text": escape(show(axis["name"], value)), **look}
        for at, (axis, (place, values, _)) in enumerate(zip(axes, scales, strict=True))
        for value in values
    ]
    ticks = {"tickvals": list(range(len(axes))), "ticktext": [escape(label(axis["name"])) for axis in axes]}
    x_axis, y_axis = {**ticks, "gridcolor": GREY, "range": [-0.5, len(axes) - 0.4]}, {"visible": False, "range": [-0.1, 1.1]}
    caption = "A line is a trial, the darker the better; a click on a group hides it. Of trials with one value the best is on top."
    traces = lines(bands(done, goal), points)
    return picture("Settings and result of each trial", caption, traces, x_axis, y_axis, width=95 * len(axes), annotations=marks)


def place_values(axis, values):
    """For an axis: a function from a value to its place in 0..1, the values to label, the spread of trials with one value."""

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


def importance_picture(values, caption):
    """Bars of {axis: (mean, standard deviation)}."""
    names = sorted(values, key=lambda name: values[name][0])
    means, deviations = zip(*(values[name] for name in names), strict=True)
    bars = {"type": "bar", "orientation": "h", "y": [escape(label(name)) for name in names], "x": means, "marker": {"color": BLUE}}
    bars["error_x"] = {"array": deviations, "color": GREY}
    x_axis, height = axis_of("how far R² falls"), 110 + 26 * len(names)
    return picture("Importance of each setting", caption, [bars], x_axis, {"type": "category"}, height=height)


def lines(groups, points_of):
    """One trace for each group with points: the lines of its trials, with gaps between them."""
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
    percent = {"tickformat": "~%", "minallowed": 0, "maxallowed": 1} if is_share(name) else {}
    return {"title": {"text": escape(label(name))}, **percent, **more}


def picture(title, caption, traces, x_axis, y_axis, width=0, height=380, **layout):
    """Title, caption and size in pixels of a figure, with its traces and its layout."""
    common = {"gridcolor": "#e4e8eb", "zeroline": False, "automargin": True}
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "reversed"}
    layout |= {"xaxis": {**common, **x_axis}, "yaxis": {**common, **y_axis}, "legend": legend, "hovermode": "closest"}
    layout |= {"margin": {"l": 10, "r": 16, "t": 10, "b": 10}, "hoverlabel": {"align": "left", "bgcolor": "#fff"}}
    size = {"width": width, "height": height}
    return {"title": title[0].upper() + title[1:], "caption": caption, "data": traces, "layout": layout, **size}
