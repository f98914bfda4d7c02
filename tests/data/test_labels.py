"""Labels: targets, the choice of images for a part, and balanced batches."""

import numpy as np
import pytest
from helpers import augmented

from keras_vit.data.augment import AugmentConfig
from keras_vit.data.batches import balanced_order, evaluation_batches, training_batch
from keras_vit.data.dataset import Split, carve, load_data
from keras_vit.data.labels import choose_multi, members_of, multi_hot, targets_of

PLAIN = AugmentConfig(flip=False, crop=0)


def drawn(split, steps, **settings):
    """The images of some steps, by their first pixel, and their targets."""
    settings = {"num_classes": 3, "batch_size": 8, "seed": 1, **settings}
    batches = [training_batch(split, PLAIN, step, **settings) for step in steps]
    return np.concatenate([images[:, 0, 0, 0] for images, _ in batches]), np.concatenate([targets for _, targets in batches])


def numbered(labels):
    return Split(np.arange(len(labels), dtype=np.uint8)[:, None, None, None].repeat(2, axis=1), labels)


def test_targets_are_smoothed():
    np.testing.assert_allclose(targets_of(np.array([2, 0]), 3, 0.3), [[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]], rtol=1e-6)
    several = np.array([[1, 0, 1], [0, 0, 0]], np.int8)
    np.testing.assert_allclose(targets_of(several, 3, 0.3), [[0.85, 0.15, 0.85], [0.15, 0.15, 0.15]], rtol=1e-6)
    assert multi_hot(np.array([1, -1]), 2).tolist() == [[0, 1], [-1, -1]]


def test_mixing_mixes_several_labels():
    labels = np.random.default_rng(0).integers(2, size=(16, 3)).astype(np.int8)
    images = np.full((16, 4, 4, 1), 128, np.uint8)
    _, targets = augmented(images, labels, AugmentConfig(crop=0, mixup=1.0), 3, 3)
    mixed = np.flatnonzero((targets != labels).any(axis=1))
    assert len(mixed) > 8
    for row in mixed:  # between its own labels and a partner's, with one weight
        fits = []
        for partner in labels:
            differs = labels[row] != partner
            weights = np.abs(targets[row] - partner)[differs]
            fits.append(differs.any() and np.ptp(weights) < 1e-6 and np.allclose(targets[row][~differs], partner[~differs]))
        assert any(fits)


def test_a_choice_of_several_labels_keeps_their_shares():
    rng = np.random.default_rng(0)
    labels = (rng.random((1000, 6)) < [0.5, 0.3, 0.2, 0.1, 0.05, 0.02]).astype(np.int8)
    for count in (50, 200, 500):
        chosen = choose_multi(labels, count, np.random.default_rng(1))
        assert chosen.sum() == count
        np.testing.assert_allclose(labels[chosen].sum(axis=0), labels.sum(axis=0) * count / 1000, atol=1.6)
    one_each = np.eye(5, dtype=np.int8)
    assert not choose_multi(one_each, 2, rng).any()  # each image is the last of its class
    with pytest.raises(
        ValueError, match=r"^validation: received 2 of 5 images; allowed: at most 0, so that each of 5 classes keeps one$"
    ):
        carve(numbered(one_each), 2, "validation", 0)


@pytest.mark.parametrize("several", [False, True])
def test_balanced_batches(several):
    labels = np.array([0] * 70 + [1] * 25 + [2] * 5)
    split = numbered(multi_hot(labels, 3) if several else labels)
    places, targets = drawn(split, range(12), sampling="balanced")  # an epoch: 96 of 100
    np.testing.assert_allclose(targets.sum(axis=0), 100 / 3, atol=4.4)
    np.testing.assert_array_equal(targets.argmax(axis=1), labels[places])
    epoch = balanced_order(split.members, 100, 1, 0)
    assert sorted(np.bincount(labels[epoch]).tolist()) == [33, 33, 34]
    counts = np.bincount(epoch, minlength=100)
    assert counts[:70].max() == 1
    assert set(counts[70:95]) == {1, 2}
    assert set(counts[95:]) <= {6, 7}
    alone, _ = drawn(split, [7], sampling="balanced")  # a pure function of the step
    np.testing.assert_array_equal(alone, places[56:64])
    assert not np.array_equal(drawn(split, range(12, 24), sampling="balanced")[0], places)
    assert not np.array_equal(drawn(split, range(12), sampling="balanced", seed=2)[0], places)


def test_images_without_labels_are_drawn_as_a_class():
    labels = np.zeros((40, 2), np.int8)
    labels[:4, 0], labels[2:8, 1] = 1, 1
    assert [len(rows) for rows in members_of(labels).rows] == [4, 6, 32]
    epoch = balanced_order(members_of(labels), 300, 0, 0)
    assert (~labels[epoch].any(axis=1)).sum() == 100


@pytest.mark.backend
def test_evaluation_batches_of_several_labels():
    labels = np.random.default_rng(0).integers(2, size=(10, 3)).astype(np.int8)
    batches = evaluation_batches(numbered(labels), num_classes=3, batch_size=4, mean=0.0, std=1.0, pipeline="PyDataset")
    found = [batches[index] for index in range(3)]
    np.testing.assert_array_equal(np.concatenate([np.asarray(targets) for _, targets in found]), labels)


def test_arrays_of_several_labels(tmp_path):
    x, y = (
        np.random.default_rng(0).integers(256, size=(50, 6, 5), dtype=np.uint8),
        np.random.default_rng(1).integers(2, size=(50, 4)),
    )
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:9], y_test=y[:9])
    data = load_data(f"arrays:{tmp_path / 'a.npz'}", image_size=(6, 5), channels=1, validation=8)
    assert (data.multi_label, data.class_names) == (True, ["0", "1", "2", "3"])
    np.testing.assert_array_equal(data.test.labels, y[:9])
    assert (len(data.train), len(data.validation)) == (42, 8)
    with pytest.raises(ValueError, match=r"^labels: received 'single'; allowed: multi or auto, for the labels \(N, K\) of arrays:"):
        load_data(f"arrays:{tmp_path / 'a.npz'}", image_size=6, labels="single")
    np.savez(tmp_path / "b.npz", x_train=x, y_train=2 * y)
    with pytest.raises(
        ValueError, match=r"^y_train: received int64 of shape \(50, 4\); allowed: whole numbers \(N,\), or 0 and 1 "
    ):
        load_data(f"arrays:{tmp_path / 'b.npz'}", image_size=6)
    np.savez(tmp_path / "c.npz", x_train=x, y_train=y, x_test=x, y_test=y[:, 0])
    with pytest.raises(ValueError, match=r"^y_test: received shape \(50,\); allowed: \('N', 4\), as y_train$"):
        load_data(f"arrays:{tmp_path / 'c.npz'}", image_size=6)
