"""The optimizer of a recipe: schedule, decay, clipping, accumulation, averages, and Keras's own numbers from the fused ones."""

import math

import keras
import numpy as np
import pytest
from helpers import SMALL, numpy, random
from keras import ops

import keras_vit
from keras_vit import ViTConfig
from keras_vit.data.augment import AugmentConfig
from keras_vit.data.dataset import DataSet, Split
from keras_vit.model.layers import NO_DECAY
from keras_vit.recipes.schema import Recipe, TrainConfig
from keras_vit.training import loop
from keras_vit.training.fused import fused_adam, fused_muon
from keras_vit.training.loop import train
from keras_vit.training.models import compile_model
from keras_vit.training.optimizer import make_optimizer
from keras_vit.training.schedule import WarmupSchedule

backend = pytest.mark.backend
FLOAT32 = 5e-6  # some roundings of weights of about 1


def tiny_model(seed=0, **settings):
    keras.utils.set_random_seed(seed)
    model = keras_vit.build_vit(ViTConfig(**{**SMALL, "num_classes": 3, **settings}))
    model.get_layer("head").kernel.assign(np.random.default_rng(seed).normal(size=(8, 3)))
    return model


def examples(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 8, 12, 1)).astype("float32"), np.eye(3, dtype="float32")[rng.integers(3, size=count)]


def weights_of(model):
    return [np.array(numpy(weight)) for weight in model.trainable_weights]  # PyTorch gives views


def fit(model, config, images, targets, callbacks=()):
    steps = len(images) // config.batch_size
    compile_model(model, make_optimizer(config, steps * config.epochs), "auto")
    model.fit(
        images, targets, batch_size=config.batch_size, epochs=config.epochs, shuffle=False, verbose=0, callbacks=list(callbacks)
    )
    return model


class WeightLog(keras.callbacks.Callback):
    """The weights after every step that the optimizer took, in epochs of one step: loss scaling skips some."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_epoch_end(self, epoch, logs=None):
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        steps = next(variable for variable in optimizer.variables if variable.name == "iteration")  # updates or not
        if int(numpy(steps)) > len(self.weights):
            self.weights.append(weights_of(self.model))


@backend
def test_schedule():
    schedule = WarmupSchedule(0.5, warmup=4, total=12)
    rates = [float(numpy(schedule(step))) for step in range(13)]
    assert rates[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert rates[4:] == pytest.approx([0.25 * (1 + math.cos(math.pi * step / 8)) for step in range(9)], abs=1e-7)
    constant = WarmupSchedule(0.5, warmup=0, total=12, cosine=False)
    assert [float(numpy(constant(step))) for step in (0, 7, 12)] == [0.5, 0.5, 0.5]


@backend
@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "lion", "muon"])
def test_weight_decay_spares_biases_norms_tokens_and_positions(optimizer):
    model = tiny_model(registers=1, layer_scale=0.3, pool="map", class_token=True, key_bias=False)
    config = TrainConfig(epochs=1, optimizer=optimizer, learning_rate=0.1, weight_decay=0.5, schedule="constant", warmup_epochs=0)
    optimizer = make_optimizer(config, 10)
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(size=weight.shape))
    before = weights_of(model)
    optimizer.build(model.trainable_variables)
    optimizer.apply([ops.zeros(weight.shape) for weight in model.trainable_weights], model.trainable_variables)
    names = set()
    for weight, old, new in zip(model.trainable_weights, before, weights_of(model), strict=True):
        decayed = weight.name == "kernel" and config.optimizer != "adam"
        expected = old * (1 - 0.1 * 0.5) if decayed else old
        np.testing.assert_allclose(new, expected, atol=FLOAT32, err_msg=weight.path)
        names.add(weight.name)
    assert names == {"kernel", *NO_DECAY} - {"mask_token"}  # which a pre-training alone has


@backend
def test_muon_takes_every_matrix():
    model = tiny_model(pool="map")
    optimizer = make_optimizer(TrainConfig(epochs=1, optimizer="muon", warmup_epochs=0, schedule="constant"), 10)
    optimizer.build(model.trainable_variables)
    for weight, velocity in zip(model.trainable_weights, optimizer.adam_velocities, strict=True):
        assert (velocity is None) == (weight.name == "kernel"), weight.path
    # One update moves along an orthogonal matrix: all its singular values lie near one.
    weight = model.get_layer("block_0").attention.qkv.kernel
    before = np.array(numpy(weight))
    rng = np.random.default_rng(0)
    gradients = [ops.convert_to_tensor(rng.normal(size=w.shape), "float32") for w in model.trainable_weights]
    optimizer.weight_decay = None
    optimizer.apply(gradients, model.trainable_variables)
    values = np.linalg.svd(before - numpy(weight), compute_uv=False)
    assert values.min() / values.max() > 0.5


@backend
def test_gradient_accumulation_equals_one_large_batch():
    images, targets = examples(24)
    settings = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, "clip_norm": 0.5}
    settings |= {"schedule": "constant", "warmup_epochs": 0}
    large = fit(tiny_model(), TrainConfig(epochs=2, batch_size=12, **settings), images, targets)
    small = fit(tiny_model(), TrainConfig(epochs=2, batch_size=4, accumulate=3, **settings), images, targets)
    start = weights_of(tiny_model())
    moved = max(np.abs(a - b).max() for a, b in zip(start, weights_of(large), strict=True))
    assert moved > 1e-3
    for a, b in zip(weights_of(large), weights_of(small), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=moved / 1000)  # rounding grows from step to step


@backend
def test_clipping_bounds_the_global_norm():
    images, targets = examples(6)
    settings = {"optimizer": "sgd", "learning_rate": 1.0, "weight_decay": 0.0, "beta_1": 0.0, "warmup_epochs": 0}
    config = TrainConfig(epochs=1, batch_size=6, schedule="constant", clip_norm=1e-2, **settings)
    start, end = weights_of(tiny_model()), weights_of(fit(tiny_model(), config, images * 10, targets))
    norm = math.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(start, end, strict=True)))
    assert norm == pytest.approx(1e-2, rel=1e-3)


@pytest.mark.parametrize(("precision", "accumulate"), [pytest.param("float32", 2, marks=backend), ("float16", 1)])
def test_ema_is_the_average_of_the_weights(tmp_path, precision, accumulate):
    decay = 0.35
    run, log = averaged_run(tmp_path, precision, accumulate, ema=decay)
    average = log[0]  # Keras starts the average at the weights after the first update
    for step, weights in enumerate(log[1:], 2):
        updates = (step - 1) // accumulate  # before this step
        momentum = min(decay, (1 + updates) / (10 + updates)) ** (1 / accumulate) if updates else 0.0
        average = [momentum * a + (1 - momentum) * w for a, w in zip(average, weights, strict=True)]
    assert_average(run, log, average)


@pytest.mark.parametrize(("precision", "accumulate"), [("float32", 1), ("float32", 2), pytest.param("float16", 1, marks=backend)])
def test_the_last_weights_are_averaged_uniformly(tmp_path, precision, accumulate):
    """Of nine steps the last 0.45: after five of them."""
    run, log = averaged_run(tmp_path, precision, accumulate, average_last=0.45)
    assert_average(run, log, [np.mean(weights, axis=0) for weights in zip(*log[5:], strict=True)])


def averaged_run(tmp_path, precision, accumulate, **settings):
    """A run of nine steps, and its weights after each."""
    log = WeightLog()
    images, targets = examples(8)
    images = np.round(np.clip(images * 40 + 128, 0, 255)).astype("uint8")
    split = Split(images, targets.argmax(1))
    data = DataSet("made", split, None, split, ["a", "b", "c"], "f", [])
    recipe = Recipe(
        model=ViTConfig(**SMALL, num_classes=3),
        augment=AugmentConfig(flip=False, crop=0),
        train=TrainConfig(
            epochs=9, batch_size=8, accumulate=accumulate, learning_rate=0.05, warmup_epochs=0, precision=precision, **settings
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "StopOnNaN", lambda: log)
        run = train(recipe, tmp_path / "run", data=data, verbose=0, pictures=False)
    return run, log.weights


def assert_average(run, log, average):
    assert len(log) >= 4
    assert max(np.abs(a - w).max() for a, w in zip(average, log[-1], strict=True)) > 1e-3
    for expected, saved in zip(average, weights_of(run.model()), strict=True):
        np.testing.assert_allclose(saved, expected, atol=2 * FLOAT32)


@backend
@pytest.mark.parametrize(
    ("fused", "kind", "settings"),
    [
        (fused_adam, keras.optimizers.Adam, {"beta_2": 0.99, "global_clipnorm": 3.0}),
        (fused_muon, keras.optimizers.Muon, {"adam_beta_2": 0.99, "adam_weight_decay": 0.2, "global_clipnorm": 3.0}),
        (fused_muon, keras.optimizers.Muon, {"nesterov": False, "rms_rate": None, "ns_steps": 3}),
    ],
)
def test_fused_optimizers_are_those_of_keras(fused, kind, settings):
    shapes = {"kernel": (6, 4), "turned": (4, 6), "square": (5, 5), "long": (4, 24), "bias": (4,)}
    values = [random(*shape, seed=index) for index, shape in enumerate(shapes.values())]
    results = []
    for make in (fused(), kind):
        variables = [keras.Variable(value, name=name) for value, name in zip(values, shapes, strict=True)]
        optimizer = make(learning_rate=1e-2, weight_decay=0.1, epsilon=1e-4, **settings)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        optimizer.build(variables)
        for step in range(4):
            gradients = [ops.convert_to_tensor(random(*value.shape, seed=10 + step)) for value in values]
            optimizer.apply(gradients, variables)
        results.append([numpy(variable) for variable in (*variables, *optimizer.variables)])
    assert np.abs(results[0][0] - values[0]).max() > 1e-2
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@backend
def test_long_matrices_are_orthogonalised_as_keras_does_it():
    """Of singular values down to a millionth of the largest, and of zeros: there 3.4445^5 = 485 times the rounding is left."""
    rows, columns = (np.linalg.qr(random(size, 12, seed=size).astype(np.float64))[0] for size in (12, 60))
    for values in (np.logspace(0, -6, 12), [3.0, 2.0, 1.0] + [0.0] * 9):
        x = (rows * values @ columns.T).astype(np.float32)
        optimizer = fused_muon()(learning_rate=1.0)
        ours = numpy(optimizer.zeropower(ops.convert_to_tensor(x[None])))[0]
        theirs = numpy(keras.optimizers.Muon(learning_rate=1.0).zeropower_via_newtonschulz5(ops.convert_to_tensor(x), 5))
        np.testing.assert_allclose(ours, theirs, atol=485 * 1e-6)
        assert np.linalg.norm(ours, 2) > 0.7


@backend
@pytest.mark.parametrize("every", [True, False], ids=["fused", "by itself"])
@pytest.mark.parametrize("shape", [(3, 3, 2, 5), (3, 3, 1, 16)], ids=["tall", "wide"])
def test_muon_takes_a_convolution_as_a_matrix(monkeypatch, shape, every):
    """As Keras's Muon takes a matrix (height · width · inputs, outputs) of the same values."""
    if not every:
        monkeypatch.setattr("keras_vit.training.fused.available", lambda kind: False)
        fused_muon.cache_clear()
    flat, results = (math.prod(shape[:-1]), shape[-1]), []
    try:
        for kind, size in ((fused_muon(), shape), (keras.optimizers.Muon, flat)):
            variable = keras.Variable(random(*shape, seed=1).reshape(size), name="kernel")
            optimizer = kind(learning_rate=1e-2, weight_decay=0.1)
            optimizer.build([variable])
            for step in range(3):
                optimizer.apply([ops.convert_to_tensor(random(*shape, seed=10 + step).reshape(size))], [variable])
            results.append(numpy(variable).reshape(flat))
    finally:
        fused_muon.cache_clear()
    assert np.abs(results[0] - random(*shape, seed=1).reshape(flat)).max() > 1e-2
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)
