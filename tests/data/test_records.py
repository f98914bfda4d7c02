"""Data sets of TensorFlow Datasets in both of its formats: pictures of any size, read at random, without TensorFlow."""

import hashlib
import importlib.util
import io
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
from helpers import LIGHT, ROOT, once, one_line_error
from PIL import Image

from keras_vit.backend import installed_backends
from keras_vit.data import decode, photos, records
from keras_vit.data.augment import AugmentConfig
from keras_vit.data.batches import training_batch
from keras_vit.data.dataset import load_data

tfds = pytest.importorskip("tensorflow_datasets")
FORMATS = ("array_record", "tfrecord")
CLASSES = ("cat", "dog", "fox")
COUNTS = {"train": 14, "test": 5}
# Two shards a part: what is read first is not the first shard alone.
CONFIG = {"download_config": tfds.download.DownloadConfig(num_shards=2)}


def pictures(part):
    """Encoded pictures of different sizes and kinds, with their labels."""
    rng = np.random.default_rng(list(COUNTS).index(part))
    for index in range(COUNTS[part]):
        height, width = rng.integers(20, 60, size=2)
        low = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8))
        encoded = io.BytesIO()
        low.resize((int(width), int(height)), Image.Resampling.BICUBIC).save(encoded, "PNG" if index == 3 else "JPEG", quality=95)
        yield encoded.getvalue(), index % len(CLASSES)


class TinyPhotos(tfds.core.GeneratorBasedBuilder):
    """Photos of three animals."""

    VERSION = tfds.core.Version("1.0.0")
    PICTURES = staticmethod(pictures)

    def _info(self):
        features = {
            "name": tfds.features.Text(),
            "image": tfds.features.Image(),
            "boxes": tfds.features.Sequence(tfds.features.BBoxFeature()),
            "label": tfds.features.ClassLabel(names=list(CLASSES)),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {part: self._generate_examples(part) for part in COUNTS}

    def _generate_examples(self, part):
        for index, (encoded, label) in enumerate(self.PICTURES(part)):
            yield index, {"name": f"{index}.jpg", "image": io.BytesIO(encoded), "boxes": [], "label": label}


def prepare(folder, file_format):
    builder = TinyPhotos(data_dir=folder, file_format=file_format)
    builder.download_and_prepare(**CONFIG)
    return builder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    return once(tmp_path_factory, "tfds", lambda folder: [prepare(folder / kind, kind) for kind in FORMATS])


def load(folder, **settings):
    return load_data("tiny_photos", data_dir=str(folder), **{"image_size": (24, 16), "validation": 0, **settings})


@pytest.mark.parametrize("kind", FORMATS)
def test_pictures_are_those_that_were_prepared(prepared, kind):
    before = sorted(prepared.rglob("*"))
    data = load(prepared / kind)
    assert [len(data.train), len(data.test)] == [14, 5]
    assert data.class_names == list(CLASSES)
    assert "train: 14 images, kept in memory (0 MB)" in data.notes
    for part, split in (("train", data.train), ("test", data.test)):
        known = {hashlib.blake2b(encoded, digest_size=16).digest(): (encoded, label) for encoded, label in pictures(part)}
        digests, indices = split.digests(np.arange(len(split))), np.arange(len(split))
        assert set(digests) == set(known)
        boxes = np.tile([0.25, 0.5, 0.5, 0.4], (len(split), 1))
        looks = split.images(indices), split.crops(indices, boxes, (9, 7)), split.sizes(indices), split.labels
        found = zip(digests, *looks, strict=True)
        for digest, image, crop, size, label in found:
            encoded, expected = known[digest]
            assert label == expected
            assert tuple(size) == Image.open(io.BytesIO(encoded)).size[::-1]
            np.testing.assert_array_equal(image, decode.read_image(io.BytesIO(encoded), (24, 16, 3)))
            np.testing.assert_array_equal(crop, decode.read_crop(io.BytesIO(encoded), (9, 7, 3), boxes[0]))
    assert sorted(prepared.rglob("*")) == before  # nothing is written beside the user's data


def test_both_formats_give_the_same_batches_in_any_order(prepared, monkeypatch):
    """A batch is a function of seed and step, whatever was read before, and whether decoded images are kept."""
    config = AugmentConfig(crop=2, mixup=0.5)
    for augment in (config, AugmentConfig(resized_crop=0.3)):
        batches = []
        for kind, limit, steps in (("array_record", 10**9, (0, 5)), ("tfrecord", 10**9, (5, 0)), ("tfrecord", 0, (0, 5))):
            monkeypatch.setattr(photos, "memory_limit", lambda limit=limit: limit)
            data, found = load(prepared / kind), {}
            for step in steps:
                settings = {"num_classes": 3, "batch_size": 4, "seed": 7}
                found[step] = training_batch(data.train, augment, step, **settings)
            batches.append((data.fingerprint, found))
        assert (batches[0][1][0][0] != batches[0][1][5][0]).mean() > 0.5
        for fingerprint, found in batches[1:]:
            assert fingerprint == batches[0][0]
            for step in (0, 5):
                for ours, expected in zip(found[step], batches[0][1][step], strict=True):
                    np.testing.assert_array_equal(ours, expected)


def test_known_records_are_not_examined_again(prepared, monkeypatch):
    first = load(prepared / "tfrecord")
    for name in ("inspect_image", "read_image"):
        monkeypatch.setattr(photos, name, lambda *given: pytest.fail("a record is read again"))
    monkeypatch.setattr(records, "frames", lambda files: pytest.fail("a shard is read again"))
    assert load(prepared / "tfrecord").fingerprint == first.fingerprint


@pytest.mark.skipif("tensorflow" not in installed_backends(), reason="compares with TensorFlow")
def test_frames_are_those_of_tensorflow(prepared):
    import tensorflow as tf

    files = sorted(map(str, prepared.glob("tfrecord/**/*train.tfrecord*")))
    assert len(files) == 2
    counts = [len(list(tf.data.TFRecordDataset(file))) for file in files]
    expected = list(tf.data.TFRecordDataset(files).as_numpy_iterator())
    found = records.TFRecords(files, counts)
    assert [found[row] for row in range(len(found))] == expected
    assert len(expected) == 14


def test_a_shard_that_is_cut_off(tmp_path):
    prepare(tmp_path, "tfrecord")
    (shard,) = tmp_path.glob("**/*train.tfrecord-00001*")
    shard.write_bytes(shard.read_bytes()[:-50])
    with one_line_error(r"^data: received \d records in '.*/tiny_photos-train.tfrecord-00001-of-00002'; allowed: \d; prepare"):
        load(tmp_path)


@pytest.mark.parametrize("kind", FORMATS)
def test_broken_pictures_are_skipped_counted_and_named(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(TinyPhotos, "PICTURES", staticmethod(lambda part: [(b"no picture", 0), *pictures(part)]))
    prepare(tmp_path, kind)
    with pytest.warns(UserWarning, match=r"skipped 1 of") as caught:
        data = load(tmp_path)
    assert len(data.train) == 14
    said = sorted(str(warning.message) for warning in caught)
    assert said[0].startswith("test: skipped 1 of 6 images (test record ")
    assert said[1].endswith(": cannot identify image file)")
    assert "0x" not in said[1]


def test_other_formats_are_named():
    split = types.SimpleNamespace(file_instructions=[])
    info = types.SimpleNamespace(splits={"train": split}, file_format=types.SimpleNamespace(value="riegeli"))
    with one_line_error("^data: received 'photos' prepared as riegeli; allowed: tfrecord, array_record"):
        records.read_records(types.SimpleNamespace(name="photos", info=info), "train")


PROGRAM = """
import importlib.util, sys
assert importlib.util.find_spec("tensorflow") is None
from keras_vit.data import checked
from keras_vit.data.dataset import load_data
checked.CHECKED = checked.Path("checked")
for folder in sys.argv[1:]:
    print(load_data("tiny_photos", data_dir=folder, image_size=(24, 16), validation=0).fingerprint)
assert "tensorflow" not in sys.modules
"""


@pytest.mark.skipif(LIGHT == "tensorflow", reason="needs another backend")
def test_without_tensorflow(prepared, tmp_path):
    """In an environment that has everything but TensorFlow: links to the packages of this one."""
    packages = tmp_path / "packages"
    packages.mkdir()
    installed = [pathlib.Path(importlib.util.find_spec(name).origin).parents[1] for name in ("keras", LIGHT, "tensorflow_datasets")]
    for folder in set(installed):
        for path in folder.iterdir():
            if path.name.split("-")[0] not in ("tensorflow", "tensorflow_cpu", "tf_nightly", "keras_vit"):
                (packages / path.name).symlink_to(path)
    environment = {**os.environ, "PYTHONPATH": f"{packages}{os.pathsep}{ROOT}", "KERAS_BACKEND": LIGHT}
    command = [sys.executable, "-S", "-W", "ignore", "-c", PROGRAM, *(str(prepared / kind) for kind in FORMATS)]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.split() == [load(prepared / kind).fingerprint for kind in FORMATS]
