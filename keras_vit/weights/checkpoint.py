"""An opened checkpoint, and the table that says which tensors of a foreign format hold which of our weights."""

import dataclasses
import json
import math
import os
import re
import shutil
import tempfile
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from keras_vit.checks import check_number
from keras_vit.model.config import ViTConfig

SHOWN = 6  # names of one kind in a message
PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".pickle")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose configuration has been read and whose tensors are all there; its weights are read when asked for.

    Attributes:
        source: `keras`, `timm`, `huggingface` or `jax`.
        path: The local file or folder.
        config: The `ViTConfig` of the checkpoint, with its own image size and classes.
        mean: Of the pixels scaled to 0..1 in pretraining, one number a channel or one for all.
        std: Their standard deviation, likewise.
        class_names: The classes by index, or None where the checkpoint does not say.
        read: Gives the weight of a path of ours, such as `block_0/attention/qkv/kernel`, as an array.
        antialias: Whether its own library interpolates positions with antialiasing.
        notes: What had to be assumed, as lines for the user.
    """

    source: str
    path: Path
    config: ViTConfig
    mean: list[float]
    std: list[float]
    class_names: list[str] | None
    read: Callable[[str], np.ndarray]
    antialias: bool = True
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Row:
    """One weight of ours and the tensors that hold it: parts side by side along our last axis, each with its axes in another order.

    Attributes:
        path: Path of our weight.
        shape: Its shape.
        names: Names of the tensors, one for each part.
        part: Shape of each tensor.
        axes: Order of a tensor's axes in which it reshapes to our part.
    """

    path: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    part: tuple[int, ...]
    axes: tuple[int, ...]

    def load(self, tensors: list[np.ndarray]) -> np.ndarray:
        shape = (*self.shape[:-1], self.shape[-1] // len(tensors))
        return np.concatenate([tensor.transpose(self.axes).reshape(shape) for tensor in tensors], axis=-1)

    def save(self, weight: np.ndarray) -> dict[str, np.ndarray]:
        shape = [self.part[axis] for axis in self.axes]
        parts = np.split(weight, len(self.names), axis=-1)
        back = np.argsort(self.axes)
        return {name: np.ascontiguousarray(p.reshape(shape).transpose(back)) for name, p in zip(self.names, parts, strict=True)}


def torch_row(config: ViTConfig, path: str, shape: tuple, names: str | tuple[str, ...]) -> Row:
    """The row of a weight that PyTorch's layers hold: kernels (out, in), the projection of patches (D, C, P, P)."""
    names = (names,) if isinstance(names, str) else tuple(names)
    part = (*shape[:-1], shape[-1] // len(names))
    if path == "encoder/projection/kernel":
        return Row(path, shape, names, (config.width, config.channels, *config.patch_size), (2, 3, 1, 0))
    if path.endswith("/kernel"):
        return Row(path, shape, names, part[::-1], (1, 0))
    return Row(path, shape, names, part, tuple(range(len(part))))


def check_tensors(where: str, rows: list[Row], shapes: Mapping[str, tuple], unused: str = "$^") -> None:
    """Raises a ValueError that lists what is missing (-), extra (+) and of another shape (!) in a checkpoint.

    Args:
        where: Names the checkpoint.
        rows: What it must hold.
        shapes: What it holds.
        unused: Pattern of names that may be there and are not read.
    """
    wanted = {name: row.part for row in rows for name in row.names}
    missing = [f"- {name}" for name in wanted if name not in shapes]
    extra = [f"+ {name}" for name in shapes if name not in wanted and not re.fullmatch(unused, name)]
    other = [
        f"! {name} {tuple(shapes[name])}, expected {part}"
        for name, part in wanted.items()
        if name in shapes and tuple(shapes[name]) != tuple(part)
    ]
    listed = [line for lines in (missing, extra, other) for line in shorten(lines)]
    if listed:
        raise ValueError(
            f"{where}: the tensors are not those of its configuration (- missing, + extra, ! shape): {'; '.join(listed)}"
        )


def shorten(lines: list[str]) -> list[str]:
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"{lines[0][0]} and {len(lines) - SHOWN} more"]


def row_reader(rows: list[Row], read: Callable[[str], np.ndarray]) -> Callable[[str], np.ndarray]:
    """Gives our weights from a function that gives theirs."""
    by_path = {row.path: row for row in rows}

    def read_weight(path):
        row = by_path[path]
        return row.load([np.asarray(read(name)).astype("float32", copy=False) for name in row.names])

    return read_weight


def save_rows(rows: list[Row], weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Their tensors from our weights."""
    return {name: tensor for row in rows for name, tensor in row.save(weights[row.path]).items()}


# Files


def open_safetensors(files: Mapping[Path, list[str] | None]) -> tuple[dict, Callable[[str], np.ndarray]]:
    """The shapes of all tensors in safetensors files, and a function that reads one.

    Args:
        files: Each file, with the names it must hold, or None for whatever it holds.

    Raises:
        ValueError: For a file that is missing, cut short or damaged, and a name that is not in its file.
    """
    from safetensors import SafetensorError, safe_open

    shapes, places = {}, {}
    for path, names in files.items():
        if not path.is_file():
            raise ValueError(f"checkpoint: {str(path)!r} is missing")
        try:
            with safe_open(path, framework="numpy") as file:
                held = list(file.keys())
                for name in held:
                    shapes[name] = tuple(file.get_slice(name).get_shape())
                    places[name] = path
        except (SafetensorError, OSError) as error:
            raise ValueError(f"checkpoint: {str(path)!r} is damaged or no safetensors file ({error})") from None
        for name in names or ():
            if name not in held:
                raise ValueError(f"checkpoint: {str(path)!r} does not hold {name!r}, as the index says")

    def read(name):
        try:
            with safe_open(places[name], framework="numpy") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"checkpoint: {str(places[name])!r} is damaged ({error})") from None

    return shapes, read


def safetensors_files(folder: Path) -> dict[Path, list[str] | None]:
    """The safetensors files of a folder: `model.safetensors`, or the shards that its index names.

    Raises:
        ValueError: If there is none, or the index is damaged or names something that is no file of the folder.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return {single: None}
    if not index.is_file():
        pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
        if pickles:
            refuse_pickle(folder / pickles[0])
        raise ValueError(f"checkpoint: {str(folder)!r} holds neither model.safetensors nor model.safetensors.index.json")
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        raise ValueError(f"checkpoint: {str(index)!r} has no weight_map of names and files")
    files = {}
    for name, place in places.items():
        if not re.fullmatch(r"[\w][\w.-]*\.safetensors", place):  # no folder, no way out of this one
            raise ValueError(f"checkpoint: {str(index)!r} names {place!r}; allowed: the name of a .safetensors file in its folder")
        files.setdefault(folder / place, []).append(name)
    return files


def refuse_pickle(path: Path) -> typing.NoReturn:
    code = (
        f"import torch, safetensors.torch as s; t = torch.load({path.name!r}, weights_only=True); "
        "s.save_file({k: v.contiguous().clone() for k, v in t.items()}, 'model.safetensors')"
    )
    raise ValueError(
        f'checkpoint: {str(path)!r} is a pickle, which can run any code and is never read; convert it: python -c "{code}"'
    )


def read_json(path: Path) -> dict:
    """A JSON object; a ValueError if the file is missing or holds something else."""
    try:
        return parse_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"checkpoint: {str(path)!r} cannot be read as JSON ({error})") from None


def parse_json(text: str, name: str) -> dict:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"checkpoint: {name!r} cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"checkpoint: {name!r} holds a {type(value).__name__}; allowed: a JSON object")
    return value


def read_setting(settings: dict, name: str, types: type | tuple, default=None):
    """The value of a key, the default where there is none or null; a ValueError if it is of another type."""
    value = settings.get(name)
    if value is None:
        return default
    if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
        allowed = " or ".join(kind.__name__ for kind in (types if isinstance(types, tuple) else (types,)))
        raise ValueError(f"config.json: {name}: received {value!r}; allowed: {allowed}")
    return value


def read_moments(mean, std, channels: int) -> tuple[list[float], list[float]] | None:
    """Mean and standard deviation of pixels as lists of numbers, or None where one is missing; a ValueError for anything else."""
    if mean is None or std is None:
        return None
    for name, values in (("mean", mean), ("std", std)):
        if not isinstance(values, list | tuple) or len(values) not in (1, channels):
            raise ValueError(
                f"config.json: {name}: received {values!r}; allowed: one number, or one for each of {channels} channels"
            )
        for value in values:
            check_number(f"config.json: {name}", value, **({"above": 0} if name == "std" else {}))
    return list(mean), list(std)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives a folder to write to, which then becomes `path`; on an error nothing is left.

    Raises:
        ValueError: If there is something at `path` other than an empty folder, or it cannot be written.
    """
    check_new(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=path.parent))
    except OSError as error:
        raise ValueError(f"path: {str(path)!r} cannot be written ({error.strerror})") from None
    try:
        yield temporary
        temporary.chmod(0o755)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new(path: Path) -> None:
    """Raises a ValueError if there is something at `path` other than an empty folder."""
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise ValueError(f"path: {str(path)!r} exists; allowed: a path where there is nothing, or an empty folder")


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# Configurations


def square_side(count: int) -> int | None:
    """The side of a square of `count` patches, or None."""
    side = math.isqrt(count) if count > 0 else 0
    return side if side and side * side == count else None


def refuse_unless(target: str, config: ViTConfig, **allowed) -> None:
    """Raises a ValueError that names the first field of a configuration that a format cannot hold."""
    for name, value in allowed.items():
        choices = value if isinstance(value, tuple) else (value,)
        if getattr(config, name) not in choices:
            raise ValueError(f"{name}: received {getattr(config, name)!r}; {target} has only {', '.join(str(c) for c in choices)}")


def place_prefix(config: ViTConfig, weights: dict, wanted: str) -> tuple[ViTConfig, dict]:
    """The same model with positions for other prefix tokens: `none`, `class` or `all`.

    A token that loses its position takes it into itself, which is the same sum; one that gets a position gets zeros. Positions
    that are fixed become a table.
    """
    weights = dict(weights)
    tokens = [name for name in ("encoder/class_token", "encoder/register_tokens") if name in weights]
    before = config.num_prefix_positions if config.position != "sincos2d" else 0
    config = dataclasses.replace(config, position="learned", prefix_positions=wanted)
    table, after = weights["encoder/position"], config.num_prefix_positions
    if before != after:
        rows, patches = np.split(table, [before], axis=1)
        prefix = np.concatenate([weights[name] for name in tokens], axis=1)
        if after < before:
            prefix = prefix + np.pad(rows[:, after:], ((0, 0), (after, prefix.shape[1] - before), (0, 0)))
        for name, value in zip(tokens, np.split(prefix, [1], axis=1) if len(tokens) == 2 else [prefix], strict=True):
            weights[name] = value
        rows = np.pad(rows, ((0, 0), (0, max(after - before, 0)), (0, 0)))[:, :after]
        weights["encoder/position"] = np.concatenate([rows, patches], axis=1)
    return config, weights
