"""Searches for the Vision Transformer to use on your images: patch size, depth, heads, width, learning rate and more.

python tuning/search.py                                                    # about 15 minutes, on CIFAR-10 or digits
python tuning/search.py --data folder:PATH --max-time 2h --budget 120s
python tuning/search.py --method hyperband --budget 27epochs --space.depth 2..12 --space.patch_size 2,4,8 --max-params 2e6
python tuning/search.py --objective accuracy,latency --workers 2
KERAS_BACKEND=torch python tuning/search.py --retrain 3 --seeds 3
python tuning/search.py --chief 0.0.0.0:8500 --out /shared/search          # on one machine, then on each that trains:
python tuning/search.py --worker CHIEF:8500 --out /shared/search

The same command goes on with a search that was stopped.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import typing
from pathlib import Path

from keras_vit.cli.command import Parser

METHODS = ("bayesian", "random", "grid", "hyperband")
OBJECTIVES = {
    "accuracy": ("val_accuracy", "max"),
    "latency": ("latency_ms", "min"),
    "batch_latency": ("batch_latency_ms", "min"),
    "params": ("params", "min"),
    "flops": ("flops", "min"),
}
UNITS, DAY = {"s": 1, "m": 60, "h": 3600}, 86400
TRIALS_IN_TIME = 15  # what the default budget of a trial aims at
START_SECONDS = 20  # of a trial, about, beyond its training: start, compilation, validation


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How the search goes.

    Attributes:
        method: `bayesian` (a Gaussian process; with several objectives ParEGO), `random`, `grid` or `hyperband`.
        objective: One or more of accuracy, latency, batch_latency (of 64 images), params and flops; accuracy comes first.
        budget: The whole training of one trial: `9epochs`, `90s`, `2m` or `1e15flops`; a budget in seconds or FLOPs gives
            every patch size the same compute. Null = what lets some fifteen trials into max_time.
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
        from keras_vit.checks import check_int, check_number

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

    def limit(self, budget):
        """Seconds after which a training of that budget is ended."""
        return self.time_limit or (10 * budget["amount"] + 60 if budget["kind"] == "seconds" else DAY)

    @property
    def trial_budget(self):
        """{"kind": "epochs", "seconds" or "flops", "amount": number}."""
        if self.budget is not None:
            return read_budget("budget", self.budget)
        return {"kind": "seconds", "amount": max(10.0, (self.seconds or 3600) / TRIALS_IN_TIME - START_SECONDS)}


def read_seconds(name, text):
    amount, unit = read_quantity(name, text, "|[smh]", "a time above 0 such as 90s, 15m or 2h")
    return amount * UNITS[unit or "s"]


def read_budget(name, text):
    amount, unit = read_quantity(name, text, "epochs?|flops|[smh]", "9epochs, 90s, 2m, 1h or 1e15flops, above 0")
    if unit in UNITS:
        return {"kind": "seconds", "amount": amount * UNITS[unit]}
    return {"kind": "flops" if unit == "flops" else "epochs", "amount": amount}


def read_quantity(name, text, units, allowed):
    match = re.fullmatch(rf"(\d+\.?\d*(?:e[+-]?\d+)?)\s*({units})", str(text).strip().lower())
    if not match or not 0 < float(match[1]) < math.inf:
        raise ValueError(f"{name}: received {text!r}; allowed: {allowed}")
    return float(match[1]), match[2]


def make_parser():
    import jsonargparse

    from keras_vit.recipes.parse import recipe_parser
    from keras_vit.search.space import Limits, SpaceConfig

    parser = jsonargparse.ArgumentParser(
        description="Searches for the Vision Transformer to use, and goes on with a search that was stopped. Any setting of the "
        "recipe can be overridden and then holds for every trial that does not search it. Dashes do for underscores.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", help="What is not searched: a recipe's name or a YAML file, which may have a section `space`.")
    parser.add_argument("--out", help="The search folder. Default: searches/DATA-BACKEND-METHOD.")
    parser.add_argument("--overwrite", action="store_true", help="Delete the search in --out, whether this one or another.")
    parser.add_argument("--chief", help="HOST:PORT or PORT: trains nothing, workers ask for trials. Without HOST: this machine.")
    parser.add_argument("--worker", help="HOST:PORT of a chief whose trials run here; takes only what `--worker X --help` lists.")
    parser.add_class_arguments(SearchConfig, as_group=True)
    parser.add_class_arguments(SpaceConfig, "space")
    parser.add_class_arguments(Limits, as_group=True)
    return recipe_parser(parser)


@contextlib.contextmanager
def locked(folder):
    """Holds the folder; a ValueError if another process does."""
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / "lock", blocking=False):
            yield
    except filelock.Timeout:
        raise ValueError(f"search: {str(folder)!r} is in use by another search") from None


def light_backend():
    """Keeps this process, which trains nothing, off accelerators; returns the backend of the trials as environment variable."""
    import keras

    from keras_vit.machine import stay_on_processor

    stay_on_processor()
    return {"KERAS_BACKEND": keras.backend.backend()}


def load_facts(recipe, environment):
    """What a trial will find as data, from a process of its own: this one shall hold neither a GPU nor the images."""
    from keras_vit.files import write_text
    from keras_vit.processes import end
    from keras_vit.search.tuner import TRIAL, reason_in

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_text(folder / "recipe.yaml", recipe.to_yaml())
        write_text(folder / "job.json", json.dumps({"recipe": str(folder / "recipe.yaml"), "result": str(folder / "data.json")}))
        command = [*TRIAL, str(folder / "job.json")]
        with open(folder / "log.txt", "wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, **environment})
            try:
                code = process.wait()
            finally:
                end(process)
        if code:
            raise ValueError(reason_in(folder / "log.txt", code))
        return json.loads((folder / "data.json").read_text(encoding="utf-8"))


def parse(name, arguments):
    """Recipe, `SearchConfig`, `SpaceConfig`, `Limits` and further options of a command line."""
    from keras_vit.recipes.parse import parse_recipe
    from keras_vit.search.space import Limits, SpaceConfig

    recipe, options = parse_recipe(name, arguments, make_parser(), {"space": SpaceConfig})
    made = [cls(**{field.name: options[field.name] for field in dataclasses.fields(cls)}) for cls in (SearchConfig, Limits)]
    return recipe, made[0], options.space, made[1], options


def make_oracle(config, space, seed):
    from keras_vit.search.oracle import ORACLES
    from keras_vit.search.trial import STAGES

    settings, budget = {"objectives": config.objectives, "first": space.nearest(space.base)}, config.trial_budget
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


def check_same_search(folder, search, overwrite):
    """Writes down which search a folder holds; refuses to go on with another one, and says how it differs.

    Args:
        folder: The search folder, which this process holds.
        search: Plain values; what stands in `identity` decides what comes of the search.
        overwrite: Whether another search may be deleted.
    """
    from keras_vit.files import PARTIAL, write_text
    from keras_vit.search.tuner import DATA, JAX_CACHE

    for partial in folder.glob(PARTIAL + "*"):  # of processes that were killed
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
    path = folder / "search.json"
    theirs, search = read_search(folder), json.loads(json.dumps(search))
    if theirs is None and (others := sorted(file.name for file in folder.iterdir() if file.name != "lock")):
        raise ValueError(f"search: {str(folder)!r} is no search folder: it holds {', '.join(others[:3])}; choose another --out")
    if theirs is not None:
        changed = differences(theirs["identity"], search["identity"])
        if changed and not overwrite:
            raise ValueError(f"search: {str(folder)!r} holds another one: {changed}; choose another --out, or --overwrite")
        if overwrite:
            for old in folder.glob("trial-*"):
                shutil.rmtree(old)
            for name in ("oracle.json", "oracle.previous.json", "report.html", "best.yaml", "retrain.json"):
                (folder / name).unlink(missing_ok=True)
            for name in ("front", "retrain", DATA, JAX_CACHE):
                shutil.rmtree(folder / name, ignore_errors=True)
    write_text(path, json.dumps(search, indent=2) + "\n")


def read_search(folder):
    """What a search folder says of itself; None if it is none."""
    from keras_vit.search.tuner import read_json

    return read_json(folder / "search.json")


def differences(theirs, ours):
    """What differs between two searches, in a line."""
    theirs, ours = flat(theirs), flat(ours)
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return "; ".join(f"{name} {theirs.get(name)} there and {ours.get(name)} here" for name in names[:5])


def flat(tree, where=""):
    if not isinstance(tree, dict):
        return {where: tree}
    return {key: value for name, part in tree.items() for key, value in flat(part, f"{where}.{name}" if where else name).items()}


def worker_environments(workers, accelerators):
    """Environment and cores of each worker: one accelerator each, or a share of the cores."""
    if accelerators:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if os.environ.get("CUDA_VISIBLE_DEVICES") else []
        names = visible or [str(number) for number in range(accelerators)]
        shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if workers > len(names) else {}
        return [({"CUDA_VISIBLE_DEVICES": names[number % len(names)], **shared}, None) for number in range(workers)]
    if workers == 1 or not hasattr(os, "sched_getaffinity"):
        return [({}, None)] * workers
    cores = sorted(os.sched_getaffinity(0))
    shares = [set(cores[number::workers]) or set(cores) for number in range(workers)]
    return [({"OMP_NUM_THREADS": str(len(share))}, share) for share in shares]


def retrain(tuner, config, console):
    """Trains the best trials again on train and validation images, with several seeds, and reads the test images.

    Returns a list of {"id", "test_accuracies"}, which is also written to retrain.json.
    """
    import copy
    import statistics

    from keras_vit.files import write_text
    from keras_vit.search.oracle import FAILED
    from keras_vit.search.tuner import read_json

    results, best = [], {}
    done = [(metrics["val_accuracy"], trial) for trial, metrics in tuner.oracle.results() if not metrics.get(FAILED)]
    for _, trial in sorted(done, key=lambda row: -row[0]):  # Hyperband's trials of one configuration count once
        recipe = tuner.oracle.space.recipe(trial.hyperparameters.values)
        if len(best) < config.retrain and recipe not in best.values():
            best[trial.trial_id] = recipe
    budget = read_budget("retrain_budget", config.retrain_budget) if config.retrain_budget else config.trial_budget
    tuner = copy.copy(tuner)
    tuner.settings = dataclasses.replace(tuner.settings, time_limit=config.limit(budget))
    for trial_id, recipe in best.items():
        accuracies = []
        for seed in range(config.seeds):
            name = f"{trial_id}-seed-{seed}"
            place = tuner.folder / "retrain" / f"{name}-{amount(budget).replace(' ', '-')}"
            write_text(place / "recipe.yaml", dataclasses.replace(recipe, seed=seed, validation=0).to_yaml())
            job = {"recipe": str(place / "recipe.yaml"), "run": str(place / "run"), "result": str(place / "result.json")}
            job |= {"data": None, "until": None, "budget": budget, "latency": False}
            write_text(place / "job.json", json.dumps(job, indent=2) + "\n")
            if read_json(place / "result.json") is None:
                reason = tuner.run_job(place / "job.json", place)
                if reason:
                    console.print(f"retrain {name}: failed: {reason}")
            result = read_json(place / "result.json")
            if result and "test_accuracy" in result:
                accuracies.append(result["test_accuracy"])
                console.print(f"retrain {name}: test accuracy {accuracies[-1]:.2%}")
        results.append({"id": trial_id, "test_accuracies": accuracies})
        if len(accuracies) > 1:
            mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
            console.print(f"retrain {trial_id}: {mean:.2%} ± {100 * spread:.2f} over {len(accuracies)} seeds")
    write_text(tuner.folder / "retrain.json", json.dumps(results, indent=2) + "\n")
    return results


def main(arguments):
    started, environment = time.monotonic(), light_backend()
    first = Parser(add_help=False)
    first.add_argument("--recipe")
    first.add_argument("--chief")
    first.add_argument("--worker")
    chosen = first.parse_known_args(arguments)[0]
    if chosen.worker:
        return work(arguments, environment)
    recipe, config, space_config, limits, options = parse(chosen.recipe or "quick", arguments)

    from rich.console import Console

    from keras_vit.files import write_text
    from keras_vit.search.space import Space, process_memory

    if options.chief:
        from keras_vit.search.distribute import read_address

        read_address("chief", options.chief)
        if config.retrain or config.workers > 1:
            raise ValueError(
                "chief: trains nothing itself; --workers goes to the workers, --retrain to the same command without --chief"
            )
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    Space(space_config, recipe)  # one that is empty is refused before anything is loaded; limits need the number of classes
    facts = load_facts(recipe, environment)
    warn_of_fallback(facts, console)
    if not chosen.recipe and (facts["fallback"] or facts["accelerators"]):
        recipe, config, space_config, limits, options = parse("digits" if facts["fallback"] else "standard", arguments)
    if not facts["validation"]:
        raise ValueError(f"validation: {facts['data']} has no validation images to choose by; --validation holds some out")
    # The head counts among parameters and FLOPs.
    recipe = dataclasses.replace(recipe, data=facts["data"], model=dataclasses.replace(recipe.model, num_classes=facts["classes"]))
    images = facts["train"] + facts["validation"]
    space = Space(space_config, recipe, limits, 0 if facts["accelerators"] else process_memory(facts["backend"], images, recipe))
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
        limits_of_trial = {"time_limit": config.limit(budget), "stall_limit": config.stall_limit}
        check_same_search(folder, {"identity": identity, **limits_of_trial}, options.overwrite)
        write_text(folder / "recipe.yaml", recipe.to_yaml())
        tuner = make_tuner(config, space, recipe.seed, folder, environment)
        oracle = tuner.oracle
        oracle.max_seconds, oracle.started = config.seconds, started
        if not oracle.trial_seconds and budget["kind"] == "seconds":
            oracle.trial_seconds = budget["amount"] + START_SECONDS
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
        console.print(f"{config.method}, {amount(budget)} a trial; {facts['backend']} on {facts['device']}; {folder}")
        run(config, options, tuner, facts, settings, console)


def run(config, options, tuner, facts, settings, console):
    """Searches to the end, and says what came of it."""
    from keras_vit.search.screen import Screen, describe
    from keras_vit.search.tuner import DATA, JAX_CACHE

    total = None if config.method == "hyperband" else config.trials
    screen = tuner.events = Screen(console, tuner.oracle, tuner.folder, settings, total)
    try:
        with screen:
            if options.chief:
                lead(tuner, options.chief, console)
            else:
                tuner.search_with(config.workers, worker_environments(config.workers, facts["accelerators"]))
        screen.report(finished=True)
        conclude(describe(tuner.oracle, tuner.folder, settings, total, True), tuner.folder, console)
        if config.retrain:
            screen.report(finished=True, retrained=retrain(tuner, config, console))
        for name in (DATA, JAX_CACHE):
            shutil.rmtree(tuner.folder / name, ignore_errors=True)
    except KeyboardInterrupt:
        tuner.oracle.save()
        if not screen.finished:
            screen.report()
        console.print("\nstopped; the same command goes on")
        raise


def lead(tuner, address, console):
    """The chief's part of a search over several machines."""
    from keras_vit.search.distribute import LOOPBACK, Chief, read_address

    host, port = read_address("chief", address)
    if host not in LOOPBACK:
        console.print(f"{host}:{port} answers anyone who reaches it: only for a network that you trust", style="bold")
    console.print(f"waiting for workers: python tuning/search.py --worker {host}:{port} --out {tuner.folder}")
    Chief(tuner.oracle, tuner.folder, tuner.events).serve((host, port))


def work(arguments, environment):
    """A worker's part: everything but the chief's address is in the search folder."""
    parser = Parser(description="Runs trials of the chief of a search on this machine.")
    parser.add_argument("--worker", required=True, metavar="HOST:PORT", help="address of the chief")
    parser.add_argument("--out", required=True, help="the search folder, which chief and workers share")
    parser.add_argument("--workers", type=int, default=1, help="trials at a time on this machine (default: 1)")
    parser.add_argument("--data-dir", "--data_dir", help="prepared data sets, where they lie elsewhere than on the chief")
    parser.add_argument(
        "--patience", type=float, default=120.0, help="seconds to wait for a chief that does not answer (default: 120)"
    )
    options = parser.parse_args(arguments)
    if options.workers < 1 or not options.patience > 0:
        raise ValueError(f"workers, patience: received {options.workers}, {options.patience:g}; allowed: at least 1, above 0")

    from rich.console import Console

    from keras_vit.recipes.parse import load_recipe
    from keras_vit.search.distribute import ChiefClient, read_address
    from keras_vit.search.screen import Lines
    from keras_vit.search.space import Limits, Space, SpaceConfig

    console, folder = Console(highlight=False, soft_wrap=True, markup=False), Path(options.out).absolute()
    address = read_address("worker", options.worker)
    search = read_search(folder)
    if search is None:
        raise ValueError(f"out: {str(folder)!r} holds no search; start the chief with the same --out, on a shared folder")
    identity, recipe = search["identity"], load_recipe(folder / "recipe.yaml")
    if options.data_dir:
        recipe = dataclasses.replace(recipe, data_dir=options.data_dir)
    facts = load_facts(recipe, environment)
    changed = differences(identity, {**identity, "data": facts["fingerprint"], "backend": facts["backend"]})
    if changed:
        raise ValueError(f"worker: the search in {str(folder)!r} is another one: {changed}")
    space = Space(SpaceConfig(**identity["space"]), recipe, Limits(**identity["limits"]))
    names = {metric: name for name, (metric, _) in OBJECTIVES.items()}
    objective = ",".join(names[metric] for metric in identity["objectives"])
    budget = "{amount}{kind}".format(**identity["budget"]).replace("seconds", "s")
    config = SearchConfig(identity["method"], objective, budget, time_limit=search["time_limit"], stall_limit=search["stall_limit"])

    def connect(oracle):
        return lambda name: ChiefClient(oracle, address, name, options.patience)

    tuner = make_tuner(config, space, recipe.seed, folder, environment, connect)
    tuner.events = Lines(console)
    console.print(f"{recipe.data}, {facts['backend']} on {facts['device']}; trials of {options.worker}")
    tuner.search_with(options.workers, worker_environments(options.workers, facts["accelerators"]))
    console.print("the search has ended")


def make_tuner(config, space, seed, folder, environment, connect=None):
    """The tuner of a search; `connect`, for a worker, makes of an oracle what makes a client of a worker's name."""
    from keras_vit.search.tuner import TrialSettings, TrialTuner

    oracle, budget = make_oracle(config, space, seed), config.trial_budget
    latency = any("latency" in name for name in config.objectives)
    settings = TrialSettings(budget, config.limit(budget), config.stall_limit, latency)
    return TrialTuner(oracle, settings, folder, environment=environment, connect=connect and connect(oracle))


def warn_of_fallback(facts, console):
    from rich.panel import Panel

    if facts["fallback"]:
        text = f"CIFAR-10 is not at hand: {facts['fallback']}\nSearching on scikit-learn's small embedded digits instead."
        console.print(Panel(text, title="THIS IS NOT CIFAR-10", border_style="bold red"))


def amount(budget):
    return f"{budget['amount']:g} {budget['kind']}"


def conclude(search, folder, console):
    """Prints the outcome."""
    import statistics

    from keras_vit.search.pareto import front, smallest_within
    from keras_vit.search.screen import short

    points = front(search["trials"], search["settings"]["objectives"])
    if not points:
        console.print("no trial has succeeded; report.html gives the reasons")
        return
    for trial in points:
        metrics = ", ".join(f"{name} {trial['metrics'][name]:.4g}" for name in search["settings"]["objectives"])
        console.print(f"front: trial {trial['id']}  {metrics}  {short(trial['values'])}")
    best = points[0]
    small = smallest_within(search["trials"], points=1.0, size="params")
    if small:
        console.print(
            f"smallest within 1 point of the best: trial {small['id']}, {small['metrics']['val_accuracy']:.2%} with "
            f"{small['metrics']['params']:,.0f} parameters (best: {best['metrics']['params']:,.0f})"
        )
    console.print(
        f"best: trial {best['id']}, validation accuracy {best['metrics']['val_accuracy']:.2%}; "
        f"python experiments/train_cifar.py --recipe {folder / 'best.yaml'}"
    )
    overhead = [trial["metrics"]["overhead_seconds"] for trial in search["trials"] if "overhead_seconds" in trial["metrics"]]
    if overhead:
        console.print(f"a trial took {statistics.median(overhead):.1f} s beyond its training (median): start, build, measurements")
    console.print(f"report: {folder / 'report.html'}; tensorboard --logdir {folder}")
