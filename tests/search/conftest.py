"""Searches of trials that take no time need not wait for them either."""

import pytest

from keras_vit.search import distribute, tuner


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(tuner, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(tuner, "ASK_SECONDS", 0.05)
    monkeypatch.setattr(distribute, "FAREWELL_SECONDS", 2.0)
