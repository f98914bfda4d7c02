"""KerasTuner's oracles, which choose the next trial, made to survive a kill.

What they share: a proposal depends only on the seed, the number of the trial and the results so far, so a killed search goes on
to the same result. Proposals are legal and new. A failed trial counts as a bad score. The state is one file, written in one step,
and the previous state is kept.
"""

import contextlib
import hashlib
import json
import math
import os
import threading
import time
import warnings

import keras_tuner
import numpy as np
from keras_tuner.engine.trial import Trial, TrialStatus
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from keras_vit.checks import check_number, shown, visible
from keras_vit.files import write_text
from keras_vit.private.keras_tuner import OracleHooks
from keras_vit.search.labels import is_share
from keras_vit.search.pareto import non_dominated

FAILED = "failed"  # a metric: 1 where a trial has no result
MOST_METRICS, LONGEST_NAME = 100, 200  # of a trial
WORST = 0.0  # accuracy of a failed trial
CANDIDATES, NEIGHBOURS = 2000, 500  # random configurations, and neighbours of the best, that the Gaussian process ranks
DRAWS = 128  # of each candidate's objectives, for the expectation of their norm
AHEAD = 0.25  # the norm's reference point beats the front by this share of each objective's range
# What KerasTuner and JSON raise for a state that none of them has written.
UNREADABLE = (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError)
RHO = 0.05  # of ParEGO's augmented Chebyshev norm (Knowles 2006)


class SearchOracle(OracleHooks):
    """What every oracle here shares: a mixin, listed before one of KerasTuner's oracles among the bases.

    Args:
        space: The `Space`.
        seed: Decides all proposals.
        objectives: Names of metrics with their directions, {"val_accuracy": "max", "latency_ms": "min"}; the first one is
            KerasTuner's objective.
        first: The configuration to begin with, if it is legal; None = the oracle chooses.
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
        self.set_seed(seed)
        self.verbose = 0
        self.max_seconds, self.trial_seconds = None, 0.0  # of the search, and the expected length of a trial
        self.lock = threading.RLock()
        self.started, self.earlier_seconds = time.monotonic(), 0.0

    @property
    def seconds(self):
        """Seconds that the search has taken, its earlier parts included."""
        return self.earlier_seconds + time.monotonic() - self.started

    @property
    def is_over(self):
        """Whether no time is left for another trial; the first one always runs."""
        late = self.max_seconds is not None and self.seconds + self.trial_seconds > self.max_seconds
        return late and bool(self.start_order)

    @contextlib.contextmanager
    def exclusive(self):
        """Lets one thread at a time through."""
        with self.lock:
            try:
                yield
            except BaseException:
                self.release()
                raise

    def create_trial(self, tuner_id):
        with self.exclusive():
            if self.is_over and not self.waiting and tuner_id not in self.ongoing_trials:
                return Trial(self.hyperparameters.copy(), status=TrialStatus.STOPPED)
            return super().create_trial(tuner_id)

    def update_trial(self, trial_id, metrics, step=0):
        check_metrics(metrics, self.objectives)
        with self.exclusive():
            # KerasTuner would take the mean of two reports.
            self.trials[trial_id].metrics = type(self.trials[trial_id].metrics)()
            return super().update_trial(trial_id, metrics, step)

    def end_trial(self, trial):
        with self.exclusive():
            super().end_trial(trial)

    def finish(self, trial, metrics):
        """Takes the result of a trial, in one step."""
        with self.exclusive():
            self.update_trial(trial.trial_id, metrics)
            trial.status = TrialStatus.COMPLETED
            self.end_trial(trial)

    def keep(self, trial_id):
        """Does nothing: a worker in this process lives as long as the oracle."""

    def give_back(self, tuner_id):
        """Takes back a worker's unfinished trial: the next worker that asks gets it."""
        with self.exclusive():
            trial = self.ongoing_trials.pop(tuner_id, None)
            if trial is not None:
                self.waiting.append(trial.trial_id)
                self.save()

    def rng(self, *key):
        """A generator that depends on the seed, the number of this trial, and `key`."""
        return np.random.default_rng([self.seed, len(self.start_order), *key])

    def random_values(self):
        """A new, random legal configuration, or `first` at the start of a search; None if no new one is found."""
        if self.first and not self.start_order and self.space.is_legal(self.first):
            return dict(self.first)
        rng = self.rng()
        for _ in range(1000):
            values = self.space.sample(rng)
            if not self.is_tried(values):
                return values
        return None

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
        path = self.state_path
        if path.is_file() and read_state(path) is not None:
            os.replace(path, previous(path))
        write_text(path, json.dumps({"sha256": digest(text), "state": text}))

    def reload(self):
        path = self.state_path
        state = read_state(path) or read_state(previous(path))
        if state is None:
            raise ValueError(f"search: {str(path)!r} and its predecessor are damaged; start again with --overwrite")
        try:
            self.trials |= {trial.trial_id: trial for trial in map(Trial.from_state, state["trials"])}
            self.set_state(state["oracle"])
            # The trials that were running go on, the oldest first.
            unfinished = (TrialStatus.RUNNING, TrialStatus.INVALID)
            self.waiting = [name for name in reversed(self.start_order) if self.trials[name].status in unfinished]
        except UNREADABLE as error:
            reason = visible(" ".join(str(error).split()))
            raise ValueError(f"search: {str(path)!r} holds no search ({reason}); start again with --overwrite") from None
        self.ongoing_trials = {}


def check_metrics(metrics: dict[str, float], objectives: dict[str, str]) -> None:
    """Raises a ValueError unless these are metrics of a trial: shares from 0 to 1, other numbers of at least 0, every objective."""
    if not isinstance(metrics, dict) or len(metrics) > MOST_METRICS:
        raise ValueError(f"metrics: received {shown(metrics)}; allowed: at most {MOST_METRICS} numbers by name")
    for name, value in metrics.items():
        if not isinstance(name, str) or len(name) > LONGEST_NAME or name != visible(name):
            raise ValueError(f"metrics: received {shown(name)}; allowed: names of at most {LONGEST_NAME} characters")
        check_number(name, value, at_least=0, at_most=1 if is_share(name) else math.inf)
    for name in () if metrics.get(FAILED) else objectives:
        if name not in metrics:
            raise ValueError(f"{name}: received none; allowed: a number, as the search is after it")


def metrics_of(trial):
    return {name: trial.metrics.get_last_value(name) for name in trial.metrics.metrics}


def with_results(trials):
    """The finished trials among `trials`, each with its metrics."""
    return [(trial, metrics_of(trial)) for trial in trials if trial.status == TrialStatus.COMPLETED]


def previous(path):
    return path.with_suffix(".previous.json")


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def read_state(path):
    """The state in a file; None if the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return json.loads(content["state"]) if content["sha256"] == digest(content["state"]) else None
    except (OSError, *UNREADABLE):
        return None


def plain_number(value):
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value)} is not JSON")


class RandomOracle(SearchOracle, keras_tuner.oracles.RandomSearchOracle):
    """Random search over the legal configurations, none twice."""


class HyperbandOracle(SearchOracle, keras_tuner.oracles.HyperbandOracle):
    """Hyperband (arXiv 1603.06560): KerasTuner's brackets; a promoted trial goes on from the state of its predecessor."""


class GridOracle(SearchOracle, keras_tuner.Oracle):
    """Every legal configuration, in the order of the axes; a range of real numbers counts as `steps` values."""

    def __init__(self, space, steps=3, **settings):
        super().__init__(space, **settings)
        self.steps = steps

    def populate_space(self, trial_id):
        for values in self.space.grid(self.steps):
            if not self.is_tried(values):
                return {"status": TrialStatus.RUNNING, "values": values}
        return {"status": TrialStatus.IDLE if self.ongoing_trials else TrialStatus.STOPPED, "values": None}


class BayesianOracle(SearchOracle, keras_tuner.oracles.BayesianOptimizationOracle):
    """Bayesian optimisation with one Gaussian process for each objective.

    The surrogate is scikit-learn's Gaussian process with a noise term and a Matern kernel that has one length for each axis. The
    candidates are random configurations and neighbours of the best ones. The next trial is the legal, new candidate with the
    largest expected improvement; running trials count with their predicted mean. With several objectives, each trial draws random
    weights and improves the augmented Chebyshev norm of the objectives, scaled to 0..1, as ParEGO does (Knowles 2006): the trials
    spread along the Pareto front. The norm's expectation is sampled from the objectives' processes (Paria, Kandasamy and Poczos,
    arXiv 1805.12168).
    """

    def populate_space(self, trial_id):
        done = self.results()
        wanted = self.num_initial_points or max(5, 2 * len(self.space.axes))
        values = self.propose(done) if len(done) >= wanted else None
        if values is None:
            values = self.random_values()
        return {"status": TrialStatus.STOPPED if values is None else TrialStatus.RUNNING, "values": values}

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
            if not self.is_tried(values) and self.space.is_legal(values):
                return values
        return None

    def costs(self, metrics):
        """(N, M): each trial's objectives as costs from 0 up, to be minimised; a failed trial costs as much as the worst one."""
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
        if len(columns) > 1:  # 0..1 along the front: points far from it must not make its differences small
            end = good[non_dominated(good)].max(axis=0)
            high = np.where(end > low, end, high)
        scaled = (table - low) / np.where(high > low, high - low, 1)
        scaled[failed] = scaled[~failed].max(axis=0)
        return scaled


def chebyshev(costs, weights):
    """The augmented Chebyshev norm over the last axis. Its reference point beats every point so far: each can be improved."""
    weighted = weights * (costs + AHEAD)
    return weighted.max(axis=-1) + RHO * weighted.sum(axis=-1)


def fit(points, costs, rng, kernel=None):
    """A Gaussian process fitted to points (N, D) of the unit cube; a given kernel keeps its lengths.

    Lengths are at least 0.3 of an axis: a few dozen points cannot tell shorter ones from noise.
    """
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
    deviation = np.maximum(deviation, 1e-9)
    z = (best - mean) / deviation
    return (best - mean) * norm.cdf(z) + deviation * norm.pdf(z)


ORACLES = {"random": RandomOracle, "grid": GridOracle, "bayesian": BayesianOracle, "hyperband": HyperbandOracle}
