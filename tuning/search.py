"""Searches for the Vision Transformer to use on your images: patch size, depth, heads, width, learning rate and more.

python tuning/search.py                                                    # about 15 minutes, on CIFAR-10 or digits
python tuning/search.py --data folder:PATH --max-time 2h --budget 120s
python tuning/search.py --method hyperband --budget 27epochs --space.depth 2..12 --space.patch_size 2,4,8 --max-params 2e6
python tuning/search.py --objective accuracy,latency --workers 2
KERAS_BACKEND=torch python tuning/search.py --retrain 3 --seeds 3

The same command goes on with a search that was stopped.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import typing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))

from cli import ROOT, Parser, run_command

METHODS = ("bayesian", "random", "grid", "hyperband")
OBJECTIVES = {
    "accuracy": ("val_accuracy", "max"),
    "latency": ("latency_ms", "min"),
    "batch_latency": ("batch_latency_ms", "min"),
    "params": ("params", "min"),
    "flops": ("flops", "min"),
}
UNITS = {"s": 1, "m": 60, "h": 3600}
TRIALS_IN_TIME = 20  # what the default budget of a trial aims at
START_SECONDS = 12  # of a process, about, until it trains
REPORT_SECONDS = 15  # between two reports of a running search


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How the search goes.

    Attributes:
        method: `bayesian` (a Gaussian process; with several objectives ParEGO), `random`, `grid` or `hyperband`.
        objective: One or more of accuracy, latency, batch_latency (of 64 images), params and flops; accuracy comes first.
        budget: The whole training of one trial: `9epochs`, `90s`, `2m` or `1e15flops`; a budget in seconds or FLOPs gives
            every patch size the same compute. Null = a twentieth of max_time.
        trials: Most trials; null = as many as max_time allows.
        max_time: Time of the search, such as `15m` or `2h`, earlier parts of a search that goes on included; null = no end.
        workers: Trials at a time: one on each GPU, or with a share of the cores each.
        time_limit: Seconds after which a trial is ended as failed; null = ten times its budget in seconds, or a day.
        stall_limit: Seconds without a step after which a trial counts as hung.
        retrain: The best trials that are trained again on train and validation images and then read the test images.
        seeds: How often each of them is trained, with other seeds.
        retrain_budget: The length of that training, as in `budget`; null = that of a trial.
    """

    method: typing.Literal[METHODS] = "bayesian"
    objective: str = "accuracy"
    budget: str | None = None
    trials: int | None = None
    max_time: str | None = "15m"
    workers: int = 1
    time_limit: float | None = None
    stall_limit: float = 600.0
    retrain: int = 0
    seeds: int = 1
    retrain_budget: str | None = None

    def __post_init__(self):
        from keras_vit.config import check_int, check_number

        names = self.objective.split(",")
        if names[0] != "accuracy" or len(set(names)) != len(names) or not set(names) <= set(OBJECTIVES):
            raise ValueError(
                f"objective: received {self.objective!r}; allowed: accuracy, and behind it any of {', '.join(OBJECTIVES)}"
            )
        for name in ("workers", "seeds"):
            check_int(name, getattr(self, name), at_least=1)
        check_int("retrain", self.retrain, at_least=0)
        check_number("stall_limit", self.stall_limit, above=0)
        if self.trials is not None:
            check_int("trials", self.trials, at_least=1)
        if self.time_limit is not None:
            check_number("time_limit", self.time_limit, above=0)
        if self.max_time is not None:
            read_seconds("max_time", self.max_time)
        for name in ("budget", "retrain_budget"):
            if getattr(self, name) is not None:
                read_budget(name, getattr(self, name))
        if self.max_time is None and self.trials is None and self.method in ("bayesian", "random"):
            raise ValueError("trials: received null, and so is max_time; one of them must end the search")

    @property
    def objectives(self):
        return dict(OBJECTIVES[name] for name in self.objective.split(","))

    @property
    def seconds(self):
        return None if self.max_time is None else read_seconds("max_time", self.max_time)

    @property
    def trial_budget(self):
        """{"kind": "epochs", "seconds" or "flops", "amount": number}."""
        if self.budget is not None:
            return read_budget("budget", self.budget)
        return {"kind": "seconds", "amount": max(10.0, (self.seconds or 3600) / TRIALS_IN_TIME - START_SECONDS)}


def read_seconds(name, text):
    match = re.fullmatch(r"([\d.]+)\s*([smh]?)", str(text).strip())
    if not match or float(match[1]) <= 0:
        raise ValueError(f"{name}: received {text!r}; allowed: a time above 0 such as 90s, 15m or 2h")
    return float(match[1]) * UNITS[match[2] or "s"]


def read_budget(name, text):
    match = re.fullmatch(r"([\d.]+(?:e[+-]?\d+)?)\s*(epochs?|flops|[smh])", str(text).strip().lower())
    if not match or float(match[1]) <= 0:
        raise ValueError(f"{name}: received {text!r}; allowed: 9epochs, 90s, 2m, 1h or 1e15flops, above 0")
    amount, unit = float(match[1]), match[2]
    if unit in UNITS:
        return {"kind": "seconds", "amount": amount * UNITS[unit]}
    return {"kind": "flops" if unit == "flops" else "epochs", "amount": amount}


def make_parser():
    import jsonargparse

    from keras_vit.recipe import recipe_parser
    from tuning.space import Limits, SpaceConfig

    parser = jsonargparse.ArgumentParser(
        description="Searches for the Vision Transformer to use, and goes on with a search that was stopped. Any setting of the "
        "recipe can be overridden and then holds for every trial that does not search it. Dashes do for underscores.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", help="What is not searched: a recipe's name or a YAML file, which may have a section `space`.")
    parser.add_argument("--out", help="The search folder. Default: searches/DATA-BACKEND-METHOD.")
    parser.add_argument("--overwrite", action="store_true", help="Start again where --out holds another search.")
    parser.add_class_arguments(SearchConfig, as_group=True)
    parser.add_class_arguments(SpaceConfig, "space")
    parser.add_class_arguments(Limits, as_group=True)
    return recipe_parser(parser)


@contextlib.contextmanager
def locked(folder):
    """Holds the folder; a ValueError if another process does."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"search: {str(folder)!r} is in use by another search") from None
        yield


def load_facts(recipe, folder):
    """What a trial will find as data, from a process of its own: this one shall hold neither a GPU nor the images."""
    from keras_vit.run import write_text
    from tuning.tuner import end, reason_in

    write_text(folder / "recipe.yaml", recipe.to_yaml())
    write_text(folder / "job.json", json.dumps({"recipe": str(folder / "recipe.yaml"), "result": str(folder / "data.json")}))
    command = [sys.executable, str(ROOT / "tuning" / "trial.py"), str(folder / "job.json")]
    with open(folder / "log.txt", "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
        try:
            code = process.wait()
        finally:
            end(process)
    if code:
        raise ValueError(reason_in(folder / "log.txt", code))
    return json.loads((folder / "data.json").read_text(encoding="utf-8"))


def parse(name, arguments):
    """Recipe, `SearchConfig`, `SpaceConfig`, `Limits` and further options of a command line."""
    from keras_vit.recipe import parse_recipe
    from tuning.space import Limits, SpaceConfig

    recipe, options = parse_recipe(name, arguments, make_parser(), {"space": SpaceConfig})
    made = [cls(**{field.name: options[field.name] for field in dataclasses.fields(cls)}) for cls in (SearchConfig, Limits)]
    return recipe, made[0], options.space, made[1], options


def make_oracle(config, space, seed):
    from tuning.oracle import ORACLES
    from tuning.trial import STAGES

    settings, budget = {"objectives": config.objectives}, config.trial_budget
    if config.method == "hyperband":
        settings["max_epochs"] = round(budget["amount"]) if budget["kind"] == "epochs" else STAGES
        if settings["max_epochs"] < 3:
            raise ValueError(f"budget: received {config.budget}; hyperband takes at least 3epochs")
    else:
        settings["max_trials"] = config.trials
    if config.method == "bayesian":
        expected = config.trials or config.seconds / (budget["amount"] + START_SECONDS if budget["kind"] == "seconds" else 60)
        settings["num_initial_points"] = max(4, min(len(space.axes), round(expected / 3)))
    return ORACLES[config.method](space, seed=seed, **settings)


def check_same_search(folder, identity, overwrite):
    """Writes down which search a folder holds; refuses to go on with another one, and says how it differs."""
    from keras_vit.run import write_text

    path = folder / "search.json"
    text = json.dumps(identity, indent=2, default=str)
    if path.is_file():
        theirs, ours = flat(json.loads(path.read_text(encoding="utf-8"))), flat(json.loads(text))
        changed = [
            f"{key} {theirs.get(key)} there and {ours.get(key)} here"
            for key in {**theirs, **ours}
            if theirs.get(key) != ours.get(key)
        ]
        if not changed:
            return
        if not overwrite:
            raise ValueError(
                f"search: {str(folder)!r} holds another one: {'; '.join(changed[:5])}; choose another --out, or --overwrite"
            )
    for old in folder.glob("trial-*"):
        shutil.rmtree(old)
    for name in ("oracle.json", "oracle.previous.json", "tuner.json", "report.html", "best.yaml"):
        (folder / name).unlink(missing_ok=True)
    for name in ("front", "retrain", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    write_text(path, text + "\n")


def flat(tree, where=""):
    if not isinstance(tree, dict):
        return {where: tree}
    return {key: value for name, part in tree.items() for key, value in flat(part, f"{where}.{name}" if where else name).items()}


def worker_environments(workers, accelerators):
    """Environment and cores of each worker: one accelerator each, or a share of the cores."""
    if accelerators:
        return [({"CUDA_VISIBLE_DEVICES": str(number % accelerators)}, None) for number in range(workers)]
    if workers == 1 or not hasattr(os, "sched_getaffinity"):
        return [({}, None)] * workers
    cores = sorted(os.sched_getaffinity(0))
    shares = [set(cores[number::workers]) or set(cores) for number in range(workers)]
    return [({"OMP_NUM_THREADS": str(len(share))}, share) for share in shares]


class Screen:
    """What the user sees while the search runs: a line a trial, a bar, and report.html.

    Args:
        console: A rich console.
        oracle: The oracle.
        folder: The search folder.
        settings: What the report says of the search.
        total: Number of trials, or None.
    """

    def __init__(self, console, oracle, folder, settings, total):
        from rich.progress import BarColumn, Progress, TextColumn

        self.console, self.oracle, self.folder, self.settings, self.total = console, oracle, folder, settings, total
        self.lock, self.reported, self.running = threading.Lock(), 0.0, {}
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
            self.running[trial.trial_id] = time.monotonic()
            self.update()
            self.report()

    def trial_ended(self, trial, metrics, reason):
        from rich.markup import escape

        with self.lock:
            seconds = time.monotonic() - self.running.pop(trial.trial_id, time.monotonic())
            shape = short(trial.hyperparameters.values)
            if reason is None:
                result = f"{metrics['val_accuracy']:7.2%}"
                if "params" in metrics:
                    result += f"  {metrics['params'] / 1e6:6.2f}M"
            else:
                result = f"[red]failed[/red]: {escape(reason)}"
            self.console.print(f"trial {trial.trial_id}  {result}  {seconds:4.0f} s  {shape}", highlight=False, soft_wrap=True)
            done = [row["process_seconds"] for _, row in self.oracle.results() if "process_seconds" in row]
            if done:
                self.oracle.trial_seconds = sum(done[-5:]) / len(done[-5:])
            self.update()

    def update(self):
        results = list(self.oracle.results())
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

    def report(self, finished=False):
        """Writes report.html, at most every few seconds."""
        from tuning.report import write_report

        if finished or time.monotonic() - self.reported > REPORT_SECONDS:
            write_report(describe(self.oracle, self.folder, self.settings, self.total, finished), self.folder / "report.html")
            self.reported = time.monotonic()


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
    from keras_vit.run import RunFolder
    from tuning.oracle import FAILED
    from tuning.space import is_countable, values_of

    axes = []
    for axis in oracle.space.axes:
        kind = {"Int": "int", "Float": "float"}.get(type(axis).__name__, "choice")
        values = values_of(axis) if is_countable(axis) else [axis.min_value, axis.max_value]
        axes.append({"name": axis.name, "kind": kind, "log": getattr(axis, "sampling", None) == "log", "values": values})
    trials = []
    for trial_id in oracle.start_order:
        trial, run = oracle.trials[trial_id], folder / f"trial-{trial_id}" / "run"
        metrics = {name: trial.metrics.get_last_value(name) for name in trial.metrics.metrics}
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
                "command": f"python experiments/train_cifar.py --recipe {shlex.quote(str(run / 'recipe.yaml'))}",
                "continues": trial.hyperparameters.values.get("tuner/trial_id"),
            }
        )
    return {
        "settings": settings,
        "axes": axes,
        "trials": trials,
        "now": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "remaining": total - len(list(oracle.results())) if total else None,
        "finished": finished,
    }


def write_recipes(search, folder):
    """Writes best.yaml and a recipe for each point of the front; returns the best trial and the front."""
    from keras_vit.run import write_text
    from tuning.pareto import front

    shutil.rmtree(folder / "front", ignore_errors=True)
    points = front(search["trials"], search["settings"]["objectives"])
    for place, trial in enumerate(points):
        recipe = (folder / f"trial-{trial['id']}" / "run" / "recipe.yaml").read_text(encoding="utf-8")
        metrics = ", ".join(f"{name} {trial['metrics'][name]:.4g}" for name in search["settings"]["objectives"])
        text = f"# Trial {trial['id']} of {folder}: {metrics} (validation).\n{recipe}"
        write_text(folder / "front" / f"{trial['id']}.yaml", text)
        if place == 0:
            write_text(folder / "best.yaml", text)
    return points


def retrain(tuner, config, search, console):
    """Trains the best trials again on train and validation images, with several seeds, and reads the test images.

    Returns a list of {"id", "test_accuracies"}, which is also written to retrain.json.
    """
    import statistics

    from keras_vit.recipe import load_recipe
    from keras_vit.run import write_text
    from tuning.tuner import read_json

    folder, results = tuner.folder, []
    done = [trial for trial in search["trials"] if trial["status"] == "COMPLETED"]
    best = sorted(done, key=lambda trial: -trial["metrics"]["val_accuracy"])[: config.retrain]
    budget = read_budget("retrain_budget", config.retrain_budget) if config.retrain_budget else config.trial_budget
    for trial in best:
        accuracies = []
        for seed in range(config.seeds):
            place = folder / "retrain" / f"{trial['id']}-seed-{seed}"
            place.mkdir(parents=True, exist_ok=True)
            recipe = load_recipe(folder / f"trial-{trial['id']}" / "recipe.yaml")
            recipe = dataclasses.replace(recipe, seed=seed, validation=0)
            write_text(place / "recipe.yaml", recipe.to_yaml())
            job = {"recipe": str(place / "recipe.yaml"), "run": str(place / "run"), "result": str(place / "result.json")}
            write_text(place / "job.json", json.dumps({**job, "until": None, "budget": budget, "latency": False}))
            if not (place / "result.json").is_file():
                reason = tuner.run_job(place / "job.json", place)
                if reason:
                    console.print(f"retrain {trial['id']} seed {seed}: failed: {reason}", markup=False)
            result = read_json(place / "result.json")
            if result and "test_accuracy" in result:
                accuracies.append(result["test_accuracy"])
                console.print(f"retrain {trial['id']} seed {seed}: test accuracy {accuracies[-1]:.2%}", highlight=False)
        results.append({"id": trial["id"], "test_accuracies": accuracies})
        if len(accuracies) > 1:
            mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
            console.print(f"retrain {trial['id']}: {mean:.2%} ± {100 * spread:.2f} over {len(accuracies)} seeds", highlight=False)
    write_text(folder / "retrain.json", json.dumps(results, indent=2) + "\n")
    return results


def main():
    arguments = sys.argv[1:]
    first = Parser(add_help=False)
    first.add_argument("--recipe")
    chosen = first.parse_known_args(arguments)[0].recipe
    recipe, config, space_config, limits, options = parse(chosen or "quick", arguments)

    from rich.console import Console
    from rich.markup import escape
    from rich.panel import Panel

    from tuning.space import Space
    from tuning.tuner import TrialSettings, TrialTuner

    console = Console(highlight=False, soft_wrap=True)
    Space(space_config, recipe, limits)  # a space that is empty is refused before anything is loaded
    with tempfile.TemporaryDirectory() as temporary:
        facts = load_facts(recipe, Path(temporary))
    if facts["fallback"]:
        console.print(
            Panel(
                escape(f"CIFAR-10 is not at hand: {facts['fallback']}\nSearching on scikit-learn's small embedded digits instead."),
                title="THIS IS NOT CIFAR-10",
                border_style="bold red",
            )
        )
    if not chosen and (facts["fallback"] or facts["accelerators"]):
        recipe, config, space_config, limits, options = parse("digits" if facts["fallback"] else "standard", arguments)
    recipe = dataclasses.replace(recipe, data=facts["data"])
    space = Space(space_config, recipe, limits)
    console.print(f"{facts['data']}: {facts['train']:,} train, {facts['validation']:,} validation; {space.describe()}")

    stem = re.sub(r"[^\w.-]+", "-", facts["data"])
    folder = Path(options.out or f"searches/{stem}-{facts['backend']}-{config.method}").absolute()
    budget = config.trial_budget
    identity = {
        **space.to_dict(),
        "method": config.method,
        "objectives": config.objectives,
        "budget": budget,
        "seed": recipe.seed,
        "data": facts["fingerprint"],
        "backend": facts["backend"],
    }
    with locked(folder):
        check_same_search(folder, identity, options.overwrite)
        oracle = make_oracle(config, space, recipe.seed)
        latency = any("latency" in name for name in config.objectives)
        limit = config.time_limit or (10 * budget["amount"] + 60 if budget["kind"] == "seconds" else 86400)
        tuner = TrialTuner(oracle, TrialSettings(budget, limit, config.stall_limit, latency), folder)
        oracle.max_seconds = config.seconds
        oracle.trial_seconds = budget["amount"] + START_SECONDS if budget["kind"] == "seconds" else 0.0
        settings = {
            "method": config.method,
            "objectives": config.objectives,
            "budget": budget,
            "data": facts["data"],
            "backend": facts["backend"],
            "device": facts["device"],
            "seed": recipe.seed,
            "space": space.describe(),
            "command": shlex.join(["python", *sys.argv]),
        }
        console.print(f"{config.method}, {amount(budget)} a trial; {facts['backend']} on {facts['device']}; {escape(str(folder))}")
        total = None if config.method == "hyperband" else config.trials
        screen = Screen(console, oracle, folder, settings, total)
        tuner.events = screen
        try:
            with screen:
                tuner.search_with(config.workers, worker_environments(config.workers, facts["accelerators"]))
        except KeyboardInterrupt:
            screen.report(finished=False)
            console.print("\nstopped; the same command goes on")
            raise
        screen.report(finished=True)
        search = describe(oracle, folder, settings, total, True)
        conclude(search, folder, console)
        if config.retrain:
            retrain(tuner, config, search, console)


def amount(budget):
    return f"{budget['amount']:g} {budget['kind']}"


def conclude(search, folder, console):
    """Prints the outcome and writes the recipes."""
    from tuning.pareto import smallest_within

    points = write_recipes(search, folder)
    if not points:
        console.print("no trial has succeeded; report.html gives the reasons")
        return
    for trial in points:
        metrics = ", ".join(f"{name} {trial['metrics'][name]:.4g}" for name in search["settings"]["objectives"])
        console.print(f"front: trial {trial['id']}  {metrics}  {short(trial['values'])}")
    best = points[0]
    small = smallest_within(search["trials"], points=1.0, size="params")
    if small and small["id"] != best["id"]:
        console.print(
            f"smallest within 1 point of the best: trial {small['id']}, {small['metrics']['val_accuracy']:.2%} with "
            f"{small['metrics']['params']:,.0f} parameters (best: {best['metrics']['params']:,.0f})"
        )
    console.print(
        f"best: trial {best['id']}, validation accuracy {best['metrics']['val_accuracy']:.2%}; "
        f"python experiments/train_cifar.py --recipe {folder / 'best.yaml'}"
    )
    console.print(f"report: {folder / 'report.html'}")


if __name__ == "__main__":
    run_command(main)
