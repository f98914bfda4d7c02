"""How much each hyperparameter decides the result of a search."""

import numpy as np
from sklearn.ensemble import RandomForestRegressor
from sklearn.inspection import permutation_importance
from sklearn.model_selection import GroupKFold

from keras_vit.search.figures import place_values
from keras_vit.search.pareto import metric

FEWEST_TRIALS = 10  # fewer say nothing
TREES, FOLDS, PARTITIONS, SHUFFLES = 32, 5, 3, 2
ROUNDING = 1e-18  # of a variance: equal results may differ in the last bit from their mean
METHOD = (
    f"Method: permutation importance (scikit-learn) of a random forest of {TREES} trees, cross-validated in {FOLDS} folds "
    f"{PARTITIONS} times: how much less of the variance of held-out trials the forest explains after the values of one setting are "
    "shuffled. Trials of different lengths are compared within their length."
)


def importance(
    trials: list[dict], axes: list[dict], goal: str = "val_accuracy"
) -> tuple[dict[str, tuple[float, float]], float] | None:
    """How much each axis decides the result: permutation importance of a random forest, on trials that it has not seen.

    For each of 5 folds a forest is fitted to the other trials. The importance of an axis is the drop in explained variance (R²)
    when its values are shuffled among the fold's trials. Each of 3 partitions into folds is shuffled twice. A result counts
    relative to the mean of the trials with as many epochs: this makes Hyperband's short and long trials comparable. Trials of one
    configuration share a fold: no trial is predicted from its twin.

    Returns:
        For each axis that varies the mean and the standard deviation over the shuffles, and the R² of all held-out
        predictions. None for fewer than 10 configurations with a result, or if no axis or no result varies.

    Source: Breiman 2001, 'Random forests', section 10; scikit-learn's `permutation_importance`.
    """
    done = sorted((trial for trial in trials if metric(trial, goal) is not None), key=lambda trial: trial["id"])
    columns = {}
    for axis in axes:
        place, *_ = place_values(axis, values := [trial["values"].get(axis["name"]) for trial in done])
        columns[axis["name"]] = [-1.0 if value is None else place(value) for value in values]
    columns = {name: column for name, column in columns.items() if len(set(column)) > 1}
    configurations = list(zip(*columns.values(), strict=True))
    target, epochs = (np.array([metric(trial, name) for trial in done], float) for name in (goal, "epochs"))
    epochs = np.nan_to_num(epochs)
    for length in np.unique(epochs):
        target[epochs == length] -= target[epochs == length].mean()
    if len(set(configurations)) < FEWEST_TRIALS or not target.var() > ROUNDING:
        return None
    groups = np.unique(configurations, axis=0, return_inverse=True)[1].ravel()
    table, left, losses = np.array(configurations), 0.0, np.zeros((len(columns), PARTITIONS, SHUFFLES))
    how = {"scoring": "neg_mean_squared_error", "n_repeats": SHUFFLES, "random_state": 0}
    for partition in range(PARTITIONS):
        for seen, held_out in GroupKFold(FOLDS, shuffle=True, random_state=partition).split(table, groups=groups):
            forest = RandomForestRegressor(TREES, random_state=0).fit(table[seen], target[seen])
            left += ((forest.predict(table[held_out]) - target[held_out]) ** 2).sum()
            shuffled = permutation_importance(forest, table[held_out], target[held_out], **how)
            losses[:, partition] += len(held_out) * shuffled.importances  # (axes, SHUFFLES)
    total = len(target) * target.var()
    found = zip((losses / total).mean(axis=(1, 2)).tolist(), (losses / total).std(axis=(1, 2)).tolist(), strict=True)
    return dict(zip(columns, found, strict=True)), float(1 - left / total / PARTITIONS)
