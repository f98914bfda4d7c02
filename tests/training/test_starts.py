"""Initial weights: mimetic attention, a first layer for decorrelated pixels."""

import numpy as np
import pytest
from keras import ops

from keras_vit.images import normalize, resize
from keras_vit.model.config import ViTConfig
from keras_vit.model.vit import build_vit
from keras_vit.recipes.parse import load_recipe
from keras_vit.training import loop
from keras_vit.training.loop import train
from keras_vit.training.starts import first_kernel, pixels_of, set_mimetic, whiten

TINY = {"width": 32, "depth": 2, "num_heads": 2, "mlp_dim": 16}


def numpy(x):
    return np.asarray(ops.convert_to_numpy(x), np.float64)


@pytest.mark.parametrize("block", ["serial", "twin"])
def test_mimetic_attention(block):
    """Value times projection is 0.4 Z - 0.4 I exactly; query times key of a head the best of its rank for 0.7 Z + 0.7 I."""
    model = build_vit(ViTConfig(image_size=8, patch_size=4, num_classes=3, block=block, **TINY))
    before = [numpy(weight) for weight in model.weights]
    set_mimetic(model, np.random.default_rng(0))
    attentions = [model.get_layer(f"block_{index}").attention for index in range(2)]
    for attention in attentions:
        queries, keys, values = np.split(numpy(attention.qkv.kernel), 3, axis=1)
        noise = (values @ numpy(attention.projection.kernel) + 0.4 * np.eye(32)) / 0.4
        assert noise.std() == pytest.approx(1 / np.sqrt(32), rel=0.1)
        assert abs(np.trace(noise)) < 4  # of a random matrix: a normal number
        for head in (slice(0, 16), slice(16, 32)):
            product = queries[:, head] @ keys[:, head].T
            assert np.linalg.matrix_rank(product, tol=1e-4) == 16
            assert np.trace(product) > 0.5 * 0.7 * 32  # more than half of the identity is kept
    assert np.abs(numpy(attentions[0].qkv.kernel) - numpy(attentions[1].qkv.kernel)).max() > 0.1
    changed = {weight.path for weight, old in zip(model.weights, before, strict=True) if (numpy(weight) != old).any()}
    kernels = {weight.path for weight in model.weights if "attention/" in weight.path and weight.name == "kernel"}
    assert changed == kernels
    assert len(kernels) == (4 if block == "serial" else 8)


@pytest.mark.parametrize(
    "stem", [{"stem": "patch", "stem_depth": 0, "patch_size": 2}, {"stem": "conv", "stem_depth": 0, "patch_size": 4}], ids=str
)
def test_whitened_pixels_reach_the_first_layer(stem):
    """The kernel is the old one after the pixels' covariance has become the identity, where eigenvalues are not tiny."""
    recipe = load_recipe("digits", data="digits", model={**TINY, **stem})
    data = recipe.load_data()
    pixels = pixels_of(recipe, data)
    assert pixels.shape[1] == (4 if stem["stem"] == "patch" else 9)
    model = build_vit(recipe.for_data(data).model)
    old = numpy(first_kernel(model)).reshape(pixels.shape[1], -1)
    whiten(model, pixels)
    new = numpy(first_kernel(model)).reshape(pixels.shape[1], -1)
    matrix = new @ np.linalg.pinv(old)  # 16 or 32 filters of 4 or 9 values: the matrix that was applied
    covariance = np.cov(pixels, rowvar=False)
    sizes = np.linalg.eigvalsh(covariance)
    np.testing.assert_allclose(np.linalg.eigvalsh(matrix @ covariance @ matrix.T), sizes / (sizes + 0.01), atol=1e-3)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-3)


def test_patches_of_the_pixels_are_those_of_the_layer():
    recipe = load_recipe("digits", data="digits", model={**TINY, "stem": "patch", "stem_depth": 0, "patch_size": (2, 4)})
    data = recipe.load_data()
    stem = build_vit(recipe.for_data(data).model).get_layer("stem")
    pixels = pixels_of(recipe, data)
    images = data.train.images(np.arange(len(data.train))).astype("float32") / 255
    every = (numpy(stem(images)).reshape(-1, 8) - 0.5) / 0.5
    assert {row.tobytes() for row in pixels.round(4)} <= {row.tobytes() for row in every.astype("float32").round(4)}


@pytest.mark.parametrize("stage", [{"patch_scale": 2}, {"image_scale": 0.5}], ids=str)
def test_the_first_stages_layer_sees_its_own_pixels(monkeypatch, tmp_path, stage):
    seen = []
    monkeypatch.setattr(loop, "set_start", lambda model, recipe, data: seen.append((model.config, pixels_of(recipe, data))))
    settings = {"epochs": 2, "steps_per_epoch": 1, "warmup_epochs": 0, "whiten": True, "stages": [{"until": 0.5, **stage}]}
    recipe = load_recipe("digits", data="digits", model={**TINY, "stem": "patch", "stem_depth": 0, "patch_size": 2}, train=settings)
    train(recipe, tmp_path / "run", verbose=0, pictures=False, until=1)
    [(config, pixels)] = seen
    assert (config.patch_size, config.image_size) == (((4, 4), (8, 8)) if "patch_scale" in stage else ((2, 2), (4, 4)))
    images = resize(normalize(recipe.load_data().train.images(np.arange(1294)), recipe.mean, recipe.std), config.image_size)
    side = config.patch_size[0]
    every = images.reshape(len(images), config.image_size[0] // side, side, -1, side).transpose(0, 1, 3, 2, 4).reshape(-1, side**2)
    assert {row.tobytes() for row in pixels.round(4)} <= {row.tobytes() for row in every.round(4)}


def test_a_run_starts_with_them_and_repeats(tmp_path):
    settings = {"epochs": 1, "steps_per_epoch": 1, "learning_rate": 1e-9, "warmup_epochs": 0, "optimizer": "adamw"}
    recipe = load_recipe("digits", data="digits", model=TINY, train={**settings, "init": "mimetic", "whiten": True})
    one, two = (train(recipe, tmp_path / name, verbose=0, pictures=False).model() for name in ("one", "two"))
    plain = train(recipe.with_train(init="glorot", whiten=False), tmp_path / "plain", verbose=0, pictures=False).model()
    for a, b, c in zip(one.weights, two.weights, plain.weights, strict=True):
        np.testing.assert_array_equal(numpy(a), numpy(b))
        started = a.path.endswith(("attention/qkv/kernel", "attention/projection/kernel", "stem/conv0/kernel"))
        assert (np.abs(numpy(a) - numpy(c)).max() > 1e-3) == started, a.path


@pytest.mark.parametrize(("name", "value"), [("init", "mimetic"), ("whiten", True)])
def test_starts_are_refused_with_a_checkpoint(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: received {value}; allowed: .* with a checkpoint"):
        load_recipe("photos", finetune={"checkpoint": "x"}, train={name: value})
