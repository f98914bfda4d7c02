"""What the user sees of a search: lines and a bar while it runs, the report, TensorBoard, and the recipes it ends with."""

import contextlib
import datetime
import platform
import shlex
import shutil
import threading
import time

REPORT_SECONDS = 15  # between two reports of a running search


class Lines:
    """A line for each trial that ends.

    Args:
        console: A rich console.
    """

    def __init__(self, console):
        self.console = console
        self.lock, self.running = threading.RLock(), {}

    def trial_began(self, trial):
        with self.lock:
            self.running[trial.trial_id] = time.monotonic()

    def trial_ended(self, trial, metrics, reason):
        from rich.markup import escape

        with self.lock:
            seconds = time.monotonic() - self.running.pop(trial.trial_id, time.monotonic())
            if reason is None:
                result = f"{metrics['val_accuracy']:7.2%}"
                if "params" in metrics:
                    result += f"  {metrics['params'] / 1e6:6.2f}M"
            else:
                result = f"[red]failed[/red]: {escape(reason)}"
            shape = short(trial.hyperparameters.values)
            self.console.print(f"trial {trial.trial_id}  {result}  {seconds:4.0f} s  {shape}", markup=True)

    def tick(self):
        """Nothing: there is no bar."""

    def trial_lost(self, trial, why):
        """`why`: a reason, or the name of the worker that has not finished it."""
        with self.lock:
            self.running.pop(trial.trial_id, None)
            self.console.print(f"trial {trial.trial_id}  goes to another worker: {why}")


class Screen(Lines):
    """A line for each trial, a bar, report.html, and TensorBoard's HParams.

    Args:
        console: A rich console.
        oracle: The oracle.
        folder: The search folder.
        settings: What the report says of the search.
        total: Number of trials, or None.
    """

    def __init__(self, console, oracle, folder, settings, total):
        from rich.progress import BarColumn, Progress, TextColumn

        super().__init__(console)
        self.oracle, self.folder, self.settings, self.total = oracle, folder, settings, total
        self.reported, self.finished = 0.0, False
        self.progress = Progress(BarColumn(), TextColumn("{task.description}"), console=console, transient=True)
        self.task = self.progress.add_task("", total=total or oracle.max_seconds)

    def __enter__(self):
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *error):
        self.progress.stop()

    def trial_began(self, trial):
        with self.lock:
            super().trial_began(trial)
            self.update()

    def trial_ended(self, trial, metrics, reason):
        with self.lock:
            super().trial_ended(trial, metrics, reason)
            done = [row["process_seconds"] for _, row in self.oracle.results() if "process_seconds" in row]
            if done:
                self.oracle.trial_seconds = sum(done[-5:]) / len(done[-5:])
            if reason is None:
                write_hparams(trial, metrics, self.folder / f"trial-{trial.trial_id}" / "hparams")
            self.update()

    def tick(self):
        """Renews the bar and the report once in a while."""
        if time.monotonic() - self.reported > REPORT_SECONDS:
            with self.lock:
                self.update()
            self.report()

    def update(self):
        results = self.oracle.results()
        good = [row["val_accuracy"] for _, row in results if not row.get("failed")]
        parts = [f"{len(results)} done"]
        if len(results) > len(good):
            parts.append(f"{len(results) - len(good)} failed")
        if self.total:
            parts.append(f"{self.total - len(results)} to go")
        if good:
            parts.append(f"best {max(good):.2%}")
        if self.oracle.max_seconds:
            left = max(0, round(self.oracle.max_seconds - self.oracle.seconds))
            parts.append(f"{datetime.timedelta(seconds=left)} left")
        done = len(results) if self.total else self.oracle.seconds
        self.progress.update(self.task, completed=done, description=", ".join(parts))

    def report(self, finished=False, retrained=()):
        """Writes report.html and the recipes."""
        from keras_vit.search.report import write_report

        search = describe(self.oracle, self.folder, self.settings, self.total, finished)
        write_report({**search, "retrained": list(retrained)}, self.folder / "report.html")
        write_recipes(search, self.folder)
        self.reported, self.finished = time.monotonic(), finished


def write_hparams(trial, metrics, folder):
    """Writes a trial for TensorBoard's HParams page; its curves lie in the trial's run folder, so one logdir shows both."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter
    from tensorboardX.summary import hparams, scalar

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
    """The whole search as plain data: what the report shows."""
    from keras_vit.runs.folder import RunFolder
    from keras_vit.search.oracle import FAILED, metrics_of
    from keras_vit.search.space import is_countable, values_of

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
        recipe = run / "recipe.yaml"  # with the length that the budget gave it
        recipe = recipe if recipe.is_file() else run.with_name("recipe.yaml")
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
                "command": f"python experiments/train_cifar.py --recipe {shlex.quote(str(recipe))}",
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


def write_recipes(search, folder):
    """Writes best.yaml, and a recipe for each point of the front."""
    from keras_vit.files import write_text
    from keras_vit.search.pareto import front

    shutil.rmtree(folder / "front", ignore_errors=True)
    points = front(search["trials"], search["settings"]["objectives"])
    for place, trial in enumerate(points):
        recipe = (folder / f"trial-{trial['id']}" / "run" / "recipe.yaml").read_text(encoding="utf-8")
        metrics = ", ".join(f"{name} {trial['metrics'][name]:.4g}" for name in search["settings"]["objectives"])
        text = f"# Trial {trial['id']} of {folder}: {metrics} (validation).\n{recipe}"
        write_text(folder / "front" / f"{trial['id']}.yaml", text)
        if place == 0:
            write_text(folder / "best.yaml", text)
