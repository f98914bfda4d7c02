"""Searches for the Vision Transformer to use on your images: patch size, depth, heads, width, learning rate and more.

keras-vit search                                                      about 15 minutes, on CIFAR-10 or digits
keras-vit search --data folder:PATH --max-time 2h --budget 120s
keras-vit search --space FILE.yaml --space.depth 2..12                the axes of a file, and depth from 2 to 12
keras-vit search --method hyperband --budget 27epochs --max-params 2e6
keras-vit search --objective accuracy,latency --workers 2
keras-vit search --retrain 3 --seeds 3                                tests the three best, with three seeds each
keras-vit search --chief 0.0.0.0:8500 --out /shared/search            on one machine, then on each that trains:
keras-vit search --worker CHIEF:8500 --out /shared/search

The same command goes on with a search that was stopped.
"""

import dataclasses
import json
import os
import shlex
import time

import jsonargparse
from rich.console import Console
from rich.panel import Panel

from keras_vit.checks import check_int, check_number
from keras_vit.cli.command import Parser
from keras_vit.machine import stay_on_processor
from keras_vit.recipes.parse import parse_recipe, recipe_parser
from keras_vit.search.axes import SpaceConfig, read_space
from keras_vit.search.distribute import read_address
from keras_vit.search.session import load_facts, search
from keras_vit.search.settings import SearchConfig
from keras_vit.search.space import Limits, Space
from keras_vit.search.worker import work


def main(arguments):
    started = time.monotonic()
    stay_on_processor()  # this process trains nothing
    console = Console(highlight=False, soft_wrap=True, markup=False)
    first = Parser(add_help=False)
    for name in ("recipe", "worker"):
        first.add_argument(f"--{name}")
    chosen = first.parse_known_args(arguments)[0]
    if chosen.worker:
        return work_for(arguments, console)
    recipe, config, axes, limits, options = parse(chosen.recipe or "quick", arguments)
    chief = options.chief and read_address("chief", options.chief)
    if chief:
        if config.retrain or config.workers > 1:
            at = "--workers with each worker, --retrain with the same command without --chief"
            raise ValueError(f"chief: received --retrain {config.retrain}, --workers {config.workers}; allowed: {at}")
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    Space(axes, recipe)  # refuses an empty space before the data is loaded; limits need the number of classes
    facts = load_facts(recipe)
    if facts["fallback"]:
        text = f"CIFAR-10 is not at hand: {facts['fallback']}\nSearching on scikit-learn's small embedded digits instead."
        console.print(Panel(text, title="THIS IS NOT CIFAR-10", border_style="bold red"))
    if not chosen.recipe and (facts["fallback"] or facts["accelerators"]):
        name = "digits" if facts["fallback"] else "standard"
        recipe, config, axes, limits, options = parse(name, arguments)
    command = shlex.join(["keras-vit", "search", *arguments])
    settings = {"out": options.out, "overwrite": options.overwrite, "chief": chief, "command": command, "started": started}
    search(recipe, config, axes, limits, facts, console, **settings)


def parse(name, arguments):
    """`Recipe`, `SearchConfig`, `SpaceConfig`, `Limits` and further options of a command line."""
    first = Parser(add_help=False)
    first.add_argument("--space")
    chosen, arguments = first.parse_known_args(arguments)
    if chosen.space:  # the file's axes replace the recipe's and the defaults; options such as --space.depth come after it
        axes = {axis: value if isinstance(value, str) else json.dumps(value) for axis, value in read_space(chosen.space).items()}
        arguments = [*(f"--space.{axis}={value}" for axis, value in axes.items()), *arguments]
    recipe, options = parse_recipe(name, arguments, make_parser(), {"space": SpaceConfig})
    config, limits = (take(cls, options) for cls in (SearchConfig, Limits))
    return recipe, config, options.space, limits, options


def take(cls, options):
    """A data class from the options that have its fields' names."""
    return cls(**{field.name: options[field.name] for field in dataclasses.fields(cls)})


def make_parser():
    parser = jsonargparse.ArgumentParser(
        description="Searches for the Vision Transformer to use, and goes on with a search that was stopped. Any setting of the "
        "recipe can be overridden and then holds for every trial that does not search it. --space FILE.yaml searches the axes "
        "that the file names and no others; --space.AXIS changes one. Dashes do for underscores.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", help="Everything that is not searched: a recipe's name or a YAML file.")
    parser.add_argument("--out", help="The search folder. Default: searches/DATA-BACKEND-METHOD.")
    parser.add_argument("--overwrite", action="store_true", help="Delete the search in --out first.")
    parser.add_argument("--chief", help="HOST:PORT or PORT: trains nothing, workers ask for trials. Without HOST: this machine.")
    parser.add_argument("--worker", help="HOST:PORT of a chief whose trials run here; its options: --worker X --help.")
    parser.add_class_arguments(SearchConfig, as_group=True)
    parser.add_class_arguments(SpaceConfig, "space")
    parser.add_class_arguments(Limits, as_group=True)
    return recipe_parser(parser)


def work_for(arguments, console):
    """A worker's command line."""
    parser = Parser(description="Runs trials of the chief of a search on this machine.")
    parser.add_argument("--worker", required=True, metavar="HOST:PORT", help="address of the chief")
    parser.add_argument("--out", required=True, help="the search folder, which chief and workers share")
    parser.add_argument("--workers", type=int, default=1, help="trials at a time on this machine (default: 1)")
    parser.add_argument("--data-dir", "--data_dir", help="folder of prepared data sets, if it differs from the chief's")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds to wait for a silent chief (default: 120)")
    options = parser.parse_args(arguments)
    check_int("workers", options.workers, at_least=1)
    check_number("patience", options.patience, above=0)
    address, more = read_address("worker", options.worker), {"data_dir": options.data_dir, "patience": options.patience}
    work(address, options.out, console, workers=options.workers, **more)
