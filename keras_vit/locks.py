"""A folder that one process at a time may write: the kernel lets go of it at the process's end, however it ends."""

import contextlib
import datetime
import errno
import json
import os
import platform
import typing
import warnings
from pathlib import Path

import filelock

from keras_vit.files import naming

LOCK = ".lock"  # the file's name
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of file systems that have none


class Lock:
    """Holds a folder while it is open; its file `.lock` names the process.

    On a file system without locks a warning says so, and nothing keeps a second process off.

    Args:
        folder: An existing folder.
        field: Begins the messages, such as `run`.

    Raises:
        ValueError: If another process holds the folder; names that process.
        OSError: If the file cannot be made.
    """

    def __init__(self, folder: str | os.PathLike, field: str):
        self.folder, self.field = Path(folder), field
        self.path = self.folder / LOCK

    def __enter__(self) -> typing.Self:
        self.file = self._open()
        while not self.in_place():  # the process before has just removed the file
            self.file.close()
            self.file = self._open()
        now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        with contextlib.suppress(OSError):  # on a full disk the holder has no name
            self._write(json.dumps({"pid": os.getpid(), "host": platform.node(), "since": now}) + "\n")
        return self

    def __exit__(self, *error):
        for release in (lambda: self._write(""), lambda: filelock.unlock_descriptor(self.file.fileno()), self.file.close):
            with contextlib.suppress(OSError):  # the folder or its disk may be gone
                release()

    def in_place(self) -> bool:
        """Whether the folder is still where it was, with this lock in it: neither deleted nor moved nor made anew."""
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.path))
        except OSError:
            return False

    def _open(self):
        with naming(self.path):
            file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            if not filelock.lock_descriptor(file.fileno(), blocking=False):
                raise ValueError(
                    f"{self.field}: received {str(self.folder)!r}, in use by {holder(self.path)}; allowed: another folder, or this "
                    "one after that process has ended"
                )
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                file.close()
                raise
            why = f"is on a file system without locks ({error.strerror}): start no second process on it"
            warnings.warn(f"{self.field}: {str(self.folder)!r} {why}", stacklevel=4)
        except ValueError:
            file.close()
            raise
        return file

    def _write(self, text):
        self.file.truncate(0)
        self.file.write(text)
        self.file.flush()


def holder(path: Path) -> str:
    """The process that a lock file names."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return f"process {known['pid']} on {known['host']} since {known['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has just begun, or the file is damaged
        return "another process"
