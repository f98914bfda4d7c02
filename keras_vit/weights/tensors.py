"""The tensors of safetensors files, in one file or in shards. Pickles, which can run any code, are never read."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from keras_vit.checks import shown
from keras_vit.files import read_json
from keras_vit.weights.checkpoint import wrong

MAX_HEADER = 2**24  # bytes; 1,000 tensors take some 100,000
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle")


def open_safetensors(files: Mapping[Path, list[str] | None]) -> tuple[dict, Callable[[str], np.ndarray]]:
    """The shapes of all tensors in safetensors files, and a function that reads one.

    Args:
        files: The names that each file must hold, or None for any names.

    Raises:
        ValueError: For a file that is missing, cut short or damaged, and for a name that is not in its file.
    """
    shapes, places = {}, {}
    for path, names in files.items():
        with opened(path) as file:
            held = list(file.keys())
            for name in held:
                shapes[name] = tuple(file.get_slice(name).get_shape())
                places[name] = path
        for name in names or ():
            if name not in held:
                raise wrong(path, f"a file with {name!r}, as the index says")

    def read(name):
        with opened(places[name]) as file:
            try:
                tensor = file.get_tensor(name)
            except (TypeError, AttributeError, ValueError):  # a type or a shape that NumPy does not have
                tensor = None
            if tensor is None or tensor.dtype.kind == "c":
                received = f"{shown(name)} is {file.get_slice(name).get_dtype()} {shown(shapes[name])}"
                raise wrong(places[name], "tensors of real numbers that NumPy knows", received)
            return tensor

    return shapes, read


@contextlib.contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """A safetensors file, its header checked: offsets that overlap, lie outside or leave gaps are refused.

    Raises:
        ValueError: For a file that is missing, cut short or damaged, or whose header is larger than `MAX_HEADER`.
    """
    if not path.is_file():
        raise wrong(path, "an existing file")
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise wrong(path, f"a header of at most {MAX_HEADER:,} bytes", f"it has {length:,}")
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise wrong(path, "an intact safetensors file", error) from None


def split_rows(shapes: dict, read: Callable, packed: Mapping, first: Callable[[int], int]) -> tuple[dict, Callable]:
    """The tensors that `open_safetensors` gives; those that hold two of this library's weights are two tensors.

    Args:
        shapes: The shapes by name.
        read: Reads a tensor by its name.
        packed: Ends of names: of a whole tensor, and of its two parts, one below the other.
        first: The rows of the first part, from those of the whole.
    """
    split, parts = {}, {}
    for name, shape in shapes.items():
        end = next((end for end in packed if name.endswith(end)), None)
        if end is None or not shape or not 0 < first(shape[0]) < shape[0]:
            split[name] = shape
            continue
        count = first(shape[0])
        for part, rows in zip(packed[end], (slice(0, count), slice(count, shape[0])), strict=True):
            parts[name.removesuffix(end) + part] = name, rows
            split[name.removesuffix(end) + part] = (rows.stop - rows.start, *shape[1:])

    def read_part(name):
        whole, rows = parts.get(name, (name, None))
        return read(whole) if rows is None else read(whole)[rows]

    return split, read_part


def join_rows(tensors: dict, packed: Mapping) -> dict:
    """The reverse of `split_rows`, for arrays by name."""
    joined = dict(tensors)
    for end, (one, other) in packed.items():
        for name in [name.removesuffix(other) for name in tensors if name.endswith(other)]:
            joined[name + end] = np.concatenate([joined.pop(name + one), joined.pop(name + other)])
    return joined


def safetensors_files(folder: Path) -> dict[Path, list[str] | None]:
    """The safetensors files of a folder: `model.safetensors`, or the shards that its index names.

    Raises:
        ValueError: If there is none, or the index is damaged or names anything but files in its folder.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return {single: None}
    if not index.is_file():
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
        if pickles:
            raise pickled(folder / pickles[0])
        raise wrong(folder, "a folder with model.safetensors or model.safetensors.index.json")
    places = read_json(index, "checkpoint").get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        raise wrong(index, "an index with a weight_map of names and files")
    files = {}
    for name, place in places.items():
        if not re.fullmatch(r"[\w][\w.-]*\.safetensors", place):  # no path leads out of the folder
            raise wrong(index, f"names of .safetensors files in its folder, which {place!r} is not")
        files.setdefault(folder / place, []).append(name)
    return files


def pickled(path: Path) -> ValueError:
    """The error for a pickle, with the command that converts it."""
    code = (
        f"import torch, safetensors.torch as s; t = torch.load({path.name!r}, weights_only=True); "
        "s.save_file({k: v.contiguous().clone() for k, v in t.items()}, 'model.safetensors')"
    )
    return ValueError(
        f"checkpoint: received {str(path)!r}, a pickle, which can run any code; allowed: safetensors; "
        f'convert it: python -c "{code}"'
    )
