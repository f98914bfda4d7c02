"""Processes: a command whose errors are one line, Python under another backend, and children that end with their parent."""

import contextlib
import errno
import os
import select
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from keras_vit.checks import visible

ROOT = Path(__file__).resolve().parents[1]
OURS = [ROOT / name for name in ("keras_vit", "experiments", "tuning", "benchmarks")]  # folders of this project's own code
# Environment of a process that keeps off accelerators.
ON_PROCESSOR = {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu", "KERAS_TORCH_DEVICE": "cpu"}
UNREAD = 128 + 13  # exit code of a process that SIGPIPE ends
LONGEST = 4000  # characters of an error
GRACE_SECONDS = 5  # between asking a process to end and ending it


def run_command(function: Callable[[], int | None]) -> None:
    """Runs a command's main function and exits with what it returns; a user's mistake becomes one line and exit code 2.

    A mistake is a ValueError or ImportError raised by this project's own code, or a file that cannot be read or
    written. Any other exception is a fault of the program and keeps its traceback. A warning is one line too. Where nobody reads
    the output any more, as after `| head -1`, the command ends without a word and with 141, as one that the signal SIGPIPE ends.
    """
    warnings.filterwarnings("ignore", module=r"keras\.")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {visible(' '.join(str(message).split()))}\n"
    code = outcome(function)
    if is_unread():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python says at its exit that it cannot write
        code = code or UNREAD
    if code is not None:
        sys.exit(code)


def outcome(function):
    """The exit code of a command's main function, whose errors are shown."""
    try:
        return function()
    except SystemExit as stop:
        return stop.code or 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, ImportError, OSError) as error:
        if isinstance(error, BrokenPipeError) and is_unread():
            return UNREAD
        if not isinstance(error, OSError) and not raised_here(error):
            raise
        if isinstance(error, OSError):
            name = f" {str(error.filename)!r}" if error.filename else ""
            kept = "; what was written before is kept" if error.errno == errno.ENOSPC else ""
            error = f"cannot read or write{name}: {error.strerror or error}{kept}"
        text = visible(" ".join(str(error).split()))
        print(f"error: {text if len(text) <= LONGEST else f'{text[:LONGEST]} ...'}", file=sys.stderr)
        return 2


def is_unread() -> bool:
    """Whether the standard output is a pipe whose reader has closed it; what is still to be written is written first."""
    try:
        sys.stdout.flush()
        waiting = select.poll()
        waiting.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in waiting.poll(0))
    except BrokenPipeError:
        return True
    except (AttributeError, OSError, ValueError):  # no such output, or a system without `poll`
        return False


def raised_here(error):
    folder = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    return any(ours in folder.parents for ours in OURS)


def run_python(arguments: list[str], backend: str, **settings: str) -> None:
    """Runs this Python under a backend to its end; a ValueError with its last line if it fails.

    Args:
        arguments: What follows `python` on a command line.
        backend: The Keras backend.
        **settings: Environment variables.
    """
    environment = {**os.environ, "KERAS_BACKEND": backend, **settings}
    if (ROOT / "pyproject.toml").is_file():  # a clone, which need not be installed; an installed copy is found anyway
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    process = start_process([sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        lines = process.communicate()[1].decode(errors="replace").strip().splitlines()
    finally:
        end_process(process)
    if process.returncode:
        last = lines[-1] if lines else f"exit code {process.returncode}"
        raise ValueError(f"{backend}: {last.removeprefix('ValueError: ')}")


def start_process(command: list[str], **settings) -> subprocess.Popen:
    """Starts a process with a pipe as its standard input; an interrupt during the start ends the process.

    An interrupt inside `Popen` would lose a process that runs already. A thread calls it, because signals interrupt the main
    thread only; it runs before it is given the work, since an interrupt while it starts would lose the thread itself.

    Args:
        command: Its command line.
        **settings: Of `subprocess.Popen`.
    """
    started = []

    def start():
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, **settings))

    try:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(int).result()
            thread.submit(start).result()
    except BaseException:
        for process in started:
            end_process(process)
        raise
    return started[0]


def end_with_parent() -> None:
    """Ends this process once its standard input is closed, that is with the process that started it."""

    def watch():
        # Not through sys.stdin: Python needs its lock at exit.
        while os.read(0, 4096):
            pass
        os._exit(1)

    if not sys.stdin.isatty():
        threading.Thread(target=watch, daemon=True).start()


def end_process(process: subprocess.Popen) -> None:
    """Ends a process of `start_process` and its children, and closes its pipes."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        close(process.stdin)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        close(pipe)


def close(pipe):
    if pipe is not None:
        with contextlib.suppress(OSError):  # the process has ended before it read what was written
            pipe.close()
