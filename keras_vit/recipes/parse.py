"""Recipes from strict YAML or JSON, from Python and from a command line."""

import argparse
import dataclasses
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path

import jsonargparse

from keras_vit.checks import check_fields, check_type, hints_of, is_integer, plain, shown, unknown
from keras_vit.files import check_seal, read_yaml
from keras_vit.model.config import ViTConfig, decode_variant
from keras_vit.recipes.schema import SECTIONS, FinetuneConfig, Recipe

RECIPES = Path(__file__).parent
# What a setting may be, by the name of its type.
# Messages of argparse and jsonargparse, and the same in this project's words.
WORDINGS = (
    (r"argument (\S+): expected (.+)", r"\1: received none; allowed: \2"),
    (r'"([\w.]+)": Unable to load config (\S+)', r"\1: received \2; allowed: settings, each as --\1.NAME=VALUE"),
    (r"Group '([\w.]+)' does not accept option '([\w.]+)'", r"option: received --\1.\2; allowed: those of --help-all"),
)
KINDS = {"int": "an integer", "float": "a number", "bool": "true or false", "NoneType": "null", "tuple": "a pair", "list": "a list"}
CLASSES = "model.num_classes"  # the data decides it: only a run's own recipe states it
TIME, STEPS = "train.time", "train.steps_per_epoch"
LENGTHS = ("train.epochs", STEPS)


def recipe_names() -> list[str]:
    """The recipes of this package."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def recipe_path(name: str | os.PathLike) -> Path:
    """The file of a recipe: a path, or the name of one in this package."""
    path, names = Path(name), recipe_names()
    if path.suffix in (".yaml", ".yml", ".json"):
        if not path.is_file():
            raise ValueError(f"recipe: received {str(name)!r}, which is no file; allowed: a file, {', '.join(names)}")
        return path
    if str(name) not in names:
        raise ValueError(unknown("recipe", str(name), names, "or a .yaml or .json file"))
    return RECIPES / f"{name}.yaml"


def read_settings(name: str | os.PathLike, variant: str | None = None, sections: dict | None = None) -> dict:
    """The settings in a recipe file as {"model.depth": 4, ...}, its names checked and its variant expanded.

    Args:
        name: A recipe's name or a YAML or JSON file.
        variant: Replaces the model's shape by that of a variant such as "Ti/4".
        sections: Further sections that the file may have, {name: data class}.
    """
    path = recipe_path(name)
    tree = read_yaml(path) or {}
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: received a {type(tree).__name__}; allowed: a mapping of settings")
    further = {section: tree.pop(section, None) or {} for section in sections or {}}
    settings = flatten(tree, f"{path}: ")
    for section, values in further.items():
        settings.update(flatten_section(section, sections[section], values, f"{path}: "))
    if variant:
        settings.update({f"model.{name}": value for name, value in decode_variant(variant).items()})
    return settings


def check_resolved(path: str | os.PathLike) -> None:
    """Raises a ValueError unless a run's own recipe is whole: as its digest says or, without one, with every setting stated."""
    settings = read_settings(path)
    if check_seal(Path(path).read_text(encoding="utf-8"), path):
        return
    if missing := [name for name in flatten(Recipe().to_dict(), "") if name not in settings]:
        more = ", ..." * (len(missing) > 3)
        raise ValueError(f"{path}: received no {', '.join(missing[:3])}{more}; allowed: the recipe of a run, with every setting")


def read_overrides(overrides: dict) -> dict:
    """Settings on top of a recipe, {"model": {"depth": 4}}, as {"model.depth": 4}, names checked."""
    settings = flatten(overrides, "")
    if CLASSES in settings:
        refuse_classes(settings[CLASSES])
    return settings


def refuse_classes(received):
    raise ValueError(f"{CLASSES}: received {received}; allowed: none, the data decides it")


def flatten(tree: dict, where: str) -> dict:
    """Settings {"model": {"depth": 4}} as {"model.depth": 4}, names checked; a `variant` in `model` is expanded.

    Args:
        tree: The settings.
        where: Prefix of error messages, such as the name of a file.
    """
    check_fields(Recipe, tree, f"{where}recipe")
    settings = {}
    for key, value in tree.items():
        if key in SECTIONS:
            if key == "model" and isinstance(value, dict) and "variant" in value:
                value = {**decode_variant(value["variant"]), **{k: v for k, v in value.items() if k != "variant"}}
            settings.update(flatten_section(key, SECTIONS[key], value, where))
        else:
            settings[key] = typed(key, Recipe, key, value, where)
    return settings


def flatten_section(section: str, cls, values: dict, where: str) -> dict:
    """Values {"depth": 4} of a section as {"model.depth": 4}, names and types checked; arguments as of `flatten`."""
    if not isinstance(values, dict):
        raise ValueError(f"{where}{section}: received {shown(values)}; allowed: a mapping of settings")
    check_fields(cls, values, f"{where}{section}")
    return {f"{section}.{name}": typed(f"{section}.{name}", cls, name, value, where) for name, value in values.items()}


def typed(setting: str, cls, name: str, value, where: str):
    """The value of a field of a data class; a ValueError unless it is of the field's type."""
    value = plain(value)
    if isinstance(value, dict):  # classes may have numbers as names
        value = {str(key) if is_integer(key) else key: each for key, each in value.items()}
    check_type(f"{where}{setting}", value.tolist() if hasattr(value, "tolist") else value, hints_of(cls)[name])
    return value


def recipe_parser(parser: jsonargparse.ArgumentParser | None = None) -> jsonargparse.ArgumentParser:
    """A parser with an option for every setting of a recipe, `--train.epochs` and so on, each explained by --help."""
    parser = parser or jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument(
        "--model.variant",
        help="A variant such as Ti/4 that replaces the recipe's width, depth, num_heads, mlp_dim and patch_size.",
    )
    parser.add_class_arguments(Recipe, as_group=False, skip={CLASSES})
    return parser


def parse_recipe(
    name: str | os.PathLike,
    arguments: list[str],
    parser: jsonargparse.ArgumentParser | None = None,
    sections: dict | None = None,
    *,
    complete: Callable[..., dict] | None = None,
) -> tuple[Recipe, jsonargparse.Namespace]:
    """A recipe file with settings from a command line on top.

    Args:
        name: A recipe's name or a YAML or JSON file.
        arguments: Options such as ["--train.epochs", "3"].
        parser: A parser of `recipe_parser` that may have further options.
        sections: Further sections that the file may have, {name: data class}, which are options of `parser`.
        complete: Gives the settings that neither file nor command line states, {"model.depth": 12, ...}, from the parsed
            `FinetuneConfig` and, once it is known, the model's number of channels; None = the fields' defaults.

    Returns:
        The `Recipe` and a namespace with the values of the further options.

    Raises:
        ValueError: Naming the setting, what was received and what is allowed.
    """
    arguments = [re.sub(r"^--[\w.-]+", lambda option: "--" + option[0][2:].replace("-", "_"), each) for each in arguments]
    if broken := next((each for each in arguments if re.search("[\ud800-\udfff]", each)), None):  # bytes that are no UTF-8
        raise ValueError(f"option: received {ascii(broken)[:200]}; allowed: text in UTF-8, which a recipe can hold")
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--model.variant", dest="variant")
    first.add_argument(f"--{CLASSES}", dest="classes")
    for setting in (TIME, *LENGTHS):
        first.add_argument(f"--{setting}")
    first.add_argument("--train", default="")
    first.add_argument("--model", default="")
    try:
        known = first.parse_known_args(arguments)[0]
    except argparse.ArgumentError as error:
        raise ValueError(reworded(error)) from None
    if known.classes is not None or "num_classes" in known.model:
        refuse_classes(known.classes or known.model)
    words = re.findall(r"\w+", known.train)  # of a section given as a whole
    given = [each for each in (TIME, *LENGTHS) if vars(known)[each] is not None or each.partition(".")[2] in words]
    settings = without_time(read_settings(name, known.variant, sections), given)
    return parse_settings(settings, arguments, parser or recipe_parser(), complete)


def without_time(settings: dict, given: Collection[str]) -> dict:
    """The settings of a recipe, without its time, and the steps that were found for it, if `given` ones on top replace them."""
    if settings.get(TIME) is None or not any(name in given for name in (TIME, *LENGTHS)):
        return settings
    replaced = [name for name in (TIME, STEPS) if name not in given]
    return {name: value for name, value in settings.items() if name not in replaced}


def load_recipe(name: str | os.PathLike, **overrides) -> Recipe:
    """A `Recipe` from a file, with settings on top.

    Args:
        name: A recipe's name ("quick") or a YAML or JSON file.
        **overrides: Sections as dictionaries and other fields as values: `train={"epochs": 3}, seed=1`. Not the number of
            classes, which the data decides.

    Raises:
        ValueError: Naming the setting, what was received and what is allowed.
    """
    return parse_settings(read_with_overrides(name, overrides))[0]


def read_with_overrides(name: str | os.PathLike, overrides: dict) -> dict:
    """The settings of a recipe, with those of `load_recipe`'s overrides on top, by full names."""
    given = read_overrides(overrides)
    return {**without_time(read_settings(name), given), **given}


def parse_settings(
    settings: dict,
    arguments: list[str] = (),
    parser: jsonargparse.ArgumentParser | None = None,
    complete: Callable[..., dict] | None = None,
) -> tuple[Recipe, jsonargparse.Namespace]:
    """Settings {"model.depth": 4, ...} with a command line on top; arguments, result and errors as in `parse_recipe`."""
    parser = parser or recipe_parser()
    settings = dict(settings)
    num_classes = settings.pop(CLASSES, ViTConfig.num_classes)
    try:
        parser.set_defaults(settings)
        namespace = parser.parse_args(arguments)
        if complete:
            finetune = FinetuneConfig(**namespace.finetune.as_dict())
            parser.set_defaults({**complete(finetune), **settings})
            namespace = parser.parse_args(arguments)
            parser.set_defaults({**complete(finetune, namespace.model.channels), **settings})  # of the channels asked for
            namespace = parser.parse_args(arguments)
    except (jsonargparse.ArgumentError, argparse.ArgumentError) as error:
        raise ValueError(reworded(error)) from None
    namespace.model.pop("variant", None)
    namespace = parser.instantiate(namespace)
    fields = {field.name: namespace.pop(field.name) for field in dataclasses.fields(Recipe)}
    fields["model"] = dataclasses.replace(fields["model"], num_classes=num_classes)
    return Recipe(**fields), namespace


def reworded(error: Exception) -> str:
    """An error of jsonargparse in the words of `keras_vit.checks`, in one line."""
    message = " ".join(str(error).replace("Parser key ", "").split())
    if message.startswith("unrecognized arguments: "):
        return f"option: received {message.partition(': ')[2]}; allowed: those of --help-all"
    for theirs, ours in WORDINGS:
        if found := re.match(theirs, message):
            return found.expand(ours)
    found = re.fullmatch(r'"([\w.]+)": (.+) (?:Got|Given) value: ?(.*)', message)
    kinds = re.findall(r"Expected an? (?:<class '(\w+)'>|typing\.Literal\[(.+?)\])", found[2]) if found else []
    if not kinds:
        return message
    allowed = [KINDS.get(kind, kind) or choices.replace("'", "") for kind, choices in kinds]
    return f"{found[1]}: received {found[3]!r}; allowed: {' or '.join(allowed)}"
