"""One seed for every test, and one thread for each of the processes that share the cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's threads would wait for those of the other test process

import keras
import pytest

from keras_vit.data import checked


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """What is known of checked files is not kept in the user's home."""
    monkeypatch.setattr(checked, "CHECKED", tmp_path_factory.getbasetemp() / "checked")
