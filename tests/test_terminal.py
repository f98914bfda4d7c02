"""What commands print: no name reaches a terminal as a command to it, and a reader that stops reading is no error."""

import io
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from helpers import ROOT, error_line
from rich.table import Table

from keras_vit import processes
from keras_vit.processes import UNREAD
from keras_vit.terminal import Terminal

NAME = "cat\x1b[2J\x1b]0;owned\x07\x9b31m\u202etac\r"
SHOWN = r"cat\x1b[2J\x1b]0;owned\x07\x9b31m\u202etac\r"


def test_names_are_text_wherever_they_stand():
    out = io.StringIO()
    console = Terminal(file=out, force_terminal=True, color_system="truecolor", width=200, highlight=False)
    console.print(f"[bold red]{NAME}[/]\nnext line", markup=True)
    table = Table("class", title=NAME, caption=NAME)
    table.add_row(NAME)
    console.print(table)
    text = out.getvalue()
    assert text.count(SHOWN[:12]) == 4  # rich leaves out bells and returns, and may cut
    assert text.startswith("\x1b[1;31m")  # rich's own codes
    assert "next line" in text.splitlines()[1]
    for code in ("\x1b[2J", "\x1b]0", "\x07", "\x9b", "\u202e", "\r"):
        assert code not in text


def test_a_file_gets_no_bars_whatever_force_color_says(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not Terminal().is_terminal
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert Terminal().is_terminal


def test_errors_and_warnings_are_text(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back afterwards

    def fail():
        raise ValueError(f"data: received {NAME}")

    monkeypatch.setattr(processes, "OURS", [Path(__file__).parent])
    assert error_line(capsys, fail) == f"data: received {SHOWN.removesuffix(chr(92) + 'r')}"
    assert warnings.formatwarning(f"{NAME}", UserWarning, "a.py", 3).strip().endswith(SHOWN.removesuffix("\\r"))

    def fail_at_length():
        raise ValueError("x" * 10**6)

    assert len(error_line(capsys, fail_at_length)) < 5000


PRINTING = """
import sys, types
package = types.ModuleType("keras_vit")  # without Keras, which takes seconds to import
package.__path__ = [{folder!r}]
sys.modules["keras_vit"] = package
from keras_vit.processes import run_command
from keras_vit.terminal import Terminal
{command}
run_command(main)
"""
COMMANDS = {
    "print": "def main():\n    for _ in range(10**5): print('x' * 99)",
    "flushed": "def main():\n    for _ in range(10**5): print('x' * 99, flush=True)",
    "rich": "def main():\n    console = Terminal()\n    for _ in range(10**4): console.print('x' * 99)",
    "exit": "def main():\n    print('x' * 10**6)\n    sys.exit(0)",
    "refused": "def main():\n    print('x' * 10**6, flush=True)\n    raise ValueError('a')",
}


@pytest.mark.skipif(sys.platform == "win32", reason="pipes without SIGPIPE")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_stops_ends_the_command_without_a_word(name):
    code = PRINTING.format(folder=str(ROOT / "keras_vit"), command=COMMANDS[name])
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(10) == b"x" * 10
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == UNREAD == 141
    process.stderr.close()


def test_a_reader_that_reads_all_gets_all():
    code = PRINTING.format(folder=str(ROOT / "keras_vit"), command="def main():\n    print('x' * 10**6)\n    return 3")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (len(done.stdout), done.returncode) == (10**6 + 1, 3)
