"""The private names of JAX, tested against the JAX that is installed. With a newer one: `pytest -m private`."""

import importlib

import pytest

from keras_vit.private import jax as private

pytestmark = pytest.mark.private


def test_a_process_that_has_left_its_cluster_holds_nothing_of_it(monkeypatch):
    state = importlib.import_module(private.STATE_MODULE).global_state
    for name in private.PARTS:
        monkeypatch.setattr(state, name, name)  # fails if the name is gone
    monkeypatch.setattr(private, "KEPT", [])
    private.leave_cluster()
    assert [getattr(state, name) for name in private.PARTS] == [None] * 3
    assert list(private.PARTS) == private.KEPT


def test_whether_there_are_devices_is_known():
    assert isinstance(importlib.import_module(private.BRIDGE_MODULE).backends_are_initialized(), bool)
    assert isinstance(private.has_backend(), bool)
