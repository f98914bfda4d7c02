"""Trains a Vision Transformer and leaves a run folder.

  keras-vit train                                     CIFAR-10, with a recipe that suits this machine
  keras-vit train --data folder:PHOTOS --epochs 30    a folder of images for each class
  keras-vit train --recipe standard --model.depth 6   a recipe with a setting changed
  keras-vit train --resume runs/quick-cifar10-jax     goes on after a kill, to the same numbers
  keras-vit train --out RUN --resume auto             starts it or goes on: for a queue that repeats the command
  keras-vit train --resume RUN --extend 20            20 more epochs, also for a finished run
  KERAS_BACKEND=torch keras-vit train                 or jax, tensorflow

Every setting of the recipe is an option: --help-all.
"""

import dataclasses
from pathlib import Path

from keras_vit.cli.command import RecipeParser, load_data, start, train_and_report
from keras_vit.machine import accelerator
from keras_vit.recipes.choose import choose_recipe, picture_side
from keras_vit.recipes.parse import parse_recipe
from keras_vit.runs.folder import RunFolder


def make_parser():
    out = "runs/RECIPE-DATA-BACKEND, numbered if it exists"
    parser = RecipeParser("train", __doc__, recipe="quick", default="chosen by data and machine", out=out)
    parser.add_resume()
    parser.add_usual_settings(data_dir="TFDS_DATA_DIR")
    return parser


def main(arguments):
    options, settings = make_parser().parse_resume(arguments)
    name = options.recipe
    if not name and options.resume:
        name = RunFolder(options.resume).recipe_path
    elif not name:
        name = "quick"
    console = start(name, settings)
    recipe, _ = parse_recipe(name, settings)
    data = load_data(console, recipe, "Training on")
    if not options.recipe and not options.resume:
        if data.fallback:
            name = "digits"
            recipe = dataclasses.replace(parse_recipe(name, settings)[0], data="digits")
        else:
            choice = choose_recipe(picture_side(data), len(data.train), accelerator())
            console.print(choice.reason)
            name = choice.recipe
            recipe, _ = parse_recipe(name, [*choice.options, *settings])
        if name != "quick":
            data = recipe.load_data()
    train_and_report(console, recipe, data, options, command="train", stem=Path(name).stem, title=f"recipe {name}")
