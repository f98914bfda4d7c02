"""Losses and class weights: against NumPy, with their gradients, on every backend; and a training with each."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers import SMALL, made, numpy, random
from scipy.special import expit, log_softmax, softmax

from keras_vit.data.augment import AugmentConfig
from keras_vit.data.batches import balanced_order
from keras_vit.data.dataset import DataSet, Split
from keras_vit.model.config import ViTConfig
from keras_vit.recipes.schema import Recipe, TrainConfig
from keras_vit.training.loop import train
from keras_vit.training.losses import ClassLoss, class_weights, make_loss

WEIGHTS = np.array([0.5, 3.0, 1.0, 0.0])
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}


def soft_targets(multi):
    """One label an image, smoothed; or any number of labels, mixed."""
    rng = np.random.default_rng(1)
    if multi:
        return rng.integers(2, size=(9, 4)) * 0.7 + rng.integers(2, size=(9, 4)) * 0.3
    return np.eye(4)[rng.integers(4, size=9)] * 0.9 + 0.025


def by_hand(logits, targets, binary, gamma, weights):
    if not binary:
        p = softmax(logits, axis=1)
        return -(weights * targets * (1 - p) ** gamma * log_softmax(logits, axis=1)).sum(axis=1)
    p = expit(logits)
    return -(weights * targets * (1 - p) ** gamma * np.log(p) + (1 - targets) * p**gamma * np.log(1 - p)).mean(axis=1)


def gradient_of(loss, targets, logits):
    """The gradient of the mean loss with respect to the logits, by the backend."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        variable = tf.Variable(logits)
        with tf.GradientTape() as tape:
            value = loss(targets, variable)
        return tape.gradient(value, variable).numpy()
    if keras.backend.backend() == "jax":
        import jax

        return np.asarray(jax.grad(lambda z: loss(targets, z))(logits))
    import torch

    variable = torch.tensor(logits, requires_grad=True)
    loss(targets, variable).backward()
    return variable.grad.numpy()


def numeric_gradient(function, logits, step=1e-5):
    slopes = np.zeros_like(logits)
    for place in np.ndindex(logits.shape):
        moved = np.zeros_like(logits)
        moved[place] = step
        slopes[place] = (function(logits + moved) - function(logits - moved)) / (2 * step)
    return slopes


@pytest.mark.backend
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
@pytest.mark.parametrize(
    ("labels", "kind", "gamma"),
    [
        ("single", "cross_entropy", 0),
        *(
            (labels, *loss)
            for labels in ("single", "multi")
            for loss in (("binary_cross_entropy", 0), ("focal", 2.0), ("focal", 0.5))
        ),
    ],
)
def test_losses_and_their_gradients(labels, kind, gamma, weights):
    recipe = Recipe(labels=labels, train=TrainConfig(loss=kind, focal_gamma=gamma or 2.0))
    loss = make_loss(recipe, weights)
    targets, logits = soft_targets(labels == "multi"), 3 * random(9, 4).astype("float64")
    binary, factors = labels == "multi" or kind == "binary_cross_entropy", np.ones(4) if weights is None else weights
    values = loss.call(keras.ops.convert_to_tensor(targets, "float32"), keras.ops.convert_to_tensor(logits, "float32"))
    np.testing.assert_allclose(numpy(values), by_hand(logits, targets, binary, gamma, factors), **TOLERANCE)
    found = gradient_of(loss, targets.astype("float32"), logits.astype("float32"))
    expected = numeric_gradient(lambda z: by_hand(z, targets, binary, gamma, factors).mean(), logits)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.backend
@pytest.mark.parametrize("binary", [False, True])
def test_large_logits_have_finite_losses_and_gradients(binary):
    targets, logits = np.eye(3, dtype="float32"), 200 * (np.eye(3, dtype="float32")[::-1] - 0.5)
    for gamma in (0.0, 0.5, 2.0):
        loss = ClassLoss(binary, gamma)
        for given in (logits, -logits):
            assert np.isfinite(float(numpy(loss(targets, given))))
            assert np.isfinite(gradient_of(loss, targets, given)).all()


def recipe_of(**settings):
    settings = {"epochs": 2, "batch_size": 8, "warmup_epochs": 0, "learning_rate": 1e-2, **settings}
    plain = AugmentConfig(flip=False, crop=0)  # a mirrored image would be of another class
    return Recipe(model=ViTConfig(**SMALL), augment=plain, train=TrainConfig(**settings))


def single_labels(count=88):
    return np.random.default_rng(1).choice(3, size=count, p=[0.6, 0.3, 0.1])


def multi_labels(count=88):
    return np.random.default_rng(2).integers(2, size=(count, 3)).astype(np.int8)


def test_class_weights():
    x, labels = np.zeros((12, 8, 8, 1), np.uint8), np.array([0] * 6 + [1] * 4 + [2] * 2)
    data = DataSet("made", Split(x, labels), None, None, ["a", "b", "c"], "f", [])
    assert class_weights("none", data) is None
    np.testing.assert_allclose(class_weights("balanced", data), [12 / 3 / 6, 1, 2])
    assert class_weights({"b": 3}, data).tolist() == [1, 3, 1]
    with pytest.raises(ValueError, match=r"^class_weights: received 'd'; allowed: a, b, c$"):
        class_weights({"d": 1}, data)
    several = dataclasses.replace(data, train=Split(x, np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1]] * 4)))
    np.testing.assert_allclose(class_weights("balanced", several), [20 / 3 / 12, 20 / 3 / 4, 20 / 3 / 4])


@pytest.mark.backend
def test_weights_reach_the_loss_of_a_training_but_not_of_its_validation(tmp_path):
    """The head starts at zero: before it learns, each image costs log 3 times the weight of its class."""
    data, settings = made(single_labels()), {"epochs": 1, "learning_rate": 1e-12, "class_weights": {"b": 0, "c": 5}}
    run = train(recipe_of(**settings), tmp_path / "run", data=data, verbose=0, pictures=False)
    weights = np.array([1, 0, 5])[data.train.labels]
    assert run.metrics[0]["loss"] == pytest.approx(np.log(3) * weights.mean(), rel=1e-5)
    assert run.metrics[0]["val_loss"] == pytest.approx(np.log(3), rel=1e-5)
    assert run.summary["test_loss"] == pytest.approx(np.log(3), rel=1e-5)


def test_balanced_sampling_reaches_the_training(tmp_path):
    data, settings = made(single_labels()), {"epochs": 1, "learning_rate": 1e-12, "class_weights": {"b": 2, "c": 7}}
    run = train(recipe_of(**settings, sampling="balanced"), tmp_path / "run", data=data, verbose=0, pictures=False)
    drawn = data.train.labels[balanced_order(data.train.members, len(data.train), 0, 0)]
    assert sorted(np.bincount(drawn)) == [21, 21, 22]
    assert run.metrics[0]["loss"] == pytest.approx(np.log(3) * np.array([1, 2, 7])[drawn].mean(), rel=1e-5)
    resumed = train(run.recipe, run.path, resume=True, data=data, verbose=0)
    assert resumed.recipe == run.recipe


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "focal"])
def test_one_label_an_image_is_learned_with_every_loss(tmp_path, loss):
    run = train(
        recipe_of(epochs=16, loss=loss, learning_rate=2e-2), tmp_path / "run", data=made(single_labels()), verbose=0, pictures=False
    )
    assert run.recipe.train.loss == loss
    assert run.summary["test_accuracy"] == 1
    assert run.summary["test_balanced_accuracy"] == 1


def test_several_labels_an_image_are_learned(tmp_path):
    data = made(multi_labels())
    run = train(recipe_of(epochs=12, class_weights="balanced"), tmp_path / "run", data=data, verbose=0, pictures=False)
    assert (run.recipe.labels, run.recipe.train.loss, run.recipe.train.monitor) == ("multi", "binary_cross_entropy", "map")
    rows, summary = run.metrics, run.summary
    best = max(rows, key=lambda row: (row["val_map"], -row["val_loss"]))
    assert (summary["best_epoch"], summary["val_map"]) == (best["epoch"], best["val_map"])
    assert "accuracy" not in rows[0]
    assert summary["multi_label"]
    assert summary["test_map"] > 0.95
    assert set(summary["test_classes"]["b"]) == {"average_precision", "recall", "f1"}
    logits = run.model().predict((data.test.images(np.arange(12)) / 255 - 0.5) / 0.5, verbose=0).astype(float)
    p, t = expit(logits), data.test.labels
    assert summary["test_loss"] == pytest.approx(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(), rel=1e-4)


def test_the_monitor_decides_the_best_epoch(tmp_path):
    run = train(recipe_of(epochs=3, monitor="recall:c"), tmp_path / "run", data=made(single_labels()), verbose=0, pictures=False)
    best = max(run.metrics, key=lambda row: (row["val_recall:c"], -row["val_loss"]))
    assert (run.summary["best_epoch"], run.summary["val_recall:c"]) == (best["epoch"], best["val_recall:c"])
    assert run.summary["test_recall:c"] == run.summary["test_classes"]["c"]["recall"]
    recalls = [row["recall"] for row in run.summary["test_classes"].values() if row["recall"] is not None]
    assert run.summary["test_balanced_accuracy"] == pytest.approx(np.mean(recalls))


def test_settings_that_do_not_fit_the_labels():
    single, several = made(single_labels()), made(multi_labels())
    for settings, data, message in (
        ({"loss": "cross_entropy"}, several, "^loss: received 'cross_entropy'; allowed with several labels an image: binary_cross"),
        (
            {"monitor": "map"},
            single,
            "^monitor: received 'map'; allowed with one label an image: accuracy, balanced_accuracy, loss, r",
        ),
        (
            {"monitor": "accuracy"},
            several,
            "^monitor: received 'accuracy'; allowed with several labels an image: map, f1, loss, recall",
        ),
        ({"monitor": "recall:d"}, single, r"^monitor: received 'recall:d' .*; allowed: recall:a, recall:b, recall:c$"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe_of(**settings).for_data(data)
    with pytest.raises(ValueError, match=r"^class_weights: received 'balanced'; allowed: none with sampling=balanced"):
        TrainConfig(sampling="balanced", class_weights="balanced")
