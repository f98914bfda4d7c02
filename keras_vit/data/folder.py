"""A data set from one folder of images for each class, or from train/, test/ and validation/ with such folders."""

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from keras_vit.checks import visible
from keras_vit.data.checked import remembered
from keras_vit.data.decode import CONVERTED, formats
from keras_vit.data.photos import SHOWN, collect, examine_all

# Of pictures too: read where Pillow or its plugins can, else named.
OTHER_SUFFIXES = {".avif", ".cr2", ".dng", ".eps", ".heic", ".heif", ".jxl", ".nef", ".pcx", ".psd", ".raw", ".svg"}

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
    root, received = open_folder(path)
    below = find_parts(root, received)
    candidates = folders(below.get("train", root))
    class_names = [printable(folder.name) for folder in candidates if any(image_files(folder))]
    ignored = [name for folder in candidates if (name := printable(folder.name)) not in class_names]
    if below:
        ignored += [printable(folder.name) for folder in folders(root) if folder not in below.values()]
    note_unread(root, notes)
    note_loose([file for folder in below.values() or [root] for file in images_in(folder)], notes, "left out")
    if ignored:
        notes.append(f"ignored folders without images: {visible(', '.join(ignored[:5]))}{', ...' * (len(ignored) > 5)}")
    if len(class_names) < 2:
        found = f"images in {class_names[0]!r} alone" if class_names else "no images"
        raise ValueError(
            f"{received} with {found}; allowed: two or more folders, one a class, of images (.jpg, .png, .webp, .tif and others)"
        )
    parts = {}
    for part, folder in below.items() or [("train", root)]:
        files, labels = labelled_files(folder, class_names)
        if files:
            parts[part] = collect(Files(files, labels, root, shape[-1]), part, shape, notes)
    for label in set(range(len(class_names))) - set(parts["train"][1].tolist()):
        raise ValueError(f"{received} with no readable image of class {class_names[label]!r}; allowed: one or more")
    return parts, class_names


def read_pictures(path: str, shape: tuple[int, int, int], notes: list[str]) -> tuple[dict, list[str]]:
    """As `read_folder`, for images that need no class folders: all below the folder, or below train/ and the folders beside it.

    If each image lies in a class folder, the labels are read all the same: the parts are then those of `read_folder`. Otherwise
    there are no class names, and each label is 0.

    Raises:
        ValueError: If there is no such folder, or no image in it.
    """
    root, received = open_folder(path)
    below = {PART_NAMES.get(folder.name.lower()): folder for folder in folders(root) if any(image_files(folder))}
    split = "train" in below and (None not in below or any(any(image_files(child)) for child in folders(below["train"])))
    below = {part: folder for part, folder in below.items() if part} if split else {"train": root}
    note_unread(root, notes)
    found = {part: [(file, None) for file in images_in(folder)] for part, folder in below.items()}
    for part, folder in below.items():
        found[part] += [(file, printable(child.name)) for child in folders(folder) for file in image_files(child)]
    if not found["train"]:
        raise ValueError(f"{received} with no images; allowed: a folder of images (.jpg, .png, .webp, .tif and others)")
    class_names = {name for _, name in found["train"]}
    if len(class_names) > 2 and None in class_names:
        loose = [file for files in found.values() for file, name in files if name is None]
        note_loose(loose, notes, "taken too, and no labels are read: a training on the labels has other test images")
    labelled = len(class_names) > 1 and None not in class_names
    labelled = labelled and all(name in class_names for files in found.values() for _, name in files)
    class_names = sorted(class_names) if labelled else []
    parts = {}
    for part, files in found.items():
        labels = [class_names.index(name) if labelled else 0 for _, name in files]
        if files:
            parts[part] = collect(Files([file for file, _ in files], labels, root, shape[-1]), part, shape, notes)
    return parts, class_names


def open_folder(path):
    """The folder of a data set, and how a message begins; a ValueError if there is none."""
    root, received = Path(path).expanduser(), f"data: received {f'folder:{path}'!r}"
    if not path or not root.is_dir():
        raise ValueError(f"{received}: there is no such folder; allowed: folder:PATH")
    return root, received


def note_unread(root, notes):
    """Names the images of formats that are not read here, in a note and a warning."""
    if unread := unread_images(root):
        named = visible(", ".join(printable(file.relative_to(root)) for file in unread[:SHOWN]))
        notes.append(f"{len(unread):,} files look like images and are not read here: {named}{', ...' * (len(unread) > SHOWN)}")
        warnings.warn(notes[-1], stacklevel=5)


def note_loose(files, notes, fate):
    """Names the images that lie beside the class folders, and what becomes of them, in a note."""
    if files:
        named = visible(", ".join(printable(file.name) for file in files[:SHOWN]))
        notes.append(f"images beside the class folders are {fate} ({len(files):,}): {named}{', ...' * (len(files) > SHOWN)}")


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
        name = printable(child.name)
        if name not in class_names:
            raise ValueError(
                f"data: received the class folder {str(child)!r}; allowed, as in train: {visible(', '.join(class_names))}"
            )
        files += found
        labels += len(found) * [class_names.index(name)]
    return files, labels


class Files:
    """Picture files as a `Source` of `Photos`.

    Args:
        files: M paths.
        labels: M integers, or zeros and ones (M, K).
        root: The folder that files are named relative to.
        channels: Channels that the pictures must have, if not 1 or 3.
    """

    def __init__(self, files: Sequence[Path], labels: Sequence[int] | np.ndarray, root: Path, channels: int = 3):
        self.files, self.root, self.labels = files, root, np.array(labels)
        kind = "files" if channels in CONVERTED else f"files of {channels} channels"
        found = remembered(kind, files, lambda: examine_all(self.open, range(len(files)), channels))
        self.sizes, self.digests = found["sizes"], found["digests"]

    def open(self, row: int) -> Path:
        return self.files[row]

    def name(self, row: int) -> str:
        file = self.files[row]
        return visible(printable(file.relative_to(self.root) if file.is_relative_to(self.root) else file))


def folders(root: Path) -> list[Path]:
    return sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def image_files(folder: Path) -> Iterator[Path]:
    """The pictures below a folder, in order. Links to folders are not followed: they can be circular."""
    return (file for file in files_below(folder) if file.suffix.lower() in formats())


def images_in(folder: Path) -> list[Path]:
    """The pictures in a folder itself, in order."""
    files = (file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return sorted(file for file in files if file.suffix.lower() in formats())


def files_below(folder: Path) -> Iterator[Path]:
    for parent, children, files in os.walk(folder):
        children.sort()
        for file in sorted(files):
            if not file.startswith("."):
                yield Path(parent, file)


def unread_images(folder: Path) -> list[Path]:
    """Files that are images by their names, of formats that are not read here."""
    return [file for file in files_below(folder) if file.suffix.lower() in OTHER_SUFFIXES and file.suffix.lower() not in formats()]


def printable(path) -> str:
    """A path as text that can be written anywhere; bytes that are no UTF-8 become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
