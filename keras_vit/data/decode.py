"""Pictures of any size and kind -> uint8 (H, W, C), with Pillow.

Shapes: `shape` = (H, W, C) height, width and channels wanted; h, w, c of a picture.
"""

import concurrent.futures
import os
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

# Larger images are not decoded: from 89 million pixels on Pillow suspects a decompression bomb (256 MB as RGB).
MAX_PIXELS = 89_478_485


def read_image(file: str | os.PathLike, shape: tuple[int, int, int]) -> np.ndarray:
    """One image file as uint8 (H, W, C) = `shape`.

    The image is turned upright by its EXIF orientation, laid on white where it is transparent, resized to cover H x W (bicubic,
    antialiased) and cropped at its centre. 16-bit grey is scaled to 8 bits. An animation gives its first frame.

    Raises:
        ValueError: For more than `MAX_PIXELS`. Pillow raises its own errors for a file that is not an image, or is cut off.
    """
    with Image.open(file) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"image: received {image.width}x{image.height} pixels; allowed: {MAX_PIXELS:,}")
        # Decodes a JPEG at 1/2, 1/4 or 1/8 where that is at least twice the wanted size: no visible loss, at far less cost.
        image.draft(None, 2 * (2 * max(shape[:2]),))
        return fit(ImageOps.exif_transpose(image), shape)


def fit(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """An upright picture as uint8 (H, W, C) = `shape`: on white, resized to cover, cut to its middle."""
    height, width, channels = shape
    if image.mode.startswith("I"):  # 16 bits a pixel
        image = Image.fromarray((np.asarray(image, np.float32) / 257 + 0.5).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(shape)


def picture(image: np.ndarray) -> Image.Image:
    """uint8 (h, w, c) as a Pillow image; grey images lose their channel axis."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def to_shape(images: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 (N, h, w, c), c = 1, 3 or 4 -> uint8 (N, H, W, C)."""
    if images.shape[1:] == shape:
        return images
    if images.shape[1:3] == shape[:2] and images.shape[-1] == 1:
        return np.repeat(images, shape[-1], axis=-1)
    return np.stack(parallel(lambda image: fit(picture(image), shape), images))


def parallel(function: Callable, *arguments) -> list:
    """list(map(function, *arguments)) in threads: Pillow releases Python's lock while it decodes and resizes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Image size")  # MAX_PIXELS decides, and says so once
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(function, *arguments))


def stack(examples: list) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of image and label as uint8 images (n, H, W, C) and int64 labels (n,)."""
    images, labels = zip(*examples, strict=True)
    return np.stack(images), np.array(labels, np.int64)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
