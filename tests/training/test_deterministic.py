"""`train.deterministic`: the same numbers in two processes, with operations that repeat them on every device."""

import json
import os
import subprocess
import sys

import keras
import pytest
from helpers import ROOT, alone

from keras_vit import machine
from keras_vit.recipes.schema import TrainConfig

BACKEND = keras.backend.backend()

# Everything that draws or sums: dropout, stochastic depth, patch dropout, mixing, averages, resampled positions of a stage.
TRAIN = """
import hashlib, json, os, sys
sys.path.append("tests/training")
from small import small_recipe, trained
model = {"depth": 2, "dropout": 0.1, "drop_path": 0.1, "patch_dropout": 0.25}
augment = {"mixup": 0.8, "cutmix": 1.0, "flip": True}
stages = [{"until": 0.5, "image_scale": 0.5}]
recipe = small_recipe(model=model, augment=augment, ema=0.9, stages=stages, deterministic=sys.argv[1] == "True")
run = trained(recipe, sys.argv[2])
weights = {weight.path: hashlib.sha256(weight.numpy().tobytes()).hexdigest() for weight in run.model().weights}
rows = [{name: value for name, value in row.items() if "loss" in name or "accuracy" in name} for row in run.metrics]
backend = os.environ["KERAS_BACKEND"]
if backend == "torch":
    import torch
    on = torch.are_deterministic_algorithms_enabled() and os.environ.get("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"
elif backend == "tensorflow":
    from tensorflow.python.framework import config
    on = config.is_op_determinism_enabled()
else:
    on = "--xla_gpu_deterministic_ops=true" in os.environ.get("XLA_FLAGS", "")
print(json.dumps([bool(on), rows, weights]))
"""


def trained(deterministic, folder):
    command = [sys.executable, "-c", TRAIN, str(deterministic), str(folder)]
    environment = alone({**os.environ, "KERAS_BACKEND": BACKEND, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"})
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.backend
@pytest.mark.parametrize("deterministic", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_two_processes_give_the_same_bits(tmp_path, deterministic):
    """Also without the setting, on a processor."""
    on, rows, weights = trained(deterministic, tmp_path / "first")
    assert on == deterministic
    assert len(rows) == 4
    assert len(set(weights.values())) > 10
    assert trained(deterministic, tmp_path / "second") == [deterministic, rows, weights]


def test_jax_must_not_have_used_a_gpu(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(machine, "has_backend", lambda: True)
    monkeypatch.setattr(machine, "accelerator", lambda: "NVIDIA H200")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    with pytest.raises(ValueError, match=r"^deterministic: received true after JAX has used a device; allowed: "):
        machine.use_deterministic_operations()
    monkeypatch.setenv("XLA_FLAGS", "--a=1 --xla_gpu_deterministic_ops=true")
    machine.use_deterministic_operations()
    monkeypatch.setenv("XLA_FLAGS", "--a=1")
    monkeypatch.setattr(machine, "has_backend", lambda: False)
    machine.use_deterministic_operations()
    assert os.environ["XLA_FLAGS"] == "--a=1 --xla_gpu_deterministic_ops=true"


def test_the_setting():
    with pytest.raises(ValueError, match="deterministic: received 1; allowed: True, False"):
        TrainConfig(deterministic=1)
    with pytest.raises(ValueError, match="peer_timeout: received 0; allowed: "):
        TrainConfig(peer_timeout=0)
