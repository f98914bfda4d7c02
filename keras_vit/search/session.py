"""Runs a search from its settings to its report; the same search goes on in its folder after a stop."""

import dataclasses
import json
import os
import tempfile
import time
import typing
from pathlib import Path

import keras
from rich.console import Console

from keras_vit.data.dataset import short_name
from keras_vit.files import write_text
from keras_vit.processes import end_process, start_process
from keras_vit.recipes.parse import load_recipe
from keras_vit.recipes.schema import Recipe
from keras_vit.search.axes import SpaceConfig
from keras_vit.search.distribute import LOOPBACK, Chief, join
from keras_vit.search.folder import claim, clear_caches, locked
from keras_vit.search.memory import process_memory
from keras_vit.search.oracle import ORACLES
from keras_vit.search.outcome import conclude, describe
from keras_vit.search.retrain import retrain
from keras_vit.search.screen import Screen
from keras_vit.search.settings import START_SECONDS, SearchConfig, show_budget
from keras_vit.search.space import Limits, Space
from keras_vit.search.trial import STAGES
from keras_vit.search.tuner import TRIAL, TrialSettings, TrialTuner, reason_in
from keras_vit.training.speed import with_precision


def load_facts(recipe: Recipe) -> dict[str, typing.Any]:
    """The facts of the data and the machine (`facts` of trial.py). A process of its own finds them and holds GPU and images.

    Raises:
        ValueError: If the data cannot be loaded.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_text(folder / "recipe.yaml", recipe.to_yaml())
        write_text(folder / "job.json", json.dumps({"recipe": str(folder / "recipe.yaml"), "result": str(folder / "data.json")}))
        environment = {**os.environ, "KERAS_BACKEND": keras.backend.backend()}
        with open(folder / "log.txt", "wb") as log:
            command = [*TRIAL, str(folder / "job.json")]
            process = start_process(command, stdout=log, stderr=log, env=environment)
            try:
                code = process.wait()
            finally:
                end_process(process)
        if code:
            raise ValueError(reason_in(folder / "log.txt", code))
        return json.loads((folder / "data.json").read_text(encoding="utf-8"))


def search(
    recipe: Recipe,
    config: SearchConfig,
    axes: SpaceConfig,
    limits: Limits,
    facts: dict[str, typing.Any],
    console: Console,
    *,
    out: str | os.PathLike | None = None,
    overwrite: bool = False,
    chief: tuple[str, int] | None = None,
    command: str = "",
    started: float | None = None,
) -> Path:
    """Runs a search, or goes on with it, to its end.

    Args:
        recipe: Everything that is not searched.
        config: How the search goes.
        axes: The axes.
        limits: The most that a configuration may cost.
        facts: `load_facts` of the recipe.
        console: Shows the search.
        out: The search folder; None = searches/DATA-BACKEND-METHOD.
        overwrite: Whether the search in that folder is deleted first.
        chief: (host, port) at which to hand out the trials; None = this process runs them.
        command: The command line, for the report.
        started: `time.monotonic()` from which the search's time counts; None = now.

    Returns:
        The search folder.

    Raises:
        ValueError: If the data has no validation images, the space is empty, or the folder holds another search.
        KeyboardInterrupt: On Ctrl-C; the state is saved, and the same call goes on.
    """
    started = time.monotonic() if started is None else started
    if not facts["validation"]:
        raise ValueError(f"validation: received 0 images of {facts['data']}; allowed: at least 1, on which the search chooses")
    config.check_labels(facts["multi_label"], facts["class_names"])
    if recipe.train.monitor not in ("auto", config.quality):
        raise ValueError(f"monitor: received {recipe.train.monitor!r}; allowed: auto, or {config.quality}, the search's objective")
    # Parameters and FLOPs include the head.
    model = dataclasses.replace(recipe.model, num_classes=len(facts["class_names"]))
    recipe = dataclasses.replace(recipe, data=facts["data"], model=model).with_train(monitor=config.quality)
    folder = Path(out or f"searches/{short_name(facts['data'])}-{facts['backend']}-{config.method}").absolute()
    recipe = with_found_precision(recipe, facts, None if overwrite else folder, console)
    images = facts["train"] + facts["validation"]
    process = 0.0 if facts["accelerators"] else process_memory(facts["backend"], images, recipe)
    space, budget = Space(axes, recipe, limits, process), config.trial_budget
    console.print(f"{facts['data']}: {facts['train']:,} train, {facts['validation']:,} validation; {space.describe()}")
    identity = {
        **space.to_dict(),
        "method": config.method,
        "objectives": config.objectives,
        "budget": budget,
        "data": facts["fingerprint"],
        "backend": facts["backend"],
    }
    settings = {
        **{name: identity[name] for name in ("method", "objectives", "budget")},
        **{name: facts[name] for name in ("data", "backend", "device")},
        "seed": recipe.seed,
        "space": space.describe(),
        "command": command,
    }
    with locked(folder):
        limits_of_trial = {"time_limit": config.limit(budget), "stall_limit": config.stall_limit}
        claim(folder, {"identity": identity, **limits_of_trial}, overwrite)
        write_text(folder / "recipe.yaml", recipe.to_yaml())
        tuner = make_tuner(config, space, recipe.seed, folder)
        oracle = tuner.oracle
        oracle.max_seconds, oracle.started = config.seconds, started
        if not oracle.trial_seconds and budget["kind"] == "seconds":
            oracle.trial_seconds = budget["amount"] + START_SECONDS
        console.print(f"{config.method}, {show_budget(budget)} a trial; {facts['backend']} on {facts['device']}; {folder}")
        run(tuner, config, settings, facts["accelerators"], chief, console)
    return folder


def with_found_precision(recipe, facts, folder, console):
    """The recipe with a precision in place of `auto`: of the search that goes on in a folder, else the measured one."""
    if recipe.train.precision != "auto":
        return recipe
    if folder and (folder / "recipe.yaml").is_file():
        return with_precision(recipe, load_recipe(folder / "recipe.yaml").train.precision)
    console.print(facts["precision_reason"])
    return with_precision(recipe, facts["precision"])


def run(tuner, config, settings, accelerators, chief, console):
    """Runs the trials, then reports and retrains the best."""
    total = None if config.method == "hyperband" else config.trials
    screen = tuner.events = Screen(console, tuner.oracle, tuner.folder, settings, total)
    try:
        with screen:
            if chief:
                lead(tuner, chief, console)
            else:
                tuner.search_with(config.workers, worker_environments(config.workers, accelerators))
        screen.report(finished=True)
        conclude(describe(tuner.oracle, tuner.folder, settings, total, True), tuner.folder, console)
        if config.retrain:
            screen.report(finished=True, retrained=retrain(tuner, config, console))
        clear_caches(tuner.folder)
    except KeyboardInterrupt:
        tuner.oracle.save()
        if not screen.finished:
            screen.report()
        console.print("\nstopped; the same command goes on")
        raise


def lead(tuner, address, console):
    """Hands the trials out to workers on other machines."""
    host = address[0]
    if host not in LOOPBACK:
        console.print(f"{join(*address)} answers anyone who can reach it: use it in a trusted network only", style="bold")
    console.print(f"waiting for workers: keras-vit search --worker {join(*address)} --out {tuner.folder}")
    Chief(tuner.oracle, tuner.folder, tuner.events).serve(address)


def make_tuner(config, space, seed, folder, connect=None):
    """The tuner of a search; for a worker, `connect(oracle)` gives its `connect` argument."""
    oracle, budget = make_oracle(config, space, seed), config.trial_budget
    latency = any("latency" in name for name in config.objectives)
    settings = TrialSettings(budget, config.limit(budget), config.stall_limit, latency)
    return TrialTuner(oracle, settings, folder, connect=connect and connect(oracle))


def make_oracle(config, space, seed):
    settings, budget = {"objectives": config.objectives, "first": space.nearest(space.base)}, config.trial_budget
    if config.method == "hyperband":
        settings["max_epochs"] = round(budget["amount"]) if budget["kind"] == "epochs" else STAGES
    else:
        settings["max_trials"] = config.trials
    if config.method == "bayesian":
        expected = config.trials or config.seconds / (budget["amount"] + START_SECONDS if budget["kind"] == "seconds" else 60)
        settings["num_initial_points"] = max(4, min(len(space.axes), round(expected / 3)))
    return ORACLES[config.method](space, seed=seed, **settings)


def worker_environments(workers: int, accelerators: int) -> list[tuple[dict[str, str], set[int] | None]]:
    """Environment variables and cores of each worker: one accelerator each, or a share of the cores."""
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
