"""A .npz file as a data set: what is made to fill the memory, or holds other than numbers."""

import tracemalloc

import numpy as np
import pytest
from helpers import one_line_error, random_pixels

from keras_vit.data import labels
from keras_vit.data.augment import AugmentConfig
from keras_vit.data.batches import training_batch
from keras_vit.data.dataset import load_data


def save(path, **arrays):
    np.savez(path, **arrays)
    return f"arrays:{path}"


def test_numbers_of_classes_cost_nothing_where_no_image_has_them(tmp_path):
    """200 images with labels up to 49,999: each number in y_train is a class, and no other number takes memory."""
    x, y = random_pixels(200, 4, 4), np.tile(np.arange(20), 10) * 2631
    assert y.max() == 49_989
    tracemalloc.start()
    data = load_data(save(tmp_path / "a.npz", x_train=x, y_train=y), image_size=4, channels=1, validation=0)
    _, targets = training_batch(data.train, AugmentConfig(crop=0), 0, num_classes=len(data.class_names), batch_size=64, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert data.class_names == [str(2631 * label) for label in range(20)]
    assert targets.shape == (64, 20)
    assert peak < 5e6
    hot = np.zeros((200, 50_000), np.int8)
    hot[np.arange(200), y] = 1
    with one_line_error("^y_train: received no image of class 1, of 50,000; allowed: one or more of each"):
        load_data(save(tmp_path / "b.npz", x_train=x, y_train=hot), image_size=4, channels=1)
    with one_line_error("^y_train: received int64 of shape .*; allowed: whole numbers .N,. from 0 to 1048575"):
        load_data(save(tmp_path / "c.npz", x_train=x, y_train=y * 100), image_size=4, channels=1)


def test_what_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "memory_limit", lambda: 10**6)
    x, y = random_pixels(200, 4, 4), np.arange(200)
    name = save(tmp_path / "a.npz", x_train=x, y_train=y)
    with one_line_error("^x_train: received 200 images, in 224x224x1 of 10,035,200 bytes; allowed: a third of the free memory"):
        load_data(name, image_size=224, channels=1)
    monkeypatch.setattr(labels, "memory_limit", lambda: 20_000)
    with one_line_error("^labels: received 'multi', for 200 images of 200 classes, of 40,000 bytes; allowed"):
        load_data(name, image_size=4, channels=1, labels="multi")


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ({"y_train": np.array([{}] * 40, dtype=object)}, "'y_train.npy' holds Python objects, which are never read"),
        ({"x_train": np.zeros(40, [("a", "u1")])}, "'x_train.npy': received dtype.*; allowed: numbers"),
        ({"y_train": np.array(["a"] * 40)}, "'y_train.npy': received dtype.*; allowed: numbers"),
    ],
)
def test_arrays_of_other_than_numbers(tmp_path, member, message):
    name = save(tmp_path / "a.npz", **{"x_train": random_pixels(40, 6, 7), "y_train": np.arange(40) % 4, **member})
    with one_line_error(rf"^data: received 'arrays:.*a.npz', which cannot be read \({message}\); allowed: a .npz file of numbers"):
        load_data(name, image_size=8)
