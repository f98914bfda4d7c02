"""What is hidden of an image: random and repeatable, out of the model's sight, and the target of a pre-training."""

import importlib.util

import numpy as np
import pytest

from keras_vit.data.augment import AugmentConfig
from keras_vit.data.batches import evaluation_batches, training_batches
from keras_vit.data.dataset import Split
from keras_vit.data.masking import Masking, to_images, to_patches
from keras_vit.data.seeds import MASK
from keras_vit.images import normalize

PIPELINES = ["PyDataset"] + ["tf.data"] * (importlib.util.find_spec("tensorflow") is not None)
OFF = AugmentConfig(flip=False, crop=0)
MEAN, STD = 0.4, 0.3
MASKING = Masking((3, 2), 0.75)  # 3 x 6 patches of 9 x 12 pixels; round(18 / 4) = 4 of them are seen
FLOAT32 = 1e-5  # of values near 1


def made_split(count=26, seed=0):
    return Split(np.random.default_rng(seed).integers(256, size=(count, 9, 12, 3), dtype=np.uint8), np.zeros(count, int))


def stream(split, masking=MASKING, **changes):
    settings = {"num_classes": 0, "batch_size": 8, "seed": 5, "mean": MEAN, "std": STD, "masking": masking}
    return training_batches(split, OFF, **settings | changes)


def first(batches, count):
    found = []
    for ((images, orders), targets), _ in zip(batches, range(count), strict=False):
        found.append([np.asarray(each) for each in (images, orders, targets)])
    return found


def test_patches_and_back():
    images = np.random.default_rng(0).normal(size=(2, 9, 12, 3)).astype("float32")
    patches = to_patches(images, (3, 2))
    np.testing.assert_array_equal(patches[1, 7], images[1, 3:6, 2:4].ravel())  # the second row's second patch
    np.testing.assert_array_equal(to_images(patches, (9, 12), (3, 2)), images)


def test_orders():
    orders = MASKING.orders(1000, (9, 12), MASK, 3, 7)
    assert orders.dtype == np.int32
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(18), (1000, 1)))
    seen = np.bincount(orders[:, :4].ravel(), minlength=18)
    assert seen.min() > 170 and seen.max() < 275  # of 222 expected, with a deviation of 13  # noqa: PT018
    np.testing.assert_array_equal(orders, MASKING.orders(1000, (9, 12), MASK, 3, 7))
    for other in (MASKING.orders(1000, (9, 12), MASK, 3, 8), MASKING.orders(1000, (9, 12), MASK, 4, 7)):
        assert (orders == other).mean() < 0.1  # 1/18 by chance


@pytest.mark.parametrize("normal", [True, False])
def test_what_is_hidden_is_the_target_alone(normal):
    """Patch by patch; and other pixels there leave the input as it is."""
    masking = Masking((3, 2), 0.75, normal)
    images = np.random.default_rng(0).normal(size=(2, 9, 12, 3)).astype("float32")
    orders = masking.orders(2, (9, 12), MASK, 0, 0)
    (given, same), targets = masking.apply(images, orders)
    assert targets.shape == (2, 14, 18)
    np.testing.assert_array_equal(same, orders)
    other = np.array(images)
    for row in range(2):
        for place, patch in enumerate(orders[row]):
            top, left = 3 * (patch // 6), 2 * (patch % 6)
            pixels = images[row, top : top + 3, left : left + 2]
            if place < 4:
                np.testing.assert_array_equal(given[row, top : top + 3, left : left + 2], pixels)
                continue
            assert not given[row, top : top + 3, left : left + 2].any()
            expected = (pixels - pixels.mean()) / np.sqrt(pixels.var() + 1e-6) if normal else pixels
            np.testing.assert_allclose(targets[row, place - 4], expected.ravel(), atol=FLOAT32)
            other[row, top : top + 3, left : left + 2] += 1 + pixels**2
    np.testing.assert_array_equal(masking.apply(other, orders)[0][0], given)
    assert abs(masking.apply(other, orders)[1] - targets).max() > 0.1
    np.testing.assert_allclose(masking.paint(images, orders, targets), images, atol=FLOAT32)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_streams(pipeline):
    """Each step hides other patches of its images; a stream that begins later goes on alike; parts are those of the whole."""
    split = made_split()
    batches = first(stream(split, pipeline=pipeline), 5)
    assert [part.shape for part in batches[0]] == [(8, 9, 12, 3), (8, 18), (8, 14, 18)]
    assert (batches[0][1] != batches[1][1]).any()
    for one, other in zip(batches[3:], first(stream(split, start_step=3, pipeline=pipeline), 2), strict=True):
        for ours, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    halves = [first(stream(split, part=(index, 2), pipeline=pipeline), 1)[0] for index in range(2)]
    for whole, pieces in zip(batches[0], zip(*halves, strict=True), strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(pieces))


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_validation_hides_the_same_whatever_the_batches(pipeline):
    split, settings = made_split(), {"num_classes": 0, "mean": MEAN, "std": STD, "masking": MASKING, "pipeline": pipeline}
    found = [first(evaluation_batches(split, batch_size=size, seed=5, **settings), 99) for size in (26, 8, 8)]
    whole, *parts = [[np.concatenate(each) for each in zip(*batches, strict=True)] for batches in found]
    for part in parts:
        for ours, theirs in zip(part, whole, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    images = normalize(split.images(np.arange(26)), MEAN, STD)
    seen = to_patches(whole[0], (3, 2))[0, whole[1][0, :4]]
    np.testing.assert_array_equal(seen, to_patches(images, (3, 2))[0, whole[1][0, :4]])
    tail = first(evaluation_batches(split.take(np.arange(20, 26)), batch_size=6, seed=5, places=np.arange(20, 26), **settings), 1)[
        0
    ]
    for ours, theirs in zip(tail, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs[20:])
    other = first(evaluation_batches(split, batch_size=26, seed=6, **settings), 1)[0]
    assert (other[1] != whole[1]).any()
