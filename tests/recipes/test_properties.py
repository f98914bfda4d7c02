"""Any value in any setting: a configuration that can be written and read again, or a one-line ValueError that names the setting."""

import dataclasses
import json
import math
import tempfile
from pathlib import Path

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from keras_tuner import HyperParameters

from keras_vit.data.augment import AugmentConfig
from keras_vit.model.config import ViTConfig
from keras_vit.recipes.distill import DistillConfig
from keras_vit.recipes.parse import load_recipe
from keras_vit.recipes.parts import Extension, Stage
from keras_vit.recipes.schema import SECTIONS, FinetuneConfig, Recipe, TrainConfig
from keras_vit.search.axes import SpaceConfig, add_axis, read_space
from keras_vit.search.settings import SearchConfig
from keras_vit.search.space import Limits

CLASSES = (ViTConfig, AugmentConfig, TrainConfig, FinetuneConfig, DistillConfig, Recipe, Stage, Extension, SearchConfig)
CLASSES += (SpaceConfig, Limits)
REQUIRED = {DistillConfig: {"teacher": "x"}, Stage: {"until": 0.5}, Extension: {"after": 1, "epochs": 1, "learning_rate": 0.1}}
NAMES = {field.name for cls in CLASSES for field in dataclasses.fields(cls)}


def bounded(examples):
    # The same examples each time, and no limit on the time of one: other tests may run beside it.
    slow = [HealthCheck.too_slow]
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=slow)


odd_texts = ["", "auto", "none", "3", "1e-3", "null", "[1, 2]", "&a [*a]", "recall:x", "x\x1b[31m\n", "Ti/4", "9epochs", "x" * 5000]
choices = ["cls", "gap", "map", "conv", "learned", "gelu", "adamw", "sgd", "focal", "balanced", "lora", "2..8", "2,4", "random"]
odd_numbers = [10**9 + 7, 2**53, 2**64, 10**400, -(10**30), math.inf, math.nan, 1e308]
texts = st.sampled_from(odd_texts + choices) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(-2, 40) | st.floats(-1, 2) | st.sampled_from(odd_numbers)
scalars = st.none() | st.booleans() | numbers | texts
augments = st.dictionaries(st.sampled_from(["mixup", "flip"]), scalars, max_size=1)
stages = st.lists(st.builds(dict, until=st.floats(0, 1), augment=augments), min_size=1, max_size=2)
values = stages | st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts | st.integers(), inner, max_size=3),
    max_leaves=8,
)


def section(cls):
    return st.dictionaries(st.sampled_from([field.name for field in dataclasses.fields(cls)]), values, max_size=2)


recipes = st.fixed_dictionaries(
    {},
    optional={
        field.name: section(SECTIONS[field.name]) if field.name in SECTIONS else values for field in dataclasses.fields(Recipe)
    },
)


def check_message(error, names):
    text = str(error)
    assert any(name in text for name in names), text
    assert "\n" not in text
    assert len(text) < 2000


def read_text(text, suffix=".yaml", read=load_recipe):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"recipe{suffix}")
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        return read(path)


@bounded(150)
@given(st.sampled_from([(cls, field.name) for cls in CLASSES for field in dataclasses.fields(cls)]), values)
@example((Recipe, "model"), 1)
@example((ViTConfig, "image_size"), 1_000_000_007)
@example((TrainConfig, "stages"), [{"until": 0.5, "class_path": "os.system"}])
@example((TrainConfig, "epochs"), 10**400)
@example((Stage, "augment"), "abc")
@example((SearchConfig, "objective"), None)
def test_any_value_in_any_field_of_a_configuration(field, value):
    cls, name = field
    try:
        config = cls(**{**REQUIRED.get(cls, {}), name: value})
    except ValueError as error:
        of_parts = {each.name for part in (cls, Stage, Extension, AugmentConfig) for each in dataclasses.fields(part)}
        check_message(error, {name, *of_parts})
        return
    if cls is Recipe:
        assert read_text(config.to_yaml()) == config
    else:
        assert cls(**(config.to_dict() if cls is ViTConfig else dataclasses.asdict(config))) == config


@bounded(40)
@given(recipes | st.dictionaries(texts, values, max_size=3), st.sampled_from([".yaml", ".json"]))
@example({"mean": "&a [*a]"}, ".yaml")
@example({"train": {"stages": [{"class_path": "os.system", "init_args": {}}]}}, ".json")
@example({"train": {"class_weights": {0: 1.0, "cat": 2}}}, ".yaml")
def test_any_recipe_file(tree, suffix):
    text = yaml.safe_dump(tree, allow_unicode=True) if suffix == ".yaml" else json.dumps(tree)
    try:
        recipe = read_text(text, suffix)
    except ValueError as error:
        check_message(error, {*NAMES, "not valid YAML", "recipe: received"})
        return
    assert read_text(recipe.to_yaml()) == recipe


@bounded(40)
@given(recipes)
def test_any_settings_on_top_of_a_recipe(tree):
    try:
        recipe = load_recipe("quick", **tree)
    except ValueError as error:
        check_message(error, NAMES)
        return
    assert read_text(recipe.to_yaml()) == recipe


tokens = ["model:", "train:", "{", "}", "[", "]", "&a", "*a", "!!python/none", "? ", "- ", ": ", "\n", "  ", "<<", "'", "1e3", "#"]


@bounded(75)
@given(st.text(max_size=100) | st.lists(st.sampled_from(tokens), max_size=30).map("".join))
def test_any_text_as_a_file(text):
    for read in (load_recipe, read_space):
        try:
            read_text(text, read=read)
        except ValueError as error:
            check_message(error, {*NAMES, "not valid YAML", "allowed: a mapping"})


@bounded(75)
@given(section(SpaceConfig))
def test_any_axis_of_a_search(axes):
    try:
        config = SpaceConfig(**axes)
        for field in dataclasses.fields(config):
            add_axis(HyperParameters(), field.name, getattr(config, field.name), Recipe())
    except ValueError as error:
        check_message(error, axes)
