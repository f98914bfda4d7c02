"""Compares the installed backends: same weights, same batch, each backend in a process of its own.

  keras-vit parity                                the model of the recipe quick, with random weights
  keras-vit parity S/16 --model.image_size 64     a variant, with any setting of the model
  keras-vit parity RUN --exports                  a run's own weights, and every export format from every backend

Shows the largest differences of logits, loss, gradients and trained weights. The exit code is 1 if one is above its threshold.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import jsonargparse
from rich.markup import escape
from rich.table import Table

from keras_vit.backend import BACKENDS, installed_backends
from keras_vit.checks import check_int
from keras_vit.cli.command import SettingsParser
from keras_vit.export.formats import FORMATS
from keras_vit.files import write_text
from keras_vit.model.config import VARIANTS, ViTConfig
from keras_vit.parity import THRESHOLDS, Difference, compare, export_everywhere, run_backends
from keras_vit.recipes.parse import read_settings, recipe_names, reworded
from keras_vit.runs.folder import RunFolder
from keras_vit.terminal import Terminal


def make_parser():
    parser = SettingsParser("parity", __doc__, every=model_parser, target="[TARGET]")
    parser.add_argument(
        "--backends", metavar="NAMES", default="", help="Two or more of tensorflow,jax,torch. Default: all installed."
    )
    parser.add_argument("--batch-size", metavar="N", type=int, default=8, help="Images of the batch. Default: 8.")
    formats = ",".join(FORMATS)
    parser.add_argument("--exports", metavar="FORMATS", nargs="?", const="all", help=f"Export too: all, or some of {formats}.")
    parser.add_argument("--json", metavar="FILE", help="Write differences and speeds here.")
    return parser


def model_parser(options=None):
    """A parser of every setting of the model, --model.depth and so on."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
    parser.add_class_arguments(ViTConfig, "model")
    return parser


def main(arguments: list[str]) -> int:
    """The command; returns its exit code, 1 if a difference is above its threshold or an export fails."""
    target, *arguments = arguments if arguments and not arguments[0].startswith("-") else ("quick", *arguments)
    options, settings = make_parser().parse(arguments)
    check_int("batch_size", options.batch_size, at_least=1)
    backends = choose("backends", options.backends, installed_backends())
    formats = choose("exports", "" if options.exports == "all" else options.exports, list(FORMATS)) if options.exports else []
    model = load_target(target, parse_model(settings))
    if len(backends) < 2 and not formats:
        raise ValueError(f"backends: received {', '.join(backends)}; allowed: two or more of {', '.join(BACKENDS)}")

    console = Terminal(highlight=False, soft_wrap=True)
    numbers = run_backends(model, backends, options.batch_size, console.print)
    differences = compare(numbers)
    if differences:
        console.print(differences_table(numbers, differences))
    console.print(speed_table(numbers, options.batch_size))
    rows = export_everywhere(model, formats, backends, console.print)
    if rows:
        console.print(exports_table(rows))
    if options.json:
        result = {
            "target": target,
            "differences": [{**dataclasses.asdict(d), "threshold": THRESHOLDS[d.quantity]} for d in differences],
            "images_per_second": {b: {name: float(values[name]) for name in ("train", "infer")} for b, values in numbers.items()},
            "exports": rows,
        }
        write_text(options.json, json.dumps(result, indent=2) + "\n")
    return int(not all(d.passed for d in differences) or any(row["error"] for row in rows))


def parse_model(arguments):
    """The settings of the model that a command line states, {"depth": 3}."""
    parser = model_parser()
    try:
        model = parser.parse_args(arguments, defaults=False).get("model")
    except (jsonargparse.ArgumentError, argparse.ArgumentError) as error:
        raise ValueError(reworded(error)) from None
    return {name: value for name, value in vars(model).items() if value is not None} if model else {}


def choose(name, value, allowed):
    """A comma-separated list of allowed names; empty = all."""
    chosen = [item.strip() for item in value.split(",")] if value else allowed
    for item in chosen:
        if item not in allowed:
            raise ValueError(f"{name}: received {item!r}; allowed: {', '.join(allowed)}")
    return chosen


def load_target(target: str, settings: dict) -> dict:
    """What a target on the command line stands for, as plain values that a worker process can read.

    Args:
        target: A run folder, a `.keras` file, a recipe's name or file, or a variant such as "S/16".
        settings: Fields of the model's configuration on top; none for a run or a `.keras` file.

    Returns:
        `{"model": path of a .keras file}` or `{"config": fields of a ViTConfig}`.

    Raises:
        ValueError: If it is none of these, or the settings do not fit.
    """
    path = Path(target)
    if path.suffix == ".keras" or path.is_dir():
        file = RunFolder(path).intact_model_path() if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"target: received {target!r}, but {str(file)!r} does not exist; allowed: an existing model")
        if settings:
            name, value = next(iter(settings.items()))
            raise ValueError(f"model.{name}: received {value!r}; allowed: none, a trained model's weights fit one shape")
        return {"model": str(file)}
    if target.partition("/")[0] in VARIANTS and not path.exists():
        config = ViTConfig.from_variant(target, **settings)
    elif path.suffix in (".yaml", ".yml", ".json") or target in recipe_names():
        model = {name.removeprefix("model."): value for name, value in read_settings(target).items() if name.startswith("model.")}
        config = ViTConfig(**{**model, **settings})
    else:
        raise ValueError(
            f"target: received {target!r}; allowed: a run folder, a .keras file, a recipe ({', '.join(recipe_names())} or a YAML "
            "file) or a variant such as S/16"
        )
    return {"config": config.to_dict()}


def differences_table(numbers: dict, differences: list[Difference]) -> Table:
    """A rich table: a row for each quantity and backend, the largest difference beside its threshold."""
    table = Table("quantity", "backend", title=f"largest differences to {next(iter(numbers))}, float32")
    for name in ("difference", "threshold"):
        table.add_column(name, justify="right")
    table.add_column("")
    table.add_column("in", overflow="fold")
    for difference in sorted(differences, key=lambda difference: list(THRESHOLDS).index(difference.quantity)):
        verdict = "[green]passed[/]" if difference.passed else "[bold red]FAILED[/]"
        limit = THRESHOLDS[difference.quantity]
        table.add_row(
            difference.quantity, difference.backend, f"{difference.largest:.1e}", f"{limit:.0e}", verdict, difference.where
        )
    return table


def speed_table(numbers: dict, batch_size: int) -> Table:
    """A rich table of images/s by backend."""
    table = Table("backend", title=f"images/s, batches of {batch_size}")
    for name in ("training", "inference"):
        table.add_column(name, justify="right")
    for backend, values in numbers.items():
        table.add_row(backend, f"{values['train']:,.0f}", f"{values['infer']:,.0f}")
    return table


def exports_table(rows: list[dict]) -> Table:
    """A rich table of `export_everywhere`: a row for each format, a column for each backend."""
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    table = Table("format", *backends, title="exports: largest difference of logits to Keras")
    for name in dict.fromkeys(row["format"] for row in rows):
        cells = []
        for backend in backends:
            row = next(row for row in rows if row["format"] == name and row["backend"] == backend)
            writer = "" if row.get("written_by") == backend else f" (by {row.get('written_by')})"
            cells.append(f"[bold red]{escape(row['error'])}[/]" if row["error"] else f"{row['difference']:.1e}{writer}")
        table.add_row(name, *cells)
    return table
