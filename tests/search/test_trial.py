"""A trial, under the backend of this test run: what it reads, trains and leaves."""

import dataclasses
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from keras_vit.recipes.parse import load_recipe
from keras_vit.runs.folder import RunFolder
from keras_vit.search import trial as trials
from keras_vit.search.trial import STAGES
from keras_vit.search.tuner import TRIAL
from keras_vit.training.speed import Resolved, with_precision

TINY = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16}
TRAIN = {"epochs": 3, "batch_size": 64, "precision": "float32"}


@pytest.fixture
def trial(tmp_path, monkeypatch):
    """Runs a trial on digits to its end, in this process or as a search does; returns its run and its result."""
    monkeypatch.setattr(trials, "end_with_parent", lambda: None)
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    monkeypatch.setitem(sys.modules, "tensorflow", sys.modules.get("tensorflow"))  # which a trial hides from Keras

    def run(name, budget, until=None, data=True, validation=None, latency=False, process=False):
        recipe = load_recipe("digits", data="digits", validation=validation, model=TINY, train=TRAIN)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "recipe.yaml").write_text(recipe.to_yaml())
        job = {name: str(folder / file) for name, file in {"recipe": "recipe.yaml", "run": "run", "result": "result.json"}.items()}
        job |= {"data": str(tmp_path / "images") if data else None, "until": until, "budget": budget, "latency": latency}
        (folder / "job.json").write_text(json.dumps(job))
        if process:
            started = subprocess.Popen([*TRIAL, str(folder / "job.json")], stdin=subprocess.PIPE)
            assert started.wait(300) == 0
            started.stdin.close()
        else:
            monkeypatch.setattr(sys, "argv", ["trial", str(folder / "job.json")])
            trials.main()
        return RunFolder(folder / "run"), json.loads((folder / "result.json").read_text())

    return run


def test_a_trial_in_seconds_can_be_repeated_from_its_recipe(trial, tmp_path):
    run, result = trial("a", {"kind": "seconds", "amount": 0.5}, latency=True)
    assert (result["epochs"], len(run.metrics)) == (STAGES, STAGES)
    assert result["val_accuracy"] == run.metrics[-1]["val_accuracy"]
    assert result["params"] == run.model().count_params()
    assert result["latency_ms"] > 0
    assert result["overhead_seconds"] > 0
    assert "test_accuracy" not in result
    assert "test_accuracy" not in run.summary
    assert {file.name for file in (tmp_path / "images").iterdir()} == {
        "data.json",
        *(f"{part}{end}" for part in ("train", "validation") for end in (".npy", ".labels.npy")),
    }
    # The second one trains on the images that the first has left, the same number of steps.
    steps = dataclasses.replace(run.recipe.train, steps_per_epoch=None)
    again, repeated = trial(
        "b", {"kind": "flops", "amount": 3 * run.recipe.model.flops * 64 * STAGES * run.recipe.train.steps_per_epoch}
    )
    assert dataclasses.replace(again.recipe.train, steps_per_epoch=None) == steps
    assert again.recipe.train.steps_per_epoch == run.recipe.train.steps_per_epoch
    assert [row["loss"] for row in again.metrics] == [row["loss"] for row in run.metrics]
    assert repeated["val_accuracy"] == result["val_accuracy"]


def test_a_rung_of_hyperband_goes_on_to_the_numbers_of_a_whole_trial(trial):
    whole, result = trial("whole", {"kind": "epochs", "amount": 3})
    _, first = trial("rungs", {"kind": "epochs", "amount": 3}, until=1)
    assert first["epochs"] == 1
    rungs, last = trial("rungs", {"kind": "epochs", "amount": 3}, until=3, process=True)
    assert [row["val_loss"] for row in rungs.metrics] == [row["val_loss"] for row in whole.metrics]
    assert last["val_accuracy"] == result["val_accuracy"]


def test_trials_that_crop_pictures_read_their_files(tmp_path):
    """Crops of the decoded images would have other numbers than those of the pictures, which are larger."""
    for index in range(12):
        (tmp_path / f"class {index % 2}").mkdir(exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"class {index % 2}" / f"{index}.png")
    recipe = load_recipe("digits", data=f"folder:{tmp_path}", model={"channels": 3}, augment={"resized_crop": 0.5})
    for _ in range(2):
        data = trials.load_once(recipe, tmp_path / "kept")
        assert data.train.sizes(np.arange(3)).tolist() == [[40, 30]] * 3
        assert data.test is None
    assert not (tmp_path / "kept").exists()


def test_facts_of_fewer_images_than_a_batch(monkeypatch):
    monkeypatch.setattr(
        trials, "resolve_precision", lambda recipe, data: Resolved(with_precision(recipe, "float32"), str(recipe.train.batch_size))
    )
    recipe = load_recipe("digits", data="digits", train={"batch_size": 2000, "precision": "auto"})
    assert trials.facts(recipe)["precision_reason"] == "1294"


def test_a_final_training_reads_the_test_images(trial):
    run, result = trial("final", {"kind": "epochs", "amount": 1}, data=False, validation=0)
    assert "val_accuracy" not in result
    assert result["test_accuracy"] == run.summary["test_accuracy"]


def test_a_trial_reports_the_quality_that_the_search_is_after(tmp_path, monkeypatch):
    """Several labels an image, from arrays: images and labels of the first trial serve the second."""
    monkeypatch.setattr(trials, "end_with_parent", lambda: None)
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    monkeypatch.setitem(sys.modules, "tensorflow", sys.modules.get("tensorflow"))
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "a.npz", x_train=rng.integers(256, size=(60, 8, 8), dtype=np.uint8), y_train=rng.integers(2, size=(60, 3)))
    recipe = load_recipe(
        "digits", data=f"arrays:{tmp_path / 'a.npz'}", model=TINY, train={**TRAIN, "batch_size": 16, "monitor": "f1"}
    )
    results = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(recipe.to_yaml())
        job = {
            key: str(tmp_path / name / file)
            for key, file in {"recipe": "recipe.yaml", "run": "run", "result": "result.json"}.items()
        }
        job |= {"data": str(tmp_path / "images"), "until": None, "budget": {"kind": "epochs", "amount": 2}, "latency": False}
        (tmp_path / name / "job.json").write_text(json.dumps(job))
        monkeypatch.setattr(sys, "argv", ["trial", str(tmp_path / name / "job.json")])
        trials.main()
        results.append(json.loads((tmp_path / name / "result.json").read_text()))
    assert results[0]["val_f1"] == RunFolder(tmp_path / "one" / "run").metrics[-1]["val_f1"] == results[1]["val_f1"]
    assert trials.facts(recipe)["multi_label"]
