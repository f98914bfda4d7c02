"""The report of several runs: curves, results, times and settings side by side, with what differs highlighted."""

import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.colors import to_hex

from keras_vit.files import write_text
from keras_vit.report.page import cell, duration, render
from keras_vit.report.pictures import figure_picture
from keras_vit.report.run import interval_text, known
from keras_vit.report.settings import settings_of, text_of
from keras_vit.runs.comparison import FORMATS, OF_SOME, results_of, run_names
from keras_vit.runs.folder import RunFolder
from keras_vit.runs.plots import curve_figures, run_colors

TIME = "training time (s)"
FACTS = ("data", "backend", "device")  # results that are no numbers


def write_comparison_report(runs: Sequence[RunFolder], path: str | os.PathLike) -> Path:
    """Writes a page that shows runs side by side, finished or not.

    Args:
        runs: Two or more different `RunFolder`s.
        path: The HTML file to write.

    Returns:
        Its path.

    Raises:
        ValueError: For fewer than two runs, or the same one twice; if a recipe cannot be read.
    """
    runs = list(runs)
    if len(runs) < 2:
        raise ValueError(f"runs: received {len(runs)}; allowed: two or more")
    write_text(path, render("comparison.html", source="keras-vit evaluate", **content(runs)))
    return Path(path)


def content(runs):
    """The variables of comparison.html."""
    names, missing = run_names(runs), []
    recipes = [run.recipe for run in runs]
    summaries, metrics = [], {}
    for run, name, recipe in zip(runs, names, recipes, strict=True):
        summaries.append(known(lambda run=run: run.summary, {}, missing, f"the summary of {name}") if run.is_finished else {})
        metrics[name] = known(lambda run=run: run.metrics, [], missing, f"the curves of {name}")
        if not run.is_finished:
            missing.append(f"{name} has not finished: {len(metrics[name])} of {recipe.train.total_epochs} epochs are done.")
    if len({summary["fingerprint"] for summary in summaries if summary}) > 1:
        missing.append("The runs have different data, or images of different sizes: compare their test results with care.")
    differing, same = settings([settings_of(recipe) for recipe in recipes])
    colors = [to_hex(color) for color in run_colors(len(runs))]
    legend = [{"name": name, "color": color, "dashed": False} for name, color in zip(names, colors, strict=True)]
    legend += [
        {"name": "validation", "color": "#1d2329", "dashed": False},
        {"name": "training, as augmented", "color": "#1d2329", "dashed": True},
    ]
    drawn = curve_figures(metrics) if any(metrics.values()) else {}
    return {
        "title": f"{len(runs)} runs side by side",
        "missing": missing,
        "names": ["", *names],
        "curves": [figure_picture(figure, title) for title, figure in drawn.items()],
        "curve_legend": legend,
        "results": results(runs, summaries, missing),
        "facts": facts(summaries, recipes),
        "differing": differing,
        "same": same,
        "folders": [[cell(name), cell(str(run.path.resolve()))] for name, run in zip(names, runs, strict=True)],
    }


def results(runs, summaries, missing):
    """Rows of scores, times and sizes: the name, and a value for each run."""
    found = [known(lambda run=run: results_of(run), {}, missing, f"the results of {run.path.name}") for run in runs]
    rows = {name: [result.get(name) for result in found] for name in dict.fromkeys(name for result in found for name in result)}
    table = []
    for name, values in rows.items():
        if name in FACTS or (name in OF_SOME and all(value is None for value in values)):
            continue
        form = FORMATS.get(name, "{}").format
        texts = [value if value is None else duration(value) if name == TIME else form(value) for value in values]
        table.append([name.replace(" (s)", ""), *texts])
        if name == "test accuracy":
            table.append(["95% interval (Wilson)", *(interval(summary) for summary in summaries)])
    for name, words, form in (
        ("process_seconds", "whole process", duration),
        ("peak_memory_mb", "largest memory (MB)", "{:,.0f}".format),
    ):
        table.append([words, *(form(summary[name]) if summary.get(name) is not None else None for summary in summaries)])
    return [[cell("–" if text is None else str(text)) for text in row] for row in table]


def interval(summary):
    """The confidence interval of a run's test accuracy; None where it is not known."""
    count = summary.get("images", {}).get("test")
    return interval_text(summary["test_accuracy"], count) if count and "test_accuracy" in summary else None


def facts(summaries, recipes):
    """Rows of data, machine and software, what differs marked."""
    rows = {
        "data": [summary.get("data", recipe.data) for summary, recipe in zip(summaries, recipes, strict=True)],
        "fingerprint of the data": [summary.get("fingerprint", "")[:16] or None for summary in summaries],
        **{name: [summary.get(name) for summary in summaries] for name in ("backend", "device", "devices", "precision")},
        "commit of keras_vit": [(summary.get("commit") or "")[:12] or None for summary in summaries],
    }
    packages = dict.fromkeys(name for summary in summaries for name in summary.get("versions", {}))
    rows |= {f"{name} version": [summary.get("versions", {}).get(name) for summary in summaries] for name in packages}
    texts = {name: ["–" if value is None else str(value) for value in values] for name, values in rows.items()}
    dates = [cell("date"), *(cell(summary.get("date", "–")) for summary in summaries)]  # it always differs
    return [*(marked_row(name, values) for name, values in texts.items()), dates]


def settings(all_settings):
    """Rows of the settings that differ, and (name, value) of those that do not."""
    differing, same = [], []
    for name in dict.fromkeys(name for settings in all_settings for name in settings):
        values = [settings.get(name) for settings in all_settings]
        if any(value != values[0] for value in values):
            differing.append(marked_row(name, [text_of(value) for value in values]))
        else:
            same.append([cell(name), cell(text_of(values[0]))])
    return differing, same


def marked_row(name, texts):
    """A row whose values are marked where they differ from the first run's."""
    return [cell(name), *(cell(text, marked=text != texts[0]) for text in texts)]
