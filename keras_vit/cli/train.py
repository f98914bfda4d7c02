"""Trains a Vision Transformer on CIFAR-10, or on any images, and leaves a run folder.

python experiments/train_cifar.py                                         # a recipe that suits this machine
python experiments/train_cifar.py --recipe standard --train.epochs 50 --model.depth 6
python experiments/train_cifar.py --data folder:PATH --recipe my.yaml
python experiments/train_cifar.py --resume runs/quick-cifar10-jax         # after a kill
KERAS_BACKEND=torch python experiments/train_cifar.py
"""

import dataclasses
from pathlib import Path

from keras_vit.cli.command import Parser, train_and_report


def make_parser():
    import jsonargparse

    from keras_vit.recipes.parse import recipe_names, recipe_parser

    parser = jsonargparse.ArgumentParser(
        description="Trains a Vision Transformer and leaves a run folder. Any setting of the recipe can be overridden; "
        "the defaults shown are those of the recipe. Dashes do for underscores in --data-dir.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    names = ", ".join(recipe_names())
    parser.add_argument(
        "--recipe", help=f"One of {names}, or a YAML or JSON file. Default: quick on a CPU, standard on an accelerator."
    )
    parser.add_argument("--out", help="The run folder. Default: runs/RECIPE-DATA-BACKEND, numbered if it exists.")
    parser.add_argument("--overwrite", action="store_true", help="Start again where --out holds a run.")
    parser.add_argument("--resume", metavar="RUN", help="Go on with an interrupted run, to the same numbers.")
    return recipe_parser(parser)


def main(arguments):
    first = Parser(add_help=False)
    first.add_argument("--recipe")
    first.add_argument("--resume")
    chosen, _ = first.parse_known_args(arguments)

    from keras_vit.recipes.parse import parse_recipe

    name = chosen.recipe
    if chosen.resume and not name:
        from keras_vit.runs.folder import RunFolder

        name = RunFolder(chosen.resume).path / "recipe.yaml"
    if not name and not {"-h", "--help"} & set(arguments):
        from keras_vit.machine import accelerator

        name = "standard" if accelerator() else "quick"
    recipe, options = parse_recipe(name or "quick", arguments, make_parser())
    if options.resume and (options.out or options.overwrite):
        raise ValueError("--resume: takes neither --out nor --overwrite; the run goes on in its own folder")

    from rich.console import Console
    from rich.markup import escape
    from rich.panel import Panel

    from keras_vit.recipes.schema import load_recipe_data

    console = Console(highlight=False, soft_wrap=True)
    data = load_recipe_data(recipe)
    if data.fallback:
        notice = f"CIFAR-10 is not at hand: {data.fallback}\nTraining on scikit-learn's small embedded digits instead."
        console.print(Panel(escape(notice), title="THIS IS NOT CIFAR-10", border_style="bold red"), style="bold red")
        if not chosen.recipe:
            name = "digits"
            recipe, options = parse_recipe(name, arguments, make_parser())
            recipe = dataclasses.replace(recipe, data="digits")
            data = load_recipe_data(recipe)
    train_and_report(console, recipe, data, options, Path(name).stem, f"recipe {name}")
