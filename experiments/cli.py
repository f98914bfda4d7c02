"""What the scripts here share: the library's path, the choice of backend, errors as one line, and a training's words.

from cli import run_command
"""

import argparse
import errno
import importlib.util
import json
import os
import re
import sys
import traceback
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = ("tensorflow", "jax", "torch")
sys.path.insert(0, str(ROOT))


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ValueErrors, for `run_command` to show."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message):
        raise ValueError(message)


def run_command(function):
    """Runs a script's main function; a user's mistake becomes one line on the screen and exit code 2.

    A mistake is a ValueError or ImportError raised by this project's own code, or a file that cannot be read or
    written. Any other exception is a fault of the program and keeps its traceback.
    """
    try:
        choose_backend()
        function()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, ImportError, OSError) as error:
        if not isinstance(error, OSError) and not raised_here(error):
            raise
        if isinstance(error, OSError):
            name = f" {str(error.filename)!r}" if error.filename else ""
            kept = "; what was written before is kept" if error.errno == errno.ENOSPC else ""
            error = f"cannot read or write{name}: {error.strerror or error}{kept}"
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def raised_here(error):
    frames = traceback.extract_tb(error.__traceback__)
    folder = Path(frames[-1].filename).resolve()
    return any(ROOT / name in folder.parents for name in ("keras_vit", "experiments", "tuning", "benchmarks"))


def choose_backend():
    """Sets KERAS_BACKEND, where it is not, to the backend of Keras's own settings or to the first that is installed."""
    installed = [name for name in BACKENDS if importlib.util.find_spec(name)]
    chosen = os.environ.get("KERAS_BACKEND")
    # Keras writes this file at its first import, naming TensorFlow whatever is installed.
    file = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "keras.json"
    try:
        configured = json.loads(file.read_text()).get("backend")
    except (OSError, ValueError):
        configured = None
    if not installed:
        raise ValueError(f"KERAS_BACKEND: none of {', '.join(BACKENDS)} is installed; pip install one of them")
    if not chosen:
        os.environ["KERAS_BACKEND"] = configured if configured in installed else installed[0]
    elif chosen not in installed:
        known = "is not installed" if chosen in BACKENDS else "is no backend"
        raise ValueError(f"KERAS_BACKEND: {chosen!r} {known}; allowed here: {', '.join(installed)}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.filterwarnings("ignore", module=r"keras\.")


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
    from rich.markup import escape

    from keras_vit.machine import machine
    from keras_vit.train import train

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
