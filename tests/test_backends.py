"""The same files and the same numbers under every backend that is installed, and an import that costs little."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from helpers import alone, once

from keras_vit.backend import QuietTensorFlow, installed_backends, quiet_tensorflow
from keras_vit.parity import compare

TESTS = pathlib.Path(__file__).parent
BACKENDS = installed_backends()
FORWARD = 1e-5  # absolute, logits near 1, float32
EXPLANATION = 1e-4  # of the largest value of a map
IMPORT_SECONDS = 0.3
ATTEMPTS = 3  # on a busy machine the best of three counts
HEAVY = {"tensorflow", "torch", "jax", "matplotlib", "tensorflow_datasets", "keras_tuner", "sklearn", "PIL"}
CONFIGS = ("cls", "map", "conv")  # of backend_worker.py
EXPLAINED = ("quick", "merged", "twins")

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def environment(backend):
    paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def sources(backend):
    """Whose files a backend loads: its own, and those of the one before it; the last one is before the first."""
    return list(dict.fromkeys((backend, BACKENDS[BACKENDS.index(backend) - 1])))


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """What backend_worker.py computed, by backend: once for all test processes."""
    folder = once(tmp_path_factory, "backends", run_workers)
    return {backend: dict(np.load(folder / f"{backend}.npz")) for backend in BACKENDS}


def run_workers(folder):
    """Runs a worker for each backend, side by side, since each waits for another's files."""
    command = [sys.executable, str(TESTS / "backend_worker.py"), str(folder)]
    logs = {backend: folder / f"{backend}.log" for backend in BACKENDS}
    processes = {}
    for backend in BACKENDS:
        with logs[backend].open("wb") as log:
            processes[backend] = subprocess.Popen(
                [*command, ",".join(sources(backend))], env=alone(environment(backend)), stdout=log, stderr=log
            )
    for backend, process in processes.items():
        assert process.wait() == 0, f"{backend}:\n{logs[backend].read_text(errors='replace')[-3000:]}"


@pytest.mark.parametrize(("backend", "source"), [(backend, source) for backend in BACKENDS for source in sources(backend)])
@pytest.mark.parametrize("name", CONFIGS)
def test_saved_models_load_everywhere(numbers, backend, source, name):
    expected = numbers[source][f"{source}/{name}/logits"]
    assert expected.std() > FORWARD * 1000
    np.testing.assert_allclose(numbers[backend][f"{source}/{name}/logits"], expected, atol=FORWARD)


@pytest.mark.parametrize("name", CONFIGS)
def test_training_agrees(numbers, name):
    """Logits, loss, gradients and weights after three steps: what `keras-vit parity` compares."""
    prefix = f"parity/{name}/"
    chosen = {
        backend: {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
        for backend, values in numbers.items()
    }
    assert all(sum(key.startswith("gradients/") for key in values) > 15 for values in chosen.values())
    differences = compare(chosen)
    assert len(differences) == 4 * (len(BACKENDS) - 1)
    assert all(difference.passed for difference in differences), differences


@each_backend
@pytest.mark.parametrize("name", EXPLAINED)
def test_explanations_agree(numbers, backend, name):
    prefix = f"explained/{name}/"
    expected = {key: value for key, value in numbers[BACKENDS[0]].items() if key.startswith(prefix)}
    assert len(expected) == 10
    for key, values in expected.items():
        assert values.std() > 1e-3 * np.abs(values).max(), key
        np.testing.assert_allclose(numbers[backend][key], values, atol=EXPLANATION * np.abs(values).max(), err_msg=key)


def import_keras_vit(backend):
    """Seconds and packages that `import keras_vit` and its kernels add to `import keras`, and whether TensorFlow is loaded."""
    code = (
        "import sys, time, keras; loaded = set(sys.modules); start = time.perf_counter(); import keras_vit, keras_vit.kernels.ops; "
        "print(time.perf_counter() - start); "
        "packages = [{name.partition('.')[0] for name in names} for names in (sys.modules, loaded)]; "
        "print(*packages[0] - packages[1]); print('tensorflow' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, env=environment(backend), capture_output=True, text=True, check=True).stdout
    seconds, modules, tensorflow = output.strip("\n").split("\n")[-3:]
    return float(seconds), set(modules.split()), tensorflow == "True"


@each_backend
def test_import_loads_no_heavy_package(backend):
    _, modules, tensorflow = import_keras_vit(backend)
    assert "keras_vit" in modules
    assert not modules & HEAVY
    assert tensorflow == (backend == "tensorflow")


@pytest.mark.slow
@each_backend
def test_import_is_quick(backend):
    assert min(import_keras_vit(backend)[0] for _ in range(ATTEMPTS)) < IMPORT_SECONDS


@pytest.mark.parametrize(("level", "finders"), [(None, 1), ("3", 1), ("0", 0)])
def test_a_level_of_the_users_own_wins(monkeypatch, level, finders):
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    if level:
        monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", level)
    for _ in range(2):
        quiet_tensorflow()
    assert len(sys.meta_path) == finders
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == (level or "3")


def test_tensorflow_is_imported_silently(capfd, tmp_path):
    (tmp_path / "tensorflow.py").write_text("import os\nos.write(2, b'oneDNN')\nnumber = 3\n")
    module = load_tensorflow(tmp_path)
    assert module.number == 3
    assert capfd.readouterr().err == ""
    os.write(2, b"later")
    assert capfd.readouterr().err == "later"
    (tmp_path / "tensorflow.py").write_text("import os\nraise ImportError('a broken installation')\n")
    with pytest.raises(ImportError, match="a broken installation"):
        load_tensorflow(tmp_path)


def load_tensorflow(folder):
    spec = QuietTensorFlow().find_spec("tensorflow", [str(folder)])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_backend_names_say_why():
    code = "import keras_vit; print(keras_vit.PROBLEM); from keras_vit import ViTConfig"
    done = subprocess.run([sys.executable, "-c", code], env=environment("theano"), capture_output=True, text=True)
    problem = f"KERAS_BACKEND: received 'theano', which is no backend; allowed here: {', '.join(BACKENDS)}"
    assert done.stdout.strip() == problem
    assert done.stderr.strip().splitlines()[-1] == f"ImportError: {problem}"
