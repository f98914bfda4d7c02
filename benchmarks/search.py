"""How much faster than random search do the oracles find a good Vision Transformer? On a synthetic objective with a known answer.

    python benchmarks/search.py [--trials 60] [--seeds 10] [--json search.json]

No model is trained: accuracy is a formula of the hyperparameters, with noise as large as a seed's and a learning curve over
the share of the training that has been done. Cost is counted in whole trainings. For each seed random search spends
`--trials` of them. For the other methods the cost is counted at which their best configuration is as good as random search's.
"""

import argparse
import math
import pathlib
import tempfile

import numpy as np

from keras_vit.processes import run_command

NOISE = 0.003  # standard deviation of an accuracy over seeds, as measured on CIFAR-10
EPOCHS = 27  # of a whole training, for Hyperband
INITIAL = 10  # random trials before the Gaussian process is asked
# Of the hypervolume, in accuracy and log10 of milliseconds: a tenth of the range below the worst of the true front, which runs
# from 66% at 0.04 ms to 89.8% at 2.6 ms. A point much worse would give both searches nearly the same volume.
REFERENCE = (0.635, 0.6)


def true_accuracy(values, share=1.0):
    """The accuracy after a share of the training: a smooth optimum, with interactions, and a curve that depends on the rate."""
    rate = math.log10(values["learning_rate"]) + 2.7 + 0.4 * (values["depth"] > 6)
    patch = {2: 0.03, 4: 0.0, 8: 0.06, 16: 0.2}[values["patch_size"]]
    width = math.log2(values["num_heads"] * values["head_dim"] / 192)
    loss = 0.08 * rate**2 + patch + 0.004 * (values["depth"] - 7) ** 2 + 0.02 * width**2
    loss += 0.02 * (values["pool"] == "cls") + 0.02 * (values["stem"] == "patch")
    loss += 0.1 * (values["augment"] - 0.4) ** 2 + 0.01 * (math.log10(values["weight_decay"]) + 1.3) ** 2
    pace = 3 * 2 ** (0.5 * rate)  # a larger rate learns faster
    return 0.92 - 0.55 * loss - 0.45 * math.exp(-pace * share)


def true_latency(space, values):
    """Milliseconds, as if this machine made 100 GFLOP/s and a layer cost 20 microseconds."""
    return space.recipe(values).model.flops / 1e8 + 0.02 * values["depth"]


def search(method, space, trials, seed, objectives):
    """Runs an oracle; returns [(cost so far, values, measured, true)], a row a trial, costs in whole trainings."""
    from keras_vit.search.oracle import ORACLES

    settings = {"random": {"max_trials": trials}, "bayesian": {"max_trials": trials, "num_initial_points": INITIAL}}
    oracle = ORACLES[method](space, seed=seed, objectives=objectives, **settings.get(method, {"max_epochs": EPOCHS}))
    if method == "hyperband":
        oracle.hyperband_iterations = math.inf
    noise, cost, rows = np.random.default_rng([seed, 1]), 0.0, []
    with tempfile.TemporaryDirectory() as folder:
        oracle.use_folder(pathlib.Path(folder) / "search")
        oracle.save = lambda: None  # what is written down is not what is measured here
        while cost < trials - 1e-9 and (trial := oracle.create_trial("worker-0")).status == "RUNNING":
            values = trial.hyperparameters.values
            share = values.get("tuner/epochs", EPOCHS) / EPOCHS
            cost += share - values.get("tuner/initial_epoch", 0) / EPOCHS
            measured = true_accuracy(values, share) + NOISE * noise.normal()
            metrics = {"val_accuracy": measured, "latency_ms": true_latency(space, values)}
            rows.append((cost, values, share, metrics, true_accuracy(values)))
            oracle.update_trial(trial.trial_id, metrics)
            trial.status = "COMPLETED"
            oracle.end_trial(trial)
    return rows


def best_held(rows):
    """[(cost, true accuracy of the configuration that then had the best measurement of a whole training)]."""
    held, best, truth = [], -math.inf, -math.inf
    for cost, _, share, metrics, true in rows:
        if share >= 1 and metrics["val_accuracy"] > best:
            best, truth = metrics["val_accuracy"], true
        held.append((cost, truth))
    return held


def cost_to_reach(rows, target):
    return next((cost for cost, truth in best_held(rows) if truth >= target), math.inf)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60, help="whole trainings of each search (default: 60)")
    parser.add_argument("--seeds", type=int, default=10, help="searches of each kind (default: 10)")
    parser.add_argument("--json", type=pathlib.Path, help="file to write: every search")
    options = parser.parse_args()
    if options.trials < 2 or options.seeds < 1:
        raise ValueError("trials, seeds: allowed: at least 2 and 1")

    from keras_vit.recipes.parse import load_recipe
    from keras_vit.search.pareto import hypervolume
    from keras_vit.search.space import Space, SpaceConfig

    space = Space(SpaceConfig(), load_recipe("quick"))
    accuracy = {"val_accuracy": "max"}
    both = {"val_accuracy": "max", "latency_ms": "min"}
    needed = {"bayesian": [], "hyperband": []}
    final = {"random": [], "bayesian": [], "hyperband": []}
    volumes = {"random": [], "bayesian": []}
    for seed in range(options.seeds):
        random = search("random", space, options.trials, seed, accuracy)
        target = best_held(random)[-1][1]
        final["random"].append(target)
        for method, costs in needed.items():
            rows = search(method, space, options.trials, seed, accuracy)
            final[method].append(best_held(rows)[-1][1])
            costs.append(cost_to_reach(rows, target))
        for method, values in volumes.items():
            rows = random if method == "random" else search(method, space, options.trials, seed, both)
            points = np.array([(true, math.log10(metrics["latency_ms"])) for _, _, _, metrics, true in rows])
            values.append(hypervolume(points, REFERENCE, ("max", "min")))
        print(
            f"seed {seed}: random {target:.4f}; reached after " + ", ".join(f"{m} {c[-1]:.1f}" for m, c in needed.items()),
            flush=True,
        )

    print(f"\n{options.trials} trials, {options.seeds} seeds; medians (worst)")
    print(f"{'':12}{'accuracy at the end':>22}{'trials to reach what random search reached':>46}")
    for method, values in final.items():
        costs = needed.get(method)
        text = f"{np.median(costs):.1f} ({max(costs):.1f})" if costs else f"{options.trials}"
        print(f"{method:12}{f'{np.median(values):.4f} ({min(values):.4f})':>22}{text:>46}")
    for method, costs in needed.items():
        print(
            f"{method}: in {sum(cost <= options.trials / 2 for cost in costs)} of {options.seeds} searches at most half the trials"
        )
    ratios = np.array(volumes["bayesian"]) / np.array(volumes["random"])
    print(f"hypervolume of accuracy and latency, ParEGO over random search: {np.median(ratios):.3f} ({min(ratios):.3f})")
    if options.json:
        from record import write_record

        write_record(options.json, trials=options.trials, needed=needed, final=final, hypervolume=volumes)


if __name__ == "__main__":
    run_command(main)
