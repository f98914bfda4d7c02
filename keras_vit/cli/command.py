"""What the commands share: parsers with a short help and one-line errors, and the output of a training."""

import argparse
import difflib
import functools
import itertools
import os
import re
import sys
from pathlib import Path

from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from keras_vit.checks import check_unused
from keras_vit.data.dataset import short_name
from keras_vit.machine import BEGAN, machine
from keras_vit.recipes.parse import CLASSES, read_settings, recipe_names, recipe_parser
from keras_vit.recipes.schema import TrainConfig
from keras_vit.terminal import Terminal
from keras_vit.training.callbacks import Terminated
from keras_vit.training.distribution.base import LostProcess, gather_texts
from keras_vit.training.distribution.join import join
from keras_vit.training.loop import train

# argparse's messages, and the same in this project's words.
WORDINGS = (
    (r"argument (\S+): invalid int value: (.+)", r"\1: received \2; allowed: an integer"),
    (r"argument (\S+): invalid float value: (.+)", r"\1: received \2; allowed: a number"),
    (r"argument (\S+): expected (.+)", r"\1: received none; allowed: \2"),
    (r"the following arguments are required: (.+)", r"\1: received none; allowed: a value"),
)

AUTO = "auto"  # of --resume

# What people change in a recipe: the option, the setting that it is short for, its value's name and its help.
USUAL = (
    (
        "--data",
        "data",
        "DATA",
        "cifar10, cifar100, mnist or another TensorFlow data set; digits; folder:PATH, with a folder for each class; "
        "arrays:FILE.npz; auto: cifar10, or digits where that is not at hand.",
    ),
    ("--data-dir", "data_dir", "PATH", "Folder of TensorFlow data sets."),
    ("--image-size", "model.image_size", "N", "Pixels a side, or [HEIGHT,WIDTH]."),
    ("--epochs", "train.epochs", "N", "Passes over the training images."),
    ("--time", "train.time", "TIME", "How long the whole training may take here, such as 10m: epochs get the steps that fit."),
    ("--batch-size", "train.batch_size", "N", "Images a step."),
    ("--learning-rate", "train.learning_rate", "X", "The peak, after the warmup."),
    ("--precision", "train.precision", "NAME", "auto, float32, bfloat16 or float16."),
    ("--seed", "seed", "N", "Decides weights, split, order, augmentation and dropout."),
)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ValueErrors in this project's words, for `run_command` to show.

    Args:
        command: Of `keras-vit`, for the usage line.
        description: Begins the help; its lines stay as they are.
        target: The positional arguments in the usage line; empty = only options.
        **settings: Further arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, command: str, description: str, target: str = "", **settings):
        formatter = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=26)
        super().__init__(
            prog=program(command),
            usage=" ".join(filter(None, ("%(prog)s", target, "[options]"))),
            description=description,
            formatter_class=formatter,
            allow_abbrev=False,
            **settings,
        )

    def error(self, message):
        for theirs, ours in WORDINGS:
            message = re.sub(theirs, ours, message)
        raise ValueError(message)

    def parse_known_args(self, arguments):
        # --data_dir is --data-dir; names with a dot pass through.
        hyphens = [re.sub(r"^--[\w-]+(?==|$)", lambda name: name[0].replace("_", "-"), each) for each in arguments]
        return super().parse_known_args(hyphens)

    def parse_args(self, arguments):
        options, rest = self.parse_known_args(arguments)
        if rest:
            refuse(rest[0], vars(options), "--help")
        return options


class SettingsParser(Parser):
    """The options that people change: the short help of a command that takes many settings. Other settings pass through.

    Args:
        command, description, target: As of `Parser`.
        every: Makes a jsonargparse parser of every setting from the namespace of these options; `--help-all` shows its help.
    """

    def __init__(self, command: str, description: str, *, every, target: str = ""):
        super().__init__(command, description, target, add_help=False)
        self.every, self.settings = every, []
        self.add_argument("-h", "--help", action="store_true", help="Show this help.")
        self.add_argument("--help-all", action="store_true", help="Explain every setting, such as --model.depth.")

    def add_setting(self, option: str, setting: str, metavar: str, help: str, default: str = "%(default)s") -> None:
        """An option that is short for a setting.

        Args:
            option: Such as --epochs.
            setting: Such as train.epochs.
            metavar: Name of the value.
            help: Its description.
            default: Text for the default; by itself the value in the parser of `every`.
        """
        self.add_argument(option, dest=setting, metavar=metavar, help=f"{help} Default: {default}.")
        self.settings.append(setting)

    def parse(self, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """The options, and the settings by their full names; shows the help and exits where it is asked for."""
        options, rest = self.parse_known_args(arguments)
        every = self.every(options)
        if options.help:
            self.set_defaults(**{name: plain(every.get_defaults()[name]) for name in self.settings})
            self.print_help()
            self.exit()
        if options.help_all:
            every.prog, every.usage = self.prog, self.usage
            every.print_help()
            self.exit()
        short = [name.rpartition(".")[2] for name in self.settings]
        check_known(rest, [*short, *vars(options), *every.get_defaults().keys()])
        given = {name: vars(options).pop(name) for name in self.settings}
        for argument in rest:
            name = argument.removeprefix("--").partition("=")[0].replace("-", "_")
            if given.get(name) is not None:
                option = next(action.option_strings[0] for action in self._actions if action.dest == name)
                raise ValueError(f"{option}: received {given[name]} and --{name} too; allowed: one of the two")
        return options, [*rest, *(f"--{name}={value}" for name, value in given.items() if value is not None)]


class RecipeParser(SettingsParser):
    """A `SettingsParser` of a command that takes a recipe.

    Args:
        command, description, target: As of `SettingsParser`.
        recipe: The recipe whose values the help shows without --recipe.
        default: Help text for the recipe that is used without --recipe.
        out: Help text for the folder that is written without --out.
        further: Makes a jsonargparse parser of the settings beside the recipe's; None = there are none.
        sections: As of `parse_recipe`.
    """

    def __init__(self, command, description, *, recipe, default, out, further=None, sections=None, target=""):
        def every(options):
            settings = read_settings(options.recipe or recipe, sections=sections)
            settings.pop(CLASSES, None)
            parser = recipe_parser(further and further())
            parser.set_defaults(settings)
            return parser

        super().__init__(command, description, every=every, target=target)
        names = ", ".join(recipe_names())
        self.add_argument("--recipe", metavar="NAME", help=f"{names}, or a YAML or JSON file. Default: {default}.")
        self.add_argument("--out", metavar="FOLDER", help=f"Folder to write. Default: {out}.")
        self.add_argument("--overwrite", action="store_true", help="First delete what --out holds.")

    def add_resume(self) -> None:
        """How to go on with a run."""
        text = "Go on with an interrupted run, to the same numbers; auto: with the one in --out, or start it."
        self.add_argument("--resume", metavar="RUN", help=text)
        self.add_argument("--extend", metavar="N", type=int, default=0, help="With --resume: add N epochs, also to a finished run.")
        text = "Peak learning rate of the added epochs. Default: half the recipe's; the same with a constant schedule."
        self.add_argument("--extend-rate", metavar="X", type=float, help=text)

    def parse_resume(self, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """As `parse`; of `--resume auto` what it means now, and a ValueError for options that have no effect then."""
        options, settings = self.parse(arguments)
        if options.resume == AUTO:
            check_unused(options, ("overwrite", "extend", "extend_rate"), "with --resume auto")
            if not options.out:
                raise ValueError("--out: received none; allowed with --resume auto: the run's folder")
            options.resume = options.out if (Path(options.out) / "recipe.yaml").is_file() else None
        elif options.resume:
            check_unused(options, ("out", "overwrite"), "with --resume")
        if not options.resume:
            check_unused(options, ("extend", "extend_rate"), "without --resume")
        return options, settings

    def add_usual_settings(self, leave_out: tuple[str, ...] = (), **defaults: str) -> None:
        """What people change in a recipe.

        Args:
            leave_out: Options that the command does not show.
            **defaults: Help texts for defaults, in place of their values, by the setting's name.
        """
        for option, setting, metavar, help in USUAL:
            if option in leave_out:
                continue
            name = setting.rpartition(".")[2]
            self.add_setting(option, setting, metavar, help, defaults.get(name, "%(default)s"))


def check_known(arguments, settings):
    """Raises a ValueError for an option that is no setting."""
    for argument in arguments:
        name = re.match(r"--([\w.-]+)", argument)
        setting = name and name[1].replace("-", "_")
        # A section of settings is an option too, and so is the number of classes, which `parse_recipe` refuses with a reason.
        if name and not any(each == setting or each.startswith(f"{setting}.") for each in [*settings, CLASSES]):
            refuse(argument, [each for each in settings if each != CLASSES], "--help and --help-all")


def refuse(argument, settings, where):
    """Raises the ValueError for an argument that no parser knows; `where` is the help that explains the `settings`."""
    name = argument.partition("=")[0]
    near = difflib.get_close_matches(name.strip("-").replace("-", "_"), settings, n=1)
    hint = f" (did you mean --{near[0]}?)" if near else ""
    raise ValueError(f"option: received {name}{hint}; allowed: those of {where}")


def plain(value):
    """A setting as on a command line, where a square is the length of its side."""
    return value[0] if isinstance(value, (list, tuple)) and len(set(value)) == 1 else value


def program(command: str) -> str:
    """How this process was started: `keras-vit train`, or `python experiments/train_cifar.py`."""
    name = Path(sys.argv[0])
    return f"python {name}" if name.suffix == ".py" else f"{name.stem} {command}"


def add_model(parser: Parser) -> None:
    """The argument MODEL, and what a .keras file does not say of itself, for `open_classifier`."""
    parser.add_argument("model", metavar="MODEL", help="A run folder, the folder of an export, or a .keras file.")
    parser.add_argument("--multi-label", action="store_true", help="A .keras file was trained with several labels an image.")
    parser.add_argument(
        "--center-crop", metavar="X", type=float, help="Share of each side that the model sees. Default: the model's."
    )
    parser.add_argument(
        "--temperature", metavar="T", type=float, help="Divides logits, for calibrated probabilities. Default: the model's."
    )
    parser.add_argument(
        "--tta", metavar="VIEWS", help="Average over views of each picture: flip, shift, flip,shift, or auto: as trained."
    )
    parser.add_argument("--mean", metavar="X", type=float, nargs="+", help="Mean of pixels scaled to 0..1. Default: the model's.")
    parser.add_argument("--std", metavar="X", type=float, nargs="+", help="Deviation of such pixels. Default: the model's.")
    parser.add_argument("--class-names", metavar="NAME", nargs="+", help="The classes by index. Default: the model's.")


def start(name, settings):
    """Joins the processes of a training, before anything touches a device, and makes the console, which only the first one uses.

    Args:
        name: The recipe, or the path of one.
        settings: The settings that the command line changes.
    """
    words = [word for setting in settings for word in setting.split("=", 1)]
    given = {name.removeprefix("--"): value for name, value in itertools.pairwise(words)}  # the last one counts
    given = read_settings(name) | given
    seconds = str(given.get("train.peer_timeout", ""))  # one that is no number is refused with the other settings
    distribution = join(given.get("train.distribute", "none"), int(seconds) if seconds.isdecimal() else TrainConfig.peer_timeout)
    return Terminal(highlight=False, soft_wrap=True, quiet=not distribution.is_first)


def load_data(console, recipe, doing):
    """The recipe's `DataSet`; prints a red notice if it replaces the one that was meant."""
    data = recipe.load_data()
    warn_of_fallback(console, data.fallback, doing)
    return data


def warn_of_fallback(console, reason, doing):
    """Prints in red that the data is not CIFAR-10, if there is a reason for that."""
    if reason:
        notice = f"CIFAR-10 is not at hand: {reason}\n{doing} scikit-learn's small embedded digits instead."
        panel = Panel(Text(notice), title="THIS IS NOT CIFAR-10", border_style="bold red")
        console.print(panel, style="bold red", soft_wrap=False)  # soft wrapping would cut the reason off


def train_and_report(console, recipe, data, options, *, command, stem, title):
    """Trains into the folder that the options name, or into a new one, and prints the result.

    Args:
        console: A rich console.
        recipe: The `Recipe`.
        data: Its `DataSet`.
        options: With `out`, `overwrite` and those of `RecipeParser.add_resume`.
        command: The command of `keras-vit` that goes on with an interrupted run.
        stem: Prefix of a new folder's name.
        title: What is trained.
    """
    where, distribution = machine(), join(recipe.train.distribute, recipe.train.peer_timeout)
    backend = where["backend"]
    for note in data.notes:
        console.print(escape(note))
    added = f" and {options.extend} more" if options.extend else ""
    console.print(
        f"{escape(title)}, {recipe.train.total_epochs} epochs{added}; {backend} on {devices_of(distribution)}{where['device']}"
    )
    name = short_name(data.name)
    out = str(options.resume or options.out or free_folder(f"runs/{stem}-{name}-{backend}"))
    out = gather_texts(distribution, out)[0]  # the first process's, whatever the others find there
    made = Path(out) / "recipe.yaml"
    before = modified(made)
    try:
        extension = {"extend": options.extend, "extend_rate": options.extend_rate}
        run = train(recipe, out, data=data, resume=bool(options.resume), overwrite=options.overwrite, started=BEGAN, **extension)
    except LostProcess as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(2)  # the engine would wait for the lost process, or end this one with words of its own
    except (KeyboardInterrupt, Terminated):
        if options.resume or modified(made) != before:  # not what --overwrite was still to replace
            console.print(f"\nGo on with: {program(command)} --resume {escape(str(out))}")
        raise
    summary = run.summary
    measure, word = ("test_map", "test mAP") if summary["multi_label"] else ("test_accuracy", "test accuracy")
    accuracy = f"{word} {summary[measure]:.2%}" if measure in summary else f"{word} no test images"
    if recipe.pretrain:
        accuracy = f"validation loss {summary['val_loss']:.4f}" if "val_loss" in summary else "no validation images"
    parameters = f"{summary['parameters']:,} parameters"
    if recipe.finetune.checkpoint:
        parameters += f", {summary['trained_parameters']:,} trained"
    console.print(
        f"{summary['data']}: {accuracy}; {parameters}, {summary['epochs']} epochs, "
        f"{summary['process_seconds']:.0f} s with {backend}; run folder {escape(str(run.path))}"
    )


def devices_of(distribution):
    if distribution.devices == 1:
        return ""
    processes = f" of {distribution.processes} processes" if distribution.processes > 1 else ""
    return f"{distribution.devices} devices{processes}, each "


def modified(file):
    return file.stat().st_mtime_ns if file.is_file() else None


def free_folder(stem):
    """The first of stem, stem-2, stem-3 ... that does not exist."""
    path, number = Path(stem), 1
    while path.exists():
        number += 1
        path = Path(f"{stem}-{number}")
    return path
