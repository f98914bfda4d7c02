"""What to try next: KerasTuner's oracles, made to survive.

What is shared by all: every proposal is a function of the seed, the number of the trial and the results so far, so that
a search that was killed goes on to what it would have found; proposals are legal and new; a failed trial is a bad score;
the state is one file, written in one step, whose predecessor is kept.
"""

import contextlib
import hashlib
import json
import math
import os
import threading
import time
import warnings
from pathlib import Path

import keras_tuner
import numpy as np
from keras_tuner.src.engine import oracle as oracle_module
from keras_tuner.src.engine import trial as trial_module

from keras_vit.files import write_text
from keras_vit.search.pareto import non_dominated

FAILED = "failed"  # a metric: 1 where a trial has no result
WORST = 0.0  # accuracy of a failed trial
CANDIDATES, NEIGHBOURS = 2000, 500  # what the Gaussian process chooses from
DRAWS = 128  # of each candidate's objectives, for the expectation of their norm
AHEAD = 0.25  # how much better that point is in each objective, of the front's range
RHO = 0.05  # of ParEGO's augmented Chebyshev norm (Knowles 2006)


class SearchOracle:
    """What every oracle here does; stands in front of one of KerasTuner's in the list of bases.

    Args:
        space: The `Space`.
        seed: Decides all proposals; 0 counts.
        objectives: Names of metrics with their directions, {"val_accuracy": "max", "latency_ms": "min"}; the first one is
            KerasTuner's objective.
        first: The configuration to begin with, if it is legal; None = one that the oracle chooses.
        **settings: Arguments of KerasTuner's oracle.
    """

    def __init__(self, space, seed=0, objectives=None, first=None, **settings):
        self.space, self.first = space, first
        self.objectives = objectives or {"val_accuracy": "max"}
        name, direction = next(iter(self.objectives.items()))
        super().__init__(
            objective=keras_tuner.Objective(name, direction),
            hyperparameters=space.hyperparameters.copy(),
            allow_new_entries=True,
            tune_new_entries=True,
            seed=seed,
            **settings,
        )
        self.seed = self._seed_state = seed  # KerasTuner takes 0 for none
        self.verbose = 0
        self.max_seconds, self.trial_seconds = None, 0.0  # of the search, and what a trial is expected to take
        self.lock = threading.RLock()
        self.started, self.earlier_seconds = time.monotonic(), 0.0

    @property
    def seconds(self):
        """Seconds that the search has taken, the earlier parts of one that goes on included."""
        return self.earlier_seconds + time.monotonic() - self.started

    @property
    def is_over(self):
        """Whether there is no time for another trial; there always is for the first one."""
        late = self.max_seconds is not None and self.seconds + self.trial_seconds > self.max_seconds
        return late and bool(self.start_order)

    @contextlib.contextmanager
    def exclusive(self):
        """One thread at a time. KerasTuner has a lock for that, which it keeps for ever if anything is raised."""
        with self.lock:
            try:
                yield
            except BaseException:
                if oracle_module.THREADS[self] is not None:
                    oracle_module.THREADS[self] = None
                    oracle_module.LOCKS[self].release()
                raise

    def create_trial(self, tuner_id):
        with self.exclusive():
            if self.is_over and not self._retry_queue and tuner_id not in self.ongoing_trials:
                return trial_module.Trial(self.hyperparameters.copy(), status="STOPPED")
            return super().create_trial(tuner_id)

    def update_trial(self, trial_id, metrics, step=0):
        with self.exclusive():
            # Told twice, KerasTuner would take the mean.
            self.trials[trial_id].metrics = type(self.trials[trial_id].metrics)()
            return super().update_trial(trial_id, metrics, step)

    def end_trial(self, trial):
        with self.exclusive():
            super().end_trial(trial)

    def finish(self, trial, metrics):
        """Takes the result of a trial; nobody sees it half taken."""
        with self.exclusive():
            self.update_trial(trial.trial_id, metrics)
            trial.status = "COMPLETED"
            self.end_trial(trial)

    def keep(self, trial_id):
        """Nothing: what runs in this process is known to live."""

    def give_back(self, tuner_id):
        """Takes back the trial that a worker has not finished: the next one to ask gets it."""
        with self.exclusive():
            trial = self.ongoing_trials.pop(tuner_id, None)
            if trial is not None:
                self._retry_queue.append(trial.trial_id)
                self.save()

    def rng(self, *key):
        """A generator that depends on the seed, the number of this trial, and `key`."""
        return np.random.default_rng([self.seed, len(self.start_order), *key])

    def _random_values(self):
        if self.first and not self.start_order and self.space.is_legal(self.first):
            return dict(self.first)
        rng = self.rng()
        for _ in range(1000):
            values = self.space.sample(rng)
            if not self._duplicate(values):
                return values
        return None  # everything has been tried

    def _check_consecutive_failures(self):
        """Nothing: a failed trial is a bad score, not the end of the search."""

    def results(self):
        """The finished trials, in the order of their start, each with its metrics."""
        with self.lock:
            return with_results(self.trials[trial_id] for trial_id in self.start_order)

    # State: one file with everything, and the one before.

    def get_state(self):
        return {**super().get_state(), "seconds": self.seconds, "trial_seconds": self.trial_seconds}

    def set_state(self, state):
        super().set_state(state)
        self.earlier_seconds, self.trial_seconds = state["seconds"], state["trial_seconds"]

    def save(self):
        state = {"oracle": self.get_state(), "trials": [self.trials[name].get_state() for name in self.start_order]}
        text = json.dumps(state, default=plain_number)
        path = Path(self._get_oracle_fname())
        if path.is_file() and is_whole(path):
            os.replace(path, previous(path))
        write_text(path, json.dumps({"sha256": digest(text), "state": text}))

    def _save_trial(self, trial):
        """Nothing: `save`, which follows, writes the trials too."""

    def reload(self):
        path = Path(self._get_oracle_fname())
        state = read_state(path) or read_state(previous(path))
        if state is None:
            raise ValueError(f"search: {str(path)!r} and its predecessor are damaged; start again with --overwrite")
        for trial_state in state["trials"]:
            trial = trial_module.Trial.from_state(trial_state)
            self.trials[trial.trial_id] = trial
        self.set_state(state["oracle"])
        # What was running goes on, the oldest first.
        self._retry_queue = [name for name in reversed(self.start_order) if self.trials[name].status in ("RUNNING", "INVALID")]
        self.ongoing_trials = {}


def metrics_of(trial):
    return {name: trial.metrics.get_last_value(name) for name in trial.metrics.metrics}


def with_results(trials):
    """The finished ones of trials, each with its metrics."""
    return [(trial, metrics_of(trial)) for trial in trials if trial.status == "COMPLETED"]


def previous(path):
    return path.with_suffix(".previous.json")


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def read_state(path):
    """The state in a file, or None where there is none or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return json.loads(content["state"]) if content["sha256"] == digest(content["state"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_whole(path):
    return read_state(path) is not None


def plain_number(value):
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value)} is not JSON")


class RandomOracle(SearchOracle, keras_tuner.oracles.RandomSearchOracle):
    """Random search over the legal configurations, none twice."""


class HyperbandOracle(SearchOracle, keras_tuner.oracles.HyperbandOracle):
    """Hyperband (arXiv 1603.06560): KerasTuner's brackets; a promoted trial goes on from the state of its predecessor."""


class GridOracle(SearchOracle, keras_tuner.Oracle):
    """Every legal configuration in the order of the axes; a range of real numbers counts as `steps` values."""

    def __init__(self, space, steps=3, **settings):
        super().__init__(space, **settings)
        self.steps = steps

    def populate_space(self, trial_id):
        for values in self.space.grid(self.steps):
            if not self._duplicate(values):
                return {"status": "RUNNING", "values": values}
        return {"status": "IDLE" if self.ongoing_trials else "STOPPED", "values": None}


class BayesianOracle(SearchOracle, keras_tuner.oracles.BayesianOptimizationOracle):
    """Bayesian optimisation with a Gaussian process an objective.

    The surrogate is scikit-learn's Gaussian process with a Matern kernel of one length an axis and a noise term. The next
    trial is the legal, new configuration of largest expected improvement among random ones and neighbours of the best;
    running trials count with their predicted mean. With several objectives each trial draws weights and looks for an
    improvement of the objectives' augmented Chebyshev norm, scaled to 0..1, as ParEGO does (Knowles 2006), so that the trials
    spread along the Pareto front; the objectives have processes of their own, and the norm's expectation is sampled (Paria,
    Kandasamy and Poczos, arXiv 1805.12168).
    """

    def populate_space(self, trial_id):
        done = self.results()
        wanted = self.num_initial_points or max(5, 2 * len(self.space.axes))
        if len(done) < wanted:
            return self._random_populate_space()
        values = self.propose(done)
        if values is None:
            return self._random_populate_space()
        return {"status": "RUNNING", "values": values}

    def propose(self, done):
        """The configuration to try next; None if there is no new one."""
        rng = self.rng(1)
        costs = self.costs([metrics for _, metrics in done])
        weights = rng.dirichlet(np.ones(costs.shape[1]))
        known = [trial.hyperparameters.values for trial, _ in done]
        points = np.stack([self.space.vector(values) for values in known])
        processes = [fit(points, column, rng) for column in costs.T]
        running = [trial.hyperparameters.values for trial in self.ongoing_trials.values()]
        if running:
            more = np.stack([self.space.vector(values) for values in running])
            costs = np.concatenate([costs, np.stack([process.predict(more) for process in processes], axis=1)])
            points = np.concatenate([points, more])
            kernels = [process.kernel_ for process in processes]
            processes = [fit(points, column, rng, kernel) for column, kernel in zip(costs.T, kernels, strict=True)]
        norms = chebyshev(costs, weights) if len(processes) > 1 else costs[:, 0]
        best = [known[index] for index in np.argsort(norms[: len(known)], kind="stable")[:5]]
        candidates = [self.space.draw(rng) for _ in range(CANDIDATES)]
        candidates += [self.space.neighbour(best[index % len(best)], rng) for index in range(NEIGHBOURS)]
        vectors = np.stack([self.space.vector(values) for values in candidates])
        means, deviations = np.stack([process.predict(vectors, return_std=True) for process in processes], axis=-1)  # (K, M)
        if len(processes) == 1:
            gains = expected_improvement(means[:, 0], deviations[:, 0], norms.min())
        else:
            draws = means + deviations * rng.normal(size=(DRAWS, 1, len(processes)))  # (DRAWS, K, M)
            gains = np.maximum(norms.min() - chebyshev(draws, weights), 0).mean(axis=0)
        for index in np.argsort(-gains, kind="stable"):
            values = candidates[index]
            if not self._duplicate(values) and self.space.is_legal(values):
                return values
        return None

    def costs(self, metrics):
        """(N, M): each objective of each trial, to be minimised, from 0; a failed trial costs as much as the worst one."""
        columns = []
        for name, direction in self.objectives.items():
            column = np.array([row.get(name, math.nan) for row in metrics], float)
            columns.append(-column if direction == "max" else np.log(np.maximum(column, 1e-12)))
        table = np.stack(columns, axis=1)
        failed = np.array([bool(row.get(FAILED)) for row in metrics]) | ~np.isfinite(table).all(axis=1)
        if failed.all():
            return np.zeros(table.shape)
        good = table[~failed]
        low, high = good.min(axis=0), good.max(axis=0)
        if len(columns) > 1:  # 0..1 along the front: what is far behind it must not make its differences small
            end = good[non_dominated(good)].max(axis=0)
            high = np.where(end > low, end, high)
        scaled = (table - low) / np.where(high > low, high - low, 1)
        scaled[failed] = scaled[~failed].max(axis=0)
        return scaled


def chebyshev(costs, weights):
    """The augmented Chebyshev norm over the last axis, from a point better than any yet: else none could get better there."""
    weighted = weights * (costs + AHEAD)
    return weighted.max(axis=-1) + RHO * weighted.sum(axis=-1)


def fit(points, costs, rng, kernel=None):
    """A Gaussian process through points (N, D) of a unit cube; with a kernel its lengths are taken over.

    Some tens of points cannot tell lengths below a third of an axis from noise.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    optimizer = "fmin_l_bfgs_b" if kernel is None else None
    if kernel is None:
        lengths = Matern(np.ones(points.shape[1]), (0.3, 10), nu=2.5)
        kernel = ConstantKernel(1.0, (0.05, 20)) * lengths + WhiteKernel(0.01, (1e-4, 0.3))
    seed = int(rng.integers(2**31))
    process = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=2, optimizer=optimizer, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return process.fit(points, costs)


def expected_improvement(mean, deviation, best):
    """Expected improvement below `best` of normal variables (Jones 1998)."""
    from scipy.stats import norm

    deviation = np.maximum(deviation, 1e-9)
    z = (best - mean) / deviation
    return (best - mean) * norm.cdf(z) + deviation * norm.pdf(z)


ORACLES = {"random": RandomOracle, "grid": GridOracle, "bayesian": BayesianOracle, "hyperband": HyperbandOracle}
