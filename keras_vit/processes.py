"""Processes: a command whose errors are one line, Python under another backend, and children that end with their parent."""

import contextlib
import errno
import os
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
OURS = [ROOT / name for name in ("keras_vit", "experiments", "tuning", "benchmarks")]  # folders of this project's own code
# Environment of a process that keeps off accelerators.
ON_PROCESSOR = {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu", "KERAS_TORCH_DEVICE": "cpu"}
GRACE_SECONDS = 5  # between asking a process to end and ending it


def run_command(function: Callable[[], int | None]) -> None:
    """Runs a command's main function and exits with what it returns; a user's mistake becomes one line and exit code 2.

    A mistake is a ValueError or ImportError raised by this project's own code, or a file that cannot be read or
    written. Any other exception is a fault of the program and keeps its traceback.
    """
    warnings.filterwarnings("ignore", module=r"keras\.")
    try:
        code = function()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, ImportError, OSError) as error:
        if not isinstance(error, OSError) and not raised_here(error):
            raise
        if isinstance(error, OSError):
            name = f" {str(error.filename)!r}" if error.filename else ""
            kept = "; what was written before is kept" if error.errno == errno.ENOSPC else ""
            error = f"cannot read or write{name}: {error.strerror or error}{kept}"
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    if code:
        sys.exit(code)


def raised_here(error):
    folder = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    return any(ours in folder.parents for ours in OURS)


def run_python(arguments: list[str], backend: str, **settings: str) -> None:
    """Runs this Python under a backend to its end; a ValueError with its last line if it fails.

    Args:
        arguments: What follows `python` on a command line.
        backend: Of Keras.
        **settings: Environment variables.
    """
    paths = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join(paths), **settings}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ValueError(f"{backend}: {lines[-1].removeprefix('ValueError: ')}")


def end_with_parent() -> None:
    """Ends this process once its standard input is closed, that is with the process that started it."""

    def watch():
        # Not through sys.stdin, whose lock Python wants back when it ends.
        while os.read(0, 4096):
            pass
        os._exit(1)

    if not sys.stdin.isatty():
        threading.Thread(target=watch, daemon=True).start()


def end(process: subprocess.Popen) -> None:
    """Ends a process that has a pipe as its standard input, and those it has started."""
    if process.poll() is not None:
        process.stdin.close()
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        process.stdin.close()
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    process.kill()
    process.wait()
