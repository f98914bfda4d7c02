"""Trainings without pictures, for tests of what a command trains."""

import pytest


@pytest.fixture
def no_pictures(monkeypatch):
    """Neither pictures nor a report are made in this process."""
    from keras_vit.runs import plots
    from keras_vit.training.session import Session

    for owner, name in ((plots, "batch_picture"), (plots, "curves"), (Session, "write_report")):
        monkeypatch.setattr(owner, name, lambda *arguments: None)
