"""Opens `.keras` files, which may be damaged or made to harm: all of a file is checked before Keras makes anything of it.

A `.keras` file is a zip archive of two JSON files and one HDF5 file. Keras stores them uncompressed: nothing in an honest file is
larger than the file, and what says otherwise is refused.
"""

import io
import math
import os
import warnings
import zipfile
import zlib

import h5py
import keras
import numpy as np

from keras_vit.checks import check_type, make, shown
from keras_vit.files import plain_json
from keras_vit.model.config import ViTConfig
from keras_vit.model.vit import ViT

METADATA, CONFIG, WEIGHTS = "metadata.json", "config.json", "model.weights.h5"
MAX_CONFIG = 2**22  # bytes of a JSON file; that of a model with 1,024 quantised blocks has 2 MB
CONFIG_DEPTH = 100  # of values in values: models in models
MAX_COMPUTED = 2**27  # numbers of a position table that is computed, not stored
POLICIES = ("DTypePolicy", "DTypePolicyMap", "QuantizedDTypePolicy", "Int4DTypePolicy", "QuantizedFloat8DTypePolicy")
# What the readers of the three formats raise for damaged files; h5py a SystemError for names that are no UTF-8.
DAMAGED = (ValueError, TypeError, KeyError, OSError, RuntimeError, AttributeError, EOFError, SystemError)
DAMAGED += (zipfile.BadZipFile, zlib.error)


def load_keras(path: str | os.PathLike, field: str = "model") -> ViT:
    """The `ViT` in a `.keras` file. The file decides its configuration and weights; it can name no other class or function.

    Args:
        path: The file.
        field: Begins the error message.

    Raises:
        ValueError: In one line, if the file is damaged, holds another model, or its weights are not those of its configuration.
    """
    try:
        config, sizes = open_keras(path)
        check_config(config, sizes)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Skipping nested container")  # Keras raises an error for missing weights too
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (*DAMAGED, MemoryError) as error:
        raise damaged(path, field, "an intact .keras file of a ViT of this library", error) from None


def load_any_keras(path: str | os.PathLike, field: str = "model") -> keras.Model:
    """The model in a `.keras` file, whatever it is, without code of the file: as `load_keras`, but Keras decides what it builds."""
    try:
        open_keras(path)
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (*DAMAGED, MemoryError) as error:
        raise damaged(path, field, "an intact .keras file", error) from None


def damaged(path, field, allowed, error):
    error = error.__cause__ or error if isinstance(error, SystemError) else error
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return ValueError(f"{field}: received {str(path)!r}; allowed: {allowed} ({reason})")


def open_keras(path: str | os.PathLike) -> tuple[dict, list[int]]:
    """The configuration in a `.keras` file, and the bytes of each of its weights.

    Raises:
        ValueError: For anything in the file that Keras does not write: another member, compression, weights that are elsewhere or
            larger than the file says.
        zipfile.BadZipFile: Among others of `DAMAGED`, for a file that is no archive or whose checksums are wrong.
    """
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        names = [member.filename for member in archive.infolist()]
        if sorted(names) != sorted((METADATA, CONFIG, WEIGHTS)):
            raise ValueError(f"received the members {shown(names)}; allowed: {METADATA}, {CONFIG}, {WEIGHTS}")
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 or member.file_size != member.compress_size:
                raise ValueError(f"received {member.filename}, compressed or encrypted; allowed: members that are neither")
            if member.filename != WEIGHTS and member.file_size > MAX_CONFIG:
                raise ValueError(f"{member.filename}: received {member.file_size:,} bytes; allowed: {MAX_CONFIG:,}")
        plain_json(archive.read(METADATA))
        return plain_json(archive.read(CONFIG), CONFIG_DEPTH), sizes_of(archive.read(WEIGHTS))


def sizes_of(content: bytes) -> list[int]:
    """The bytes of each array in an HDF5 file, which must all lie in the file, whole and uncompressed."""
    items = []
    with h5py.File(io.BytesIO(content)) as file:
        # Other links lead to other files. h5py loses what a function raises here, not what it returns.
        link = file.visititems_links(lambda name, link: None if isinstance(link, h5py.HardLink) else (name, link))
        if link:
            raise ValueError(f"{link[0]}: received a {type(link[1]).__name__}; allowed: weights in the file itself")
        file.visititems(lambda name, item: items.append(item))
        sizes = [size_of(item) for item in items if isinstance(item, h5py.Dataset)]
    if sum(sizes) > len(content):
        raise ValueError(f"received weights of {sum(sizes):,} bytes; allowed: the {len(content):,} of the file")
    return sizes


def size_of(dataset: h5py.Dataset) -> int:
    layout = dataset.id.get_create_plist().get_layout()
    size = math.prod(dataset.shape or ()) * dataset.dtype.itemsize
    plain = dataset.dtype.kind in "biuf" or dataset.dtype == np.dtype("V2")  # bfloat16
    if layout != h5py.h5d.CONTIGUOUS or dataset.external or not plain or dataset.shape is None:
        raise ValueError(f"{dataset.name}: received other than plain numbers in one piece; allowed: these")
    if dataset.id.get_storage_size() != size:
        raise ValueError(f"{dataset.name}: received shape {dataset.shape}; allowed: as many numbers as are stored")
    return size


def check_config(tree: dict, sizes: list[int]) -> None:
    """Raises a ValueError unless a configuration is a `ViT`'s, and its weights may be those of a file."""
    check_type(CONFIG, tree, dict[str, dict | str | None])
    if tree.get("registered_name") != "keras_vit>ViT" or not isinstance(tree.get("config"), dict):
        raise ValueError(f"it holds {shown(tree.get('class_name'))}")
    settings = tree["config"]
    for name in settings:
        if name not in ("config", "name", "dtype", "frozen"):
            raise ValueError(f"config: received {shown(name)}; allowed: config, name, dtype, frozen")
    check_type("name", settings.get("name", ""), str)
    check_type("frozen", settings.get("frozen", []), list[str])
    check_policy(settings.get("dtype"))
    config = make(ViTConfig, settings.get("config"), "config")
    if config.position.startswith("sincos") and config.num_tokens * config.width > MAX_COMPUTED:
        raise ValueError(f"image_size: received {config.image_size}; allowed: positions of at most {MAX_COMPUTED:,} numbers")
    shapes = config.weight_shapes
    # Four bits a weight is the least that Keras stores.
    if len(sizes) < len(shapes) or 2 * sum(sizes) < config.num_params:
        raise ValueError(f"received {sum(sizes):,} bytes in {len(sizes):,} weights; allowed: {len(shapes):,}, of its configuration")


def check_policy(policy) -> None:
    """Raises a ValueError for anything but a dtype policy of Keras, by name or with its configuration."""
    if policy is None or isinstance(policy, str):
        return
    check_type("dtype", policy, dict)
    known = policy.get("class_name") in POLICIES and policy.get("module") in ("keras", "keras.dtype_policies")
    if not known or policy.get("registered_name") is not None:
        raise ValueError(f"dtype: received {shown(policy)}; allowed: a dtype policy of Keras")
    for name, value in (policy.get("config") or {}).items():
        if name == "policy_map":
            check_type(name, value, dict[str, dict | str])
            for each in value.values():
                check_policy(each)
        elif name == "default_policy":
            check_policy(value)
        elif name == "amax_history_length":
            check_type(name, value, int)
            if not 0 < value <= 2**16:
                raise ValueError(f"{name}: received {value}; allowed: an integer from 1 to {2**16}")
        else:
            check_type(name, value, str | None)
