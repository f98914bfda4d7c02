"""The settings of a run beside those of the recipe that it was made from, and the command that repeats it."""

import functools
import shlex

from keras_vit.recipes.parse import CLASSES, flatten, load_recipe, recipe_names
from keras_vit.recipes.schema import Recipe
from keras_vit.runs.folder import RunFolder

RESOLVED = ("auto", "none", None, [])  # values of a recipe that data, machine or a later extension may replace
DECIDED = ("data", "data_dir", "labels", CLASSES, "train.monitor", "train.loss", "train.precision", "train.extensions")
FROM_CHECKPOINT = "photos"  # the recipe of `keras-vit finetune` without --recipe


def settings_of(recipe: Recipe) -> dict:
    """Every setting by its full name, {"model.depth": 4, ...}."""
    return flatten(recipe.to_dict(), "")


@functools.cache
def named_settings(name: str) -> dict:
    """Every setting of a recipe of this package; not to be changed."""
    return settings_of(load_recipe(name))


def named_recipe(recipe: Recipe, command: str = "") -> str:
    """The recipe of this package that a run was made from: the one in its command, else the one with the fewest other values.

    Args:
        recipe: The run's.
        command: The command line that started the run; empty = not known.
    """
    names = recipe_names()
    if (stated := stated_recipe(command)) in names:
        return stated
    if recipe.finetune.checkpoint:
        return FROM_CHECKPOINT
    ours = settings_of(recipe)

    def distance(name):
        theirs = named_settings(name)
        return sum(ours[setting] != theirs[setting] for setting in ours if setting not in DECIDED)

    return min(names, key=distance)


def stated_recipe(command):
    """What follows --recipe on a command line; None if nothing does."""
    try:
        words = shlex.split(command)
    except ValueError:  # an open quote
        return None
    for place, word in enumerate(words):
        if word == "--recipe":
            return "".join(words[place + 1 : place + 2])
        if word.startswith("--recipe="):
            return word.removeprefix("--recipe=")
    return None


def compared_settings(recipe: Recipe, name: str) -> list[dict]:
    """The settings of a run beside those of a named recipe.

    Returns:
        A dictionary for each setting with its `name`, `value`, `named` (the named recipe's value) and `differs`: whether somebody
        changed it, and not only the data or the machine decided it.
    """
    ours, theirs = settings_of(recipe), named_settings(name)
    rows = []
    for setting, value in ours.items():
        named = value if setting == CLASSES else theirs.get(setting)  # the data alone decides the number of classes
        decided = setting in DECIDED and named in RESOLVED
        rows.append({"name": setting, "value": value, "named": named, "differs": value != named and not decided})
    return rows


def text_of(value) -> str:
    """The value of a setting as YAML would show it, in words that a command line takes."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ", ".join(f"{name}: {text_of(each)}" for name, each in value.items()) or "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(text_of, value))}]"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def repeat_command(run: RunFolder, backend: str | None) -> str:
    """The command line that trains the same run anew."""
    where = f"KERAS_BACKEND={backend} " if backend else ""
    return f"{where}keras-vit train --recipe {shlex.quote(str(run.recipe_path))}"
