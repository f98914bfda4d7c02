"""From a recipe to a run folder: what lies in it, the same numbers again, stages, and runs that end early."""

import dataclasses
import errno
import os
import re
import shutil

import keras
import numpy as np
import pytest
from helpers import SMALL, numpy, one_line_error

import keras_vit
from keras_vit import ViTConfig
from keras_vit.model.counts import kept_patches
from keras_vit.model.resample import resample_positions
from keras_vit.recipes.parse import load_recipe
from keras_vit.recipes.schema import TrainConfig
from keras_vit.runs.calibration import calibration_of, fit_temperature, probabilities_of
from keras_vit.runs.folder import RunFolder
from keras_vit.training import loop
from keras_vit.training.callbacks import Clock, Diverged
from keras_vit.training.loop import train
from keras_vit.training.models import carry_over, compiled_model
from keras_vit.training.session import best_row, even_batch_size

backend = pytest.mark.backend


def small_recipe(**overrides):
    train_settings = {"epochs": 3, "warmup_epochs": 1, "batch_size": 128, "optimizer": "adamw", **overrides.pop("train", {})}
    model = {"depth": 1, "width": 16, "mlp_dim": 16, **overrides.pop("model", {})}
    return load_recipe("digits", train=train_settings, model=model, **overrides)


def trained(recipe, folder, **settings):
    return train(recipe, folder, verbose=0, pictures=False, **settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(small_recipe(), tmp_path_factory.mktemp("runs") / "run", verbose=0)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run that a test may spoil."""
    return RunFolder(shutil.copytree(finished.path, tmp_path / "copied"))


@backend
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


@backend
def test_saved_model_has_the_reported_accuracy(finished):
    data = finished.recipe.load_data()
    images = data.test.images(np.arange(len(data.test))).astype("float32") / 127.5 - 1
    right = finished.model().predict(images, verbose=0).argmax(1) == data.test.labels
    assert finished.summary["test_accuracy"] == pytest.approx(right.mean(), abs=1e-6)


def seen_by(run, split):
    """Logits and labels of a split, by the run's model."""
    return run.model().predict(split.images(np.arange(len(split))).astype("float32") / 127.5 - 1, verbose=0), split.labels


@backend
def test_the_temperature_is_that_of_the_validation_images(finished):
    summary, data = finished.summary, finished.recipe.load_data()
    assert summary["temperature"] == pytest.approx(fit_temperature(*seen_by(finished, data.validation)), rel=1e-4)
    logits, labels = seen_by(finished, data.test)
    for name, temperature in (("test_calibration_error", summary["temperature"]), ("test_calibration_error_before", 1.0)):
        assert summary[name] == pytest.approx(calibration_of(logits, labels, temperature).error, abs=1e-4)
    assert summary["test_calibration_error"] < summary["test_calibration_error_before"] - 0.01
    found = keras_vit.predict(finished.model(), data.test.images(np.arange(20)), top=10, **finished.known)
    wanted = np.sort(probabilities_of(logits[:20], False, summary["temperature"]))[:, ::-1]
    np.testing.assert_allclose([each.probabilities for each in found], wanted, atol=1e-5)


def test_tensorboard_events(finished):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(finished.tensorboard))
    events.Reload()
    values = [event.value for event in events.Scalars("val_accuracy")]
    assert values == pytest.approx([row["val_accuracy"] for row in finished.metrics])


@backend
def test_mixed_precision_learns_with_float32_weights(tmp_path):
    run = trained(
        small_recipe(train={"precision": "bfloat16", "learning_rate": 1e-2, "batch_size": 32, "epochs": 4}), tmp_path / "run"
    )
    losses = [row["loss"] for row in run.metrics]
    assert losses[-1] < 0.9 * losses[0]
    assert {weight.dtype for weight in run.model().weights} == {"float32"}


def losses_of(run):
    return [row["loss"] for row in run.metrics]


@backend
def test_same_seed_same_numbers_also_after_a_kill_before_the_first_epoch(finished, tmp_path):
    run = RunFolder.create(tmp_path / "run", finished.recipe)  # what such a kill leaves
    assert run.metrics == []
    again = trained(finished.recipe, run.path, resume=True)
    assert losses_of(again) == losses_of(finished)
    for ours, theirs in zip(again.model().weights, finished.model().weights, strict=True):
        np.testing.assert_array_equal(numpy(ours), numpy(theirs))


@backend
def test_a_run_in_parts_ends_like_one_in_one_piece(finished, tmp_path):
    seen = []
    log = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch + 1))
    part = trained(small_recipe(), tmp_path / "run", until=2, callbacks=[log])
    assert seen == [1, 2]
    assert not part.is_finished
    assert part.metrics[1]["val_accuracy"] == finished.metrics[1]["val_accuracy"]
    assert not trained(small_recipe(), part.path, until=2, resume=True, callbacks=[log]).is_finished
    whole = trained(small_recipe(), part.path, resume=True, callbacks=[log])
    assert seen == [1, 2, 3]
    assert losses_of(whole) == losses_of(finished)
    for name in ("test_loss", "temperature", "test_calibration_error"):
        assert whole.summary[name] == finished.summary[name]


def test_a_run_of_stages_in_parts_ends_like_one_in_one_piece(tmp_path):
    """Smaller images, larger patches, other augmentation, then the recipe's own; stopped within a stage and after one."""
    stages = [
        {"until": 0.4, "image_scale": 0.5, "patch_dropout": 0.5},
        {"until": 0.6, "patch_scale": 2},
        {"until": 0.8, "augment": {"crop": 0, "mixup": 0.5}},
    ]
    model = {"image_size": 8, "patch_size": 2, "stem": "patch", "stem_depth": 0}
    recipe = small_recipe(model=model, train={"stages": stages, "ema": 0.9, "epochs": 5, "steps_per_epoch": 3})
    spans = recipe.stages()
    assert [(first, last) for first, last, _ in spans] == [(0, 2), (2, 3), (3, 4), (4, 5)]
    assert [kept_patches(s.model.num_patches, s.model.patch_dropout) for _, _, s in spans] == [2, 4, 16, 16]
    assert [(s.model == recipe.model, s.augment == recipe.augment) for _, _, s in spans[1:]] == [
        (False, True), (True, False), (True, True),
    ]  # fmt: skip
    whole = trained(recipe, tmp_path / "whole")
    assert whole.model().config.num_patches == 16
    assert whole.recipe.train.stages == recipe.train.stages
    for until in (1, 2, None):
        part = trained(recipe, tmp_path / "parts", until=until, resume=until != 1)
    assert losses_of(part) == losses_of(whole)
    assert part.summary["test_loss"] == whole.summary["test_loss"]


@backend
def test_a_stage_goes_on_where_the_last_one_ended():
    """Weights are resampled, the optimizer's state is carried over: what is not resampled is the same."""
    recipe = small_recipe(
        model={"image_size": 8, "patch_size": 2, "stem": "conv"},
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
        source, target = numpy(source), numpy(target)
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
        ([{"until": 0.5, "image_scale": 2}], "train.stages.image_scale: received 2; allowed: a number"),
        ([{"until": 0.5}, {"until": 0.4}], "stages: received until 0.4 after 0.5; allowed: each later than the last"),
        ([{"until": 1.0}], "until: received 1.0"),
        ([{"until": 0.5, "patch_dropout": 1}], "train.stages.patch_dropout: received 1; allowed: a number"),
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
    run = trained(small_recipe(train=settings), tmp_path / "run")
    assert len(run.metrics) == 3 * steps // 2
    assert run.metrics[-1]["val_loss"] == finished.metrics[-1]["val_loss"]


def test_run_without_validation_keeps_the_last_epoch(tmp_path):
    run = trained(small_recipe(validation=0, train={"epochs": 2}), tmp_path / "run")
    assert run.summary["best_epoch"] == 2
    assert "val_accuracy" not in run.metrics[0]
    summary = run.summary
    assert (summary["temperature"], summary["temperature_note"]) == (None, "no validation images")
    assert summary["test_calibration_error"] == summary["test_calibration_error_before"] > 0
    assert run.temperature == 1


def test_existing_run_is_kept_unless_overwritten(finished, tmp_path):
    with pytest.raises(ValueError, match="--resume, or start again with --overwrite"):
        train(small_recipe(), finished.path, verbose=0)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("text")
    with pytest.raises(ValueError, match="not empty and not a run folder"):
        train(small_recipe(), folder, overwrite=True, verbose=0)
    assert (folder / "thesis.txt").read_text() == "text"


def test_overwrite_leaves_nothing_of_the_old_run_and_another_seed_gives_other_numbers(finished, copied):
    (copied.path / "notes.txt").write_text("mine")
    (copied.path / "export" / "onnx").mkdir(parents=True)  # of the model that goes
    again = trained(small_recipe(train={"epochs": 2}, seed=1), copied.path, overwrite=True)
    assert len(again.metrics) == again.summary["epochs"] == 2
    assert again.metrics[0]["loss"] != finished.metrics[0]["loss"]
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
    newest = copied.states.paths()[0]
    arrays, values = copied.read_state()
    name = next(name for name, array in arrays.items() if array.ndim == 2)
    steps = int(newest.stem.partition("-")[2])
    copied.write_state(steps, {**arrays, name: arrays[name][1:]}, values)
    with pytest.raises(ValueError, match=f"made by another model: {name} has shape"):
        train(small_recipe(), copied.path, resume=True, verbose=0)
    copied.write_state(steps, arrays, {**values, "fingerprint": "other"})
    with pytest.raises(ValueError, match="made with other data"):
        train(small_recipe(), copied.path, resume=True, verbose=0)
    for changes, message in (
        ({"rows": 3}, "rows in its training state: received 3; allowed: a list, each item a dict"),
        ({"backend": None}, "backend in its training state: received None; allowed: a string"),
        ({"seconds": "1"}, "seconds in its training state: received '1'; allowed: a number"),
    ):
        copied.write_state(steps, arrays, {**values, **changes})
        with one_line_error(message):
            train(small_recipe(), copied.path, resume=True, verbose=0)
    copied.write_state(steps, arrays, {**values, "backend": "other"})
    with pytest.raises(ValueError, match="KERAS_BACKEND=other"):
        train(small_recipe(), copied.path, resume=True, verbose=0)
    for path in copied.states.paths():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"is damaged .* no state is left to go on from: start again with --overwrite"):
        train(small_recipe(), copied.path, resume=True, verbose=0)
    for path in copied.states.paths():
        path.unlink()
    with pytest.raises(ValueError, match=r"has 3 epochs but no training state in last/"):
        train(small_recipe(), copied.path, resume=True, verbose=0)


@backend
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
    assert all(np.isfinite(numpy(weight)).all() for weight in run.model().weights)


def test_divergence_from_a_large_step_is_named(tmp_path):
    recipe = small_recipe(train={"optimizer": "sgd", "learning_rate": 1e30, "clip_norm": 0.0, "warmup_epochs": 0})
    with pytest.raises(Diverged, match=r"weights no longer finite.*train.learning_rate"):
        train(recipe, tmp_path / "run", verbose=0)
    assert RunFolder(tmp_path / "run").metrics == []


@backend
def test_saved_model_is_not_compiled(finished):
    assert not keras.models.load_model(finished.model_path).compiled


def test_full_disk_leaves_the_last_states(copied, monkeypatch):
    before = {path: path.read_bytes() for path in copied.states.paths()}

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        copied.write_state(99, {"a": np.zeros(3)}, {"epoch": 9})
    assert {path: path.read_bytes() for path in copied.states.paths()} == before
    assert not list((copied.path / "last").glob(".*"))


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
        ("average_last", 1.1),
        ("patience", -1),
        ("class_weights", "even"),
        ("loss", "hinge"),
        ("focal_gamma", -1),
        ("sampling", "random"),
        ("monitor", "precision"),
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


def test_two_averages_are_refused():
    with one_line_error(r"^average_last: received 0.2; allowed: 0 with ema, which averages the weights too$"):
        TrainConfig(ema=0.99, average_last=0.2)


def test_batch_larger_than_the_data_is_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match="batch_size: received 5000"):
        train(small_recipe(train={"batch_size": 5000}), tmp_path / "run", verbose=0)
    assert not (tmp_path / "run").exists()


def test_patience_ends_the_training_also_after_a_kill(tmp_path, monkeypatch):
    """Two epochs after the best one; a run that is killed there and resumed ends as well, with the same summary."""
    recipe = small_recipe(train={"epochs": 9, "patience": 2, "learning_rate": 1e-9, "schedule": "constant", "steps_per_epoch": 1})
    losses = iter((3.0, 2.0, 2.5, 2.0, 1.0, 1.0))
    monkeypatch.setattr(
        "keras_vit.training.session.Session.scores", lambda self, split, batches: ({"accuracy": 0.5, "loss": next(losses)}, {})
    )
    run = trained(recipe, tmp_path / "run")
    assert [row["epoch"] for row in run.metrics] == [1, 2, 3, 4]
    assert (run.summary["epochs"], run.summary["best_epoch"]) == (4, 2)
    (run.path / "summary.json").unlink()
    assert trained(recipe, run.path, resume=True).summary["epochs"] == 4
    with pytest.raises(ValueError, match=r"^patience: received 2; allowed: 0 without validation images$"):
        trained(dataclasses.replace(recipe, validation=0), tmp_path / "none")


def test_a_decay_too_long_for_the_run_is_said():
    said = "ema: received 0.9995, too long for 75 updates: the decay grows from 0.1 to 0.8941 only"
    assert loop.average_note(TrainConfig(ema=0.9995, accumulate=2), 150) == said
    assert loop.average_note(TrainConfig(ema=0.9), 150) == loop.average_note(TrainConfig(), 1) == ""


def test_the_best_epoch_of_equal_accuracies_has_the_lowest_loss():
    rows = [
        {"epoch": epoch, "val_accuracy": accuracy, "val_loss": loss}
        for epoch, (accuracy, loss) in enumerate([(0.5, 0.1), (1.0, 0.87), (1.0, 0.04), (1.0, 0.05)], 1)
    ]
    assert best_row(rows)["epoch"] == 3
    assert best_row([*rows, {"epoch": 5}])["epoch"] == 3  # not validated
    assert best_row([{"epoch": 1}, {"epoch": 2}])["epoch"] == 2


def test_even_batch_size():
    assert [even_batch_size(count, 500) for count in (10_000, 5_000, 144, 7, 1009)] == [500, 500, 144, 7, 500]
    assert [even_batch_size(count, 64) for count in (10_000, 144, 1009)] == [50, 48, 64]


def test_the_clock_bears_steps_out_of_order():
    """Keras calls it from several threads, where a later step may come first."""
    clock = Clock(0.0)
    clock.set_model(keras_vit.build_vit(ViTConfig(**SMALL, num_classes=3)))
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
        train={"epochs": 2, "warmup_epochs": 1, "ema": 0.9},
    )
    measured = train(recipe, tmp_path / "measured", seconds=0.3, verbose=0, pictures=False)
    steps = measured.recipe.train.steps_per_epoch
    assert steps >= 1
    found = {"steps_per_epoch": steps, "loss": "cross_entropy", "monitor": "accuracy"}
    assert measured.recipe.train == dataclasses.replace(recipe.train, **found)
    again = train(measured.recipe, tmp_path / "again", verbose=0)
    for name in ("loss", "val_loss", "val_accuracy", "learning_rate"):
        assert [row[name] for row in measured.metrics] == [row[name] for row in again.metrics], name
    assert not (tmp_path / "measured" / "plots" / "curves.png").exists()
    assert (tmp_path / "again" / "plots" / "curves.png").exists()
    with pytest.raises(ValueError, match="seconds: received 0"):
        train(recipe, tmp_path / "none", seconds=0)
    half = train(recipe, tmp_path / "half", seconds=0.3, until=1, verbose=0, pictures=False)
    resumed = train(recipe, half.path, seconds=0.3, resume=True, verbose=0, pictures=False)
    assert resumed.recipe.train.steps_per_epoch == half.recipe.train.steps_per_epoch
    assert len(resumed.metrics) == 2
