"""Metrics, hyperparameters and trials in words: the texts of a search's report."""

from markupsafe import escape as escape_markup

from keras_vit.search.pareto import metric, number

LABELS = {  # of metrics, in the order of the leaderboard's columns
    "val_accuracy": "validation accuracy",
    "val_balanced_accuracy": "balanced validation accuracy",
    "val_map": "validation mAP",
    "val_f1": "validation F1",
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
    "overhead_seconds": "overhead (s)",
    "seconds": "seconds of training",
}
LOGARITHMIC = ("params", "flops")  # metrics that span orders of magnitude


SHARES = ("val_map", "val_f1")  # metrics from 0 to 1, beside accuracies and recalls
RECALL = "val_recall:"  # and the name of a class


def label(name):
    return f"validation recall of {name.removeprefix(RECALL)}" if name.startswith(RECALL) else LABELS.get(name, name)


def is_share(name):
    """Whether a metric is a share of 1, shown in percent."""
    return name.endswith("accuracy") or name in SHARES or name.startswith(RECALL)


def describe(trial, *metrics):
    """A trial in words: its name, some of its metrics, its configuration."""
    known = [(label(name), show(name, metric(trial, name))) for name in metrics if metric(trial, name) is not None]
    values = [(name, show(name, value)) for name, value in trial["values"].items()]
    return [f"trial {trial['id']}", *(f"{name} {text}" for name, text in known + values)]


def show(name, value):
    """The value of a metric or hyperparameter as a text."""
    amount = number(value)
    if amount is None:
        return plain_text(value)
    if is_share(name):
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
    """A text for plotly.js, which interprets some HTML tags."""
    return str(escape_markup(plain_text(text)))
