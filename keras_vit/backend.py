"""The choice of a Keras backend, made before Keras is imported, and a quiet start of TensorFlow.

This file itself imports no framework.
"""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
from pathlib import Path

BACKENDS = ("tensorflow", "jax", "torch")
SILENT = "3"  # the log level at which TensorFlow prints nothing


def installed_backends() -> list[str]:
    """The backends that are installed, in the order of `BACKENDS`."""
    return [name for name in BACKENDS if importlib.util.find_spec(name)]


def choose_backend() -> str | None:
    """Sets KERAS_BACKEND where the user has not: to the backend of `keras.json`, else to the first that is installed.

    Changes nothing once Keras is imported.

    Returns:
        None, or one line that says why there is no backend: none is installed, or KERAS_BACKEND names one that is not installed.
    """
    if "keras" in sys.modules:
        return None
    installed, chosen = installed_backends(), os.environ.get("KERAS_BACKEND")
    if not installed:
        return f"KERAS_BACKEND: received none that is installed; allowed: {', '.join(BACKENDS)}; pip install one of them"
    if not chosen:
        # Keras writes this file at its first import and names TensorFlow whatever is installed.
        configured = read_configured()
        os.environ["KERAS_BACKEND"] = configured if configured in installed else installed[0]
    elif chosen not in installed:
        known = "is not installed" if chosen in BACKENDS else "is no backend"
        return f"KERAS_BACKEND: received {chosen!r}, which {known}; allowed here: {', '.join(installed)}"
    return None


def read_configured():
    """The backend that Keras's own settings name, or None."""
    file = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "keras.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("backend")
    except (OSError, ValueError, AttributeError):
        return None


class QuietTensorFlow(importlib.abc.MetaPathFinder):
    """Lets TensorFlow be imported without its start-up lines, whoever imports it.

    Keras imports an installed TensorFlow under every backend: to seed it, to save a model. TensorFlow 2.21 prints these lines
    whatever TF_CPP_MIN_LOG_LEVEL says, to the file descriptor of stderr.
    """

    def find_spec(self, name, path=None, target=None):
        if name != "tensorflow":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: run_silent(execute, module)
        return spec


def quiet_tensorflow() -> None:
    """Silences TensorFlow's start-up lines in this process and its children; a user's own TF_CPP_MIN_LOG_LEVEL wins."""
    level = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", SILENT)
    if level == SILENT and not any(isinstance(finder, QuietTensorFlow) for finder in sys.meta_path):
        sys.meta_path.insert(0, QuietTensorFlow())


def run_silent(function, argument):
    """Calls a function and discards what is written to stderr's file descriptor meanwhile; exceptions pass."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr
        return function(argument)
    if sys.stderr:
        sys.stderr.flush()
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        return function(argument)
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def import_tensorflow():
    """TensorFlow, kept off accelerators where it is not Keras's backend."""
    import keras
    import tensorflow as tf

    if keras.backend.backend() != "tensorflow":
        with contextlib.suppress(RuntimeError):  # already in use by whoever imported it first
            tf.config.set_visible_devices([], "GPU")  # it would take the memory that JAX or PyTorch trains in
    return tf
