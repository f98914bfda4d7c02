"""The tensors of safetensors files, in one file or in shards. Pickles, which can run any code, are never read."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from keras_vit.files import read_json
from keras_vit.weights.checkpoint import wrong

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
        if not path.is_file():
            raise wrong(path, "an existing file")
        try:
            with safe_open(path, framework="numpy") as file:
                held = list(file.keys())
                for name in held:
                    shapes[name] = tuple(file.get_slice(name).get_shape())
                    places[name] = path
        except (SafetensorError, OSError) as error:
            raise wrong(path, "an intact safetensors file", error) from None
        for name in names or ():
            if name not in held:
                raise wrong(path, f"a file with {name!r}, as the index says")

    def read(name):
        try:
            with safe_open(places[name], framework="numpy") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise wrong(places[name], "an intact safetensors file", error) from None

    return shapes, read


# `torch.nn.MultiheadAttention` has queries, keys and values in one tensor. A layer whose queries have an input of their own has
# two: (3D, D) is (D, D) and (2D, D).
PACKED = r"(.*\.)in_proj_(weight|bias)"


def split_packed(shapes: dict, read: Callable) -> tuple[dict, Callable]:
    """The tensors that `open_safetensors` gives, with packed projections as `q_proj` and `kv_proj`."""
    split, parts = {}, {}
    for name, shape in shapes.items():
        match = re.fullmatch(PACKED, name)
        if not match or not shape or shape[0] % 3:
            split[name] = shape
            continue
        size = shape[0] // 3
        for part, rows in (("q", slice(0, size)), ("kv", slice(size, None))):
            parts[f"{match[1]}{part}_proj.{match[2]}"] = name, rows
            split[f"{match[1]}{part}_proj.{match[2]}"] = (size if part == "q" else 2 * size, *shape[1:])

    def read_part(name):
        whole, rows = parts.get(name, (name, slice(None)))
        return read(whole)[rows]

    return split, read_part


def join_packed(tensors: dict) -> dict:
    """The reverse of `split_packed`, for arrays by name."""
    joined = dict(tensors)
    for name in tensors:
        match = re.fullmatch(r"(.*\.)kv_proj\.(weight|bias)", name)
        if match:
            query = joined.pop(f"{match[1]}q_proj.{match[2]}")
            joined[f"{match[1]}in_proj_{match[2]}"] = np.concatenate([query, joined.pop(name)])
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
