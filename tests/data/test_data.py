"""Data: every source, bad input, splits, and streams that are the same on every path."""

import dataclasses
import gc
import importlib.util
import pathlib
import socket
import threading

import keras
import numpy as np
import pytest
from helpers import wait_for

from keras_vit.data import dataset, labels, network, tfds
from keras_vit.data.augment import AugmentConfig
from keras_vit.data.batches import evaluation_batches, training_batch, training_batches
from keras_vit.data.dataset import Split, load_data
from keras_vit.images import normalize

SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "tfds"
PIPELINES = ["PyDataset"] + ["tf.data"] * (importlib.util.find_spec("tensorflow") is not None)
DEFAULT = "tf.data" if keras.backend.backend() == "tensorflow" else "PyDataset"
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
AUGMENT = AugmentConfig(crop=2, randaugment_layers=1, mixup=0.8, cutmix=1.0, erasing=0.2)
OFF = AugmentConfig(flip=False, crop=0)
FLOAT32 = 1e-6
COUNT, SHAPE, CLASSES = 26, (9, 12, 3), 4  # batches of 8: three an epoch, two examples left over

every_pipeline = pytest.mark.parametrize(
    "pipeline", [pytest.param(name, marks=pytest.mark.backend if name == DEFAULT else ()) for name in PIPELINES]
)


def random_split(count=COUNT):
    rng = np.random.default_rng(0)
    return Split(rng.integers(0, 256, (count, *SHAPE), dtype=np.uint8), np.arange(count) % CLASSES)


def arguments(**changes):
    return {"num_classes": CLASSES, "batch_size": 8, "seed": 5} | changes


def first(batches, count):
    return [tuple(np.asarray(part) for part in batch) for batch, _ in zip(batches, range(count), strict=False)]


# Streams


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize("crop", ["crop", "resized_crop"])
def test_parts_of_a_batch_are_the_batch(parts, crop):
    """What several processes make together is what one makes: every augmentation, and partners of other parts."""
    split, more = random_split(), {"three_augment": True, "color_jitter": 0.3, "resized_crop": 0.3 * (crop != "crop")}
    config = dataclasses.replace(AUGMENT, **more)
    for step in (0, 4):
        whole = training_batch(split, config, step, **arguments())
        made = [training_batch(split, config, step, part=(index, parts), **arguments()) for index in range(parts)]
        for expected, pieces in zip(whole, zip(*made, strict=True), strict=True):
            np.testing.assert_array_equal(np.concatenate(pieces), expected)


def test_a_batch_must_divide_into_its_parts():
    with pytest.raises(ValueError, match="batch_size: received 8; allowed: multiples of 3"):
        training_batches(random_split(), OFF, mean=MEAN, std=STD, part=(0, 3), **arguments())


@every_pipeline
def test_streams_equal_the_pure_function(pipeline):
    split = random_split()
    stream = training_batches(split, AUGMENT, mean=MEAN, std=STD, pipeline=pipeline, **arguments())
    for step, (images, targets) in enumerate(first(stream, 10)):
        expected, expected_targets = training_batch(split, AUGMENT, step, **arguments())
        np.testing.assert_array_equal(images, normalize(expected, MEAN, STD))
        np.testing.assert_array_equal(targets, expected_targets)
        assert images.dtype == targets.dtype == np.float32
        assert images.shape == (8, *SHAPE)
        assert targets.shape == (8, CLASSES)


@every_pipeline
def test_resuming_gives_the_tail_of_the_stream(pipeline):
    whole = first(training_batches(random_split(), AUGMENT, mean=0.5, std=0.2, pipeline=pipeline, **arguments()), 9)
    tail = training_batches(random_split(), AUGMENT, mean=0.5, std=0.2, pipeline=pipeline, start_step=4, **arguments())
    for (images, targets), (again, targets_again) in zip(whole[4:], first(tail, 5), strict=True):
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(targets, targets_again)


def test_steps_and_seeds_differ():
    batches = [training_batch(random_split(), AUGMENT, step, **arguments(seed=seed))[0] for step, seed in ((0, 5), (1, 5), (0, 6))]
    assert all((batches[0] != other).mean() > 0.5 for other in batches[1:])
    same = Split(np.repeat(random_split(1).images([0]), COUNT, axis=0), np.arange(COUNT) % CLASSES)
    config = AugmentConfig(crop=2, randaugment_layers=2)
    assert (training_batch(same, config, 0, **arguments())[0] != training_batch(same, config, 1, **arguments())[0]).any()


def test_an_epoch_visits_each_example_at_most_once_and_all_when_batches_divide():
    for count, visited in ((24, 24), (COUNT, 24)):
        images = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, *SHAPE), np.uint8)
        split = Split(images, np.arange(count) % CLASSES)
        epochs = []
        for epoch in range(3):
            steps = range(3 * epoch, 3 * epoch + 3)
            seen = np.concatenate([training_batch(split, OFF, step, **arguments())[0][:, 0, 0, 0] for step in steps])
            assert len(set(seen.tolist())) == len(seen) == visited
            epochs.append(seen.tolist())
        assert epochs[0] != epochs[1] != epochs[2]


@every_pipeline
def test_evaluation_is_every_example_in_order(pipeline):
    split = random_split()
    for _ in range(2):  # can be read again
        batches = list(evaluation_batches(split, num_classes=CLASSES, batch_size=8, mean=MEAN, std=STD, pipeline=pipeline))
        assert [len(images) for images, _ in batches] == [8, 8, 8, 2]
        images, targets = (np.concatenate([np.asarray(batch[part]) for batch in batches]) for part in (0, 1))
        expected = (split.images(np.arange(COUNT)) / 255 - MEAN) / STD
        np.testing.assert_allclose(images, expected, atol=FLOAT32 * 10)
        np.testing.assert_array_equal(targets, np.eye(CLASSES)[split.labels])


def small_model():
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(CLASSES, kernel_initializer="zeros")])
    model.compile(optimizer=keras.optimizers.SGD(0.01), loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    return model


@every_pipeline
@pytest.mark.parametrize("built", [False, True])
def test_fit_consumes_every_batch_in_order_across_epochs_and_a_resume(pipeline, built):
    split, model, reference = random_split(), small_model(), small_model()
    if built:
        model.build((None, *SHAPE))
    for step in range(6):
        images, targets = training_batch(split, AUGMENT, step, **arguments())
        reference.train_on_batch(normalize(images, MEAN, STD), targets)
    validation = evaluation_batches(split, num_classes=CLASSES, batch_size=8, mean=MEAN, std=STD, pipeline=pipeline)
    for epochs in (1, 2):  # the second call resumes
        start = 3 * (epochs - 1)
        stream = training_batches(split, AUGMENT, mean=MEAN, std=STD, start_step=start, pipeline=pipeline, **arguments())
        history = model.fit(
            stream, steps_per_epoch=3, epochs=epochs, initial_epoch=epochs - 1, validation_data=validation, shuffle=False, verbose=0
        )
        assert len(history.epoch) == 1
    straight = small_model()
    stream = training_batches(split, AUGMENT, mean=MEAN, std=STD, pipeline=pipeline, **arguments())
    straight.fit(stream, steps_per_epoch=3, epochs=2, validation_data=validation, shuffle=False, verbose=0)
    for weights in (model.get_weights(), straight.get_weights()):
        for value, expected in zip(weights, reference.get_weights(), strict=True):
            assert np.abs(expected).max() > 1e-3
            np.testing.assert_allclose(value, expected, atol=FLOAT32)


def test_threads_end_with_the_stream():
    stream = training_batches(random_split(), AUGMENT, mean=MEAN, std=STD, pipeline="PyDataset", **arguments())
    first(stream, 3)
    alive = lambda: [thread for thread in threading.enumerate() if thread.name.startswith("batches")]  # noqa: E731
    gc.collect()
    before = len(alive())
    assert before > 0
    del stream
    gc.collect()
    wait_for(lambda: len(alive()) < before, seconds=10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": COUNT + 1}, "^batch_size: received 27; allowed: at most 26, the training images"),
        ({"batch_size": 0}, "^batch_size: received 0; allowed: an integer of at least 1"),
        ({"seed": -1}, r"^seed: received -1; allowed: an integer from 0 to 2\^32 - 1"),
        ({"mean": (0.5, 0.5)}, r"^mean: received \(0.5, 0.5\); allowed: a number, or one for each of 3 channels"),
        ({"std": 0}, "^std: received 0; allowed: a number above 0, or one for each of 3 channels"),
        ({"pipeline": "queue"}, "^pipeline: received 'queue'; allowed: None, tf.data, PyDataset"),
    ],
)
def test_wrong_stream_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        training_batches(random_split(), OFF, **({"mean": 0.5, "std": 0.5} | arguments(**changes)))


# Digits, arrays and splits


@pytest.mark.parametrize(("size", "channels"), [(8, 1), ((20, 16), 3)])
def test_digits(size, channels):
    data = load_data("digits", image_size=size, channels=channels)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1294, 144, 359]
    assert data.train.shape == (*(size if isinstance(size, tuple) else (size, size)), channels)
    images = data.train.images(np.arange(1294))
    assert images.dtype == np.uint8
    assert images.min() == 0
    assert images.max() == 255
    assert 40 < images.mean() < 110
    assert data.class_names == [str(digit) for digit in range(10)]
    assert not data.fallback
    if channels == 1:
        from sklearn.datasets import load_digits

        values = np.sort(np.concatenate([images, data.validation.images(np.arange(144)), data.test.images(np.arange(359))]).ravel())
        np.testing.assert_array_equal(values, np.sort(np.round(load_digits().images * 255 / 16).astype(np.uint8).ravel()))


def rows(split):
    return {image.tobytes() for image in split.images(np.arange(len(split)))}


def test_splits_are_stratified_disjoint_and_by_seed():
    load = lambda **kwargs: load_data("digits", image_size=8, channels=1, **kwargs)  # noqa: E731
    data, again, other = load(validation=0.2), load(validation=0.2), load(validation=0.2, seed=1)
    assert len(data.validation) == round(0.2 * (1797 - 359))
    parts = [rows(part) for part in (data.train, data.validation, data.test)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert sum(map(len, parts)) == 1797
    shares = np.bincount(data.validation.labels) / np.bincount(np.concatenate([data.train.labels, data.validation.labels]))
    assert np.abs(shares - 0.2).max() < 0.01
    assert rows(again.validation) == parts[1] != rows(other.validation)
    assert rows(other.test) == parts[2]
    assert data.fingerprint == again.fingerprint == other.fingerprint
    assert load(validation=0).validation is None
    assert len(load(validation=7).validation) == 7
    for wrong in (1.0, -1, 1438, 1435, True, "10%"):
        with pytest.raises(ValueError, match=r"^validation: received .*; allowed: "):
            load(validation=wrong)


def save(path, **arrays):
    np.savez(path, **arrays)
    return f"arrays:{path}"


def grey_arrays(count=40, suffix="train", dtype=np.uint8):
    images = np.random.default_rng(0).integers(0, 256, (count, 6, 7), dtype=np.uint8)
    images = images if dtype == np.uint8 else (images / 255).astype(dtype)
    return {f"x_{suffix}": images, f"y_{suffix}": np.arange(count)[:, None] % CLASSES}


def test_arrays(tmp_path):
    integers = load_data(save(tmp_path / "a b.npz", **grey_arrays()), image_size=(6, 7), channels=1, validation=0)
    floats = load_data(save(tmp_path / "f.npz", **grey_arrays(dtype=np.float32)), image_size=(6, 7), channels=1, validation=0)
    assert len(integers.train) == 32
    assert len(integers.test) == 8
    assert integers.fingerprint == floats.fingerprint
    np.testing.assert_array_equal(integers.train.images(np.arange(32)), floats.train.images(np.arange(32)))
    three = load_data(
        save(tmp_path / "g.npz", **grey_arrays(), **grey_arrays(12, "test"), **grey_arrays(8, "val")), image_size=12, channels=3
    )
    assert [len(part) for part in (three.train, three.validation, three.test)] == [40, 8, 12]
    assert three.train.shape == (12, 12, 3)
    assert three.fingerprint != integers.fingerprint
    images = three.train.images(np.arange(5))
    assert (images[..., 0] == images[..., 2]).all()
    assert images.std() > 20


def test_numbers_with_gaps_are_the_names_of_their_classes(tmp_path):
    x, y = np.random.default_rng(0).integers(0, 256, (40, 6, 7), dtype=np.uint8), np.arange(40) % 2 * 255
    data = load_data(save(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[1:8], y_test=y[1:8]), image_size=(6, 7), channels=1)
    assert data.class_names == ["0", "255"]
    assert data.test.labels.tolist() == [1, 0, 1, 0, 1, 0, 1]


def test_images_of_train_among_the_others_are_counted(tmp_path):
    x, y = np.random.default_rng(0).integers(0, 256, (40, 6, 7), dtype=np.uint8), np.arange(40) % 2
    new = 255 - x[:9]
    parts = {"x_test": np.concatenate([new, x[5:8], x[5:6]]), "y_test": np.arange(13) % 2, "x_val": new, "y_val": y[:9]}
    data = load_data(save(tmp_path / "a.npz", x_train=x, y_train=y, **parts), image_size=(6, 7), channels=1)
    said = [note for note in data.notes if "among the training images" in note]
    assert said == ["test: 4 of 13 images are also among the training images"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": None}, "^y_train: received none in '.*wrong.npz', which has x_train; allowed: an array"),
        ({"x_train": None, "y_train": None}, "^x_train: received none"),
        ({"x_test": np.zeros((3, 6, 7), np.uint8)}, "^y_test: received none"),
        ({"x_train": np.zeros((40, 6), np.uint8)}, r"^x_train: received shape \(40, 6\); allowed: \(N, H, W\)"),
        ({"x_train": np.zeros((40, 6, 7, 2), np.uint8)}, "^x_train: received shape"),
        ({"x_train": np.full((40, 6, 7), 2.0)}, "^x_train: received float64 from 2.0 to 2.0; allowed: uint8, or float from 0 to 1"),
        ({"x_train": np.full((40, 6, 7), np.nan)}, "^x_train: received float64 from nan"),
        ({"x_train": np.zeros((40, 6, 7), np.int32)}, "^x_train: received int32; allowed: uint8, or float"),
        ({"x_train": np.array([None] * 40)}, "holds Python objects, which are never read"),
        ({"y_train": np.arange(39)}, "^y_train: received 39 labels; allowed: 40, the images of x_train"),
        ({"y_train": np.arange(40) - 1}, "^y_train: received .*; allowed: whole numbers"),
        ({"y_train": np.ones(40)}, "^y_train: received .*; allowed: whole numbers"),
        ({"y_train": np.zeros(40, int)}, "^data: received 'arrays:.*' with class '0' alone; allowed: two classes or more"),
        (
            {"x_test": np.zeros((2, 6, 7), np.uint8), "y_test": np.array([1, 9])},
            "^y_test: received label 9; allowed, as in y_train: 0, 1, 2, 3$",
        ),
    ],
)
def test_wrong_arrays(tmp_path, changes, message):
    arrays = {key: value for key, value in (grey_arrays() | changes).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        load_data(save(tmp_path / "wrong.npz", **arrays), image_size=8)


def test_arrays_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"^data: received 'arrays:.*none.npz': there is no such file; allowed: arrays:FILE.npz"):
        load_data(f"arrays:{tmp_path}/none.npz", image_size=8)
    (tmp_path / "text.npz").write_text("not a zip")
    with pytest.raises(ValueError, match=r"^data: received 'arrays:.*text.npz', which cannot be read"):
        load_data(f"arrays:{tmp_path}/text.npz", image_size=8)
    name = save(tmp_path / "big.npz", **grey_arrays())
    monkeypatch.setattr(labels, "memory_limit", lambda: 1000)
    with pytest.raises(
        ValueError, match=r"^data: received 'arrays:.*big.npz' of 2,\d+ bytes; allowed: a third of the free memory, 1,000"
    ):
        load_data(name, image_size=8)


@pytest.mark.parametrize("wrong", [{"image_size": 0}, {"image_size": 8, "channels": 4}, {"image_size": 8, "seed": -1}])
def test_wrong_load_arguments(wrong):
    with pytest.raises(ValueError, match=r"^(image_size|channels|seed): received .*; allowed: "):
        load_data("digits", **wrong)


def test_short_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["folder:/a b/my photos", "arrays:d/a.npz", "folder:.", "cifar10", "cifar10_corrupted/blur:1.0"]
    assert [dataset.short_name(name) for name in names] == [
        "my-photos",
        "a",
        tmp_path.name,
        "cifar10",
        "cifar10_corrupted-blur-1.0",
    ]


# TensorFlow data sets


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("Network is unreachable")

    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


def test_auto_falls_back_to_digits_and_says_why(offline, tmp_path):
    data = load_data("auto", data_dir=tmp_path, image_size=8, channels=1)
    assert data.name == "digits"
    assert len(data.train) == 1294
    assert "cifar10" in data.fallback


@pytest.mark.skipif(not tfds.installed("tensorflow_datasets"), reason="needs tensorflow-datasets")
@pytest.mark.parametrize("own", [False, True])
def test_looking_for_a_data_set_logs_nothing_unless_the_user_wants_it(offline, tmp_path, caplog, own):
    from absl import logging

    before = logging.get_verbosity()
    try:
        logging.set_verbosity(logging.INFO if own else logging.WARNING)
        level = logging.get_verbosity()
        assert load_data("auto", data_dir=tmp_path, image_size=8).name == "digits"
        assert logging.get_verbosity() == level
    finally:
        logging.set_verbosity(before)
    assert any("no dataset_info.json" in record.message for record in caplog.records) == own


def test_a_network_that_never_answers_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(network, "PROBE_SECONDS", 0.2)
    end, ended = threading.Event(), []

    def never(*args, **kwargs):
        end.wait(60)
        ended.append(1)
        raise OSError("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", never)
    assert not network.reachable("https://nowhere.invalid/")
    assert not ended
    end.set()


def test_an_explicit_name_never_falls_back(offline, tmp_path):
    with pytest.raises(ValueError, match=r"cifar10.*(not prepared below.*does not answer.*--data-dir|not installed)"):
        load_data("cifar10", data_dir=tmp_path, image_size=32)


def test_without_tensorflow_datasets(monkeypatch, tmp_path):
    monkeypatch.setattr(tfds, "installed", lambda module: False)
    assert load_data("auto", image_size=8).name == "digits"
    with pytest.raises(ValueError, match=r"not installed here \(pip install tensorflow-datasets\); allowed without it: digits"):
        load_data("cifar10", data_dir=tmp_path, image_size=32)


@pytest.mark.skipif(not tfds.installed("tensorflow_datasets"), reason="needs tensorflow-datasets")
def test_preparing_without_tensorflow(monkeypatch, tmp_path):
    monkeypatch.setattr(tfds, "installed", lambda module: module != "tensorflow")
    monkeypatch.setattr(tfds, "reachable", lambda url: True)
    with pytest.raises(ValueError, match=r"not prepared below .*, which tensorflow would do, not installed here \("):
        load_data("cifar10", data_dir=tmp_path, image_size=32)


@pytest.mark.skipif(not tfds.installed("tensorflow_datasets"), reason="names are TensorFlow's data sets")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifr10", r"^data: received 'cifr10' \(did you mean .*cifar10.*\?\); allowed: auto, digits, folder:PATH"),
        ("digit", "did you mean digits"),
        ("qqqqqq", "^data: received 'qqqqqq'; allowed: auto, .*a TFDS name"),
        ("", "^data: received ''; allowed: "),
        ("huggingface:glue", "^data: received 'huggingface:glue'.*; allowed: "),
        ("coco", "^data: received 'coco' with features image, .*; allowed: an 8-bit image and a class label"),
        ("cifar10/none", "^data: received 'cifar10/none': "),
    ],
)
def test_wrong_names(offline, tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        load_data(name, data_dir=tmp_path, image_size=32)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED.is_dir() and tfds.installed("tensorflow_datasets")), reason="needs prepared CIFAR-10")
def test_prepared_cifar10_without_network(offline, monkeypatch, caplog):
    monkeypatch.setenv("TFDS_DATA_DIR", str(SHARED))
    data = load_data("auto", image_size=32)
    assert data.name == "cifar10"
    assert not data.fallback
    assert not caplog.records
    assert data.class_names[:3] == ["airplane", "automobile", "bird"]
    assert [len(part) for part in (data.train, data.validation, data.test)] == [45_000, 5_000, 10_000]
    assert np.bincount(data.train.labels).tolist() == [4500] * 10
    assert np.bincount(data.validation.labels).tolist() == [500] * 10
    mean = data.train.images(np.arange(0, 45_000, 9)).mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=0.01)
