"""What a model sees on pictures: files or arrays in, classes and probabilities out.

Shapes: N images, B of a batch, H height, W width, C channels, K classes.
"""

import dataclasses
import glob
import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import keras
import numpy as np

from keras_vit.checks import as_moments, check_int, check_number, visible
from keras_vit.data.decode import one_line, parallel, picture, read_image
from keras_vit.data.folder import image_files, printable
from keras_vit.images import normalize
from keras_vit.model.vit import ViT
from keras_vit.runs.calibration import probabilities_of
from keras_vit.runs.views import View, choose_views, over_views

BATCH_SIZE = 64
THRESHOLD = 0.5  # probability above which a class is on an image that may have several
SHOWN = 3  # files named in a note


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image; where it may have several, those above a threshold, which may be none.

    Attributes:
        image: Path of the file, or the index of the image in an array.
        classes: Names of the classes, the likeliest first.
        probabilities: Their probabilities, each from 0 to 1: by softmax, or by sigmoid where an image may have several classes;
            calibrated where the temperature is known.
        thumbnail: A small JPEG of what the model saw; empty if it was not asked for.
    """

    image: str | int
    classes: list[str]
    probabilities: list[float]
    thumbnail: bytes = b""

    def to_dict(self) -> dict:
        pairs = zip(self.classes, self.probabilities, strict=True)
        return {"image": self.image, "classes": [{"name": name, "probability": value} for name, value in pairs]}


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A model, or an artifact made of one, as pictures need it.

    Attributes:
        shape: (H, W, C) of its images.
        class_names: K names.
        logits: uint8 images (B, H, W, C) -> logits (B, K).
        batch_size: The only B that it takes; None = any.
        multi_label: Whether an image may have any number of classes.
        center_crop: Share of a picture's height and width that the model sees.
        platform: What computes the logits, such as keras_torch or onnx.
        compiled: Whether each B costs a compilation, so that few of them should be used.
        temperature: What the logits are divided by before they become probabilities, as of `fit_temperature`.
    """

    shape: tuple[int, int, int]
    class_names: list[str]
    logits: Callable[[np.ndarray], np.ndarray]
    batch_size: int | None = None
    multi_label: bool = False
    center_crop: float = 1.0
    platform: str = "keras"
    compiled: bool = False
    temperature: float = 1.0

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities (B, K) of logits (B, K), calibrated where the temperature is known."""
        return probabilities_of(logits, self.multi_label, self.temperature)


def classifier(model: ViT, mean=0.5, std=0.5, class_names=None, multi_label=False, center_crop=1.0, temperature=1.0) -> Classifier:
    """A `ViT` as a `Classifier`; arguments as of `predict`."""
    config = model.config
    if not config.num_classes:
        raise ValueError("num_classes: received 0, a model without a head; allowed: a classifier")
    mean, std = as_moments(mean, std, config.channels)
    check_number("center_crop", center_crop, above=0, at_most=1)
    check_number("temperature", temperature, above=0)
    names = [visible(str(name)) for name in (range(config.num_classes) if class_names is None else class_names)]
    if len(names) != config.num_classes:
        raise ValueError(f"class_names: received {len(names)}; allowed: {config.num_classes}, the classes of the model")

    def logits(images):
        images = model_input(model, images, mean, std)
        if keras.backend.backend() != "tensorflow":
            return np.asarray(model.predict_on_batch(images))
        before, model.jit_compile = model.jit_compile, False  # XLA takes seconds, for what is called a few times
        try:
            return np.asarray(model.predict_on_batch(images))
        finally:
            model.jit_compile = before

    seen = {"multi_label": multi_label, "center_crop": center_crop, "temperature": temperature}
    backend = keras.backend.backend()
    where = {"platform": f"keras_{backend}", "compiled": backend == "jax"}
    return Classifier((*config.image_size, config.channels), names, logits, **seen, **where)


def model_input(model: ViT, images: np.ndarray, mean, std) -> np.ndarray:
    """uint8 images (B, H, W, C) as a model takes them: normalised float32, the channels first where it wants that."""
    images = normalize(images, mean, std)
    return images.transpose(0, 3, 1, 2) if model.config.data_format == "channels_first" else images


def predict(
    model: ViT,
    images: np.ndarray | Sequence[str | os.PathLike],
    *,
    mean: float | Sequence[float] = 0.5,
    std: float | Sequence[float] = 0.5,
    class_names: Sequence[str] | None = None,
    multi_label: bool = False,
    center_crop: float = 1.0,
    temperature: float = 1.0,
    top: int | None = None,
    threshold: float | None = None,
    batch_size: int = BATCH_SIZE,
    tta: str | Sequence[View] | None = None,
) -> list[Prediction]:
    """The likeliest classes of images.

    Pictures are read as in evaluation: turned upright, resized to cover H x W, cut to their middle, normalised.

    Args:
        model: A `ViT` with a head.
        images: uint8 (N, H, W, C) of the model's size, or paths: files, folders (all pictures below them) and patterns.
        mean: Of pixels scaled to 0..1, as in training, which the model does not know: one number or one a channel. The default
            suits models that were trained on images from -1 to 1.
        std: Their standard deviation, likewise.
        class_names: K names; None = the numbers of the classes.
        multi_label: Whether an image may have any number of classes: each then has a probability of its own.
        center_crop: Share of a picture's height and width that the model sees, from the middle, above 0 to 1; for paths.
        temperature: What the logits are divided by before they become probabilities, above 0; 1 = the model's own. A run's is
            `run.temperature`.
        top: Number of classes for each image, the likeliest first; None = 1, or with `multi_label` those above the threshold.
        threshold: Probability above which a class counts, with `multi_label` and without `top`; None = 0.5.
        batch_size: Images at a time.
        tta: Test-time augmentation: logits are averaged over mirrored images (`flip`), images shifted by a 32nd of their sides
            along the diagonal (`shift`), both (`flip,shift`), or views of your own; None = none.

    Returns:
        A `Prediction` for each image, in order; files that cannot be read are left out, with a warning.

    Raises:
        ValueError: For paths without pictures, arrays of another shape or type, and settings that do not fit the model.
    """
    chosen, notes = classifier(model, mean, std, class_names, multi_label, center_crop, temperature), []
    chosen = dataclasses.replace(chosen, logits=over_views(chosen.logits, choose_views(tta)[0]))
    settings = {"top": top, "threshold": threshold, "batch_size": batch_size}
    if isinstance(images, np.ndarray) and images.dtype != object and images.dtype.kind != "U":
        return [*predict_arrays(chosen, images, **settings)]
    found = [*predict_files(chosen, find_images(images), notes=notes, **settings)]
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return found


def predict_arrays(
    classifier: Classifier, images: np.ndarray, *, top: int | None, threshold: float | None, batch_size: int
) -> Iterator[Prediction]:
    if images.dtype != np.uint8 or images.shape[1:] != classifier.shape:
        allowed = ", ".join(map(str, ("N", *classifier.shape)))
        raise ValueError(f"images: received {images.dtype} of shape {images.shape}; allowed: uint8 of shape ({allowed})")
    batch_size, choose = check_numbers(classifier, top, threshold, batch_size)
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        yield from ranked(classifier, range(start, start + len(batch)), batch, choose, filled_to(classifier, images, batch_size))


def predict_files(
    classifier: Classifier,
    files: Sequence[Path],
    *,
    top: int | None = None,
    threshold: float | None = None,
    batch_size: int = BATCH_SIZE,
    thumbnails: bool = False,
    notes: list[str],
) -> Iterator[Prediction]:
    """A `Prediction` for each picture file that can be read, one batch after the other.

    Args:
        classifier: The `Classifier`.
        files: Paths, as of `find_images`.
        top, threshold, batch_size: As of `predict`.
        thumbnails: Whether predictions get one.
        notes: Gets a line on the files that cannot be read.

    Raises:
        ValueError: If no file can be read.
    """
    (batch_size, choose), broken = check_numbers(classifier, top, threshold, batch_size), []
    for start in range(0, len(files), batch_size):
        some = files[start : start + batch_size]
        names, images, failed = read_pictures(classifier, some)
        broken += failed
        if names:
            yield from ranked(classifier, names, images, choose, filled_to(classifier, files, batch_size), thumbnails=thumbnails)
    if broken:
        notes.append(note_of(broken, len(files)))


def read_pictures(classifier: Classifier, files: Sequence[Path]) -> tuple[list[str], np.ndarray | None, list[tuple[Path, str]]]:
    """Files as a `Classifier` takes them: names, images uint8 (N, H, W, C) or None, and the files that are none with the reason."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of files that are read in spite of a fault
        images = parallel(lambda file: read(file, classifier), files)
    broken = [(file, image) for file, image in zip(files, images, strict=True) if isinstance(image, str)]
    good = [(printable(file), image) for file, image in zip(files, images, strict=True) if not isinstance(image, str)]
    names, images = zip(*good, strict=True) if good else ((), ())
    return list(names), np.stack(images) if images else None, broken


def note_of(broken: list[tuple[Path, str]], count: int) -> str:
    """A line on the files that are no pictures; a ValueError if all of them are none."""
    named = "; ".join(f"{visible(printable(file))}: {reason}" for file, reason in broken[:SHOWN])
    note = f"{len(broken):,} of {count:,} files could not be read ({named}{'; ...' * (len(broken) > SHOWN)})"
    if len(broken) == count:
        raise ValueError(f"path: {note}; allowed: pictures")
    return note


def check_numbers(classifier, top, threshold, batch_size):
    """The number of images at a time, and a function that counts an image's classes; a ValueError for settings that do not fit."""
    check_int("batch_size", batch_size, at_least=1)
    if top is not None:
        check_int("top", top, at_least=1)
        if top > len(classifier.class_names):
            raise ValueError(f"top: received {top}; allowed: 1 to {len(classifier.class_names)}, the classes of the model")
    if threshold is not None:
        check_number("threshold", threshold, at_least=0, at_most=1)
        if top is not None or not classifier.multi_label:
            where = "together with top" if top is not None else "where an image has one class"
            raise ValueError(f"threshold: received {threshold:g}; allowed: none {where}")
    if classifier.multi_label and top is None:
        limit = THRESHOLD if threshold is None else threshold
        return classifier.batch_size or batch_size, lambda probabilities: int((probabilities > limit).sum())
    return classifier.batch_size or batch_size, lambda probabilities: top or 1


def filled_to(classifier, images, batch_size):
    """Images that every batch is filled up to; 0 where the only batch may have any number."""
    return batch_size if classifier.batch_size or len(images) > batch_size else 0


def read(file, classifier):
    """The picture, or in words why there is none."""
    if not file.is_file():  # a pipe would be waited for
        return "no file"
    try:
        return read_image(file, classifier.shape, classifier.center_crop)
    except Exception as error:  # Pillow's parsers raise whatever a broken file leads them to
        reason = getattr(error, "strerror", None) or one_line(error)
        return visible(reason.removeprefix("image: ").replace(f" {str(file)!r}", ""))


def ranked(classifier, names, images, choose, size=0, thumbnails=False):
    """Predictions of a batch, which is filled up to `size`: another number of images would be compiled again."""
    filled = np.concatenate([images, images[:1].repeat(max(0, size - len(images)), axis=0)])
    logits = classifier.logits(filled)[: len(images)].astype(np.float64)  # (B, K)
    if broken := np.count_nonzero(~np.isfinite(logits).all(axis=1)):
        raise ValueError(f"logits: received NaN or infinity for {broken:,} of {len(images):,} images; allowed: finite numbers")
    values = classifier.probabilities(logits)
    order = np.argsort(-values, axis=1, kind="stable")
    for name, image, row, best in zip(names, images, values, order, strict=True):
        best = best[: choose(row)]
        classes = [classifier.class_names[label] for label in best]
        yield Prediction(name, classes, row[best].tolist(), thumbnail(image) if thumbnails else b"")


def thumbnail(image, side=96):
    if image.shape[-1] not in (1, 3):  # of other channels the first one, or the first three
        image = image[..., :3] if image.shape[-1] > 3 else image[..., :1]
    small, out = picture(image), io.BytesIO()
    small.thumbnail((side, side))
    small.save(out, "JPEG", quality=80)
    return out.getvalue()


def find_images(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    """Picture files, each once: a file is itself, a folder all pictures below it, a pattern (`*`, `?`, `[...]`, `**`) what it fits.

    Links to folders are not followed below a folder. A file that is reached in two ways has the first path.

    Raises:
        ValueError: For a path that leads to no picture.
    """
    found = {}
    for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
        given = os.path.expanduser(path)
        matches = [given] if os.path.lexists(given) else sorted(glob.glob(given, recursive=True))
        files = [file for match in map(Path, matches) for file in (image_files(match) if match.is_dir() else [match])]
        if not files:
            raise ValueError(f"path: received {printable(given)!r}; allowed: a picture, a folder with pictures or a pattern")
        for file in files:
            found.setdefault((os.path.realpath(file.parent), file.name), file)
    if not found:
        raise ValueError("path: received none; allowed: pictures, folders with pictures or patterns")
    return [*found.values()]
