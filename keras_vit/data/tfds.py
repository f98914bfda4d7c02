"""TensorFlow Datasets as a data set: prepared on this machine, or downloaded and prepared."""

import contextlib
import difflib
import importlib.util
import os
import re
import urllib.parse
from collections.abc import Iterator

import numpy as np

from keras_vit.backend import import_tensorflow
from keras_vit.data.decode import CONVERTED, one_line
from keras_vit.data.network import reachable
from keras_vit.data.photos import collect
from keras_vit.data.records import read_records

# TFDS names a data set's host only while it downloads. These hosts are tried first, to see whether there is a network.
HOSTS = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}
ANY_HOST = "https://storage.googleapis.com/"
OTHERS = ("digits", "folder:PATH", "csv:FILE", "arrays:FILE.npz")


class Unavailable(ValueError):
    """The data set exists, but is not available here; `reason` says why. `auto` may then fall back to digits."""

    def __init__(self, name, reason):
        super().__init__(f"data: received {name!r}, {reason}; allowed without it: {', '.join(OTHERS)}")
        self.reason = reason


def read_tfds(name: str, data_dir: str | None, shape: tuple[int, int, int], notes: list[str]) -> tuple[dict, list[str]]:
    """Images and labels by part, and the class names; see `dataset.read_source`.

    A prepared data set, as ArrayRecord or TFRecord, is read without TensorFlow; to prepare one takes TensorFlow.

    Args:
        name: Of a TensorFlow data set with `image` and `label`, with its configuration and version if there are several.
        data_dir: Where prepared data sets lie; None = TFDS_DATA_DIR, then TFDS's own default.
        shape: (H, W, C) wanted.
        notes: Gets lines for the user.

    Raises:
        Unavailable: If the package is missing, or the data set is not prepared and cannot be prepared here.
        ValueError: For an unknown name, or a data set without 8-bit images and classes.
    """
    if not installed("tensorflow_datasets"):
        raise Unavailable(name, "read by tensorflow-datasets, not installed here (pip install tensorflow-datasets)")
    with quiet_absl():
        import tensorflow_datasets as tfds

        builder = find_builder(tfds, name, data_dir or os.environ.get("TFDS_DATA_DIR"))
        features = builder.info.features
        known = isinstance(features, tfds.features.FeaturesDict) and "image" in features and "label" in features
        known = known and isinstance(features["image"], tfds.features.Image) and features["image"].np_dtype == np.uint8
        if not (known and isinstance(features["label"], tfds.features.ClassLabel)):
            received = ", ".join(features or []) or "none"
            raise ValueError(f"data: received {name!r} with features {received}; allowed: an 8-bit image and a class label")
        if shape[-1] not in CONVERTED and features["image"].shape[-1] != shape[-1]:
            raise ValueError(f"channels: received {shape[-1]}; allowed: 1 or 3, for images of {features['image'].shape[-1]}")
        prepare(tfds, builder, name)

        parts = {}
        for part in ("train", "validation", "test"):
            if part in builder.info.splits and builder.info.splits[part].num_examples:
                parts[part] = collect(read_records(builder, part), part, shape, notes)
    return parts, list(features["label"].names)


@contextlib.contextmanager
def quiet_absl() -> Iterator[None]:
    """Drops the warnings that TFDS logs while it looks for a data set; a level that the user has set stays."""
    from absl import logging

    level = logging.get_verbosity()
    if level == logging.WARNING:  # absl's default
        logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def find_builder(tfds, name, data_dir):
    """The builder of a data set; a ValueError for a name that TFDS does not know."""
    try:
        if not re.fullmatch(r"\w+(/[\w.=-]+)*(:[\d.*]+)?", name):  # no namespace, whose code TFDS would fetch and run
            raise tfds.core.DatasetNotFoundError
        return tfds.builder(name, data_dir=data_dir, try_gcs=False)
    except tfds.core.DatasetNotFoundError:
        known, base = tfds.list_builders(with_community_datasets=False), re.split("[:/]", name)[0]
        near = difflib.get_close_matches(base, ["auto", *OTHERS, *known], n=3)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise ValueError(f"data: received {name!r}{hint}; allowed: auto, {', '.join(OTHERS)} or a TFDS name") from None
    except Exception as error:  # TFDS has a type for each way a version or configuration can be wrong
        raise ValueError(f"data: received {name!r}: {one_line(error)}") from error


def prepare(tfds, builder, name):
    """Downloads and prepares a data set unless that has been done; `Unavailable` if it cannot be."""
    if builder.is_prepared():
        return
    url, where = HOSTS.get(builder.name, ANY_HOST), f"not prepared below {builder.data_dir}"
    if not reachable(url):
        raise Unavailable(
            name,
            f"{where} and {urllib.parse.urlparse(url).hostname} does not answer (where there is a network, `tfds build {name}` "
            "prepares a copy; --data-dir or TFDS_DATA_DIR names its folder)",
        )
    if not installed("tensorflow"):
        raise Unavailable(name, f"{where}, which tensorflow would do, not installed here (pip install tensorflow)")
    import_tensorflow()
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except Exception as error:  # network, checksum, disk, manual steps: each its own type
        raise Unavailable(name, f"{where}, and the download failed: {one_line(error)}") from error


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
