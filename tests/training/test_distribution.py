"""Trainings on many devices and in several processes: the numbers of one device, and what is refused."""

import contextlib
import csv
import importlib
import json
import re
import signal
import time

import keras
import numpy as np
import pytest
from helpers import ROOT, random_pixels

from benchmarks.devices import start
from keras_vit.runs.folder import RunFolder
from keras_vit.training.distribution.base import Distribution, check_agreement, gather_rows, gather_texts, on_first
from keras_vit.training.distribution.join import joined

BACKEND = keras.backend.backend()
SCRIPT = ROOT / "experiments" / "train_cifar.py"
SUMMATION = 1e-4  # other orders of the sums over a batch, 50 steps
MODEL = {"image_size": 8, "channels": 1, "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24, "stem": "conv"}
MODEL |= {"stem_depth": 1}
TRAIN = {"batch_size": 8, "precision": "float32", "steps_per_epoch": 25, "epochs": 2, "validate_every": 2, "learning_rate": 3e-3}
AUGMENT = {"crop": 1, "mixup": 0.8, "cutmix": 1.0, "randaugment_layers": 1}
TOGETHER = pytest.mark.distributed
KINDS = ["data", "model"] if BACKEND == "torch" else ["data"]  # of several processes


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An .npz file of 90 training and 21 test images: three processes of two cannot share either evenly."""
    file = tmp_path_factory.mktemp("images") / "images.npz"
    labels = np.arange(111) % 3
    pixels = random_pixels(111, 8, 8, 1) // 4 + (60 * labels[:, None, None, None]).astype("uint8")
    np.savez(file, x_train=pixels[:90], y_train=labels[:90], x_test=pixels[90:], y_test=labels[90:])
    return file


def settings(images, **changes):
    groups = {"model": MODEL, "train": TRAIN | changes, "augment": AUGMENT}
    return [f"--data=arrays:{images}", "--recipe=digits", "--validation=21"] + [
        f"--{group}.{name}={value}" for group, values in groups.items() for name, value in values.items()
    ]


@contextlib.contextmanager
def launched(processes, arguments, devices=1):
    """The processes of a training; none is left afterwards."""
    started = start(BACKEND, processes, arguments, devices)
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            for pipe in (process.stdout, process.stderr):
                pipe.close()
            process.wait()


def wait_for(process, text):
    """Reads what a process says until a line begins with a text."""
    for line in process.stdout:
        if line.startswith(text):
            return
    raise AssertionError(process.stderr.read())


def run(processes, out, arguments, devices=1, code=0):
    """What the processes of a training have said, once they have ended with an exit code."""
    with launched(processes, [SCRIPT, *arguments, f"--out={out}"], devices) as started:
        return ended(started, code)


def ended(started, code):
    said = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [code] * len(started), said
    return said


def metrics(run):
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = ("loss", "accuracy", "val_loss", "val_accuracy")
    return np.array([[float(row.get(name) or 0) for name in names] for row in rows])


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    """The metrics of a training on one device."""
    out = tmp_path_factory.mktemp("alone") / "run"
    run(1, out, settings(images))
    return metrics(out)


@TOGETHER
@pytest.mark.backend
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_the_numbers_of_one(images, alone, tmp_path, kind):
    """Mixed images have partners in the other process; the validation images do not divide; only the first process speaks."""
    said = run(2, tmp_path / "run", settings(images, distribute=kind))
    np.testing.assert_allclose(metrics(tmp_path / "run"), alone, atol=SUMMATION)
    assert "2 devices of 2 processes" in said[0][0]
    assert [line for line in said[1][0].splitlines() if not line.startswith("[Gloo]")] == []
    assert alone[-1, 0] < alone[0, 0] - 0.05  # something was learned
    assert 0.05 < RunFolder(tmp_path / "run").temperature < 20


@TOGETHER
@pytest.mark.backend
def test_two_processes_pre_train_as_one(images, tmp_path):
    """Each hides patches of its own part of a batch, and of its validation images."""
    arguments = [
        "--pretrain.method=mae",
        "--pretrain.mask_ratio=0.5",
        *settings(images, steps_per_epoch=10),
        "--augment.label_smoothing=0",
    ]
    arguments = [each for each in arguments if "mixup" not in each and "cutmix" not in each] + ["--augment.cutmix=0"]
    for processes, kind in ((1, "none"), (2, "data")):
        run(processes, tmp_path / kind, [*arguments, f"--train.distribute={kind}"])
    alone = metrics(tmp_path / "none")
    np.testing.assert_allclose(metrics(tmp_path / "data"), alone, atol=SUMMATION)
    assert alone[-1, 0] < 0.95 * alone[0, 0]
    assert (tmp_path / "data" / "plots" / "reconstructions.png").is_file()


@TOGETHER
@pytest.mark.backend
@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch has one device a process")
@pytest.mark.parametrize("kind", ["data", "model"] if BACKEND == "jax" else ["data"])
def test_two_devices_of_a_process_give_the_numbers_of_one(images, alone, tmp_path, kind):
    run(1, tmp_path / "run", settings(images, distribute=kind), devices=2)
    np.testing.assert_allclose(metrics(tmp_path / "run"), alone, atol=SUMMATION)


@TOGETHER
@pytest.mark.backend
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_with_fewer_processes(images, alone, tmp_path, kind):
    """SIGKILL takes both of two processes in the middle of a training; one process ends it, to the same numbers."""
    with launched(2, [SCRIPT, *settings(images, distribute=kind), f"--out={tmp_path / 'run'}"]) as started:
        wait_for(started[0], "Epoch 2")
    with launched(1, [SCRIPT, f"--resume={tmp_path / 'run'}", "--train.distribute=none"]) as started:
        ended(started, 0)
    np.testing.assert_allclose(metrics(tmp_path / "run"), alone, atol=SUMMATION)


WARNED = """
import json, os, signal, sys
import keras, keras_vit
from keras_vit.training.distribution.join import JOINED

class Warn(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if JOINED[groups["train"]["distribute"]].rank == 1 and [self.epoch, batch] == place:
            os.kill(os.getpid(), signal.SIGTERM)

file, out, place, groups = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
recipe = keras_vit.load_recipe("digits", data=f"arrays:{file}", validation=21, **groups)
keras_vit.train(recipe, out, resume="auto", callbacks=[Warn()], verbose=2)
"""


@TOGETHER
@pytest.mark.backend
@pytest.mark.parametrize("kind", KINDS)
def test_a_warning_to_one_process_saves_and_ends_all_within_an_epoch(images, alone, tmp_path, kind):
    """Two processes are warned in the first epoch, and again in the second; one process ends the run."""
    out, changes = tmp_path / "run", {"distribute": kind, "save_every": "10 steps"}
    groups = json.dumps({"model": MODEL, "train": TRAIN | changes, "augment": AUGMENT})
    for place in ([0, 12], [1, 5]):
        with launched(2, ["-c", WARNED, images, out, json.dumps(place), groups]) as started:
            said = ended(started, 143)
        assert "saved after step " in said[0][0]
    arrays, values = RunFolder(out).read_state()
    assert (values["epoch"], values["step"]) == (1, 10)
    assert arrays
    with launched(1, [SCRIPT, f"--resume={out}", "--train.distribute=none"]) as started:
        ended(started, 0)
    np.testing.assert_allclose(metrics(out), alone, atol=SUMMATION)


DIVIDED = """
import json, sys
import keras, numpy as np
from keras_vit import ViTConfig
from keras_vit.recipes.schema import Recipe, TrainConfig
from keras_vit.training.distribution.base import Distribution
from keras_vit.training.distribution.join import join
from keras_vit.training.models import carry_over, compiled_model

shared, settings = join("model", 120), json.loads(sys.argv[1])
rng = np.random.default_rng(0)
targets = np.eye(10, dtype="float32")[rng.integers(10, size=8)]

def steps(model, where, count=8):
    images = rng.normal(size=(8, *model.input_shape[1:])).astype("float32")
    index, parts = where.part
    for _ in range(count):
        model.reset_metrics()
        x, y = (array.reshape(parts, -1, *array.shape[1:])[index] for array in (images, targets))
        yield where.means({"loss": float(model.train_on_batch(x, y)[0])})["loss"]

def stages(train, where):
    recipes = [Recipe(model=ViTConfig(**settings | {"image_size": size}), train=TrainConfig(**train)) for size in (8, 12)]
    models = [compiled_model(recipe, 16, distribution=where)[0] for recipe in recipes]
    losses = [*steps(models[0], where)]
    with where.whole(models[0]), where.whole(models[1]):
        carry_over(*models)
    return [*losses, *steps(models[1], where)], models[1]

for train in json.loads(sys.argv[2]):
    rng = np.random.default_rng(0)
    alone, _ = stages(train, Distribution())
    rng = np.random.default_rng(0)
    losses, model = stages(train, shared)
    weights = [weight.value for weight in model.trainable_variables]
    kept = [variable.value for variable in model.optimizer.variables if variable.ndim and variable.name != "schedule"]
    tensors = [*weights, *(weight.grad for weight in weights), *kept]
    bytes = [sum(tensor.nbytes for tensor in tensors), sum(tensor.to_local().nbytes for tensor in tensors)]
    print("FOUND", json.dumps([alone, losses, bytes, sum(weight.nbytes for weight in weights)]))
"""


@TOGETHER
@pytest.mark.backend
@pytest.mark.skipif(BACKEND != "torch", reason="about PyTorch")
def test_each_process_has_a_part_of_weights_gradients_and_moments(tmp_path):
    """Two stages of other image sizes, by two optimizers, have the losses of one device."""
    common = {"batch_size": 8, "precision": "float32", "learning_rate": 3e-3, "warmup_epochs": 0, "clip_norm": 1.0}
    trains = [common | {"ema": 0.9, "remat": True}, common | {"optimizer": "muon", "accumulate": 2, "learning_rate": 0.01}]
    with launched(2, ["-c", DIVIDED, json.dumps(MODEL | {"num_classes": 10}), json.dumps(trains)]) as started:
        said = [[json.loads(line[6:]) for line in out.splitlines() if line.startswith("FOUND")] for out, _ in ended(started, 0)]
    for ours, theirs in zip(*said, strict=True):
        alone, losses, (whole, part), weights = ours
        np.testing.assert_allclose(losses, alone, atol=SUMMATION)
        assert alone[7] < alone[0] - 0.05
        assert whole > 2.9 * weights  # with gradients and moments; Muon has one of a matrix
        assert part + theirs[2][1] == whole
        assert abs(part / whole - 0.5) < 0.02


@TOGETHER
@pytest.mark.backend
@pytest.mark.parametrize(
    ("devices", "changes", "message"),
    [
        (1, {"batch_size": 9, "distribute": "data"}, "batch_size: received 9; allowed: multiples of 2"),
        (1, {"distribute": "none"}, "distribute: received none in one of several processes"),
    ],
)
def test_several_processes_refuse(images, tmp_path, devices, changes, message):
    for _, error in run(2, tmp_path / "run", settings(images, **changes), code=2):
        assert message in error.splitlines()[-1]  # TensorFlow's engine has said lines of its own before
        assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


@TOGETHER
@pytest.mark.backend
def test_processes_with_other_recipes_refuse(images, tmp_path):
    def arguments(rank):
        return [SCRIPT, *settings(images, distribute="data", learning_rate=1e-3 * (rank + 1)), f"--out={tmp_path / 'run'}"]

    with launched(2, arguments) as started:
        for _, error in ended(started, 2):
            assert "distribute: received train.learning_rate 0.002 in process 1; allowed: 0.001, as in process 0" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.backend
@pytest.mark.skipif(BACKEND != "tensorflow", reason="about TensorFlow")
def test_tensorflow_divides_no_model():
    with pytest.raises(ValueError, match="distribute: received model; allowed under TensorFlow: none, data"):
        joined("model", 1)


@pytest.mark.backend
@pytest.mark.skipif(BACKEND != "torch", reason="about PyTorch")
@pytest.mark.parametrize("kind", ["data", "model"])
def test_pytorch_needs_torchrun(kind):
    with pytest.raises(ValueError, match=rf"distribute: received {kind}; allowed under PyTorch: none, or start .* with torchrun"):
        joined(kind, 1)


@pytest.mark.backend
def test_a_cluster_contradicts_one_device(monkeypatch):
    variables = {"jax": ("KERAS_DISTRIBUTION_NUM_PROCESSES", "2"), "torch": ("WORLD_SIZE", "2")}
    variables["tensorflow"] = ("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}}')
    name, value = variables[BACKEND]
    monkeypatch.setenv(name, value)
    assert importlib.import_module(f"keras_vit.training.distribution.{BACKEND}").cluster() == name
    with pytest.raises(ValueError, match=f"received none in one of several processes .{name}.; allowed: data"):
        joined("none", 1)


@pytest.mark.backend
def test_one_of_several_tasks_of_a_scheduler_may_train_alone(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "8")  # an allocation; nothing has been started by srun
    assert importlib.import_module(f"keras_vit.training.distribution.{BACKEND}").cluster() == ""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    assert joined("none", 1).processes == 1


@pytest.mark.backend
@pytest.mark.parametrize("value", ["two", "-1", "{", "[]"])
def test_a_variable_of_the_cluster_that_cannot_be_read(monkeypatch, value):
    name = {"jax": "KERAS_DISTRIBUTION_NUM_PROCESSES", "torch": "WORLD_SIZE", "tensorflow": "TF_CONFIG"}[BACKEND]
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=rf"^{name}: received '{re.escape(value)}'; allowed: "):
        joined("data", 1)


@pytest.mark.backend
@pytest.mark.skipif(BACKEND != "jax", reason="about JAX")
def test_model_parallel_in_several_processes_is_refused(monkeypatch):
    monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
    with pytest.raises(ValueError, match=r"received model in one of several processes \(KERAS.*\); allowed under JAX: data$"):
        joined("model", 1)


class Two(Distribution):
    """Two processes of which the other one has made other things."""

    processes = 2

    def __init__(self, other):
        self.other = other

    def gather(self, array):
        return np.stack([array, self.other(array)])


def test_gathering():
    alone = Distribution()
    assert gather_texts(alone, "ä b") == ["ä b"]
    assert gather_rows(alone, np.ones((3, 2), np.float32)).shape == (3, 2)
    with pytest.raises(OSError, match="full"):
        on_first(alone, lambda: (_ for _ in ()).throw(OSError("full")))
    check_agreement(alone, {"seed": 7})
    with pytest.raises(ValueError, match=r"^distribute: received seed 8 in process 1; allowed: 7, as in process 0$"):
        check_agreement(Two(lambda array: np.where(array == ord("7"), ord("8"), array)), {"seed": 7})


@TOGETHER
@pytest.mark.backend
def test_a_killed_process_ends_the_others(images, tmp_path):
    """The other one says so in one line, within a minute."""
    with launched(2, [SCRIPT, *settings(images, distribute="data", epochs=200), f"--out={tmp_path / 'run'}"]) as started:
        wait_for(started[0], "Epoch 3")
        started[1].kill()
        begin = time.monotonic()
        _, error = started[0].communicate(timeout=150)
        assert started[0].returncode == 2, error
        assert "distribute: another process has ended or does not answer" in error.splitlines()[-1]
        assert "Traceback" not in error
    assert time.monotonic() - begin < 60


@TOGETHER
@pytest.mark.backend
@pytest.mark.parametrize("missing", [0, 1])
def test_a_process_that_never_comes_is_named(images, tmp_path, missing):
    def arguments(rank):
        if rank == missing:
            return ["-c", "import time; time.sleep(300)"]
        return [SCRIPT, *settings(images, distribute="data", peer_timeout=3), f"--out={tmp_path / 'run'}"]

    with launched(2, arguments) as started:
        _, error = started[1 - missing].communicate(timeout=100)
    assert started[1 - missing].returncode == 2, error
    # PyTorch's own words where the first process, which knows who is there, is the one that is missing.
    words = "not all processes have come after 3 s" if (BACKEND, missing) == ("torch", 0) else f"received no process {missing}"
    assert f"error: distribute: {words}" in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


@TOGETHER
@pytest.mark.backend
def test_a_silent_process_ends_the_others(images, tmp_path):
    """SIGSTOP: its connections stay open, and nothing comes."""
    arguments = [SCRIPT, *settings(images, distribute="data", epochs=200, peer_timeout=8), f"--out={tmp_path / 'run'}"]
    with launched(2, arguments) as started:
        wait_for(started[0], "Epoch 3")
        started[1].send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        _, error = started[0].communicate(timeout=150)
        # JAX ends a process itself whose peers are silent, in its words.
        assert started[0].returncode == (-signal.SIGABRT if BACKEND == "jax" else 2), error
        assert ("detected fatal errors" if BACKEND == "jax" else "another process has ended or does not answer") in error
    assert time.monotonic() - begin < 60
    arrays, values = RunFolder(tmp_path / "run").read_state()
    assert arrays
    assert values["epoch"] >= 2
