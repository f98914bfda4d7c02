"""Rotary positions and what blocks do with them; twin blocks; keys without a bias."""

import keras
import numpy as np
import pytest
from helpers import COMMON, logits, numpy, predict, random
from keras import ops
from reference import Reference, random_images, weights_of

from keras_vit import Attention, TransformerBlock, ViTConfig, build_vit, features
from keras_vit.kernels.ops import rotate
from keras_vit.model.adapters import adapted_layers
from keras_vit.model.embed import PatchDropout
from keras_vit.model.parallel import ParallelBlock, TwinBlock
from keras_vit.model.rotary import RotaryPositions, rotary_angles
from keras_vit.model.vit import merging_model
from keras_vit.parity import randomise
from keras_vit.training.models import compile_model

backend = pytest.mark.backend
EXACT = 1e-6
FORWARD = 1e-5  # absolute, float32 against float64
HALF = 0.05  # absolute, bfloat16 against float32, of values near 1
ROTARY = {**COMMON, "image_size": (12, 18), "patch_size": (3, 6), "rotary": "centered", "position": "none", "registers": 2}


def test_angles_of_dinov3_and_of_eva02():
    """A few by hand: rows first, then columns; frequencies 1 and 1 / sqrt(base)."""
    centered = rotary_angles((2, 4), 8, base=100.0)
    assert centered.shape == (8, 4)
    y, x = 2 * np.pi * -0.5, 2 * np.pi * 0.25  # row 0 of 2, column 2 of 4
    np.testing.assert_allclose(centered[2], [y, y / 10, x, x / 10])
    index = rotary_angles((2, 4), 8, "index", 10_000.0, (4, 2), 1.0)
    np.testing.assert_allclose(index[4 + 3], [4, 0.04, 2, 0.02])  # row 1 + 1 of 2 is row 4 of 4, column 3 + 1 of 4 is column 2
    np.testing.assert_allclose(rotary_angles((2, 4), 8, "index", 10_000.0)[4 + 3], [1, 0.01, 3, 0.03])


@backend
def test_scores_depend_on_the_distance_alone():
    layer = RotaryPositions((3, 5), 8, "index", rotary_base=10.0)
    table = layer(np.zeros((1, 15, 16), "float32"))
    q, k = (rotate(ops.convert_to_tensor(np.tile(random(1, 2, 1, 8, seed=seed), (1, 1, 15, 1))), table) for seed in (0, 1))
    scores = numpy(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2)))).reshape(2, 3, 5, 3, 5)
    np.testing.assert_allclose(scores[:, 1:, 1:, 1:, 1:], scores[:, :-1, :-1, :-1, :-1], atol=FORWARD)
    assert np.abs(scores[:, 0, 0, 0, 1] - scores[:, 0, 0, 0, 2]).max() > 0.01
    np.testing.assert_allclose(numpy(ops.norm(q, axis=-1)), numpy(ops.norm(q[:, :, :1], axis=-1)).repeat(15, 2), atol=FORWARD)


@backend
@pytest.mark.parametrize("mask", ["keys", "pairs"])
def test_masks_go_with_rotary_positions(mask):
    config = ViTConfig(**{**ROTARY, "depth": 1})
    layer = TransformerBlock.of(config, name="block_0")
    layer.build((None, 15, 16))
    randomise(layer)
    x = random(2, 15, 16)
    keep = np.random.default_rng(5).random((2, 15) if mask == "keys" else (2, 15, 15)) < 0.6
    keep[..., 0] = True
    table = RotaryPositions.of(config)(x)
    expected, scores = Reference(config, weights_of(layer)).block(x.astype("float64"), "block_0", keep)
    np.testing.assert_allclose(numpy(layer(x, mask=keep, rotary=table)), expected, atol=FORWARD)
    np.testing.assert_allclose(numpy(layer.scores(ops.convert_to_tensor(x), keep, rotary=table)), scores, atol=FORWARD)


@backend
def test_patch_dropout_keeps_the_positions_of_kept_patches():
    layer, x = PatchDropout(0.5, num_prefix_tokens=2), random(4, 2 + 8, 6)
    rotary = random(4, 2 + 8, 4, seed=1)
    for given, kept in zip((x, rotary), layer(x, rotary), strict=True):
        np.testing.assert_array_equal(numpy(kept), given)
    kept, positions = (numpy(values) for values in layer(x, rotary, training=True))
    assert kept.shape == (4, 6, 6)
    for image in range(4):
        for token, position in zip(kept[image], positions[image], strict=True):
            place = np.flatnonzero((x[image] == token).all(-1)).item()
            np.testing.assert_array_equal(position, rotary[image, place])


@backend
def test_training_with_patch_dropout_is_that_of_the_kept_patches(monkeypatch):
    """A step with half of the patches, which are known: the logits are those of the model without the others."""
    config = ViTConfig(**{**ROTARY, "depth": 1, "patch_dropout": 0.5})
    model, images = randomise(build_vit(config)), random_images(config)
    order = ops.convert_to_tensor(np.array([[7, 1, 4, 2, 11, 0], [3, 5, 6, 8, 9, 10]], "int32"))
    monkeypatch.setattr(ops, "top_k", lambda *args, **kwargs: (None, order))
    given = numpy(model(images, training=True))
    keep = np.zeros((2, 15), bool)
    keep[:, :3] = True
    for row, places in zip(keep, numpy(order), strict=True):
        row[3 + places] = True
    reference = Reference(config, weights_of(model))
    stem = reference(images)["encoder"]
    x, _ = reference.block(stem, "block_0", keep)
    expected = reference.dense(reference.norm(x, "norm")[:, 0], "head")
    np.testing.assert_allclose(given, expected, atol=FORWARD)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=backend),
        {"block": "parallel"},
        {"block": "twin"},
        pytest.param({"block": "twin", "layer_scale": 0.1}, marks=backend),
    ],
    ids=str,
)
def test_remat_trains_to_the_same_weights(options, monkeypatch):
    config = ViTConfig(**{**ROTARY, "key_bias": False, **options})
    images, targets = random_images(config, batch=14), np.eye(7)[np.arange(14) % 7]
    calls, trained = [], []
    remat = keras.remat
    monkeypatch.setattr(keras, "remat", lambda function: calls.append(function) or remat(function))
    for again in (False, True):
        model = randomise(build_vit(config, remat=again))
        compile_model(model, keras.optimizers.SGD(0.1), "auto")
        for _ in range(2):
            model.train_on_batch(images, targets)
        trained.append(weights_of(model))
    assert len({id(function) for function in calls}) >= config.depth
    for path, value in trained[0].items():
        np.testing.assert_allclose(trained[1][path], value, atol=FORWARD, err_msg=path)


@backend
def test_angles_are_computed_in_float32():
    """Of a large grid, where bfloat16 has no digits left for the angles: only cosines and sines are rounded."""
    full, half = (RotaryPositions((64, 96), 16, "index", dtype=dtype) for dtype in ("float32", "mixed_bfloat16"))
    x = np.zeros((1, 64 * 96, 16), "float32")
    assert keras.backend.standardize_dtype(half(x).dtype) == "bfloat16"
    np.testing.assert_allclose(numpy(ops.cast(half(x), "float32")), numpy(full(x)), atol=2**-8)


def test_merging_is_refused():
    model = build_vit(ViTConfig(**ROTARY))
    with pytest.raises(ValueError, match=r"^merge_tokens: received 2; allowed: 0 with rotary positions$"):
        merging_model(model, 2)


@backend
def test_int8_of_keys_without_bias():
    layer, x = Attention(32, 4, key_bias=False), ops.convert_to_tensor(random(2, 5, 32))
    layer.build(x.shape)
    randomise(layer)
    expected = numpy(layer(x))
    layer.qkv.quantize("int8")
    np.testing.assert_allclose(numpy(layer(x)), expected, atol=HALF)
    layer.query_bias.assign(np.zeros(32))
    assert np.abs(numpy(layer(x)) - expected).max() > HALF


@pytest.mark.parametrize("cls", [ParallelBlock, TwinBlock])
def test_config_of_other_blocks(cls):
    """The constructor's arguments are those of `TransformerBlock`."""
    arguments = {"width": 8, "num_heads": 2, "mlp_dim": 12, "mlp": "swiglu", "dropout": 0.1, "attention_dropout": 0.2}
    arguments |= {"drop_path": 0.3, "layer_scale": 0.4, "qk_norm": True, "norm_epsilon": 1e-5, "qkv_bias": False}
    arguments |= {"use_bias": False, "key_bias": False, "attention_norm": True, "mlp_norm": True, "rms_norm": True}
    block = cls(**arguments)
    assert block.get_config() == {**arguments, "name": block.name, "trainable": True, "dtype": block.get_config()["dtype"]}
    x = ops.convert_to_tensor(random(2, 9, 8))
    expected = randomise_built(block, x)(x)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(block))
    again.set_weights(block.get_weights())
    np.testing.assert_array_equal(numpy(again(x)), numpy(expected))


def randomise_built(layer, x):
    layer.build(x.shape)
    return randomise(layer)


@backend
def test_attention_of_twins_and_adapters():
    config = ViTConfig(**{**ROTARY, "block": "twin"})
    model, images = randomise(build_vit(config)), random_images(config)
    expected = Reference(config, weights_of(model))(images)
    names = ["block_1/attention", "rotary"]
    values = predict(features(model, names), images)
    assert values["block_1/attention"].shape == (2, 2 * config.num_heads, config.num_tokens, config.num_tokens)
    np.testing.assert_allclose(values["block_1/attention"], expected["block_1/attention"], atol=FORWARD)
    assert values["rotary"].shape == (2, config.num_tokens, config.head_dim)
    np.testing.assert_allclose(logits(model, images), expected["output"], atol=FORWARD)
    assert len(adapted_layers(model)) == config.depth * 2 * 4
