"""What a run keeps to go on after damage: the newest training states and the newest best models, verified before they are used."""

import hashlib
import json
import os
import re
import shutil
import struct
import typing
import warnings
import zipfile
import zlib
from pathlib import Path

import keras
import numpy as np
from safetensors import SafetensorError, safe_open

from keras_vit.checks import check_int, check_type
from keras_vit.files import Damaged, atomic_path, plain_json
from keras_vit.runs.arrays import write_arrays

KEPT = 2  # of each
CHUNK = 2**20  # bytes of a model read at a time
# What zipfile raises for damaged archives.
UNREADABLE = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, RuntimeError, KeyError)


class Numbered:
    """Files STEM-NUMBER.SUFFIX in a folder, of which the newest are kept.

    Args:
        folder: The folder; it need not exist.
        stem, suffix: Of the files' names.
        digits: Least digits of a number.
    """

    def __init__(self, folder: Path, stem: str, suffix: str, digits: int):
        self.folder, self.stem, self.suffix, self.digits = folder, stem, suffix, digits
        self.pattern = re.compile(rf"{stem}-(\d{{{digits},}})\.{suffix}")

    def path(self, number: int) -> Path:
        return self.folder / f"{self.stem}-{number:0{self.digits}}.{self.suffix}"

    def number(self, path: Path) -> int:
        return int(self.pattern.fullmatch(path.name)[1])

    def paths(self) -> list[Path]:
        """The files, the newest first."""
        found = [path for path in self.folder.glob(f"{self.stem}-*") if self.pattern.fullmatch(path.name)]
        return sorted(found, key=self.number, reverse=True)

    def prune(self, newest: int) -> None:
        """Deletes all but the newest `KEPT` up to the number `newest`; those after it belong to an end that was given up."""
        kept = [path for path in self.paths() if self.number(path) <= newest][:KEPT]
        for path in self.paths():
            if path not in kept:
                path.unlink(missing_ok=True)


class States:
    """Training states, `state-STEPS.safetensors`: arrays by name and plain values, with their SHA-256.

    Args:
        folder: Their folder.
    """

    def __init__(self, folder: Path):
        self.files = Numbered(folder, "state", "safetensors", 9)

    def paths(self) -> list[Path]:
        """The states, the newest first."""
        return self.files.paths()

    def write(self, steps: int, arrays: dict[str, np.ndarray], values: dict[str, typing.Any]) -> None:
        """Writes a state, then deletes those that are no longer kept.

        Args:
            steps: Training steps that it follows.
            arrays: By name.
            values: Plain values.

        Raises:
            ValueError: For arrays that are not finite: no training can go on from them.
        """
        path = self.files.path(steps)
        if name := not_finite(arrays):
            raise ValueError(f"state: received {name}, not finite after {steps:,} steps; allowed: finite numbers")
        arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        text = json.dumps(values)
        with atomic_path(path) as temporary:
            write_arrays(temporary, arrays, {"state": text, "sha256": digest(arrays, text)})
        self.files.prune(steps)

    def read(self) -> tuple[dict[str, np.ndarray], dict[str, typing.Any]] | None:
        """The newest intact state, arrays and values; None if there is no state. Warns of each damaged one before it.

        Raises:
            ValueError: If there are states and all are damaged; names them.
        """
        damaged = []
        for path in self.paths():
            try:
                state = read_state(path)
            except Damaged as error:
                damaged.append(f"{str(path)!r} is damaged ({error})")
                continue
            for line in damaged:
                steps = f" and {state[1]['step']} steps" if state[1]["step"] else ""
                place = f"the run goes on after epoch {state[1]['epoch']}{steps}, with the state before"
                warnings.warn(f"run: {line}; {place}", stacklevel=3)
            return state
        if damaged:
            raise ValueError(f"run: {'; '.join(damaged)}; no state is left to go on from: start again with --overwrite")
        return None


def read_state(path: Path) -> tuple[dict[str, np.ndarray], dict[str, typing.Any]]:
    """Arrays and values of one state.

    safetensors bounds the header, and maps the file instead of allocating what the header states.

    Raises:
        Damaged: If the file is not what `States.write` wrote.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            known, arrays = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(" ".join(str(error).split()) or type(error).__name__) from None
    text = known.get("state", "")
    if known.get("sha256") != digest(arrays, text):
        raise Damaged("it does not fit its SHA-256")
    if name := not_finite(arrays):
        raise Damaged(f"{name} is not finite")
    return arrays, read_values(text)


def read_values(text: str) -> dict[str, typing.Any]:
    """The plain values of a state; `Damaged` for others than `States.write` writes: anybody can make a digest."""
    try:
        values = plain_json(text)
        check_type("values", values, dict)
        for name in ("epoch", "step"):
            check_int(name, values.get(name), at_least=0)
    except ValueError as error:
        raise Damaged(str(error)) from None
    return values


def digest(arrays, text):
    """SHA-256 of values and arrays: their names, types, shapes and bytes."""
    found = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        found.update(f"\n{name} {array.dtype.str} {array.shape} ".encode())
        found.update(array.reshape(-1).view(np.uint8))
    return found.hexdigest()


def not_finite(arrays: dict[str, np.ndarray]) -> str | None:
    """The name of the first array with a value that is not finite; None if there is none."""
    return next((name for name, array in arrays.items() if not np.isfinite(array).all()), None)


class BestModels:
    """The model of the best epoch, `best.keras`, and under `last/best-EPOCH.keras` again, beside the best one before.

    Both names are of one file where the file system has hard links.

    Args:
        path: The path of `best.keras`.
        folder: The folder of the others.
    """

    def __init__(self, path: Path, folder: Path):
        self.path, self.files = path, Numbered(folder, "best", "keras", 6)

    def write(self, epoch: int, model: keras.Model) -> None:
        """Writes the model of an epoch that is better than those before."""
        with atomic_path(self.files.path(epoch)) as temporary:
            model.save(temporary)
        self.choose(epoch)

    def choose(self, epoch: int) -> None:
        """Makes `best.keras` the model of an epoch, if that is kept and intact.

        Raises:
            Damaged: If it is not.
        """
        kept = self.files.path(epoch)
        check_archive(kept)
        if not (self.path.exists() and self.path.samefile(kept)):
            with atomic_path(self.path) as temporary:
                temporary.unlink()
                try:
                    os.link(kept, temporary)
                except OSError:  # a file system without hard links
                    shutil.copyfile(kept, temporary)
        self.files.prune(epoch)

    def find(self) -> Path:
        """An intact model: the best, else the one before, with a warning.

        Raises:
            ValueError: If there is none; names the damage.
        """
        try:
            check_archive(self.path)
            return self.path
        except Damaged as error:
            where = f"run: {str(self.path)!r} is {'damaged' if self.path.exists() else 'missing'} ({error})"
        for path in self.files.paths():
            try:
                check_archive(path)
            except Damaged:
                continue
            warnings.warn(f"{where}; the model of epoch {self.files.number(path)} is used in its place", stacklevel=4)
            return path
        raise ValueError(f"{where}, and no other model is kept")


def check_archive(path: str | os.PathLike) -> None:
    """Reads a .keras file to its end, a little at a time, and compares its checksums (CRC-32).

    Raises:
        Damaged: If they differ, the file is no archive, or it is missing.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > os.path.getsize(path):
                raise Damaged("its members are larger than the file")  # Keras does not compress them
            for member in archive.infolist():
                with archive.open(member) as file:
                    while file.read(CHUNK):
                        pass
    except Damaged:
        raise
    except UNREADABLE as error:
        raise Damaged(getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__) from None
