"""`.npz` archives of numbers, which may be damaged or made to harm: no array is made before its header and its size agree."""

import dataclasses
import math
import os
import tokenize
import zipfile
import zlib

import numpy as np

from keras_vit.checks import shown

MAX_MEMBERS = 2**15
BFLOAT16 = np.dtype("V2")  # as NumPy stores the type, which it does not know
# What zipfile, zlib and NumPy raise for damaged archives.
DAMAGED = (
    *(OSError, ValueError, TypeError, KeyError, SyntaxError, EOFError, RuntimeError, MemoryError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)


@dataclasses.dataclass(frozen=True)
class Arrays:
    """The arrays of an archive, not read yet.

    Attributes:
        path: The archive.
        shapes: Shape of each array by name.
        bytes: Of all arrays.
        comment: Of the archive.
    """

    path: str | os.PathLike
    shapes: dict[str, tuple[int, ...]]
    bytes: int
    comment: bytes

    def read(self, name: str) -> np.ndarray:
        """An array; a ValueError if it is damaged."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        except DAMAGED as error:
            raise ValueError(f"{shown(name)}: {reason(error)}") from None


def open_arrays(path: str | os.PathLike) -> Arrays:
    """Opens a `.npz` archive and checks the header of each array against the size that the archive states for it.

    Raises:
        ValueError: In one line, for what is no such archive, or holds other than numbers: Python objects, structures, texts.
    """
    shapes, total = {}, 0
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise ValueError(f"received {len(members):,} arrays; allowed: {MAX_MEMBERS:,}")
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name in shapes or name == member.filename:
                    raise ValueError(f"received {shown(member.filename)}; allowed: arrays (.npy), each once")
                shapes[name] = shape_of(archive, member)
                total += member.file_size
            return Arrays(path, shapes, total, archive.comment)
    except DAMAGED as error:
        raise ValueError(reason(error)) from None


def shape_of(archive, member):
    """The shape of an array, from its header."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
        raise ValueError(f"{shown(member.filename)}: received another compression, or encryption; allowed: deflate")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{shown(member.filename)}: received version {version}; allowed: 1.0, 2.0")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        size = member.file_size - file.tell()
    if dtype.hasobject:
        raise ValueError(f"{shown(member.filename)} holds Python objects, which are never read")
    if dtype.kind not in "biuf" and dtype != BFLOAT16:
        raise ValueError(f"{shown(member.filename)}: received {shown(dtype)}; allowed: numbers")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{shown(member.filename)}: received shape {shown(shape)} of {dtype}; allowed: its {size:,} bytes")
    return shape


def reason(error):
    return " ".join(str(error).split())[:300] or type(error).__name__
