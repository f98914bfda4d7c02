"""Run folders of made numbers: most tests here train nothing."""

import functools

import pytest
from made import write_run

from keras_vit.runs import plots


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Pictures of few pixels, to be quick."""
    monkeypatch.setattr(plots, "DPI", 40)


@pytest.fixture
def make_run(tmp_path):
    """Writes a run folder without a model; the settings are those of `train`."""
    return functools.partial(write_run, tmp_path)
