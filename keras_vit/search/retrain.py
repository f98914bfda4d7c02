"""Trains the best trials again, on train and validation images, and reads the test images: the figures to publish."""

import copy
import dataclasses
import json
import statistics

from keras_vit.files import read_json_or_none, write_text
from keras_vit.search.oracle import FAILED
from keras_vit.search.settings import show_budget


def retrain(tuner, config, console) -> list[dict]:
    """Trains the best trials again, with several seeds.

    Args:
        tuner: The `TrialTuner` of a search that has ended.
        config: The `SearchConfig`, which says how many and how long.
        console: A rich console.

    Returns:
        A list of {"id", "test_scores"}, which is also written to retrain.json: the quality that the search is after.
    """
    budget, results, goal = config.final_budget, [], f"test_{config.quality}"
    tuner = copy.copy(tuner)
    tuner.settings = dataclasses.replace(tuner.settings, time_limit=config.limit(budget))
    for trial_id, recipe in best_recipes(tuner.oracle, config.retrain).items():
        scores = []
        for seed in range(config.seeds):
            name = f"{trial_id}-seed-{seed}"
            place = tuner.folder / "retrain" / f"{name}-{show_budget(budget).replace(' ', '-')}"
            result, reason = train_again(tuner, dataclasses.replace(recipe, seed=seed, validation=0), budget, place)
            if reason:
                console.print(f"retrain {name}: failed: {reason}")
            if result and goal in result:
                scores.append(result[goal])
                console.print(f"retrain {name}: test {config.quality.replace('_', ' ')} {scores[-1]:.2%}")
        results.append({"id": trial_id, "test_scores": scores})
        if len(scores) > 1:
            mean, spread = statistics.mean(scores), statistics.stdev(scores)
            console.print(f"retrain {trial_id}: {mean:.2%} ± {100 * spread:.2f} over {len(scores)} seeds")
    write_text(tuner.folder / "retrain.json", json.dumps(results, indent=2) + "\n")
    return results


def best_recipes(oracle, count):
    """{trial: recipe} of the best finished trials; of trials with one recipe, which Hyperband has, only the best."""
    best = {}
    goal = next(iter(oracle.objectives))
    done = [(metrics[goal], trial) for trial, metrics in oracle.results() if not metrics.get(FAILED)]
    for _, trial in sorted(done, key=lambda row: -row[0]):
        recipe = oracle.space.recipe(trial.hyperparameters.values)
        if len(best) < count and recipe not in best.values():
            best[trial.trial_id] = recipe
    return best


def train_again(tuner, recipe, budget, place):
    """Trains a recipe in a folder, unless that is done; returns the result or None, and the reason of a failure or None."""
    write_text(place / "recipe.yaml", recipe.to_yaml())
    job = {"recipe": str(place / "recipe.yaml"), "run": str(place / "run"), "result": str(place / "result.json")}
    job |= {"data": None, "until": None, "budget": budget, "latency": False}
    write_text(place / "job.json", json.dumps(job, indent=2) + "\n")
    reason = None
    if read_json_or_none(place / "result.json") is None:
        reason = tuner.run_job(place / "job.json", place)
    return read_json_or_none(place / "result.json"), reason
