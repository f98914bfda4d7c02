"""Child processes: whatever happens to their parent, they end."""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest
from helpers import LIGHT

from keras_vit.processes import run_command, run_python, start_process


@pytest.mark.parametrize("wait", [0, 0.3])
def test_an_interrupt_while_a_process_starts_ends_it(monkeypatch, wait):
    started = []

    class Slow(subprocess.Popen):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            started.append(self)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    monkeypatch.setattr(subprocess, "Popen", Slow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_python(["-S", "-c", "import time; time.sleep(60)"], LIGHT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert started[0].poll() == -signal.SIGTERM


def test_an_interrupt_while_the_thread_starts_loses_no_process(monkeypatch):
    """It comes while the main thread waits for another thread to run: that thread may start the process all the same."""
    started, start = [], threading.Thread.start

    class Counted(subprocess.Popen):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            started.append(self)

    def interrupted(thread):
        start(thread)
        time.sleep(0.3)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Counted)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start_process([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    assert not started


def test_a_warning_of_a_command_is_one_line(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back at the end
    run_command(lambda: None)
    assert warnings.formatwarning(UserWarning("of\ntwo lines"), UserWarning, "file.py", 1) == "warning: of two lines\n"


def test_the_last_line_of_a_failure_is_its_reason():
    code = r"import sys; sys.stderr.buffer.write(b'first\nValueError: no picture of \xff\n'); sys.exit(1)"
    with pytest.raises(ValueError, match=f"^{LIGHT}: no picture of \ufffd$"):
        run_python(["-S", "-c", code], LIGHT)
    with pytest.raises(ValueError, match=f"^{LIGHT}: exit code 3$"):
        run_python(["-S", "-c", "raise SystemExit(3)"], LIGHT)
