"""Conversions without a process of their own, for tests that judge the artifact and not who writes it."""

import warnings

import keras
import pytest

from keras_vit.export import export
from keras_vit.export.writers import write


@pytest.fixture
def in_process(monkeypatch):
    """The backend of this process writes, in this process."""
    monkeypatch.setattr(export, "choose_writer", lambda format: keras.backend.backend())

    def run_python(arguments, backend, **settings):
        with warnings.catch_warnings():  # as in a process of its own, those of the writers are no errors
            warnings.simplefilter("ignore")
            write(arguments[-1])

    monkeypatch.setattr(export, "run_python", run_python)
