"""Keras's private names: each does what the public way does, and without it the public way is taken after one warning."""

import dataclasses
import warnings

import keras
import numpy as np
import pytest

import keras_vit
from keras_vit import ViTConfig
from keras_vit.parity import randomise
from keras_vit.private import keras as private
from keras_vit.recipes.schema import TrainConfig
from keras_vit.training import fused, optimizer
from keras_vit.training.finetune import learning_rate_factors
from keras_vit.training.optimizer import make_optimizer

pytestmark = pytest.mark.private
CONFIG = {"image_size": (8, 12), "channels": 1, "patch_size": (4, 3), "width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 12}
SAME = 1e-6  # absolute, the same sums in another order, weights of about 1
CACHED = (private.available, fused.fused_adam, fused.fused_muon, optimizer.with_factors)


@pytest.fixture
def without(monkeypatch):
    """Makes Keras look as if it lacked the private names of a kind."""

    def lose(kind):
        for function in CACHED:
            function.cache_clear()
        monkeypatch.setitem(private.MISSING, kind, ["Adam._gone"])

    yield lose
    for function in CACHED:
        function.cache_clear()


def stepped(config, layer_decay=None, steps=4):
    """The weights by path after some steps with random gradients."""
    model = randomise(keras_vit.build_vit(ViTConfig(**CONFIG, num_classes=3, registers=1, pool="map")))
    factors = learning_rate_factors(model, layer_decay) if layer_decay else None
    made, rng = make_optimizer(config, 40, factors), np.random.default_rng(1)
    made.build(model.trainable_variables)
    for _ in range(steps):
        gradients = [keras.ops.convert_to_tensor(rng.normal(size=v.shape), "float32") for v in model.trainable_variables]
        made.apply(gradients, model.trainable_variables)
    return {variable.path: np.array(keras.ops.convert_to_numpy(variable)) for variable in model.weights}


def test_this_keras_has_every_private_name():
    assert private.MISSING == {"optimizer": [], "layer": []}


def test_names_that_are_gone_are_found():
    names = (*private.OPTIMIZER_NAMES, "_no_such_name")
    assert private.missing_names(keras.optimizers.Adam, names) == ["Adam._no_such_name"]


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize("kind", ["adamw", "muon", "lion", "sgd"])
def test_own_optimizers_equal_keras_own(without, kind, layer_decay):
    config = TrainConfig(epochs=1, optimizer=kind, learning_rate=0.01, weight_decay=0.2, clip_norm=0.5, warmup_epochs=0)
    ours = stepped(config, layer_decay)
    without("optimizer")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        theirs, again = stepped(config, layer_decay), stepped(dataclasses.replace(config, epochs=2), layer_decay)
    lines = [str(warning.message) for warning in caught if "Adam._gone" in str(warning.message)]
    asked = layer_decay or kind == "muon" or (kind == "adamw" and keras.backend.backend() != "jax")  # JAX's is Keras's own
    assert lines == ([f"Keras {keras.__version__} lacks Adam._gone; the slower public way is taken"] if asked else [])
    start = stepped(config, layer_decay, steps=0)
    for path, value in ours.items():
        assert np.abs(value - start[path]).max() > 1e-4, path
        np.testing.assert_allclose(theirs[path], value, atol=SAME, rtol=SAME, err_msg=path)
        assert np.isfinite(again[path]).all()


def test_every_layer_is_found_without_keras_help(without):
    model = keras_vit.build_vit(ViTConfig(**CONFIG, num_classes=3, pool="map", stem="patch"))
    ours = private.flatten_layers(model)
    without("layer")
    with pytest.warns(UserWarning, match=r"lacks Adam\._gone"):
        theirs = private.flatten_layers(model)
    assert len(ours) > 20
    assert len(theirs) == len(set(map(id, theirs)))
    assert set(map(id, theirs)) == set(map(id, ours))


@pytest.mark.backend
@pytest.mark.skipif(keras.backend.backend() != "torch", reason="about PyTorch")
def test_a_layer_has_the_parameters_that_it_is_given():
    import torch

    layer = keras.layers.Dense(2, use_bias=False)
    layer.build((None, 3))
    kernel = torch.nn.Parameter(torch.arange(6.0).reshape(3, 2))
    private.set_tensor(layer.kernel, kernel)
    private.set_parameters(layer, torch.nn.ParameterDict({"kernel": kernel}))
    (parameter,) = layer.parameters()
    assert parameter is kernel
    y = layer(np.ones((1, 3), "float32"))
    y.sum().backward()
    np.testing.assert_array_equal(y.detach(), [[6, 9]])
    np.testing.assert_array_equal(kernel.grad, np.ones((3, 2)))
