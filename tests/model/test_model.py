"""The whole model: its numbers against the NumPy reference, its intermediates, its gradients, its file."""

import itertools

import keras
import numpy as np
import pytest
from helpers import COMMON, logits, numpy, predict
from keras import ops
from reference import Reference, random_images, weights_of

import keras_vit
from keras_vit import ViT, ViTConfig, build_vit
from keras_vit.parity import gradients, randomise
from keras_vit.training.models import compile_model

backend = pytest.mark.backend
FORWARD = 1e-5  # absolute, float32 against float64
HALF = 0.1  # absolute, bfloat16 or float16 against float32, logits near 1
NON_ZERO = 1e-6  # what a gradient of a weight exceeds; those here are near 1

# 4 x 3 patches of 3 x 6 pixels; the conv stem takes square patches of 2^n pixels, on an image that is not square.
SIZES = {
    "patch": {**COMMON, "depth": 1, "image_size": (12, 18), "patch_size": (3, 6)},
    "conv": {**COMMON, "depth": 1, "image_size": (16, 12), "patch_size": 4},
}
CHOICES = {
    "pool": ("cls", "gap", "map"),
    "position": ("learned", "sincos2d", "sincos1d", "none"),
    "stem": ("patch", "conv"),
    "mlp": ("gelu", "gelu_tanh", "swiglu"),
}
# Every two choices meet. A class token for every pool: JAX compiles each operation once for all of them.
PAIRS = [
    {"pool": p, "position": q, "stem": CHOICES["stem"][(i + j) % 2], "mlp": CHOICES["mlp"][(i + j) % 3], "class_token": True}
    for i, q in enumerate(CHOICES["position"])
    for j, p in enumerate(CHOICES["pool"])
]


def make_config(**options):
    return ViTConfig(**{**SIZES[options.get("stem", "patch")], **options})


def test_every_two_choices_meet():
    for one, other in itertools.combinations(CHOICES, 2):
        assert {(row[one], row[other]) for row in PAIRS} == set(itertools.product(CHOICES[one], CHOICES[other]))


# What every backend computes in its own way.
OPTIONS = (
    {"depth": 3},
    {"mlp": "gelu_quick", "pre_norm": True},
    {"distillation": True, "registers": 1, "prefix_positions": "all"},
    {"pool": "cls_gap", "registers": 2},
    {"use_bias": False, "qkv_bias": False, "stem": "conv"},
    {"use_bias": False, "layer_scale": 0.1, "qk_norm": True, "registers": 3, "prefix_positions": "all"},
    {"use_bias": False, "qkv_bias": False, "pool": "map", "mlp": "swiglu"},
    {"norm_epsilon": 0.1, "qk_norm": True, "pool": "map"},
    {"pool": "gap", "num_classes": 0, "pre_logits_dim": 10},
    {"position": "none", "patch_size": (6, 3), "channels": 1, "data_format": "channels_first"},
    {"data_format": "channels_first", "stem": "conv"},
    {"stem": "conv", "stem_depth": 2},
    {"dropout": 0.5, "attention_dropout": 0.5, "drop_path": 0.5, "depth": 2},
    {"rotary": "centered", "position": "none", "registers": 2, "key_bias": False, "layer_scale": 0.1},
    {"block": "twin", "layer_scale": 0.1, "drop_path": 0.5},
    {"block": "parallel", "rms_norm": True, "qk_norm": True, "pre_norm": True},
)
# Other compositions of the same operations, tried once.
COMPOSITIONS = (
    *({"registers": 2, "prefix_positions": p, "position": q} for p in ("none", "class", "all") for q in ("learned", "sincos1d")),
    {"registers": 2, "position": "sincos2d", "pool": "gap", "prefix_positions": "all"},
    {"pool": "gap"},
    {"pool": "map"},
    {"pool": "cls_gap", "norm_after_pool": True, "pre_logits_dim": 10, "use_bias": False, "pre_norm": True},
    {"distillation": True, "registers": 2, "num_classes": 0},
    {"pool": "map", "class_token": True, "registers": 2, "mlp": "swiglu"},
    {"qkv_bias": False},
    {"pre_logits_dim": 10},
    {"norm_after_pool": True, "pool": "gap"},
    {"norm_after_pool": True, "pool": "map"},
    {"num_classes": 0, "pool": "gap"},
    {"rotary": "index", "rotary_base": 1e4, "rotary_offset": 1.0, "qk_norm": True, "pool": "map"},
    {"stem": "conv", "stem_depth": 1, "use_bias": False, "rms_norm": True, "data_format": "channels_first"},
    {"rotary": "centered", "rotary_base": 7.0, "position": "sincos2d", "pool": "gap", "stem": "conv"},
    {"key_bias": False, "qkv_bias": False, "mlp_norm": True},
    {"block": "twin", "depth": 2, "rotary": "centered"},
    {"block": "parallel", "depth": 2, "layer_scale": 0.1, "rotary": "centered"},
    {"rms_norm": True, "mlp_norm": True, "attention_norm": True, "pool": "map"},
    {"final_norm": False, "pool": "gap", "registers": 2},
    {"pool": "map", "pool_heads": 4, "pool_mlp_dim": 20, "pool_prefix": False, "class_token": True, "registers": 1},
)
EVERYWHERE = (*PAIRS[::4], *OPTIONS)
ONCE = (*(row for row in PAIRS if row not in EVERYWHERE), *COMPOSITIONS)


@pytest.mark.parametrize("options", [*(pytest.param(row, marks=backend) for row in EVERYWHERE), *ONCE], ids=str)
def test_forward_pass_and_counts(options):
    """Logits, weights, parameters and multiply-adds, against the reference."""
    config = make_config(**options)
    model, images = randomise(build_vit(config)), random_images(config)
    weights = weights_of(model)
    reference = Reference(config, weights)
    expected = np.concatenate([reference(image[None])["output"] for image in images])
    assert np.abs(expected).std() > FORWARD * 1000
    np.testing.assert_allclose(logits(model, images), expected, atol=FORWARD)
    assert config.weight_shapes == {path: value.shape for path, value in weights.items()}
    assert config.num_params == model.count_params()
    assert len(images) * config.flops == 2 * reference.macs
    assert config.training_flops == 3 * config.flops


FULL = {
    "depth": 2,
    "registers": 2,
    "prefix_positions": "all",
    "class_token": True,
    "pool": "map",
    "mlp": "swiglu",
    "qk_norm": True,
    "layer_scale": 0.1,
    "pre_logits_dim": 10,
}


DISTILLED = {"depth": 2, "pre_norm": True, "distillation": True, "registers": 1, "prefix_positions": "all"}
ROTARY = {
    "depth": 2,
    "rotary": "index",
    "rotary_grid": (5, 2),
    "registers": 2,
    "mlp": "swiglu",
    "mlp_norm": True,
    "attention_norm": True,
    "key_bias": False,
}
AFTER_POOL = {"pool": "gap", "norm_after_pool": True, "depth": 2}


@backend
@pytest.mark.parametrize("options", [FULL, AFTER_POOL, DISTILLED, ROTARY], ids=["full", "gap", "distilled", "rotary"])
def test_intermediates_match_the_reference(options):
    config = make_config(**options)
    model, images = randomise(build_vit(config)), random_images(config)
    weights = weights_of(model)
    expected = Reference(config, weights)(images)
    output = expected.pop("output")
    view = keras_vit.features(model, list(expected))
    for values in (view(images), predict(view, images)):  # a prediction records no gradients and may write in place
        assert set(values) == set(expected)
        for name, value in values.items():
            np.testing.assert_allclose(numpy(value), expected[name], atol=FORWARD, err_msg=name)
    scores = numpy(keras_vit.features(model, "block_1/attention")(images)["block_1/attention"])
    assert scores.shape == (2, config.num_heads, config.num_tokens, config.num_tokens)
    np.testing.assert_allclose(scores.sum(-1), 1, atol=FORWARD)
    np.testing.assert_allclose(numpy(model(images)), output, atol=FORWARD)
    assert list(weights_of(model)) == list(weights)


def test_unknown_intermediates_are_listed():
    model = build_vit(make_config())
    for name in ("block_1", "images", "norm/attention", "block_0/scores", ""):
        with pytest.raises(ValueError, match=r"^names: received .*allowed: stem, encoder, block_0, norm, pool, head"):
            keras_vit.features(model, ["pool", name])


@backend
@pytest.mark.parametrize(
    "options",
    [FULL, DISTILLED, ROTARY, {"stem": "conv", "pool": "gap"}, {"position": "none", "pool": "cls_gap"}],
    ids=str,
)
def test_every_weight_gets_a_finite_gradient(options):
    config = make_config(**options)
    model = randomise(build_vit(config))
    direction = np.random.default_rng(1).normal(size=(2, 7)).astype("float32")
    values = gradients(model, random_images(config), lambda logits: ops.sum(ops.multiply(logits, direction)))
    assert list(values) == [weight.path for weight in model.weights]
    for path, value in values.items():
        assert np.isfinite(value).all(), path
        if path.endswith("k_norm/beta"):  # one number for all keys: softmax takes it out
            assert np.abs(value).max() < NON_ZERO, path
        else:
            assert np.abs(value).max() > NON_ZERO, path


@backend
@pytest.mark.parametrize("options", [FULL, ROTARY, {"stem": "conv", "position": "sincos1d"}], ids=["full", "rotary", "conv"])
def test_saved_model_gives_the_same_numbers(tmp_path, options):
    config = make_config(**options)
    model, images = randomise(build_vit(config)), random_images(config)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert isinstance(loaded, ViT)
    assert loaded.config == model.config == config
    assert loaded.get_config() == model.get_config()
    assert list(weights_of(loaded)) == list(weights_of(model))
    np.testing.assert_array_equal(numpy(loaded(images)), numpy(model(images)))


@backend
def test_weights_files_and_clones(tmp_path):
    config = make_config()
    model, images = randomise(build_vit(config, name="one")), random_images(config)
    model.save_weights(tmp_path / "model.weights.h5")
    other = build_vit(config)
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(numpy(other(images)), numpy(model(images)))
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(numpy(clone(images)), numpy(model(images)))


@backend
@pytest.mark.parametrize(
    ("policy", "options"),
    [("mixed_bfloat16", FULL), ("mixed_bfloat16", ROTARY), ("mixed_float16", {"stem": "conv"})],
    ids=["bfloat16", "rotary", "float16"],
)
def test_mixed_precision(tmp_path, policy, options):
    config = make_config(**options)
    model, images = randomise(build_vit(config, dtype=policy)), random_images(config)
    y = model(images)
    assert keras.backend.standardize_dtype(y.dtype) == "float32"
    assert {layer.dtype_policy.name for layer in model.layers[1:] if layer.name != "head"} == {policy}
    assert {keras.backend.standardize_dtype(weight.dtype) for weight in model.weights} == {"float32"}
    expected = Reference(config, weights_of(model))(images)["output"]
    np.testing.assert_allclose(numpy(y), expected, atol=HALF)
    scores = keras_vit.features(model, "block_0/attention")(images)["block_0/attention"]
    assert keras.backend.standardize_dtype(scores.dtype) == policy.removeprefix("mixed_")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.dtype_policy.name == policy
    np.testing.assert_array_equal(numpy(loaded(images)), numpy(y))


@backend
def test_data_formats_share_weights():
    last = make_config(stem="conv")
    first = make_config(stem="conv", data_format="channels_first")
    one, other, images = randomise(build_vit(last)), build_vit(first), random_images(last)
    other.set_weights(one.get_weights())
    np.testing.assert_allclose(numpy(other(np.moveaxis(images, 3, 1))), numpy(one(images)), atol=FORWARD)


@backend
def test_fresh_model_is_undecided():
    config = make_config()
    np.testing.assert_array_equal(numpy(build_vit(config)(random_images(config))), np.zeros((2, 7)))


@backend
def test_initial_weights_follow_the_seed():
    config, models = make_config(), []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        models.append(weights_of(build_vit(config)))
    one, same, other = models
    for path, value in one.items():
        np.testing.assert_array_equal(value, same[path])
        if value.std() > 0:
            assert np.abs(value - other[path]).max() > FORWARD, path


@backend
def test_dropout_changes_training_only():
    config = make_config(dropout=0.3)
    model, images = randomise(build_vit(config)), random_images(config)
    calm, noisy = numpy(model(images)), numpy(model(images, training=True))
    np.testing.assert_array_equal(numpy(model(images)), calm)
    assert np.abs(noisy - calm).max() > HALF


@backend
def test_remat_trains_to_the_same_weights_and_computes_blocks_again(monkeypatch):
    """With stochastic depth, whose draws are not repeated."""
    config = make_config(depth=2, drop_path=0.5)
    images, targets = random_images(config, batch=14), np.eye(7)[np.arange(14) % 7]
    calls, trained = [], []
    remat = keras.remat
    monkeypatch.setattr(keras, "remat", lambda function: calls.append(function) or remat(function))
    for again in (False, True):
        keras.utils.set_random_seed(1)
        model = randomise(build_vit(config, remat=again))
        compile_model(model, keras.optimizers.SGD(0.1), "auto")
        for _ in range(3):
            model.train_on_batch(images, targets)
        trained.append(weights_of(model))
        assert bool(calls) == again
    for path, value in trained[0].items():
        np.testing.assert_allclose(trained[1][path], value, atol=FORWARD, err_msg=path)


@pytest.mark.parametrize(
    "regularisation",
    [{"dropout": 0.1, "drop_path": 0.1}, pytest.param({"patch_dropout": 0.25, "pool": "gap"}, marks=backend)],
    ids=str,
)
def test_fit_learns(regularisation):
    config = make_config(**regularisation)
    model, images = build_vit(config), random_images(config, batch=14)
    compile_model(model, keras.optimizers.AdamW(1e-2), "auto")
    targets = np.eye(7)[np.arange(14) % 7]
    losses = model.fit(images, targets, batch_size=14, epochs=30, verbose=0).history["loss"]
    assert losses[0] == pytest.approx(np.log(7), abs=FORWARD)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("config", [None, "S/16", {"width": 8}])
def test_config_must_be_one(config):
    with pytest.raises(ValueError, match=r"^config: received"):
        build_vit(config)


def test_layers_have_the_documented_names_and_shapes():
    config = make_config(depth=2, pre_logits_dim=10)
    model = build_vit(config, name="mine")
    assert model.name == "mine"
    shapes = {layer.name: layer.output.shape for layer in model.layers[1:]}
    tokens = (None, 13, 16)
    assert shapes == {
        "stem": (None, 12, 54),
        "encoder": tokens,
        "block_0": tokens,
        "block_1": tokens,
        "norm": tokens,
        "pool": (None, 16),
        "pre_logits": (None, 10),
        "head": (None, 7),
    }
