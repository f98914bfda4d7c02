"""Deletion and insertion against areas that are known, and a model whose weights are shuffled."""

import numpy as np
import pytest
from helpers import logits, make_model, one_line_error, random

from keras_vit.explain import faithfulness as faithful
from keras_vit.explain.attribution import legrad
from keras_vit.explain.faithfulness import faithfulness, likeness, of_random_orders, shuffled_model

TOLERANCE = 1e-6
SHARP = 200.0  # logits so far apart that a probability is 0 or 1


@pytest.fixture
def one_patch(monkeypatch):
    """A model of 2 x 3 patches that answers 1 as long as it sees the patch in row 1, column 2, otherwise 0."""

    def answer(model, images):
        seen = images[:, 6:, 12:].sum(axis=(1, 2, 3)) > 0
        return np.eye(7)[seen.astype(int)] * SHARP

    monkeypatch.setattr(faithful, "logits", answer)
    return make_model("clip")


def ranked(first):
    """A map (1, 2, 3) on which the patch that counts is the `first`-th one."""
    values = np.delete(np.arange(6.0, 0, -1), first)
    values = np.append(values, 6.0 - first)
    return values.reshape(1, 2, 3)


@pytest.mark.parametrize("first", range(6))
def test_areas_of_a_model_that_sees_one_patch(one_patch, first):
    """The curve drops, or rises, between `first` and `first` + 1 of 6 patches; the trapezoid there is half of a sixth."""
    result = faithfulness(one_patch, np.ones((1, 12, 18, 3), np.float32), ranked(first), 1)
    np.testing.assert_allclose(result.deletion, [(first + 0.5) / 6], atol=TOLERANCE)
    np.testing.assert_allclose(result.insertion, [1 - (first + 0.5) / 6], atol=TOLERANCE)


def test_fewer_steps_take_several_patches_at_a_time(one_patch):
    """Of 2 steps, the first one takes the patches 0 to 2."""
    result = faithfulness(one_patch, np.ones((1, 12, 18, 3), np.float32), ranked(4), 1, steps=2)
    np.testing.assert_allclose(result.deletion, [0.75], atol=TOLERANCE)


def test_random_orders_are_half_way(one_patch):
    result = of_random_orders(one_patch, np.ones((400, 12, 18, 3), np.float32), 1)
    assert abs(result.deletion.mean() - 0.5) < 0.02  # 1,600 orders: a standard deviation of 0.007
    assert abs(result.insertion.mean() - 0.5) < 0.02


def test_removed_patches_are_the_mean_image():
    model = make_model("conv")  # the channels first
    images, maps = random(2, 3, 16, 24), random(2, 4, 6)
    result = faithfulness(model, images, maps, 2, steps=1)
    values = logits(model, np.concatenate([images, np.zeros_like(images)])).astype(np.float64)
    probability = (np.exp(values) / np.exp(values).sum(axis=1, keepdims=True))[:, 2]
    np.testing.assert_allclose(result.deletion, (probability[:2] + probability[2:]) / 2, atol=1e-5)
    np.testing.assert_allclose(result.insertion, result.deletion, atol=1e-5)


def test_a_shuffled_model_has_the_same_values_in_other_places():
    model = make_model("gap")
    copy = shuffled_model(model)
    for ours, theirs in zip(model.get_weights(), copy.get_weights(), strict=True):
        np.testing.assert_array_equal(np.sort(ours.ravel()), np.sort(theirs.ravel()))
    images = random(3, *model.input.shape[1:])
    assert abs(logits(model, images) - logits(copy, images)).max() > 0.01
    assert likeness(legrad(model, images, 1), legrad(copy, images, 1)).max() < 0.9


def test_likeness_is_a_rank_correlation():
    maps = np.array([[[1.0, 2.0], [3.0, 4.0]]] * 3)
    others = np.array([[[1.0, 4.0], [9.0, 16.0]], [[4.0, 3.0], [2.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]])
    np.testing.assert_allclose(likeness(maps, others), [1, -1, np.nan], atol=TOLERANCE)


def test_maps_of_another_grid_are_refused():
    model = make_model("gap")
    with one_line_error(r"maps: received shape \(2, 3, 4\); allowed: \(2, 4, 3\)"):
        faithfulness(model, random(2, 12, 18, 3), random(2, 3, 4))
