"""A data set from one folder of images for each class, or from train/, test/ and validation/ with such folders."""

import hashlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from keras_vit.data.decode import one_line, parallel, read_image, stack
from keras_vit.data.store import keep

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")
CHUNK = 256  # files decoded at a time
SHOWN = 3  # files named in a note

# Names of the folders of a data set that is already split.
PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def read_folder(path: str, shape: tuple[int, int, int], notes: list[str]) -> tuple[dict, list[str]]:
    """Images and labels by part, and the class names; see `dataset.read_source`.

    Raises:
        ValueError: If there is no such folder, or not two classes with images.
    """
    root, received = Path(path).expanduser(), f"data: received {f'folder:{path}'!r}"
    if not path or not root.is_dir():
        raise ValueError(f"{received}: there is no such folder; allowed: folder:PATH")
    below = find_parts(root, received)
    candidates = folders(below.get("train", root))
    class_names = [folder.name for folder in candidates if any(image_files(folder))]
    ignored = [folder.name for folder in candidates if folder.name not in class_names]
    if below:
        ignored += [folder.name for folder in folders(root) if folder not in below.values()]
    if ignored:
        notes.append(f"ignored folders without images: {', '.join(ignored[:5])}{', ...' * (len(ignored) > 5)}")
    if len(class_names) < 2:
        found = f"images in {class_names[0]!r} alone" if class_names else "no images"
        raise ValueError(
            f"{received} with {found}; allowed: two or more folders, one a class, of {', '.join(IMAGE_SUFFIXES)} files"
        )
    parts = {}
    for part, folder in below.items() or [("train", root)]:
        files, labels = labelled_files(folder, class_names)
        if files:
            parts[part] = read_part(root, part, files, labels, shape, notes)
    for label in set(range(len(class_names))) - set(parts["train"][1].tolist()):
        raise ValueError(f"{received} with no readable image of class {class_names[label]!r}; allowed: one or more")
    return parts, class_names


def find_parts(root, received):
    """{part: folder} of a data set that is already split; empty where the folders are classes."""
    below = {}
    for folder in folders(root):
        part = PART_NAMES.get(folder.name.lower())
        # A folder called `train` that holds images and no folders of images is a class: there are pictures of trains.
        if part and any(any(image_files(child)) for child in folders(folder)):
            if part in below:
                raise ValueError(
                    f"{received} with both {below[part].name!r} and {folder.name!r}; allowed: one folder of {part} images"
                )
            below[part] = folder
    if below and "train" not in below:
        names = ", ".join(folder.name for folder in below.values())
        raise ValueError(f"{received} with class folders in {names}; allowed: a folder 'train' with class folders beside it")
    return below


def labelled_files(folder, class_names):
    """The image files below the class folders of `folder`, and their labels."""
    files, labels = [], []
    for child in folders(folder):
        found = list(image_files(child))
        if not found:
            continue
        if child.name not in class_names:
            raise ValueError(f"data: received the class folder {str(child)!r}; allowed, as in train: {', '.join(class_names)}")
        files += found
        labels += len(found) * [class_names.index(child.name)]
    return files, labels


def read_part(root, part, files, labels, shape, notes):
    """The decoded images and labels of a part; files that cannot be read have label -1 and are noted."""
    state = "\n".join(f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)
    cache = (root, f"{part}-{hashlib.sha256(state.encode()).hexdigest()[:16]}")
    images, labels = keep(decode_files(files, labels, shape), len(files), shape, cache, part, notes)
    skipped = [files[i] for i in np.flatnonzero(labels < 0)]
    if skipped:
        first = skipped[:SHOWN]
        reasons = parallel(lambda file: problem(file, shape), first)
        named = "; ".join(f"{file.relative_to(root)}: {reason}" for file, reason in zip(first, reasons, strict=True))
        more = "; ..." * (len(skipped) > SHOWN)
        notes.append(f"{part}: skipped {len(skipped)} of {len(files)} images ({named}{more})")
        warnings.warn(notes[-1], stacklevel=5)
    return images, labels


def folders(root: Path) -> list[Path]:
    return sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def image_files(folder: Path) -> Iterator[Path]:
    for parent, children, files in os.walk(folder):  # does not follow links to folders: they can be circular
        children.sort()
        for file in sorted(files):
            if file.lower().endswith(IMAGE_SUFFIXES) and not file.startswith("."):
                yield Path(parent, file)


def decode_files(files, labels, shape):
    """Chunks of images and labels; -1 is the label of a file that cannot be read."""

    def decode(file, label):
        try:
            return read_image(file, shape), label
        except Exception:  # Pillow's parsers raise many kinds of errors for broken files
            return np.zeros(shape, np.uint8), -1

    for start in range(0, len(files), CHUNK):
        chunk = slice(start, start + CHUNK)
        yield stack(parallel(decode, files[chunk], labels[chunk]))


def problem(file, shape):
    try:
        read_image(file, shape)
    except Exception as error:
        return one_line(error).replace(str(file), file.name).removeprefix("image: ")
    return "could not be read before"
