import itertools

import numpy as np
import pytest

from keras_vit.search.pareto import front, hypervolume, non_dominated, smallest_within

EXACT = 1e-12  # relative: sums of a few products
SAMPLES, DEVIATIONS = 200_000, 5  # of a Monte Carlo estimate

NAMES = ("val_accuracy", "latency_ms", "params", "flops")
DIRECTIONS = ("max", "min", "min", "min")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def make_trials(table, names=NAMES):
    return [
        {"id": f"{index:03}", "status": "COMPLETED", "metrics": dict(zip(names, map(float, row), strict=False))}
        for index, row in enumerate(table)
    ]


def beats(one, other, directions):
    better = [a > b if way == "max" else a < b for a, b, way in zip(one, other, directions, strict=True)]
    return any(better) and all(b or x == y for b, x, y in zip(better, one, other, strict=True))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("values", [1000, 4])  # four values: many ties and duplicates
def test_front_is_that_of_brute_force(rng, size, values):
    table, directions = rng.integers(0, values, size=(80, size)), DIRECTIONS[:size]
    trials = make_trials(table)
    expected, seen = [], set()
    for row, trial in zip(table.tolist(), trials, strict=True):
        if tuple(row) not in seen and not any(beats(other, row, directions) for other in table.tolist()):
            expected.append(trial)
        seen.add(tuple(row))
    expected.sort(key=lambda trial: -trial["metrics"]["val_accuracy"])  # stable
    found = front(trials, dict(zip(NAMES[:size], directions, strict=True)))
    assert [trial["id"] for trial in found] == [trial["id"] for trial in expected]
    assert all(any(trial is other for other in trials) for trial in found)


def test_front_leaves_out_what_has_no_numbers():
    trials = make_trials([(0.5, 10), (0.9, np.nan), (0.6, 20), (np.inf, 1), (0.6, 20), (0.6, 21), (0.4, 11), (0.99, 1), (0.98, 1)])
    trials[7]["status"], trials[8]["status"] = "FAILED", "RUNNING"
    trials += [{"id": "x", "status": "COMPLETED", "metrics": {"val_accuracy": 1.0}}, {"id": "y", "status": "COMPLETED"}]
    objectives = {"val_accuracy": "max", "latency_ms": "min"}
    assert [trial["id"] for trial in front(trials, objectives)] == ["002", "000"]
    assert [trial["id"] for trial in front(trials, dict(reversed(objectives.items())))] == ["000", "002"]
    assert front([], objectives) == front(trials[7:9], objectives) == []


def test_front_names_what_is_wrong():
    with pytest.raises(ValueError, match="objectives: received none"):
        front([], {})
    with pytest.raises(ValueError, match="direction: received 'down'; allowed: max, min"):
        front(make_trials([(0.5, 10)]), {"val_accuracy": "max", "latency_ms": "down"})


def test_non_dominated_keeps_equal_points():
    costs = np.array([(1, 2), (2, 1), (1, 2), (2, 2), (0, 9)])
    assert non_dominated(costs).tolist() == [True, True, True, False, True]
    assert non_dominated(np.zeros((0, 3))).tolist() == []


@pytest.mark.parametrize(
    ("points", "reference", "directions", "volume"),
    [
        ([(2, 3)], (5, 7), ("min", "min"), 3 * 4),
        ([(1, 3), (2, 2), (3, 1)], (4, 4), ("min", "min"), 6),
        ([(0.7, 2.0), (0.8, 5.0)], (0.5, 10.0), ("max", "min"), 0.2 * 8 + 0.1 * 5),
        ([(3,), (2,), (6,)], (5,), ("min",), 3),
        # Three boxes 1 x 2 x 2, 2 x 1 x 2, 2 x 2 x 1: 12, less what two share (3 x 2), plus what all share (1).
        ([(1, 2, 2), (2, 1, 2), (2, 2, 1)], (0, 0, 0), ("max",) * 3, 12 - 6 + 1),
        ([(4, 1), (1, 4), (3.9, 0)], (4, 4), ("min", "min"), 0.1 * 4),  # the first two only touch the reference
        ([], (1, 1), ("min", "max"), 0),
        ([(2, 0)], (1, 1), ("min", "max"), 0),
    ],
)
def test_hypervolume_known_values(points, reference, directions, volume):
    assert hypervolume(points, reference, directions) == pytest.approx(volume, rel=EXACT)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_hypervolume_agrees_with_monte_carlo_and_inclusion_exclusion(rng, size):
    points = rng.random((12, size))
    sample = rng.random((SAMPLES, size))
    volume = hypervolume(points, np.ones(size), ["min"] * size)
    share = (sample[:, None, :] >= points[None]).all(axis=2).any(axis=1).mean()
    assert abs(volume - share) < DEVIATIONS * np.sqrt(share * (1 - share) / SAMPLES)
    boxes, exact = 1 - points, 0.0
    for count in range(1, len(points) + 1):
        for subset in itertools.combinations(boxes, count):
            exact += (-1) ** (count + 1) * np.prod(np.min(subset, axis=0))
    assert volume == pytest.approx(exact, rel=1e-9)  # 4095 terms that cancel


@pytest.mark.parametrize("size", [2, 3, 4])
def test_hypervolume_is_invariant(rng, size):
    points, reference, directions = rng.normal(size=(20, size)), np.full(size, 2.0), ["min"] * size
    volume = hypervolume(points, reference, directions)
    assert volume > 0
    order = rng.permutation(20)
    assert hypervolume(points[order], reference, directions) == pytest.approx(volume, rel=EXACT)
    assert hypervolume(points[:, ::-1], reference, directions) == pytest.approx(volume, rel=1e-9)
    assert hypervolume(-points, -reference, ["max"] * size) == pytest.approx(volume, rel=EXACT)
    assert hypervolume(np.concatenate([points, points]), reference, directions) == pytest.approx(volume, rel=EXACT)
    assert hypervolume(points[non_dominated(points)], reference, directions) == pytest.approx(volume, rel=EXACT)
    assert hypervolume(points + 7, reference + 7, directions) == pytest.approx(volume, rel=1e-9)
    assert hypervolume(points * 10, reference * 10, directions) == pytest.approx(volume * 10**size, rel=1e-9)
    better = np.concatenate([points, points.min(axis=0, keepdims=True) - 0.1])
    assert hypervolume(better, reference, directions) == pytest.approx(np.prod(2.1 - points.min(axis=0)), rel=1e-9)


@pytest.mark.parametrize(
    ("points", "reference", "directions", "message"),
    [
        ([(1, 2)], (1, 2, 3), ("min", "min"), r"reference: received shape \(3,\); allowed: \(2,\)"),
        ([(1, 2, 3)], (1, 2), ("min", "min"), r"points: received shape \(1, 3\); allowed: \(N, 2\)"),
        ([1, 2], (1, 2), ("min", "min"), r"points: received shape \(2,\)"),
        ([(1, np.nan)], (1, 2), ("min", "min"), "points: received a number that is not finite"),
        ([(1, 1)], (1, np.inf), ("min", "min"), "reference: received a number that is not finite"),
        ([(1, 1)], (1, 2), ("min", "up"), "direction: received 'up'"),
        ([], (), (), "directions: received none"),
    ],
)
def test_hypervolume_names_what_is_wrong(points, reference, directions, message):
    with pytest.raises(ValueError, match=message):
        hypervolume(points, reference, directions)


def test_smallest_within_points_of_the_best():
    trials = make_trials(
        [(0.71, 5, 900), (0.70, 7, 300), (0.6999, 1, 100), (0.705, 6, 300), (0.90, 1, 1)], ("val_accuracy", "latency_ms", "params")
    )
    trials[4]["status"] = "FAILED"
    assert smallest_within(trials)["id"] == "003"  # as small as 001 and better
    assert smallest_within(trials, 1.02)["id"] == "002"
    assert smallest_within(trials, 0)["id"] == "000"
    assert smallest_within(trials, 1, "latency_ms")["id"] == "000"
    assert smallest_within(trials[:2], 1.0)["id"] == "001"  # 0.71 - 0.70 is above 0.01 in floating point
    assert smallest_within(trials[:2], 0.99)["id"] == "000"


def test_smallest_within_without_numbers():
    trials = make_trials([(0.8,), (0.795, 3), (0.7, 1)], ("val_accuracy", "params"))
    assert smallest_within(trials)["id"] == "001"  # the best one itself has no size, and still decides what is near
    assert smallest_within(trials, 0.1) is None
    assert smallest_within(trials, size="flops") is None
    assert smallest_within([]) is None
    for points in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match="points: received"):
            smallest_within(trials, points)
