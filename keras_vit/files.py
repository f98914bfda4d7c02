"""Files and folders, written atomically: a kill at any moment leaves the old or the new one. YAML and JSON as plain values."""

import contextlib
import hashlib
import itertools
import json
import os
import platform
import re
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
SEAL = re.compile(r"^# sha256: ([0-9a-f]{64})\b.*\n", re.MULTILINE)  # a line that states the digest of the text below it


class Damaged(ValueError):
    """A file that is not as it was written; the message says why, without the file's name."""


def partial_prefix(pid: int | None = None) -> str:
    """Prefix of the names of what a process of this machine is writing; by default of this process."""
    return f"{OURS}{pid or os.getpid()}-"


def remove_abandoned(folder: Path) -> None:
    """Deletes from a folder what processes of this machine were writing when they were killed."""
    for path in folder.glob(f"{OURS}*"):
        pid = writer_of(path)
        if pid is not None and not psutil.pid_exists(pid):
            with contextlib.suppress(OSError):
                remove(path)


def writer_of(path: Path) -> int | None:
    """The process of this machine that writes, or wrote, a partial file; None for one of another machine."""
    pid = path.name.removeprefix(OURS).partition("-")[0] if path.name.startswith(OURS) else ""
    return int(pid) if pid.isdecimal() else None


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
        with naming(path):
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
    """A YAML or JSON file as plain values; a ValueError if it cannot be read (with the line), or is not as it was `sealed`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        check_seal(text, path)
        return yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML or JSON in UTF-8: {' '.join(str(error).split())}") from None


def sealed(text: str) -> str:
    """A YAML text with its digest in a line above it, by which `check_seal` finds damage."""
    return f"# sha256: {sha256(text)} of the lines below; delete this line if you change them\n{text}"


def check_seal(text: str, path: str | os.PathLike) -> bool:
    """Whether a text states a digest; a ValueError if that is not the digest of what follows."""
    seal = SEAL.search(text)
    if seal and sha256(text[seal.end() :]) != seal[1]:
        raise ValueError(f"{path}: damaged, or changed: it does not fit its digest; if you changed it, delete its line '# sha256'")
    return bool(seal)


def write_sealed_json(path: str | os.PathLike, value: dict) -> None:
    """Writes a JSON object with its digest as its last field."""
    value = json.loads(json.dumps(value))  # as it will be read
    write_json(path, {**value, "sha256": sha256(json.dumps(value, sort_keys=True))})


def read_sealed_json(path: str | os.PathLike) -> dict:
    """The object that `write_sealed_json` was given.

    Raises:
        Damaged: If the file holds another.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(" ".join(str(error).split())) from None
    if not isinstance(value, dict) or value.pop("sha256", None) != sha256(json.dumps(value, sort_keys=True)):
        raise Damaged("it does not fit its digest")
    return value


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


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
