"""The outcome of a search: as plain values, as recipes, for TensorBoard, and in words."""

import contextlib
import datetime
import platform
import shlex
import shutil
import statistics
import time

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import hparams, scalar

from keras_vit.files import write_text
from keras_vit.recipes.parse import load_recipe
from keras_vit.runs.folder import RunFolder
from keras_vit.search.axes import is_countable, values_of
from keras_vit.search.labels import label
from keras_vit.search.oracle import FAILED, metrics_of
from keras_vit.search.pareto import front, smallest_within


def train_command(recipe):
    """The command that trains a recipe's file."""
    return f"keras-vit train --recipe {shlex.quote(str(recipe))}"


def write_hparams(trial, metrics, folder):
    """Writes a trial for TensorBoard's HParams page; with the curves in the trial's run folder, one logdir shows both."""
    values = {name: value for name, value in trial.hyperparameters.values.items() if not name.startswith("tuner/")}
    shown = {f"search/{name}": value for name, value in metrics.items()}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    writer = RecordWriter(str(folder / f"events.out.tfevents.{int(time.time())}.{platform.node()}"))
    events = [Event(file_version="brain.Event:2"), *(Event(summary=part) for part in hparams(values, shown))]
    events += [Event(summary=scalar(name, value), step=0) for name, value in shown.items()]
    for event in events:
        event.wall_time = time.time()
        writer.write(event.SerializeToString())
    writer.close()


def short(values):
    """A configuration in a line."""
    names = {"patch_size": "patch", "num_heads": "heads", "head_dim": "x", "learning_rate": "lr", "weight_decay": "decay"}
    parts = []
    for name, value in values.items():
        if name.startswith("tuner/"):
            continue
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        parts.append(text if name in ("stem", "pool") else f"{names.get(name, name)} {text}")
    return ", ".join(parts).replace(", x ", " x ")


def describe(oracle, folder, settings, total, finished):
    """The whole search as plain values: the argument of `write_report`."""
    axes = []
    for axis in oracle.space.axes:
        kind = {"Int": "int", "Float": "float"}.get(type(axis).__name__, "choice")
        values = values_of(axis) if is_countable(axis) else [axis.min_value, axis.max_value]
        axes.append({"name": axis.name, "kind": kind, "log": getattr(axis, "sampling", None) == "log", "values": values})
    with oracle.lock:
        states = [(trial_id, oracle.trials[trial_id], metrics_of(oracle.trials[trial_id])) for trial_id in oracle.start_order]
    trials = []
    for trial_id, trial, metrics in states:
        run = folder / f"trial-{trial_id}" / "run"
        failed, curve = bool(metrics.get(FAILED)), []
        with contextlib.suppress(ValueError, OSError):
            curve = RunFolder(run).metrics
        values = {name: value for name, value in trial.hyperparameters.values.items() if not name.startswith("tuner/")}
        trials.append(
            {
                "id": trial_id,
                "status": "FAILED" if failed else trial.status,
                "values": values,
                "metrics": {} if failed else metrics,
                "reason": trial.message if failed else None,
                "curve": curve,
                "command": train_command(recipe_file(folder, trial_id)),
                "continues": trial.hyperparameters.values.get("tuner/trial_id"),
            }
        )
    return {
        "settings": settings,
        "axes": axes,
        "trials": trials,
        "now": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "remaining": 0 if finished else total - len(oracle.results()) if total else None,
        "finished": finished,
    }


def recipe_file(folder, trial_id):
    """The file of a trial's recipe: its run's, with the length that the budget gave it, unless it has no run."""
    trial = folder / f"trial-{trial_id}"
    return next((path for path in (trial / "run" / "recipe.yaml", trial / "recipe.yaml") if path.is_file()), trial / "recipe.yaml")


def write_recipes(search, folder, recipe_of):
    """Writes best.yaml, and a recipe for each point of the front.

    Args:
        search: As `describe` returns it.
        folder: The search folder.
        recipe_of: Gives the recipe of a trial, by its name, where its own file is missing or damaged.
    """
    shutil.rmtree(folder / "front", ignore_errors=True)
    points = front(search["trials"], search["settings"]["objectives"])
    for place, trial in enumerate(points):
        try:
            recipe = load_recipe(recipe_file(folder, trial["id"])).to_yaml()
        except (OSError, ValueError):
            recipe = recipe_of(trial["id"]).to_yaml()
        metrics = ", ".join(f"{name} {trial['metrics'][name]:.4g}" for name in search["settings"]["objectives"])
        text = f"# Trial {trial['id']} of {folder}: {metrics} (validation).\n{recipe}"
        write_text(folder / "front" / f"{trial['id']}.yaml", text)
        if place == 0:
            write_text(folder / "best.yaml", text)


def conclude(search, folder, console):
    """Prints the outcome of a search, as `describe` returns it."""
    points = front(search["trials"], search["settings"]["objectives"])
    if not points:
        console.print(f"no trial has succeeded; the reasons: {folder / 'report.html'}")
        return
    for trial in points:
        metrics = ", ".join(f"{name} {trial['metrics'][name]:.4g}" for name in search["settings"]["objectives"])
        console.print(f"front: trial {trial['id']}  {metrics}  {short(trial['values'])}")
    best = points[0]
    goal = next(iter(search["settings"]["objectives"]))
    small = smallest_within(search["trials"], points=1.0, size="params", accuracy=goal)
    if small:
        console.print(
            f"smallest within 1 point of the best: trial {small['id']}, {small['metrics'][goal]:.2%} with "
            f"{small['metrics']['params']:,.0f} parameters (best: {best['metrics']['params']:,.0f})"
        )
    console.print(f"best: trial {best['id']}, {label(goal)} {best['metrics'][goal]:.2%}; {train_command(folder / 'best.yaml')}")
    overhead = [trial["metrics"]["overhead_seconds"] for trial in search["trials"] if "overhead_seconds" in trial["metrics"]]
    if overhead:
        console.print(f"overhead of a trial: {statistics.median(overhead):.1f} s (median) for start, build and measurements")
    console.print(f"report: {folder / 'report.html'}; tensorboard --logdir {folder}")
