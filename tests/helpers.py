"""What several test files share: random arrays, models of a few thousand weights, processes to wait for and to stop."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest

# Small ViTs. Between them: every stem, pooling and MLP, learned and fixed positions, prefix tokens, both data formats.
COMMON = {"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24, "num_classes": 7}
TINY = {
    "gap": {"image_size": (12, 18), "patch_size": (3, 6), "pool": "gap", "layer_scale": 0.1},
    "map": {"image_size": (12, 18), "patch_size": (3, 6), "pool": "map", "mlp": "swiglu", "qk_norm": True, "registers": 2},
    "conv": {"image_size": (16, 24), "patch_size": 4, "stem": "conv", "position": "sincos2d", "data_format": "channels_first"},
    "distilled": {"image_size": (16, 12), "patch_size": 4, "distillation": True, "registers": 1, "mlp": "gelu_quick"},
    "clip": {"image_size": (12, 18), "patch_size": 6, "pool": "cls_gap", "pre_norm": True, "mlp": "gelu_tanh"},
}
TINY = {name: {**COMMON, **settings} for name, settings in TINY.items()}


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(256, size=shape, dtype="uint8")


def make_model(name="gap", **settings):
    """A model of `TINY` with settings of its own and weights that hide no term, as zeros and ones would."""
    from keras_vit import ViTConfig, build_vit
    from keras_vit.parity import randomise

    return randomise(build_vit(ViTConfig(**{**TINY[name], **settings})))


def numpy(x):
    import keras

    return keras.ops.convert_to_numpy(x)


def logits(model, images):
    return numpy(model(images, training=False))


@contextlib.contextmanager
def one_line_error(message, error=ValueError):
    """Expects an error that matches and has no second line."""
    with pytest.raises(error, match=message) as caught:
        yield caught
    assert "\n" not in str(caught.value)


def wait_for(ready, process=None, seconds=120):
    """Returns what `ready` returns, once it is true; fails when the process ends before or the time is over."""
    deadline = time.monotonic() + seconds
    while not (answer := ready()):
        assert process is None or process.poll() is None, "the process has ended"
        assert time.monotonic() < deadline, f"nothing happened for {seconds} s"
        time.sleep(0.02)
    return answer


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
