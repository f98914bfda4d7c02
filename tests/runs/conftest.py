"""Exports without a process of their own, for tests of what is made of their logits."""

import sys

import pytest

from keras_vit.export import classifier
from keras_vit.export.runtimes import Worker


@pytest.fixture
def runtime_here(monkeypatch):
    """`keras-vit predict` computes an export's logits in this process."""

    class Here(Worker):
        def __init__(self, format, folder):
            super().__init__(format, folder, threads=1)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def predict(self, images, folder):
            return self.run(images)

    monkeypatch.setattr(classifier, "Runtime", Here)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the loader adds to it
