"""What is known of files that have not changed since, kept in the user's cache: the next run does not read them again."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from keras_vit.archives import open_arrays
from keras_vit.files import atomic_path

CHECKED = Path("~/.cache/keras_vit/checked")


def remembered(kind: str, files: Iterable[str | os.PathLike], find: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays that `find()` returns, kept until one of the files changes in size or time.

    Args:
        kind: Tells apart what is found in the same files.
        files: What `find` reads.
        find: Reads the files; returns arrays by name.
    """
    state = hashlib.sha256("\n".join([kind, *map(state_of, files)]).encode("utf-8", "surrogateescape")).hexdigest()
    known = CHECKED.expanduser() / f"{state[:32]}.npz"
    with contextlib.suppress(ValueError):
        arrays = open_arrays(known)
        return {name: arrays.read(name) for name in arrays.shapes}
    found = find()
    try:
        known.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(known) as temporary, open(temporary, "wb") as out:
            np.savez(out, **found)
    except OSError:
        pass  # no home, or a full one: the next run reads the files again
    return found


def state_of(file):
    try:
        found = os.stat(file)
    except OSError:  # a link that leads nowhere
        return str(file)
    return f"{file} {found.st_size} {found.st_mtime_ns}"
