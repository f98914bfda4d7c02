import contextlib
import dataclasses
import errno
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import keras_vit
from keras_vit import ViTConfig
from keras_vit.data.augment import AugmentConfig
from keras_vit.data.dataset import DataSet, Split
from keras_vit.model.counts import kept_patches
from keras_vit.model.layers import NO_DECAY
from keras_vit.model.resample import resample_positions
from keras_vit.recipes.parse import load_recipe
from keras_vit.recipes.schema import Recipe, TrainConfig
from keras_vit.runs.folder import RunFolder
from keras_vit.training import loop
from keras_vit.training.callbacks import Clock, Diverged
from keras_vit.training.loop import train
from keras_vit.training.models import carry_over, compile_model, compiled_model
from keras_vit.training.optimizer import WarmupSchedule, make_optimizer
from keras_vit.training.session import even_batch_size

ROOT = Path(__file__).resolve().parents[2]
FLOAT32 = 5e-6  # some roundings of weights of about 1
TINY = {"image_size": (8, 12), "channels": 1, "patch_size": (4, 3), "width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 12}


def tiny_model(seed=0, **settings):
    keras.utils.set_random_seed(seed)
    model = keras_vit.build_vit(ViTConfig(**{**TINY, "num_classes": 3, **settings}))
    model.get_layer("head").kernel.assign(np.random.default_rng(seed).normal(size=(8, 3)))
    return model


def examples(count, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 8, 12, 1)).astype("float32"), np.eye(3, dtype="float32")[rng.integers(3, size=count)]


def weights_of(model):
    return [keras.ops.convert_to_numpy(weight) for weight in model.trainable_weights]


def fit(model, config, images, targets, callbacks=()):
    steps = len(images) // config.batch_size
    compile_model(model, make_optimizer(config, steps * config.epochs), "auto")
    model.fit(
        images, targets, batch_size=config.batch_size, epochs=config.epochs, shuffle=False, verbose=0, callbacks=list(callbacks)
    )
    return model


class WeightLog(keras.callbacks.Callback):
    """The weights after every step that the optimizer took, in epochs of one step: loss scaling skips some."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_epoch_end(self, epoch, logs=None):
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        steps = next(variable for variable in optimizer.variables if variable.name == "iteration")  # updates or not
        if int(keras.ops.convert_to_numpy(steps)) > len(self.weights):
            self.weights.append(weights_of(self.model))


# Optimizer


def test_schedule():
    schedule = WarmupSchedule(0.5, warmup=4, total=12)
    rates = [float(keras.ops.convert_to_numpy(schedule(step))) for step in range(13)]
    assert rates[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert rates[4:] == pytest.approx([0.25 * (1 + math.cos(math.pi * step / 8)) for step in range(9)], abs=1e-7)
    constant = WarmupSchedule(0.5, warmup=0, total=12, cosine=False)
    assert [float(keras.ops.convert_to_numpy(constant(step))) for step in (0, 7, 12)] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "lion", "muon"])
def test_weight_decay_spares_biases_norms_tokens_and_positions(optimizer):
    model = tiny_model(registers=1, layer_scale=0.3, pool="map", class_token=True)
    config = TrainConfig(epochs=1, optimizer=optimizer, learning_rate=0.1, weight_decay=0.5, schedule="constant", warmup_epochs=0)
    optimizer = make_optimizer(config, 10)
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(size=weight.shape))
    before = weights_of(model)
    optimizer.build(model.trainable_variables)
    optimizer.apply([keras.ops.zeros(weight.shape) for weight in model.trainable_weights], model.trainable_variables)
    names = set()
    for weight, old, new in zip(model.trainable_weights, before, weights_of(model), strict=True):
        decayed = weight.name == "kernel" and config.optimizer != "adam"
        expected = old * (1 - 0.1 * 0.5) if decayed else old
        np.testing.assert_allclose(new, expected, atol=FLOAT32, err_msg=weight.path)
        names.add(weight.name)
    assert names == {"kernel", *NO_DECAY}


def test_muon_takes_every_matrix():
    model = tiny_model(pool="map")
    optimizer = make_optimizer(TrainConfig(epochs=1, optimizer="muon", warmup_epochs=0, schedule="constant"), 10)
    optimizer.build(model.trainable_variables)
    for weight, velocity in zip(model.trainable_weights, optimizer.adam_velocities, strict=True):
        assert (velocity is None) == (weight.name == "kernel"), weight.path
    # One update moves along an orthogonal matrix: all its singular values lie near one.
    weight = model.get_layer("block_0").attention.qkv.kernel
    before = keras.ops.convert_to_numpy(weight)
    rng = np.random.default_rng(0)
    gradients = [keras.ops.convert_to_tensor(rng.normal(size=w.shape), "float32") for w in model.trainable_weights]
    optimizer.weight_decay = None
    optimizer.apply(gradients, model.trainable_variables)
    values = np.linalg.svd(before - keras.ops.convert_to_numpy(weight), compute_uv=False)
    assert values.min() / values.max() > 0.5


def test_gradient_accumulation_equals_one_large_batch():
    images, targets = examples(24)
    settings = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, "clip_norm": 0.5}
    settings |= {"schedule": "constant", "warmup_epochs": 0}
    large = fit(tiny_model(), TrainConfig(epochs=2, batch_size=12, **settings), images, targets)
    small = fit(tiny_model(), TrainConfig(epochs=2, batch_size=4, accumulate=3, **settings), images, targets)
    start = weights_of(tiny_model())
    moved = max(np.abs(a - b).max() for a, b in zip(start, weights_of(large), strict=True))
    assert moved > 1e-3
    for a, b in zip(weights_of(large), weights_of(small), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=moved / 1000)  # rounding grows from step to step


def test_clipping_bounds_the_global_norm():
    images, targets = examples(6)
    settings = {"optimizer": "sgd", "learning_rate": 1.0, "weight_decay": 0.0, "beta_1": 0.0, "warmup_epochs": 0}
    config = TrainConfig(epochs=1, batch_size=6, schedule="constant", clip_norm=1e-2, **settings)
    start, end = weights_of(tiny_model()), weights_of(fit(tiny_model(), config, images * 10, targets))
    norm = math.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(start, end, strict=True)))
    assert norm == pytest.approx(1e-2, rel=1e-3)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_ema_is_the_average_of_the_weights(tmp_path, precision, accumulate):
    decay, log = 0.7, WeightLog()
    images, targets = examples(8)
    images = np.round(np.clip(images * 40 + 128, 0, 255)).astype("uint8")
    split = Split(images, targets.argmax(1))
    data = DataSet("made", split, None, split, ["a", "b", "c"], "f", [])
    recipe = Recipe(
        model=ViTConfig(**TINY, num_classes=3),
        augment=AugmentConfig(flip=False, crop=0),
        train=TrainConfig(
            epochs=9, batch_size=8, accumulate=accumulate, ema=decay, learning_rate=0.05, warmup_epochs=0, precision=precision
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "StopOnNaN", lambda: log)
        run = train(recipe, tmp_path / "run", data=data, verbose=0)
    assert len(log.weights) >= 4
    average = log.weights[0]  # Keras starts the average at the weights after the first update
    for step, weights in enumerate(log.weights[1:], 2):
        momentum = decay ** (1 / accumulate) if step > accumulate else 0.0
        average = [momentum * a + (1 - momentum) * w for a, w in zip(average, weights, strict=True)]
    assert max(np.abs(a - w).max() for a, w in zip(average, log.weights[-1], strict=True)) > 1e-3
    for expected, saved in zip(average, weights_of(run.model()), strict=True):
        np.testing.assert_allclose(saved, expected, atol=2 * FLOAT32)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_learns_with_float32_weights(tmp_path, precision):
    recipe = small_recipe(train={"precision": precision, "epochs": 5, "batch_size": 32, "learning_rate": 1e-2})
    run = train(recipe, tmp_path / "run", verbose=0)
    losses = [row["loss"] for row in run.metrics]
    assert losses[-1] < 0.9 * losses[0]
    assert {weight.dtype for weight in run.model().weights} == {"float32"}


# Run folder


def small_recipe(**overrides):
    train_settings = {"epochs": 3, "warmup_epochs": 1, "batch_size": 128, **overrides.pop("train", {})}
    model = {"depth": 1, "width": 16, "mlp_dim": 16, **overrides.pop("model", {})}
    return load_recipe("digits", train=train_settings, model=model, **overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(small_recipe(), tmp_path_factory.mktemp("runs") / "run", verbose=0)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run that a test may spoil."""
    return RunFolder(shutil.copytree(finished.path, tmp_path / "copied"))


def test_run_folder(finished):
    rows = finished.metrics
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["learning_rate"] < rows[0]["learning_rate"]
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    summary = finished.summary
    best = max(row["val_accuracy"] for row in rows)
    assert summary["val_accuracy"] == best
    assert summary["parameters"] == finished.model().count_params() == finished.model().config.num_params
    assert summary["data"] == "digits"
    assert summary["backend"] == keras.backend.backend()
    assert summary["versions"]["keras"] == keras.__version__
    assert finished.recipe.model == finished.model().config
    assert (finished.plots / "batch.png").stat().st_size > 10_000
    assert (finished.plots / "curves.png").stat().st_size > 10_000


def test_saved_model_has_the_reported_accuracy(finished):
    data = finished.recipe.load_data()
    images = data.test.images(np.arange(len(data.test))).astype("float32") / 127.5 - 1
    right = finished.model().predict(images, verbose=0).argmax(1) == data.test.labels
    assert finished.summary["test_accuracy"] == pytest.approx(right.mean(), abs=1e-6)


def test_tensorboard_events(finished):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(finished.tensorboard))
    events.Reload()
    values = [event.value for event in events.Scalars("val_accuracy")]
    assert values == pytest.approx([row["val_accuracy"] for row in finished.metrics])


def test_same_seed_same_numbers_and_another_seed_others(finished, tmp_path):
    again = train(small_recipe(), tmp_path / "again", verbose=0)
    other = train(small_recipe(seed=1), tmp_path / "other", verbose=0)
    assert [row["loss"] for row in again.metrics] == [row["loss"] for row in finished.metrics]
    assert [row["loss"] for row in other.metrics] != [row["loss"] for row in finished.metrics]


def test_a_run_in_parts_ends_like_one_in_one_piece(finished, tmp_path):
    seen = []
    log = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch + 1))
    part = train(small_recipe(), tmp_path / "run", until=1, callbacks=[log], verbose=0)
    assert not part.is_finished
    assert part.metrics[0]["val_accuracy"] == finished.metrics[0]["val_accuracy"]
    train(small_recipe(), part.path, until=2, resume=True, callbacks=[log], verbose=0)
    assert seen == [1, 2]
    assert not train(small_recipe(), part.path, until=2, resume=True, callbacks=[log], verbose=0).is_finished
    whole = train(small_recipe(), part.path, resume=True, callbacks=[log], verbose=0)
    assert seen == [1, 2, 3]
    assert [row["loss"] for row in whole.metrics] == [row["loss"] for row in finished.metrics]
    assert whole.summary["test_loss"] == finished.summary["test_loss"]


MODEL = {"image_size": 8, "patch_size": 2, "stem": "patch"}
# Model, stage, and the patches of each image in it; of the model's own there are 16.
STAGES = {
    "images": ({"image_size": 16, "patch_size": 4, "stem": "conv"}, {"until": 0.4, "image_scale": 0.5, "patch_dropout": 0.5}, 2),
    "patches": (MODEL, {"until": 0.6, "patch_scale": 2}, 4),
    "augment": (MODEL, {"until": 0.6, "augment": {"crop": 0, "mixup": 0.5}}, 16),
}


@pytest.mark.parametrize("kind", STAGES)
def test_a_run_of_stages_in_parts_ends_like_one_in_one_piece(tmp_path, kind):
    model, stage, patches = STAGES[kind]
    recipe = small_recipe(model=model, train={"stages": [stage], "ema": 0.9})
    (first, switch, small), (_, last, rest) = recipe.stages()
    assert (first, last) == (0, 3)
    assert kept_patches(small.model.num_patches, small.model.patch_dropout) == patches
    assert (rest.model, rest.augment) == (recipe.model, recipe.augment)
    assert (small.model, small.augment) != (rest.model, rest.augment)
    whole = train(recipe, tmp_path / "whole", verbose=0)
    assert whole.model().config.num_patches == 16
    assert whole.recipe.train.stages == recipe.train.stages
    for until in (switch, switch + 1, None):  # the state after the last epoch of a stage, and after the first of the next
        part = train(recipe, tmp_path / "parts", until=until, resume=until != switch, verbose=0)
    assert [row["loss"] for row in part.metrics] == [row["loss"] for row in whole.metrics]
    assert part.summary["test_loss"] == whole.summary["test_loss"]


def test_a_stage_goes_on_where_the_last_one_ended():
    """Weights are resampled, the optimizer's state is carried over: what is not resampled is the same."""
    recipe = small_recipe(
        model={"image_size": 8, "patch_size": 2, "stem": "patch"},
        train={"stages": [{"until": 0.5, "image_scale": 0.5}], "ema": 0.9, "optimizer": "adamw"},
    )
    small, config = (stage.model for _, _, stage in recipe.stages())
    old, new = (compiled_model(stage, 10)[0] for _, _, stage in recipe.stages())
    for index, variable in enumerate((*old.trainable_variables, *old.optimizer.variables)):
        if "float" in str(variable.dtype):
            variable.assign(np.abs(np.random.default_rng(index).normal(size=variable.shape)))
    carry_over(old, new)
    pairs = zip([*old.variables, *old.optimizer.variables], [*new.variables, *new.optimizer.variables], strict=True)
    changed = []
    for source, target in pairs:
        source, target = ops.convert_to_numpy(source), ops.convert_to_numpy(target)
        if source.shape == target.shape:
            np.testing.assert_array_equal(source, target)
        else:
            changed.append((source, target))
    weight, average, *moments = changed
    for source, target in (weight, average):
        np.testing.assert_array_equal(target, resample_positions(source, small.grid_size, config.grid_size))
    assert len(moments) == 2
    for source, target in moments:
        assert target.min() == target.max() == pytest.approx(source.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"until": 0.5, "image_scale": 0.6}], "stages: patch_size: received 2; allowed: the divisors"),
        ([{"until": 0.5, "patch_scale": 2}], "stages: patch_scale: received 2; allowed: 1 with stem=conv"),
        ([{"until": 0.5, "image_scale": 2}], "image_scale: received 2.0; allowed: a number"),
        ([{"until": 0.5}, {"until": 0.4}], "stages: received until 0.4 after 0.5; allowed: each later than the last"),
        ([{"until": 1.0}], "until: received 1.0"),
        ([{"until": 0.5, "patch_dropout": 1}], "patch_dropout: received 1.0; allowed: a number"),
        ([{"until": 0.5, "augment": {"cutmx": 1}}], "stages: augment: received 'cutmx' (did you mean 'cutmix'?)"),
        ([{"until": 0.5, "augment": {"cutmix": -1}}], "stages: cutmix: received -1; allowed: a number"),
    ],
)
def test_stages_that_cannot_be_are_refused(stages, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        small_recipe(model={"image_size": 8}, train={"stages": stages})


def test_epochs_of_some_steps_split_the_same_training(finished, tmp_path):
    steps = len(small_recipe().load_data().train) // 128
    settings = {"steps_per_epoch": 2, "epochs": 3 * steps // 2, "warmup_epochs": steps / 2}
    run = train(small_recipe(train=settings), tmp_path / "run", verbose=0)
    assert len(run.metrics) == 3 * steps // 2
    assert run.metrics[-1]["val_loss"] == finished.metrics[-1]["val_loss"]


def test_run_without_validation_keeps_the_last_epoch(tmp_path):
    run = train(small_recipe(validation=0, train={"epochs": 2}), tmp_path / "run", verbose=0)
    assert run.summary["best_epoch"] == 2
    assert "val_accuracy" not in run.metrics[0]


def test_existing_run_is_kept_unless_overwritten(finished, tmp_path):
    with pytest.raises(ValueError, match="--resume, or start again with --overwrite"):
        train(small_recipe(), finished.path, verbose=0)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("text")
    with pytest.raises(ValueError, match="not empty and not a run folder"):
        train(small_recipe(), folder, overwrite=True, verbose=0)
    assert (folder / "thesis.txt").read_text() == "text"


def test_overwrite_leaves_nothing_of_the_old_run(copied):
    (copied.path / "notes.txt").write_text("mine")
    (copied.path / "export" / "onnx").mkdir(parents=True)  # of the model that goes
    again = train(small_recipe(train={"epochs": 2}), copied.path, overwrite=True, verbose=0)
    assert len(again.metrics) == again.summary["epochs"] == 2
    assert (copied.path / "notes.txt").read_text() == "mine"
    assert not (copied.path / "export").exists()


def test_resume_of_a_finished_run_changes_nothing(copied):
    before = {file: file.read_bytes() for file in copied.path.rglob("*") if file.is_file()}
    train(small_recipe(), copied.path, resume=True, verbose=0)
    assert {file: file.read_bytes() for file in copied.path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("overrides", "name"),
    [({"model": {"depth": 2}}, "model.depth"), ({"train": {"epochs": 5}}, "train.epochs"), ({"seed": 3}, "seed")],
)
def test_resume_refuses_another_recipe(finished, overrides, name):
    with pytest.raises(ValueError, match=rf"another recipe: .*{name}"):
        train(small_recipe(**overrides), finished.path, resume=True, verbose=0)


def test_resume_refuses_what_it_cannot_continue(copied):
    (copied.path / "summary.json").unlink()
    arrays, values = copied.read_state()
    name = next(name for name, array in arrays.items() if array.ndim == 2)
    copied.write_state({**arrays, name: arrays[name][1:]}, values)
    with pytest.raises(ValueError, match=f"made by another model: {name} has shape"):
        train(small_recipe(), copied.path, resume=True, verbose=0)
    copied.write_state(arrays, {**values, "fingerprint": "other"})
    with pytest.raises(ValueError, match="made with other data"):
        train(small_recipe(), copied.path, resume=True, verbose=0)
    copied.write_state(arrays, {**values, "backend": "other"})
    with pytest.raises(ValueError, match="KERAS_BACKEND=other"):
        train(small_recipe(), copied.path, resume=True, verbose=0)
    state = copied.state_path.read_bytes()
    copied.state_path.write_bytes(state[: len(state) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        train(small_recipe(), copied.path, resume=True, verbose=0)
    copied.state_path.unlink()
    with pytest.raises(ValueError, match=r"no last/state\.safetensors"):
        train(small_recipe(), copied.path, resume=True, verbose=0)


def test_divergence_keeps_the_last_good_state(monkeypatch, tmp_path):
    # One step an epoch: the loss is taken before the update that spoils the weights, and is finite once more.
    settings = {"optimizer": "sgd", "learning_rate": 1e-3, "clip_norm": 0.0, "epochs": 4, "batch_size": 1294, "warmup_epochs": 0}
    run = tmp_path / "run"

    class Spoil(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                self.model.get_layer("norm").gamma.assign(np.full(16, 3e38))

    monkeypatch.setattr(loop, "StopOnNaN", Spoil)
    with pytest.raises(Diverged, match=r"in epoch 3, .*train.learning_rate"):
        train(small_recipe(train=settings), run, verbose=0)
    run = RunFolder(run)
    arrays, values = run.read_state()
    assert values["epoch"] == len(run.metrics) == 2
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert all(np.isfinite(keras.ops.convert_to_numpy(weight)).all() for weight in run.model().weights)


def test_divergence_from_a_large_step_is_named(tmp_path):
    recipe = small_recipe(train={"optimizer": "sgd", "learning_rate": 1e30, "clip_norm": 0.0, "warmup_epochs": 0})
    with pytest.raises(Diverged, match=r"weights no longer finite.*train.learning_rate"):
        train(recipe, tmp_path / "run", verbose=0)
    assert RunFolder(tmp_path / "run").metrics == []


def test_saved_model_is_not_compiled(finished):
    assert not keras.models.load_model(finished.model_path).compiled


def test_full_disk_leaves_the_last_state(copied, monkeypatch):
    before = copied.state_path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        copied.write_state({"a": np.zeros(3)}, {"epoch": 9})
    assert copied.state_path.read_bytes() == before
    assert [file.name for file in copied.state_path.parent.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", -3),
        ("batch_size", 0),
        ("accumulate", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("warmup_epochs", -1),
        ("weight_decay", -0.1),
        ("ema", 1.0),
        ("clip_norm", -1),
        ("optimizer", "adagrad"),
        ("schedule", "step"),
        ("precision", "int8"),
        ("jit", "maybe"),
        ("validate_every", 0),
        ("steps_per_epoch", 0),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: received"):
        TrainConfig(**{field: value})


def test_batch_larger_than_the_data_is_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match="batch_size: received 5000"):
        train(small_recipe(train={"batch_size": 5000}), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


def test_even_batch_size():
    assert [even_batch_size(count, 500) for count in (10_000, 5_000, 144, 7, 1009)] == [500, 500, 144, 7, 500]
    assert [even_batch_size(count, 64) for count in (10_000, 144, 1009)] == [50, 48, 64]


# Kill and resume, in real processes


def start(folder, *options):
    command = [sys.executable, "experiments/train_cifar.py", *options]
    settings = {**os.environ, "KERAS_BACKEND": keras.backend.backend(), "PYTHONUNBUFFERED": "1"}
    # Where the tests run in the background of a shell, children would ignore Ctrl-C as they do.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with open(folder / "log.txt", "a") as log:
            return subprocess.Popen(command, cwd=ROOT, env=settings, stdout=log, stderr=log, start_new_session=True)
    finally:
        signal.signal(signal.SIGINT, before)


def wait_for(process, ready, seconds=120):
    limit = time.monotonic() + seconds
    while not ready() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)


# Everything that has a state: dropout seeds, augmentation, momentum, schedule, averaged weights, accumulation; then the
# scale of the loss, a best model that is older than the state, and a kill before anything was written.
MUON = ["--train.accumulate", "2", "--augment.mixup", "0.4"]
FLOAT16 = ["--train.optimizer", "adamw", "--train.precision", "float16", "--train.validate_every", "4"]


@pytest.mark.parametrize(
    ("options", "lines"),
    [(MUON, 4), pytest.param(FLOAT16, 3, marks=pytest.mark.slow), pytest.param(MUON, 0, marks=pytest.mark.slow)],
    ids=["muon", "float16", "first epoch"],
)
def test_killed_run_ends_like_one_that_never_was(tmp_path, options, lines):
    settings = ["--recipe", "digits", "--model.depth", "1", "--model.dropout", "0.2", "--model.drop_path", "0.1"]
    settings += ["--train.epochs", "6", "--train.warmup_epochs", "2", *options]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(tmp_path, *settings, "--out", str(whole)).wait(300) == 0, (tmp_path / "log.txt").read_text()
    process = start(tmp_path, *settings, "--out", str(killed))
    metrics, picture = killed / "metrics.csv", killed / "plots" / "batch.png"
    wait_for(process, lambda: metrics.is_file() and metrics.read_text().count("\n") >= lines if lines else picture.is_file())
    time.sleep(np.random.default_rng().uniform(0, 0.3))  # anywhere: in an epoch, in validation, while writing
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
    assert start(tmp_path, "--resume", str(killed)).wait(300) == 0, (tmp_path / "log.txt").read_text()
    whole, killed = RunFolder(whole), RunFolder(killed)
    timeless = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")
    assert [[row.get(name) for name in timeless] for row in killed.metrics] == [
        [row.get(name) for name in timeless] for row in whole.metrics
    ]
    assert killed.summary["test_loss"] == whole.summary["test_loss"]
    assert killed.summary["best_epoch"] == whole.summary["best_epoch"]
    memory = [row["memory_mb"] for row in whole.metrics]
    assert memory[-1] - memory[2] < 40, "memory grows from epoch to epoch"
    for a, b in zip(killed.model().weights, whole.model().weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))


@pytest.mark.parametrize("moment", ["first step", "later"])
def test_interrupt_says_how_to_go_on(tmp_path, moment):
    folder = tmp_path / "run"
    options = ["--recipe", "digits", "--model.depth", "1", "--train.epochs", "500", "--out", str(folder)]
    process = start(tmp_path, *options)
    metrics, picture = folder / "metrics.csv", folder / "plots" / "batch.png"
    try:
        wait_for(process, metrics.is_file if moment == "later" else picture.is_file)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130, (tmp_path / "log.txt").read_text()
    finally:
        process.kill()
    log = (tmp_path / "log.txt").read_text()
    assert f"--resume {folder}" in log
    assert "Traceback" not in log


def test_an_interruption_that_keras_swallows_ends_the_training(tmp_path):
    """Whatever is raised while a model is traced gets lost under PyTorch; an error of the clean-up hides it under JAX."""

    class Swallow(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)

    class Hide(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
            finally:
                raise TypeError("of the clean-up")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for callback in (Swallow(), Hide()):
            with pytest.raises(KeyboardInterrupt):
                train(small_recipe(), tmp_path / "run", overwrite=True, callbacks=[callback], verbose=0)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert RunFolder(tmp_path / "run").metrics == []


def test_kill_before_the_first_epoch_starts_again(finished, tmp_path):
    run = RunFolder.create(tmp_path / "run", dataclasses.replace(finished.recipe))
    assert run.metrics == []
    again = train(finished.recipe, run.path, resume=True, verbose=0)
    assert [row["loss"] for row in again.metrics] == [row["loss"] for row in finished.metrics]


def test_the_clock_bears_steps_out_of_order():
    """Keras calls it from several threads, where a later step may come first."""
    clock = Clock(0.0)
    clock.set_model(tiny_model())
    for batch in (0, 1, 4, 2, 3, 7, 5, 8):
        clock.on_train_batch_end(batch, {"loss": 1.0})
    assert clock.steps == 3  # from 4 to 7
    assert clock.seconds > 0
    assert clock.model.stop_training


def test_a_length_in_seconds_becomes_steps_and_changes_nothing_else(tmp_path):
    """The model is measured first and then trained as if it had not been: the recipe that is left after repeats the run."""
    recipe = load_recipe(
        "digits",
        data="digits",
        model={"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16, "dropout": 0.1},
        train={"epochs": 3, "warmup_epochs": 1, "ema": 0.9},
    )
    measured = train(recipe, tmp_path / "measured", seconds=0.3, verbose=0, pictures=False)
    steps = measured.recipe.train.steps_per_epoch
    assert steps >= 1
    assert measured.recipe.train == dataclasses.replace(recipe.train, steps_per_epoch=steps)
    again = train(measured.recipe, tmp_path / "again", verbose=0)
    for name in ("loss", "val_loss", "val_accuracy", "learning_rate"):
        assert [row[name] for row in measured.metrics] == [row[name] for row in again.metrics], name
    assert not (tmp_path / "measured" / "plots" / "curves.png").exists()
    assert (tmp_path / "again" / "plots" / "curves.png").exists()
    with pytest.raises(ValueError, match="seconds: received 0"):
        train(recipe, tmp_path / "none", seconds=0)
