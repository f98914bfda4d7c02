"""Ways to damage a file, and a command run in this process to see what it makes of that: for `faults.py` and the tests."""

import contextlib
import dataclasses
import io
import random
import warnings

# Words of the lines that say what was used in the place of what is damaged.
SAID = ("in its place", "takes its place", "written anew", "goes on after epoch", "skipped")


def damages(content: bytes, seed: int = 0) -> dict[str, bytes]:
    """A file's content in every way damaged, by the way's name: cut at each sixteenth, emptied, bits flipped, bytes replaced."""
    rng = random.Random(seed)
    found = {f"cut at {part}/16": content[: len(content) * part // 16] for part in range(1, 16)}
    found |= {"cut by a byte": content[:-2], "empty": b"", "noise": rng.randbytes(len(content)), "zeros": bytes(len(content))}
    for place in range(8):
        changed = bytearray(content)
        changed[rng.randrange(len(content) * place // 8, len(content) * (place + 1) // 8)] ^= 1 << rng.randrange(8)
        found[f"a bit in part {place + 1} of 8"] = bytes(changed)
    for place in range(4):
        start = len(content) * place // 4
        found[f"16 bytes in part {place + 1} of 4"] = content[:start] + rng.randbytes(16) + content[start + 16 :]
    return {way: damaged for way, damaged in found.items() if damaged != content}


@dataclasses.dataclass
class Ended:
    """How a command ended.

    Attributes:
        code: Its exit code; None for an error that would be a traceback.
        out: What it wrote to stdout.
        lines: The lines on stderr.
    """

    code: int | None
    out: str
    lines: list[str]

    @property
    def refused(self) -> bool:
        """Whether it ended with exit code 2 and one line, beside warnings."""
        errors = [line for line in self.lines if not line.startswith("warning: ")]
        return self.code == 2 and len(errors) == 1 and errors[0].startswith("error: ")

    @property
    def said(self) -> bool:
        """Whether a line says that something else was used."""
        return any(words in line for line in self.lines for words in SAID)


def command(*arguments) -> Ended:
    """Runs `keras-vit` with arguments."""
    from keras_vit.cli.main import dispatch
    from keras_vit.processes import run_command

    out, errors, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            run_command(lambda: dispatch(None, [str(argument) for argument in arguments]))
        except SystemExit as end:
            code = end.code
        except Exception as error:  # what this looks for
            code = None
            print(f"{type(error).__name__}: {error}", file=errors)
    return Ended(code, out.getvalue(), [f"warning: {warning.message}" for warning in said] + errors.getvalue().splitlines())
