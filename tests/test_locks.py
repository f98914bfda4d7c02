"""The lock of a folder: a second process is refused by name, a killed one lets go, and a folder that was replaced is noticed."""

import errno
import json
import os
import subprocess
import sys

import filelock
import pytest
from helpers import one_line_error

from keras_vit.locks import LOCK, Lock

# Another process that holds a folder, without the seconds that Keras takes to be imported.
HOLD = f"""
import filelock, json, os, sys, time
file = open(sys.argv[1] + "/{LOCK}", "a+")
assert filelock.lock_descriptor(file.fileno(), blocking=False)
print(json.dumps({{"pid": os.getpid(), "host": "a-host", "since": "now"}}), file=file, flush=True)
print(flush=True)
time.sleep(600)
"""


def test_a_second_process_is_refused_by_the_name_of_the_first_until_that_is_killed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        for _ in range(2):  # a refusal does not wipe out the name
            with one_line_error(rf"^run: received '.*', in use by process {process.pid} on a-host since now; allowed"):
                Lock(tmp_path, "run").__enter__()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with Lock(tmp_path, "run"):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        with one_line_error(rf"^out: .* in use by process {os.getpid()} on "):
            Lock(tmp_path, "out").__enter__()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(LOCK, "")]


def test_a_damaged_name_is_another_process(tmp_path):
    with Lock(tmp_path, "run"):
        for text in ("", "{", "[1]", '{"pid": 1}', "\0" * 9):
            (tmp_path / LOCK).write_text(text)
            with one_line_error("in use by another process; allowed"):
                Lock(tmp_path, "run").__enter__()


def test_a_folder_that_was_deleted_moved_or_made_anew_is_noticed(tmp_path):
    for change in ("deleted", "moved", "made anew"):
        folder = tmp_path / change
        folder.mkdir()
        with Lock(folder, "run") as lock:
            assert lock.in_place()
            folder.rename(tmp_path / f"{change} away")
            if change == "made anew":
                folder.mkdir()
                with Lock(folder, "run") as other:
                    assert other.in_place()
            assert not lock.in_place()


def test_a_lock_whose_file_was_just_removed_is_taken_anew(tmp_path, monkeypatch):
    """Between opening and locking the file, the process before may end and delete it."""
    real, path = filelock.lock_descriptor, tmp_path / LOCK

    def late(handle, blocking):
        if not handles:
            path.unlink()
        handles.append(handle)
        return real(handle, blocking=blocking)

    handles = []
    monkeypatch.setattr(filelock, "lock_descriptor", late)
    with Lock(tmp_path, "run") as lock:
        assert lock.in_place()
    assert len(handles) == 2


def test_without_locks_a_line_says_so_and_the_folder_is_used(tmp_path, monkeypatch):
    def none(handle, blocking):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock, "lock_descriptor", none)
    said = r"^run: '.*' is on a file system without locks \(No locks available\): start no second process on it$"
    with pytest.warns(UserWarning, match=said), Lock(tmp_path, "run") as lock:
        assert lock.in_place()


def test_other_errors_name_the_file(tmp_path):
    with pytest.raises(OSError, match=LOCK) as caught:
        Lock(tmp_path / "none", "run").__enter__()
    assert caught.value.filename == str(tmp_path / "none" / LOCK)
