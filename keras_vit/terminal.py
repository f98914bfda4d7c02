"""What commands print: names and texts of files, data sets and errors reach a terminal as text alone."""

import sys
import typing
from collections.abc import Iterable

from rich.console import Console
from rich.segment import Segment

from keras_vit.checks import visible


class Terminal(Console):
    """A rich console whose own control codes are the only ones: those in what it prints become escapes.

    A closed pipe, such as `| head -1`, is a BrokenPipeError, as for Python's own streams. A file or a pipe gets no bars, whatever
    FORCE_COLOR says: in a notebook, which sets it, they would fill pages.
    """

    def __init__(self, **settings):
        no_screen = {} if sys.stdout.isatty() else {"force_terminal": False}
        super().__init__(**no_screen | settings)

    def render(self, renderable: typing.Any, options: typing.Any = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible_lines(segment.text))

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def visible_lines(text: str) -> str:
    """`visible` for a text of several lines."""
    return "\n".join(map(visible, text.split("\n")))
