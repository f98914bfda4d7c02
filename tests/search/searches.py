"""Searches whose trials train nothing: for the tests of tuner, chief and command."""

import functools
import sys
from pathlib import Path

from keras_vit.recipes.parse import load_recipe
from keras_vit.search.axes import SpaceConfig
from keras_vit.search.oracle import RandomOracle
from keras_vit.search.space import Space
from keras_vit.search.tuner import TrialSettings, TrialTuner

# Without the site packages, which the trial does not need, it starts in a third of the time.
FAKE = [sys.executable, "-I", "-S", str(Path(__file__).with_name("fake_trial.py"))]


@functools.cache
def space(recipe="quick"):
    """Every axis at its default. A second to count its shapes: made once."""
    return Space(SpaceConfig(), load_recipe(recipe))


def make(folder, trials=10, seed=0, oracle=None, start=True, **settings):
    oracle = oracle(space(), seed) if oracle else RandomOracle(space(), seed=seed, max_trials=trials)
    settings = TrialSettings(**{"budget": {"kind": "epochs", "amount": 3}, "time_limit": 30, "stall_limit": 20, **settings})
    return TrialTuner(oracle, settings, folder, command=FAKE) if start else (oracle, settings)


def outcome(oracle):
    """What a search has found, without times."""
    return [(name, oracle.trials[name].hyperparameters.values, oracle.trials[name].score) for name in oracle.start_order]


def epochs(trial_folder):
    """The epochs that a trial has gone through, in order."""
    rows = (trial_folder / "run" / "metrics.csv").read_text().splitlines()
    return [int(row.split(",")[0]) for row in rows[1:]]
