"""The masked autoencoder: its numbers against NumPy, what the encoder sees, and that every weight learns."""

import keras
import numpy as np
import pytest
from helpers import TINY, numpy, predict
from keras import ops
from reference import Reference, sincos2d, weights_of

from keras_vit import ViTConfig, build_vit
from keras_vit.data.masking import Masking
from keras_vit.data.seeds import MASK
from keras_vit.model.masked import MaskedAutoencoder
from keras_vit.parity import gradients, randomise

backend = pytest.mark.backend
FORWARD = 1e-5  # absolute, float32 against float64
NON_ZERO = 1e-6  # what a gradient of a weight exceeds
RATIO, WIDTH = 0.6, 12
CASES = {
    "patch": {"class_token": True, "registers": 1, "position": "learned"},
    "conv": {"data_format": "channels_last"},
    "rotary": {},
    "clip": {},
}


def make(name, hidden=True):
    """An autoencoder of random weights, images (whole unless `hidden`), orders, targets, and the number of visible patches."""
    base = "gap" if name == "patch" else name
    config = ViTConfig(**{**TINY[base], "num_classes": 0, **CASES[name]})
    model = randomise(MaskedAutoencoder(build_vit(config), RATIO, WIDTH, 1, 3))
    masking = Masking(config.patch_size, RATIO)
    images = np.random.default_rng(0).normal(size=(3, *config.image_shape)).astype("float32")
    (seen, orders), targets = masking.apply(images, masking.orders(3, config.image_size, MASK, 0, 0))
    return model, config, (seen if hidden else images), orders, targets, masking.count(config.image_size)[1]


def encoder_of(model):
    return keras.Model(model.input, model.get_layer("decoder").input[0])


def reference(model, config, images, orders, kept):
    """Tokens of the encoder, and patches, by the plain NumPy model: (B, p + K, D), (B, N - K, F)."""
    net, prefix = Reference(config, weights_of(model)), config.num_prefix_tokens
    images = images.astype("float64")
    x = net.encode(net.conv_stem(images) if config.stem == "conv" else net.patches(images))
    x = np.stack([np.concatenate([row[:prefix], row[prefix:][order[:kept]]]) for row, order in zip(x, orders, strict=True)])
    x = net.norm(x, "pre_norm") if config.pre_norm else x
    for index in range(config.depth):
        x, _ = net.block(x, f"block_{index}")
    encoded = net.norm(x, "norm")
    # The decoder sees all patches in their places, as the paper draws it; here tokens stay in the order of the mask.
    small = ViTConfig(image_size=config.image_size, patch_size=config.patch_size, width=WIDTH, num_heads=3, mlp_dim=2 * WIDTH)
    decoder = Reference(small, {path.removeprefix("decoder/"): w for path, w in net.weights.items() if path.startswith("decoder/")})
    x, table = decoder.dense(encoded, "embed"), sincos2d(config.image_size, config.patch_size, WIDTH)
    rows = []
    for tokens, order in zip(x, orders, strict=True):
        placed = np.tile(decoder.weights["mask_token"][0], (len(order), 1))
        placed[order[:kept]] = tokens[prefix:]
        rows.append(np.concatenate([tokens[:prefix], placed + table]))
    x, _ = decoder.block(np.stack(rows), "block_0")
    x = decoder.dense(decoder.norm(x, "norm"), "head")[:, prefix:]
    return encoded, np.stack([row[order[kept:]] for row, order in zip(x, orders, strict=True)])


@backend
@pytest.mark.parametrize("name", ["patch", "conv", "clip"])
def test_patches_and_loss_are_those_of_numpy(name):
    model, config, images, orders, targets, kept = make(name)
    encoded, expected = reference(model, config, images, orders, kept)
    np.testing.assert_allclose(predict(encoder_of(model), (images, orders)), encoded, atol=FORWARD * abs(encoded).max())
    found = predict(model, (images, orders))
    np.testing.assert_allclose(found, expected, atol=FORWARD * abs(expected).max())
    loss = float(numpy(keras.losses.MeanSquaredError()(targets, found)))
    assert loss == pytest.approx(((targets - expected) ** 2).mean(), rel=FORWARD)


@backend
@pytest.mark.parametrize("name", ["patch", "rotary"])
def test_pixels_of_hidden_patches_change_nothing(name):
    """With a stem of patches the model itself does not see them; with convolutions `Masking` has taken them away."""
    model, _, images, orders, _, _ = make(name)
    whole = make(name, hidden=False)[2]
    assert (images != whole).mean() > 0.5
    np.testing.assert_array_equal(predict(encoder_of(model), (images, orders)), predict(encoder_of(model), (whole, orders)))
    np.testing.assert_array_equal(predict(model, (images, orders)), predict(model, (whole, orders)))


@backend
@pytest.mark.parametrize("name", ["conv", "rotary"])
def test_every_weight_learns(name):
    """All of the autoencoder's, which are those of the encoder up to its last norm, and the decoder's."""
    model, config, images, orders, targets, _ = make(name)
    shared = {path for path in config.weight_shapes if not path.startswith("pool")}
    assert {weight.path for weight in model.trainable_weights if not weight.path.startswith("decoder/")} == shared
    found = gradients(model, (images, orders), lambda outputs: ops.mean(ops.square(outputs - ops.convert_to_tensor(targets))))
    assert set(found) == {weight.path for weight in model.trainable_weights}
    for path, gradient in found.items():
        assert np.isfinite(gradient).all(), path
        assert abs(gradient).max() > NON_ZERO, path


@backend
def test_it_costs_what_is_seen():
    """The blocks get the prefix tokens and the visible patches: 2 + 5 of 12, of which 0.6 are hidden."""
    model, _, _, _, _, kept = make("rotary")
    assert kept == 5
    assert [tuple(model.get_layer(f"block_{index}").output.shape) for index in range(2)] == [
        (None, 15, 16)
    ] * 2  # of the classifier
    assert tuple(model.get_layer("decoder").input[0].shape) == (None, 8, 16)
