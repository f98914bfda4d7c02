"""TIFF files with any number of bands -> uint8 (h, w, c), with tifffile: Pillow reads at most four.

Shapes: h height, w width, c bands.
"""

import os
import typing

import numpy as np

if typing.TYPE_CHECKING:
    import tifffile

OF_ONE_FILE = {"is_ome": False, "is_mmstack": False, "is_ndtiff": False}
MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # first bytes of TIFF and BigTIFF, in both orders of bytes


def is_tiff(file: str | os.PathLike | typing.BinaryIO) -> bool:
    """Whether a picture is a TIFF file, by its first bytes."""
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as opened:
            return opened.read(4) in MARKS
    file.seek(0)
    mark = file.read(4)
    file.seek(0)
    return mark in MARKS


def opened_tiff(file: str | os.PathLike | typing.BinaryIO) -> "tifffile.TiffFile":
    """A TIFF file, whose values are not read yet. Kinds of TIFF that name other files are read as any other: from this file alone.

    Raises:
        ValueError: If tifffile is not installed. It has an error of its own for a broken file.
    """
    try:
        import tifffile
    except ImportError:
        raise ValueError("image: received a TIFF file of several bands; allowed with: pip install tifffile") from None
    return tifffile.TiffFile(file, **OF_ONE_FILE)


def shape_of(tiff: "tifffile.TiffFile") -> tuple[int, int, int]:
    """(h, w, c) of the first image of a TIFF file, whose bands lie in each pixel, in planes, or a page each.

    Raises:
        ValueError: If the file holds something else.
    """
    return arranged(tiff)[1]


def bytes_of(tiff: "tifffile.TiffFile") -> int:
    """Bytes of the first image, decoded."""
    return tiff.series[0].nbytes


def read_bands(tiff: "tifffile.TiffFile") -> np.ndarray:
    """The first image of a TIFF file, uint8 (h, w, c). 16 bits are scaled to 8, floats are taken from 0 to 1.

    Raises:
        ValueError: As `shape_of`; for values of another type, and floats beyond 0 to 1.
    """
    axes, shape = arranged(tiff)
    values = tiff.series[0].asarray()
    if axes[0] not in "YX":  # bands first
        height, width, bands = shape
        values = np.moveaxis(values.reshape(bands, height, width), 0, -1)
    values = values.reshape(shape)
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return (values / np.float32(257) + np.float32(0.5)).astype(np.uint8)
    if values.dtype.kind != "f":
        raise ValueError(f"image: received {values.dtype}; allowed: uint8, uint16, or floats from 0 to 1")
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"image: received floats from {values.min():g} to {values.max():g}; allowed: from 0 to 1")
    return (values * 255 + 0.5).astype(np.uint8)


def arranged(tiff):
    """The axes of the first image, such as YXS or CYX, without those of length 1, and (h, w, c)."""
    series = tiff.series[0]
    kept = [(axis, size) for axis, size in zip(series.axes, series.shape, strict=True) if size > 1 or axis in "YX"]
    axes, sizes = "".join(axis for axis, _ in kept), dict(kept)
    rest = [axis for axis in axes if axis not in "YX"]
    if "YX" not in axes or len(rest) > 1:
        raise ValueError(f"image: received a TIFF file with axes {series.axes} {series.shape}; allowed: rows, columns and bands")
    return axes, (sizes["Y"], sizes["X"], sizes[rest[0]] if rest else 1)
