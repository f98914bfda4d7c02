"""Exports without a process of their own, for tests of what is made of their logits."""

import sys

import pytest


@pytest.fixture
def runtime_here(monkeypatch):
    """`keras-vit predict` and the verification of an export compute its logits in this process."""
    from keras_vit.export import classifier, verify
    from keras_vit.export.runtimes import Worker

    class Here(Worker):
        def __init__(self, format, folder):
            super().__init__(format, folder, threads=1)
            self.description = {"keras": True, "facts": {}}

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def predict(self, images, folder):
            return self.run(images)

    for user in (classifier, verify):
        monkeypatch.setattr(user, "Runtime", Here)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the loader adds to it
