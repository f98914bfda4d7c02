"""One seed for every test, one thread for each of the processes that share the cores, and short compilations; shared fixtures."""

import gc
import os
import signal
import warnings

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's threads would wait for those of the other test process
# The same programs of XLA, translated without LLVM's optimisation: small models take longer to compile than to run.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# Keras is imported where it is needed: the process that hands out the tests needs it not.


def pytest_configure(config):
    """What JAX compiles is kept in pytest's cache: for the other processes, and for the next tests of the same programs."""
    if cache := getattr(config, "cache", None):  # none with -p no:cacheprovider
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache.mkdir("jax")))
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


@pytest.fixture(autouse=True)
def seed():
    import keras

    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """What is known of checked files is not kept in the user's home."""
    from keras_vit.data import checked

    monkeypatch.setattr(checked, "CHECKED", tmp_path_factory.getbasetemp() / "checked")


@pytest.fixture(autouse=True)
def own_signals():
    """A command that runs in this process leaves no handler to the next test."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def little_garbage():
    """Keras collects garbage at every layer that it quantises: a third of a second each, if not for this."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def in_process(monkeypatch):
    """The backend of this process writes exports, in this process: for tests that judge the artifact and not who writes it."""
    import keras

    from keras_vit.export import export
    from keras_vit.export.writers import write

    monkeypatch.setattr(export, "choose_writer", lambda format: keras.backend.backend())

    def run_python(arguments, backend, **settings):
        with warnings.catch_warnings():  # as in a process of its own, those of the writers are no errors
            warnings.simplefilter("ignore")
            write(arguments[-1])

    monkeypatch.setattr(export, "run_python", run_python)
