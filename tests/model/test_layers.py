"""Every layer on its own: its configuration, its dtypes, its numbers."""

import inspect
import json

import keras
import numpy as np
import pytest
from helpers import numpy, predict, random
from keras import ops
from reference import Reference, weights_of

from keras_vit import (
    MLP,
    Attention,
    AttentionPooling,
    ConvBlock,
    ConvStem,
    LayerScale,
    PatchEncoder,
    Patches,
    Pooling,
    TransformerBlock,
    ViTConfig,
)
from keras_vit.model import attention, block, embed, layers, merging, mlp, parallel, pool, rotary
from keras_vit.parity import gradients, randomise

backend = pytest.mark.backend
FORWARD = 1e-5  # absolute, float32 against float64
EXACT = 1e-6  # the same sums in another order
HALF = 0.1  # absolute, bfloat16 or float16 against float32, values near 1
MEAN = 0.05  # of some thousand random draws

# Constructor's arguments, none of them a default; shape of an input; shape of the output.
CASES = {
    Patches: ({"patch_size": (4, 5), "data_format": "channels_first"}, (2, 3, 8, 15), (2, 6, 60)),
    ConvBlock: ({"width": 6, "use_bias": False, "norm_epsilon": 0.1, "rms_norm": True}, (2, 4, 3, 6), (2, 4, 3, 6)),
    ConvStem: (
        {
            "filters": (6, 8),
            "stem_depth": 1,
            "use_bias": False,
            "norm_epsilon": 0.1,
            "rms_norm": True,
            "data_format": "channels_first",
        },
        (2, 3, 8, 12),
        (2, 6, 8),
    ),
    PatchEncoder: (
        {
            "width": 8,
            "class_token": False,
            "registers": 2,
            "position": "sincos2d",
            "prefix_positions": "all",
            "grid_size": (2, 3),
            "dropout": 0.1,
            "use_bias": False,
        },
        (2, 6, 10),
        (2, 8, 8),
    ),
    embed.PatchDropout: ({"rate": 0.25, "num_prefix_tokens": 1}, (2, 6, 8), (2, 6, 8)),
    Attention: (
        {
            "width": 8,
            "num_heads": 2,
            "attention_dropout": 0.1,
            "qk_norm": True,
            "norm_epsilon": 1e-5,
            "qkv_bias": False,
            "use_bias": False,
            "key_bias": False,
            "attention_norm": True,
            "rms_norm": True,
        },
        (2, 6, 8),
        (2, 6, 8),
    ),
    MLP: (
        {
            "width": 8,
            "mlp_dim": 12,
            "mlp": "swiglu",
            "dropout": 0.1,
            "use_bias": False,
            "mlp_norm": True,
            "norm_epsilon": 1e-5,
            "rms_norm": True,
        },
        (2, 6, 8),
        (2, 6, 8),
    ),
    layers.RMSNormalization: ({"epsilon": 1e-5}, (2, 6, 8), (2, 6, 8)),
    LayerScale: ({"initial_value": 0.3}, (2, 6, 8), (2, 6, 8)),
    TransformerBlock: (
        {
            "width": 8,
            "num_heads": 2,
            "mlp_dim": 12,
            "mlp": "gelu_tanh",
            "dropout": 0.1,
            "attention_dropout": 0.2,
            "drop_path": 0.3,
            "layer_scale": 0.4,
            "qk_norm": True,
            "norm_epsilon": 1e-5,
            "qkv_bias": False,
            "use_bias": False,
            "key_bias": False,
            "attention_norm": True,
            "mlp_norm": True,
            "rms_norm": True,
        },
        (2, 6, 8),
        (2, 6, 8),
    ),
    Pooling: ({"kind": "cls_gap", "num_prefix_tokens": 2, "token": 1}, (2, 6, 8), (2, 16)),
    AttentionPooling: (
        {
            "width": 8,
            "num_heads": 2,
            "mlp_dim": 12,
            "mlp": "swiglu",
            "norm_epsilon": 1e-5,
            "qkv_bias": False,
            "use_bias": False,
            "skipped": 2,
            "rms_norm": True,
        },
        (2, 6, 8),
        (2, 8),
    ),
    rotary.RotaryPositions: (
        {
            "grid_size": (2, 3),
            "head_dim": 8,
            "rotary": "index",
            "rotary_base": 10.0,
            "rotary_grid": (4, 5),
            "rotary_offset": 1.0,
            "num_prefix_tokens": 1,
        },
        (2, 7, 16),
        (2, 7, 8),
    ),
}
WITHOUT_WEIGHTS = {Patches, embed.PatchDropout, Pooling, rotary.RotaryPositions}


def each(layers):
    return pytest.mark.parametrize("cls", layers, ids=lambda cls: cls.__name__)


every_layer = each(CASES)


def tree(layer):
    """A layer and every layer inside it."""
    found = [layer]
    for value in vars(layer).values():
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, keras.layers.Layer) and part not in found:
                found += tree(part)
    return found


def test_every_layer_has_a_case():
    modules = (attention, block, embed, layers, merging, mlp, parallel, pool, rotary)
    defined = {c for module in modules for c in vars(module).values() if inspect.isclass(c) and issubclass(c, layers.Layer)}
    assert defined - {layers.Layer, merging.MergingBlock, *parallel.BLOCKS.values()} == set(CASES) - {TransformerBlock}


@every_layer
def test_config_is_the_constructors_arguments(cls):
    arguments, _, _ = CASES[cls]
    signature = list(inspect.signature(cls.__init__).parameters)
    assert signature == ["self", *arguments, "kwargs"]
    config = cls(**arguments, name="x", trainable=False, dtype="mixed_bfloat16").get_config()
    assert set(config) == {*arguments, "name", "trainable", "dtype"}
    assert {name: config[name] for name in arguments} == arguments
    assert config["name"] == "x"
    assert config["trainable"] is False


@every_layer
def test_unknown_arguments_raise(cls):
    with pytest.raises((TypeError, ValueError), match="typo"):
        cls(**CASES[cls][0], typo=1)


@every_layer
def test_round_trip_gives_the_same_numbers(cls):
    arguments, shape, output_shape = CASES[cls]
    layer, x = cls(**arguments), random(*shape)
    layer(x)
    expected = numpy(randomise(layer)(x))
    assert expected.shape == output_shape
    assert (not layer.weights) == (cls in WITHOUT_WEIGHTS)
    serialized = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    for copy in (cls.from_config(layer.get_config()), keras.saving.deserialize_keras_object(serialized)):
        assert copy.get_config() == layer.get_config()
        copy(x)
        assert list(weights_of(copy)) == list(weights_of(layer))
        copy.set_weights(layer.get_weights())
        np.testing.assert_array_equal(numpy(copy(x)), expected)


@backend
@every_layer
def test_symbolic_and_eager_agree(cls):
    arguments, shape, output_shape = CASES[cls]
    layer, x = cls(**arguments), random(*shape)
    inputs = keras.Input(shape[1:])
    outputs = layer(inputs)
    assert outputs.shape == (None, *output_shape[1:])
    randomise(layer)
    expected = numpy(layer(x))
    np.testing.assert_allclose(predict(keras.Model(inputs, outputs), x), expected, atol=EXACT * max(1, np.abs(expected).max()))


@backend
@pytest.mark.parametrize(
    ("cls", "policy"),
    [*((cls, "mixed_bfloat16") for cls in CASES), (TransformerBlock, "mixed_float16"), (AttentionPooling, "mixed_float16")],
)
def test_dtype_policy_reaches_every_sublayer(cls, policy):
    arguments, shape, _ = CASES[cls]
    layer, x = cls(**arguments, dtype=policy), random(*shape)
    layer(x)
    assert {part.dtype_policy.name for part in tree(layer)} == {policy}
    assert {keras.backend.standardize_dtype(weight.dtype) for weight in layer.weights} <= {"float32"}
    full = cls(**arguments)
    full(x)
    expected, y = randomise(full)(x), randomise(layer)(x)
    assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_")
    np.testing.assert_allclose(numpy(ops.cast(y, "float32")), numpy(expected), atol=HALF)


@backend
@each([cls for cls in CASES if cls not in WITHOUT_WEIGHTS])
def test_every_weight_gets_a_gradient(cls):
    arguments, shape, output_shape = CASES[cls]
    inputs = keras.Input(shape[1:])
    model = randomise(keras.Model(inputs, cls(**arguments)(inputs)))
    assert model.trainable_variables
    direction = random(*output_shape, seed=1)
    values = gradients(model, random(*shape), lambda y: ops.sum(ops.multiply(y, direction)))
    assert set(values) == {variable.path for variable in model.trainable_variables}
    for path, value in values.items():
        assert np.isfinite(value).all(), path
        if not path.endswith("k_norm/beta"):  # the same for every key: softmax takes it out
            assert np.abs(value).max() > FORWARD, path


@backend
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_patches_with_a_dense_layer_are_a_convolution(data_format):
    images, kernel = random(2, 8, 15, 3), random(4, 5, 3, 7, seed=1)
    convolution = keras.layers.Conv2D(7, (4, 5), strides=(4, 5), use_bias=False, data_format="channels_last")
    convolution(images)
    convolution.kernel.assign(kernel)
    expected = numpy(convolution(images)).reshape(2, 2 * 3, 7)
    given = images if data_format == "channels_last" else np.moveaxis(images, 3, 1)
    patches = numpy(Patches((4, 5), data_format)(given))
    np.testing.assert_allclose(patches @ kernel.reshape(-1, 7), expected, atol=FORWARD)


@backend
def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"patch_size: received \(4, 4\); allowed: divisors of the image, 8 x 15"):
        Patches(4, "channels_last")(random(2, 8, 15, 3))
    with pytest.raises(ValueError, match=r"images: received 8 x 14 pixels; allowed: multiples of 4, for 2 convolutions"):
        ConvStem((6, 8), data_format="channels_first")(random(2, 3, 8, 14))
    for layer in (Patches(4, "channels_last"), ConvStem((6, 8), data_format="channels_last")):
        with pytest.raises(ValueError, match=r"images: received shape \(None, None, None, 3\)"):
            layer(keras.Input((None, None, 3)))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Patches(0), "patch_size"),
        (lambda: Patches(4, "NHWC"), "data_format"),
        (lambda: PatchEncoder(8, position="rope"), "position"),
        (lambda: PatchEncoder(8, prefix_positions="registers"), "prefix_positions"),
        (lambda: PatchEncoder(8, grid_size=(2, 0)), "grid_size"),
        (lambda: PatchEncoder(6, position="sincos2d"), "width"),
        (lambda: PatchEncoder(7, position="sincos1d"), "width"),
        (lambda: PatchEncoder(8, position="sincos2d")(random(2, 6, 10)), "grid_size"),
        (lambda: Attention(8, 3), "num_heads"),
        (lambda: Attention(8, 0), "num_heads"),
        (lambda: MLP(8, 0), "units"),
        (lambda: MLP(8, 8, mlp="relu"), "mlp"),
        (lambda: TransformerBlock(8, 3, 12), "num_heads"),
        (lambda: TransformerBlock(8, 2, 12)(random(2, 6, 10)), "width"),
        (lambda: Pooling("max"), "kind"),
        (lambda: AttentionPooling(8, 3, 12), "num_heads"),
        (lambda: rotary.RotaryPositions((2, 3), 6), "num_heads"),
        (lambda: rotary.RotaryPositions((2, 0), 8), "grid_size"),
        (lambda: rotary.RotaryPositions((2, 3), 8, "centred"), "rotary"),
        (lambda: rotary.RotaryPositions((2, 3), 8, rotary_grid=4), "rotary_grid"),
        (lambda: rotary.RotaryPositions((2, 3), 8)(random(2, 7, 16)), "grid_size"),
    ],
)
def test_bad_arguments_are_named(make, name):
    with pytest.raises(ValueError, match=rf"{name}(: received .*; allowed: |.*Received: )"):
        make()


def random_block(**options):
    """A random block of width 16, and its reference."""
    config = ViTConfig(image_size=8, patch_size=4, width=16, num_heads=4, mlp_dim=24, depth=1, **options)
    layer = TransformerBlock(16, 4, 24, mlp=config.mlp, qk_norm=config.qk_norm, layer_scale=config.layer_scale, name="block_0")
    layer.build((None, None, 16))
    return randomise(layer), Reference(config, weights_of(layer))


def masks(kind):
    """A mask (B, N) or (B, N, N) that leaves every query a key, and its keys' complement."""
    mask = np.random.default_rng(5).random((3, 7) if kind == "keys" else (3, 7, 7)) < 0.6
    mask[..., 0] = True
    return mask


@backend
@pytest.mark.parametrize("mask", ["keys", "pairs", None])
@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "layer_scale": 0.1}, {"mlp": "swiglu"}], ids=str)
def test_block_matches_the_reference(mask, options):
    layer, reference = random_block(**options)
    x, mask = random(3, 7, 16), mask and masks(mask)
    expected, expected_scores = reference.block(x.astype("float64"), "block_0", mask)
    weights = layer.get_weights()
    np.testing.assert_allclose(numpy(layer(x, mask=mask)), expected, atol=FORWARD)
    scores = layer.scores(ops.convert_to_tensor(x), mask)
    np.testing.assert_allclose(numpy(scores), expected_scores, atol=FORWARD)
    np.testing.assert_allclose(numpy(scores).sum(-1), np.ones((3, 4, 7)), atol=EXACT)
    for before, after in zip(weights, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@backend
@pytest.mark.parametrize("mask", ["keys", "pairs"])
def test_masked_keys_have_no_influence(mask):
    layer, _ = random_block()
    x, keep = random(3, 7, 16), np.ones((3, 7), bool)
    keep[0, 4:], keep[1, 2] = False, False
    changed = np.where(keep[..., None], x, 100 * random(3, 7, 16, seed=1))
    mask = keep if mask == "keys" else np.repeat(keep[:, None], 7, axis=1)
    np.testing.assert_allclose(numpy(layer(x, mask=mask))[keep], numpy(layer(changed, mask=mask))[keep], atol=EXACT)
    assert np.abs(numpy(layer(x))[keep] - numpy(layer(changed))[keep]).max() > HALF


@backend
@pytest.mark.parametrize("layer", [Pooling("gap", 1), AttentionPooling(16, 4, 24)], ids=["gap", "map"])
def test_masked_tokens_are_not_pooled(layer):
    x = random(3, 7, 16)
    layer(x)
    randomise(layer)
    keep = np.ones((3, 7), bool)
    keep[:, 4:] = False
    np.testing.assert_allclose(numpy(layer(x, mask=keep)), numpy(layer(x[:, :4])), atol=FORWARD)
    x[~keep] = 0  # what `Masking` looks for
    masked = keras.layers.Masking()(ops.convert_to_tensor(x))
    np.testing.assert_allclose(numpy(layer(masked)), numpy(layer(x[:, :4])), atol=FORWARD)


@backend
def test_mask_of_keras_reaches_the_attention():
    layer, reference = random_block()
    x, keep = random(3, 7, 16), np.ones((3, 7), bool)
    keep[0, 4:] = False
    x[~keep] = 0  # what `Masking` looks for
    masked = keras.layers.Masking()(ops.convert_to_tensor(x))
    expected, _ = reference.block(x.astype("float64"), "block_0", keep)
    np.testing.assert_allclose(numpy(layer(masked)), expected, atol=FORWARD)


@backend
def test_number_of_tokens_may_be_unknown():
    layer, reference = random_block()
    inputs = keras.Input((None, 16))
    model = keras.Model(inputs, layer(inputs))
    for tokens in (3, 7):
        x = random(3, tokens, 16)
        expected, _ = reference.block(x.astype("float64"), "block_0")
        np.testing.assert_allclose(predict(model, x), expected, atol=FORWARD)


@backend
def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    layer = TransformerBlock(8, 2, 12, drop_path=0.25)
    x = np.repeat(random(1, 6, 8), 4000, axis=0)
    layer.build(x.shape)
    randomise(layer)
    np.testing.assert_array_equal(numpy(layer.drop_path1(x, training=False)), x)
    y = numpy(layer.drop_path1(x, training=True))
    dropped = (y == 0).all((1, 2))
    np.testing.assert_allclose(y[~dropped], x[~dropped] / 0.75, atol=EXACT)
    assert dropped.mean() == pytest.approx(0.25, abs=MEAN)
    np.testing.assert_allclose(y.mean(0), x[0], atol=MEAN * np.abs(x).max())


@backend
def test_drop_path_of_a_block_leaves_dropped_examples_alone():
    layer = TransformerBlock(8, 2, 12, drop_path=0.5)
    x = random(400, 6, 8)
    layer.build(x.shape)
    randomise(layer)
    unchanged = (numpy(layer(x, training=True)) == x).all((1, 2))
    assert unchanged.mean() == pytest.approx(0.25, abs=2 * MEAN)  # both branches dropped
    assert not (numpy(layer(x)) == x).all((1, 2)).any()


@backend
@pytest.mark.parametrize("rates", [{"dropout": 0.4}, {"attention_dropout": 0.4}, {"drop_path": 0.4}], ids=str)
def test_dropout_is_active_in_training_only(rates):
    layer, plain = TransformerBlock(8, 2, 12, **rates), TransformerBlock(8, 2, 12)
    x = random(16, 6, 8)
    for made in (layer, plain):
        made.build(x.shape)
        randomise(made)
    expected = numpy(plain(x))
    np.testing.assert_allclose(numpy(layer(x)), expected, atol=EXACT)
    np.testing.assert_allclose(numpy(layer(x, training=False)), expected, atol=EXACT)
    first, second = numpy(layer(x, training=True)), numpy(layer(x, training=True))
    assert np.abs(first - expected).max() > HALF
    assert np.abs(first - second).max() > HALF
    np.testing.assert_allclose(numpy(plain(x, training=True)), expected, rtol=EXACT, atol=EXACT)


@backend
def test_attention_scores_are_whole_while_weights_are_dropped():
    """Dropout of the weights changes the tokens of a training step, not the scores."""
    layer, x = Attention(8, 2, attention_dropout=0.5), ops.convert_to_tensor(random(2, 5, 8))
    layer.build(x.shape)
    assert np.abs(numpy(layer(x, training=True)) - numpy(layer(x))).max() > FORWARD
    np.testing.assert_allclose(numpy(layer.scores(x)).sum(-1), np.ones((2, 2, 5)), atol=EXACT)


@backend
def test_dropout_of_the_encoder():
    layer = PatchEncoder(8, dropout=0.5)
    x = random(50, 6, 10)
    layer.build(x.shape)
    randomise(layer)
    kept, y = numpy(layer(x)), numpy(layer(x, training=True))
    assert (y == 0).mean() == pytest.approx(0.5, abs=MEAN)
    np.testing.assert_allclose(y[y != 0], 2 * kept[y != 0], atol=EXACT)


@backend
def test_fused_projection_starts_as_three_glorot_ones():
    kernel = numpy(attention.split_glorot_uniform(3)((200, 600)))
    limit = np.sqrt(6 / (200 + 200))
    assert np.abs(kernel).max() == pytest.approx(limit, rel=0.01)
    assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.01)
    with pytest.raises(AssertionError):
        assert numpy(keras.initializers.GlorotUniform()((200, 600))).std() == pytest.approx(kernel.std(), rel=0.01)


@backend
def test_layer_scale_starts_at_its_value():
    x = random(2, 6, 8)
    np.testing.assert_allclose(numpy(LayerScale(0.3)(x)), 0.3 * x, atol=EXACT)


@backend
def test_patch_dropout_keeps_the_prefix_and_other_patches_of_each_image():
    layer = embed.PatchDropout(0.75, num_prefix_tokens=2)
    x = random(6, 2 + 16, 5)
    np.testing.assert_array_equal(numpy(layer(x)), x)
    first, second = numpy(layer(x, training=True)), numpy(layer(x, training=True))
    assert first.shape == (6, 2 + 4, 5)
    np.testing.assert_array_equal(first[:, :2], x[:, :2])
    chosen = [[np.flatnonzero((x[i] == row).all(-1)).item() for row in first[i, 2:]] for i in range(6)]
    assert all(len(set(rows)) == 4 and min(rows) >= 2 for rows in chosen)
    assert len({tuple(sorted(rows)) for rows in chosen}) > 1
    assert not np.array_equal(first, second)


@backend
def test_patch_dropout_leaves_each_patch_as_often():
    layer = embed.PatchDropout(0.5)
    x = np.broadcast_to(np.arange(8, dtype="float32")[None, :, None], (500, 8, 1))
    counts = np.bincount(numpy(layer(x, training=True)).astype(int).ravel(), minlength=8)
    assert counts.sum() == 500 * 4
    assert np.abs(counts - 250).max() < 5 * 250**0.5 / 2**0.5
