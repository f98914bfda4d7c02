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
    "epoch": "epoch",
    "val_loss": "validation loss",
}
# Hyperparameters whose names are no words.
AXES = {"num_heads": "heads", "head_dim": "width of a head", "mlp_ratio": "MLP ratio", "drop_path": "stochastic depth"}
# Settings of a search, as its page names them.
SETTINGS = {
    "method": "how trials are chosen",
    "objectives": "what is best",
    "budget": "length of a trial",
    "space": "what is searched",
}
DIRECTIONS = {"max": "the higher the better", "min": "the lower the better"}
LOGARITHMIC = ("params", "flops")  # metrics that span orders of magnitude


SHARES = ("val_map", "val_f1")  # metrics from 0 to 1, beside accuracies and recalls
RECALL = "val_recall:"  # and the name of a class


def label(name):
    """A metric or a hyperparameter in plain words."""
    if name.startswith(RECALL):
        return f"validation recall of {name.removeprefix(RECALL)}"
    return LABELS.get(name) or AXES.get(name) or name.replace("_", " ")


def words(name):
    """A setting of a search in plain words."""
    return SETTINGS.get(name, name.replace("_", " "))


def setting_text(name, value):
    """The value of a setting of a search as a text."""
    if name == "objectives":
        return "; ".join(f"{label(metric)}, {DIRECTIONS.get(direction, direction)}" for metric, direction in value.items())
    if name == "budget" and isinstance(value, dict) and set(value) == {"kind", "amount"}:
        return f"{plain_text(value['amount'])} {value['kind'].replace('flops', 'FLOPs')}"
    return plain_text(value)


def is_share(name):
    """Whether a metric is a share of 1, shown in percent."""
    return name.endswith("accuracy") or name in SHARES or name.startswith(RECALL)


def describe(trial, *metrics):
    """A trial in words: its name, some of its metrics, its configuration."""
    known = [(label(name), show(name, metric(trial, name))) for name in metrics if metric(trial, name) is not None]
    values = [(label(name), show(name, value)) for name, value in trial["values"].items()]
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
