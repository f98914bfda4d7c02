"""What several test files share: random arrays, models of a few thousand weights, processes to wait for and to stop."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import filelock
import numpy as np
import psutil
import pytest

from keras_vit.backend import installed_backends

ROOT = Path(__file__).resolve().parents[1]
# For processes of tests in which any backend will do: the one that is imported soonest.
LIGHT = next(name for name in ("torch", "jax", "tensorflow") if name in installed_backends())

# Small ViTs. Between them: every stem, pooling and MLP, learned, fixed and rotary positions, prefix tokens, both data formats.
COMMON = {"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24, "num_classes": 7}
TINY = {
    "gap": {"image_size": (12, 18), "patch_size": (3, 6), "pool": "gap", "layer_scale": 0.1},
    "rotary": {"image_size": (12, 18), "patch_size": (3, 6), "rotary": "centered", "position": "none", "registers": 2},
    "map": {"image_size": (12, 18), "patch_size": (3, 6), "pool": "map", "mlp": "swiglu", "qk_norm": True, "registers": 2},
    "conv": {"image_size": (16, 24), "patch_size": 4, "stem": "conv", "position": "sincos2d", "data_format": "channels_first"},
    "distilled": {"image_size": (16, 12), "patch_size": 4, "distillation": True, "registers": 1, "mlp": "gelu_quick"},
    "clip": {"image_size": (12, 18), "patch_size": 6, "pool": "cls_gap", "pre_norm": True, "mlp": "gelu_tanh"},
}
TINY["rotary"] |= {"key_bias": False, "layer_scale": 0.1, "mlp": "swiglu", "mlp_norm": True, "attention_norm": True}
TINY = {name: {**COMMON, **settings} for name, settings in TINY.items()}

# For training: as few weights and patches as there can be.
SMALL = {"image_size": (8, 12), "channels": 1, "patch_size": (4, 3), "width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 12}


def once(tmp_path_factory, name, make):
    """A folder that `make(folder)` fills, once for all processes of a test run: the others wait for it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    done = folder / "done"
    with filelock.FileLock(f"{folder}.lock"):
        if not done.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            done.touch()
    return folder


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def augmented(images, labels, config, seed, num_classes, over=False):
    """A whole batch, augmented with random numbers of a seed."""
    from keras_vit.data.augment import augment, mixing
    from keras_vit.data.seeds import Draws

    mixed = mixing(config, np.random.default_rng((seed, 1)), len(images), images.shape[1:3], over)
    draws = Draws(np.random.default_rng(seed), len(images))
    return augment(images, labels, config, num_classes=num_classes, draws=draws, mixed=mixed)


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(256, size=shape, dtype="uint8")


def made(labels, names=("a", "b", "c"), seed=0):
    """A data set of `SMALL` images whose brightness tells their classes."""
    from keras_vit.data.dataset import DataSet, Split

    rng = np.random.default_rng(seed)
    shown = labels if labels.ndim == 2 else np.eye(len(names), dtype=int)[labels]
    images = rng.integers(60, size=(len(labels), 8, 12, 1), dtype=np.uint8)
    for label in range(len(names)):
        images[shown[:, label] == 1, :, 4 * label : 4 * label + 4] += 150
    parts = [Split(images[rows], labels[rows]) for rows in (slice(0, -24), slice(-24, -12), slice(-12, None))]
    return DataSet("made", *parts, list(names), "f", [])


def make_model(name="gap", **settings):
    """A model of `TINY` with settings of its own and weights that hide no term, as zeros and ones would."""
    from keras_vit import ViTConfig, build_vit
    from keras_vit.parity import randomise

    return randomise(build_vit(ViTConfig(**{**TINY[name], **settings})))


def numpy(x):
    import keras

    return keras.ops.convert_to_numpy(x)


def logits(model, images):
    """What a model gives for images. One program under JAX, which would otherwise compile each operation."""
    import keras

    return predict(model, images) if keras.backend.backend() == "jax" else numpy(model(images, training=False))


def predict(model, images):
    """`model.predict`: one graph. TensorFlow does without XLA, which takes seconds to compile what is called once."""
    import keras

    if keras.backend.backend() == "tensorflow":
        model.jit_compile = False
    return model.predict(images, verbose=0)


@contextlib.contextmanager
def one_line_error(message, error=ValueError):
    """Expects an error that matches and has no second line."""
    with pytest.raises(error, match=message) as caught:
        yield caught
    assert "\n" not in str(caught.value)


def error_line(capsys, function, *arguments):
    """The line with which a command ends, run in this process: one line without a traceback, with exit code 2."""
    from keras_vit.processes import run_command

    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: function(*arguments))
    line = capsys.readouterr().err.strip()
    assert stopped.value.code == 2, line
    assert line.startswith("error: ")
    assert "\n" not in line
    return line.removeprefix("error: ")


def alone(environment):
    """An environment without TensorFlow, unless it is the backend: Keras imports it only to seed it, which takes seconds."""
    if environment["KERAS_BACKEND"] == "tensorflow":
        return environment
    paths = (str(ROOT / "tests" / "alone"), environment.get("PYTHONPATH"))
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def start(*arguments, log, backend=None):
    """This Python with arguments, in the project's folder and a process group of its own; its output is added to a file."""
    import keras

    settings = alone({**os.environ, "KERAS_BACKEND": backend or keras.backend.backend(), "PYTHONUNBUFFERED": "1"})
    # Where the tests run in the background of a shell, children would ignore Ctrl-C as they do.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with open(log, "a") as output:
            return subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                cwd=ROOT, env=settings, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)


def kill(process, ready):
    """SIGKILL to a process of `start` and all that it has started, once `ready()` is true."""
    try:
        wait_for(ready, process)
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def wait_for(ready, process=None, seconds=120):
    """Returns what `ready` returns, once it is true; fails when the process ends before or the time is over."""
    deadline = time.monotonic() + seconds
    while not (answer := ready()):
        assert process is None or process.poll() is None, "the process has ended"
        assert time.monotonic() < deadline, f"nothing happened for {seconds} s"
        time.sleep(0.02)
    return answer


# Ctrl-C may come between `open` and the `with` that would close the file. Python then says so; the file is closed all the same.
interruptible = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


@contextlib.contextmanager
def interrupted(ready):
    """Sends Ctrl-C to this process once `ready()` is true."""
    done = threading.Event()

    def send():
        wait_for(lambda: done.is_set() or ready())
        if not done.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGINT, before)


def children(part, process=None):
    """The running descendants of a process, this one by default, whose command line has `part`."""
    found = []
    for child in psutil.Process(process and process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended since
            if part in " ".join(child.cmdline()):
                found.append(child)
    return found


def dead_process():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid
