"""Keras's callbacks in `train`: each works or is refused by name; rates that they set; checkpoints with their optimizer."""

import csv
import inspect
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import ROOT, numpy
from small import STEPS, column, small_data, small_recipe, trained

from keras_vit.data.batches import training_batches
from keras_vit.training.finetune import finetune_recipe
from keras_vit.training.models import compiled_model
from keras_vit.training.optimizer import own_optimizer
from keras_vit.training.speed import stream_settings
from keras_vit.training.user_callbacks import REFUSED

backend = pytest.mark.backend
KINDS = keras.callbacks


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


class Hooks(KINDS.Callback):
    """Notes when a training and its epochs begin and end, and what is known then."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_begin(self, logs=None):
        self.seen.append("begin")

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append((epoch, sorted(logs.keys() & {"val_loss", "val_accuracy"})))

    def on_train_end(self, logs=None):
        self.seen.append("end")


def test_callbacks_have_the_validation_values_and_one_training_for_all_stages(tmp_path):
    hooks, early = Hooks(), KINDS.EarlyStopping(monitor="val_accuracy", patience=2, min_delta=9)
    recipe = small_recipe(stages=[{"until": 0.25, "patch_dropout": 0.5}, {"until": 0.5}])
    run = trained(recipe, tmp_path / "run", callbacks=[hooks, early, KINDS.CSVLogger(str(tmp_path / "log.csv"))])
    values = ["val_accuracy", "val_loss"]
    assert hooks.seen == ["begin", (0, values), (1, values), (2, values), "end"]
    assert run.summary["epochs"] == 3  # the first is the best, two are waited for
    assert run.summary["callbacks"] == ["Hooks", "EarlyStopping", "CSVLogger"]
    with open(tmp_path / "log.csv", newline="") as file:
        logged = list(csv.DictReader(file))
    for name in ("loss", *values):
        assert [float(row[name]) for row in logged] == column(run, name)


MADE = {
    "BackupAndRestore": lambda folder: KINDS.BackupAndRestore(str(folder / "backup")),
    "CSVLogger": lambda folder: KINDS.CSVLogger(str(folder / "log.csv")),
    "EarlyStopping": lambda folder: KINDS.EarlyStopping(restore_best_weights=True),
    "History": lambda folder: KINDS.History(),
    "LambdaCallback": lambda folder: KINDS.LambdaCallback(on_train_batch_end=lambda batch, logs: None),
    "LearningRateScheduler": lambda folder: KINDS.LearningRateScheduler(lambda epoch, rate: rate / 2),
    "ModelCheckpoint": lambda folder: KINDS.ModelCheckpoint(str(folder / "{epoch}-{val_loss:.2f}.keras"), save_freq="epoch"),
    "OrbaxCheckpoint": lambda folder: KINDS.OrbaxCheckpoint(str(folder / "orbax")),
    "ProgbarLogger": lambda folder: KINDS.ProgbarLogger(),
    "ReduceLROnPlateau": lambda folder: KINDS.ReduceLROnPlateau(patience=1, min_delta=9),
    "RemoteMonitor": lambda folder: KINDS.RemoteMonitor("http://127.0.0.1:9"),
    "SwapEMAWeights": lambda folder: KINDS.SwapEMAWeights(),
    "TensorBoard": lambda folder: KINDS.TensorBoard(str(folder / "tensorboard")),
    "TerminateOnNaN": lambda folder: KINDS.TerminateOnNaN(),
}
NEEDS = {"OrbaxCheckpoint": "orbax.checkpoint", "RemoteMonitor": "requests", "TensorBoard": "tensorboard"}


def test_every_callback_of_keras_is_tried():
    every = {name for name, kind in vars(KINDS).items() if inspect.isclass(kind) and issubclass(kind, KINDS.Callback)}
    assert every - {"Callback", "CallbackList"} == set(MADE)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.filterwarnings("ignore:Could not reach RemoteMonitor")
def test_a_callback_works_or_is_refused_by_name(tmp_path, name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    folder = tmp_path / "run"
    recipe = small_recipe(epochs=2, stages=[{"until": 0.5, "patch_dropout": 0.5}])
    if name in REFUSED:
        with pytest.raises(ValueError, match=f"^callbacks: received {name}; allowed: others, as "):
            trained(recipe, folder, callbacks=[MADE[name](tmp_path)])
        assert not folder.exists()
    else:
        assert trained(recipe, folder, callbacks=[MADE[name](tmp_path)]).summary["callbacks"] == [name]


def test_what_is_no_callback_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^callbacks: received a function; allowed: Keras's callbacks$"):
        trained(small_recipe(), tmp_path / "run", callbacks=[lambda epoch: None])


@backend
def test_mlflow_gets_what_metrics_csv_has(monkeypatch, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("mlflow.keras.callback", exc_type=ImportError)  # mlflow-skinny lacks what it needs
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file:{tmp_path / 'mlruns'}")
    with mlflow.start_run() as active:
        run = trained(small_recipe(epochs=2), tmp_path / "run", callbacks=[mlflow.keras.MlflowCallback()])
    client = mlflow.MlflowClient()
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        values = [metric.value for metric in client.get_metric_history(active.info.run_id, name)]
        assert values == pytest.approx(column(run, name), abs=1e-9), name
    assert client.get_run(active.info.run_id).data.params["optimizer_learning_rate"] == "0.01"


# Learning rates


@pytest.mark.parametrize(
    "settings", [{}, slow({"optimizer": "muon"}), slow({"optimizer": "sgd", "accumulate": 2}), slow({"precision": "float16"})]
)
def test_a_rate_that_is_set_is_the_rate_of_the_steps(tmp_path, settings):
    """A cosine whose rate is set is a constant schedule of that rate, bit for bit."""
    recipe = small_recipe(epochs=2, ema=0.5, **settings)
    constant = trained(small_recipe(epochs=2, ema=0.5, schedule="constant", **settings), tmp_path / "constant")
    scheduler = KINDS.LearningRateScheduler(lambda epoch, rate: 0.01)
    check_equal(trained(recipe, tmp_path / "set", callbacks=[scheduler]), constant)


def check_equal(run, other):
    for name in ("loss", "val_loss", "learning_rate"):
        assert column(run, name) == column(other, name), name
    for ours, theirs in zip(run.model().weights, other.model().weights, strict=True):
        np.testing.assert_array_equal(numpy(ours), numpy(theirs))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return trained(small_recipe(model={"depth": 2}, epochs=1), tmp_path_factory.mktemp("checkpoint") / "run")


def tuned(checkpoint, finetune, **settings):
    settings = {"epochs": 4, "batch_size": 16, "warmup_epochs": 0, "learning_rate": 0.01, **settings}
    return finetune_recipe(checkpoint.path, data="made", augment={"flip": False, "crop": 0}, train=settings, finetune=finetune)


class EachStep(KINDS.Callback):
    """Sets the rate before each step."""

    def on_train_batch_begin(self, batch, logs=None):
        self.model.optimizer.learning_rate = 0.01


@backend
def test_a_rate_that_is_set_before_each_step_is_scaled_by_layer_decay(checkpoint, tmp_path):
    decay = {"layer_decay": 0.5, "freeze": 1}
    constant = trained(tuned(checkpoint, decay, epochs=2, schedule="constant"), tmp_path / "constant")
    check_equal(trained(tuned(checkpoint, decay, epochs=2), tmp_path / "set", callbacks=[EachStep()]), constant)


def test_a_reduced_rate_stays_after_a_kill_and_ends_with_the_schedule(tmp_path):
    """The state of an epoch is written after the callbacks have set the rate of the next; an extension has its own schedule."""
    recipe = small_recipe(epochs=3, schedule="constant", warmup_epochs=0)

    def plateau():
        return KINDS.ReduceLROnPlateau(monitor="loss", factor=0.1, patience=1, min_delta=9, cooldown=9)

    whole = trained(recipe, tmp_path / "whole", callbacks=[plateau()])
    assert column(whole, "learning_rate") == pytest.approx([0.01, 0.01, 0.001])
    run = trained(recipe, tmp_path / "run", callbacks=[plateau()], until=2)
    trained(recipe, run.path, resume=True)
    check_equal(run, whole)
    assert run.summary["callbacks"] == ["ReduceLROnPlateau"]
    trained(recipe, run.path, resume=True, extend=1)
    assert run.metrics[3]["learning_rate"] == pytest.approx(0.01)


@backend
def test_a_rate_that_is_none_is_refused():
    optimizer = own_optimizer(compiled_model(small_recipe().with_train(epochs=1), 4)[0].optimizer)
    with pytest.raises(ValueError, match=r"^learning_rate: received -1"):
        optimizer.learning_rate = -1.0
    with pytest.raises(ValueError, match=r"^learning_rate: received a ExponentialDecay; allowed: a number$"):
        optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.1)
    optimizer.learning_rate = np.float32(0.25)
    assert float(numpy(optimizer.learning_rate)) == 0.25


# Checkpoints


def fit_epoch(model, recipe, epoch):
    """One epoch of a run's own batches with a compiled model."""
    data = small_data()
    settings = stream_settings(recipe, data)
    batches = training_batches(data.train, recipe.augment, start_step=epoch * STEPS, image_size=(8, 12), **settings)
    model.fit(batches, steps_per_epoch=STEPS, epochs=1, shuffle=False, verbose=0)
    return model


def state_of(model, kind):
    return [numpy(variable) for variable in getattr(model, kind).variables]


def stored(run, kind):
    """A training state's arrays of `model` or `optimizer`, in the order of the variables."""
    arrays, _ = run.read_state()
    return [array for name, array in sorted(arrays.items()) if name.startswith(f"{kind}/")]


CASES = {
    "adamw": {},
    "weighted": {"loss": "focal", "class_weights": {"a": 2.0}},
    "muon": {"optimizer": "muon", "accumulate": 2},
    "float16": {"precision": "float16"},
    "averages": {"ema": 0.5},
    "sgd": {"optimizer": "sgd", "precision": "bfloat16"},
    "lion": {"optimizer": "lion"},
}


@backend
@pytest.mark.parametrize("case", [slow(case) for case in CASES])
def test_a_loaded_checkpoint_goes_on_like_the_run(tmp_path, case):
    check_checkpoint(small_recipe(**CASES[case]), tmp_path)


@backend
def test_a_loaded_checkpoint_of_a_fine_tuning_goes_on_like_the_run(checkpoint, tmp_path):
    check_checkpoint(tuned(checkpoint, {"layer_decay": 0.5, "freeze": 1}), tmp_path)


def check_checkpoint(recipe, folder):
    saver = KINDS.ModelCheckpoint(str(folder / "{epoch}.keras"))
    run = trained(recipe, folder / "run", callbacks=[saver], until=3)
    final = stored(run, "optimizer")
    loaded = keras.models.load_model(folder / "3.keras")
    assert int(numpy(own_optimizer(loaded.optimizer).iterations)) == 3 * STEPS // recipe.train.accumulate
    for ours, theirs in zip(state_of(loaded, "optimizer"), final, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(loaded.trainable_variables) == len(compiled_model(run.recipe, 1)[0].trainable_variables)
    # From the second epoch's file to the third's.
    model = fit_epoch(keras.models.load_model(folder / "2.keras"), run.recipe, epoch=2)
    for ours, theirs in zip(state_of(model, "optimizer"), final, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    if not recipe.train.ema:  # `fit` ends with the averages in their place
        for ours, theirs in zip(model.weights, loaded.weights, strict=True):
            np.testing.assert_array_equal(numpy(ours), numpy(theirs))


def test_the_old_format_is_refused(tmp_path):
    for path in ("m.h5", "{epoch}.h5"):
        with pytest.raises(ValueError, match=rf"^callbacks: received ModelCheckpoint with '{path}'; allowed: \.keras"):
            trained(small_recipe(), tmp_path / "run", callbacks=[KINDS.ModelCheckpoint(path)])
    with pytest.raises(ValueError, match=r"^filepath: received '.*m\.h5'; allowed: a name that ends in \.keras$"):
        compiled_model(small_recipe(), 1)[0].save(tmp_path / "m.h5")
    weights = KINDS.ModelCheckpoint(str(tmp_path / "m.weights.h5"), save_weights_only=True)
    run = trained(small_recipe(epochs=1), tmp_path / "run", callbacks=[weights])
    model = compiled_model(run.recipe, 1)[0]
    model.load_weights(tmp_path / "m.weights.h5")
    for ours, theirs in zip(model.weights, run.model().weights, strict=True):
        np.testing.assert_array_equal(numpy(ours), numpy(theirs))


def test_a_checkpoint_with_adapters_has_them_merged_and_no_optimizer(checkpoint, tmp_path):
    saver = KINDS.ModelCheckpoint(str(tmp_path / "{epoch}.keras"))
    run = trained(tuned(checkpoint, {"method": "lora", "lora_rank": 2}, epochs=2), tmp_path / "run", callbacks=[saver])
    loaded = keras.models.load_model(tmp_path / f"{run.summary['best_epoch']}.keras")
    assert not loaded.compiled
    assert loaded.get_config()["frozen"] == []
    images = np.random.default_rng(0).normal(size=(5, 8, 12, 1)).astype("float32")
    np.testing.assert_allclose(numpy(loaded(images)), numpy(run.model()(images)), atol=1e-5)


LOAD = """
import sys, keras
try:
    keras.models.load_model(sys.argv[1])
except TypeError as error:
    print(error)
import keras_vit
print(type(keras.models.load_model(sys.argv[1]).optimizer).__name__)
"""


def test_a_process_must_import_the_library_and_is_told_its_name(tmp_path):
    path = tmp_path / "m.keras"
    trained(small_recipe(epochs=1, ema=0.5), tmp_path / "run", callbacks=[KINDS.ModelCheckpoint(str(path))])
    said = subprocess.run([sys.executable, "-c", LOAD, path], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "Could not locate class 'ViT'" in said
    assert said.partition("Full object config: ")[2].startswith("{'module': 'keras_vit.model.vit', 'class_name': 'ViT'")
    assert said.splitlines()[-1].endswith("WithGrowingAverage")
