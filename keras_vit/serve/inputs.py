"""Images of a request: pixels as nested lists or bytes, and encoded picture files.

Shapes: N images, H x W pixels, C channels.
"""

import base64
import binascii
import io
import json
import math
import typing

import numpy as np

from keras_vit.checks import shown
from keras_vit.data.decode import one_line, read_image
from keras_vit.runs.prediction import Classifier
from keras_vit.serve.limits import Limits, Refused

PIXELS = "integers from 0 to 255"  # mean and deviation of the training are applied here
PICTURE = "an encoded picture, such as JPEG or PNG"

Images = np.ndarray | list[bytes]  # uint8 (N, H, W, C), or N files


def read_json(body: bytes, classifier: Classifier, limits: Limits) -> dict:
    """The JSON object of a body.

    Raises:
        Refused: For another text, for numbers that are none, and for more lists and objects than images can have.
    """
    height, width, _ = classifier.shape
    most = limits.max_images * (height * width + height + 2) + 1000
    if body.count(b"[") + body.count(b"{") > most:  # each takes 60 bytes of memory or more, of two in the body
        raise Refused(400, f"body: received more than {most:,} lists and objects; allowed: those of {limits.max_images} images")
    try:
        value = json.loads(body, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"body: received no JSON ({one_line(error)}); allowed: a JSON object") from None
    if not isinstance(value, dict):
        raise Refused(400, f"body: received {shown(value)}; allowed: a JSON object")
    return value


def no_number(name):
    raise ValueError(f"{name} is no number")


def check_count(field: str, count: int, limits: Limits) -> None:
    if not 1 <= count <= limits.max_images:
        raise Refused(400, f"{field}: received {count:,} images; allowed: 1 to {limits.max_images:,}")


def pixels(field: str, values: typing.Any, classifier: Classifier, limits: Limits) -> np.ndarray:
    """Nested lists of integers (N, H, W, C) as uint8.

    Raises:
        Refused: For another shape, and for what is no integer from 0 to 255.
    """
    if not isinstance(values, list):
        raise Refused(400, f"{field}: received {shown(values)}; allowed: a list of images")
    check_count(field, len(values), limits)
    check_shape(field, shape_of(values), classifier)
    return integers(field, values, (len(values), *classifier.shape))


def shape_of(values):
    """The shape of nested lists, by the first of each."""
    shape = []
    while isinstance(values, list) and len(shape) < 8:
        shape.append(len(values))
        values = values[0] if values else None
    return shape


def check_shape(field: str, shape: list[int], classifier: Classifier) -> None:
    if tuple(shape[1:]) != classifier.shape:
        allowed = ", ".join(map(str, ("N", *classifier.shape)))
        raise Refused(400, f"{field}: received shape ({', '.join(map(str, shape))}); allowed: ({allowed})")


def integers(field: str, values: list, shape: tuple[int, ...]) -> np.ndarray:
    """Lists of integers, nested in this shape or flat, as uint8 of the shape."""
    try:
        found = np.array(values, dtype=object)  # another type would take strings for numbers, and give each the longest one's room
    except ValueError:
        raise Refused(400, f"{field}: received lists of different lengths; allowed: shape {shape}") from None
    if found.shape not in (shape, (math.prod(shape),)):
        if found.size and isinstance(found.flat[0], list):
            raise Refused(400, f"{field}: received lists of different lengths; allowed: shape {shape}")
        raise Refused(400, f"{field}: received shape {found.shape}; allowed: {shape}")
    flat = found.ravel().tolist()
    if {*map(type, flat)} != {int} or not 0 <= min(flat) <= max(flat) <= 255:
        wrong = next(value for value in flat if type(value) is not int or not 0 <= value <= 255)
        raise Refused(400, f"{field}: received {shown(wrong)}; allowed: {PIXELS}")
    return np.array(flat, np.uint8).reshape(shape)


def files_of(field: str, texts: list, limits: Limits) -> list[bytes]:
    """Encoded files from their base64 texts."""
    check_count(field, len(texts), limits)
    return [from_base64(field, text) for text in texts]


def from_base64(field, text):
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise Refused(400, f"{field}: received {shown(text)} ({one_line(error)}); allowed: base64 of {PICTURE}") from None


def decode(field: str, file: bytes, classifier: Classifier) -> np.ndarray:
    """An encoded picture as uint8 (H, W, C), read as in training.

    Raises:
        Refused: For what is no picture, and for one that is cut off or has too many pixels.
    """
    try:
        return read_image(io.BytesIO(file), classifier.shape, classifier.center_crop)
    except Exception as error:  # Pillow's parsers raise whatever a broken file leads them to
        reason = one_line(error)
        if isinstance(error, ValueError) and reason.startswith("image: received"):
            raise Refused(400, f"{field}: {reason.removeprefix('image: ')}") from None
        reason = "no picture" if "BytesIO" in reason else f"a picture that cannot be read ({reason})"
        raise Refused(400, f"{field}: received {reason}; allowed: {PICTURE}") from None
