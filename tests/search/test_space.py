"""Search spaces: what is legal, what limits leave, and that predictions agree with the models."""

import dataclasses

import numpy as np
import pytest
import searches

from keras_vit import build_vit
from keras_vit.recipes.parse import load_recipe
from keras_vit.search.axes import SpaceConfig, patch_sizes, values_of
from keras_vit.search.memory import process_memory, training_memory
from keras_vit.search.space import Limits, Space

FIXED = {field.name: None for field in dataclasses.fields(SpaceConfig)}


def space(recipe="quick", limits=None, **axes):
    return Space(SpaceConfig(**{**FIXED, **axes}), load_recipe(recipe), limits)


def test_everything_that_is_proposed_can_be_built():
    made = searches.space("digits")
    rng = np.random.default_rng(0)
    seen = [made.sample(rng) for _ in range(200)]
    for values in seen:
        config = made.recipe(values).model
        assert config.width == values["num_heads"] * values["head_dim"]
        assert config.mlp_dim == round(values["mlp_ratio"] * config.width)
        assert all(image % patch == 0 for image, patch in zip(config.image_size, config.patch_size, strict=True))
    for axis in made.axes:
        if axis.name not in ("learning_rate", "weight_decay", "augment"):
            assert {values[axis.name] for values in seen} == set(values_of(axis)), axis.name


def test_parameters_are_those_of_the_model():
    made = searches.space("digits")
    values = made.sample(np.random.default_rng(1))
    config = made.recipe(values).model
    assert build_vit(config).count_params() == config.num_params


@pytest.mark.parametrize(
    ("size", "sizes"), [(8, [1, 2, 4]), (28, [2, 4, 7, 14]), (32, [2, 4, 8, 16]), (224, [14, 16, 28, 32, 56, 112]), (7, [1])]
)
def test_patch_sizes_of_an_image(size, sizes):
    assert patch_sizes((size, size)) == sizes


def test_axes_are_ranges_choices_or_fixed():
    made = space(depth="2..4", patch_size=[8, 4], stem="conv", learning_rate="1e-4..1e-2", mlp_ratio=2)
    values = {axis.name: values_of(axis) for axis in made.hyperparameters.space if axis.name != "learning_rate"}
    assert values == {"patch_size": [4, 8], "depth": [2, 3, 4], "stem": ["conv"], "mlp_ratio": [2.0]}
    rates = [made.draw(np.random.default_rng(seed))["learning_rate"] for seed in range(400)]
    assert 1e-4 <= min(rates) < 2e-4
    assert 5e-3 < max(rates) <= 1e-2
    assert np.median(rates) == pytest.approx(1e-3, rel=0.3)  # logarithmic


def test_what_is_not_searched_is_the_recipes():
    base = load_recipe("quick")
    recipe = space(depth="2,3").recipe({"depth": 3})
    assert recipe == dataclasses.replace(base, model=dataclasses.replace(base.model, depth=3))


def test_augmentation_strength():
    made = space(augment="0..1")
    weak, half, strong = (made.recipe({"augment": strength}).augment for strength in (0.0, 0.4, 1.0))
    assert (weak.randaugment_layers, half.randaugment_layers, strong.randaugment_layers) == (0, 1, 2)
    assert (half.randaugment_magnitude, strong.randaugment_magnitude) == (pytest.approx(3.6), 9)
    assert (weak.mix_probability, half.mix_probability, strong.mix_probability) == (0, 0.4, 1)
    assert weak.flip
    assert weak.crop == 4
    assert strong.cutmix == 1.0


def test_limits_cut_the_space_and_say_what_is_left():
    free = space(depth="1..8", head_dim="16,32")
    limit = sorted(free.recipe(values).model.num_params for values in free.shapes())[5]
    cut = space(limits=Limits(max_params=limit), depth="1..8", head_dim="16,32")
    assert (cut.total, cut.legal, cut.within) == (16, 16, 6)
    assert f"6 keep within max_params {limit:,}" in cut.describe()
    rng = np.random.default_rng(0)
    assert {cut.recipe(cut.sample(rng)).model.num_params <= limit for _ in range(50)} == {True}
    assert len(list(cut.grid(3))) == 6
    for name in ("max_params", "max_flops", "max_memory"):
        with pytest.raises(ValueError, match=f"limits: received {name} 1; none of 16 shapes keeps them; allowed: at least "):
            space(limits=Limits(**{name: 1}), depth="1..8", head_dim="16,32")


def test_shapes_that_cannot_be_built_are_left_out():
    made = space("mnist", patch_size="4,7,14", stem="patch,conv")
    assert (made.total, made.legal) == (6, 4)  # the conv stem takes powers of two only
    assert {(values["patch_size"], values["stem"]) for values in made.grid(3)} == {
        (4, "patch"),
        (4, "conv"),
        (7, "patch"),
        (14, "patch"),
    }
    made = space("mnist", stem="patch,conv", stem_depth="0..2")
    assert {(values["stem"], values["stem_depth"]) for values in made.grid(3)} == {
        ("patch", 0),
        ("conv", 0),
        ("conv", 1),
        ("conv", 2),
    }
    with pytest.raises(ValueError, match=r"no configuration can be built; the first one: patch_size: received 5"):
        space(patch_size="5,7")


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ({"depth": "4..2"}, "space.depth: received '4..2'; allowed: a range LOW..HIGH"),
        ({"depth": "2.5"}, "space.depth: received 2.5; allowed: integers"),
        ({"depth": "0..3"}, "space.depth: received 0"),
        ({"depth": "many"}, "space.depth: received 'many'; allowed: a number"),
        ({"depth": []}, r"space.depth: received \[\]"),
        ({"pool": "max"}, "space.pool: received 'max'; allowed: cls, gap, cls_gap, map"),
        ({"learning_rate": "0..1"}, "space.learning_rate: received 0"),
        ({"weight_decay": "0..0.1"}, "space.weight_decay: .*begins above 0"),
        ({"drop_path": "1"}, "space.drop_path: received 1"),
        ({"augment": "2"}, "space.augment: received 2"),
    ],
)
def test_bad_axes_are_named(axis, message):
    with pytest.raises(ValueError, match=message):
        space(**axis)
    with pytest.raises(ValueError, match="max_params: received -1"):
        Limits(max_params=-1)


def test_vectors_and_neighbours():
    made = searches.space("quick")
    rng = np.random.default_rng(0)
    values = made.sample(rng)
    point = made.vector(values)
    assert point.min() >= 0
    assert point.max() <= 1
    for _ in range(100):
        near = made.neighbour(values, rng)
        changed = [name for name in values if near[name] != values[name]]
        assert changed
        assert len(changed) < len(values)
        assert made.vector(near).shape == point.shape


def test_memory_grows_with_what_takes_memory():
    recipe = load_recipe("quick")

    def memory(model=(), train=()):
        return training_memory(
            dataclasses.replace(
                recipe,
                model=dataclasses.replace(recipe.model, **dict(model)),
                train=dataclasses.replace(recipe.train, **dict(train)),
            )
        )

    weights = 4 * recipe.model.num_params / 2**20
    activations = memory() - 5 * weights
    assert memory(train={"batch_size": 256}) == pytest.approx(5 * weights + 2 * activations)
    assert memory(train={"ema": 0.9}) == pytest.approx(memory() + weights)
    assert memory(train={"precision": "float32"}) == memory()
    assert memory(model={"patch_size": (4, 4), "stem_depth": 0}) > 3 * memory(model={"stem_depth": 0})


@pytest.fixture(scope="module")
def fine():
    """With the patches of 16 pixels that trials were measured with."""
    return Space(SpaceConfig(patch_size="2..16"), load_recipe("quick"))


@pytest.mark.parametrize(
    ("shape", "measured"),
    [
        ({}, 1429),
        ({"patch_size": 16, "depth": 5, "num_heads": 6, "head_dim": 64, "mlp_ratio": 1, "batch_size": 64}, 1722),
        ({"patch_size": 2, "num_heads": 5, "head_dim": 16, "mlp_ratio": 1}, 3218),
        ({"patch_size": 2, "depth": 7, "num_heads": 5, "mlp_ratio": 4, "batch_size": 256}, 10314),
        ({"depth": 2, "head_dim": 64, "mlp_ratio": 4, "batch_size": 256}, 1620),
    ],
)
def test_predicted_memory_is_that_of_trials(fine, shape, measured):
    """Peak memory in MB of trials under TensorFlow on two CPU cores, CIFAR-10, bfloat16, the `quick` of 2026-11-22."""
    recipe = fine.recipe({**fine.nearest(fine.base), "depth": 4, "stem_depth": 0, **shape})
    predicted = training_memory(recipe, process_memory("tensorflow", 50_000, recipe))
    assert predicted == pytest.approx(measured, rel=0.25)


@pytest.mark.parametrize("name", ["quick", "standard", "best"])
def test_nearest_is_the_recipe_itself_where_the_space_has_it(name):
    made = searches.space(name)
    values = made.nearest(made.base)
    assert made.is_legal(values)
    assert made.recipe(values).model == made.base.model
    assert made.recipe(values).train == made.base.train


def test_nearest_stays_within_the_space():
    made = space("quick", depth="6..8", stem="patch", learning_rate="1e-4..1e-3", mlp_ratio="3,4")
    assert made.nearest(made.base) == {"depth": 6, "stem": "patch", "learning_rate": 1e-3, "mlp_ratio": 3.0}


def test_values_survive_thirty_two_bits_and_another_order():
    made = Space(SpaceConfig(drop_path="0,0.1,0.23"), load_recipe("quick"))
    rng = np.random.default_rng(0)
    for values in (made.sample(rng) for _ in range(200)):
        sent = {name: float(np.float32(value)) if isinstance(value, float) else value for name, value in values.items()}
        back = made.restore(dict(sorted(sent.items())))
        assert back == values
        assert list(back) == list(values)
