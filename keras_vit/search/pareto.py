"""The trade-off between objectives: which trials are on the Pareto front, how good a front is, which small trial will do.

A trial is a dictionary with `status` and `metrics`. Only COMPLETED trials that have the required metrics count.
Shapes: N points, M objectives. An objective's direction is "max" or "min".
"""

import math
import typing
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

Trial = Mapping[str, typing.Any]

SIGNS = {"max": -1.0, "min": 1.0}  # factor that turns an objective into one to minimise
ROUNDING = 1e-9  # of a difference of accuracies: 0.71 - 0.70 is a little more than 0.01


def front(trials: Iterable[Trial], objectives: Mapping[str, str]) -> list[Trial]:
    """The trials that no other trial dominates, that is, beats in one objective and equals or beats in all others.

    Args:
        trials: The trials.
        objectives: Metrics with their directions, such as {"val_accuracy": "max", "latency_ms": "min"}.

    Returns:
        The trials on the front, best first by the first objective. Of trials with the same metrics the first is kept.

    Raises:
        ValueError: For no objective, or a direction that is neither "max" nor "min".
    """
    if not objectives:
        raise ValueError("objectives: received none; allowed: metrics with their directions, such as {'val_accuracy': 'max'}")
    known = [trial for trial in trials if all(metric(trial, name) is not None for name in objectives)]
    if not known:
        return []
    table = np.array([[metric(trial, name) for name in objectives] for trial in known])
    costs = table * signs(objectives.values())  # (N, M)
    kept = np.flatnonzero(non_dominated(costs))
    _, first = np.unique(costs[kept], axis=0, return_index=True)
    kept = kept[np.sort(first)]
    return [known[index] for index in kept[np.argsort(costs[kept, 0], kind="stable")]]


def non_dominated(costs: np.ndarray) -> np.ndarray:
    """Which points no other point dominates; all objectives are minimised, and equal points do not dominate each other.

    Args:
        costs: (N, M).

    Returns:
        bool (N,).
    """
    costs = np.asarray(costs, float)
    kept = np.ones(len(costs), bool)
    for index, point in enumerate(costs):
        if kept[index]:  # whatever a dominated point dominates, its dominator dominates too
            kept &= ~((costs >= point).all(axis=1) & (costs > point).any(axis=1))
    return kept


def hypervolume(points: np.ndarray, reference: Sequence[float], directions: Sequence[str]) -> float:
    """The volume that points dominate, up to a reference point; a better front has a larger volume.

    It is exact, and polynomial in N: about N^(M-1) log N.

    Args:
        points: (N, M); N may be 0. A point that is not better than the reference in every objective adds nothing.
        reference: (M,), a point that is worse than all points that count.
        directions: M times "max" or "min".

    Raises:
        ValueError: If the shapes do not fit, a number is not finite, or a direction is unknown.

    Source: hypervolume by slicing objectives (While, Hingston, Barone and Huband 2006, 'A faster algorithm for calculating
    hypervolume'); two objectives by the sweep that it ends in.
    """
    reference, sign = np.asarray(reference, float), signs(directions)
    points = np.asarray(points, float)
    if points.size == 0:
        points = points.reshape(0, len(sign))
    if not len(sign):
        raise ValueError("directions: received none; allowed: 'max' or 'min' for each objective")
    if reference.shape != sign.shape:
        raise ValueError(f"reference: received shape {reference.shape}; allowed: ({len(sign)},), a number a direction")
    if points.ndim != 2 or points.shape[1] != len(sign):
        raise ValueError(f"points: received shape {points.shape}; allowed: (N, {len(sign)}), a column a direction")
    for name, value in (("points", points), ("reference", reference)):
        if not np.isfinite(value).all():
            raise ValueError(f"{name}: received a number that is not finite")
    boxes = (reference - points) * sign  # (N, M): the sides of the box between each point and the reference
    return slices(boxes[(boxes > 0).all(axis=1)])


def slices(boxes):
    """The volume of the union of boxes (N, M) that begin at the origin."""
    if not len(boxes):
        return 0.0
    if boxes.shape[1] == 1:
        return float(boxes.max())
    boxes = boxes[non_dominated(-boxes)] if boxes.shape[1] > 2 else boxes
    boxes = boxes[np.argsort(-boxes[:, -1], kind="stable")]
    depths = -np.diff(boxes[:, -1], append=0)
    if boxes.shape[1] == 2:
        return float(depths @ np.maximum.accumulate(boxes[:, 0]))
    return sum(depth * slices(boxes[: index + 1, :-1]) for index, depth in enumerate(depths) if depth > 0)


def smallest_within(
    trials: Iterable[Trial], points: float = 1.0, size: str = "params", accuracy: str = "val_accuracy"
) -> Trial | None:
    """The smallest trial whose accuracy is nearly the best.

    Args:
        trials: The trials.
        points: Largest loss of accuracy against the best trial, in percentage points, inclusive.
        size: The metric to be small: "params", "flops", "latency_ms"...
        accuracy: The metric to be large, a fraction of 1.

    Returns:
        The trial; among equally small ones the most accurate, then the first. None if no trial near the best has both metrics.

    Raises:
        ValueError: For negative or non-finite `points`.
    """
    if not (math.isfinite(points) and points >= 0):
        raise ValueError(f"points: received {points}; allowed: a number of at least 0, in percentage points")
    known = [trial for trial in trials if metric(trial, accuracy) is not None]
    if not known:
        return None
    bound = max(metric(trial, accuracy) for trial in known) - points / 100 - ROUNDING
    near = [trial for trial in known if metric(trial, accuracy) >= bound and metric(trial, size) is not None]
    return min(near, key=lambda trial: (metric(trial, size), -metric(trial, accuracy)), default=None)


def metric(trial: Trial, name: str) -> float | None:
    """A metric of a finished trial; None if it is missing or not a finite number."""
    if trial["status"] != "COMPLETED":
        return None
    return number((trial.get("metrics") or {}).get(name))


def number(value: typing.Any) -> float | None:
    """A value as a float; None if it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        return None
    return float(value)


def signs(directions):
    directions = list(directions)
    for direction in directions:
        if direction not in SIGNS:
            raise ValueError(f"direction: received {direction!r}; allowed: {', '.join(SIGNS)}")
    return np.array([SIGNS[direction] for direction in directions])
