"""Distillation: its loss against NumPy, targets against the teacher by hand, resumed runs, stored views, and what is refused."""

import dataclasses
import errno

import keras
import numpy as np
import pytest
from helpers import SMALL, made, numpy, one_line_error, predict, random
from scipy.special import expit, log_softmax, softmax

import keras_vit
from keras_vit.data.augment import AugmentConfig
from keras_vit.data.batches import training_batch, training_batches
from keras_vit.model.config import ViTConfig
from keras_vit.recipes.distill import DistillConfig
from keras_vit.recipes.schema import Recipe, TrainConfig
from keras_vit.runs.arrays import write_arrays
from keras_vit.training.distill import small_cnn, teach
from keras_vit.training.distill.logits import save_logits
from keras_vit.training.distill.teacher import targets_of_logits
from keras_vit.training.distribution.base import Distribution
from keras_vit.training.loop import train
from keras_vit.training.losses import ClassLoss, DistillLoss, LabelAccuracy
from keras_vit.training.speed import batch_settings, stream_settings

backend = pytest.mark.backend
AUGMENT = AugmentConfig(flip=False, crop=1, mixup=0.4, cutmix=1.0)
CLASSES = ["a", "b", "c"]


def labels_of(multi=False, count=64):
    rng = np.random.default_rng(1)
    return rng.integers(2, size=(count, 3)).astype(np.int8) if multi else rng.choice(3, size=count)


def recipe_of(teacher="", data=None, model=None, **settings):
    training = {"epochs": 2, "batch_size": 8, "warmup_epochs": 0, "learning_rate": 1e-2, **settings.pop("train", {})}
    distill = settings.pop("distill", {})
    recipe = Recipe(
        model=ViTConfig(**{**SMALL, **(model or {})}),
        augment=settings.pop("augment", AUGMENT),
        train=TrainConfig(**training),
        distill=DistillConfig(teacher=str(teacher), **distill),
        **settings,
    )
    return recipe if data is None else recipe.for_data(data)


@pytest.fixture(scope="module")
def data():
    return made(labels_of())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, data):
    """A run with a teacher of another size and other moments than the student's."""
    recipe = recipe_of(model={"image_size": (8, 12), "width": 12}, mean=0.3, std=0.2, augment=AugmentConfig(flip=False, crop=0))
    run = train(recipe, tmp_path_factory.mktemp("teacher") / "run", data=data, verbose=0, pictures=False)
    assert run.summary["test_accuracy"] > 0.5
    return run


def taught(recipe, data, folder, **settings):
    said = []
    found = teach.teach(recipe, data, folder / "run", Distribution(), said.append, **settings)
    return found, said


def answers(run, images, temperature=1.0):
    """A teacher's targets for uint8 images, by hand."""
    recipe = run.recipe
    logits = predict(run.model(), ((images / 255 - recipe.mean[0]) / recipe.std[0]).astype("float32"))
    return softmax(logits.astype(float) / temperature, axis=1)


# Loss and metric


@backend
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("binary", [False, True])
def test_loss_is_that_of_labels_and_teacher(binary, heads):
    rng = np.random.default_rng(0)
    labels, logits = softmax(random(7, 4), axis=1), random(7, 4 * heads, seed=1)
    teacher = rng.uniform(size=(7, 4)) if binary else softmax(random(7, 4, seed=2), axis=1)
    loss = DistillLoss(ClassLoss(binary), 4, weight=0.3, temperature=2.0, binary=binary)
    loss = keras.losses.deserialize(keras.losses.serialize(loss))

    def by_hand(targets, z):
        if binary:
            return -(targets * np.log(expit(z)) + (1 - targets) * np.log(expit(-z))).mean(axis=1)
        return -(targets * log_softmax(z, axis=1)).sum(axis=1)

    expected = 0.7 * by_hand(labels, logits[:, :4]) + 0.3 * 4 * by_hand(teacher, logits[:, -4:] / 2)
    targets = np.concatenate([labels, teacher], axis=1).astype("float32")
    np.testing.assert_allclose(numpy(loss(targets, logits)), expected.mean(), rtol=1e-5)


@backend
def test_accuracy_is_that_of_the_labels_and_of_both_heads_mean():
    metric = LabelAccuracy(2)
    labels, teacher = np.eye(2)[[0, 1, 1, 0]], np.eye(2)[[1, 0, 0, 1]]
    metric.update_state(np.hstack([labels, teacher]), np.array([[1.0, 0], [0, 2], [3, 0], [1, 0]]))
    assert float(metric.result()) == 0.75
    metric.reset_state()
    metric.update_state(np.hstack([labels, teacher]), np.array([[1.0, 0, 0, 2], [0, 1, 0, 0], [0, 3, 2, 0], [1, 0, 0, 0]]))
    assert float(metric.result()) == 0.75


def test_targets_of_logits():
    logits = np.array([[2.0, -1, 0.5], [-3, 4, 1]], np.float32)
    np.testing.assert_allclose(targets_of_logits(logits, DistillConfig("x", temperature=3.0), False), softmax(logits / 3, axis=1))
    np.testing.assert_allclose(targets_of_logits(logits, DistillConfig("x"), True), expit(logits))
    assert targets_of_logits(logits, DistillConfig("x", targets="hard"), False).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert targets_of_logits(logits, DistillConfig("x", targets="hard"), True).tolist() == [[1, 0, 1], [0, 1, 1]]


# The stream


@backend
def test_targets_are_the_teachers_for_the_same_pixels(tmp_path, data, teacher):
    recipe = recipe_of(teacher.path, data, distill={"temperature": 2.0})
    found, said = taught(recipe, data, tmp_path)
    assert any("mean 0.3 and std 0.2, not the student's" in line for line in said)
    assert found.summary["teacher_val_accuracy"] == teacher.summary["val_accuracy"]
    settings = stream_settings(recipe, data)
    step = batch_settings(recipe, data)
    plain, labels = training_batch(data.train, AUGMENT, 7, **step)
    images, targets = training_batch(data.train, AUGMENT, 7, teaching=found.teaching, **step)
    np.testing.assert_array_equal(images, plain)
    np.testing.assert_array_equal(targets[:, :3], labels)
    np.testing.assert_allclose(targets[:, 3:], answers(teacher, images, 2.0), atol=2e-5)
    halves = [training_batch(data.train, AUGMENT, 7, teaching=found.teaching, part=(part, 2), **step)[1] for part in (0, 1)]
    np.testing.assert_allclose(np.concatenate(halves), targets, atol=1e-5)
    batches = training_batches(data.train, AUGMENT, start_step=7, teaching=found.teaching, **settings)
    streamed = batches[0] if isinstance(batches, keras.utils.PyDataset) else next(iter(batches))
    np.testing.assert_allclose(numpy(streamed[1]), targets, atol=1e-6)


# All that could differ after a kill: a trained teacher, stored views, two heads, accumulation, averages, another stage's patches.
FULL = {
    "model": {"distillation": True, "registers": 1, "image_size": (8, 12), "dropout": 0.1},
    "train": {"epochs": 4, "accumulate": 2, "ema": 0.9, "save_every": "2 steps", "stages": [{"until": 0.5, "patch_scale": 2}]},
    "distill": {"views": 2, "epochs": 1.0, "temperature": 2.0},
}


class Stop(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        if batch == 3 and self.epoch == 2:
            raise RuntimeError("stopped")

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch


def test_a_run_that_was_stopped_goes_on_to_the_same_numbers(tmp_path, data, monkeypatch):
    settings = {"data": data, "verbose": 0, "pictures": False}
    whole = train(recipe_of("small-cnn", **FULL), tmp_path / "a" / "run", **settings)
    with pytest.raises(RuntimeError, match="stopped"):
        train(recipe_of("small-cnn", **FULL), tmp_path / "b" / "run", callbacks=[Stop()], **settings)
    monkeypatch.setattr(small_cnn, "compiled", None)  # the teacher is not trained again
    resumed = train(recipe_of("small-cnn", **FULL), tmp_path / "b" / "run", resume=True, **settings)
    timeless = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")
    assert [[row[name] for name in timeless] for row in resumed.metrics] == [
        [row[name] for name in timeless] for row in whole.metrics
    ]
    for a, b in zip(resumed.model().weights, whole.model().weights, strict=True):
        np.testing.assert_array_equal(numpy(a), numpy(b))
    summary = resumed.summary
    assert (summary["teacher"], summary["teacher_epochs"]) == ("small-cnn", 1.0)
    assert summary["teacher_val_accuracy"] == whole.summary["teacher_val_accuracy"]
    assert summary["teacher_seconds"] > 0
    assert resumed.model().output_shape == (None, 3)  # the mean of both heads


@backend
def test_the_distillation_tokens_head_learns_from_the_teacher_alone(tmp_path, data, teacher):
    """With all of the loss the teacher's, the head of the class token stays at zero, where it starts."""
    model = {"distillation": True, "registers": 1}
    recipe = recipe_of(teacher.path, model=model, distill={"weight": 1.0}, train={"epochs": 1, "weight_decay": 0.0})
    run = train(recipe, tmp_path / "run", data=data, verbose=0, pictures=False)
    kernels = {layer.name: numpy(layer.kernel) for layer in run.model().layers if layer.name.startswith("head")}
    assert not kernels["head"].any()
    assert np.abs(kernels["head_dist"]).max() > 0.01


@pytest.mark.parametrize("multi", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_student_learns_from_its_teacher_alone(tmp_path, multi):
    """No label counts: what the student knows it has from the teacher."""
    data = made(labels_of(multi, 112))
    plain = AugmentConfig(flip=False, crop=0)
    long = {"epochs": 8, "learning_rate": 2e-2}
    first = train(recipe_of(augment=plain, train=long), tmp_path / "first", data=data, verbose=0, pictures=False)
    recipe = recipe_of(first.path, augment=plain, train=long, distill={"weight": 1.0})
    run = train(recipe, tmp_path / "second", data=data, verbose=0, pictures=False)
    measure = "test_map" if multi else "test_accuracy"
    assert first.summary[measure] > 0.9
    assert run.summary[measure] > 0.9


def test_a_changed_teacher_is_refused_by_a_run_that_goes_on(tmp_path, data, teacher):
    copy = tmp_path / "copy.keras"
    teacher.model().save(copy)
    recipe = recipe_of(copy)
    train(recipe, tmp_path / "run", data=data, until=1, verbose=0, pictures=False)
    other = keras_vit.build_vit(teacher.model().config)
    other.save(copy)
    with one_line_error("was made with another teacher than .*copy.keras' is now"):
        train(recipe, tmp_path / "run", data=data, resume=True, verbose=0)


# Views


@backend
def test_stored_views_are_the_teachers_answers_and_come_again(tmp_path, data, teacher):
    steps = len(data.train) // 8
    recipe = recipe_of(teacher.path, data, distill={"views": 2})
    stored, said = taught(recipe, data, tmp_path)
    live, _ = taught(recipe_of(teacher.path, data), data, tmp_path)
    assert any("are stored in" in line for line in said)
    settings = batch_settings(recipe, data)
    sources = [stored.teaching.stored_step(step, steps, 0) for step in range(4 * steps)]
    assert sources[: 2 * steps] == list(range(2 * steps))
    for epoch in (2, 3):
        again = sources[epoch * steps : (epoch + 1) * steps]
        assert sorted(again) == list(range((epoch - 2) * steps, (epoch - 1) * steps))
        assert again != sorted(again)
    for step in (0, steps + 1, 3 * steps + 2):
        images, targets = training_batch(data.train, AUGMENT, step, teaching=stored.teaching, **settings)
        expected = training_batch(data.train, AUGMENT, sources[step], teaching=live.teaching, **settings)
        np.testing.assert_array_equal(images, expected[0])
        np.testing.assert_array_equal(targets, expected[1])
    part = training_batch(data.train, AUGMENT, 3 * steps + 2, teaching=stored.teaching, part=(1, 2), **settings)[1]
    np.testing.assert_allclose(part, targets[4:], atol=1e-6)


def test_stored_views_are_used_by_another_run_and_a_damaged_file_is_made_anew(tmp_path, data, teacher, monkeypatch):
    monkeypatch.setattr("keras_vit.training.distill.views.IMAGES", 16)  # two steps a file
    recipe = recipe_of(teacher.path, data, distill={"views": 2, "folder": str(tmp_path / "kept")})
    first, _ = taught(recipe, data, tmp_path / "one")
    files = sorted((tmp_path / "kept").glob("*/*.npy"))
    assert len(files) == 6  # of each view five steps
    cost = first.summary["teacher_views_seconds"]
    assert 0 < cost == taught(recipe, data, tmp_path / "two")[0].summary["teacher_views_seconds"]  # whichever run stores them
    before = {file: file.stat().st_mtime_ns for file in files}
    more = dataclasses.replace(recipe, distill=dataclasses.replace(recipe.distill, views=3))
    taught(more, data, tmp_path / "two")
    assert {file: file.stat().st_mtime_ns for file in files} == before
    assert len(list((tmp_path / "kept").glob("*/*.npy"))) == 9
    taught(
        dataclasses.replace(recipe, center_crop=0.5), data, tmp_path / "two"
    )  # photos are then cropped before they are trained on
    assert len(list((tmp_path / "kept").iterdir())) == 2
    expected = first.teaching.answer(None, 2, np.arange(8))
    files[1].write_bytes(files[1].read_bytes()[:-40])
    with pytest.warns(UserWarning, match=r"^distill.folder: .*000000002-.*npy' is damaged \(.*\); it is computed anew$"):
        again, _ = taught(recipe, data, tmp_path / "one")
    np.testing.assert_array_equal(again.teaching.answer(None, 2, np.arange(8)), expected)
    changed = bytearray(files[0].read_bytes())
    changed[-5] ^= 1
    files[0].write_bytes(changed)
    with pytest.warns(UserWarning, match="it does not fit its digest"):
        taught(recipe, data, tmp_path / "one")
    header = bytearray(files[0].read_bytes())
    header[10:60] = b"{" * 50
    files[0].write_bytes(header)
    with pytest.warns(UserWarning, match=r"000000000-.*npy' is damaged \(.*\); it is computed anew$"):
        taught(recipe, data, tmp_path / "one")

    def fail(*args, **kwargs):
        raise OSError(errno.EMFILE, "Too many open files")

    stored = sorted((tmp_path / "kept").glob("*/*.npy"))
    with monkeypatch.context() as patch:  # a disk or a limit is no damage: the files stay
        patch.setattr("keras_vit.training.distill.views.mapped", fail)
        with pytest.raises(OSError, match="Too many open files"):
            taught(recipe, data, tmp_path / "one")
    assert sorted((tmp_path / "kept").glob("*/*.npy")) == stored
    monkeypatch.setattr("keras_vit.training.distill.views.MAPPED", 1)
    again, _ = taught(recipe, data, tmp_path / "one")
    np.testing.assert_array_equal(again.teaching.answer(None, 2, np.arange(8)), expected)


LARGE = {"model": {"image_size": (16, 24)}}


def test_views_whose_images_would_change_are_refused():
    for settings, message in (
        ({"augment": AugmentConfig(mixup=0.4, mix_until=0.8)}, "^mix_until: received 0.8; allowed: 1 with distill.views"),
        ({"train": {"stages": [{"until": 0.5, "augment": {"crop": 2}}]}}, "^stages: received other augmentation; allowed: none"),
        (
            {"augment": AugmentConfig(resized_crop=0.5), "train": {"stages": [{"until": 0.5, "image_scale": 0.5}]}, **LARGE},
            "^stages: received image_scale and resized_crop; allowed: one of both with",
        ),
    ):
        with one_line_error(message):
            recipe_of("small-cnn", distill={"views": 2}, **settings)


# A file of logits


def test_file_of_logits(tmp_path, data):
    logits, path = random(len(data.train), 3), tmp_path / "logits.safetensors"
    save_logits(path, logits, data)
    recipe = recipe_of(f"logits:{path}", data, distill={"temperature": 2.0})
    found, said = taught(recipe, data, tmp_path)
    assert said == []
    known = softmax(logits.astype(float) / 2, axis=1)
    np.testing.assert_allclose(found.teaching.known, known, atol=1e-6)
    settings = batch_settings(recipe, data)
    # An image without a label of its own would be mixed as the labels are: labels in the place of logits give the labels twice.
    same = dataclasses.replace(found.teaching, known=np.eye(3, dtype=np.float32)[data.train.labels])
    targets = training_batch(data.train, AUGMENT, 3, teaching=same, **settings)[1]
    assert (targets[:, :3].max(axis=1) < 1).any()
    np.testing.assert_array_equal(targets[:, :3], targets[:, 3:])
    run = train(recipe, tmp_path / "run", data=data, verbose=0, pictures=False)
    assert run.summary["teacher_train_accuracy"] == pytest.approx((logits.argmax(1) == data.train.labels).mean())
    np.save(tmp_path / "logits.npy", logits)
    np.savez(tmp_path / "logits.npz", logits)
    for name in ("logits.npy", "logits.npz"):
        bare, said = taught(recipe_of(f"logits:{tmp_path / name}", data, distill={"temperature": 2.0}), data, tmp_path)
        np.testing.assert_array_equal(bare.teaching.known, found.teaching.known)
        assert "does not say of which images" in said[0]


def test_files_of_other_logits_are_refused(tmp_path, data):
    def refuse(message, name="logits.safetensors", other=None):
        with one_line_error(message):
            taught(recipe_of(f"logits:{tmp_path / name}", data), other or data, tmp_path)

    logits = random(len(data.train), 3)
    save_logits(tmp_path / "logits.safetensors", logits, data)
    images = data.train.images(np.arange(len(data.train)))
    swapped = dataclasses.replace(data, train=type(data.train)(images[::-1].copy(), data.train.labels))
    refuse("logits of other images, or in another order; allowed: those of the training images of made", other=swapped)
    refuse("logits of other classes; allowed: those of made", other=dataclasses.replace(data, class_names=["a", "c", "b"]))
    shorter = dataclasses.replace(data, train=data.train.take(np.arange(8)))
    refuse(r"with shape \(40, 3\); allowed: \(8, 3\), a row for each training image of made", other=shorter)
    refuse("which is no such file", name="absent.npy")
    logits[3, 1] = np.nan
    np.save(tmp_path / "diverged.npy", logits)
    refuse("logits that are not finite: the teacher has diverged", name="diverged.npy")
    whole = (tmp_path / "logits.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-10])
    refuse("which is damaged", name="cut.safetensors")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    refuse("which is damaged", name="objects.npy")
    write_arrays(tmp_path / "classes.safetensors", {"logits": random(len(data.train), 3)}, {"classes": "{"})
    refuse("which is damaged", name="classes.safetensors")
    for header in (b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000, 3), }", b"{'descr': '<f4', 'shape': (1"):
        (tmp_path / "header.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        refuse("which is damaged", name="header.npy")
    with one_line_error("allowed: a name that ends in .safetensors"):
        save_logits(tmp_path / "logits.npy", logits, data)


# Teachers that differ from the student


def save_model(path, layers, shape=(8, 12, 1)):
    keras.Sequential([keras.Input(shape), keras.layers.Flatten(), *layers]).save(path)
    return path


def test_any_keras_model_is_a_teacher(tmp_path, data):
    keras.utils.set_random_seed(1)
    probabilities = save_model(tmp_path / "soft.keras", [keras.layers.Dense(3, activation="softmax")])
    found, said = taught(recipe_of(probabilities, data, distill={"mean": 0.1, "std": 0.3}), data, tmp_path)
    assert any("gives probabilities" in line for line in said)
    assert any("does not name its 3 classes" in line for line in said)
    images = data.train.images(np.arange(5))
    expected = predict(keras.saving.load_model(probabilities), ((images / 255 - 0.1) / 0.3).astype("float32"))
    np.testing.assert_allclose(found.teaching.answer(images, 0, None), expected, atol=1e-5)


def test_a_mean_alone_is_taken_with_the_students_std(tmp_path, data):
    teacher = save_model(tmp_path / "plain.keras", [keras.layers.Dense(3)])
    found, said = taught(recipe_of(teacher, data, distill={"mean": 0.1}, std=0.4), data, tmp_path)
    assert any("does not say its std: the student's are taken; distill.std states another" in line for line in said), said
    images = data.train.images(np.arange(5))
    logits = predict(keras.saving.load_model(teacher), ((images / 255 - 0.1) / 0.4).astype("float32"))
    np.testing.assert_allclose(found.teaching.answer(images, 0, None), softmax(logits, axis=1), atol=1e-5)


def test_layers_without_weights_belong_to_a_teacher(tmp_path, data):
    found = []
    for factor in (1, 1, 2):
        keras.utils.clear_session()  # so that names are as in another process
        keras.utils.set_random_seed(0)
        scale = keras.layers.Rescaling(factor, name="scale")
        path = save_model(tmp_path / f"{len(found)}.keras", [scale, keras.layers.Dense(3, name="head")])
        found.append(taught(recipe_of(path, data), data, tmp_path)[0].fingerprint)
    assert found[0] == found[1] != found[2]
    first, second = (small_cnn.build((16, 16, 1), 3).to_json() for _ in range(2))
    assert first == second  # no name counts what else the process has made


def test_a_teacher_of_another_size_and_of_more_classes_is_adapted(tmp_path, data):
    names = ["x", "c", "a", "b"]
    shape = {"image_size": (16, 24), "channels": 3, "patch_size": (4, 3)}
    labels, rng = np.random.default_rng(0).choice(4, size=80), np.random.default_rng(2)
    images = rng.integers(256, size=(80, 16, 24, 3), dtype=np.uint8)
    parts = [type(data.train)(images[rows], labels[rows]) for rows in (slice(0, 56), slice(56, 68), slice(68, None))]
    other = dataclasses.replace(data, train=parts[0], validation=parts[1], test=parts[2], class_names=names)
    first = train(recipe_of(model=shape, train={"epochs": 1}), tmp_path / "big", data=other, verbose=0, pictures=False)
    found, said = taught(recipe_of(first.path, data, mean=0.4), data, tmp_path)
    for words in ("3 of its 4 classes are the data's", "takes 16x24 pixels, the student 8x12", "sees the grey images 3 times"):
        assert any(words in line for line in said), said
    images = data.train.images(np.arange(6))
    large = np.repeat(keras_vit.images.resize((images / 127.5 - 1).astype("float32"), (16, 24)), 3, axis=-1)
    logits = predict(first.model(), large)[:, [2, 3, 1]]
    np.testing.assert_allclose(found.teaching.answer(images, 0, None), softmax(logits, axis=1), atol=1e-5)


def test_teachers_that_cannot_teach_are_refused(tmp_path, data, teacher):
    def refuse(message, path, chosen=data, **settings):
        with one_line_error(message):
            taught(recipe_of(path, chosen, **settings), chosen, tmp_path)

    refuse("which has 4 classes without names; allowed: 3", save_model(tmp_path / "four.keras", [keras.layers.Dense(4)]))
    refuse("which is no classifier", save_model(tmp_path / "map.keras", [keras.layers.Reshape((8, 12, 1))]))
    nan = [keras.layers.Dense(3, bias_initializer=keras.initializers.Constant(np.nan))]
    refuse("whose logits are not finite: it has diverged", save_model(tmp_path / "nan.keras", nan))
    (tmp_path / "cut.keras").write_bytes((tmp_path / "four.keras").read_bytes()[:-100])
    refuse("allowed: an intact .keras file", tmp_path / "cut.keras")
    refuse("which is no file", tmp_path / "absent.keras")
    refuse("which is no local file or folder|allowed: an existing file", tmp_path / "absent")
    refuse("an array; allowed: logits:", tmp_path / "logits.npy")
    refuse("mean: received .*; allowed: a number", teacher.path, distill={"mean": [0.1, 0.2]})
    several = made(labels_of(True))
    refuse("which was trained with one class an image; allowed: any number of classes an image", teacher.path, several)
    renamed = dataclasses.replace(data, class_names=["a", "B", "C"])
    refuse("which does not know 'B' and 1 more of the data's classes; allowed: a teacher of all 3", teacher.path, renamed)
    coloured = save_model(tmp_path / "two.keras", [keras.layers.Dense(3)], (8, 12, 2))
    refuse("which takes 2 channels; allowed: 1, as the student", coloured)
    images = np.random.default_rng(0).integers(256, size=(40, 8, 12, 3), dtype=np.uint8)
    three = dataclasses.replace(data, train=type(data.train)(images, data.train.labels), validation=None)
    refuse("which takes 2 channels; allowed: 3, as the student", coloured, three, model={"channels": 3})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 2.0}, "^temperature: received 2.0; allowed: 1.0 without a teacher"),
        ({"teacher": "x", "targets": "hard", "temperature": 2.0}, "^temperature: received 2.0; allowed: 1.0 with targets=hard"),
        ({"teacher": "x", "targets": "odd"}, "^targets: received 'odd'; allowed: soft, hard"),
        ({"teacher": "x", "weight": 1.1}, "^weight: received 1.1; allowed: a number of at least 0 and of at most 1"),
        ({"teacher": "x", "folder": "y"}, "^folder: received 'y'; allowed: '' with views=0"),
        ({"teacher": "x", "epochs": 3.0}, "^epochs: received 3.0; allowed: 8.0 with a teacher other than small-cnn"),
        ({"teacher": "small-cnn", "mean": 0.2}, "^mean: received 0.2; allowed: None with small-cnn"),
        ({"teacher": "logits:x", "views": 2}, "^views: received 2; allowed: 0 with a file of logits"),
        ({"teacher": "x", "views": -1}, "^views: received -1; allowed: an integer of at least 0"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with one_line_error(message):
        DistillConfig(**settings)


# Other libraries


def test_onnx(tmp_path, data):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    def write(name, shape, rank=2, kernel=None, kind=TensorProto.FLOAT, **settings):
        nodes = [helper.make_node("Cast", ["x"], ["z0"], to=TensorProto.FLOAT), helper.make_node("Flatten", ["z0"], ["flat"])]
        nodes.append(helper.make_node("MatMul", ["flat", "w"], ["y"]))
        out = ["B", 3] if rank == 2 else ["B", 3, 1]
        if rank != 2:
            nodes[2] = helper.make_node("MatMul", ["flat", "w"], ["z"])
            nodes.append(helper.make_node("Unsqueeze", ["z", "axes"], ["y"]))
        w = np.random.default_rng(0).normal(size=(96, 3)).astype("float32") if kernel is None else kernel
        constants = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.array([2], np.int64), "axes")]
        inputs = [helper.make_tensor_value_info("x", kind, shape)]
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)]
        graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, tmp_path / name, **settings)
        return tmp_path / name, w

    images = data.train.images(np.arange(7))
    pixels = ((images / 255 - 0.2) / 0.4).astype("float32")
    moments = {"mean": 0.2, "std": 0.4}
    for name, shape in (("first.onnx", ["B", 1, 8, 12]), ("fixed.onnx", [3, 1, 8, 12])):
        path, w = write(name, shape)
        found, _ = taught(recipe_of(path, data, distill=moments), data, tmp_path)
        expected = softmax(np.moveaxis(pixels, -1, 1).reshape(7, -1) @ w, axis=1)
        np.testing.assert_allclose(found.teaching.answer(images, 0, None), expected, atol=1e-5)
    kernel = np.random.default_rng(0).normal(size=(96, 3)).astype("float32") / 255
    for name, shape in (("pixels.onnx", ["B", 1, 8, 12]), ("last.onnx", ["B", 8, 12, 1])):  # pixels as they are
        path, w = write(name, shape, kernel=kernel, kind=TensorProto.UINT8)
        found, _ = taught(recipe_of(path, data), data, tmp_path)
        np.testing.assert_allclose(found.teaching.answer(images, 0, None), softmax(images.reshape(7, -1) @ w, axis=1), atol=1e-5)
        with one_line_error("mean: received 0.2; allowed: null, as .* takes pixels from 0 to 255"):
            taught(recipe_of(path, data, distill=moments), data, tmp_path)
    # Of another size: resizing overshoots, and bytes would wrap.
    kernel = np.random.default_rng(0).normal(size=(384, 3)).astype("float32") / 255
    path, w = write("large.onnx", ["B", 16, 24, 1], kernel=kernel, kind=TensorProto.UINT8)
    large = keras_vit.images.resize(images.astype("float32"), (16, 24))
    assert large.min() < -1
    expected = softmax(np.rint(large).clip(0, 255).reshape(7, -1) @ w, axis=1)
    found, _ = taught(recipe_of(path, data), data, tmp_path)
    np.testing.assert_allclose(found.teaching.answer(images, 0, None), expected, atol=1e-4)
    # Weights beside the file belong to the teacher.
    settings = {"save_as_external_data": True, "location": "apart.onnx.data", "size_threshold": 0}
    fingerprints = set()
    for seed in (0, 1):
        (tmp_path / "apart.onnx.data").unlink(missing_ok=True)
        kernel = np.random.default_rng(seed).normal(size=(96, 3)).astype("float32")
        path, _ = write("apart.onnx", ["B", 1, 8, 12], kernel=kernel, **settings)
        fingerprints.add(taught(recipe_of(path, data), data, tmp_path)[0].fingerprint)
    assert len(fingerprints) == 2
    (tmp_path / "apart.onnx.md").write_text("notes are no weights")
    assert taught(recipe_of(path, data), data, tmp_path)[0].fingerprint in fingerprints
    for path, message in (
        (write("map.onnx", ["B", 1, 8, 12], rank=3)[0], "which is no classifier; allowed: a classifier: one input of images"),
        (write("vector.onnx", ["B", 96])[0], "which is no classifier"),
        (write("nan.onnx", ["B", 1, 8, 12], kernel=np.full((96, 3), np.inf, "float32"))[0], "it has diverged"),
        (write("small.onnx", ["B", 1, 8, 8])[0], "which fails on images|which onnxruntime cannot read"),
    ):
        with one_line_error(message):
            taught(recipe_of(path, data), data, tmp_path)
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "first.onnx").read_bytes()[:300])
    with one_line_error("which onnxruntime cannot read"):
        taught(recipe_of(tmp_path / "cut.onnx", data), data, tmp_path)


@pytest.mark.slow
def test_an_export_teaches_as_its_run(tmp_path, data, teacher):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    recipe = teacher.recipe
    known = {"mean": recipe.mean, "std": recipe.std, "class_names": CLASSES}
    folder = tmp_path / "export"
    keras_vit.export_model(teacher.model(), folder, format="onnx", **known)
    images = data.train.images(np.arange(7))
    found, _ = taught(recipe_of(folder / "model.onnx", data), data, tmp_path)
    np.testing.assert_allclose(found.teaching.answer(images, 0, None), answers(teacher, images), atol=1e-5)


def test_timm(tmp_path, data):
    pytest.importorskip("torch")
    import peers  # noqa: F401  before timm, which imports torchvision

    timm = pytest.importorskip("timm")
    import torch

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3, in_chans=3).eval()
    config = {"architecture": "test_resnet", "num_classes": 3, "label_names": ["b", "a", "c"]}
    config["pretrained_cfg"] = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.6], "input_size": [3, 32, 32], "num_classes": 3}
    timm.models.save_for_hf(model, tmp_path / "timm", model_config=None, model_args=None)
    import json

    (tmp_path / "timm" / "config.json").write_text(json.dumps(config))
    found, _ = taught(recipe_of(f"timm:{tmp_path / 'timm'}", data), data, tmp_path)
    images = np.repeat(data.train.images(np.arange(4)), 3, axis=-1)
    pixels = ((images / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.5, 0.6]).astype("float32")
    with torch.no_grad():
        logits = model(torch.from_numpy(np.moveaxis(keras_vit.images.resize(pixels, (32, 32)), -1, 1).copy())).numpy()[:, [1, 0, 2]]
    np.testing.assert_allclose(found.teaching.answer(images[..., :1], 0, None), softmax(logits, axis=1), atol=1e-5)
    with one_line_error("which timm cannot make"):
        taught(recipe_of("timm:no_such_model", data), data, tmp_path)


# small-cnn


@backend
def test_small_cnn_takes_its_share_of_the_seconds_and_is_kept(tmp_path, data):
    settings = {"data": data, "verbose": 0, "pictures": False}
    recipe = recipe_of("small-cnn", train={"epochs": 1})
    run = train(recipe, tmp_path / "run", seconds=4, **settings)
    assert run.recipe.distill.epochs >= small_cnn.FEWEST
    assert run.recipe.distill.epochs == run.summary["teacher_epochs"] != 8
    assert train(recipe, run.path, resume=True, seconds=4, data=data).recipe == run.recipe
    images = data.validation.images(np.arange(12))
    logits = predict(keras.saving.load_model(run.path / "teacher.keras"), (images / 127.5 - 1).astype("float32"))
    assert (logits.argmax(1) == data.validation.labels).mean() == pytest.approx(run.summary["teacher_val_accuracy"])
    # The teacher of a run may teach another one.
    found, _ = taught(recipe_of(run.path / "teacher.keras", data), data, tmp_path)
    np.testing.assert_allclose(found.teaching.answer(images, 0, None), softmax(logits, axis=1), atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 12, 1), (32, 32, 3), (64, 40, 5), (3, 160, 3)])
def test_small_cnn_takes_images_of_any_size(shape):
    model = small_cnn.build(shape, 7)
    assert model.output_shape == (None, 7)
    assert np.isfinite(predict(model, random(2, *shape))).all()


def test_a_damaged_teacher_of_a_run_is_trained_again(tmp_path, data):
    recipe = recipe_of("small-cnn", distill={"epochs": 1.0})
    run = train(recipe, tmp_path / "run", data=data, until=1, verbose=0, pictures=False)
    path = run.path / "teacher.keras"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.warns(UserWarning, match=r"teacher.keras' is damaged \(it does not fit its digest\); it is trained anew"):
        train(recipe, run.path, data=data, resume=True, verbose=0)


def test_a_run_does_not_delete_its_teacher(tmp_path, data, teacher):
    (teacher.path / "logits.npy").touch()
    for path in (teacher.path, teacher.path / "best.keras", f"logits:{teacher.path / 'logits.npy'}"):
        with one_line_error("holds the teacher of the run; choose another folder"):
            train(recipe_of(path), teacher.path, data=data, overwrite=True, verbose=0)
    assert (teacher.path / "best.keras").exists()


def test_lengths_of_small_cnn_without_effect_are_said(tmp_path, data):
    _, said = taught(recipe_of("small-cnn", data, distill={"epochs": 0.5, "share": 0.5}), data, tmp_path)
    assert "teacher: distill.share 0.5 has no effect without train.time; distill.epochs decides" in said
    _, said = taught(recipe_of("small-cnn", data, distill={"epochs": 3.0}), data, tmp_path, seconds=1)
    assert "teacher: distill.epochs 3 is replaced by what fits into distill.share of the time" in said


def test_what_a_run_lacks_is_said_before_the_teacher_is_trained(tmp_path, data, monkeypatch):
    monkeypatch.setattr(small_cnn, "small_cnn", lambda *_: pytest.fail("trained"))
    with one_line_error("patience: received 2; allowed: 0 without validation images"):
        train(recipe_of("small-cnn", train={"patience": 2}), tmp_path, data=dataclasses.replace(data, validation=None), verbose=0)


def test_several_processes_are_refused_a_teacher_that_is_not_ready(tmp_path, data):
    two = Distribution()
    two.processes = 2
    with one_line_error("with 2 processes; allowed: a teacher that has been trained"):
        teach.teach(recipe_of("small-cnn", data), data, tmp_path, two, print)
