"""Several runs side by side: their results, and the settings in which they differ."""

import numpy as np
from rich.markup import escape
from rich.table import Table

from keras_vit.recipes.parse import flatten
from keras_vit.runs.folder import RunFolder

# How the table shows a row's numbers.
FORMATS = {
    "test accuracy": "{:.2%}",
    "test balanced accuracy": "{:.2%}",
    "test mAP": "{:.2%}",
    "test calibration error": "{:.2%}",
    "best validation accuracy": "{:.2%}",
    "best validation mAP": "{:.2%}",
    "training time (s)": "{:,.0f}",
    "images/s (median epoch)": "{:,.0f}",
    "parameters": "{:,}",
    "FLOPs per image": "{:,}",
}


# Rows that are left out if no run has them.
OF_SOME = ("test balanced accuracy", "test mAP", "test calibration error", "best validation mAP")


def compare(runs: list[RunFolder]) -> dict[str, list]:
    """The results of runs, and the settings in which their recipes differ.

    Args:
        runs: `RunFolder`s.

    Returns:
        The values of each row by the row's name, one for each run; None if the run has none (yet).
    """
    results = [results_of(run) for run in runs]
    settings = [flatten(run.recipe.to_dict(), "") for run in runs]
    rows = {name: [result[name] for result in results] for name in results[0]}
    for name in OF_SOME:
        if not any(value is not None for value in rows[name]):
            del rows[name]
    for name in dict.fromkeys(name for setting in settings for name in setting):
        values = [setting.get(name) for setting in settings]
        if name != "data" and any(value != values[0] for value in values):
            rows[name] = values
    return rows


def results_of(run):
    """The results of a run by name; None for results that it does not have yet."""
    metrics = run.metrics
    summary = run.summary if run.is_finished else {}
    validated, precise = ([row[name] for row in metrics if name in row] for name in ("val_accuracy", "val_map"))
    speeds = [row["images_per_second"] for row in metrics if "images_per_second" in row]
    return {
        "test accuracy": summary.get("test_accuracy"),
        "test balanced accuracy": summary.get("test_balanced_accuracy"),
        "test mAP": summary.get("test_map"),
        "test calibration error": summary.get("test_calibration_error"),
        "best validation accuracy": max(validated, default=None),
        "best validation mAP": max(precise, default=None),
        "epochs done": len(metrics),
        "training time (s)": metrics[-1]["seconds"] if metrics else None,
        "images/s (median epoch)": float(np.median(speeds)) if speeds else None,
        "parameters": summary.get("parameters"),
        "FLOPs per image": summary.get("flops"),
        "data": summary.get("data", run.recipe.data),
        "backend": summary.get("backend"),
        "device": summary.get("device"),
    }


def comparison_table(runs: list[RunFolder]) -> Table:
    """A rich table of `compare`, a column for each run."""
    table = Table("", *(escape(name) for name in run_names(runs)))
    for name, values in compare(runs).items():
        form = FORMATS.get(name, "{}")
        texts = ("-" if value is None else escape(form.format(value)) for value in values)
        table.add_row(name, *texts, end_section=name == "device")
    return table


def run_names(runs: list[RunFolder]) -> list[str]:
    """A name for each run: as many of the last parts of its path as it takes to tell the runs apart.

    Raises:
        ValueError: If a folder is given more than once.
    """
    paths = [run.path.resolve() for run in runs]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"runs: received {str(path)!r} {paths.count(path)} times; allowed: different runs")
    parts = 1
    while len(set(names := ["/".join(path.parts[-parts:]) for path in paths])) < len(names):
        parts += 1
    return names
