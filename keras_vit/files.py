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

# Bounds of what is read: in bytes, in values inside values, and in YAML, which is read slowly, values and characters of a number.
MAX_YAML, MAX_JSON, MAX_DEPTH, MAX_VALUES, MAX_DIGITS = 2**20, 2**24, 32, 50_000, 100
TAG = "tag:yaml.org,2002:"
NUMBERS = (f"{TAG}int", f"{TAG}float")
PLAIN_TAGS = (*NUMBERS, *(f"{TAG}{name}" for name in ("null", "bool", "str", "seq", "map")))

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


class PlainLoader(yaml.SafeLoader):
    """YAML of the values that JSON has, in bounded depth: no tags, no aliases, no key twice. `1e-3` is a number, a date a text."""

    yaml_implicit_resolvers: typing.ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag in PLAIN_TAGS]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    depth = count = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise refused("an alias", "the values themselves", event)
        if self.depth == MAX_DEPTH:
            raise refused("values in values", f"a depth of {MAX_DEPTH}", event)
        if self.count == MAX_VALUES:
            raise refused("more values", f"{MAX_VALUES:,}", event)
        self.depth += 1
        self.count += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node.tag not in PLAIN_TAGS:
            raise refused(f"the tag {node.tag}", "none", node)
        if node.tag in NUMBERS and len(node.value) > MAX_DIGITS:
            raise refused(f"a number of {len(node.value):,} characters", f"{MAX_DIGITS}", node)
        if isinstance(node, yaml.MappingNode):
            keys = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode) or (key.tag, key.value) in keys:
                    raise refused("a key twice" if isinstance(key, yaml.ScalarNode) else "a list or mapping as a key", "names", key)
                keys.add((key.tag, key.value))
        return node


PlainLoader.add_implicit_resolver(f"{TAG}float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


def refused(received, allowed, where):
    return yaml.MarkedYAMLError(problem=f"received {received}; allowed: {allowed}", problem_mark=where.start_mark)


def read_yaml(path: str | os.PathLike) -> typing.Any:
    """A YAML or JSON file as plain values.

    Raises:
        ValueError: If it cannot be read (with the line), goes beyond `PlainLoader`, or is not as it was `sealed`.
    """
    wrong = f"{path}: not valid YAML or JSON in UTF-8"
    try:
        text = read_text(path, MAX_YAML)
    except ValueError as error:
        raise ValueError(f"{wrong}: {' '.join(str(error).split())}") from None
    check_seal(text, path)
    try:
        return yaml.load(text, PlainLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{wrong}: {' '.join(str(error).split())}") from None


def read_text(path: str | os.PathLike, most: int) -> str:
    """A text file in UTF-8; a ValueError for more than `most` bytes."""
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"received more than {most:,} bytes; allowed: {most:,}")
    return content.decode("utf-8")


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
        text = read_text(path, MAX_JSON)
    except (OSError, ValueError) as error:
        raise ValueError(f"{field}: {str(path)!r} cannot be read as JSON ({error})") from None
    return parse_json(text, str(path), field)


def parse_json(text: str | bytes, name: str, field: str) -> dict:
    """A JSON object from a text; errors are those of `read_json`, with `name` as the path."""
    try:
        value = plain_json(text)
    except ValueError as error:
        raise ValueError(f"{field}: {name!r} cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{field}: {name!r} holds a {type(value).__name__}; allowed: a JSON object")
    return value


def read_json_or_none(path: str | os.PathLike) -> typing.Any:
    """A JSON file as plain values, or None where there is no file or it is damaged."""
    try:
        return plain_json(read_text(path, MAX_JSON))
    except (OSError, ValueError):
        return None


def plain_json(text: str | bytes, depth: int = MAX_DEPTH) -> typing.Any:
    """The values in a JSON text; a ValueError if it is none, too large, or has values in values deeper than `depth`."""
    deep = ValueError(f"received values in values; allowed: a depth of {depth}")
    if len(text) > MAX_JSON:
        raise ValueError(f"received {len(text):,} characters; allowed: {MAX_JSON:,}")
    try:
        value = json.loads(text)
    except RecursionError:
        raise deep from None
    level = [value]
    for _ in range(depth):
        parts = [part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (dict, list))]
        level = list(itertools.chain.from_iterable(parts))
    if any(isinstance(part, (dict, list)) for part in level):
        raise deep
    return value
