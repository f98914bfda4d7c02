"""Attention maps and gradients against the model itself, against features, and against numbers computed plainly."""

import numpy as np
import pytest
from helpers import TINY, make_model, one_line_error, predict, random
from keras import ops

from keras_vit import features
from keras_vit.explain.attention import attention, attention_distance, attention_maps, attention_rollout
from keras_vit.explain.attribution import attention_gradients, grad_cam, gradient_attention, legrad, occlusion
from keras_vit.explain.forward import run, see
from keras_vit.explain.methods import METHODS, heat_maps

backend = pytest.mark.backend
TOLERANCE = 2e-5  # float32, values near 1
DIFFERENCE = 2e-2  # of a gradient by differences, in float32
MERGING = {"merge_tokens": 2, "registers": 1}
CASES = [
    *((name, {}) for name in TINY if name != "conv"),
    pytest.param("conv", {}, marks=backend),
    pytest.param("gap", {"block": "twin"}, marks=backend),
    ("gap", {"block": "parallel"}),
    pytest.param("map", MERGING, marks=backend),
    ("gap", MERGING),
]


def images_of(model, count=3):
    return random(count, *model.input.shape[1:])


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_pass_gives_the_models_logits(name, settings):
    model = make_model(name, **settings)
    images = images_of(model)
    expected = predict(model, images)
    np.testing.assert_allclose(see(model, images).logits[0], expected, atol=TOLERANCE)
    np.testing.assert_allclose(see(model, images, every_block=True).logits[-1], expected, atol=TOLERANCE)
    np.testing.assert_allclose(predict(model, images), expected, atol=TOLERANCE)  # no tap is left behind


@pytest.mark.parametrize("settings", [{}, {"block": "twin"}, pytest.param({"merge_tokens": 3}, marks=backend)])
def test_weights_are_those_of_features(settings):
    model = make_model("distilled", **settings)
    images, names = images_of(model), ["block_0/attention", "block_1/attention"]
    expected = predict(features(model, names), images)
    for name, weights in zip(names, see(model, images).weights, strict=True):
        np.testing.assert_allclose(weights, expected[name], atol=TOLERANCE)


def test_maps_are_the_class_tokens_rows():
    model = make_model("distilled", distillation=False)
    images = images_of(model)
    weights = np.stack(see(model, images).weights, axis=1)  # (B, L, h, N, N), a class token and a register in front
    maps = attention_maps(model, images)
    np.testing.assert_allclose(maps, weights[:, :, :, 0, 2:].reshape(3, 2, 2, 4, 3), atol=TOLERANCE)
    np.testing.assert_allclose(attention(model, images), maps[:, 1].mean(axis=1), atol=TOLERANCE)


def test_a_mean_of_patches_reads_the_mean_of_their_rows():
    model = make_model("gap", registers=1)
    images = images_of(model)
    weights = np.stack(see(model, images).weights, axis=1)
    np.testing.assert_allclose(
        attention_maps(model, images), weights[:, :, :, 1:, 1:].mean(axis=3).reshape(3, 2, 2, 4, 3), atol=TOLERANCE
    )


def test_merged_tokens_share_their_attention_among_their_patches():
    model = make_model("gap", merge_tokens=2)
    images = images_of(model)
    seen, maps = see(model, images), attention_maps(model, images)
    assert [weights.shape[-1] for weights in seen.weights] == [12, 10]
    np.testing.assert_allclose(maps.sum(axis=(3, 4)), 1, atol=TOLERANCE)
    merge = seen.merges[0]  # (B, 10, 12)
    sizes = (merge > 0).sum(axis=2)  # of the tokens that the second block gets
    reading = sizes / 12
    expected = np.einsum("bn,bhnm,bmk->bhk", reading, seen.weights[1], merge)
    np.testing.assert_allclose(maps[:, 1].reshape(3, 2, 12), expected, atol=TOLERANCE)


def test_rollout_multiplies_half_attention_half_identity():
    model = make_model("clip")
    images = images_of(model)
    flow = np.eye(7)
    for weights in see(model, images).weights:
        flow = (0.5 * weights.mean(axis=1) + 0.5 * np.eye(7)) @ flow
    expected = (flow[:, 0, 1:] + flow[:, 1:, 1:].mean(axis=1)) / 2  # `cls_gap` reads both
    np.testing.assert_allclose(attention_rollout(model, images), expected.reshape(3, 2, 3), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "settings"), [("rotary", {}), pytest.param("map", MERGING, marks=backend), ("gap", {"block": "twin"})]
)
def test_gradients_are_those_of_differences(name, settings):
    model = make_model(name, **settings)
    images, classes = images_of(model, 2), np.array([1, 4])
    weights, pools, seen = attention_gradients(model, images, classes)
    arrays = [*seen.weights, *(pool for pool in seen.pools if pool is not None)]
    found = [*weights, *pools]
    rng, step = np.random.default_rng(0), 1e-3
    for index, gradient in enumerate(found):
        direction = rng.normal(size=gradient.shape).astype("float32")
        values = []
        for sign in (1, -1):
            shifts = [np.zeros_like(each) for each in arrays]
            shifts[index] = sign * step * direction
            shifts = [ops.convert_to_tensor(each) for each in shifts]
            result = run(model, ops.convert_to_tensor(images), shifts[:2], pool_shifts=shifts[2:])
            values.append(ops.convert_to_numpy(result.logits[0])[[0, 1], classes].sum())
        expected = (values[0] - values[1]) / (2 * step)
        assert abs(expected) > 1e-3
        np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=DIFFERENCE)


def test_gradient_attention_is_its_two_equations():
    model = make_model("distilled", distillation=False)
    images, classes = images_of(model), np.array([0, 3, 3])
    gradient, _, seen = attention_gradients(model, images, classes)
    flow = np.eye(14)
    for weights, each in zip(seen.weights, gradient, strict=True):
        flow = flow + np.maximum(weights * each, 0).mean(axis=1) @ flow
    found = gradient_attention(model, images, classes)
    np.testing.assert_allclose(found, flow[:, 0, 2:].reshape(3, 4, 3), atol=TOLERANCE)
    assert found.std() > 1e-4


def test_legrad_sums_what_each_blocks_own_logit_feels():
    model = make_model("gap")
    images, classes = images_of(model), np.array([0, 3, 5])
    last, _, _ = attention_gradients(model, images, classes)  # of the last block the head's own logit
    both, _, _ = attention_gradients(model, images, classes, every_block=True)
    np.testing.assert_allclose(both[1], last[1], atol=TOLERANCE)
    assert abs(both[0] - last[0]).max() > 1e-4
    expected = sum(np.maximum(each, 0).mean(axis=(1, 2)) for each in both)
    np.testing.assert_allclose(legrad(model, images, classes), expected.reshape(3, 4, 3), atol=TOLERANCE)


def test_grad_cam_weighs_channels_by_their_mean_gradient():
    """A head without anything between it and the last block's tokens: the mean gradient is the head's own column."""
    model = make_model("gap", final_norm=False, layer_scale=0.0)
    block = model.get_layer("block_1")
    for layer in (block.attention.projection, block.feed_forward.fc2):  # the last block passes its tokens on
        layer.kernel.assign(0 * layer.kernel)
        layer.bias.assign(0 * layer.bias)
    images = images_of(model)
    tokens = see(model, images).tokens[1]  # (B, 12, D)
    head = ops.convert_to_numpy(model.get_layer("head").kernel)[:, 2]
    np.testing.assert_allclose(grad_cam(model, images, 2), np.maximum(tokens @ head / 12, 0).reshape(3, 4, 3), atol=TOLERANCE)


def test_occlusion_is_the_fall_of_the_logit():
    model = make_model("conv")  # the channels first, patches of 4 x 4 pixels
    images = images_of(model, 2)
    blank = images.copy()
    blank[:, :, 4:8, 8:12] = 0
    fall = (predict(model, images) - predict(model, blank))[:, 5]
    found = occlusion(model, images, 5)
    assert found.shape == (2, 4, 6)
    np.testing.assert_allclose(found[:, 1, 2], np.maximum(fall, 0), atol=TOLERANCE)
    assert (found > 1e-4).sum() > 12


def test_even_attention_has_the_mean_distance_of_the_grid():
    model = make_model("gap")
    for index in range(2):
        qkv = model.get_layer(f"block_{index}").attention.qkv
        qkv.kernel.assign(0 * qkv.kernel)
        qkv.bias.assign(0 * qkv.bias)
    places = np.array([(3 * row, 6 * column) for row in range(4) for column in range(3)])  # patches of 3 x 6 pixels
    expected = np.sqrt(((places[:, None] - places[None]) ** 2).sum(axis=-1)).mean()
    np.testing.assert_allclose(attention_distance(model, images_of(model)), np.full((2, 2), expected), rtol=TOLERANCE)


@backend
@pytest.mark.parametrize("method", METHODS)
def test_many_images_are_explained_as_single_ones_are(method):
    model = make_model("clip")
    images = images_of(model, 35)  # more than a batch
    maps = heat_maps(model, images, method)
    assert maps.shape == (35, 2, 3)
    assert (maps >= 0).all()
    np.testing.assert_allclose(maps[33:34], heat_maps(model, images[33:34], method), atol=TOLERANCE)


def test_the_predicted_class_is_explained_unless_another_is_named():
    model = make_model("distilled")
    images = images_of(model)
    predicted = predict(model, images).argmax(axis=1)
    np.testing.assert_allclose(legrad(model, images), legrad(model, images, predicted), atol=TOLERANCE)
    assert abs(legrad(model, images, (predicted + 1) % 7) - legrad(model, images)).max() > 1e-4


def test_a_half_precision_model_is_explained_too():
    single, half = make_model("distilled"), make_model("distilled")
    from keras_vit import build_vit

    half = build_vit(single.config, dtype="mixed_bfloat16")
    half.set_weights(single.get_weights())
    images = images_of(single)
    for method in METHODS:
        expected = heat_maps(single, images, method, 1)
        np.testing.assert_allclose(heat_maps(half, images, method, 1), expected, atol=0.1 * expected.max())


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (
            attention_maps,
            (random(2, 8, 8, 3),),
            r"images: received float32 of shape \(2, 8, 8, 3\); allowed: floats \(B, 12, 18, 3\)",
        ),
        (attention_maps, (np.zeros((2, 12, 18, 3), np.uint8),), "images: received uint8 of shape"),
        (attention_maps, (random(0, 12, 18, 3),), "images: received"),
        (legrad, (random(2, 12, 18, 3), 7), "classes: received 7; allowed: an integer from 0 to 6"),
        (legrad, (random(2, 12, 18, 3), [1, 2, 3]), r"classes: received int64 of shape \(3,\); allowed: an index, or one for each"),
        (grad_cam, (random(2, 12, 18, 3), 1.5), "classes: received float64"),
        (heat_maps, (random(2, 12, 18, 3), "gradcam"), "method: received 'gradcam'; allowed: attention, rollout"),
    ],
)
def test_what_does_not_fit_is_refused(function, arguments, message):
    with one_line_error(message):
        function(make_model("gap"), *arguments)


def test_a_model_without_a_head_has_no_class_to_explain():
    model = make_model("gap", num_classes=0)
    with one_line_error("num_classes: received 0"):
        legrad(model, images_of(model))
    assert attention_rollout(model, images_of(model)).shape == (3, 4, 3)
