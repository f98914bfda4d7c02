"""Files: written atomically, so that a kill at any moment leaves the old or the new one; YAML and JSON read strictly."""

import contextlib
import os
import tempfile
import typing
from collections.abc import Iterator
from pathlib import Path

import yaml

UMASK = os.umask(0o077)  # can only be read by setting it
os.umask(UMASK)


PARTIAL = ".partial-"  # begins the name of a file that is being written


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a path to write to; on success the file written there replaces `path` in one step, else it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, temporary = tempfile.mkstemp(prefix=PARTIAL, suffix=path.suffix, dir=path.parent)
    except OSError as error:
        error.filename = str(path)
        raise
    os.close(handle)
    try:
        yield Path(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~UMASK)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_yaml(path: str | os.PathLike) -> typing.Any:
    """A YAML or JSON file as plain values; a ValueError with the line if it cannot be read."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML or JSON in UTF-8: {' '.join(str(error).split())}") from None
