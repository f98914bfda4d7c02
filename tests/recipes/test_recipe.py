import dataclasses
import json
import re

import pytest
import yaml
from helpers import one_line_error
from keras import tree

from keras_vit import build_vit
from keras_vit.recipes.parse import load_recipe, parse_recipe, recipe_names
from keras_vit.recipes.schema import Recipe

# Parameters of each recipe's model with ten classes; a new recipe needs a line here.
PARAMETERS = {"best": 6_498_826, "digits": 495_082, "mnist": 21_962, "mnist-conv": 160_778, "quick": 1_154_250}
PARAMETERS |= {
    "standard": 3_184_042,
    "photos-gpu": 21_678_730,
    "photos-scratch": 914_378,
    "pretrain": 631_818,
    "pretrain-photos": 914_378,
}
OF_A_CHECKPOINT = {"photos"}  # recipes whose model is that of a checkpoint


@pytest.mark.parametrize("name", sorted(set(recipe_names()) - OF_A_CHECKPOINT))
def test_every_recipe_builds_the_model_that_it_says(name):
    recipe = load_recipe(name)
    config = dataclasses.replace(recipe.model, num_classes=10)
    assert build_vit(config).count_params() == config.num_params == PARAMETERS[name]


def test_yaml_round_trip(tmp_path):
    recipe = load_recipe("quick", model={"variant": "Ti/4", "depth": 3}, seed=5, augment={"cutmix": 0.5})
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, num_classes=7))  # as a run records it
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    assert load_recipe(file) == recipe
    json_file = tmp_path / "recipe.json"
    json_file.write_text(json.dumps(recipe.to_dict()))
    assert load_recipe(json_file) == recipe
    assert load_recipe(file).model.num_classes == 7
    assert recipe.train.precision == "auto"


def test_overrides_win_over_variant_and_variant_over_recipe():
    recipe = load_recipe("quick", model={"variant": "Ti/4", "depth": 3})
    assert (recipe.model.width, recipe.model.depth, recipe.model.patch_size) == (192, 3, (4, 4))
    assert recipe.model.stem == load_recipe("quick").model.stem
    parsed, _ = parse_recipe("quick", ["--model.depth", "3", "--model.variant", "Ti/4", "--train.epochs=7", "--mean", "[0.1]"])
    assert parsed.model == recipe.model
    assert (parsed.train.epochs, parsed.mean) == (7, [0.1])


def test_a_command_line_that_is_no_text_is_refused():
    with one_line_error(r"^option: received 'caf\\udce9'; allowed: text in UTF-8, which a recipe can hold$"):
        parse_recipe("quick", ["--data", "caf\udce9"])
    assert parse_recipe("quick", ["--data", "folder:café"])[0].data == "folder:café"


def test_command_line_leaves_the_rest_of_the_recipe_alone():
    parsed, _ = parse_recipe("quick", ["--data-dir", "here", "--train.learning_rate", "0.5"])
    quick = load_recipe("quick")
    train = dataclasses.replace(quick.train, learning_rate=0.5)
    assert parsed == dataclasses.replace(quick, data_dir="here", train=train)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train": {"epochs": 0}}, "epochs: received 0"),
        ({"train": {"epoch": 3}}, "train: received 'epoch' (did you mean 'epochs'?)"),
        ({"sed": 1}, "recipe: received 'sed' (did you mean 'seed'?)"),
        ({"model": {"variant": "Q/4"}}, "variant: received 'Q/4'"),
        ({"model": {"patch_size": 5}}, "patch_size: received 5; allowed: the divisors"),
        ({"model": 3}, "model: received 3"),
        ({"model": {"num_classes": 7}}, "model.num_classes: received 7; allowed: none, the data decides it"),
        ({"model": {"data_format": "channels_first"}}, "data_format: received channels_first"),
        ({"mean": [0.1, 0.2]}, "mean: received [0.1, 0.2]; allowed: a number, or one for each of 3 channels"),
        ({"std": [0.0]}, "std: received [0.0]; allowed: a number above 0"),
        (
            {"train": {"remat": True}, "model": {"attention_dropout": 0.1}},
            "attention_dropout: received 0.1; allowed: 0 with remat=true",
        ),
        ({"seed": -1}, "seed: received -1"),
        ({"seed": 2**32}, "seed: received 4294967296"),
        ({"data": ""}, "data: received ''"),
        ({"augment": {"erasing": 2.0}}, "erasing: received 2"),
        ({"finetune": {"checkpont": "x"}}, "finetune: received 'checkpont' (did you mean 'checkpoint'?)"),
        ({"finetune": {"checkpoint": "x", "freeze": 6}}, "freeze: received 6; allowed: 0 to 2, the blocks of the model"),
        ({"finetune": {"checkpoint": "x", "method": "lora", "lora_rank": 129}}, "lora_rank: received 129; allowed: 1 to 128"),
        ({"finetune": {"checkpoint": "x", "method": "probe"}, "model": {"drop_path": 0.1}}, "drop_path: received 0.1"),
    ],
)
def test_bad_settings_are_named(overrides, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_recipe("quick", **overrides)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--train.epochs", "many"], "train.epochs"),
        (["--train.optimizer", "adagrad"], "train.optimizer"),
        (["--train.epoch", "3"], "--train.epoch"),
        (["--model.depth"], "--model.depth"),
        (["--model.num_classes", "7"], "model.num_classes: received 7; allowed: none, the data decides it"),
        (["--model.num-classes=7"], "model.num_classes: received 7; allowed: none, the data decides it"),
        (["--model", '{"num_classes": 7}'], "model.num_classes: received"),
    ],
)
def test_bad_options_are_named(option, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_recipe("quick", option)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "not valid YAML"),
        ("- 3", "received a list"),
        ("train: {epochs: x}", "epochs"),
        ("train: {speed: 3}", "recipe.yaml: train: received 'speed'"),
        ("!!python/object/apply:os.system [ls]", "not valid YAML"),
        ("data:\n", "data: received None"),
        ("# caf\xe9", "not valid YAML or JSON in UTF-8"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=re.escape(message)):
        load_recipe(file)


def test_dashes_do_for_underscores():
    options = ["--train.batch-size", "32", "--data-dir=/data/my_sets-2", "--model.num-heads=2"]
    recipe, _ = parse_recipe("quick", options)
    assert (recipe.train.batch_size, recipe.data_dir, recipe.model.num_heads) == (32, "/data/my_sets-2", 2)


def test_unknown_recipe_is_named():
    for name in ("quik", "xyzzy"):  # with and without one like it
        near = " (did you mean 'quick'?)" if name == "quik" else ""
        allowed = f"allowed: {', '.join(recipe_names())}, or a .yaml or .json file"
        with pytest.raises(ValueError, match=f"^{re.escape(f'recipe: received {name!r}{near}; {allowed}')}$"):
            load_recipe(name)
    with pytest.raises(ValueError, match=r"^recipe: received 'none\.yaml', which is no file; allowed: a file, best, "):
        load_recipe("none.yaml")


def test_recipe_is_plain_values():
    values = tree.flatten(yaml.safe_load(load_recipe("best").to_yaml()))
    assert {type(value) for value in values} <= {int, float, str, bool, type(None)}
    assert set(Recipe.__dataclass_fields__) == set(load_recipe("best").to_dict())
