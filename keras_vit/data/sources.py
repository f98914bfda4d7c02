"""Where images come from: a data set's name, a folder or a file -> uint8 arrays of one size, in memory or on disk.

Every reader returns {part: (images uint8 (M, H, W, C), labels int64 (M,))} and the class names. Parts are "train", "validation" and
"test"; a label of -1 marks an image that could not be read. Readers append to `notes` what the user should know.

Shapes: M images of a part, n of a chunk, `shape` = (H, W, C) height, width and channels wanted, h, w, c those of the source.
"""

import concurrent.futures
import contextlib
import difflib
import hashlib
import http.client
import importlib.util
import itertools
import math
import os
import pathlib
import re
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
import warnings
import zipfile

import keras
import numpy as np

# Images of more pixels are not decoded: 89 million is where Pillow begins to suspect a decompression bomb (256 MB as RGB).
MAX_PIXELS = 89_478_485
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")

# Where a data set comes from is known only while it downloads; these are asked first whether the network is there at all.
_HOSTS = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}
_ANY_HOST = "https://storage.googleapis.com/"
_PROBE_SECONDS = 4


# What folders of a data set that is split already are called.
_PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class Unavailable(ValueError):
    """The data set exists, but not here and now: `auto` may fall back."""


def read_digits(shape, notes):
    if not installed("sklearn"):
        raise ValueError("the data set 'digits' comes with scikit-learn, which is not installed: pip install scikit-learn")
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]  # values are 0..16
    return {"train": (_to_shape(images, shape), digits.target)}, [str(digit) for digit in range(10)]


def read_arrays(path, shape, notes):
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"arrays: there is no file {path!r}")
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > _memory_limit():
            raise ValueError(f"its arrays take {size:,} bytes, the limit is a third of the free memory: {_memory_limit():,}")
        with np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"arrays: cannot read {path!r}: {_line(error)}") from error
    parts = {}
    for part, suffix in (("train", "train"), ("validation", "val"), ("test", "test")):
        keys = f"x_{suffix}", f"y_{suffix}"
        if not any(key in arrays for key in keys) and part != "train":
            continue
        missing = [key for key in keys if key not in arrays]
        if missing:
            raise ValueError(f"arrays: {path!r} has no {missing[0]!r}. Received: {sorted(arrays)}")
        parts[part] = (_to_shape(_pixels(arrays[keys[0]], keys[0]), shape), _labels(arrays[keys[1]], *keys))
        if len(parts[part][0]) != len(parts[part][1]):
            raise ValueError(f"arrays: {keys[0]} has {len(parts[part][0]):,} images and {keys[1]} {len(parts[part][1]):,} labels")
    return parts, [str(label) for label in range(parts["train"][1].max() + 1)]


def _pixels(images, key):
    """(N, H, W) or (N, H, W, C), uint8 or float 0..1 -> uint8 (N, H, W, C)."""
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"arrays: {key} must be (N, H, W), (N, H, W, 1) or (N, H, W, 3). Received: {images.shape}")
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f" or not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"arrays: {key} must be uint8, or float from 0 to 1. Received: {images.dtype} from {images.min()} to {images.max()}"
        )
    return np.round(images * 255).astype(np.uint8)


def _labels(labels, images_key, key):
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels) or labels.min() < 0 or labels.max() >= 2**20:
        raise ValueError(f"arrays: {key} must be whole numbers (N,) from 0 on. Received: {labels.dtype} {labels.shape}")
    return labels.astype(np.int64)


def read_folder(path, shape, notes):
    root = pathlib.Path(path).expanduser()
    if not path or not root.is_dir():
        raise ValueError(f"folder: there is no folder {path!r}")
    below = {}
    for folder in _folders(root):
        part = _PART_NAMES.get(folder.name.lower())
        # A folder of that name with images and no folders of images in it is a class: there are trains to be recognised.
        if part and any(any(_image_files(child)) for child in _folders(folder)):
            if part in below:
                raise ValueError(f"folder: {str(below[part])!r} and {str(folder)!r} both hold {part} images")
            below[part] = folder
    if below and "train" not in below:
        names = ", ".join(folder.name for folder in below.values())
        raise ValueError(f"folder: {path!r} has class folders in {names} but no folder 'train' with such")
    candidates = _folders(below.get("train", root))
    class_names = [folder.name for folder in candidates if any(_image_files(folder))]
    parts, ignored = {}, [folder.name for folder in candidates if folder.name not in class_names]
    if below:
        ignored += [folder.name for folder in _folders(root) if folder not in below.values()]
    if ignored:
        notes.append(f"no class, as there is no image for it: {', '.join(ignored[:5])}{', ...' * (len(ignored) > 5)}")
    if len(class_names) < 2:
        raise ValueError(
            f"folder: {path!r} must hold at least two folders, one a class, with {', '.join(IMAGE_SUFFIXES)} files below. "
            f"Received: {class_names or 'none'}"
        )
    for part, folder in below.items() if "train" in below else [("train", root)]:
        files, labels = [], []
        for child in _folders(folder):
            found = list(_image_files(child))
            if found and child.name not in class_names:
                raise ValueError(f"folder: {str(child)!r} is not a class of train. Allowed: {', '.join(class_names)}")
            files += found
            labels += len(found) * [class_names.index(child.name)] if found else []
        if not files:
            continue
        state = "\n".join(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
        cache = (root, f"{part}-{hashlib.sha256(state.encode()).hexdigest()[:16]}")
        parts[part] = _, labels = _store(_decode_files(files, labels, shape), len(files), shape, cache, part, notes)
        skipped = np.flatnonzero(labels < 0)
        if len(skipped):
            first = [files[i] for i in skipped[:3]]
            reasons = _parallel(lambda file: _problem(file, shape), first)
            named = "; ".join(f"{file.relative_to(root)}: {reason}" for file, reason in zip(first, reasons, strict=True))
            notes.append(f"{part}: skipped {len(skipped)} of {len(files)} images ({named}{'; ...' * (len(skipped) > 3)})")
            warnings.warn(notes[-1], stacklevel=3)
        if part == "train":
            lost = np.bincount(labels[labels >= 0], minlength=len(class_names)) == 0
            if lost.any():
                raise ValueError(f"folder: no image of class {class_names[lost.argmax()]!r} can be read. {notes[-1]}")
    return parts, class_names


def _folders(root):
    return sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _image_files(folder):
    for parent, folders, files in os.walk(folder):  # does not follow links to folders: they can be circular
        folders.sort()
        for file in sorted(files):
            if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith("."):
                yield pathlib.Path(parent, file)


def _decode_files(files, labels, shape):
    def decode(file, label):
        try:
            return read_image(file, shape), label
        except Exception:  # Pillow's parsers raise whatever a broken file makes them run into
            return np.zeros(shape, np.uint8), -1

    for start in range(0, len(files), 256):
        chunk = slice(start, start + 256)
        yield _stack(_parallel(decode, files[chunk], labels[chunk]))


def _problem(file, shape):
    try:
        read_image(file, shape)
    except Exception as error:
        return _line(error).replace(str(file), file.name)
    return "could not be read before"


def read_image(file: str | os.PathLike, shape: tuple[int, int, int]) -> np.ndarray:
    """One image file as uint8 (H, W, C) = `shape`.

    Turned upright by its EXIF orientation; transparency is laid on white; 16-bit grey is scaled to 8; of an animation the first
    frame; resized to cover H x W (bicubic, antialiased) and cut to its middle.

    Raises:
        ValueError: more than `MAX_PIXELS`. Otherwise what Pillow raises for a file that is no image or is cut off.
    """
    from PIL import Image, ImageOps

    with Image.open(file) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels, allowed are {MAX_PIXELS:,}")
        # A JPEG can be decoded at 1/2, 1/4 or 1/8: at least twice the wanted size loses nothing that is seen, and costs far less.
        image.draft(None, 2 * (2 * max(shape[:2]),))
        return _fit(ImageOps.exif_transpose(image), shape)


def _fit(image, shape):
    from PIL import Image, ImageOps

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


def _to_shape(images, shape):
    """uint8 (N, h, w, c), any h, w and c 1, 3 or 4 -> uint8 (N, H, W, C)."""
    if images.shape[1:] == shape:
        return images
    if images.shape[1:3] == shape[:2] and images.shape[-1] == 1:
        return np.repeat(images, shape[-1], axis=-1)
    return np.stack(_parallel(lambda image: _fit(_picture(image), shape), images))


def _picture(image):
    """uint8 (h, w, c) -> Pillow's image, whose grey ones have no channel axis."""
    from PIL import Image

    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def read_tfds(name, data_dir, shape, notes):
    others = "or use digits, folder:PATH or arrays:FILE.npz"
    missing = [module.replace("_", "-") for module in ("tensorflow", "tensorflow_datasets") if not installed(module)]
    if missing:
        needed = " and ".join(missing)
        raise Unavailable(f"data set {name!r} is read by {needed}, not installed here: pip install {' '.join(missing)}, {others}")
    tf = import_tensorflow()
    import tensorflow_datasets as tfds

    try:
        if not re.fullmatch(r"\w+(/[\w.=-]+)*(:[\d.*]+)?", name):  # no namespace, whose code TFDS would fetch and run
            raise tfds.core.DatasetNotFoundError
        builder = tfds.builder(name, data_dir=data_dir or os.environ.get("TFDS_DATA_DIR"), try_gcs=False)
    except tfds.core.DatasetNotFoundError:
        known, base = tfds.list_builders(with_community_datasets=False), re.split("[:/]", name)[0]
        close = difflib.get_close_matches(base, ["auto", "digits", "folder:PATH", "arrays:FILE.npz", *known], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"use the name of a TensorFlow data set, {others[3:]}"
        raise ValueError(f"unknown data set {name!r}: {hint}") from None
    except Exception as error:  # TFDS has a type for each way a version or configuration can be wrong
        raise ValueError(f"data set {name!r}: {_line(error)}") from error
    features = builder.info.features
    usable = isinstance(features, tfds.features.FeaturesDict) and "image" in features and "label" in features
    if (
        not usable
        or not isinstance(features["label"], tfds.features.ClassLabel)
        or tf.as_dtype(features["image"].dtype) != tf.uint8
    ):
        raise ValueError(f"data set {name!r} must have an 8-bit 'image' and a class 'label'. Received: {list(features or [])}")
    _prepare(builder, name, others)

    parts, label = {}, features["label"]
    for part in ("train", "validation", "test"):
        if part not in builder.info.splits or not (count := builder.info.splits[part].num_examples):
            continue
        examples = builder.as_dataset(part, shuffle_files=False, read_config=tfds.ReadConfig(try_autocache=False))
        examples = examples.map(lambda example: (example["image"], example["label"]), num_parallel_calls=tf.data.AUTOTUNE)
        cache = (pathlib.Path(builder.data_path), part)
        parts[part] = _store(_decode_tfds(examples, features["image"].shape, shape), count, shape, cache, part, notes)
    return parts, list(label.names)


def _decode_tfds(examples, stored, shape):
    if None not in stored:
        for images, labels in examples.batch(1024).prefetch(2).as_numpy_iterator():
            yield _to_shape(images, shape), labels
        return
    examples = examples.as_numpy_iterator()
    while chunk := list(itertools.islice(examples, 256)):
        yield _stack(_parallel(lambda example: (_fit(_picture(example[0]), shape), example[1]), chunk))


def _prepare(builder, name, others):
    if builder.is_prepared():
        return
    url = _HOSTS.get(builder.name, _ANY_HOST)
    where = f"{name} is not prepared below {builder.data_dir}"
    if not _reachable(url):
        host = urllib.parse.urlparse(url).hostname
        raise Unavailable(
            f"{where} and {host} does not answer: give --data-dir or TFDS_DATA_DIR a prepared copy, run "
            f"`tfds build {name}` where there is a network, {others}"
        )
    import tensorflow_datasets as tfds

    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except Exception as error:  # network, checksum, disk, manual steps: each its own type
        raise Unavailable(f"{where} and could not be downloaded: {_line(error)}") from error


def _reachable(url):
    """Whether a server answers within `_PROBE_SECONDS`, names and proxies included."""

    def ask():
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PROBE_SECONDS).close()
            answers.append(True)
        except urllib.error.HTTPError as error:
            answers.append(error.code not in (403, 407))  # what a proxy says that lets nothing through
        except (OSError, ValueError, http.client.HTTPException) as error:
            # A certificate that this Python cannot check: TFDS downloads with certificates of its own.
            answers.append(isinstance(getattr(error, "reason", None), ssl.SSLError))

    # In a thread, as looking a name up has no time limit of its own.
    answers, thread = [], threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return answers == [True]


# Where images are kept


def _store(chunks, count, shape, cache, part, notes):
    """Collects chunks of (images (n, H, W, C), labels (n,)) in memory if they fit, otherwise in a file that later runs reuse.

    Args:
        chunks: an iterator that does its work only when asked.
        count: how many images come.
        cache: (folder, name) of the file.
    """
    size, what = count * math.prod(shape), f"{part}: {count:,} images"
    if size <= _memory_limit():
        images, labels, done = np.empty((count, *shape), np.uint8), np.full(count, -1, np.int64), 0
        for chunk, chunk_labels in chunks:
            images[done : done + len(chunk)], labels[done : done + len(chunk)] = chunk, chunk_labels
            done += len(chunk)
        _check_complete(done, count, part)
        notes.append(f"{what} in memory ({size / 1e6:,.0f} MB)")
        return images, labels
    folder, name = cache
    if os.access(folder, os.W_OK):
        folder = folder / ".keras_vit"
    else:
        source = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]  # the last part alone may be a version
        folder = pathlib.Path("~/.cache/keras_vit").expanduser() / source
    suffix = f"-{'x'.join(map(str, shape))}.npy"
    file = folder / f"{name}{suffix}"
    labels_file = file.with_suffix(".labels.npy")
    try:
        if not (file.is_file() and labels_file.is_file() and len(np.load(labels_file)) == count):
            folder.mkdir(parents=True, exist_ok=True)
            _remove_old(folder, part, suffix)
            _write(chunks, count, shape, file, labels_file, part)
    except OSError as error:
        raise ValueError(f"{what} need {size / 1e6:,.0f} MB in {str(folder)!r}: {_line(error)}") from error
    notes.append(f"{what} on disk ({size / 1e6:,.0f} MB), as they do not fit in a third of the free memory: {file}")
    return np.load(file, mmap_mode="r"), np.load(labels_file)


def _remove_old(folder, part, suffix):
    """Deletes what an earlier state of the same part left, and what a killed process has begun."""
    import psutil

    for file in folder.glob(f"{part}*{suffix}"):
        file.unlink(missing_ok=True)
        file.with_suffix(".labels.npy").unlink(missing_ok=True)
    for file in folder.glob("*.partial"):
        pid = file.suffixes[-2].removeprefix(".")
        if not (pid.isdecimal() and psutil.pid_exists(int(pid))):
            file.unlink(missing_ok=True)


def _write(chunks, count, shape, file, labels_file, part):
    # Written front to back and not through a memory map: a full disk is then an error and not a killed process.
    temporary, labels = file.with_suffix(f".{os.getpid()}.partial"), []
    try:
        with open(temporary, "wb") as out:
            header = {"shape": (count, *shape), "fortran_order": False, "descr": "|u1"}
            np.lib.format.write_array_header_1_0(out, header)
            for chunk, chunk_labels in chunks:
                out.write(np.ascontiguousarray(chunk))
                labels.append(chunk_labels)
        _check_complete(sum(map(len, labels)), count, part)
        np.save(labels_file, np.concatenate(labels))
        os.replace(temporary, file)  # last: a file of this name is complete
    finally:
        temporary.unlink(missing_ok=True)


def _check_complete(found, count, part):
    if found != count:
        raise ValueError(f"{part} must have {count:,} images. Received: {found:,}; prepare the data set again")


def _memory_limit():
    """Bytes that the images of one split may take: a third of what is available now, within the container's limit."""
    import psutil

    available = [psutil.virtual_memory().available]
    with contextlib.suppress(OSError, ValueError):  # no container, or no limit ("max")
        limit, used = (int(pathlib.Path("/sys/fs/cgroup", file).read_text()) for file in ("memory.max", "memory.current"))
        available.append(max(limit - used, 0))
    return min(available) // 3


def _parallel(function, *arguments):
    """list(map(function, *arguments)) in threads: Pillow releases Python's lock while it decodes and resizes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Image size")  # MAX_PIXELS decides, and says so once
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(function, *arguments))


def _stack(examples):
    images, labels = zip(*examples, strict=True)
    return np.stack(images), np.array(labels, np.int64)


def _line(error):
    return " ".join(str(error).split())[:300] or type(error).__name__


def installed(module):
    return importlib.util.find_spec(module) is not None


def import_tensorflow():
    import tensorflow as tf

    if keras.backend.backend() != "tensorflow":
        with contextlib.suppress(RuntimeError):  # already in use by whoever imported it first
            tf.config.set_visible_devices([], "GPU")  # it would take the memory that JAX or PyTorch trains in
    return tf
