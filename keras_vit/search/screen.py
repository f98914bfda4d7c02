"""Shows a running search: a line for each trial, a bar, and a report that is renewed regularly."""

import datetime
import threading
import time

from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from keras_vit.search.front_plot import draw_front
from keras_vit.search.outcome import describe, short, write_hparams, write_recipes
from keras_vit.search.report import write_report
from keras_vit.search.trial import scheduled

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
        with self.lock:
            seconds = time.monotonic() - self.running.pop(trial.trial_id, time.monotonic())
            if reason is None:
                quality = next(name for name in metrics if name.startswith("val_"))
                result = f"{metrics[quality]:7.2%}"
                if "params" in metrics:
                    result += f"  {metrics['params'] / 1e6:6.2f}M"
            else:
                result = f"[red]failed[/red]: {escape(reason)}"
            shape = short(trial.hyperparameters.values)
            self.console.print(f"trial {trial.trial_id}  {result}  {seconds:4.0f} s  {shape}", markup=True)

    def tick(self):
        """Does nothing: there is no bar."""

    def trial_lost(self, trial, why):
        """`why`: a reason, or the name of the worker that did not finish it."""
        with self.lock:
            self.running.pop(trial.trial_id, None)
            self.console.print(f"trial {trial.trial_id}  goes to another worker: {why}")


class Screen(Lines):
    """A line for each trial, a bar, report.html, and TensorBoard's HParams.

    Args:
        console: A rich console.
        oracle: The oracle.
        folder: The search folder.
        settings: The settings of the search, for the report.
        total: Number of trials; None = unknown.
    """

    def __init__(self, console, oracle, folder, settings, total):
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
        """Renews the bar and the report every `REPORT_SECONDS`."""
        if time.monotonic() - self.reported > REPORT_SECONDS:
            with self.lock:
                self.update()
            self.report()

    def update(self):
        results = self.oracle.results()
        goal = next(iter(self.oracle.objectives))
        good = [row[goal] for _, row in results if not row.get("failed")]
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
        search = describe(self.oracle, self.folder, self.settings, self.total, finished)
        write_report({**search, "retrained": list(retrained)}, self.folder / "report.html")
        write_recipes(search, self.folder, self.recipe_of)
        if finished:
            title = f"{len(search['trials'])} trials on {self.settings['data']}"
            draw_front(search["trials"], dict(self.oracle.objectives), self.folder / "front.png", title=title)
        self.reported, self.finished = time.monotonic(), finished

    def recipe_of(self, trial_id):
        """The recipe of a trial, from the state of the search."""
        return scheduled(self.oracle.space.recipe(self.oracle.trials[trial_id].hyperparameters.values), self.settings["budget"])
