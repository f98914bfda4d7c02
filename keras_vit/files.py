"""Files and folders, written atomically: a kill at any moment leaves the old or the new one. YAML and JSON as plain values."""

import contextlib
import itertools
import json
import os
import platform
import shutil
import tempfile
import typing
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml

UMASK = os.umask(0o077)  # can only be read by setting it
os.umask(UMASK)

PARTIAL = ".partial-"  # begins the name of what is being written
OURS = f"{PARTIAL}{platform.node()}-"  # the same for this machine; a process id and random letters follow


def partial_prefix(pid: int | None = None) -> str:
    """Prefix of the names of what a process of this machine is writing; by default of this process."""
    return f"{OURS}{pid or os.getpid()}-"


def remove_abandoned(folder: Path) -> None:
    """Deletes from a folder what processes of this machine were writing when they were killed."""
    for path in folder.glob(f"{OURS}*"):
        pid = path.name.removeprefix(OURS).partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            with contextlib.suppress(OSError):
                remove(path)


def remove(path: Path) -> None:
    """Deletes a file, or a folder with what it holds."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a path to write to; on success the file written there replaces `path` in one step, else it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        handle, temporary = tempfile.mkstemp(prefix=partial_prefix(), suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        yield Path(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~UMASK)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Gives a folder to fill, on the same disk as `path`; on success it becomes `path` in one step, else it is removed.

    The folder's parent may take other files of the same work; it is removed at the end. Folders that were made to hold `path` are
    removed on an error.

    Args:
        path: Path of the folder: a new path, or an empty folder.
        overwrite: Whether to replace a folder that exists.

    Raises:
        OSError: If the folder cannot be written, or another one is at `path`.
    """
    path = Path(path)
    missing = list(itertools.takewhile(lambda folder: not folder.exists(), path.parents))
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent)
        work = Path(tempfile.mkdtemp(prefix=partial_prefix(), dir=path.parent))
    new, old = work / "new", work / "old"
    try:
        new.mkdir()
        yield new
        with naming(path):
            if overwrite and path.exists():
                os.replace(path, old)
            try:
                os.replace(new, path)
            except BaseException:
                if old.exists():
                    os.replace(old, path)
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):  # not empty
                parent.rmdir()


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Makes an OSError name `path`, which the user knows, not the temporary one."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: typing.Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_yaml(path: str | os.PathLike) -> typing.Any:
    """A YAML or JSON file as plain values; a ValueError with the line if it cannot be read."""
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML or JSON in UTF-8: {' '.join(str(error).split())}") from None


def read_json(path: str | os.PathLike, field: str) -> dict:
    """A JSON object from a file; a ValueError that begins with `field` if the file is missing or holds something else."""
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"), str(path), field)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{field}: {str(path)!r} cannot be read as JSON ({error})") from None


def parse_json(text: str, name: str, field: str) -> dict:
    """A JSON object from a text; errors are those of `read_json`, with `name` as the path."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{field}: {name!r} cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{field}: {name!r} holds a {type(value).__name__}; allowed: a JSON object")
    return value


def read_json_or_none(path: str | os.PathLike) -> typing.Any:
    """A JSON file as plain values, or None where there is no file or it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
