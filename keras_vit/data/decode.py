"""Pictures of any size and kind -> uint8 (H, W, C), with Pillow.

One channel is grey, three are RGB. Other numbers are read as they are, never converted: as planes, a grey image a channel.

Shapes: `shape` = (H, W, C) height, width and channels wanted; h, w, c of a picture.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import logging
import math
import os
import threading
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageOps

from keras_vit.data.bands import bytes_of, is_tiff, opened_tiff, read_bands, shape_of
from keras_vit.machine import return_memory

# For a broken file Pillow and tifffile log lines, on stderr where nobody listens; their error is what counts.
for library in ("PIL", "tifffile"):
    logging.getLogger(library).addHandler(logging.NullHandler())

# Larger images are not decoded: from 89 million pixels on Pillow suspects a decompression bomb (358 MB as RGB, 4 bytes a pixel).
# Those that are decoded at a time have no more together.
MAX_PIXELS = 89_478_485
LARGE = 16  # pictures of more than this part of it are large
SLIM = ("JPEG", "MPO", "PNG", "BMP", "PPM", "TGA")  # formats whose decoders hold no more than the picture
COPIES = 4  # of a picture in memory, with another format, transparency or 16 bits
# In the order in which they are tried: TGA last, as nothing marks it.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF", "TGA")
ORIENTATION = 0x0112  # of EXIF
ALPHA = {
    2: ("LA", "L", "1"),
    4: ("RGBA", "RGB", "P", "PA", "LA", "L", "1"),
}  # Pillow's modes that have a transparency, or are opaque
CONVERTED = (1, 3)  # numbers of channels that every picture is converted to


class Room:
    """Lets threads in as long as what they need fits together; one that needs more than all has it alone.

    The C library keeps what a thread has freed, for that thread alone. After large pictures it has to return it.

    Args:
        most: The sum of their needs, in pixels.
    """

    def __init__(self, most: int):
        self.most = self.free = most
        self.kept = 0  # freed pixels of large pictures since the last return
        self.changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, need: int) -> Iterator[None]:
        """Waits until there is room, and keeps it meanwhile."""
        need = min(need, self.most)
        with self.changed:
            self.changed.wait_for(lambda: self.free >= need)
            self.free -= need
        try:
            yield
        finally:
            with self.changed:
                self.kept += need if need > self.most // LARGE else 0
                if self.kept > self.most // 2:
                    self.kept = 0
                    return_memory()
                self.free += need
                self.changed.notify_all()


DECODED = Room(MAX_PIXELS)


@contextlib.contextmanager
def room_for(image: Image.Image) -> Iterator[None]:
    """Room to decode a picture and convert it, in the size that `draft` has chosen; at the end the picture is closed."""
    slim = image.format in SLIM and image.mode in ("1", "L", "P", "RGB") and not image.has_transparency_data
    with DECODED.taken(image.width * image.height * (1 if slim else COPIES)):
        try:
            yield
        finally:
            image.close()  # before others get the room


@functools.cache
def formats() -> dict[str, str]:
    """The picture formats that are read, by file suffix: those of `FORMATS` that this Pillow has, with its plugins."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return {suffix: name for suffix, name in Image.registered_extensions().items() if name in FORMATS and name in Image.OPEN}


@functools.cache
def names_of_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that are read here, in that order: the first that fits is taken."""
    return tuple(name for name in FORMATS if name in formats().values())


def open_image(file: str | os.PathLike | typing.BinaryIO) -> Image.Image:
    """A picture that is not decoded yet. Nothing but `FORMATS` is tried: for PostScript Pillow would start another program.

    Raises:
        ValueError: For more than `MAX_PIXELS`. Pillow has errors of its own for a file that is no image.
    """
    image = Image.open(file, formats=names_of_formats())
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ValueError(f"image: received {image.width}x{image.height} pixels; allowed: {MAX_PIXELS:,}")
    return image


def inspect_image(file: str | os.PathLike | typing.BinaryIO, channels: int = 3) -> tuple[tuple[int, int], bytes]:
    """Height and width of a picture once it is upright, and a hash of its bytes (16); reads it to its end and closes it.

    Raises:
        ValueError: For what is no file, and as `read_image`. Pillow has errors of its own for a file that is cut off.
    """
    named = isinstance(file, (str, os.PathLike))
    if named and os.path.exists(file) and not os.path.isfile(file):  # a pipe would be waited for
        raise ValueError("image: received a folder, pipe or device; allowed: a file")
    with open(file, "rb") if named else file as opened:
        digest = hashlib.file_digest(opened, lambda: hashlib.blake2b(digest_size=16)).digest()
        opened.seek(0)
        if channels not in CONVERTED:
            with open_planes(opened, channels) as found:
                return found[0].size[::-1], digest
        with open_image(opened) as image:
            size = image.size
            image.draft(None, (1, 1))  # a JPEG at an eighth of its size: a fault shows there too
            with room_for(image):
                image.load()
                return size if is_turned(image) else size[::-1], digest


def upright(image: Image.Image) -> Image.Image:
    """The decoded picture, turned by its EXIF orientation."""
    ImageOps.exif_transpose(image, in_place=True)  # copies no picture that is upright
    return image


def is_turned(image: Image.Image) -> bool:
    """Whether the EXIF orientation swaps height and width. Decodes a PNG."""
    return image.getexif().get(ORIENTATION, 1) >= 5


def read_image(file: str | os.PathLike | typing.BinaryIO, shape: tuple[int, int, int], center_crop: float = 1.0) -> np.ndarray:
    """One encoded picture as uint8 (H, W, C) = `shape`.

    The image is turned upright by its EXIF orientation, laid on white where it is transparent, scaled from 16-bit grey to 8 bits,
    cut to the middle `center_crop` of its height and width, resized to cover H x W (bicubic, antialiased) and cut to its middle. An
    animation gives its first frame.

    For C other than 1 and 3 all channels stay as they are: of grey with transparency, of RGB with transparency (opaque where there
    is none), or of a TIFF file with C bands.

    Raises:
        ValueError: As `open_image`; for a picture of another number of channels, other than 1 and 3. Pillow has errors of its own
            for a file that is no image, or is cut off.
    """
    if shape[-1] not in CONVERTED:
        with open_planes(file, shape[-1]) as found:
            return fit(found, shape, center_crop)
    with open_image(file) as image:
        # Decodes a JPEG at 1/2, 1/4 or 1/8 where that is at least twice the wanted size: no visible loss, at far less cost.
        image.draft(None, 2 * (math.ceil(2 * max(shape[:2]) / center_crop),))
        with room_for(image):
            return fit(upright(image), shape, center_crop)


def read_crop(file: str | os.PathLike | typing.BinaryIO, shape: tuple[int, int, int], box: Sequence[float]) -> np.ndarray:
    """A part of one encoded picture as uint8 (H, W, C) = `shape`, otherwise as `read_image`.

    A JPEG is decoded no larger than needed.

    Args:
        file: A path, or a file in memory.
        shape: (H, W, C).
        box: Top, left, height and width of the part, as shares of the upright picture.
    """
    _, _, rows, columns = box
    if shape[-1] not in CONVERTED:
        with open_planes(file, shape[-1]) as found:
            return crop(found, shape, box)
    with open_image(file) as image:
        turned = image.format in ("JPEG", "MPO") and is_turned(image)  # others have no draft, and a PNG would be decoded to tell
        width, height = image.size[::-1] if turned else image.size
        shrink = max(1.0, min(rows * height / shape[0], columns * width / shape[1]))
        image.draft(None, (math.ceil(image.width / shrink), math.ceil(image.height / shrink)))
        with room_for(image):
            return crop(upright(image), shape, box)


Picture = Image.Image | list[Image.Image]  # an image, or its planes


def crop(image: Picture, shape: tuple[int, int, int], box: Sequence[float]) -> np.ndarray:
    """A part of an upright picture as uint8 (H, W, C) = `shape`, bicubic and antialiased; `box` as of `read_crop`."""
    height, width, channels = shape
    top, left, rows, columns = box

    def resize(image):
        corners = left * image.width, top * image.height, (left + columns) * image.width, (top + rows) * image.height
        corners = tuple(min(corner, side) for corner, side in zip(corners, 2 * image.size, strict=True))  # rounded beyond the edge
        return image.resize((width, height), Image.Resampling.BICUBIC, corners)

    return each_plane(resize, image, channels)


def fit(image: Picture, shape: tuple[int, int, int], center_crop: float = 1.0) -> np.ndarray:
    """An upright picture as uint8 (H, W, C) = `shape`: on white, cut, resized to cover, cut to its middle; see `read_image`."""
    height, width, channels = shape

    def resize(image):
        if image.size == (width, height) and center_crop == 1:
            return image
        return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC, bleed=(1 - center_crop) / 2)

    return each_plane(resize, image, channels)


def each_plane(function: Callable, image: Picture, channels: int) -> np.ndarray:
    """A function of a Pillow image, applied to a picture: uint8 (h, w, C)."""
    if isinstance(image, list):
        return np.stack([np.asarray(function(plane)) for plane in image], axis=-1)
    values = np.asarray(function(flatten(image, channels)))
    return values[..., None] if channels == 1 else values


@contextlib.contextmanager
def open_planes(file: str | os.PathLike | typing.BinaryIO, channels: int) -> Iterator[list[Image.Image]]:
    """The planes of a picture file with so many channels, and room for them.

    Raises:
        ValueError: As `open_image`; for another number of channels.
    """
    if is_tiff(file):
        with opened_tiff(file) as tiff:
            height, width, found = shape_of(tiff)
            if height * width > MAX_PIXELS:
                raise ValueError(f"image: received {width}x{height} pixels; allowed: {MAX_PIXELS:,}")
            if found != channels:
                raise ValueError(f"image: received {found} channels; allowed: {channels}, as model.channels")
            if bytes_of(tiff) > 4 * MAX_PIXELS:
                raise ValueError(f"image: received {bytes_of(tiff):,} bytes in {found} bands; allowed: {4 * MAX_PIXELS:,}")
            with DECODED.taken(bytes_of(tiff)):  # COPIES of them, at 4 bytes a pixel
                yield from cleared(planes(read_bands(tiff)))
        return
    with open_image(file) as image:
        if channels not in ALPHA:
            raise ValueError(f"image: received a {image.format} file; allowed: TIFF, for {channels} channels")
        if image.mode not in ALPHA[channels]:
            raise ValueError(f"image: received {image.mode}; allowed for {channels} channels: {', '.join(ALPHA[channels])}")
        with room_for(image):
            yield from cleared(list(upright(image).convert(ALPHA[channels][0]).split()))


def cleared(planes: list[Image.Image]) -> Iterator[list[Image.Image]]:
    """The planes, which go before their room does."""
    try:
        yield planes
    finally:
        planes.clear()


def planes(image: np.ndarray) -> list[Image.Image]:
    """uint8 (h, w, c) as its planes."""
    return [Image.fromarray(np.ascontiguousarray(image[..., channel])) for channel in range(image.shape[-1])]


def flatten(image: Image.Image, channels: int) -> Image.Image:
    """A picture in 8 bits, grey or RGB, on white."""
    if image.mode.startswith("I"):  # 16 bits a pixel
        values = np.array(image, np.float32)
        values /= 257
        values += 0.5
        image = Image.fromarray(values.clip(0, 255, out=values).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def picture(image: np.ndarray, channels: int = 3) -> Picture:
    """uint8 (h, w, c) as a Pillow image, with c = 1, 3 or 4, to be converted to 1 or 3 channels; else as its planes."""
    if channels not in CONVERTED:
        return planes(image)
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def to_shape(images: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 (N, h, w, c) -> uint8 (N, H, W, C); c = C, or c = 1, 3 or 4 and C = 1 or 3."""
    if images.shape[1:] == shape:
        return images
    if shape[-1] not in CONVERTED and images.shape[-1] != shape[-1]:
        raise ValueError(f"channels: received {shape[-1]}; allowed: 1 or 3, for images of {images.shape[-1]}")
    if images.shape[1:3] == shape[:2] and images.shape[-1] == 1:
        return np.repeat(images, shape[-1], axis=-1)
    return np.stack(parallel(lambda image: fit(picture(image, shape[-1]), shape), images))


def parallel(function: Callable, *arguments) -> list:
    """list(map(function, *arguments)) in threads: Pillow releases Python's lock while it decodes and resizes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Image size")  # MAX_PIXELS decides, and says so once
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(function, *arguments))


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
