"""A teacher's logits of the first passes over the training images, computed once and kept in files.

Shapes: S steps of a file, B images of a batch, K classes.
"""

import functools
import hashlib
import json
import re
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from keras_vit.archives import DAMAGED, reason
from keras_vit.files import atomic_path, read_json_or_none, remove_abandoned, write_json

IMAGES = 8192  # of a file, about
MAPPED = 64  # files that are open at a time: a process may not have many
DIGEST = 16  # characters, of the digest in a file's name
SETTINGS, SECONDS = "settings.json", "seconds"  # what the files depend on, and a field beside it


class Views:
    """Logits (B, K) of the batches of some steps, in a folder of files (S, B, K) that any number of runs share.

    A file's name states its first step and the digest of its contents. A kill loses the file that was being made.

    Args:
        folder: The folder; those of other settings lie in it beside each other.
        settings: All that the logits depend on, as plain values.
        batch_size: B.
        num_classes: K.

    Attributes:
        folder: That of these settings.
        seconds: That the files took, whichever run has made them.
    """

    def __init__(self, folder: Path, settings: dict, batch_size: int, num_classes: int):
        text = json.dumps(settings, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:DIGEST]
        self.settings, self.shape = settings, (batch_size, num_classes)
        known = read_json_or_none(self.folder / SETTINGS)
        self.seconds = float(known.get(SECONDS, 0)) if isinstance(known, dict) else 0.0
        self.steps_a_file = -(-IMAGES // batch_size)
        self.files: dict[int, Path] = {}  # by the first step
        self.mapped = functools.lru_cache(MAPPED)(mapped)

    def spans(self, passes: int, steps: int) -> Iterable[tuple[int, int]]:
        """(first step, step after the last one) of each file of so many passes of so many steps; no file has two passes."""
        for first in range(0, passes * steps, steps):
            for begin in range(first, first + steps, self.steps_a_file):
                yield begin, min(begin + self.steps_a_file, first + steps)

    def missing(self, passes: int, steps: int) -> list[tuple[int, int]]:
        """The spans whose files are not there. Reads those that are; a damaged one is deleted, with a warning.

        Raises:
            OSError: For a file that cannot be read.
        """
        return [span for span in self.spans(passes, steps) if not self.open(*span)]

    def open(self, begin: int, end: int) -> bool:
        for path in sorted(self.folder.glob(f"{begin:09d}-*.npy")):
            try:
                found, expected = mapped(path), (end - begin, *self.shape)
                if found.shape != expected or found.dtype != np.float32:
                    raise ValueError(f"received {found.dtype} {found.shape}; allowed: float32 {expected}")
                if not re.fullmatch(rf"\d+-{digest(found)}\.npy", path.name):
                    raise ValueError("it does not fit its digest")
            except DAMAGED as error:
                if isinstance(error, OSError):
                    raise
                warnings.warn(f"distill.folder: {str(path)!r} is damaged ({reason(error)}); it is computed anew", stacklevel=4)
                path.unlink(missing_ok=True)
                continue
            self.files[begin] = path
            return True
        return False

    def fill(self, passes: int, steps: int, logits: Callable[[int], np.ndarray]) -> int:
        """Makes the files that are not there; returns how many.

        Args:
            passes, steps: As of `spans`.
            logits: Gives those of a step's batch (B, K).

        Raises:
            OSError: If a file cannot be written.
        """
        missing = self.missing(passes, steps)
        if missing:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self.folder)
        for begin, end in missing:
            started = time.perf_counter()
            made = np.stack([logits(step) for step in range(begin, end)]).astype(np.float32)
            with atomic_path(self.folder / f"{begin:09d}-{digest(made)}.npy") as temporary:
                np.save(temporary, made)
            if not self.open(begin, end):
                raise OSError(f"distill.folder: {str(self.folder)!r} does not keep what is written to it")
            self.seconds += time.perf_counter() - started
            write_json(self.folder / SETTINGS, {**self.settings, SECONDS: self.seconds})
        return len(missing)

    def logits(self, step: int, steps: int) -> np.ndarray:
        """Those of a step's batch (B, K), where passes have so many steps."""
        begin = step // steps * steps + step % steps // self.steps_a_file * self.steps_a_file
        return self.mapped(self.files[begin])[step - begin]


def mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8)).hexdigest()[:DIGEST]
