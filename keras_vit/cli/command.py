"""What the commands share: a parser whose errors are one line, and a training's words."""

import argparse
import re
import sys
from pathlib import Path

from rich.markup import escape

from keras_vit.machine import machine
from keras_vit.training.loop import train


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ValueErrors, for `run_command` to show."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message):
        raise ValueError(message)


def train_and_report(console, recipe, data, options, stem, title):
    """Trains into the folder that the options name or a new one, and says what came of it.

    Args:
        console: A rich console.
        recipe: The `Recipe`.
        data: Its `DataSet`.
        options: With `resume`, `out` and `overwrite`.
        stem: Begins the name of a new folder.
        title: What is trained.
    """
    where = machine()
    backend = where["backend"]
    for note in data.notes:
        console.print(escape(note))
    console.print(f"{escape(title)}, {recipe.train.epochs} epochs; {backend} on {where['device']}")
    name = re.sub(r"[^\w.-]+", "-", data.name)
    out = options.resume or options.out or free_folder(f"runs/{stem}-{name}-{backend}")
    try:
        run = train(recipe, out, data=data, resume=bool(options.resume), overwrite=options.overwrite)
    except KeyboardInterrupt:
        if (Path(out) / "recipe.yaml").is_file():
            console.print(f"\nGo on with: python experiments/{Path(sys.argv[0]).name} --resume {escape(str(out))}")
        raise
    summary = run.summary
    accuracy = f"{summary['test_accuracy']:.2%}" if "test_accuracy" in summary else "no test images"
    parameters = f"{summary['parameters']:,} parameters"
    if recipe.finetune.checkpoint:
        parameters += f", {summary['trained_parameters']:,} trained"
    console.print(
        f"{summary['data']}: test accuracy {accuracy}; {parameters}, {summary['epochs']} epochs, "
        f"{summary['process_seconds']:.0f} s with {backend}; run folder {escape(str(run.path))}"
    )


def free_folder(stem):
    """The first of stem, stem-2, stem-3 ... that does not exist."""
    path, number = Path(stem), 1
    while path.exists():
        number += 1
        path = Path(f"{stem}-{number}")
    return path
