"""Searches for the Vision Transformer to use on your images: patch size, depth, heads, width, learning rate and more.

  keras-vit search                                                      about 15 minutes, on CIFAR-10 or digits
  keras-vit search --data folder:PATH --max-time 2h --budget 120s
  keras-vit search --space FILE.yaml --space.depth 2..12                the axes of a file, and depth from 2 to 12
  keras-vit search --method hyperband --budget 27epochs --max-params 2e6
  keras-vit search --objective accuracy,latency --workers 2
  keras-vit search --retrain 3 --seeds 3                                tests the three best, with three seeds each
  keras-vit search --chief 0.0.0.0:8500 --out /shared/search            on one machine, then on each that trains:
  keras-vit search --worker CHIEF:8500 --out /shared/search

The same command, run again, goes on with a stopped search.
"""

import dataclasses
import json
import os
import re
import shlex
import time

import jsonargparse

from keras_vit.checks import check_int, check_number
from keras_vit.cli.command import Parser, RecipeParser, program, warn_of_fallback
from keras_vit.machine import stay_on_processor
from keras_vit.recipes.choose import choose_recipe
from keras_vit.recipes.parse import parse_recipe, recipe_parser
from keras_vit.search.axes import SpaceConfig, read_space
from keras_vit.search.distribute import read_address
from keras_vit.search.session import load_facts, search
from keras_vit.search.settings import METHODS, SearchConfig
from keras_vit.search.space import Limits, Space
from keras_vit.search.worker import work
from keras_vit.terminal import Terminal

SECTIONS = {"space": SpaceConfig}  # further sections that a recipe may have


def main(arguments):
    started = time.monotonic()
    stay_on_processor()  # this process trains nothing
    console = Terminal(highlight=False, soft_wrap=True, markup=False)
    if any(re.match(r"--worker(=|$)", each) for each in arguments):
        return work_for(arguments, console)
    options, settings = make_parser().parse(arguments)
    recipe, config, axes, limits = parse(options.recipe or "quick", options.space, settings)
    chief = options.chief and read_address("chief", options.chief)
    if chief:
        if config.retrain or config.workers > 1:
            at = "--workers with each worker, --retrain with the same command without --chief"
            raise ValueError(f"chief: received --retrain {config.retrain}, --workers {config.workers}; allowed: {at}")
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    Space(axes, recipe)  # refuses an empty space before the data is loaded; limits need the number of classes
    facts = load_facts(recipe)
    warn_of_fallback(console, facts["fallback"], "Searching on")
    if not options.recipe:
        name = "digits"
        if not facts["fallback"]:
            choice = choose_recipe(facts["picture_side"], facts["train"], facts["device"] if facts["accelerators"] else "")
            name = choice.recipe
            console.print(choice.reason)
        if name != "quick":
            recipe, config, axes, limits = parse(name, options.space, settings)
            facts = load_facts(recipe)  # of the images in the size of this recipe
    command = shlex.join([*program("search").split(" "), *arguments])
    more = {"out": options.out, "overwrite": options.overwrite, "chief": chief, "command": command, "started": started}
    search(recipe, config, axes, limits, facts, console, **more)


def make_parser():
    out = "searches/DATA-BACKEND-METHOD"
    words = {"recipe": "quick", "default": "chosen by data and machine", "out": out}
    parser = RecipeParser("search", __doc__, **words, further=search_parser, sections=SECTIONS)
    parser.add_argument("--space", metavar="FILE", help="YAML file of all axes to search. --space.depth 2..12 sets one axis.")
    parser.add_argument(
        "--chief", metavar="ADDRESS", help="HOST:PORT or PORT of this machine. Trains nothing; workers ask for trials."
    )
    parser.add_argument(
        "--worker", metavar="ADDRESS", help="HOST:PORT of a chief whose trials run here. Options: --worker X --help."
    )
    parser.add_setting("--method", "method", "NAME", f"{', '.join(METHODS)}.")
    parser.add_setting("--objective", "objective", "NAMES", "accuracy, balanced_accuracy, map...; after commas latency, params...")
    parser.add_setting("--max-time", "max_time", "TIME", "Time of the search: 15m, 2h.")
    parser.add_setting("--trials", "trials", "N", "Largest number of trials.", default="as many as --max-time allows")
    parser.add_setting(
        "--budget", "budget", "LENGTH", "Length of a trial: 9epochs, 90s, 1e15flops.", default="15 trials in --max-time"
    )
    parser.add_setting("--workers", "workers", "N", "Trials at a time.")
    parser.add_setting("--max-params", "max_params", "N", "Largest number of parameters.", default="any number")
    parser.add_setting("--retrain", "retrain", "N", "Number of best trials to train again and test.")
    parser.add_setting("--seeds", "seeds", "N", "Number of seeds for each trial of --retrain.")
    # The budget decides the epochs; learning rate and batch size are searched.
    parser.add_usual_settings(leave_out=("--epochs", "--time", "--batch-size", "--learning-rate"), data_dir="TFDS_DATA_DIR")
    return parser


def search_parser():
    """A parser of the settings beside the recipe's."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
    parser.add_class_arguments(SearchConfig, as_group=True)
    parser.add_class_arguments(SpaceConfig, "space")
    parser.add_class_arguments(Limits, as_group=True)
    return parser


def parse(name, space, settings):
    """`Recipe`, `SearchConfig`, `SpaceConfig` and `Limits`, from a recipe, a file of axes (or None) and settings on top."""
    if space:  # the file's axes replace the recipe's and the defaults; options such as --space.depth come after it
        axes = {axis: value if isinstance(value, str) else json.dumps(value) for axis, value in read_space(space).items()}
        settings = [*(f"--space.{axis}={value}" for axis, value in axes.items()), *settings]
    recipe, options = parse_recipe(name, settings, recipe_parser(search_parser()), SECTIONS)
    config, limits = (take(cls, options) for cls in (SearchConfig, Limits))
    return recipe, config, options.space, limits


def take(cls, options):
    """A data class from the options that have its fields' names."""
    return cls(**{field.name: options[field.name] for field in dataclasses.fields(cls)})


def work_for(arguments, console):
    """A worker's command line."""
    parser = Parser("search", "Runs trials of the chief of a search on this machine.")
    parser.add_argument("--worker", required=True, metavar="HOST:PORT", help="address of the chief")
    parser.add_argument("--out", required=True, help="the search folder, which chief and workers share")
    parser.add_argument("--workers", type=int, default=1, help="trials at a time on this machine (default: 1)")
    parser.add_argument("--data-dir", help="folder of prepared data sets, if it differs from the chief's")
    parser.add_argument("--patience", type=float, default=120.0, help="seconds to wait for a silent chief (default: 120)")
    options = parser.parse_args(arguments)
    check_int("workers", options.workers, at_least=1)
    check_number("patience", options.patience, above=0)
    address, more = read_address("worker", options.worker), {"data_dir": options.data_dir, "patience": options.patience}
    work(address, options.out, console, workers=options.workers, **more)
